"""`swapmeet plan`: the arguments of `swapmeet train`, and a table instead of a run."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet.cli.planning import plan
from swapmeet.cli.training import train

LINE = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([json.dumps(LINE)] * 20))
    return path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, command_line: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Run the command line in this process: exit code, output, errors."""
    monkeypatch.delenv("SWAPMEET_CONFIG", raising=False)
    monkeypatch.setenv("SWAPMEET_HOME", str(tmp_path / "home"))

    return command_line


def test_plan_takes_every_argument_of_train() -> None:
    takes, trains = inspect.signature(plan).parameters, inspect.signature(train).parameters
    assert {name: takes[name] for name in trains} == dict(trains)
    assert "options" not in takes


def test_a_table_and_one_line_of_json(call, data: Path, tiny_llama: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = ["plan", data, "--base", tiny_llama, "--name", "acme/x", "--alias", "prod", "--rank", 4, "--tag", "t"]
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    for word in ("20 examples", "9 of 8 x 1", "memory", "activations", "overhead", "time", "the CPUs of"):
        assert word in out
    code, out, _ = call(*arguments, "--json")
    told = json.loads(out)
    assert code == 0
    assert out.count("\n") == 1
    assert told["base"] == str(tiny_llama)
    assert (told["steps"], told["settings"]["rank"], told["fits"]) == (9, 4, True)
    assert not (tmp_path / "home" / "runs").exists()


def test_another_gpu_with_a_price_and_a_measured_speed(call, data: Path, tiny_llama: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = call("plan", data, "--base", tiny_llama, "--gpu", "h100", "--price", 2, "--speed", 100)
    assert code == 0
    assert "(H100)" in out
    assert "measured" in out
    assert "at 2 an hour" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "abacus"], "gpu is 'abacus', which is not known here"),
        (["--memory", "0.1"], "What would fit"),
        (["--memory", "-1"], "memory is -1.0 but should be positive"),
        (["--rank", "0", "--epochs", "-1"], "rank is 0"),
        (["--base", "nowhere"], "There is no base 'nowhere'"),
    ],
)
def test_refusals_are_sentences(arguments: list[str], says: str, call, data: Path, tiny_llama: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = call("plan", data, "--base", tiny_llama, *arguments)
    assert (code, out) == (1, "")
    assert says in err


def test_training_needs_a_name(call, data: Path, tiny_llama: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = call("train", data, "--base", tiny_llama)
    assert code == 2
    assert "--name TENANT/NAME" in err
