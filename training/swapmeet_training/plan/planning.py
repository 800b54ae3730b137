"""What a run will need before it starts: `make_plan` from known parts, `plan_job` from what a caller submits."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_training.plan.hardware import Hardware
from swapmeet_training.plan.lengths import Lengths, lengths_of
from swapmeet_training.plan.memory import Memory
from swapmeet_training.plan.placement import Node, Placement, place, share_of
from swapmeet_training.plan.planned import Planned
from swapmeet_training.plan.settings import Adapter, RunSettings
from swapmeet_training.plan.shape import BaseShape
from swapmeet_training.plan.shrinking import shrink
from swapmeet_training.spec import fine_tune

ESTIMATED = "The time is an estimate from the hardware's data sheet, and may be off by half."
UNREAD = "unread"
"""In place of the digests of a base whose weights are not read for a plan."""


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Attributes:
        settings: of the run, as it would be made to fit.
        parameters: of the base, `adapter_parameters` of the adapter.
        examples, tokens: of one pass over the data; `token_error` is the 95 % error of `tokens` where the data was
            sampled, as a share.
        steps: optimizer steps.
        trained_tokens: all tokens but padding, of all steps; `padded_tokens` with padding.
        memory: the peak, by part, in bytes.
        seconds: from the start of a worker to its end, `measured` if the hardware's speed was.
        share: of a GPU that the run needs.
        cost: of that share for that time, in the price's currency.
        placement: where it could start now; None if nothing suitable is free.
        words: what was changed to make it fit, and what else its owner should know.
    """

    settings: RunSettings
    hardware: Hardware
    architecture: str
    parameters: int
    adapter_parameters: int
    examples: int
    tokens: int
    token_error: float
    steps: int
    trained_tokens: int
    padded_tokens: int
    memory: Memory
    seconds: float
    share: float
    cost: float
    placement: Placement | None
    words: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the hardware has the memory."""
        return self.memory.needed <= self.hardware.usable

    def at_speed(self, tokens_per_second: float) -> "Plan":
        """The same with the speed that a run like it was measured at, in tokens without padding."""
        computing = self.trained_tokens / tokens_per_second
        hardware = self.hardware.calibrated(self.seconds - self.hardware.start, computing)
        seconds = hardware.start + computing
        words = tuple(word for word in self.words if word != ESTIMATED)
        return replace(self, hardware=hardware, seconds=seconds, cost=self.cost * seconds / self.seconds, words=words)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        settings = asdict(self.settings)
        settings["parent"] = str(self.settings.parent) if self.settings.parent else None
        memory_ = {"peak": self.memory.peak, "needed": self.memory.needed, "moment": self.memory.moment}
        memory_ |= {"parts": dict(self.memory.parts), "moments": dict(self.memory.moments)}
        numbers = ("parameters", "adapter_parameters", "examples", "tokens", "token_error", "steps")
        return {
            "architecture": self.architecture,
            **{name: getattr(self, name) for name in numbers},
            "trained_tokens": self.trained_tokens,
            "padded_tokens": self.padded_tokens,
            "fits": self.fits,
            "memory": memory_,
            "hardware": {"name": self.hardware.name, "memory": self.hardware.memory, "kind": self.hardware.kind},
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(self.trained_tokens / (self.seconds - self.hardware.start), 1),
            "speed": "measured" if self.hardware.measured else "estimated",
            "share": self.share,
            "price": self.hardware.price,
            "cost": round(self.cost, 4),
            "placement": asdict(self.placement) if self.placement else None,
            "settings": settings,
            "words": list(self.words),
        }


def make_plan(
    shape: BaseShape,
    settings: RunSettings,
    lengths: Lengths,
    hardware: Hardware,
    held_out: Lengths | None = None,
    nodes: Sequence[Node] = (),
    words: Sequence[str] = (),
) -> Plan:
    """The plan of a run as it is set, whether it fits or not.

    Raises:
        SpecError: the base lacks a module that `target_modules` names.
    """
    return plan_of(Planned(shape, settings, lengths, hardware, held_out), nodes, words)


def plan_of(run: Planned, nodes: Sequence[Node] = (), words: Sequence[str] = ()) -> Plan:
    """As `make_plan`."""
    hardware, needed = run.hardware, run.memory
    paged = needed.peak > hardware.usable >= needed.needed
    bytes_ = min(needed.peak, hardware.usable) if paged else needed.peak
    share = share_of(bytes_, hardware) if hardware.kind == "cuda" else 0.0
    placement = place(bytes_, share, hardware, nodes)
    seconds = hardware.start + run.computing
    return Plan(
        settings=run.settings,
        hardware=hardware,
        architecture=run.shape.architecture,
        parameters=run.shape.parameters,
        adapter_parameters=Adapter.of(run.shape, run.settings).parameters,
        examples=run.lengths.examples,
        tokens=run.lengths.tokens,
        token_error=run.lengths.error,
        steps=run.steps,
        trained_tokens=run.tokens,
        padded_tokens=run.padded,
        memory=needed,
        seconds=seconds,
        share=share,
        cost=seconds / 3600 * hardware.price * (share or 1.0),
        placement=placement,
        words=(*words, *_remarks(run, paged, placement, nodes)),
    )


def plan_job(
    base: Path,
    settings: Mapping[str, Any],
    data: Path,
    validation: Path | None,
    nodes: Sequence[Node],
    hardware: Hardware,
    share: float = 1.0,
) -> Plan:
    """The plan of a submitted fine-tune, made smaller where it would not fit.

    Args:
        base: a transformers folder, of which config.json and the tokenizer are read.
        settings: those of `FineTune`, its files and its base left out; `name` may be.
        data: the training file.
        validation: the held-out file.
        nodes: where it could be placed.
        hardware: what every GPU of the nodes is, or their CPUs.
        share: of a GPU, that the run may take.

    Raises:
        SpecError, DataError, TemplateError: settings or data are wrong.
        BaseInvalid: the base can not be planned.
        OutOfMemory: the run does not fit, however small; the message says what would.
    """
    return fitting(planned_job(base, settings, data, validation, hardware), nodes, share)


def planned_job(
    base: Path, settings: Mapping[str, Any], data: Path, validation: Path | None, hardware: Hardware
) -> Planned:
    """A submitted fine-tune as far as its files and its base tell; arguments and errors are those of `plan_job`."""
    spec = fine_tune(
        {"name": "plan/plan", **settings, "base": base, "data": data, "validation": validation}
        | {"base_fingerprint": Fingerprint(name=base.name, weights=UNREAD, tokenizer=UNREAD)}
    )
    lengths, held_out = lengths_of(spec)
    return Planned(BaseShape.of(base), RunSettings.of(spec.model_dump()), lengths, hardware, held_out)


def fitting(run: Planned, nodes: Sequence[Node] = (), share: float = 1.0) -> Plan:
    """The plan of a run, made smaller where it would not fit into this share of its hardware.

    Raises:
        OutOfMemory: it does not fit, however small; the message says what would.
    """
    settings, words = shrink(run, int(share * run.hardware.usable))
    return plan_of(replace(run, settings=settings), nodes, words)


def _remarks(run: Planned, paged: bool, placement: Placement | None, nodes: Sequence[Node]) -> list[str]:
    remarks = []
    if paged:
        remarks.append("The optimizer's states are paged out to the host's memory at times, which costs some speed.")
    if not run.lengths.whole:
        remarks.append(f"The data was sampled: its tokens are known to {100 * run.lengths.error:.1f} %.")
    if nodes and placement is None:
        remarks.append("Nothing suitable is free now, so the run would wait.")
    if not run.hardware.measured:
        remarks.append(ESTIMATED)
    return remarks
