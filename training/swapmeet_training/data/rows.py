"""The rows of a training file, whatever holds them: JSON Lines, a Parquet file, or a folder of HF `datasets`.

Files are read piece by piece, so memory is bounded by the longest line, or by a table's batch.
"""

import codecs
import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from swapmeet_training.data.fields import shown
from swapmeet_training.data.findings import Finding, Unit
from swapmeet_training.errors import DataError

MAX_LINE = 16 << 20
MAX_ROWS = 20_000_000
"""More take long to check, and a small Parquet file may hold any number of equal rows."""
WIDE_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
PARQUET = b"PAR1"
PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
SPLITS = "dataset_dict.json"
STATE = "state.json"
"""What `save_to_disk` writes into the folder of a dataset, and of several."""


@dataclass(frozen=True, slots=True)
class Row:
    """What stands on a line, counted from 1: its JSON value, or why there is none."""

    line: int
    value: Any = None
    flaw: Finding | None = None


def read_rows(path: Path) -> Iterator[Row]:
    """All rows in order but blank lines. After a flaw of the whole file (its line is None), none follow.

    Raises:
        DataError: there is no such file.
    """
    for row in _rows(path):
        if row.line > MAX_ROWS:
            message = f"has more than {MAX_ROWS:,} {unit_of(path)}s"
            yield Row(row.line, flaw=Finding(None, "", "too_many_rows", message, "Take a sample, or split it."))
            return
        yield row


def _rows(path: Path) -> Iterator[Row]:
    if is_folder(path):
        yield from _folder(path)
        return
    with open_file(path) as stream:
        if stream.peek(len(PARQUET))[: len(PARQUET)] != PARQUET:
            yield from _json_lines(stream)
            return
    from swapmeet_training.data.tables import parquet_rows

    yield from parquet_rows(path)


def unit_of(path: Path) -> Unit:
    """What the examples of a file stand on."""
    if is_folder(path):
        return "row"
    with open_file(path) as stream:
        return "row" if stream.read(len(PARQUET)) == PARQUET else "line"


def files_of(path: Path) -> list[Path]:
    """The files that hold the rows: the file itself, or those of a folder, in order.

    Raises:
        DataError: the folder holds no dataset.
    """
    return arrow_files(path)[0] if is_folder(path) else [path]


def is_folder(path: Path) -> bool:
    """Whether it is a folder and not a file.

    Raises:
        DataError: it is neither; a pipe could be read once only.
    """
    with _readable(path):
        mode = path.stat().st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise DataError(f"{path} can not be read (it is no regular file). Save its content to a file, and name that.")
    return stat.S_ISDIR(mode)


def open_file(path: Path) -> BufferedReader:
    """A file to read.

    Raises:
        DataError: it can not be.
    """
    with _readable(path):
        return path.open("rb")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} can not be read ({error.strerror}). Name a JSONL or Parquet file.") from error
    except ValueError as error:  # a NUL in the name
        raise DataError(f"{str(path)!r} can not be read ({error}). Name a JSONL or Parquet file.") from error


def arrow_files(folder: Path) -> tuple[list[Path], list[str] | None]:
    """The Arrow files of a dataset that `save_to_disk` wrote, and the columns it shows if not all.

    Raises:
        DataError: it is no such folder, or one that has to be saved otherwise.
    """
    wanted = "Name a JSONL or Parquet file, or a folder that save_to_disk of HF datasets wrote."
    if (folder / SPLITS).is_file():
        splits = sorted(each.parent.name for each in folder.glob(f"*/{STATE}"))
        raise DataError(f"{folder} can not be read as one data set: it holds {', '.join(splits)}. Name one of them.")
    try:
        state = json.loads((folder / STATE).read_bytes())
        names = [str(each["filename"]) for each in state["_data_files"]]
        columns = state.get("_format_columns")
        indexed = bool(state.get("_indices_files"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder} can not be read (no whole {STATE} in this folder). {wanted}") from error
    if indexed:
        raise DataError(f"{folder} was saved with an index. Save it again after flatten_indices().")
    if any(Path(name).name != name or "\0" in name for name in names):
        raise DataError(f"{folder} can not be read: its {STATE} names files elsewhere. Save it again.")
    if columns is not None and not (isinstance(columns, list) and all(isinstance(each, str) for each in columns)):
        raise DataError(f"{folder} can not be read: its {STATE} does not say which columns. Save it again.")
    return [folder / name for name in names], columns


def _folder(folder: Path) -> Iterator[Row]:
    files, columns = arrow_files(folder)
    from swapmeet_training.data.tables import arrow_rows

    yield from arrow_rows(files, columns)


def _json_lines(stream: BufferedReader) -> Iterator[Row]:
    line = 0
    while raw := stream.readline(MAX_LINE + 1):
        line += 1
        if line == 1 and (flaw := _no_json_lines(raw)):
            yield Row(line, flaw=flaw)
            return
        if len(raw) > MAX_LINE:
            message = f"is longer than {MAX_LINE >> 20} MiB"
            yield Row(line, flaw=Finding(line, "", "line_too_long", message, "Write one example per line."))
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_LINE)
        elif not raw.isspace():
            yield _json_row(line, raw)


def _no_json_lines(raw: bytes) -> Finding | None:
    """What shows by the first line that no other is worth reading."""
    packed = next((name for magic, name in PACKED.items() if raw.startswith(magic)), None)
    if packed:
        return Finding(None, "", "invalid_file", f"is compressed ({packed})", "Unpack it.")
    if raw.startswith(WIDE_BOMS):
        message = "begins with a byte-order mark of UTF-16 or UTF-32"
        return Finding(None, "", "byte_order_mark", message, "Save the file as UTF-8 without BOM.")
    if raw.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        message = "begins a JSON array"
        fix = "Write JSON Lines: one object per line, without brackets around."
        return Finding(None, "", "json_array", message, fix)
    return None


def _json_row(line: int, raw: bytes) -> Row:
    if raw.startswith(codecs.BOM_UTF8):
        message = "begins with a byte-order mark"
        return Row(line, flaw=Finding(line, "", "byte_order_mark", message, "Save the file as UTF-8 without BOM."))
    try:
        return Row(line, _DECODER.decode(raw.decode()))
    except UnicodeDecodeError as error:
        finding = Finding(line, "", "not_utf8", f"is not UTF-8 (byte {error.start})", "Save the file as UTF-8.")
    except (ValueError, RecursionError) as error:
        finding = Finding(line, "", "not_json", f"is not one whole JSON object ({error})", "Write one on every line.")
    return Row(line, flaw=finding)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{shown(twice)} stands twice in one object")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_object)
