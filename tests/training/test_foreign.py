"""The seam: foreign errors become ours, and foreign chatter is not heard."""

import errno
import logging
import warnings

import pytest

from swapmeet_registry.errors import BaseInvalid
from swapmeet_training import DataError, OutOfMemory, RunFailed, StorageFull, TrainingError
from swapmeet_training.foreign import seam

pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (MemoryError(), OutOfMemory),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), OutOfMemory),
        (OSError(errno.ENOSPC, "No space left on device"), StorageFull),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), StorageFull),
        (KeyError("surprise"), RunFailed),
        (DataError("line 1: wrong"), DataError),
        (BaseInvalid("no base"), BaseInvalid),
    ],
)
def test_errors_become_ours(error: Exception, ours: type[TrainingError]) -> None:
    with pytest.raises(ours) as caught, seam("acme/dates"):
        raise error
    assert type(caught.value) is ours


def test_a_missing_backward_is_an_error() -> None:
    with pytest.raises(RunFailed, match="autograd kernel"), seam("acme/dates"):
        warnings.warn("op: an autograd kernel was not registered to the Autograd key(s)", UserWarning, stacklevel=1)


def test_quiet_inside_and_as_before_outside() -> None:
    from transformers.utils import logging as transformers_logging

    before = logging.getLogger("bitsandbytes").level
    bars = transformers_logging.is_progress_bar_enabled()
    with seam("acme/dates"):
        assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
        assert not transformers_logging.is_progress_bar_enabled()
    assert logging.getLogger("bitsandbytes").level == before
    assert transformers_logging.is_progress_bar_enabled() == bars
