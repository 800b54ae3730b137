"""Do work in micro-batches that fit into memory, with the same random numbers however often it is begun."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from swapmeet_training.errors import CheckpointError, OutOfMemory
from swapmeet_training.foreign import no_memory
from swapmeet_training.loop.checkpoint import Standing

Done = TypeVar("Done")
Random = dict[str, torch.Tensor]


def random_state(device: torch.device) -> Random:
    """The state of the random numbers that dropout takes on a device, by the device's kind."""
    return {device.type: torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()}


def set_random_state(device: torch.device, state: Random) -> None:
    """Go on with the random numbers from this state.

    Raises:
        CheckpointError: it is of another kind of device.
    """
    if device.type not in state:
        raise CheckpointError(
            f"The checkpoint was not made on a {device.type} device, whose random numbers are others. Resume it on "
            f"{' or '.join(state) or 'what it was made on'}, or start afresh."
        )
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    else:
        torch.set_rng_state(state["cpu"])


class Fitting:
    """Halves the micro-batch where memory runs out. What a step trains on, and divides by, stays the same.

    Args:
        run: the run's name, for errors.
        standing: whose `micro_batch` is halved, and which is given a note.
        device: that the model is on.
        forget: drops what was accumulated so far.
    """

    def __init__(self, run: str, standing: Standing, device: torch.device, forget: Callable[[], None]) -> None:
        self._run, self._standing, self._device, self._forget = run, standing, device, forget

    def do(self, work: Callable[[int], Done]) -> Done:
        """Call `work` with the micro-batch's size; again from the start, with half of it, where that is too much.

        Raises:
            OutOfMemory: a single row is too much.
        """
        while True:
            before, size = random_state(self._device), self._standing.micro_batch
            try:
                return work(size)
            except Exception as error:
                if not no_memory(error):
                    raise
                if size == 1:
                    raise OutOfMemory(
                        f"{self._run} does not fit in memory, not even with one row at a time. Lower max_length, turn "
                        f"gradient_checkpointing on, or ask for more memory. ({error})"
                    ) from error
            self._halve(size)  # only here, where the error and the tensors of its frames are gone
            set_random_state(self._device, before)

    def _halve(self, size: int) -> None:
        self._forget()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._standing.micro_batch = size // 2
        self._standing.notes.append(
            f"Out of memory in step {self._standing.step + 1}: micro-batches have {size // 2} rows instead of {size}, "
            "and gradients are accumulated over more of them; each step still trains on the same examples."
        )
