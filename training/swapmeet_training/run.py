"""One fine-tune, start to end, in this process."""

import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from swapmeet_registry.bases.nf4 import bits_per_parameter
from swapmeet_registry.errors import BaseInvalid
from swapmeet_registry.provenance import Provenance
from swapmeet_training.data import dataset_digest, read_examples
from swapmeet_training.errors import CheckpointError
from swapmeet_training.foreign import seam
from swapmeet_training.masking import Masker, Sequence
from swapmeet_training.model import attach_lora, load_base
from swapmeet_training.progress import Report, Result, ignore
from swapmeet_training.spec import FineTune

PACKAGES = ("swapmeet", "torch", "transformers", "peft", "bitsandbytes", "accelerate")

Checkpointed = Callable[[Path], None]
"""Called with the folder of every checkpoint once it is whole."""


def run(
    spec: FineTune,
    folder: Path,
    *,
    device: str = "cpu",
    report: Report = ignore,
    checkpointed: Checkpointed = ignore,
    resume_from: Path | None = None,
) -> Result:
    """Fine-tune, and leave a PEFT adapter with its provenance in `folder`/adapter.

    Checkpoints stand beside it as `checkpoint-STEP`. Equal specs, data and package versions give bitwise
    equal adapters on one CPU, also when a run was interrupted and resumed from a checkpoint.

    Raises:
        DataError, TemplateError: the data is wrong, or the base's template can not mark it.
        SpecError: the base has no such target modules.
        BaseInvalid: the base's folder is unusable.
        CheckpointError: `resume_from` is no checkpoint of this run.
        DeviceMissing, OutOfMemory, StorageFull, RunFailed: what a run may die of.
    """
    with seam(spec.name):
        began = time.monotonic()
        training, held_out, pad = load_data(spec)
        model = attach_lora(load_base(spec.base, device), spec)
        trainer = _trainer(spec, folder, device, model, training, held_out, pad)
        ...
