"""What penalties and biases change of a sequence's logits, kept up as its tokens come.

Holds only the tokens concerned, each once, so that neither a step nor a new token costs more than those.
"""

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swapmeet_serving.request import Sampling


class Adjustments:
    """One entry per token concerned, in arrays of doubles that a step reads as they are.

    A logit x becomes x + bias, then that divided by `factor` (multiplied, if below zero), then that less `deduction`.

    Attributes:
        ids: the tokens.
        bias: `logit_bias` of the token.
        factor: `repetition_penalty` if the token stands in the prompt or the answer, else 1.
        deduction: `presence_penalty` if it stands in the answer, and `frequency_penalty` for each time it does.
    """

    __slots__ = ("_answer", "_places", "_sampling", "bias", "deduction", "factor", "ids")

    def __init__(self, sampling: "Sampling", prompt: tuple[int, ...]) -> None:
        self._sampling = sampling
        self._places: dict[int, int] = {}
        self._answer: set[int] = set()
        self.ids = array("q")
        self.bias, self.factor, self.deduction = array("d"), array("d"), array("d")
        for token, bias in sampling.logit_bias:
            self.bias[self._place(token)] += bias
        if sampling.repetition_penalty != 1:
            for token in set(prompt):
                self.factor[self._place(token)] = sampling.repetition_penalty

    def add(self, token: int) -> None:
        """Note a token of the answer."""
        if not self._sampling.penalises:
            return
        place = self._place(token)
        self.factor[place] = self._sampling.repetition_penalty
        self.deduction[place] += self._sampling.frequency_penalty
        if token not in self._answer:
            self._answer.add(token)
            self.deduction[place] += self._sampling.presence_penalty

    def _place(self, token: int) -> int:
        place = self._places.setdefault(token, len(self.ids))
        if place == len(self.ids):
            self.ids.append(token)
            self.bias.append(0)
            self.factor.append(1)
            self.deduction.append(0)
        return place
