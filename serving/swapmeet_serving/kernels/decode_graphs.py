"""CUDA graphs of steps in which every sequence decodes, with whatever adapters: one launch instead of thousands.

A graph repeats the same kernels on the same addresses. What differs from step to step stands in one array of numbers
that the kernels read, so a graph serves every step for which its sizes have room; they are rounded up, so that there
are few. Adapters' weights are found by addresses in that array: graphs neither know nor keep them.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from swapmeet_serving.kernels.gpu import GpuKernels, Layout
from swapmeet_serving.kernels.gpu_step import COUNTS, Sizes, Step, sections
from swapmeet_serving.step_plan import StepPlan

MOST_GRAPHS = 64
"""Each costs some ten megabytes on the device; those longest unused go first."""

WARM_UPS = 2
"""Passes before the capture, in which kernels are compiled and libraries choose theirs."""


Replay = Callable[[], torch.Tensor]
"""Computes what is loaded: (kept, vocabulary) logits."""


class FixedStep:
    """A step whose numbers have fixed addresses; what it computes follows from what is loaded."""

    def __init__(self, model: Any, kernels: GpuKernels, sizes: Sizes, device: str) -> None:
        self._model, self._kernels, self._sizes = model, kernels, sizes
        self._numbers = torch.zeros(sizes.total, dtype=torch.int64, device=device)
        self._layout = Layout(sizes, sections(self._numbers, sizes), adapted=None, parts=None)

    def load(self, step: Step) -> None:
        """Have the next pass compute a step."""
        self._numbers.copy_(torch.from_numpy(step.numbers(self._sizes)))

    def forward(self) -> torch.Tensor:
        """(kept, vocabulary) logits; those beyond the step's own mean nothing."""
        numbers = self._layout.on_device
        self._kernels.begin_with(self._layout)
        try:
            output = self._model(
                input_ids=numbers["tokens"][None], position_ids=numbers["positions"][None], use_cache=False,
                logits_to_keep=numbers["kept"],
            )  # fmt: skip
        finally:
            self._kernels.end()
        logits: torch.Tensor = output.logits[0]
        return logits


class Capture:
    """Records what a step launches; all graphs share the memory of what they compute."""

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()

    def __call__(self, fixed: FixedStep) -> Replay:
        """What computes the step anew, in the same memory."""
        stream: Any = torch.cuda.Stream
        beside = stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                fixed.forward()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # adapters are loaded by other threads meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = fixed.forward()

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay


class DecodeGraphs:
    """Captures graphs as they are needed, and replays them."""

    def __init__(self, model: Any, kernels: GpuKernels, device: str, capture: Callable[[FixedStep], Replay]) -> None:
        self._model, self._kernels, self._device, self._capture = model, kernels, device, capture
        self._graphs: OrderedDict[Sizes, tuple[FixedStep, Replay]] = OrderedDict()

    def run(self, plan: StepPlan) -> torch.Tensor | None:
        """(kept, vocabulary) logits; None of a step that no graph can compute."""
        if not replayable(plan):
            return None
        step = self._kernels.step(plan)
        fixed, replay = self._graph(step)
        fixed.load(step)
        return replay()[: len(plan.kept)].clone()  # the next step of these sizes writes to the same memory

    def _graph(self, step: Step) -> tuple[FixedStep, Replay]:
        sizes = step.sizes.roomy()
        if sizes not in self._graphs:
            fixed = FixedStep(self._model, self._kernels, sizes, self._device)
            fixed.load(step)
            self._graphs[sizes] = fixed, self._capture(fixed)
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(sizes)
        return self._graphs[sizes]


def replayable(plan: StepPlan) -> bool:
    """Whether every sequence decodes, and no adapter changes more than products."""
    return len(plan.spans) <= COUNTS[-1] and all(
        span.rows == span.kept == 1 and not any(held.parts for held, _ in span.terms) for span in plan.spans
    )
