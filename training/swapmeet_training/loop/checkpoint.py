"""Checkpoints: all that a run needs to go on as if it had never stopped, in a folder that appears whole or not at all.

    adapter_config.json  adapter_model.safetensors  [chat_template.jinja]  swapmeet.json    an adapter, ready to publish
    .state/optimizer.safetensors   what the optimizer remembers of each weight
    .state/random.safetensors      the random numbers' state, which dropout goes on with
    .state/standing.json           step, micro-batch, best evaluation so far, …
    .state/best.safetensors        the adapter of the best evaluation, unless it is this one
    .state/adapter.safetensors     the adapter as it is trained, where another form of it is published, …
    .state/initial.safetensors     … and what is taken away from it
    .state/metrics.csv  .state/losses.safetensors    the run's history
    .state/files.json              SHA-256 of each file above; what is missing or changed is told

The data's order needs no state: it follows from the step (`order.py`).
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapmeet_registry.origin.provenance import Provenance
from swapmeet_training.errors import CheckpointError
from swapmeet_training.lora.parent import WEIGHTS

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]
Save = Callable[[Path], object]

STATE, FILES, STANDING, METRICS = ".state", "files.json", "standing.json", "metrics.csv"
TENSORS = ("optimizer", "random", "losses")
SOMETIMES = ("best", "adapter", "initial")


@dataclass(slots=True)
class Standing:
    """Where a run stands, but for its tensors: steps made, tokens seen, the micro-batch that fits, evaluations."""

    micro_batch: int
    step: int = 0
    tokens: int = 0
    evaluation: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    loss: float = 0.0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds; `tensors` by the name of their file."""

    standing: Standing
    metrics: str
    tensors: dict[str, Tensors]

    def write(self, folder: Path, save_adapter: Save, seal: Save) -> None:
        """Write the checkpoint; `save_adapter` adds the adapter, and `seal` its provenance."""
        from safetensors.torch import save_file

        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            state = partial / STATE
            state.mkdir(parents=True)
            save_adapter(partial)
            for name, tensors in self.tensors.items():
                save_file(tensors, state / f"{name}.safetensors")
            (state / METRICS).write_text(self.metrics, encoding="utf-8")
            (state / STANDING).write_text(json.dumps(asdict(self.standing)), encoding="utf-8")
            (state / FILES).write_text(json.dumps(digests(partial)), encoding="utf-8")
            seal(partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @classmethod
    def read(cls, folder: Path, expected: Provenance) -> "Checkpoint":
        """Read a checkpoint of the run that `expected` tells of.

        Raises:
            CheckpointError: it is not whole, was changed, or is of other settings, data or weights.
        """
        from safetensors.torch import load_file

        _require_same_run(folder, expected)
        _require_whole(folder)
        state = folder / STATE
        tensors = {name: load_file(state / f"{name}.safetensors") for name in TENSORS}
        tensors["adapter"] = load_file(folder / WEIGHTS)
        for name in SOMETIMES:
            if (state / f"{name}.safetensors").is_file():
                tensors[name] = load_file(state / f"{name}.safetensors")
        standing = json.loads((state / STANDING).read_text(encoding="utf-8"))
        if standing.keys() != Standing.__dataclass_fields__.keys():
            raise CheckpointError(f"{folder} was written by another version of Swapmeet. Start this run afresh.")
        return cls(Standing(**standing), (state / METRICS).read_text(encoding="utf-8"), tensors)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, but provenance and the list itself."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (FILES, Provenance.FILE):
            with path.open("rb") as stream:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def rotate(folder: Path, keep: int | None) -> None:
    """Delete all but the newest checkpoints in a run's folder, and what killed processes left half-written."""
    for partial in folder.glob("checkpoint-*.partial"):
        shutil.rmtree(partial)
    if keep is not None:
        newest = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for old in newest[keep:]:
            shutil.rmtree(old)


def _require_same_run(folder: Path, expected: Provenance) -> None:
    found = Provenance.read(folder)
    if found is None:
        raise CheckpointError(f"{folder} is not a whole checkpoint (it lacks {Provenance.FILE}). Name another.")
    for what in ("base", "training", "dataset"):
        if getattr(found, what) != getattr(expected, what):
            raise CheckpointError(f"{folder} is of another run: its {what} differs. Start this one afresh.")


def _require_whole(folder: Path) -> None:
    try:
        wanted: dict[str, Any] = json.loads((folder / STATE / FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is not a whole checkpoint ({STATE}/{FILES}: {error}). Name another."
        ) from error
    found = digests(folder)
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise CheckpointError(
            f"{folder} is not as it was written: {', '.join(wrong)} is missing, changed or new. Name another."
        )
