"""Read what a safetensors file says of its tensors, strictly, without torch.

Layout (the safetensors format's README): 8 bytes little-endian header length, a JSON header
`{name: {dtype, shape, data_offsets: [start, end]}, "__metadata__": {…}}`, then the data. The reference
parser accepts duplicate names, overlapping empty tensors and very large headers; this one does not.
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from swapmeet_registry.errors import Refused

MAX_HEADER = 16 << 20
MAX_TENSORS = 200_000
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
    """Parse and check a header; reads no tensor data.

    Raises:
        Refused: the file is not a sound safetensors file; the message says where.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise Refused(f"{path.name} is too short to be a safetensors file.")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(max_header, size - 8):
            raise Refused(f"{path.name} is not a safetensors file, or its header of {length} bytes is too large.")
        raw = stream.read(length)
    header = _parse(raw, path.name)
    metadata = _metadata(header.pop("__metadata__", {}), path.name)
    if len(header) > max_tensors:
        raise Refused(f"{path.name} names {len(header)} tensors; at most {max_tensors} are accepted.")
    entries = [_entry(name, value, path.name) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.size))
    end = 0
    for entry in entries:
        if entry.start != end:
            raise Refused(f"{path.name}: tensor {entry.name!r} overlaps another or leaves a gap before it.")
        end = entry.start + entry.size
    if 8 + length + end != size:
        raise Refused(f"{path.name} should be {8 + length + end} bytes long and is {size}: it was cut or added to.")
    return SafetensorsFile(tuple(entries), metadata, 8 + length)


def _parse(raw: bytes, file: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise Refused(f"{file} names something twice in its header.")
        return result

    try:
        header = json.loads(raw.decode(), object_pairs_hook=unique)
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise Refused(f"{file} is not a safetensors file: its header is not JSON.") from error
    if not isinstance(header, dict):
        raise Refused(f"{file} is not a safetensors file: its header is not an object.")
    return header


def _metadata(value: Any, file: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise Refused(f"{file}: __metadata__ must map text to text.")
    return value


def _entry(name: str, value: Any, file: str) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise Refused(f"{file}: tensor {name!r} must have dtype, shape and data_offsets, and nothing else.")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise Refused(f"{file}: tensor {name!r} has the unknown dtype {dtype!r}.")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise Refused(f"{file}: tensor {name!r} has a shape or offsets that are not natural numbers.")
    start, end = offsets
    if end - start != prod(shape) * WIDTHS[dtype]:
        raise Refused(f"{file}: tensor {name!r} has {end - start} bytes, but its shape needs another number.")
    return TensorEntry(name, dtype, tuple(shape), start, end - start)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
