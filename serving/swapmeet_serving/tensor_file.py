"""A safetensors file's tensors as views of the mapped file: reading one costs nothing until its numbers are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from swapmeet_registry.safetensors_file import TensorEntry

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorFile:
    """Call it with a tensor's name; `entries` and `data_start` are of the file's header, which was checked."""

    def __init__(self, path: Path, entries: Sequence[TensorEntry], data_start: int) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self._begin = data_start
        self._bytes = torch.from_numpy(np.memmap(path, np.uint8, mode="c"))  # never written; torch wants it writable

    def __call__(self, name: str) -> torch.Tensor:
        """A view that keeps the file mapped; whoever keeps numbers copies them."""
        entry = self._entries[name]
        dtype, begin = DTYPES[entry.dtype], self._begin + entry.start
        bytes_ = self._bytes[begin : begin + entry.size]
        if begin % dtype.itemsize:
            bytes_ = bytes_.clone()
        return bytes_.view(dtype).view(entry.shape)
