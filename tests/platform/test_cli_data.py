"""`swapmeet data check|show`: results on standard output, and an exit code that a script can use."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

Run = Callable[..., tuple[int, str, str]]
HERE = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "TERM": "xterm"}


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, command_line: Run, tmp_path: Path) -> Run:
    """Run the command line in this process: exit code, output, errors."""
    monkeypatch.setenv("SWAPMEET_HOME", str(tmp_path / "home"))

    return partial(command_line, "data")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, *examples: Any) -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(each)}\n" for each in examples), encoding="utf-8")
        return path

    return make


def test_a_good_file(run: Run, write: Callable[..., Path]) -> None:
    path = write("train.jsonl", chat("1?", "Yes."), chat("2?", "No."))
    size = path.stat().st_size
    expected = f"train.jsonl: 2 examples (chat), {size} bytes\n0 mistakes, 0 warnings\n"
    assert run("check", path) == (0, expected, "")


def test_mistakes_end_with_1_and_are_listed(run: Run, write: Callable[..., Path]) -> None:
    path = write("train.jsonl", chat("1?", "Yes."), chat("1?", "Yes."), chat("", "\x1b[31m"), *[{"x": 1}] * 30)
    held_out = write("held-out.jsonl", chat("1?", "Yes."), 3)
    code, out, _ = run("check", path, "--validation", held_out)
    assert code == 1
    assert (
        "mistake  line 3: messages[0].content is empty. Write some text, or leave the example out. [empty_text]" in out
    )
    assert "mistake  line 1: stands in held-out.jsonl, too, on line 1." in out
    assert "mistake  10 more of unrecognized_form\n" in out
    assert "warning  line 2: is the same as line 1." in out
    assert "33 mistakes, 2 warnings" in out
    assert "held-out.jsonl: 2 examples (chat)" in out
    assert out.endswith("1 mistake, 0 warnings\n")
    code, out, err = run("check", path, "--validation", held_out, "--json")
    assert (code, err) == (1, "")
    result = json.loads(out)
    assert result["mistake_counts"] == {"empty_text": 1, "leakage": 2, "unrecognized_form": 30}
    assert result["mistakes"][0] == {
        "line": 1,
        "field": "",
        "kind": "leakage",
        "message": "stands in held-out.jsonl, too, on line 1",
        "fix": "Leave it out of one of them: what was trained on tells nothing of what was learnt.",
    }
    assert result["validation"]["mistake_counts"] == {"data_type": 1}


def test_with_a_base(run: Run, write: Callable[..., Path], tiny_llama: Path, tmp_path: Path) -> None:
    path = write("train.jsonl", chat("1?", "Yes."), chat("2?", "a" * 2000))
    code, out, _ = run("check", path, "--base", tiny_llama)
    assert code == 1
    assert re.search(r"tokens: [\d,]+, of which 2,006 are trained; the longest example has 20\d\d \(50 % up to ", out)
    assert re.search(r"line 2: has 20\d\d tokens, more than max_length 1024\. Shorten it or raise max_length\.", out)
    assert run("check", path, "--base", tiny_llama, "--max-length", "4096")[0] == 0
    (tmp_path / "own.jinja").write_text("{{ raise_exception('Never') }}")
    code, out, _ = run("check", path, "--base", tiny_llama, "--chat-template", tmp_path / "own.jinja")
    assert "is refused by the chat template: Never." in out


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["check", "none.jsonl"], 1, "swapmeet: none.jsonl can not be read (No such file or directory). Name a JSONL"),
        (["check", "none.jsonl", "--max-length", "9"], 2, "need --base"),
        (["check", "none.jsonl", "--base", "no-such-base"], 1, "no-such-base"),
        (["show", "none.jsonl", "--base", "BASE"], 1, "none.jsonl can not be read"),
        (
            ["show", "GOOD", "--base", "BASE", "--line", "2"],
            1,
            "good.jsonl: line 2: has no example. Name another line.",
        ),
        (
            ["show", "GOOD", "--base", "BASE", "--line", "9"],
            1,
            "good.jsonl: line 9: has no example. Name another line.",
        ),
        (["show", "GOOD", "--base", "BASE", "--line", "3"], 1, "good.jsonl: line 3: messages[0].content is empty."),
        (["show", "EMPTY", "--base", "BASE"], 1, "empty.jsonl is empty"),
        (["show", "GOOD", "--base", "BASE", "--chat-template", "none"], 1, "none can not be read as a chat template"),
    ],
)
def test_what_can_not_be_done(
    run: Run, write: Callable[..., Path], tiny_llama: Path, arguments: list[str], code: int, word: str
) -> None:
    good = write("good.jsonl", chat("1?", "Yes."), chat("", "x"))
    good.write_text(good.read_text().replace("\n", "\n\n"))
    places = {"BASE": tiny_llama, "GOOD": good, "EMPTY": write("empty.jsonl")}
    found, out, err = run(*(places.get(argument, argument) for argument in arguments))
    assert (found, out) == (code, "")
    assert word in " ".join(err.replace("│", " ").split())


def test_what_is_trained_stands_in_brackets(run: Run, write: Callable[..., Path], tiny_llama: Path) -> None:
    path = write("train.jsonl", chat("1?", "Yes."), chat("Wärm?", "Nó \x1b[31m[1]."))
    code, out, err = run("show", path, "--base", tiny_llama)
    assert (code, err) == (0, "")
    heading, text = out.split("\n", 1)
    assert heading == "line 1: 17 tokens, of which 5 are trained"
    assert text == "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n[[Yes.<|im_end|>]]\n"
    _, out, _ = run("show", path, "--base", tiny_llama, "--line", "2")
    assert "<|im_start|>user\nWärm?<|im_end|>\n" in out
    assert "\n[[Nó \\x1b[31m[1].<|im_end|>]]\n" in out


def test_one_token_a_line(run: Run, write: Callable[..., Path], tiny_llama: Path) -> None:
    path = write("train.jsonl", chat("1?", "Yes."))
    _, out, _ = run("show", path, "--base", tiny_llama, "--tokens")
    lines = out.splitlines()
    assert len(lines) == 18
    assert lines[1].split() == ["0", "1", "'<|im_start|>'"]
    assert lines[-1].split() == ["16", "2", "[['<|im_end|>']]"]
    _, out, _ = run("show", path, "--base", tiny_llama, "--json")
    (sequence,) = json.loads(out)["sequences"]
    assert (sequence["line"], sequence["key"], sequence["trained"]) == (1, "", 5)
    assert sequence["spans"][1] == {"text": "Yes.<|im_end|>", "trained": True}
    assert sequence["tokens"][-1] == {"id": 2, "text": "<|im_end|>", "trained": True}


def test_the_served_base_is_shown_if_none_is_named(
    run: Run, write: Callable[..., Path], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWAPMEET_BASE", str(tiny_llama))
    code, out, _ = run("show", write("train.jsonl", {"prompt": "1+1=", "completion": "2"}), "--tokens")
    assert code == 0
    assert out.splitlines()[-2].split()[-1] == "[['2']]"


def test_both_answers_of_a_preference(run: Run, write: Callable[..., Path], tiny_llama: Path) -> None:
    yes, no = ([{"role": "assistant", "content": word}] for word in ("Yes.", "No."))
    messages = {"messages": [{"role": "user", "content": "?"}]}
    path = write("pairs.jsonl", {"input": messages, "preferred_completion": yes, "non_preferred_completion": no})
    _, out, _ = run("show", path, "--base", tiny_llama)
    assert "line 1, preferred_completion: " in out
    assert "[[Yes.<|im_end|>]]" in out
    assert "line 1, non_preferred_completion: " in out
    assert "[[No.<|im_end|>]]" in out


@pytest.mark.slow
def test_what_is_trained_is_coloured_on_a_terminal(
    write: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    path = write("train.jsonl", chat("1?", "Yes."))
    command = [sys.executable, "-m", "swapmeet", "data", "show", str(path), "--base", str(tiny_llama)]
    ours, theirs = pty.openpty()
    environment = HERE | {"SWAPMEET_HOME": str(tmp_path / "home")}
    environment.pop("NO_COLOR", None)
    subprocess.run(command, check=True, stdout=theirs, env=environment)
    os.close(theirs)
    out = b""
    try:
        while piece := os.read(ours, 1 << 16):
            out += piece
    except OSError:  # what Linux says at the end of a terminal
        pass
    os.close(ours)
    assert b"\x1b[1;32mYes.<|im_end|>\x1b[0m" in out
    assert b"[[" not in out
