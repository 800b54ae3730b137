"""Bytes of live tensors, operation by operation: exactly what a GPU's allocator would be asked for, on any machine.

    with LiveBytes() as live:
        with live.making("base"):
            model = load()
        model(inputs)
    live.peak, live.parts

Counts a storage from the first operation that makes or takes it until Python and autograd let go of it. What a
kernel takes and gives back inside one operation is not seen.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts live bytes by part; `vocabulary` tells logits from other tensors by their last dimension."""

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()
        self.peak = 0
        self.parts: Mapping[str, int] = {}
        self._vocabulary = vocabulary
        self._making = "activations"
        self._live: Counter[str] = Counter()
        self._total = 0
        self._held: dict[int, tuple[Any, str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        for leaf in tree_leaves((result, args, given)):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        return result

    @contextmanager
    def making(self, part: str) -> Iterator[None]:
        """What is made meanwhile counts as that part."""
        before, self._making = self._making, part
        try:
            yield
        finally:
            self._making = before

    def forget_peak(self) -> None:
        """Look for the highest sum from now on."""
        self.peak, self.parts = self._total, dict(self._live)

    def see(self, tensor: torch.Tensor, part: str | None = None) -> None:
        """Count a tensor's storage, or count it as another part."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            if part is None:
                return
            self._drop(key)
        part = part or self._part(tensor)
        size = storage.nbytes()
        self._held[key] = (weakref.ref(storage, lambda _: self._drop(key)), part, size)
        self._live[part] += size
        self._total += size
        if self._total > self.peak:
            self.forget_peak()

    def _part(self, tensor: torch.Tensor) -> str:
        if self._making == "activations" and tensor.dim() > 1 and tensor.shape[-1] == self._vocabulary:
            return "logits"
        return self._making

    def _drop(self, key: int) -> None:
        _, part, size = self._held.pop(key)
        self._live[part] -= size
        self._total -= size
