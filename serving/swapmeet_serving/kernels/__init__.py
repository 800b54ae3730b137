"""What differs between devices: adding adapters to rows, and attention over the paged cache.

exact.py                torch, in the very order of transformers and PEFT: bit for bit what `generate` gives
cpu.py                  CPU cores; its loops are cpu_lora.py, cpu_attention.py and cpu_pack.py, compiled by numba
tile.py, threads.py     the inner loop of the first two, and torch's threads to run them on
gpu.py                  GPUs; its kernels are gpu_lora.py, gpu_attention.py and gpu_nf4.py, compiled by Triton
gpu_step.py             a step's numbers for these; gpu_tiles.py has what their tiles have in common
decode_graphs.py        CUDA graphs of steps in which every sequence decodes
lora_block.py           where an adapter's weights lie in its block of memory
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from swapmeet_serving.adapter_parts import Parts
from swapmeet_serving.lora_weights import LoraPairs
from swapmeet_serving.step_plan import Span, StepPlan

PAGE = 16
"""Tokens in a page of the KV cache; as many as the CPU's vectors have lanes."""


def slots(span: Span) -> Iterator[int]:
    """Where in the cache a span's tokens go."""
    for position in range(span.position, span.length):
        yield span.pages[position // PAGE] * PAGE + position % PAGE


class Kernels(Protocol):
    """Computes one engine's adapters and attention; holds its KV cache, and the plan of the step under way.

    Attributes:
        weight_bytes: memory that one adapter weight takes.
        pages: how many pages the cache has.
        whole: prompts must come in one piece, and share no pages.
    """

    weight_bytes: int
    pages: int
    whole: bool

    def hold(self, pairs: LoraPairs, ranks: Mapping[str, int], parts: Parts) -> Any:
        """An adapter in host memory, packed; it has its `parts`.

        May be called on any thread. The pairs are read one by one, so that memory holds no second copy; `ranks` tells
        beforehand which layers have one.
        """
        ...

    def bring(self, packed: Any) -> Any:
        """What `hold` gave in the form that a plan's `Span.terms` take, on the device. May be called on any thread."""
        ...

    def begin(self, plan: StepPlan) -> None:
        """Lay out a step, once for all layers."""
        ...

    def end(self) -> None:
        """The step is over."""
        ...

    def add_lora(self, shared: Any, x: torch.Tensor, results: Sequence[torch.Tensor]) -> None:
        """Add each row's own adapters to the results of a `SharedInput`'s layers, in place: (rows, in), (rows, out)."""
        ...

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Store the step's keys and values, then attend within each sequence.

        Queries are (1, heads, T, width), keys and values (1, kv heads, T, width), the result (1, T, heads,
        width). Scores are multiplied with `scaling`, or 1/sqrt(width). With a sliding window, a token sees
        that many tokens, itself included.
        """
        ...
