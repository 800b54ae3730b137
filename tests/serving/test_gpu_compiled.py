"""The GPU's kernels through Triton's compiler, which needs no GPU and refuses more than its interpreter."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")


def compiled() -> None:
    """Launches kernels as for many different steps; they are compiled, but not run. Prints how often each was."""
    from collections import Counter
    from types import SimpleNamespace
    from typing import Any

    import numpy as np
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    from swapmeet_serving.kernels import gpu_attention, gpu_lora, gpu_step
    from swapmeet_serving.step_plan import Span, StepPlan

    target = GPUTarget("cuda", 90, 32)
    variants: dict[str, dict[str, Any]] = {}

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        bind = create_function_from_signature(kernel.signature, kernel.params, make_backend(target))
        bound, found, _ = bind(*args, **constants)
        names = list(bound)
        types = {name: kind for name, (kind, _) in zip(names, found, strict=True)}
        values = {(names.index(name),): bound[name] for name, kind in types.items() if kind == "constexpr"}
        variants.setdefault(kernel.fn.__name__, {})[str((found, values))] = ASTSource(kernel, types, values)

    JITFunction.run = run

    def step(rows: int, ranks: int, tokens: int) -> None:
        held = SimpleNamespace(table=torch.zeros(1, dtype=torch.int64), widths=np.array([ranks]))
        spans = tuple(
            Span(row, row + 1, tokens, list(range(tokens // 16 + 1)), ((held, 1.0),)) for row in range(rows - 1)
        )
        spans += (Span(rows - 1, rows + 8, tokens, list(range(tokens // 16 + 1)), ()),)
        numbers = torch.zeros(1, rows + 9, dtype=torch.int64)
        plan = StepPlan(numbers, numbers, torch.arange(rows), spans)
        sizes = gpu_step.Step(plan, 0, 16).sizes
        parts = gpu_step.sections(torch.zeros(sizes.total, dtype=torch.int64), sizes)
        for place in (0, 1, 3, 16):
            t = gpu_lora.shrink(
                torch.zeros(rows + 9, 512, dtype=torch.bfloat16), parts["blocks"], parts["terms"], place, sizes.width
            )
        y, tiles = torch.zeros(rows + 9, 256, dtype=torch.bfloat16), torch.zeros(4, 4, dtype=torch.int64)
        gpu_lora.expand(t, y, parts["blocks"], parts["terms"], tiles, side_by_side=False)
        cache = torch.zeros(4, 16, 2, 64, dtype=torch.bfloat16), torch.zeros(4, 16, 2, 64, dtype=torch.bfloat16)
        query, result = torch.zeros(2, 8, rows + 9, 64, dtype=torch.bfloat16)
        for name, decoding in (("decoding", True), ("prompts", False)):
            gpu_attention.attend(
                query, cache, parts[name], parts["tables"], result.transpose(0, 1).contiguous(),
                longest=sizes.longest, decoding=decoding, prompt_rows=16, scaling=0.1, window=0,
            )  # fmt: skip

    for rows, ranks, tokens in ((2, 1, 3), (3, 16, 600), (4, 24, 700), (7, 32, 9), (17, 7, 5000), (33, 64, 33)):
        step(rows, ranks, tokens)
    for name, sources in variants.items():
        for source in sources.values():
            triton.compile(source, target=target)
        print(name, len(sources))
    assert Counter(variants.keys()).keys() == {"_shrink", "_expand", "_attend", "_join"}


def test_kernels_are_compiled_once_whatever_the_step(tmp_path: Path) -> None:
    """A variant takes seconds to compile, in which nobody gets a token."""
    program = f"from __future__ import annotations\n{inspect.getsource(compiled)}\ncompiled()"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = {name: int(count) for name, count in map(str.split, done.stdout.splitlines())}
    # attention: single rows of one part or of several, and prompts
    assert counts == {"_shrink": 1, "_expand": 1, "_attend": 3, "_join": 1}
