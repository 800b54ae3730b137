"""The seam to torch, transformers, PEFT and bitsandbytes: they keep quiet, and their errors become ours."""

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from swapmeet_registry.errors import RegistryError
from swapmeet_training.errors import OutOfMemory, RunFailed, StorageFull, TrainingError

NOISY = ("bitsandbytes", "transformers", "peft", "accelerate", "torch.utils.checkpoint")
KNOWN_WARNINGS = (
    "Paged optimizers are not supported on CPU",  # there is nothing to page out to; the arithmetic is the same
    "`is_gradient_checkpointing` is deprecated",  # PEFT 0.21 asks transformers 5 by the old name
)
NO_SPACE = ("No space left on device", "PytorchStreamWriter failed", "enforce fail at inline_container")
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def seam(run: str) -> Iterator[None]:
    """Run foreign code on behalf of a run named `run`.

    Raises:
        OutOfMemory, StorageFull: as far as the foreign error says so.
        RunFailed: for every other error that is neither ours nor the registry's, with it as the cause.
    """
    try:
        with _quiet():
            yield
    except (TrainingError, RegistryError):
        raise
    except Exception as error:
        raise as_ours(run, error) from error


def as_ours(run: str, error: Exception) -> TrainingError | RegistryError:
    """The error of ours that says what a foreign one means; ours stay as they are."""
    if isinstance(error, TrainingError | RegistryError):
        return error
    text = f"{type(error).__name__}: {error}"
    if no_memory(error):
        return OutOfMemory(
            f"{run} does not fit in memory. Lower batch_size or max_length (gradient_accumulation keeps the "
            f"batch's size), or turn gradient_checkpointing on. ({text})"
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(sign in text for sign in NO_SPACE):
        return StorageFull(f"{run} has no space left to save to. Free some and start it again. ({text})")
    return RunFailed(f"{run} failed: {text}")


def no_memory(error: Exception) -> bool:
    """Whether an error says that memory has run out: Python's, or the CPU's or the GPU's allocator's."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in NO_MEMORY)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what is printed for somebody at a terminal; restore it afterwards."""
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for message in KNOWN_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            # torch's only sign that a layer has no backward and its gradient is silently left out.
            warnings.filterwarnings("error", message=".*an autograd kernel was not registered")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
