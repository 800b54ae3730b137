"""What a run tells while it goes on, and how it ended."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swapmeet_registry.errors import RegistryError
from swapmeet_training.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after an optimizer step, or after an evaluation (`evaluation` is filled then).

    `loss` is the mean over the trained tokens of the last step, in nats. `tokens_per_second` counts all
    tokens but padding, since this process began to train; `seconds_left` leaves start and end aside.
    """

    name: str
    step: int
    total_steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float
    evaluation: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        evaluated = "".join(f", {name} {value:.4g}" for name, value in self.evaluation.items())
        return (
            f"{self.name}: step {self.step}/{self.total_steps}, loss {self.loss:.4f}, "
            f"{self.tokens_per_second:.0f} tokens/s, {self.seconds_left:.0f} s left{evaluated}"
        )


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run: its adapter's folder, and what is known of how it went.

    `trained_tokens` counts all tokens but padding over all epochs; `seconds` and `resumed_from` (a step, 0
    for a run from the start) are of the process that finished the run.
    """

    name: str
    adapter: Path
    metrics: Mapping[str, float]
    steps: int
    trained_tokens: int
    seconds: float
    resumed_from: int = 0


Error = TrainingError | RegistryError
"""What a run can end with besides a result."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run ended: with an adapter, or with an error.

    `seconds` is the time from its start to its end, restarts included; `resumed_from` is the step that its
    last worker went on from, 0 if it was never restarted.
    """

    name: str
    adapter: Path | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    trained_tokens: int = 0
    resumed_from: int = 0
    error: Error | None = None


Report = Callable[[Progress], None]
"""Called after every optimizer step and every evaluation, in the thread that trains."""


def ignore(_: object) -> None:
    """Take no notice."""
