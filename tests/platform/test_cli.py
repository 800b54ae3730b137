"""The command line: results on standard output, one sentence on standard error, and the right exit code."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


Run = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, command_line: Run, home: Path) -> Run:
    """Run the command line in this process."""
    for name in ("SWAPMEET_URL", "SWAPMEET_API_KEY", "SWAPMEET_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SWAPMEET_HOME", str(home))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("SWAPMEET_PORT", str(free.getsockname()[1]))

    return command_line


def refused(done: Any, word: str) -> None:
    assert done.code == 1, done
    assert done.out == ""
    assert word in done.err
    assert done.err.startswith("swapmeet: ")
    assert "Traceback" not in done.err


@pytest.fixture
def data(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "data.jsonl"
        path.write_text(text)
        return path

    return write


BAD_DATA = {
    "empty": ("", "data.jsonl"),
    "half a line": ('{"messages": [{"ro', "line 1"),
    "an array": ("[" + json.dumps(GOOD) + "]", "JSON array"),
    "wrong role": (json.dumps({"messages": [{"role": "robot", "content": "x"}]}), "role"),
    "no assistant": (json.dumps(GOOD) + "\n" + json.dumps({"messages": GOOD["messages"][:1]}), "line 2"),
    "unknown key": (json.dumps(GOOD | {"weights": 1}), "weights"),
    "too long": (json.dumps({"prompt": "x", "completion": "fox " * 500}), "max_length"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused_before_anything_starts(
    case: str, run: Run, data: Callable[[str], Path], tiny_llama: Path, home: Path
) -> None:
    text, word = BAD_DATA[case]
    done = run("train", data(text), "--base", tiny_llama, "--name", "acme/x", "--max-length", 256)
    refused(done, word)
    assert not (home / "runs").exists()
    assert not (home / "registry").exists() or not list((home / "registry").rglob("*.json"))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--rank", 0], "rank"),
        (["--epochs", -1], "epochs"),
        (["--learning-rate", "nan"], "learning_rate"),
        (["--name", "Acme"], "adapter name"),
        (["--base", "absent"], "no base 'absent'"),
        (["--cpus", 0], "cpus"),
        (["--validation", "absent.jsonl"], "absent.jsonl"),
    ],
)
def test_bad_options_are_refused_by_name(
    options: list[Any], word: str, run: Run, data: Callable[[str], Path], tiny_llama: Path
) -> None:
    arguments = ["--base", tiny_llama, "--name", "acme/x", *options]
    refused(run("train", data(json.dumps(GOOD)), *arguments), word)


def test_a_missing_data_file_is_named(run: Run, tiny_llama: Path, tmp_path: Path) -> None:
    refused(run("train", tmp_path / "absent.jsonl", "--base", tiny_llama, "--name", "acme/x"), "absent.jsonl")


@pytest.mark.parametrize("arguments", [["train"], ["frobnicate"], ["push", "--rnak", "3"], ["up", "--port", "http"]])
def test_wrong_usage_is_exit_code_2(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_an_adapter_goes_round(run: Run, random_lora: Callable[..., Path], tiny_llama: Path, tmp_path: Path) -> None:
    adapter = random_lora(tiny_llama, tmp_path / "adapter")
    pushed = run("push", adapter, "acme/legal", "--base", tiny_llama, "--alias", "prod", "--license", "mit", "--json")
    assert pushed.code == 0, pushed.err
    digest = json.loads(pushed.out)["digest"]
    run("push", adapter, "acme/legal", "--base", tiny_llama)

    shown = json.loads(run("show", "acme/legal", "--json").out)
    assert shown["name"] == "acme/legal"
    assert [version["version"] for version in shown["versions"]] == [1, 2]
    assert shown["versions"][0]["digest"] == digest
    assert shown["aliases"] == {"prod": 1, "latest": 2}

    assert run("tag", "acme/legal:2", "prod", "--expect", 1).code == 0
    refused(run("tag", "acme/legal:1", "prod", "--expect", 1), "prod")

    pulled = run("pull", f"acme/legal@{digest}", tmp_path / "pulled", "--base", tiny_llama, "--json")
    assert json.loads(pulled.out)["digest"] == digest
    assert (tmp_path / "pulled" / "adapter_model.safetensors").read_bytes() == (
        adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_a_version_is_withdrawn(run: Run, random_lora: Callable[..., Path], tiny_llama: Path, tmp_path: Path) -> None:
    adapter = random_lora(tiny_llama, tmp_path / "adapter")
    for _ in range(2):
        digest = json.loads(run("push", adapter, "acme/legal", "--base", tiny_llama, "--alias", "prod", "--json").out)
    for ref in ("acme/legal", "acme/legal:latest"):
        refused(run("yank", ref, "--reason", "leaked"), "Name its number")
    refused(run("yank", "acme/legal:3", "--reason", "leaked"), "There is no acme/legal:3")
    refused(run("yank", "acme/legal:2", "--reason", " "), "needs a reason")
    assert run("yank", "acme/legal:2").code == 2
    for _ in range(2):
        yanked = json.loads(run("yank", "acme/legal:prod", "--reason", "leaked names", "--json").out)
        assert yanked == digest | {"version": 2, "reason": "leaked names"}
    assert "acme/legal:2 is withdrawn: leaked names" in run("yank", "acme/legal:2", "--reason", "leaked names").out
    assert "yanked: leaked names" in run("show", "acme/legal").out
    assert json.loads(run("show", "acme/legal", "--json").out)["aliases"] == {"prod": 2, "latest": 1}
    refused(run("pull", "acme/legal:prod", tmp_path / "x"), "acme/legal:2 was yanked: leaked names")


def test_what_is_not_there_is_said_so(run: Run, tmp_path: Path, tiny_llama: Path) -> None:
    refused(run("show", "acme/absent"), "acme/absent")
    refused(run("pull", "acme/absent", tmp_path / "x"), "acme/absent")
    refused(run("push", tmp_path / "absent", "acme/x", "--base", tiny_llama), "absent")
    assert not (tmp_path / "x").exists()


def test_pickled_weights_are_refused(run: Run, tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04N.")
    refused(run("push", tmp_path, "acme/x", "--base", tiny_llama), "adapter_model.bin")


def test_a_base_folder_is_shown_with_its_fingerprint(run: Run, tiny_llama: Path) -> None:
    added = json.loads(run("base", "add", tiny_llama, "--name", "mine", "--json").out)
    shown = json.loads(run("base", "show", "mine", "--json").out)
    assert shown == added
    assert shown["path"] == str(tiny_llama)
    assert shown["fingerprint"]["weights"] == json.loads(run("base", "hash", tiny_llama, "--json").out)["weights"]
    assert "smollm2-135m" in run("base", "list").out
    refused(run("base", "show", "absent"), "absent")


def test_a_taken_port_is_said_so_at_once(run: Run, tiny_llama: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(run("up", "--base", tiny_llama, "--port", port), f"Port {port}")
        doctor = run("doctor", "--port", port, "--json")
    assert doctor.code == 1
    failed = [finding["what"] for finding in json.loads(doctor.out)["findings"] if not finding["ok"]]
    assert failed == ["port"]


def test_a_store_that_can_not_be_reached_is_said_so(
    run: Run, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for command in (["up", "--base", tiny_llama], ["show", "acme/x"]):
        refused(run(*command, "--registry", "s3://bucket/prefix"), "127.0.0.1:9")
    refused(run("show", "acme/x", "--registry", "ftp://x"), "ftp://x")


def test_a_home_that_can_not_be_written_is_said_so(run: Run, tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run("up", "--base", tiny_llama, "--home", tmp_path / "file" / "home"), "file")


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////dev/null/keys.db"])
def test_a_database_that_can_not_be_used_is_said_so(
    url: str, run: Run, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWAPMEET_DATABASE", url)
    refused(run("up", "--base", tiny_llama), "SWAPMEET_DATABASE")


def test_a_bad_alias_is_refused_before_training(run: Run, data: Callable[[str], Path], tiny_llama: Path) -> None:
    done = run("train", data(json.dumps(GOOD)), "--base", tiny_llama, "--name", "acme/x", "--alias", "latest")
    refused(done, "latest")


def test_chat_needs_a_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(run("chat", "acme/x", "Hi"), "SWAPMEET_URL")
    monkeypatch.setenv("SWAPMEET_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("SWAPMEET_API_KEY", "sm-x")
    refused(run("chat", "acme/x", "Hi"), "does not answer")


def test_a_misspelt_setting_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAPMEET_PROT", "1")
    refused(run("show", "acme/x"), "SWAPMEET_PROT")
