"""The hardware of this machine, asked of the system: without torch, which takes seconds to say it."""

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from swapmeet_training.errors import DeviceMissing, SpecError
from swapmeet_training.plan.hardware import GPUS, Hardware, cpu

CGROUP = Path("/sys/fs/cgroup/memory.max")
CPUINFO = Path("/proc/cpuinfo")
UNKNOWN = GPUS["A10G"]
"""What a GPU that is not in the table is taken for; its memory is asked."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A node with nothing running on it; see `swapmeet_training.plan.Node`."""

    id: str
    cpus: float
    gpus: tuple[float, ...]
    memory: int


def this_machine() -> Machine:
    """The one this runs on, all of it free."""
    return Machine(socket.gethostname(), float(os.cpu_count() or 1), (1.0,) * len(_gpus()), _memory())


def own_hardware(gpus: float, cpus: float) -> Hardware:
    """What a run with these resources computes on, here.

    Raises:
        DeviceMissing: it asks for a GPU, and there is none.
    """
    if not gpus:
        return cpu(_memory(), cpus, bf16=_bf16())
    found = _gpus()
    if not found:
        raise DeviceMissing("The run asks for a GPU, and there is none here. Name the one to plan for: --gpu H100.")
    return found[0]


def named(name: str) -> Hardware:
    """A GPU of the table.

    Raises:
        SpecError: it is not there.
    """
    for known, hardware in GPUS.items():
        if _plain(name) in (_plain(known), _plain(f"NVIDIA {known}")):
            return hardware
    raise SpecError(f"gpu is {name!r}, which is not known here; known are {', '.join(GPUS)}.")


def of_accelerator(kind: str) -> Hardware | None:
    """A GPU of the table by Ray's word for it, such as `A100-40G`; the smallest that it may be, or None."""
    word = _plain(kind)
    like = [
        hardware
        for known, hardware in GPUS.items()
        if word in (_plain(known), _plain(known.removesuffix("B")), _plain(known.split("-")[0]))
        or word.endswith(_plain(f"RTX{known.removeprefix('RTX')}"))
    ]
    return min(like, key=lambda hardware: hardware.memory, default=None)


def own_gpus() -> list[tuple[str, int]]:
    """The GPUs of this machine as their driver has them: names, and bytes of memory."""
    return [(gpu.name, gpu.memory) for gpu in _gpus()]


def gpu_called(name: str, memory: int) -> Hardware:
    """A GPU that a driver calls so, with so many bytes; one that is not in the table has the speed of a middling one.

    Where two of a family differ in memory only, the table's figures are those of the one that is nearer.
    """
    like = [hardware for known, hardware in GPUS.items() if _plain(known.split("-")[0]) in _plain(name)]
    nearest = max(like, key=lambda gpu: (len(gpu.name.split("-")[0]), -abs(gpu.memory - memory)), default=UNKNOWN)
    return replace(nearest, name=name, memory=memory)


def _gpus() -> list[Hardware]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 - fixed words
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    found = [line.rsplit(",", 1) for line in lines if line.count(",")]
    return [gpu_called(name.strip(), int(mebibytes) << 20) for name, mebibytes in found]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _bf16() -> bool:
    """Whether these CPUs multiply in bf16; where the system does not tell, no."""
    words = CPUINFO.read_text().split() if CPUINFO.is_file() else []
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(words)


def _memory() -> int:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    return min(physical, int(limit)) if limit.isdigit() else physical
