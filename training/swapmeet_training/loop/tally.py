"""Adds up the scores of a step's micro-batches, and asks the device for them once."""

from collections.abc import Iterator

import torch

from swapmeet_training.loop.losses import Example, Score


class Tally:
    """Sums over micro-batches until it is closed; then means and each example's loss.

    Args:
        examples: of all micro-batches, in their order.
        count: what the loss and the metrics are means over.
    """

    def __init__(self, examples: list[Example], count: int) -> None:
        self.count = count
        self.loss = 0.0
        self.metrics: dict[str, float] = {}
        self._examples = examples
        self._scores: list[Score] = []
        self._losses: list[float] = []

    def add(self, score: Score) -> None:
        """A micro-batch's score, without its graph."""
        self._scores.append(Score(score.loss.detach(), score.sums, score.losses))

    def close(self) -> "Tally":
        """All were added."""
        scores, self._scores = self._scores, []
        self.loss = float(torch.stack([score.loss for score in scores]).sum()) / self.count
        self.metrics = {
            name: float(torch.stack([score.sums[name] for score in scores]).sum()) / self.count
            for name in scores[0].sums
        }
        self._losses = torch.cat([score.losses for score in scores]).tolist()
        return self

    def examples(self) -> Iterator[tuple[Example, float]]:
        """Every example with its loss."""
        return zip(self._examples, self._losses, strict=True)
