"""Fine-tune LoRA adapters on an NF4 base (QLoRA), alone or many at once on Ray.

    from pathlib import Path
    from swapmeet_registry.fingerprint import fingerprint
    from swapmeet_training import FineTune, run

    base = Path("bases/smollm2-135m")
    spec = FineTune(
        name="acme/dates",
        base=base,
        base_fingerprint=fingerprint(base, "smollm2-135m"),
        data=Path("dates.jsonl"),
        validation=Path("held-out.jsonl"),
        epochs=2,
    )
    result = run(spec, Path("runs/dates"), report=print)
    result.adapter  # a folder that PeftModel.from_pretrained loads, with swapmeet.json beside the weights

`swapmeet_training.attempts.ray_driver.train_on_ray` runs many at once, restarting each from its checkpoint when its
worker dies. Importing this package imports neither torch nor ray.
"""

from typing import TYPE_CHECKING

from swapmeet_registry.on_demand import on_demand as _on_demand
from swapmeet_training.errors import (
    CheckpointError,
    DataError,
    DeviceMissing,
    Diverged,
    OutOfMemory,
    RunFailed,
    SpecError,
    StorageFull,
    TemplateError,
    TrainingError,
    WorkerLost,
)

if TYPE_CHECKING:
    from swapmeet_training.data import dataset_digest, read_examples
    from swapmeet_training.data.check import check_file
    from swapmeet_training.data.dataset import Dataset, check_files, load_dataset
    from swapmeet_training.data.report import Report
    from swapmeet_training.progress import Outcome, Parked, Progress, Result, Row
    from swapmeet_training.qlora import run
    from swapmeet_training.spec import FineTune, Resources, fine_tune, spec_error

__all__ = [
    "CheckpointError",
    "DataError",
    "Dataset",
    "DeviceMissing",
    "Diverged",
    "FineTune",
    "OutOfMemory",
    "Outcome",
    "Parked",
    "Progress",
    "Report",
    "Resources",
    "Result",
    "Row",
    "RunFailed",
    "SpecError",
    "StorageFull",
    "TemplateError",
    "TrainingError",
    "WorkerLost",
    "check_file",
    "check_files",
    "dataset_digest",
    "fine_tune",
    "load_dataset",
    "read_examples",
    "run",
    "spec_error",
]

__getattr__ = _on_demand(
    __name__,
    {
        "data": "dataset_digest read_examples",
        "data.check": "check_file",
        "data.dataset": "Dataset check_files load_dataset",
        "data.report": "Report",
        "progress": "Outcome Parked Progress Result Row",
        "qlora": "run",
        "spec": "FineTune Resources fine_tune spec_error",
    },
)
