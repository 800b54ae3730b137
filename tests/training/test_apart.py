"""Functions in processes of their own: new ones, and forks of a warm process, which are told apart by nothing else."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swapmeet_training.attempts import warm
from swapmeet_training.attempts.apart import SOCKET, Line, Process, Raised, apart, opened

Start = Callable[..., Process]


def tell_of_itself(line: Line) -> None:
    import sys

    line.say({"parent": os.getppid(), "torch": "torch" in sys.modules, "SECRET": os.environ.get("SECRET")})


def echo(line: Line, *words: str) -> None:
    for word in words:
        line.say(word)


def leave_traces(line: Line) -> None:
    os.environ["TRACE"] = "left"
    os.chdir("/")
    line.say(None)


def look_for_traces(line: Line) -> None:
    line.say((os.environ.get("TRACE"), os.getcwd() == "/"))


def fail(line: Line) -> None:
    line.say("before")
    raise ValueError("no such thing")


def compute(line: Line) -> None:
    """As long as anybody wants: product after product, in threads."""
    import torch

    torch.set_num_threads(2)
    line.say(os.getpid())
    while not line.told.is_set():
        torch.ones(300, 300) @ torch.ones(300, 300)
    line.say("asked to stop")


@pytest.fixture(scope="module")
def warm_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home, stop = tmp_path_factory.mktemp("a" * 60) / ("b" * 60), threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm, "PAUSE", 0.0)
        thread = threading.Thread(target=warm.keep_warm, args=(home, stop, "torch"))
        thread.start()
        until = time.monotonic() + 240
        while not (home / "cache" / "warm.lock").exists():
            assert time.monotonic() < until, (home / "logs" / warm.LOG).read_text()
            time.sleep(0.01)
        assert not (home / "cache" / "warm.sock").exists()
        early = said(apart(home, tell_of_itself))
        assert early["parent"] != os.getpid(), "whoever comes during the imports waits for them"
        yield home
        stop.set()
        thread.join()


@pytest.fixture(params=[pytest.param("new"), pytest.param("warm", marks=pytest.mark.slow)])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    home = tmp_path if request.param == "new" else request.getfixturevalue("warm_home")
    return lambda *what: apart(home, *what)


def said(process: Process) -> Any:
    """Its first word; the rest is not waited for."""
    with process:
        return process.receive(60)


def ended(process: Process) -> bool:
    with process, pytest.raises(EOFError):
        process.receive(60)
    return True


def gone(number: int) -> bool:
    """Whether a process has ended within seconds."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_what_is_said_arrives_in_order_until_the_end(start: Start) -> None:
    process = start(echo, "one", "two", "x" * 3_000_000)
    assert [process.receive(60) for _ in range(3)] == ["one", "two", "x" * 3_000_000]
    assert ended(process)


def test_an_error_is_the_last_word(start: Start) -> None:
    process = start(fail)
    assert process.receive(60) == "before"
    assert process.receive(60) == Raised("ValueError: no such thing")
    assert ended(process)


def test_each_has_its_callers_environment_and_nothing_of_another(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "first")
    assert said(start(tell_of_itself))["SECRET"] == "first"
    monkeypatch.delenv("SECRET")
    assert said(start(tell_of_itself))["SECRET"] is None
    said(start(leave_traces))
    assert said(start(look_for_traces)) == (None, False)


def test_it_stops_when_asked_and_ends_when_killed_or_left(start: Start) -> None:
    process = start(compute)
    process.receive(60)
    with pytest.raises(TimeoutError):
        process.receive(0.2)
    process.send("stop")
    assert process.receive(60) == "asked to stop"
    assert ended(process)

    killed = start(compute)
    number = killed.receive(60)
    killed.kill()
    assert ended(killed)
    killed.kill()  # once more harms nobody
    assert gone(number)

    with start(compute) as left:
        number = left.receive(60)
        left._connection.close()  # as when its caller is killed
        assert gone(number)


def test_a_lock_that_nobody_holds_is_not_waited_for(tmp_path: Path) -> None:
    """As one that was killed leaves it, beside its socket."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "warm.lock").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left, opened(tmp_path / "cache") as short:
        left.bind(short + SOCKET)
    assert said(apart(tmp_path, tell_of_itself))["parent"] == os.getpid()


@pytest.mark.slow
def test_forks_have_the_imports_and_a_new_warm_process_follows_one_that_died(warm_home: Path) -> None:
    first = said(apart(warm_home, tell_of_itself))
    assert first["torch"]
    assert first["parent"] != os.getpid()
    os.kill(first["parent"], signal.SIGKILL)
    cold = said(apart(warm_home, tell_of_itself))
    assert cold == {"parent": os.getpid(), "torch": False, "SECRET": None}
    until = time.monotonic() + 240
    while (again := said(apart(warm_home, tell_of_itself)))["parent"] == os.getpid():
        assert time.monotonic() < until
        time.sleep(0.5)
    assert again["parent"] not in (first["parent"], os.getpid())
    assert again["torch"]


@pytest.mark.slow
def test_a_warm_process_that_does_not_answer_is_done_without(warm_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swapmeet_training.attempts.apart.ANSWERS", 0.3)
    number = said(apart(warm_home, tell_of_itself))["parent"]
    os.kill(number, signal.SIGSTOP)
    try:
        assert said(apart(warm_home, tell_of_itself))["parent"] == os.getpid()
    finally:
        os.kill(number, signal.SIGCONT)
