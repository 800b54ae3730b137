"""Training files: what is read, and one sentence with line and field for everything that is wrong."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapmeet_training import DataError, dataset_digest, read_examples
from swapmeet_training.data import MAX_MISTAKES, Chat, Completion, Message

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello."}
GOOD = json.dumps({"messages": [USER, ASSISTANT]}).encode()


def write(path: Path, *lines: bytes | dict[str, Any]) -> Path:
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(raw))
    return path


def test_chats_are_read_with_their_lines(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    path = write(
        tmp_path / "data.jsonl", GOOD, b"", {"messages": [system, USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT]}
    )
    first, second = read_examples(path)
    assert first == Chat(1, (Message("user", "Hi"), Message("assistant", "Hello.")))
    assert isinstance(second, Chat)
    assert second.line == 3
    assert [message.trained for message in second.messages if message.role == "assistant"] == [False, True]


def test_completions_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", {"prompt": "1+1=", "completion": "2"}, b"")
    assert list(read_examples(path)) == [Completion(1, "1+1=", "2")]


def messages(*items: Any) -> dict[str, Any]:
    return {"messages": list(items)}


BAD: list[tuple[bytes | dict[str, Any], str]] = [
    (b'{"messages": [', "line 2: is not one whole JSON object"),
    (b"[" * 100_000, "line 2: is not one whole JSON object"),
    (b"\xef\xbb\xbf" + GOOD, "line 2: begins with a byte-order mark. Save the file as UTF-8 without BOM"),
    (b'{"prompt": "\xff"}', "line 2: is not UTF-8"),
    (
        b'{"messages": [{"role": "user", "content": "x", "content": "y"}]}',
        "line 2: is not one whole JSON object .content stands twice in one object",
    ),
    (b'{"prompt": NaN}', "line 2: is not one whole JSON object .NaN is no JSON"),
    (b"3", "line 2: is not an object"),
    ({"text": "x"}, "line 2: has neither 'messages' nor 'prompt' and 'completion'"),
    ({"prompt": "x", "completion": "y"}, "line 2: has 'prompt' and 'completion' where line 1 has 'messages'"),
    (
        messages(USER, ASSISTANT) | {"tool": []},
        "line 2: tool is an unknown key; known are functions, messages, parallel_tool_calls, tools",
    ),
    ({"prompt": "x"}, "line 2: completion is missing"),
    ({"prompt": "", "completion": "y"}, "line 2: prompt is empty"),
    ({"messages": []}, "line 2: messages must be a list of at least one message"),
    ({"messages": "Hi"}, "line 2: messages must be a list"),
    (messages("Hi"), r"line 2: messages\[0\] is not an object"),
    (
        messages({"role": "robot", "content": "x"}),
        r'line 2: messages\[0\].role is "robot". Write one of system, developer, user, assistant',
    ),
    (messages({"content": "x"}), r"line 2: messages\[0\].role is null"),
    (messages({"role": ["user"], "content": "x"}), r"line 2: messages\[0\].role is "),
    (messages(USER | {"tool_calls": [1]}, ASSISTANT), r"line 2: messages\[0\].tool_calls is an unknown key"),
    (messages(USER | {"name": 3}, ASSISTANT), r"line 2: messages\[0\].name must be text, not int"),
    (messages(USER | {"weight": 1}, ASSISTANT), r"line 2: messages\[0\].weight is an unknown key"),
    (messages(USER, ASSISTANT | {"weight": 2}), r"line 2: messages\[1\].weight must be 0"),
    (messages(USER, ASSISTANT | {"weight": True}), r"line 2: messages\[1\].weight must be 0"),
    (messages(USER, ASSISTANT | {"weight": 0}), "line 2: messages gives every assistant's turn weight 0"),
    (messages({"role": "user"}, ASSISTANT), r"line 2: messages\[0\].content is missing"),
    (messages({"role": "user", "content": " \n"}, ASSISTANT), r"line 2: messages\[0\].content is empty"),
    (
        messages({"role": "user", "content": [{"type": "text"}]}, ASSISTANT),
        r"line 2: messages\[0\].content\[0\].text is missing",
    ),
    (
        messages({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ASSISTANT),
        r'line 2: messages\[0\].content\[0\] is a part of the type "image_url". Only text is trained',
    ),
    (messages({"role": "user", "content": []}, ASSISTANT), r"line 2: messages\[0\].content is empty"),
    (messages({"role": "user", "content": None}, ASSISTANT), r"line 2: messages\[0\].content is missing"),
    (messages({"role": "user", "content": 3}, ASSISTANT), r"line 2: messages\[0\].content must be text, not int"),
    (
        messages({"role": "user", "content": "\ud800"}, ASSISTANT),
        r"line 2: messages\[0\].content holds half a surrogate pair",
    ),
    (messages(USER), "line 2: messages has no message of the role 'assistant'"),
    (messages(USER, ASSISTANT, USER), "line 2: messages must end with the assistant's turn, not with the role 'user'"),
]


@pytest.mark.parametrize(("line", "expected"), BAD, ids=[expected[8:60] for _, expected in BAD])
def test_every_mistake_is_told_with_line_and_field(tmp_path: Path, line: bytes | dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        list(read_examples(write(tmp_path / "data.jsonl", GOOD, line, GOOD)))
    assert str(caught.value).startswith("data.jsonl: ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "data.jsonl is empty"),
        (b"\n \n", "data.jsonl is empty"),
        (b'[{"messages": []}]', "data.jsonl begins a JSON array. Write JSON Lines"),
        (GOOD.decode().encode("utf-16"), "data.jsonl begins with a byte-order mark"),
        (b" " * (17 << 20), "line 1: is longer than 16 MiB"),
    ],
    ids=["empty", "blank", "array", "utf-16", "endless"],
)
def test_files_that_are_no_json_lines(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=expected):
        list(read_examples(tmp_path / "data.jsonl"))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (*(tmp_path / name for name in ("none.jsonl", "pipe", "x\0y", "x" * 300)), tmp_path):
        with pytest.raises(DataError, match="can not be read"):
            list(read_examples(path))


def test_mistakes_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(read_examples(write(tmp_path / "data.jsonl", GOOD, b"x", GOOD, b"y")))
    assert [line.split(":")[0] for line in str(caught.value).removeprefix("data.jsonl: ").splitlines()] == [
        "line 2",
        "line 4",
    ]
    with pytest.raises(DataError, match="there may be more") as caught:
        list(read_examples(write(tmp_path / "data.jsonl", *[b"x"] * 50)))
    assert len(str(caught.value).splitlines()) == MAX_MISTAKES


def test_good_lines_stream_before_a_bad_one(tmp_path: Path) -> None:
    examples = read_examples(write(tmp_path / "data.jsonl", GOOD, b"x"))
    assert next(examples).line == 1
    with pytest.raises(DataError):
        next(examples)


def test_digest_is_of_the_bytes_and_the_order(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", GOOD), write(tmp_path / "two", GOOD, GOOD)
    assert dataset_digest(one).startswith("sha256:")
    assert len({dataset_digest(one), dataset_digest(two), dataset_digest(one, two), dataset_digest(two, one)}) == 4


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "weight"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "completion", "text"]), json_values))
def test_any_json_object_is_an_example_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(value))
    try:
        found = [example.line for example in read_examples(path)]
    except DataError as error:
        found = [int(str(error).removeprefix("any.jsonl: line ").split(":")[0])]
    assert found == [1]
