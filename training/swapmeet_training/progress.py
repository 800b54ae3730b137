"""What a run tells while it goes on, and how it ended."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swapmeet_registry.errors import RegistryError
from swapmeet_registry.origin.provenance import Examples
from swapmeet_training.errors import TrainingError

EXAMPLES = "examples.json"
"""Beside the adapter, and no part of it: what it answered to held-out prompts."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after an optimizer step, or after an evaluation (`evaluation` is filled then).

    `loss` is the mean over the last step, in nats: per trained token, with DPO per pair. `metrics` are the step's:
    `epoch`, `learning_rate`, `gradient_norm` before clipping, and `token_accuracy` (share of the trained tokens that
    the model finds most likely), with DPO `reward_accuracy` (share of the pairs whose chosen answer has the higher
    reward) and `reward_margin`. `evaluation` has `eval_loss` and the like.

    `tokens_per_second` counts all tokens but padding, since this process began to train; `trained_tokens` counts them
    since the run's first step; `seconds_left` leaves start and end aside. `note` is a sentence for the run's owner,
    when something had to be changed to go on.
    """

    name: str
    step: int
    total_steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float
    evaluation: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    trained_tokens: int = 0
    note: str = ""

    def __str__(self) -> str:
        evaluated = "".join(f", {name} {value:.4g}" for name, value in self.evaluation.items())
        noted = f"; {self.note}" if self.note else ""
        return (
            f"{self.name}: step {self.step}/{self.total_steps}, loss {self.loss:.4f}, "
            f"{self.tokens_per_second:.0f} tokens/s, {self.seconds_left:.0f} s left{evaluated}{noted}"
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the training file, and how well the model did on it when it last saw it.

    `loss` is in nats per trained token, with DPO of the pair; `tokens` are the trained ones; epochs count from 1.
    """

    line: int
    epoch: int
    loss: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run: its adapter's folder, and what is known of how it went.

    `metrics` are those of the adapter; `best_step` among them is the step it is of, where the best one is kept.
    `steps` were made in all; `trained_tokens` counts all tokens but padding over all epochs; `seconds` and
    `resumed_from` (a step, 0 for a run from the start) are of the process that finished the run. `worst` are the
    lines with the highest losses, which are often wrong; `notes` are all that `Progress.note` told. `examples` are what
    the adapter answered to held-out prompts, and `unanswered` is why it did not, where that failed.
    """

    name: str
    adapter: Path
    metrics: Mapping[str, float]
    steps: int
    trained_tokens: int
    seconds: float
    resumed_from: int = 0
    worst: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    examples: Examples | None = None
    unanswered: str = ""


@dataclass(frozen=True, slots=True)
class Parked:
    """A run that was asked to stop: `checkpoint` is the folder to resume from, `step` the last one made."""

    name: str
    step: int
    checkpoint: Path


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


def never() -> bool:
    """Do not stop."""
    return False
