"""`adapter_model.safetensors` as it is published: one form for equal tensors, each number read once and checked.

The form is what the reference writer makes of the tensors with the metadata `{"format": "pt"}`, which is what PEFT
writes: tensors by the width of their numbers, the widest first, and then by name; no spaces in the header but those
that fill it up to a multiple of eight bytes. So what PEFT wrote is mostly in this form already, and is not copied.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from swapmeet_registry.admission.lora_weights import FILE
from swapmeet_registry.errors import Refused
from swapmeet_registry.safetensors_file import SafetensorsFile, TensorEntry

CHUNK = 256 << 10
"""Bytes that are read at once: what the processor's cache holds until they are checked and hashed."""
METADATA = {"format": "pt"}
ORDER = ("F32", "BF16", "F16")
"""Dtypes as the reference writer orders them."""

_EXPONENTS = {"F32": ("<u4", 0x7F80_0000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
"""How to read a dtype's bits, and where its exponent stands: all ones mean NaN or infinity (IEEE 754)."""
_ZIP_END, _ZIP_END_SIZE, _ZIP_COMMENT = b"PK\5\6", 22, 0xFFFF


@dataclass(frozen=True, slots=True)
class Written:
    """The size and the hex SHA-256 of a file in canonical form."""

    size: int
    sha256: str


def header_of(entries: Iterable[TensorEntry]) -> bytes:
    """The canonical bytes before the first tensor's."""
    fields: dict[str, object] = {"__metadata__": METADATA}
    end = 0
    for entry in canonical_order(entries):
        start, end = end, end + entry.size
        fields[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
    raw = json.dumps(fields, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def canonical_order(entries: Iterable[TensorEntry]) -> list[TensorEntry]:
    """Tensors as they follow each other in the canonical form."""
    return sorted(entries, key=lambda entry: (ORDER.index(entry.dtype), entry.name))


def rewrite(
    source: BinaryIO, header: bytes, file: SafetensorsFile, write: Callable[[bytes | memoryview], object]
) -> Written:
    """Read every number once, check it, and write the canonical form of the file.

    Args:
        source: the file, open without a buffer; its position is not used.
        header: `header_of` its tensors.
        file: where its tensors are.
        write: takes the bytes, which are valid until it returns; one that throws them away suits a file that is
            canonical already.

    Raises:
        Refused: a number is not finite, the file was cut short meanwhile, or it ends like a zip archive.
    """
    ordered = canonical_order(file.tensors)
    watched = len(header) + sum(entry.size for entry in ordered) - _ZIP_COMMENT - _ZIP_END_SIZE
    digest, size, end = hashlib.sha256(header), len(header), header
    finite, room = _Finite(), memoryview(bytearray(CHUNK))
    write(header)
    for entry in ordered:
        for chunk in _chunks(source.fileno(), file.data_start + entry.start, entry.size, room):
            finite.require(entry, chunk)
            digest.update(chunk)
            write(chunk)
            size += len(chunk)
            if size > watched:
                end += chunk
    _require_no_archive(end)
    return Written(size, digest.hexdigest())


def _chunks(file: int, at: int, size: int, room: memoryview) -> Iterator[memoryview]:
    """The bytes of a file in pieces, each in the same room: valid until the next is asked for."""
    end = at + size
    while at < end:
        filled, wanted = 0, min(len(room), end - at)
        while filled < wanted:
            count = os.preadv(file, [room[filled:wanted]], at + filled)
            if not count:
                raise Refused(f"{FILE} was cut short while it was read. Push again when nothing writes to it.")
            filled += count
        yield room[:wanted]
        at += wanted


class _Finite:
    """Looks for NaN and infinity, with room for a chunk that is used again: to ask for it costs ten times the look."""

    def __init__(self) -> None:
        import numpy as np  # here, so that importing the registry stays quick

        self._np = np
        self._room = {dtype: np.empty(CHUNK // np.dtype(dtype).itemsize, dtype) for dtype, _ in _EXPONENTS.values()}

    def require(self, entry: TensorEntry, chunk: memoryview) -> None:
        dtype, exponent = _EXPONENTS[entry.dtype]
        bits = self._np.frombuffer(chunk, dtype)
        if self._np.bitwise_and(bits, exponent, out=self._room[dtype][: bits.size]).max() == exponent:
            raise Refused(f"{FILE}: {entry.name} holds a NaN or an infinity. The training run diverged.")


def _require_no_archive(end: bytes) -> None:
    """Zip archives are found by their ends, so a file can be both; `torch.load` would unpickle it."""
    at = end.find(_ZIP_END)
    while at >= 0:
        tail = end[at : at + _ZIP_END_SIZE]
        if len(tail) == _ZIP_END_SIZE and at + _ZIP_END_SIZE + int.from_bytes(tail[-2:], "little") == len(end):
            raise Refused(f"{FILE} ends as a zip archive does, which may hold a pickle. Save the adapter again.")
        at = end.find(_ZIP_END, at + 1)
