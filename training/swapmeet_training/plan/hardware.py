"""What a run computes on: how much it holds, how fast it is, and what an hour costs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

GB = 1e9
GIB = 1 << 30

CONTEXT = int(0.6 * GB)
"""What CUDA, cuBLAS and the kernels of torch and bitsandbytes take before the first tensor."""

PROCESS = int(0.75 * GB)
"""Resident memory of a worker on the CPU that has imported torch, transformers, PEFT, bitsandbytes and Ray."""

RESERVE = 0.04
"""Share of a GPU that an allocator loses to rounding and to gaps between tensors."""

EFFICIENCY = 0.35
"""Share of the peak that QLoRA's matrix products reach where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """A GPU, or the CPUs of a machine. All figures are of a whole one.

    Attributes:
        name: what people call it.
        memory: bytes.
        flops: of dense bf16 products, a second, at the peak.
        bandwidth: of the memory, bytes a second.
        kind: where it computes.
        efficiency: the share of `flops` that a run reaches.
        measured: whether `efficiency` comes from a run on this hardware.
        overhead: bytes that a process takes besides tensors.
        price: of an hour, in whatever currency.
        start: seconds from the start of a worker to its first step.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    kind: Literal["cuda", "cpu"] = "cuda"
    efficiency: float = EFFICIENCY
    measured: bool = False
    overhead: int = CONTEXT
    price: float = 0.0
    start: float = 30.0

    @property
    def usable(self) -> int:
        """Bytes that tensors and the process may take together."""
        return int(self.memory * (1 - RESERVE))

    def calibrated(self, planned: float, measured: float) -> "Hardware":
        """The same hardware, after a run that was planned to compute for so many seconds took so many."""
        return replace(self, efficiency=self.efficiency * planned / measured, measured=True)


def _gpu(name: str, gib: float, teraflops: float, gigabytes: float) -> Hardware:
    return Hardware(name, int(gib * GIB), teraflops * 1e12, gigabytes * GB)


GPUS: Mapping[str, Hardware] = {
    gpu.name: gpu
    for gpu in (
        _gpu("T4", 15, 65, 300),
        _gpu("V100", 32, 112, 900),
        _gpu("RTX 3090", 24, 71, 936),
        _gpu("RTX 4090", 24, 165, 1008),
        _gpu("RTX 5090", 32, 210, 1792),
        _gpu("A10G", 22.5, 70, 600),
        _gpu("L4", 22.5, 121, 300),
        _gpu("L40S", 45, 362, 864),
        _gpu("RTX A6000", 48, 155, 768),
        _gpu("A100-40GB", 40, 312, 1555),
        _gpu("A100-80GB", 80, 312, 2039),
        _gpu("H100", 80, 989, 3350),
        _gpu("H200", 141 * GB / GIB, 989, 4800),
        _gpu("B200", 180, 2250, 8000),
    )
}
"""Usable memory, peak of dense bf16 (fp16 on T4 and V100) and bandwidth, from the makers' data sheets."""


CORE, CORE_BF16 = 30e9, 150e9
"""bf16 operations a second of a core: without instructions for them, and with AVX512-BF16's.

The second is of SmolLM2-135M's runs on an EPYC: 190 billion on an idle core, 125 on one that others use, too.
"""


def cpu(memory: int, cores: float, *, bf16: bool = False) -> Hardware:
    """A machine's CPUs; `bf16` says whether they have instructions for it."""
    speed = (CORE_BF16 if bf16 else CORE) * cores
    return Hardware("CPU", memory, speed, 10 * GB, kind="cpu", efficiency=1.0, overhead=PROCESS, start=20.0)
