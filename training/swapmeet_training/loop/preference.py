"""Direct preference optimization (arXiv 2305.18290): chosen answers up, rejected ones down, near the reference.

    loss = -log sigmoid(beta * (reward(chosen) - reward(rejected)))
    reward(answer) = log p(answer) - log p_reference(answer)

The reference is the model that the run started from, which costs no second model: it is the same one with the
adapter switched off, or, where the run goes on from a parent, with the parent's weights beside it switched on.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from swapmeet_training.data.masking import Pair
from swapmeet_training.loop.batches import collate, trained
from swapmeet_training.loop.losses import Example, Objective, Score, token_losses

Reference = Callable[[], AbstractContextManager[Any]]
"""Within it, the model is the reference."""


class Preference(Objective[Pair]):
    """DPO's loss, a mean over the pairs of the whole step."""

    def __init__(self, pad: int, beta: float, reference: Reference) -> None:
        self._pad = pad
        self._beta = beta
        self._reference = reference

    def length(self, unit: Pair) -> int:
        """All tokens of both answers with their prompt."""
        return len(unit.chosen.tokens) + len(unit.rejected.tokens)

    def count(self, units: list[Pair]) -> int:
        """Pairs."""
        return len(units)

    def examples(self, units: list[Pair]) -> list[Example]:
        """Every pair."""
        return [Example(pair.line, trained(pair.chosen) + trained(pair.rejected)) for pair in units]

    def score(self, model: Any, units: list[Pair]) -> Score:
        """Summed loss, margins of the rewards, and how many pairs are in the right order."""
        answers = [pair.chosen for pair in units] + [pair.rejected for pair in units]
        batch = collate([(answer,) for answer in answers], self._pad, model.device)
        with torch.no_grad(), self._reference():
            reference = -token_losses(model, batch).sums()
        rewards = self._beta * (-token_losses(model, batch).sums() - reference)
        chosen, rejected = rewards.chunk(2)
        losses = -logsigmoid(chosen - rejected)
        margins = (chosen - rejected).detach()
        return Score(
            loss=losses.sum(),
            sums={"reward_accuracy": (margins > 0).sum(), "reward_margin": margins.sum()},
            losses=losses.detach(),
        )
