"""Read what a safetensors file says of its tensors, strictly, without torch.

Layout (the safetensors format's README): 8 bytes little-endian header length, a JSON header
`{name: {dtype, shape, data_offsets: [start, end]}, "__metadata__": {…}}`, then the data. The reference
parser accepts duplicate names, overlapping empty tensors and very large headers; this one does not. Whatever it
accepts the reference accepts, and reads alike.
"""

import json
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from swapmeet_registry.errors import Refused

MAX_HEADER = 16 << 20
MAX_TENSORS = 200_000
MAX_DIMENSIONS = 8
WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: its bytes are `start` to `start + size` after the file's `data_start`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """A file's tensors in the order of their bytes, its metadata, and where its data begins."""

    tensors: tuple[TensorEntry, ...]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path, max_header: int = MAX_HEADER, max_tensors: int = MAX_TENSORS) -> SafetensorsFile:
    """Parse and check a file's header; reads no tensor data.

    Raises:
        Refused: the file is not a sound safetensors file; the message says where.
    """
    with path.open("rb") as stream:
        return parse_header(raw_header(stream, path.name, max_header), stream, path.name, max_tensors)


def raw_header(stream: BinaryIO, file: str, max_header: int = MAX_HEADER) -> bytes:
    """The bytes before the first tensor's, from an open file's start; `file` names it in errors.

    Raises:
        Refused: the file can not be a safetensors file, or its header is too large.
    """
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise Refused(f"{file} is too short to be a safetensors file.")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(max_header, _size(stream) - 8):
        raise Refused(f"{file} is not a safetensors file, or its header of {length} bytes is too large.")
    return prefix + stream.read(length)


def parse_header(raw: bytes, stream: BinaryIO, file: str, max_tensors: int = MAX_TENSORS) -> SafetensorsFile:
    """Check what `raw_header` gave, and that the file is as long as it says.

    Raises:
        Refused: see `read_header`.
    """
    header = _parse(raw[8:], file, max_tensors)
    metadata = _metadata(header.pop("__metadata__", {}), file)
    if len(header) > max_tensors:
        raise _too_many(file, max_tensors)
    entries = [_entry(name, value, file) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.size))
    end = 0
    for entry in entries:
        if entry.start != end:
            raise Refused(f"{file}: tensor {_short(entry.name)} overlaps another or leaves a gap before it.")
        end = entry.start + entry.size
    size = _size(stream)
    if len(raw) + end != size:
        raise Refused(f"{file} should be {len(raw) + end} bytes long and is {size}: it was cut or added to.")
    return SafetensorsFile(tuple(entries), metadata, len(raw))


def _size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


def _too_many(file: str, max_tensors: int) -> Refused:
    return Refused(f"{file} names too many tensors; at most {max_tensors} are accepted.")


def _parse(raw: bytes, file: str, max_tensors: int) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise Refused(f"{file} names something twice in its header.")
        return result

    # Counted first, because a few megabytes of brackets become hundreds when they are parsed.
    limits = {b"{": max_tensors + 2, b"[": 2 * max_tensors + 2, b'"': 12 * max_tensors + 1000}
    if any(raw.count(sign) > limit for sign, limit in limits.items()):
        raise _too_many(file, max_tensors)
    if raw.count(b",") > 16 * max_tensors + 10_000:  # a tensor of eight dimensions has twelve
        raise Refused(f"{file} has more numbers in its header than {max_tensors} tensors can have.")
    try:
        if raw[:1] != b"{":
            raise ValueError("no object")
        header = json.loads(raw.decode(), object_pairs_hook=unique, parse_int=_natural)
        if b"\\u" in raw:  # half a surrogate pair is no text
            json.dumps(header, ensure_ascii=False).encode()
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise Refused(f"{file} is not a safetensors file: its header is not sound JSON.") from error
    assert isinstance(header, dict)
    return header


def _natural(digits: str) -> int:
    """A number of a header: below 2^63, and never negative, not even as -0."""
    if len(digits) > 19 or digits[0] == "-" or int(digits) >= 1 << 63:
        raise ValueError(f"{digits[:20]} is no size")
    return int(digits)


def _short(name: str) -> str:
    return repr(name[:200])


def _metadata(value: Any, file: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise Refused(f"{file}: __metadata__ must map text to text.")
    return value


def _entry(name: str, value: Any, file: str) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise Refused(f"{file}: tensor {_short(name)} must have dtype, shape and data_offsets, and nothing else.")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise Refused(f"{file}: tensor {_short(name)} has the unknown dtype {str(dtype)[:20]!r}.")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise Refused(f"{file}: tensor {_short(name)} has a shape or offsets that are not natural numbers.")
    if len(shape) > MAX_DIMENSIONS:
        raise Refused(f"{file}: tensor {_short(name)} has {len(shape)} dimensions; at most {MAX_DIMENSIONS} can be.")
    start, end = offsets
    if end - start != prod(shape) * WIDTHS[dtype]:
        raise Refused(f"{file}: tensor {_short(name)} has {end - start} bytes, but its shape needs another number.")
    return TensorEntry(name, dtype, tuple(shape), start, end - start)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
