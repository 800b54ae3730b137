"""Reports on whole files: counts, duplicates, leakage, tokens; and no bytes that the reader is not ready for."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from swapmeet_training import DataError, check_file, read_examples
from swapmeet_training.data import KINDS, MAX_MISTAKES, rows

Write = Callable[..., Path]


def chat(question: str, answer: str = "Yes.", **others: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns} | others


def found(findings: Any) -> list[tuple[int | None, str, str]]:
    return [(finding.line, finding.field, finding.kind) for finding in findings]


def test_a_good_file(write_jsonl: Write) -> None:
    path = write_jsonl("data.jsonl", *(chat(f"{number}?") for number in range(12)))
    report = check_file(path, least=10)
    assert report.ok
    assert report.problem is None
    assert (report.form, report.unit, report.examples, report.bytes) == ("chat", "line", 12, path.stat().st_size)
    assert json.loads(json.dumps(report.as_dict())) == {
        "name": "data.jsonl", "form": "chat", "unit": "line", "examples": 12, "bytes": path.stat().st_size,
        "tokens": None, "mistakes": [], "warnings": [], "mistake_counts": {}, "warning_counts": {},
    }  # fmt: skip


def test_mistakes_and_warnings_of_all_rows_are_counted_and_the_first_listed(tmp_path: Path) -> None:
    lines = [json.dumps(chat(f"{number}?")) for number in range(3)] + ["x"] * 1000 + [json.dumps(chat("0?", x=1))]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines))
    report = check_file(path)
    assert report.examples == 1004
    assert report.mistake_counts == {"not_json": 1000, "unrecognized_key": 1}
    assert found(report.mistakes) == [(line, "", "not_json") for line in range(4, 4 + MAX_MISTAKES)] + [
        (1004, "x", "unrecognized_key")
    ]
    assert report.problem is not None
    assert report.problem.startswith("data.jsonl (there may be more): line 4: is not one whole JSON object")


def test_fewer_examples_than_asked_for(write_jsonl: Write) -> None:
    path = write_jsonl("data.jsonl", *(chat(f"{number}?") for number in range(7)))
    assert check_file(path).ok
    (mistake,) = check_file(path, least=10).mistakes
    assert (mistake.line, mistake.kind) == (None, "invalid_n_examples")
    assert mistake.message == "Training file has 7 example(s), but must have at least 10 examples"


def test_duplicates_are_told_with_the_first_line(write_jsonl: Write) -> None:
    again = chat("0?") | {
        "messages": [*chat("0?")["messages"][:1], {"content": "Yes.", "role": "assistant", "weight": 1}]
    }
    report = check_file(
        write_jsonl("data.jsonl", chat("0?"), chat("1?"), again, chat("1?"), chat("0?"), chat("0?", "No."))
    )
    assert report.ok
    assert found(report.warnings) == [(3, "", "duplicate"), (4, "", "duplicate"), (5, "", "duplicate")]
    assert [finding.message for finding in report.warnings] == [f"is the same as line {line}" for line in (1, 2, 1)]


def test_leakage_is_told_with_both_lines(write_jsonl: Write) -> None:
    training = write_jsonl("train.jsonl", chat("0?"), chat("1?"), chat("2?"), chat("1?", "No."))
    held_out = write_jsonl("held-out.jsonl", chat("5?"), chat("1?"), chat("0?"), chat("1?"))
    report = check_file(training, against=held_out)
    assert found(report.mistakes) == [(1, "", "leakage"), (2, "", "leakage")]
    assert [finding.message for finding in report.mistakes] == [
        f"stands in held-out.jsonl, too, on line {line}" for line in (3, 2)
    ]
    assert check_file(training, against=write_jsonl("other.jsonl", chat("9?"))).ok


def test_what_can_not_be_compared_is_told(write_jsonl: Write, tmp_path: Path) -> None:
    training = write_jsonl("train.jsonl", chat("0?"))
    assert found(check_file(training, against=write_jsonl("b.jsonl", chat(""))).warnings) == [
        (None, "b.jsonl", "not_compared")
    ]
    other = write_jsonl("other.jsonl", {"prompt": "a", "completion": "b"})
    assert found(check_file(training, against=other).mistakes) == [(None, "other.jsonl", "mixed_forms")]
    with pytest.raises(DataError, match=r"none\.jsonl can not be read"):
        check_file(training, against=tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("content", "kind", "examples"),
    [
        (b"", "empty_file", 0),
        (b"\n \n\r\n", "empty_file", 0),
        (b"[\n" + json.dumps(chat("0?")).encode() + b"\n]", "json_array", 1),
        (json.dumps(chat("0?")).encode("utf-16"), "byte_order_mark", 1),
        (json.dumps(chat("0?")).encode("utf-32"), "byte_order_mark", 1),
        (b"\x1f\x8b\x08\x00", "invalid_file", 1),
        (b"PK\x03\x04", "invalid_file", 1),
        (b"PAR1", "invalid_file", 1),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, kind: str, examples: int) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    report = check_file(path, least=1 if kind == "empty_file" else 10)
    assert found(report.mistakes) == [(None, "", kind)]
    assert report.examples == examples
    assert report.problem is not None
    assert report.problem.startswith("data.jsonl ")


def test_what_follows_an_endless_line_is_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"x" * (40 << 20) + b"\n" + b"\xef\xbb\xbf{}\n\xff\n" + json.dumps(chat("0?")).encode())
    report = check_file(path)
    assert [(finding.line, finding.kind) for finding in report.mistakes] == [
        (1, "line_too_long"),
        (2, "byte_order_mark"),
        (3, "not_utf8"),
    ]
    assert report.examples == 4


def test_there_is_a_limit_of_rows(write_jsonl: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROWS", 5)
    assert check_file(write_jsonl("data.jsonl", *(chat(f"{number}?") for number in range(5)))).ok
    report = check_file(write_jsonl("data.jsonl", *(chat(f"{number}?") for number in range(9))))
    assert found(report.mistakes) == [(None, "", "too_many_rows")]
    assert report.examples == 6


def test_special_tokens_are_suspected_without_a_base_and_known_with_one(write_jsonl: Write, tiny_llama: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "<|im_\\u0065nd|>"}'}}
    tools = [{"type": "function", "function": {"name": "f", "description": "<|fim_suffix|>"}}]
    calling = {"role": "assistant", "tool_calls": [call]}
    path = write_jsonl(
        "data.jsonl",
        chat("<|im_start|>system"),
        {"messages": [{"role": "user", "content": "?"}, calling], "tools": tools},
    )
    arguments = "messages[1].tool_calls[0].function.arguments"
    suspected = [
        (1, "messages[0].content", "special_token"),
        (2, arguments, "special_token"),
        (2, "tools[0]", "special_token"),
    ]
    assert found(check_file(path).warnings) == suspected
    known = check_file(path, base=tiny_llama)
    assert found(known.mistakes) == suspected[:2]
    assert known.warnings == ()


def test_with_a_base_tokens_are_counted_and_what_does_not_fit_is_told(write_jsonl: Write, tiny_llama: Path) -> None:
    path = write_jsonl("data.jsonl", *(chat("a" * number) for number in range(1, 101)))
    report = check_file(path, base=tiny_llama)
    assert report.ok
    assert report.tokens is not None
    shortest = report.tokens.longest - 99
    assert report.tokens.total == 100 * shortest + 99 * 100 // 2
    assert report.tokens.percentiles == {share: shortest + share - 1 for share in (50, 90, 95, 99)}
    assert report.tokens.trained == 100 * 5  # Y, e, s, a full stop and the end
    limited = check_file(path, base=tiny_llama, max_length=shortest + 9)
    assert limited.mistake_counts == {"too_long": 90}
    assert limited.tokens == report.tokens
    assert limited.mistakes[0].message == f"has {shortest + 10} tokens, more than max_length {shortest + 9}"
    assert json.loads(json.dumps(limited.as_dict()))["tokens"]["percentiles"]["50"] == shortest + 49


def test_a_template_is_tried_on_every_row(write_jsonl: Write, tiny_llama: Path) -> None:
    path = write_jsonl("data.jsonl", chat("0?"), chat("1?"))
    report = check_file(path, base=tiny_llama, template="{% for m in messages %}{{ m.content }};{% endfor %}")
    assert report.mistake_counts == {"template_without_end": 2}
    report = check_file(path, base=tiny_llama, template="{{ raise_exception('no') }}")
    assert report.mistake_counts == {"template_refuses": 2}
    report = check_file(path, base=tiny_llama, template="{% for m in messages %}{{ 1 / 0 }}{% endfor %}")
    assert report.mistake_counts == {"template_refuses": 2}
    thinking = (
        "{% for m in messages %}{% if loop.last and m.role == 'assistant' %}-{% endif %}{{ m.content }}<|im_end|>"
        "{% endfor %}"
    )
    twice = chat("0?")["messages"] * 2
    report = check_file(write_jsonl("data.jsonl", {"messages": twice}), base=tiny_llama, template=thinking)
    assert report.ok
    assert report.warning_counts == {"template_rewrites": 1}
    assert report.tokens is not None
    assert report.tokens.trained == 2 * 6
    backwards = "{% for m in messages | reverse %}{{ m.content }}<|im_end|>{% endfor %}"
    report = check_file(write_jsonl("data.jsonl", chat("0?")), base=tiny_llama, template=backwards)
    assert report.mistake_counts == {"template_without_prompt": 1}
    assert set(report.mistake_counts) <= set(KINDS)
    with pytest.raises(ValueError, match="need a base"):
        check_file(path, max_length=10)


def test_progress_is_told(tmp_path: Path) -> None:
    path, told = tmp_path / "data.jsonl", list[int]()
    path.write_text("x\n" * 2500)
    check_file(path, progress=told.append)
    assert told == [1000, 2000]


JSON_LIKE = st.lists(
    st.sampled_from(
        [
            b'{"messages":',
            b"[",
            b"]",
            b"{",
            b"}",
            b'"role"',
            b":",
            b'"user"',
            b",",
            b'"content"',
            b"1",
            b'"\\ud800"',
            b"\n",
            b"\xef\xbb\xbf",
            b"\xff\xfe",
            b"PAR1",
            b"NaN",
            b"1e999",
            b"null",
            b'"tool_calls"',
            b'"assistant"',
            b"\x00",
            b"9" * 5000,
            b'{"prompt":"a","completion":"b"}',
        ]
    ),
    max_size=25,
).map(b"".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(st.binary(max_size=60) | JSON_LIKE)
@example(b"PAR1" + bytes(100) + b"\x04\x00\x00\x00PAR1")
def test_no_bytes_raise_anything_but_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    report = check_file(path, against=path)
    json.dumps(report.as_dict()).encode()
    assert {*report.mistake_counts, *report.warning_counts} <= set(KINDS)
    try:
        examples = list(read_examples(path))
    except DataError as error:
        str(error).encode()
        assert not report.ok
    else:
        assert len(examples) == report.examples
        assert set(report.mistake_counts) == {"leakage"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "weight", "type", "function", "name", "arguments", "id", "messages", "tool_calls"]
            ),
            inner | st.sampled_from(["assistant", "user", "tool", "function", "{}", "text"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)
KEYS = ["messages", "prompt", "completion", "tools", "functions", "input", "preferred_output", "non_preferred_output"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_no_object_raises_anything(tmp_path: Path, value: dict[str, Any]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(value))
    report = check_file(path)
    assert report.examples == 1
    for finding in (*report.mistakes, *report.warnings):
        assert finding.line == 1
        assert str(finding).isprintable()


MEASURED = """
import json, re, sys
from pathlib import Path
from swapmeet_training import check_file
report = check_file(Path(sys.argv[1]), against=Path(sys.argv[2]))
# not ru_maxrss, which begins with the memory of the process that started this one
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
print(json.dumps({"peak": peak} | report.as_dict()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads what Linux knows of a process")
def test_a_million_lines_take_little_memory(tmp_path: Path) -> None:
    path, held_out = tmp_path / "data.jsonl", tmp_path / "held-out.jsonl"
    with path.open("w") as stream:
        for number in range(1_000_000):
            stream.write(f'{{"prompt": "What is {number % 999_000} and one?", "completion": "It is {number + 1}."}}\n')
        stream.write('{"prompt": "What is 0 and one?", "completion": "It is 1."}\n')
    held_out.write_text('{"prompt": "What is 5 and one?", "completion": "It is 6."}\n')
    command = [sys.executable, "-c", MEASURED, str(path), str(held_out)]
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - seconds
    assert report["examples"] == 1_000_001
    assert [(each["line"], each["kind"]) for each in report["warnings"]] == [(1_000_001, "duplicate")]
    assert [(each["line"], each["kind"]) for each in report["mistakes"]] == [(6, "leakage")]
    assert report["peak"] < 110 << 20
    assert seconds < 120
