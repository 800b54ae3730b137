"""Make a run fit into memory without changing what it learns, or say what would fit."""

from collections.abc import Callable, Iterator

from swapmeet_training.errors import OutOfMemory
from swapmeet_training.plan.hardware import GB
from swapmeet_training.plan.planned import Planned
from swapmeet_training.plan.settings import RunSettings

MOST_ACCUMULATED = 4096
"""What `FineTune.gradient_accumulation` allows."""

Words = tuple[str, ...]


def shrink(run: Planned, memory: int) -> tuple[RunSettings, Words]:
    """Settings with which a run fits into `memory` bytes, and why they differ from its own.

    Optimizer steps keep their examples: a smaller micro-batch is accumulated more often. If that does not do,
    activations are recomputed. The first settings that fit are taken.

    Raises:
        OutOfMemory: none fit; the message says what would.
    """
    for candidate in _candidates(run):
        if candidate.memory.needed <= memory:
            return candidate.settings, _words(run, candidate, memory)
    raise OutOfMemory(_refusal(run, memory))


def _candidates(run: Planned) -> Iterator[Planned]:
    yield run
    for checkpointing in sorted({run.settings.gradient_checkpointing, True}):
        for size in _micro_batches(run.settings):
            yield run.having(
                batch_size=size,
                gradient_accumulation=run.settings.per_step // size,
                gradient_checkpointing=checkpointing,
            )


def _micro_batches(settings: RunSettings) -> list[int]:
    """Sizes up to the run's own that divide its steps, the largest first."""
    total = settings.per_step
    sizes = range(settings.batch_size, 0, -1)
    return [size for size in sizes if total % size == 0 and total // size <= MOST_ACCUMULATED]


def _words(run: Planned, candidate: Planned, memory: int) -> Words:
    before, after = run.settings, candidate.settings
    if before == after:
        return ()
    words = [
        f"As set, the run needs {_gb(run.memory.needed)}, and {run.hardware.name} has {_gb(memory)} for it "
        f"(the most in the {run.memory.moment})."
    ]
    if after.batch_size != before.batch_size:
        words.append(
            f"batch_size is lowered from {before.batch_size} to {after.batch_size} and gradient_accumulation raised "
            f"from {before.gradient_accumulation} to {after.gradient_accumulation}, so each optimizer step still "
            f"trains on {before.per_step}."
        )
    if after.gradient_checkpointing != before.gradient_checkpointing:
        words.append("gradient_checkpointing is turned on: activations are computed twice, about a third slower.")
    words.append(f"So it needs {_gb(candidate.memory.needed)}.")
    return tuple(words)


def _refusal(run: Planned, memory: int) -> str:
    smallest = list(_candidates(run))[-1]
    needed = smallest.memory.needed
    parts = sorted(smallest.memory.parts.items(), key=lambda part: -part[1])
    largest = ", ".join(f"{part} {_gb(size)}" for part, size in parts[:3])
    ways = [
        _way("rank", _most(smallest.settings.rank, lambda rank: _fits(smallest.having(rank=rank), memory))),
        _way("max_length", _longest(smallest, memory)),
    ]
    would = [way for way in ways if way] + [f"hardware with {_gb(_memory_for(run, needed))} of memory"]
    return (
        f"The run needs {_gb(needed)} at least ({largest}, with batch_size {smallest.settings.batch_size} and gradient "
        f"checkpointing), and {run.hardware.name} has {_gb(memory)} for it. What would fit: {', or '.join(would)}."
    )


def _fits(run: Planned, memory: int) -> bool:
    return run.memory.needed <= memory


def _longest(run: Planned, memory: int) -> int | None:
    """The longest examples that fit; a `max_length` below the data's refuses the longer ones."""
    longest = max(batch.length for batch in run.batches)
    return _most(longest, lambda length: _fits(run.cut(length), memory))


def _most(below: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number under `below` that fits, if any does: what fits is found by halving."""
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low or None


def _memory_for(run: Planned, needed: int) -> int:
    return round(needed * run.hardware.memory / run.hardware.usable)


def _way(setting: str, value: int | None) -> str:
    return f"{setting} {value}" if value else ""


def _gb(size: float) -> str:
    return f"{size / GB:.3g} GB" if size >= GB / 10 else f"{size / 1e6:.3g} MB"
