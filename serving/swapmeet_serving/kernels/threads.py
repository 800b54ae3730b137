"""Runs a kernel on torch's own OpenMP threads.

A pool of threads beside torch's would fight it for the cores: OpenMP's threads wait by spinning. So kernels are
started with `GOMP_parallel`, the entry that GCC's compilers call, in the very library that torch has loaded.
Where there is none (no Linux), a kernel runs on the calling thread alone.
"""

import ctypes
import hashlib
import logging
import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import torch
from numba import types

Loop = Callable[[list[int]], None]
"""A compiled loop; its arguments are addresses and numbers, and a float32 travels as its bits."""

SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
"""Digest of all kernels' sources."""

log = logging.getLogger("swapmeet.serving")

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_INTEGER = ctypes.CFUNCTYPE(ctypes.c_int)
_NOBODY, _ONE = _INTEGER(lambda: 0), _INTEGER(lambda: 1)
"""What compiled code asks where there is no OpenMP: which thread it is, of how many."""


def _loaded() -> str | None:
    """The OpenMP library in this process, torch's own before any other (GCC's, or one that has its entries, too)."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if re.search(r"/lib(g|i|)omp[^/]*\.so", line)}
    torchs = str(Path(torch.__file__).parent)  # or beside it, in torch.libs
    return min(paths, key=lambda path: (not path.startswith(torchs), path), default=None)


def _runtime() -> Any:
    """torch's OpenMP library, with the functions that kernels call in it made known to LLVM."""
    path = _loaded()
    library: Any = ctypes.CDLL(path) if path else None
    if library is None:
        log.warning("torch's OpenMP library was not found; adapters and attention are computed on one thread")
    thread = library.omp_get_thread_num if library else _NOBODY
    threads = library.omp_get_num_threads if library else _ONE
    if library:
        library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.GOMP_parallel.restype = None
    llvm.add_symbol("omp_get_thread_num", ctypes.cast(thread, ctypes.c_void_p).value)
    llvm.add_symbol("omp_get_num_threads", ctypes.cast(threads, ctypes.c_void_p).value)
    return library


_LIBRARY = _runtime()
thread = types.ExternalFunction("omp_get_thread_num", types.int32())
threads = types.ExternalFunction("omp_get_num_threads", types.int32())


def compute_alone() -> None:
    """Have torch compute on the calling thread alone, whenever it is called from there.

    Every thread that computes in parallel gets OpenMP threads of its own. As soon as these are more than there
    are cores, none of them spins any more, and each parallel loop of the engine takes 60 µs to wake its threads
    up instead of 3.
    """
    torch.get_num_threads()  # torch sets its own number at the first call on each thread
    if _LIBRARY is not None:
        _LIBRARY.omp_set_num_threads(1)


def parallel(loop: Callable[[Any], None]) -> Loop:
    """Compile a function of one int64 pointer, to be called with a list of numbers.

    It runs once on every thread, which it tells apart by `thread()` and `threads()`, and returns when all are
    done. numba would look at the age of the function's own file only, so it is to have `SOURCES` among its captured
    variables, which are part of what numba looks code up by.
    """
    entry = _compiled(loop)
    address, by_itself = entry.address, _ENTRY(entry.address)

    def run(arguments: list[int]) -> None:
        held = array("q", arguments)
        if _LIBRARY is None:
            by_itself(held.buffer_info()[0])
        else:
            _LIBRARY.GOMP_parallel(address, held.buffer_info()[0], torch.get_num_threads(), 0)

    run.entry = entry  # type: ignore[attr-defined] # its memory must last as long as the address is used
    return run


def alone(loop: Callable[[Any], None]) -> Loop:
    """As `parallel`, but it runs on the calling thread only."""
    entry = _compiled(loop)
    call = _ENTRY(entry.address)

    def run(arguments: list[int]) -> None:
        held = array("q", arguments)
        call(held.buffer_info()[0])

    run.entry = entry  # type: ignore[attr-defined] # as above
    return run


def _compiled(loop: Callable[[Any], None]) -> Any:
    """The machine code, which is kept on disk and holds no lock of Python's."""
    signature = types.void(types.CPointer(types.int64))
    try:
        return numba.cfunc(signature, nogil=True, cache=True)(loop)
    except RuntimeError as error:  # neither beside the sources nor in the user's cache may files be written
        log.warning("the CPU kernels are compiled at every start: %s", error)
        return numba.cfunc(signature, nogil=True)(loop)
