"""Every error that training raises.

    TrainingError
    ├── SpecError          (ValueError)     a setting is wrong, or does not suit the base or the cluster
    ├── DataError          (ValueError)     a training file is wrong; the message names line and field
    ├── TemplateError      (ValueError)     the base's chat template can not mark the assistant's turn
    ├── CheckpointError    (ValueError)     a checkpoint is missing or belongs to another run
    ├── DeviceMissing      (RuntimeError)   a GPU was asked for and there is none
    ├── OutOfMemory        (MemoryError)    the run does not fit in memory
    ├── StorageFull        (OSError)        no space left for checkpoints or the adapter
    ├── Diverged           (ArithmeticError) the loss is no longer a number
    ├── RunFailed          (RuntimeError)   the run ended by an error nobody foresaw
    └── WorkerLost         (RuntimeError)   the worker died more often than the run may be restarted

A base folder that can not be used raises `swapmeet_registry.errors.BaseInvalid`.
To add one: derive from `TrainingError` and one standard class, give it a `code`, take one message that
says what to do, and keep it picklable (Ray carries errors between processes).
"""


class TrainingError(Exception):
    """Base of all training errors; `code` is what the HTTP API answers."""

    code = "training_error"


class SpecError(TrainingError, ValueError):
    """A setting of a fine-tune is wrong; the message lists every mistake found."""

    code = "invalid_hyperparameters"


class DataError(TrainingError, ValueError):
    """A training file is wrong; the message names file, line and field of every mistake found."""

    code = "invalid_training_file"


class TemplateError(TrainingError, ValueError):
    """The base's chat template can not mark which tokens are the assistant's."""

    code = "invalid_chat_template"


class CheckpointError(TrainingError, ValueError):
    """A checkpoint is missing, incomplete, or belongs to another run."""

    code = "invalid_checkpoint"


class DeviceMissing(TrainingError, RuntimeError):
    """A GPU was asked for and this machine has none that torch can use."""

    code = "device_missing"


class OutOfMemory(TrainingError, MemoryError):
    """The run does not fit in the memory it has."""

    code = "out_of_memory"


class StorageFull(TrainingError, OSError):
    """No space is left where the run keeps its checkpoints and its adapter."""

    code = "storage_full"


class Diverged(TrainingError, ArithmeticError):
    """The loss is no longer a finite number; the same settings would diverge again."""

    code = "diverged"


class RunFailed(TrainingError, RuntimeError):
    """The run ended by an error nobody foresaw, which another attempt may not meet."""

    code = "run_failed"


class WorkerLost(TrainingError, RuntimeError):
    """The worker process died more often than the run may be restarted."""

    code = "worker_lost"
