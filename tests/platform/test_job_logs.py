"""What attempts wrote down, over the real API, by client and command line; also while they write."""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from swapmeet import following
from swapmeet.cli import main
from swapmeet.client import Client
from swapmeet.database import Database
from swapmeet.database.tables import JobRow
from swapmeet.errors import ApiError
from swapmeet_training.attempts import log as logs

JOB = "ftjob-logged"
Lines = Callable[..., None]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LINES", 4)
    monkeypatch.setattr(following, "POLL_SECONDS", 0.02)


@pytest.fixture
def change(database: Database, tuning_server: Any) -> Callable[..., None]:
    """Change the job, which is there and runs its second attempt."""
    named = ("hyperparameters", "lora", "settings", "resources", "plan", "job_metadata")
    filler: dict[str, Any] = {name: {} for name in named}
    row = JobRow(
        id=JOB, tenant="acme", created_by="key-1", request_digest="x", model="tiny", base="tiny", adapter="acme/x",
        training_file="file-1", method="supervised", seed=1, integrations=[], state="running", attempt=2, **filler,
    )  # fmt: skip
    database.write(lambda session: session.add(row))

    def change(**values: Any) -> None:
        def note(session: Any) -> None:
            for name, value in values.items():
                setattr(session.get_one(JobRow, JOB), name, value)

        database.write(note)

    return change


@pytest.fixture
def write(tuning_server: Any) -> Lines:
    """Write an attempt's log anew, as its worker does."""

    def write(attempt: int, *lines: str) -> None:
        for start in range(0, len(lines), 4):
            data = "".join(f"{line}\n" for line in lines[start : start + 4]).encode()
            key = f"runs/{JOB}/{attempt}/log/{start // 4 + 1:06d}.txt"
            tuning_server.tuning.store.put(key, data, hashlib.sha256(data).hexdigest())

    return write


@pytest.fixture
def client(tuning_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SWAPMEET_URL", tuning_server.url)
    monkeypatch.setenv("SWAPMEET_API_KEY", tuning_server.key_of("acme"))
    with Client() as client:
        yield client


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def run(client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["swapmeet", "jobs", "logs", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


def test_logs_are_read_by_attempt_and_in_parts(
    change: Callable[..., None], write: Lines, client: Client, run: Callable[..., Done]
) -> None:
    assert client.log(JOB) == "--- attempt 1 ---\n--- attempt 2 ---\n", "nothing is written yet"
    write(1, *(f"one {number}" for number in range(10)))
    write(2, "two 0 \u00e4\u2028x", "two 1")
    whole = [
        "--- attempt 1 ---",
        *(f"one {n}" for n in range(10)),
        "--- attempt 2 ---",
        "two 0 \u00e4\u2028x",
        "two 1",
        "",
    ]
    assert client.log(JOB) == "\n".join(whole)
    assert client.log(JOB, 1, 3) == "one 7\none 8\none 9\n"
    assert client.log(JOB, 1, 0) == ""
    assert client.log(JOB, tail=1) == "--- attempt 1 ---\none 9\n--- attempt 2 ---\ntwo 1\n"
    path = f"/v1/fine_tuning/jobs/{JOB}/logs"
    answer = client.answered(path, {"attempt": 1, "skip": 8, "tail": 100})
    assert (answer.text, answer.headers["x-swapmeet-first-line"]) == ("one 8\none 9\n", "8")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.answered(path, {"attempt": 1, "skip": 10**9}).text == ""
    with pytest.raises(ApiError, match="attempt is 3, and the job has had 2"):
        client.log(JOB, 3)
    for wrong in ({"attempt": 0}, {"tail": -1}, {"skip": "x"}, {"attempt": 1 << 80}):
        with pytest.raises(ApiError) as refused:
            client.text(path, wrong)
        assert refused.value.status == 400

    assert run(JOB).out.splitlines() == [line.replace("\u2028", " ") for line in whole[:-1]]
    assert run(JOB, "--attempt", 2, "--tail", 1).out == "two 1\n"
    assert json.loads(run(JOB, "--tail", 1, "--json").out) == {
        "logs": [{"attempt": 1, "lines": ["one 9"]}, {"attempt": 2, "lines": ["two 1"]}]
    }
    assert json.loads(run(JOB, "--attempt", 1, "--tail", 2, "--json").out)["logs"][0]["lines"] == ["one 8", "one 9"]
    done = run(JOB, "--attempt", 3)
    assert (done.code, done.out) == (1, "")
    assert "has had 2" in done.err
    assert run(JOB, "--attempt", 0).code == 2
    assert run(JOB, "--attempt", 1, "--follow").code == 2
    change(attempt=0)
    done = run(JOB)
    assert (done.code, done.out) == (0, "")
    assert "jobs events" in done.err
    assert json.loads(run(JOB, "--json").out) == {"logs": []}


def test_another_tenant_finds_nothing(
    change: Callable[..., None], write: Lines, tuning_server: Any, client: Client
) -> None:
    write(1, "secret")
    with Client(tuning_server.url, tuning_server.key_of("beta")) as other:
        for job in (JOB, "ftjob-none"):
            with pytest.raises(ApiError) as refused:
                other.log(job)
            assert (refused.value.status, str(refused.value)) == (
                404, f"There is no fine-tuning job {job}. Check its id.",
            )  # fmt: skip


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("failed", 1)])
def test_a_log_is_followed_through_all_attempts(
    status: str, code: int, change: Callable[..., None], write: Lines, run: Callable[..., Done]
) -> None:
    write(1, *(f"one {number}" for number in range(6)))
    write(2, "two 0", "two 1")

    def work() -> None:
        for count in range(3, 7):
            time.sleep(0.1)
            write(2, *(f"two {number}" for number in range(count)))
        change(attempt=3)
        time.sleep(0.1)
        write(3, *(f"three {number}" for number in range(5)))
        change(attempt=4)
        write(4, "four")
        change(state=status)

    thread = threading.Thread(target=work)
    thread.start()
    done = run(JOB, "--follow")
    thread.join()
    lines = [line for line in done.out.splitlines() if not line.startswith("---")]
    assert lines == [
        *(f"one {n}" for n in range(6)),
        *(f"two {n}" for n in range(6)),
        *(f"three {n}" for n in range(5)),
        "four",
    ]
    assert done.code == code
    assert [line for line in done.out.splitlines() if line.startswith("---")] == [
        f"--- attempt {number} ---" for number in (1, 2, 3, 4)
    ]
    told = [json.loads(line) for line in run(JOB, "--follow", "--json").out.splitlines()]
    assert len(told) == 6 + 6 + 5 + 1
    assert told[-1] == {"attempt": 4, "line": "four"}
    lines = [line for line in run(JOB, "--follow", "--tail", 2).out.splitlines() if not line.startswith("---")]
    assert lines == ["one 4", "one 5", "two 4", "two 5", "three 3", "three 4", "four"]
