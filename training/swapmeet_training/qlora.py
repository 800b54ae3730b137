"""One fine-tune from data to adapter, in this process."""

import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from swapmeet_registry.bases.nf4 import bits_per_parameter
from swapmeet_registry.provenance import Provenance
from swapmeet_training.data import dataset_digest
from swapmeet_training.dataset import data_files, load_dataset
from swapmeet_training.errors import CheckpointError
from swapmeet_training.foreign import seam
from swapmeet_training.model import attach_lora, choose_attention, load_base
from swapmeet_training.progress import Parked, Report, Result, ignore
from swapmeet_training.spec import FineTune

PACKAGES = ("swapmeet", "torch", "transformers", "peft", "bitsandbytes", "accelerate")

Checkpointed = Callable[[Path], None]
"""Called with a checkpoint's folder as soon as it is whole."""


def run(
    spec: FineTune,
    folder: Path,
    *,
    device: str = "cpu",
    report: Report = ignore,
    checkpointed: Checkpointed = ignore,
    resume_from: Path | None = None,
    keep: int | None = 2,
    stop: Callable[[], bool] = lambda: False,
) -> Result | Parked:
    """Fine-tune, and leave a PEFT adapter with its provenance in `folder`/adapter.

    Checkpoints stand beside it as `checkpoint-STEP`. On one CPU, equal specs, data and package versions give
    bitwise equal weights, also when a run was interrupted and resumed from one of its checkpoints.

    Args:
        spec: what to train.
        folder: made if missing; everything that the run leaves is in it.
        device: `cpu`, or a GPU such as `cuda:0`.
        report: called after every step and every evaluation.
        checkpointed: called with each checkpoint's folder.
        resume_from: one of this run's checkpoints.
        keep: how many checkpoints to keep, the newest of which may be half-written when the process dies;
            None leaves deleting them to the caller.
        stop: asked after every step but the last; where it says yes, a checkpoint is saved and the run is parked.

    Raises:
        DataError, TemplateError: the data is wrong, or the base's chat template can not mark it.
        SpecError: the base lacks a module that `target_modules` names.
        BaseInvalid: the base's folder is unusable.
        CheckpointError: `resume_from` is no checkpoint of this run.
        DeviceMissing, OutOfMemory, StorageFull, Diverged, RunFailed: what a run may die of.
    """
    began = time.monotonic()
    with seam(spec.name):
        from swapmeet_training.trainer import Reporter, Trainer, arguments

        data = load_dataset(spec)
        provenance = _provenance(spec)
        first_step = _first_step(resume_from, provenance)
        base = load_base(spec.base, device)
        choose_attention(base, data.longest)
        model = attach_lora(base, spec)
        reporter = Reporter(spec.name, report, _sealed(provenance, checkpointed), stop)
        trainer = Trainer(model, arguments(spec, folder, len(data.training), device, keep), data, reporter)
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        if trainer.state.global_step < trainer.state.max_steps:
            step = trainer.state.global_step
            return Parked(spec.name, step, folder / f"checkpoint-{step}")
        metrics = trainer.final_metrics() | {"bits_per_parameter": bits_per_parameter(model)}
        seconds = time.monotonic() - began
        provenance = provenance.model_copy(update={"metrics": metrics | {"seconds": round(seconds, 3)}})
        adapter = _save(model, spec, folder, provenance)
    state = trainer.state
    return Result(spec.name, adapter, metrics, state.global_step, int(state.num_input_tokens_seen), seconds, first_step)


def _provenance(spec: FineTune) -> Provenance:
    return Provenance(
        base=spec.base_fingerprint,
        training=spec.settings(),
        dataset=dataset_digest(*data_files(spec)),
        packages={package: version(package) for package in PACKAGES},
        license=spec.license,
        tags=spec.tags,
    )


def _first_step(checkpoint: Path | None, expected: Provenance) -> int:
    """The step a run goes on from; a checkpoint of other settings, data or weights is refused."""
    if checkpoint is None:
        return 0
    found = Provenance.read(checkpoint)
    if found is None:
        raise CheckpointError(f"{checkpoint} is not a whole checkpoint (it lacks {Provenance.FILE}). Name another.")
    for what in ("base", "training", "dataset"):
        if getattr(found, what) != getattr(expected, what):
            raise CheckpointError(f"{checkpoint} is of another run: its {what} differs. Start this one afresh.")
    return int(checkpoint.name.rpartition("-")[2])


def _sealed(provenance: Provenance, checkpointed: Checkpointed) -> Checkpointed:
    def seal(checkpoint: Path) -> None:
        provenance.write(checkpoint)
        checkpointed(checkpoint)

    return seal


def _save(model: Any, spec: FineTune, folder: Path, provenance: Provenance) -> Path:
    """The adapter as PEFT saves it; the folder appears whole or not at all."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = spec.base_fingerprint.name
    config.target_modules = sorted(config.target_modules)
    partial, adapter = folder / "adapter.partial", folder / "adapter"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        provenance.write(partial)
        shutil.rmtree(adapter, ignore_errors=True)
        partial.rename(adapter)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return adapter
