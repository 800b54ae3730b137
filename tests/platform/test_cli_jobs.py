"""`swapmeet jobs` and `swapmeet webhook` over real connections to a server that answers in the documented shapes."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from swapmeet import following
from swapmeet.cli.tables import duration, table
from swapmeet.gateway.listener import event_loop, listening

ESCAPE = "\x1b[2J"


Run = Callable[..., Any]


def job(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"ftjob-{number}", "object": "fine_tuning.job", "created_at": 1767225600 + number,
        "model": "smollm2-135m", "organization_id": "acme", "training_file": "file-1", "validation_file": None,
        "result_files": [],
        "hyperparameters": {}, "seed": 1, "status": "queued", "fine_tuned_model": None, "finished_at": None,
        "trained_tokens": None, "error": None, "estimated_finish": None, "metadata": {}, "step": 0,
        "total_steps": None, "waits_for": None,
    } | changes  # fmt: skip


def event(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"ftevent-{number}", "object": "fine_tuning.job.event", "created_at": 1767225600 + number,
        "level": "info", "message": f"Step {number}/9", "type": "message", "data": {},
    } | changes  # fmt: skip


@dataclass
class Service:
    """Jobs and events, oldest first, and what was asked."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    failing: int = 0

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def note(request: Request, answer: Any) -> Any:
            self.asked.append(f"{request.method} {request.url.path}?{request.url.query}")
            if self.failing:
                self.failing -= 1
                return JSONResponse({"error": {"message": "Busy.", "code": "overloaded"}}, 503)
            return await answer(request)

        @app.get("/v1/fine_tuning/jobs")
        def list_(request: Request, limit: int = 20, after: str | None = None) -> Any:
            wanted = {k[9:-1]: v for k, v in request.query_params.items() if k.startswith("metadata[")}
            rows = [each for each in self.jobs.values() if wanted.items() <= each["metadata"].items()]
            return self.page(rows[::-1], limit, after)

        @app.get("/v1/fine_tuning/jobs/{id_}")
        def get(id_: str) -> Any:
            return self.jobs.get(id_) or self.missing(id_)

        @app.post("/v1/fine_tuning/jobs/{id_}/{how}")
        def change(id_: str, how: str) -> Any:
            status = {"cancel": "cancelled", "pause": "paused", "resume": "queued"}[how]
            if id_ not in self.jobs:
                return self.missing(id_)
            self.jobs[id_]["status"] = status
            return self.jobs[id_]

        @app.get("/v1/fine_tuning/jobs/{id_}/events")
        def events(id_: str, limit: int = 20, after: str | None = None) -> Any:
            return self.page(self.events[id_][::-1], limit, after) if id_ in self.events else self.missing(id_)

        return app

    @staticmethod
    def page(rows: list[dict[str, Any]], limit: int, after: str | None) -> dict[str, Any]:
        start = [row["id"] for row in rows].index(after) + 1 if after else 0
        return {"object": "list", "data": rows[start : start + limit], "has_more": len(rows) > start + limit}

    @staticmethod
    def missing(id_: str) -> JSONResponse:
        return JSONResponse({"error": {"message": f"There is no job {id_}.", "code": "job_not_found"}}, 404)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def service(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("SWAPMEET_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("SWAPMEET_API_KEY", "sm-test")
    monkeypatch.setattr(following, "POLL_SECONDS", 0.02)
    service = Service()
    with event_loop() as loop, listening(service.app(), loop, "127.0.0.1", port, drain=1):
        yield service


@pytest.fixture
def run(command_line: Run) -> Run:
    return command_line


def test_jobs_are_listed_page_by_page(run: Run, service: Service) -> None:
    for number in range(250):
        service.jobs[f"ftjob-{number}"] = job(number, metadata={"team": "x" if number % 2 else "y"})
    found = json.loads(run("jobs", "list", "--limit", 230, "--json").out)["jobs"]
    assert [each["id"] for each in found] == [f"ftjob-{number}" for number in range(249, 19, -1)]
    lines = run("jobs", "list", "--limit", 3, "--metadata", "team=x").out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["ftjob-249", "ftjob-247", "ftjob-245"]
    assert lines[0].split("\t") == ["ftjob-249", "queued", "", "smollm2-135m", "", "2026-01-01 00:04:09Z"]
    assert len(run("jobs", "list", "--after", "ftjob-3").out.splitlines()) == 3
    assert run("jobs", "list", "--metadata", "team").code == 2
    assert run("jobs", "list", "--limit", 0).code == 2


def test_a_job_is_shown_with_why_it_waits(run: Run, service: Service) -> None:
    reason = "Two jobs of yours run, as many as your quota allows. About 12 minutes."
    service.jobs["ftjob-1"] = job(1, waits_for=reason, metadata={"team": "x"}, step=0, total_steps=30)
    shown = run("jobs", "show", "ftjob-1")
    assert shown.code == 0
    lines = {line.split("  ")[0]: line.partition("  ")[2].strip() for line in shown.out.splitlines()}
    assert lines["waits for"] == reason
    assert lines["step"] == "0 of 30"
    assert lines["metadata"] == "team=x"
    assert "result" not in lines
    assert json.loads(run("jobs", "show", "ftjob-1", "--json").out) == service.jobs["ftjob-1"]
    service.jobs["ftjob-1"] = job(1, status="running", step=3, estimated_finish=int(time.time()) + 7250)
    shown = run("jobs", "show", "ftjob-1")
    assert "(in about 2.0 h)" in shown.out
    error = {"code": "invalid_file", "message": f"Line 3{ESCAPE} has no role.", "param": "training_file"}
    service.jobs["ftjob-1"] = job(1, status="failed", error=error)
    shown = run("jobs", "show", "ftjob-1")
    assert "Line 3 [2J has no role." in shown.out
    assert ESCAPE not in shown.out, "a job's data do not move the terminal's cursor"


def test_jobs_are_cancelled_paused_and_resumed(run: Run, service: Service) -> None:
    service.jobs["ftjob-1"] = job(1)
    assert run("jobs", "pause", "ftjob-1").out == "ftjob-1 is paused\n"
    assert run("jobs", "resume", "ftjob-1").out == "ftjob-1 is queued\n"
    assert json.loads(run("jobs", "cancel", "ftjob-1", "--json").out)["status"] == "cancelled"
    assert service.asked[-1] == "POST /v1/fine_tuning/jobs/ftjob-1/cancel?"


@pytest.mark.parametrize("command", ["show", "events", "logs", "cancel", "pause", "resume"])
@pytest.mark.parametrize("id_", ["ftjob-9", "../files", "a/b", "ä ?#%"])
def test_what_is_not_there_is_said_so(command: str, id_: str, run: Run, service: Service) -> None:
    done = run("jobs", command, id_)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("swapmeet: ")
    assert all("/v1/fine_tuning/jobs/" in each for each in service.asked), "an id is one part of a path"


def test_events_are_told_oldest_first(run: Run, service: Service) -> None:
    data = {"step": 7, "train_loss": 1.23456, "valid_loss": None, "full_valid_loss": 2}
    service.jobs["ftjob-1"] = job(1)
    service.events["ftjob-1"] = [event(n) for n in range(240)]
    service.events["ftjob-1"].append(event(240, type="metrics", data=data, level="warn"))
    lines = run("jobs", "events", "ftjob-1", "--limit", 2).out.splitlines()
    assert lines == ["2026-01-01 00:03:59Z\tinfo\tStep 239/9", "2026-01-01 00:04:00Z\twarn\tStep 240/9"]
    found = json.loads(run("jobs", "events", "ftjob-1", "--limit", 220, "--json").out)["events"]
    assert [each["id"] for each in found] == [f"ftevent-{n}" for n in range(21, 241)]


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_a_job_is_followed_to_its_end(status: str, code: int, run: Run, service: Service) -> None:
    service.jobs["ftjob-1"] = job(1, status="running")
    service.events["ftjob-1"] = [event(n) for n in range(150)]

    def work() -> None:
        for n in range(150, 160):
            time.sleep(0.02)
            service.events["ftjob-1"].append(event(n))
            if n == 154:
                service.failing = 3
        service.events["ftjob-1"].insert(158, event(999))  # one that was told at once with others, and appears late
        time.sleep(0.1)
        service.events["ftjob-1"].append(event(160, message="The end"))
        service.jobs["ftjob-1"] |= {"status": status}

    thread = threading.Thread(target=work)
    thread.start()
    done = run("jobs", "events", "ftjob-1", "--follow", "--json")
    thread.join()
    ids = [json.loads(line)["id"] for line in done.out.splitlines()]
    assert sorted(ids) == sorted([f"ftevent-{n}" for n in [*range(161), 999]]), "each once"
    assert ids[-1] == "ftevent-160"
    assert done.code == code
    assert done.err.count("Busy.") == 1


def test_a_server_that_restarts_is_waited_for(port: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAPMEET_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("SWAPMEET_API_KEY", "sm-test")
    monkeypatch.setattr(following, "POLL_SECONDS", 0.02)
    service = Service({"ftjob-1": job(1, status="running")}, {"ftjob-1": [event(1)]})

    def serve() -> None:
        with event_loop() as loop:
            with listening(service.app(), loop, "127.0.0.1", port, drain=1):
                while len(service.asked) < 6:
                    time.sleep(0.01)
            time.sleep(0.3)
            service.events["ftjob-1"].append(event(2))
            service.jobs["ftjob-1"]["status"] = "succeeded"
            with listening(service.app(), loop, "127.0.0.1", port, drain=1):
                done.wait(20)

    done = threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    followed = run("jobs", "events", "ftjob-1", "--follow")
    done.set()
    thread.join()
    assert followed.code == 0
    assert [line.split()[-1] for line in followed.out.splitlines()] == ["1/9", "2/9"]
    assert followed.err.count("does not answer") == 1


def test_one_that_stays_away_is_given_up(port: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAPMEET_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("SWAPMEET_API_KEY", "sm-test")
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.1)
    done = run("jobs", "events", "ftjob-1", "--follow")
    assert done.code == 1
    assert "does not answer" in done.err.splitlines()[-1]


@pytest.mark.slow
def test_a_terminal_gets_columns_with_headings(service: Service) -> None:
    service.jobs |= {"ftjob-1": job(1), "ftjob-23": job(23, status="running", step=3, total_steps=30)}
    inside, outside = os.openpty()
    command = [sys.executable, "-m", "swapmeet", "jobs", "list"]
    subprocess.run(command, stdout=outside, check=True)
    os.close(outside)
    shown = os.read(inside, 10_000).decode().splitlines()
    os.close(inside)
    assert shown[0].split() == ["ID", "STATUS", "STEP", "MODEL", "RESULT", "CREATED"]
    assert shown[1].startswith("ftjob-23  running  3 of 30  smollm2-135m")
    assert shown[2].startswith("ftjob-1   queued            smollm2-135m")


def test_a_table_keeps_to_its_lines() -> None:
    rows = [("a\tb\nc", None), (1, "\x1b[31m")]
    assert table(("x", "y"), rows, terminal=False) == "a b c\t\n1\t [31m"
    assert table(("x", "y"), rows, terminal=True) == "X      Y\na b c\n1       [31m"
    assert table(("x", "y"), [], terminal=False) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (0.4, "0 s"), (59, "59 s"), (90, "1.5 min"), (3599, "60 min"), (5400, "1.5 h"), (864000, "10 d")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "arguments",
    [
        *(["jobs", command, ""] for command in ("show", "events", "logs", "cancel", "pause", "resume")),
        ["tenant", "show", " "],
        ["key", "revoke", ""],
        ["usage", "--csv", "--json"],
        ["jobs", "logs", "ftjob-1", "--tail", "-1"],
    ],
)
def test_wrong_usage_asks_no_server(arguments: list[str], run: Run, service: Service) -> None:
    done = run(*arguments)
    assert (done.code, done.out, service.asked) == (2, "", [])


def test_without_a_server_it_is_said_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SWAPMEET_URL", "SWAPMEET_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    done = run("jobs", "list")
    assert done.code == 1
    assert "SWAPMEET_URL" in done.err
