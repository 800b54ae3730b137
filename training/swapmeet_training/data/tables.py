"""Rows of Parquet and Arrow files, as the JSON values they would have been; the seam to pyarrow.

A table has one type for a column, so what an example lacks is null, in tools' schemas, too: such keys are left out.
What a type can not tell, tables hold as JSON text: it is read where a list or an object is wanted.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swapmeet_training.data.fields import shown
from swapmeet_training.data.findings import Finding, Flawed
from swapmeet_training.data.rows import MAX_LINE, Row

BATCH = 256
"""Rows of a Parquet file that are read at once."""
AS_JSON = {
    "messages", "tools", "functions", "input",
    "preferred_output", "non_preferred_output", "preferred_completion", "non_preferred_completion",
}  # fmt: skip
"""Columns that are never text, so text in them is JSON."""


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file; row groups of any size are read batch by batch."""
    yield from _rows(_parquet_batches(path))


def arrow_rows(files: list[Path], columns: list[str] | None) -> Iterator[Row]:
    """The rows of Arrow files one after another, of all columns or of those named."""
    yield from _rows(_arrow_batches(files, columns))


def _parquet_batches(path: Path) -> Iterator[Any]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    # not memory-mapped and not read ahead: both would keep a whole row group
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as table:
        yield from table.iter_batches(batch_size=BATCH, use_threads=False)


def _arrow_batches(files: list[Path], columns: list[str] | None) -> Iterator[Any]:
    import pyarrow

    for path in files:
        with pyarrow.OSFile(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
            for batch in reader:
                batch.validate(full=True)  # pyarrow would follow wrong offsets out of its memory
                shown = batch if columns is None else batch.select(columns)
                for start in range(0, shown.num_rows, BATCH):
                    yield shown.slice(start, BATCH)


def _rows(batches: Iterator[Any]) -> Iterator[Row]:
    line = 0
    try:
        for batch in _foreign(batches):
            with _told_as_ours():
                names = batch.schema.names
                repeated = {name for name in names if names.count(name) > 1}
                if repeated:
                    raise ValueError(f"two columns are named {min(repeated)}")
            for index in range(batch.num_rows):
                line += 1
                yield _row(line, batch, index)
    except Flawed as flawed:
        yield Row(line, flaw=flawed.finding)


def _foreign(batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with _told_as_ours():
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch


@contextmanager
def _told_as_ours() -> Iterator[None]:
    """What pyarrow raises over a file of a stranger's, which may be anything, as a finding."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        message = f"can not be read as a table ({shown(reason, 200)})"
        raise Flawed(Finding(None, "", "invalid_file", message, "Save it again, as Parquet or JSON Lines.")) from error


def _row(line: int, batch: Any, index: int) -> Row:
    try:
        given = {name: column[index].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
        size, value = _plain(given)
    except UnicodeDecodeError as error:
        finding = Finding(line, "", "not_utf8", f"is not UTF-8 (byte {error.start})", "Save the texts as UTF-8.")
        return Row(line, flaw=finding)
    except Exception as error:  # values of any type, which may be beyond Python's
        finding = Finding(
            line, "", "data_type", f"can not be read ({shown(str(error), 200)})", "Keep to texts, numbers and lists."
        )
        return Row(line, flaw=finding)
    if size > MAX_LINE:
        message = f"is longer than {MAX_LINE >> 20} MiB"
        return Row(line, flaw=Finding(line, "", "line_too_long", message, "Write one example per row."))
    for key in AS_JSON & value.keys():
        value[key] = _from_json(value[key])
        if key in ("tools", "functions"):
            value[key] = _with_schemas(value[key])
    return Row(line, value)


def _plain(value: Any) -> tuple[int, Any]:
    """A value without keys that are null, and how many characters its texts have."""
    if isinstance(value, str):
        return len(value), value
    if isinstance(value, dict):
        pairs = {key: _plain(each) for key, each in value.items() if each is not None}
        return sum(size for size, _ in pairs.values()), {key: each for key, (_, each) in pairs.items()}
    if isinstance(value, list):
        items = [_plain(each) for each in value]
        return sum(size for size, _ in items), [each for _, each in items]
    return 0, value


def _with_schemas(tools: Any) -> Any:
    """Tools whose parameters may be JSON text: no two functions have them of one type."""
    if not isinstance(tools, list):
        return tools
    read = []
    for tool in map(_from_json, tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(function, dict) and "parameters" in function:
            function["parameters"] = _from_json(function["parameters"])
        read.append(tool)
    return read


def _from_json(value: Any) -> Any:
    """What a text says if it is JSON of a list or an object."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
