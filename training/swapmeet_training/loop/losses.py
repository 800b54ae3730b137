"""What a run makes small: the supervised loss, and what every loss has in common."""

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.nn.functional import cross_entropy

from swapmeet_training.data.masking import IGNORED
from swapmeet_training.loop.batches import Batch, Row, collate, trained

Unit = TypeVar("Unit")


@dataclass(frozen=True, slots=True)
class Score:
    """How a model does on a micro-batch.

    `loss` () and each of `sums` () are summed over what the objective counts, so that dividing by the count of all
    micro-batches of a step gives the step's means. `losses` (examples,) are each example's own mean, in nats.
    """

    loss: torch.Tensor
    sums: dict[str, torch.Tensor]
    losses: torch.Tensor


@dataclass(frozen=True, slots=True)
class Example:
    """What is kept of an example besides its loss: the line it stands on and its trained tokens."""

    line: int
    tokens: int


class Objective(Protocol, Generic[Unit]):
    """A loss over units: rows of examples, or pairs."""

    def length(self, unit: Unit) -> int:
        """All tokens of a unit."""

    def count(self, units: list[Unit]) -> int:
        """What the loss is a mean over."""

    def examples(self, units: list[Unit]) -> list[Example]:
        """The examples of units, in the order of `Score.losses`."""

    def score(self, model: Any, units: list[Unit]) -> Score:
        """The model's score on units, all at once; differentiable unless under `no_grad`."""


class Supervised(Objective[Row]):
    """Cross entropy, a mean over the trained tokens of the whole step: how they are split changes nothing."""

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def length(self, unit: Row) -> int:
        """All tokens of a row."""
        return sum(len(sequence.tokens) for sequence in unit)

    def count(self, units: list[Row]) -> int:
        """Trained tokens."""
        return sum(trained(sequence) for row in units for sequence in row)

    def examples(self, units: list[Row]) -> list[Example]:
        """Every sequence."""
        return [Example(sequence.line, trained(sequence)) for row in units for sequence in row]

    def score(self, model: Any, units: list[Row]) -> Score:
        """Summed cross entropy and greedy hits."""
        tokens = token_losses(model, collate(units, self._pad, model.device))
        return Score(tokens.losses.sum(), {"token_accuracy": tokens.hits.sum()}, tokens.means())


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """Of each trained token (tokens,): its loss in nats, whether it was the likeliest, and its example's number."""

    losses: torch.Tensor
    hits: torch.Tensor
    owners: torch.Tensor
    examples: int

    def sums(self) -> torch.Tensor:
        """Each example's loss (examples,), differentiable."""
        return self.losses.new_zeros(self.examples).index_add(0, self.owners, self.losses)

    def means(self) -> torch.Tensor:
        """Each example's loss per trained token (examples,), detached."""
        return self.sums().detach() / torch.bincount(self.owners, minlength=self.examples).clamp(min=1)


def token_losses(model: Any, batch: Batch) -> TokenLosses:
    """The losses of a batch's trained tokens.

    The output head runs only where some row of the batch has a trained token: with a large vocabulary and
    long prompts it would cost more than the rest of the model together.
    """
    positions = (batch.targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits = model(**batch.inputs, logits_to_keep=positions).logits
    targets = batch.targets[:, positions]
    wanted = targets != IGNORED
    logits, targets = logits[wanted].float(), targets[wanted]
    return TokenLosses(
        losses=cross_entropy(logits, targets, reduction="none"),
        hits=logits.detach().argmax(dim=-1) == targets,
        owners=batch.owners[:, positions][wanted],
        examples=batch.examples,
    )
