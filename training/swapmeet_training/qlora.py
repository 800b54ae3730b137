"""One fine-tune from data to adapter, in this process."""

import hashlib
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

from swapmeet_registry.bases.nf4 import bits_per_parameter
from swapmeet_registry.origin.provenance import Examples, Provenance, code_digest
from swapmeet_training.data import dataset_digest
from swapmeet_training.data.dataset import Dataset, data_files, load_dataset
from swapmeet_training.data.masking import Pair
from swapmeet_training.errors import DataError
from swapmeet_training.foreign import as_ours, seam
from swapmeet_training.loop.answering import answered
from swapmeet_training.loop.checkpoint import Checkpoint
from swapmeet_training.loop.packing import pack
from swapmeet_training.lora import adapter
from swapmeet_training.lora.model import attach_lora, choose_attention, load_base, require_apart
from swapmeet_training.lora.parent import parent_digest
from swapmeet_training.progress import EXAMPLES, Parked, Report, Result, ignore, never
from swapmeet_training.spec import FineTune

PACKAGES = ("swapmeet", "torch", "transformers", "peft", "bitsandbytes", "accelerate")

Checkpointed = Callable[[Path], None]
"""Called with a checkpoint's folder as soon as it is whole."""

Reached = Callable[[str], None]
"""Called with the name of each part of a run's start that is done: `data`, `base`, `adapter`."""

Stop = Callable[[], bool]


@overload
def run(
    spec: FineTune,
    folder: Path,
    *,
    device: str = ...,
    report: Report = ...,
    checkpointed: Checkpointed = ...,
    resume_from: Path | None = ...,
    keep: int | None = ...,
    reached: Reached = ...,
) -> Result: ...


@overload
def run(
    spec: FineTune,
    folder: Path,
    *,
    device: str = ...,
    report: Report = ...,
    checkpointed: Checkpointed = ...,
    resume_from: Path | None = ...,
    keep: int | None = ...,
    reached: Reached = ...,
    stop: Stop,
) -> Result | Parked: ...


def run(
    spec: FineTune,
    folder: Path,
    *,
    device: str = "cpu",
    report: Report = ignore,
    checkpointed: Checkpointed = ignore,
    resume_from: Path | None = None,
    keep: int | None = 2,
    reached: Reached = ignore,
    stop: Stop = never,
) -> Result | Parked:
    """Fine-tune, and leave a PEFT adapter with its provenance in `folder`/adapter.

    Checkpoints stand beside it as `checkpoint-STEP`, each an adapter that can be published, with the run's state in a
    hidden folder; and the run's history as `metrics.csv` and `losses.jsonl`, with what the adapter answers to held-out
    prompts as `examples.json`. On one CPU, equal specs, data and package versions give bitwise equal weights, also when
    a run was interrupted and resumed from one of its checkpoints.

    Args:
        spec: what to train.
        folder: made if missing; everything that the run leaves is in it.
        device: `cpu`, or a GPU such as `cuda:0`.
        report: called after every step and every evaluation.
        checkpointed: called with each checkpoint's folder.
        resume_from: one of this run's checkpoints, wherever it stands.
        keep: how many checkpoints to keep; None leaves deleting them to the caller.
        reached: called when a part of the start is done.
        stop: asked between optimizer steps; when it says yes, a checkpoint is saved and the run returns.

    Returns:
        The finished run; or where it was parked, if `stop` said so before it had made all steps.

    Raises:
        DataError, TemplateError: the data is wrong, or the base's chat template can not mark it.
        SpecError: the base lacks a module that `target_modules` names, or can not do what the spec asks.
        BaseInvalid, BaseMismatch: the base's folder is unusable, or another one than the parent's.
        CheckpointError: `resume_from` is no checkpoint of this run.
        DeviceMissing, OutOfMemory, StorageFull, Diverged, RunFailed: what a run may die of.
    """
    began = time.monotonic()
    with seam(spec.name):
        from swapmeet_training.loop.trainer import Trainer

        data = load_dataset(spec)
        provenance = _provenance(spec)
        checkpoint = Checkpoint.read(resume_from, provenance) if resume_from else None
        first_step = checkpoint.standing.step if checkpoint else 0
        training, held_out, longest = _units(spec, data)
        reached("data")
        base = load_base(spec.base, device)
        choose_attention(base, longest)
        if spec.packing:
            require_apart(base)
        reached("base")
        model = attach_lora(base, spec)
        trainer = Trainer(
            spec,
            model,
            _objective(spec, data, model),
            training,
            held_out,
            folder,
            report=report,
            seal=provenance.write,
            saved=checkpointed,
            keep=keep,
        )
        if checkpoint:
            trainer.restore(checkpoint)
        reached("adapter")
        parked = trainer.train(stop)
        if parked:
            return Parked(spec.name, trainer.standing.step, parked)
        metrics = trainer.final_metrics() | {"bits_per_parameter": bits_per_parameter(model)}
        weights = trainer.final_weights()
        examples, unanswered = _examples(spec, model, weights, data, folder)
        seconds = time.monotonic() - began
        facts = {"metrics": metrics | {"seconds": round(seconds, 3)}}
        shown = {"examples": examples if spec.show_examples else None}
        provenance = provenance.model_copy(update=facts | shown)
        folder = adapter.publish(model, spec, folder, weights, provenance.write)
    return Result(
        name=spec.name,
        adapter=folder,
        metrics=metrics,
        steps=trainer.standing.step,
        trained_tokens=trainer.standing.tokens,
        seconds=seconds,
        resumed_from=first_step,
        worst=trainer.losses.worst(),
        notes=tuple(trainer.standing.notes),
        examples=examples,
        unanswered=unanswered,
    )


def _examples(
    spec: FineTune, model: Any, weights: adapter.Weights, data: Dataset, folder: Path
) -> tuple[Examples | None, str]:
    """What the adapter answers, kept in `folder`, or why it does not: a run that is done does not fail for that."""
    path = folder / EXAMPLES
    path.unlink(missing_ok=True)
    try:
        adapter.set_weights(model, weights)
        examples = answered(spec, model, data.held_out, data.pad)
        if examples is not None:
            path.write_text(examples.model_dump_json(), encoding="utf-8")
    except Exception as error:
        return None, f"The adapter was asked nothing, as that failed: {as_ours(spec.name, error)}"
    return examples, ""


def _units(spec: FineTune, data: Dataset) -> tuple[list[Any], list[Any], int]:
    """What is trained on, what is evaluated on, and the tokens of the longest row.

    Raises:
        DataError: the files hold examples of another method.
    """
    pairs = spec.method == "dpo"
    training: list[Any] = list(data.training)
    held_out: list[Any] = list(data.held_out)
    for path, examples in zip(data_files(spec), (training, held_out), strict=False):
        if any(isinstance(example, Pair) != pairs for example in examples):
            wanted = "pairs of a chosen and a rejected answer" if pairs else "chats or prompts with completions"
            raise DataError(
                f"{path.name} does not hold {wanted}, which method {spec.method} needs. Change one of them."
            )
    if pairs:
        return training, held_out, data.longest
    held_out = [(sequence,) for sequence in held_out]
    if not spec.packing:
        return [(sequence,) for sequence in training], held_out, data.longest
    rows = pack([len(sequence.tokens) for sequence in training], spec.max_length)
    packed = [tuple(training[index] for index in row) for row in rows]
    return packed, held_out, max(sum(len(sequence.tokens) for sequence in row) for row in packed + held_out)


def _objective(spec: FineTune, data: Dataset, model: Any) -> Any:
    from swapmeet_training.loop.losses import Supervised
    from swapmeet_training.loop.preference import Preference

    if spec.method == "dpo":
        return Preference(data.pad, spec.beta, lambda: adapter.reference(model))
    return Supervised(data.pad)


def _provenance(spec: FineTune) -> Provenance:
    training = spec.settings()
    if spec.parent:
        training["parent"] = parent_digest(spec.parent, spec.base_fingerprint)
    if spec.own_template is not None:
        training["chat_template"] = f"sha256:{hashlib.sha256(spec.own_template.encode()).hexdigest()}"
    return Provenance(
        base=spec.base_fingerprint,
        training=training,
        dataset=dataset_digest(*data_files(spec)),
        packages={package: version(package) for package in PACKAGES},
        code=code_digest("swapmeet_registry", "swapmeet_training"),
        license=spec.license,
        dataset_license=spec.dataset_license,
        tags=spec.tags,
    )
