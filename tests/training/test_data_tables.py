"""Parquet files and folders of HF `datasets`: the same examples and the same checks, told by row."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swapmeet_training import DataError, check_file, dataset_digest, read_examples
from swapmeet_training.data import Chat, Example

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

USER = {"role": "user", "content": "Is it warm in Rome?"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "30 degrees"}
ANSWER = {"role": "assistant", "content": "Yes.", "weight": 1}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    },
    {
        "type": "function",
        "function": {"name": "time", "parameters": {"type": "object", "properties": {"zone": {"type": "integer"}}}},
    },
]
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
CHATS = [
    {"messages": [USER, ANSWER]},
    {"messages": [USER, CALLING, RESULT, ANSWER], "tools": TOOLS, "parallel_tool_calls": True},
    {"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER | {"weight": 0}, USER, ANSWER]},
]
PAIRS = [
    {
        "input": {"messages": [USER]},
        "preferred_output": [{"role": "assistant", "content": word}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    }
    for word in ("Yes.", "Indeed.")
]
COMPLETIONS = [{"prompt": f"{number}+1=", "completion": str(number + 1)} for number in range(5)]


def as_parquet(rows: list[dict[str, Any]], folder: Path, **options: Any) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(_filled(rows)), folder / "data.parquet", **options)
    return folder / "data.parquet"


def as_folder(rows: list[dict[str, Any]], folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(_filled(rows)).save_to_disk(folder / "saved")
    return folder / "saved"


def _filled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With every key in every row: tables take their columns from the first."""
    keys = {key: None for row in rows for key in row}
    return [keys | row for row in rows]


@pytest.mark.parametrize("make", [as_parquet, as_folder])
@pytest.mark.parametrize("rows", [CHATS, PAIRS, COMPLETIONS], ids=["chats", "preferences", "completions"])
def test_tables_hold_what_lines_hold(
    tmp_path: Path, write_jsonl: Callable[..., Path], make: Callable[..., Path], rows: list[dict[str, Any]]
) -> None:
    expected = list(read_examples(write_jsonl("data.jsonl", *rows)))
    table = make(rows, tmp_path)
    assert list(read_examples(table)) == expected
    report = check_file(table, against=tmp_path / "data.jsonl")
    assert report.unit == "row"
    assert report.bytes > 0
    assert report.mistake_counts == {"leakage": len(rows)}


def test_what_a_column_s_type_can_not_tell_may_be_json_text(tmp_path: Path) -> None:
    texts = [{key: json.dumps(value) for key, value in row.items()} for row in CHATS[1:2]]
    parameters = [
        tool | {"function": tool["function"] | {"parameters": json.dumps(tool["function"]["parameters"])}}
        for tool in TOOLS
    ]
    half = [CHATS[1] | {"tools": parameters}]
    texts = [row | {"parallel_tool_calls": True} for row in texts]
    found: list[list[Example]] = []
    for name, rows in (("texts", texts), ("half", half)):
        (tmp_path / name).mkdir()
        found.append(list(read_examples(as_parquet(rows, tmp_path / name))))
    assert found[0] == found[1]
    assert isinstance(found[0][0], Chat)
    assert list(found[0][0].tools) == [tool["function"] for tool in TOOLS]


@pytest.mark.parametrize("make", [as_parquet, as_folder])
def test_mistakes_are_told_by_row(tmp_path: Path, make: Callable[..., Path]) -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 300 + [{"prompt": None, "completion": "b"}]
    path = make(rows, tmp_path)
    report = check_file(path)
    assert [(each.line, each.field, each.kind) for each in report.mistakes] == [(301, "prompt", "missing_key")]
    assert report.warning_counts == {"duplicate": 299}
    assert report.warnings[0].message == "is the same as row 1"
    with pytest.raises(DataError, match=r": row 301: prompt is missing\. Add it"):
        list(read_examples(path))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (lambda: pyarrow.array([b"\xff\xfe"]).cast(pyarrow.binary()).view(pyarrow.binary()), "data_type"),
        (lambda: pyarrow.array([7]), "data_type"),
        (lambda: pyarrow.array([7], pyarrow.timestamp("ns")), "data_type"),
        (lambda: pyarrow.array([1 << 60], pyarrow.timestamp("ms")), "data_type"),
        (lambda: pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())), "data_type"),
        (lambda: pyarrow.array(["x" * (17 << 20)]), "line_too_long"),
        (
            lambda: pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, *pyarrow.array([b"\xff"]).buffers()[1:]]),
            "not_utf8",
        ),
    ],
)
def test_values_of_any_type(tmp_path: Path, column: Callable[[], Any], kind: str) -> None:
    table = pyarrow.Table.from_arrays([column(), pyarrow.array(["b"])], ["prompt", "completion"])
    parquet.write_table(table, tmp_path / "data.parquet")
    assert [(each.line, each.kind) for each in check_file(tmp_path / "data.parquet").mistakes] == [(1, kind)]


def test_columns_of_one_name(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["prompt", "prompt"])
    parquet.write_table(table, tmp_path / "data.parquet")
    (mistake,) = check_file(tmp_path / "data.parquet").mistakes
    assert (mistake.line, mistake.kind) == (None, "invalid_file")
    assert "two columns are named prompt" in str(mistake)


def test_an_empty_table(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), tmp_path / "data.parquet")
    assert [each.kind for each in check_file(tmp_path / "data.parquet").mistakes] == ["empty_file"]


def test_folders_that_hold_no_single_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    one = datasets.Dataset.from_list(COMPLETIONS)
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match=r"it holds test, train\. Name one of them"):
        check_file(tmp_path / "both")
    assert check_file(tmp_path / "both" / "train").examples == 5
    with pytest.raises(DataError, match=r"no whole state\.json in this folder"):
        check_file(tmp_path)
    elsewhere = shutil.copytree(tmp_path / "both" / "train", tmp_path / "elsewhere")
    state = json.loads((elsewhere / "state.json").read_text())
    for changes, word in (
        ({"_data_files": [{"filename": "../both/train/data-00000-of-00001.arrow"}]}, "names files elsewhere"),
        ({"_indices_files": [{"filename": "indices.arrow"}]}, "flatten_indices"),
        ({"_format_columns": 3}, "does not say which columns"),
        ({"_data_files": 3}, "no whole state"),
    ):
        (elsewhere / "state.json").write_text(json.dumps(state | changes))
        with pytest.raises(DataError, match=word):
            check_file(elsewhere)
    (elsewhere / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": "gone.arrow"}]}))
    assert [each.kind for each in check_file(elsewhere).mistakes] == ["invalid_file"]


def test_a_folder_in_shards_with_some_columns_shown(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    shown = datasets.Dataset.from_list([row | {"source": "us"} for row in COMPLETIONS])
    shown.save_to_disk(tmp_path / "all", num_shards=2)
    assert check_file(tmp_path / "all").mistake_counts == {"unrecognized_key": 5}
    shown.with_format(columns=["prompt", "completion"]).save_to_disk(tmp_path / "some", num_shards=2)
    assert [example.line for example in read_examples(tmp_path / "some")] == [1, 2, 3, 4, 5]


def test_a_folder_s_digest_is_that_of_its_rows_files(tmp_path: Path) -> None:
    folder = as_folder(COMPLETIONS, tmp_path)
    before = dataset_digest(folder)
    (folder / "dataset_info.json").write_text("{}")
    assert dataset_digest(folder) == before == dataset_digest(folder / "data-00000-of-00001.arrow")


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("good")
    arrow = as_folder(COMPLETIONS, folder) / "data-00000-of-00001.arrow"
    return {"parquet": as_parquet(COMPLETIONS, folder).read_bytes(), "arrow": arrow.read_bytes()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(st.sampled_from(["parquet", "arrow"]), st.data())
def test_damaged_tables_are_no_crash(
    tmp_path: Path, good_bytes: dict[str, bytes], kind: str, data: st.DataObject
) -> None:
    content = bytearray(good_bytes[kind])
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(4, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=8)
    ):
        content[place] = value
    cut = data.draw(st.integers(5, len(content)) | st.just(len(content)))
    path = tmp_path
    if kind == "arrow":
        (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
        (path / "data.arrow").write_bytes(content[:cut])
    else:
        path = tmp_path / "data.parquet"
        path.write_bytes(content[:cut])
    report = check_file(path)
    json.dumps(report.as_dict()).encode()
    try:
        list(read_examples(path))
    except DataError:
        assert not report.ok
