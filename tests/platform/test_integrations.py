"""Metrics reach other systems in the background, each once told of where that fails, and never harm the job."""

import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import select, update

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import EventRow, JobRow, SinkRow, TenantRow
from swapmeet.database.tables.base import now
from swapmeet.errors import SinkFailed
from swapmeet.integrations import Point, Relay, Run, check_integrations
from swapmeet.integrations.event_files import EventFileSink
from swapmeet.integrations.progress import MOST_EVENTS, Key, Progress
from swapmeet.settings import Settings, load_settings

AT = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)


def add_job(database: Database, id_: str, integrations: list[Any], state: str = "running") -> None:
    named = ("hyperparameters", "lora", "settings", "resources", "plan", "job_metadata")
    filler: dict[str, Any] = {name: {} for name in named}
    row = JobRow(
        id=id_, tenant="acme", created_by="key-1", request_digest=id_, model="tiny", base="tiny", adapter="acme/x",
        training_file="file-1", method="supervised", seed=1, integrations=integrations, state=state, **filler,
    )  # fmt: skip
    database.write(lambda session: session.add(row))


def measure(database: Database, job: str, *steps: int) -> None:
    rows = [
        EventRow(
            id=f"{job}-{step}", job=job, name=f"metrics-{step}", type="metrics", message=f"Step {step}", created_at=AT,
            data={"step": step, "total_steps": 9, "train_loss": step / 4, "valid_loss": None, "note": "x", "ok": True},
        )
        for step in steps
    ]  # fmt: skip
    database.write(lambda session: session.add_all(rows))


def end(database: Database, job: str, state: str = "succeeded", ago: float = 0) -> None:
    values = {"state": state, "finished_at": now() - timedelta(seconds=ago)}
    database.write(lambda session: session.execute(update(JobRow).where(JobRow.id == job).values(values)))


def sinks(database: Database) -> list[SinkRow]:
    return database.read(lambda session: list(session.scalars(select(SinkRow).order_by(SinkRow.job, SinkRow.place))))


def warnings_of(database: Database, job: str) -> list[str]:
    query = select(EventRow.message).where(EventRow.job == job, EventRow.level == "warn")
    return database.read(lambda session: list(session.scalars(query)))


def hurry(database: Database) -> None:
    database.write(lambda session: session.execute(update(SinkRow).values(next_at=now())))


@pytest.fixture
def tenants(database: Database) -> Database:
    database.write(lambda session: session.add(TenantRow(name="acme")))
    return database


class Mlflow:
    """A server with the routes of MLflow's REST API that a sink uses, and its rules: names and tags find things."""

    def __init__(self) -> None:
        self.url = ""
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.failing = 0
        self.hanging = threading.Event()
        self.hanging.set()
        self.authorization: set[str] = set()

    def answer(self, path: str, query: dict[str, list[str]], body: dict[str, Any]) -> tuple[int, Any]:
        match path.removeprefix("/api/2.0/mlflow/"):
            case "experiments/get-by-name":
                name = query["experiment_name"][0]
                if name not in self.experiments:
                    return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
                return 200, {"experiment": {"experiment_id": self.experiments[name], "name": name}}
            case "experiments/create":
                self.experiments[body["name"]] = str(len(self.experiments) + 1)
                return 200, {"experiment_id": self.experiments[body["name"]]}
            case "runs/search":
                job = body["filter"].split("'")[1]
                found = [run for run in self.runs.values() if run["tags"]["swapmeet.job"] == job]
                return 200, {"runs": [{"info": {"run_id": run["id"]}} for run in found]} if found else {}
            case "runs/create":
                run = {"id": f"run-{len(self.runs)}", "metrics": [], "status": "RUNNING"} | body
                run["tags"] = {tag["key"]: tag["value"] for tag in body["tags"]}
                self.runs[run["id"]] = run
                return 200, {"run": {"info": {"run_id": run["id"]}}}
            case "runs/log-batch":
                assert len(body["metrics"]) <= 1000
                self.runs[body["run_id"]]["metrics"] += body["metrics"]
                return 200, {}
            case "runs/update":
                self.runs[body["run_id"]] |= body
                return 200, {}
        return 404, {"error_code": "ENDPOINT_NOT_FOUND"}


@pytest.fixture
def mlflow() -> Iterator[Mlflow]:
    mlflow = Mlflow()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mlflow.hanging.wait(30)
            mlflow.authorization.add(self.headers.get("authorization", ""))
            url = urlsplit(self.path)
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
            status, answer = mlflow.answer(url.path, parse_qs(url.query), body)
            if mlflow.failing:
                mlflow.failing -= 1
                status, answer = 503, {"error_code": "TEMPORARILY_UNAVAILABLE"}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    mlflow.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield mlflow
    mlflow.hanging.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def settings(mlflow: Mlflow, tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path, mlflow=mlflow.url)


TO_MLFLOW = {"type": "mlflow", "mlflow": {"experiment": "dates", "tags": {"team": "x"}}}


def test_a_job_s_metrics_reach_mlflow_once_and_then_its_end(
    tenants: Database, settings: Settings, mlflow: Mlflow
) -> None:
    add_job(tenants, "ftjob-1", [TO_MLFLOW])
    add_job(tenants, "ftjob-2", [])
    measure(tenants, "ftjob-1", 1, 2)
    Relay(tenants, settings, interval=0).run_once()
    (run,) = mlflow.runs.values()
    assert mlflow.experiments == {"acme/dates": "1"}, "a tenant's experiments are its own"
    assert run["run_name"] == "ftjob-1"
    assert run["tags"] == {
        "team": "x", "swapmeet.job": "ftjob-1", "swapmeet.model": "tiny", "swapmeet.adapter": "acme/x",
    }  # fmt: skip
    milliseconds = int(AT.timestamp() * 1000)
    assert run["metrics"] == [
        {"key": "train_loss", "value": step / 4, "timestamp": milliseconds, "step": step} for step in (1, 2)
    ]
    measure(tenants, "ftjob-1", 3)
    end(tenants, "ftjob-1", "failed")
    Relay(tenants, settings, interval=0).run_once()  # another process, as it were
    assert len(mlflow.runs) == 1
    assert [metric["step"] for metric in run["metrics"]] == [1, 2, 3]
    run = mlflow.runs["run-0"]
    assert run["status"] == "FAILED"
    assert abs(run["end_time"] / 1000 - time.time()) < 60
    (sink,) = sinks(tenants)
    assert sink.closed_at is not None
    Relay(tenants, settings, interval=0).run_once()
    assert [metric["step"] for metric in mlflow.runs["run-0"]["metrics"]] == [1, 2, 3]
    assert warnings_of(tenants, "ftjob-1") == []


def test_many_metrics_go_in_batches(tenants: Database, settings: Settings, mlflow: Mlflow) -> None:
    add_job(tenants, "ftjob-1", [TO_MLFLOW])
    steps = range(MOST_EVENTS + 20)
    measure(tenants, "ftjob-1", *steps)
    end(tenants, "ftjob-1")
    relay = Relay(tenants, settings, interval=0)
    relay.run_once()
    assert mlflow.runs["run-0"]["status"] == "RUNNING"
    relay.run_once()
    assert [metric["step"] for metric in mlflow.runs["run-0"]["metrics"]] == list(steps)
    assert mlflow.runs["run-0"]["status"] == "FINISHED"


def test_a_failure_is_told_once_and_made_up_for(tenants: Database, settings: Settings, mlflow: Mlflow) -> None:
    add_job(tenants, "ftjob-1", [TO_MLFLOW, {"type": "tensorboard"}])
    measure(tenants, "ftjob-1", 1)
    mlflow.failing = 3
    relay = Relay(tenants, settings, interval=0)
    for _ in range(3):
        relay.run_once()
        hurry(tenants)
    assert warnings_of(tenants, "ftjob-1") == [
        "Metrics can not be sent to mlflow: the MLflow server answered 503 (TEMPORARILY_UNAVAILABLE). The job goes on;"
        " they are sent when it takes them again."
    ]
    assert [sink.failures for sink in sinks(tenants)] == [3, 0], "and the other sink has what it should"
    end(tenants, "ftjob-1")
    relay.run_once()
    assert [metric["step"] for metric in mlflow.runs["run-0"]["metrics"]] == [1]
    assert mlflow.runs["run-0"]["status"] == "FINISHED"
    assert all(sink.closed_at for sink in sinks(tenants))
    assert len(warnings_of(tenants, "ftjob-1")) == 1


def test_pauses_grow_and_an_hour_after_the_end_it_is_given_up(
    tenants: Database, settings: Settings, mlflow: Mlflow
) -> None:
    mlflow.failing = 100
    add_job(tenants, "ftjob-1", [TO_MLFLOW])
    pauses = []
    for _ in range(9):
        hurry(tenants)
        Relay(tenants, settings, interval=0).run_once()
        (sink,) = sinks(tenants)
        pauses.append(round((sink.next_at - now()).total_seconds() / 5))
    assert pauses[:4] == [1, 2, 4, 8]
    assert pauses[-1] == 60
    end(tenants, "ftjob-1", ago=3590)
    hurry(tenants)
    Relay(tenants, settings, interval=0).run_once()
    assert sinks(tenants)[0].closed_at is None
    end(tenants, "ftjob-1", ago=3601)
    hurry(tenants)
    Relay(tenants, settings, interval=0).run_once()
    assert sinks(tenants)[0].closed_at is not None


def test_one_that_hangs_holds_up_no_other(tenants: Database, settings: Settings, mlflow: Mlflow) -> None:
    mlflow.hanging.clear()
    add_job(tenants, "ftjob-1", [TO_MLFLOW])
    add_job(tenants, "ftjob-2", [{"type": "tensorboard"}])
    measure(tenants, "ftjob-2", 1)
    stop = threading.Event()
    thread = threading.Thread(target=Relay(tenants, settings, interval=0).serve, args=(stop,))
    thread.start()
    until = time.monotonic() + 60
    while not [sink for sink in sinks(tenants) if sink.sent]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not mlflow.hanging.is_set()
    mlflow.hanging.set()
    stop.set()
    thread.join()


def test_two_relays_do_not_send_one_job_s_metrics_both(tenants: Database, settings: Settings, mlflow: Mlflow) -> None:
    for number in range(6):
        add_job(tenants, f"ftjob-{number}", [TO_MLFLOW])
        measure(tenants, f"ftjob-{number}", *range(10))
        end(tenants, f"ftjob-{number}")
    stop = threading.Event()
    relays = [Relay(Database(tenants.url), settings, interval=0) for _ in range(3)]
    threads = [threading.Thread(target=relay.serve, args=(stop,)) for relay in relays]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while not (sinks(tenants) and all(sink.closed_at for sink in sinks(tenants))):
        assert time.monotonic() < until
        time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(mlflow.runs) == 6
    for run in mlflow.runs.values():
        assert [metric["step"] for metric in run["metrics"]] == list(range(10))
    for relay in relays:
        relay._progress._database.close()


def test_a_sink_is_one_relay_s_until_that_lets_go(tenants: Database) -> None:
    add_job(tenants, "ftjob-1", [TO_MLFLOW])
    one, two = Progress(tenants, "one"), Progress(tenants, "two")
    one.attach()
    two.attach()
    key = Key("ftjob-1", 0)
    assert one.claim(key, now()) is not None
    assert two.due() == []
    assert two.claim(key, now()) is None
    assert one.claim(key, now()) is not None, "its own it may go on with"
    over = update(SinkRow).values(claimed_until=now() - timedelta(seconds=1))
    tenants.write(lambda session: session.execute(over))
    one.renew()
    assert two.claim(key, now()) is None, "one that lives keeps what it has"
    one.let_go()
    assert two.claim(key, now()) is not None
    one.renew()
    tenants.write(lambda session: session.execute(over))
    assert one.claim(key, now()) is not None, "and one that died is followed by another"


def test_an_error_of_any_kind_is_the_sink_s_alone(tenants: Database, settings: Settings) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("key sm-secret")

    add_job(tenants, "ftjob-1", [TO_MLFLOW])
    Relay(tenants, settings, interval=0, opening=broken).run_once()
    (warning,) = warnings_of(tenants, "ftjob-1")
    assert "RuntimeError" in warning
    assert "sm-secret" not in warning, "a stranger's text may hold anything"


def read_events(path: Path) -> list[Any]:
    """Events, read by other people's classes and checksums."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def checked(data: bytes, sum_: int) -> bytes:
        crc = crc32c(data)
        assert ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF == sum_
        return data

    found, data = [], path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", checked(data[:8], *struct.unpack("<I", data[8:12])))
        message = checked(data[12 : 12 + length], *struct.unpack("<I", data[12 + length : 16 + length]))
        found.append(Event.FromString(message))
        data = data[16 + length :]
    return found


def test_event_files_are_what_tensorboard_reads(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    points = [Point(1, AT, {"train_loss": 0.5, "ä": -1e30}), Point(300_000_000_000, AT, {"train_loss": 3.25})]
    first = EventFileSink(tmp_path / "run")
    first.log(points[:1])
    first.close()
    second = EventFileSink(tmp_path / "run")
    second.log(points[1:])
    second.end("succeeded", AT)
    second.close()
    files = sorted((tmp_path / "run").iterdir())
    assert len(files) == 2
    assert all("tfevents" in path.name for path in files)
    for path, point in zip(files, points, strict=True):
        version, event = read_events(path)
        assert version.file_version == "brain.Event:2"
        assert (event.step, event.wall_time) == (point.step, AT.timestamp())
        values = {value.tag: value.simple_value for value in event.summary.value}
        assert values == pytest.approx(dict(point.values))


def test_a_job_s_metrics_reach_a_folder_of_its_own(tenants: Database, settings: Settings, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    add_job(tenants, "ftjob-1", [{"type": "tensorboard"}])
    measure(tenants, "ftjob-1", 1, 2)
    end(tenants, "ftjob-1")
    Relay(tenants, settings, interval=0).run_once()
    (path,) = (tmp_path / "tensorboard" / "acme" / "ftjob-1").iterdir()
    _, *events = read_events(path)
    assert [(event.step, event.summary.value[0].simple_value) for event in events] == [(1, 0.25), (2, 0.5)]


WANDB = {"type": "wandb", "wandb": {"project": "p", "tags": ["a"]}}
MISTAKES: list[tuple[list[Any], list[str]]] = [
    ([{"type": "comet"}], ["integrations.0: its type must be"]),
    ([{}], ["integrations.0: its type must be"]),
    ([{"type": "wandb"}], ["integrations.0.wandb: Field required"]),
    ([{"type": "wandb", "wandb": {}}], ["integrations.0.wandb.project: Field required"]),
    ([{"type": "wandb", "wandb": {"project": "p", "key": "k"}}], ["integrations.0.wandb.key: this parameter"]),
    (
        [{"type": "mlflow", "mlflow": {"url": "x"}}, {"type": "tensorboard", "tensorboard": {"folder": "/etc"}}, 7],
        ["integrations.0.mlflow.url", "integrations.1.tensorboard.folder", "integrations.2"],
    ),
    ([{"type": "tensorboard"}] * 6, ["integrations: List should have at most 5 items"]),
    ([{"type": "wandb", "wandb": {"project": "a\0"}}], ["integrations.0.wandb.project"]),
]  # fmt: skip


@pytest.mark.parametrize(("integrations", "words"), MISTAKES)
def test_all_mistakes_are_told_at_once(integrations: list[Any], words: list[str], tmp_path: Path) -> None:
    told = check_integrations(integrations, load_settings(home=tmp_path))
    assert len(told) == len(words)
    assert all(one.startswith(word) for one, word in zip(told, words, strict=True)), told


def test_what_the_server_lacks_is_said_when_the_job_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = load_settings(home=tmp_path)
    told = check_integrations([{"type": "tensorboard"}, {"type": "mlflow"}, WANDB], bare)
    assert len(told) == 2
    assert told[0].startswith("integrations.1: this server knows no MLflow server")
    assert told[1].startswith("integrations.2: the package wandb is not installed on this server")
    assert check_integrations([{"type": "mlflow"}], load_settings(home=tmp_path, mlflow="http://x")) == []
    (tmp_path / "wandb.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (told_,) = check_integrations([WANDB], bare)
    assert "WANDB_API_KEY" in told_
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert check_integrations([WANDB], bare) == []


STAND_IN = """
import json, pathlib
class Settings(dict):
    pass
class Run:
    def __init__(self, options):
        self.log_ = pathlib.Path(options["dir"]) / (options["id"] + ".jsonl")
        self.note("init", {k: v for k, v in options.items() if k != "dir"})
    def note(self, what, value):
        with self.log_.open("a") as file:
            file.write(json.dumps([what, value]) + "\\n")
    def log(self, values, step): self.note("log", [step, values])
    def finish(self, exit_code): self.note("finish", exit_code)
    def mark_preempting(self): self.note("preempting", None)
def init(**options):
    if options["project"] == "refused":
        raise OSError("permission denied for key abc123")
    return Run(options)
"""


@pytest.fixture
def forget_wandb() -> Iterator[None]:
    yield
    sys.modules.pop("wandb", None)


def test_weights_and_biases_is_called_as_its_package_wants(
    tenants: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget_wandb: None
) -> None:
    """Over a stand-in for the package that writes down how it is called."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    add_job(tenants, "ftjob-1", [WANDB])
    add_job(tenants, "ftjob-2", [{"type": "wandb", "wandb": {"project": "refused"}}])
    measure(tenants, "ftjob-1", 1)
    Relay(tenants, settings, interval=0).run_once()
    measure(tenants, "ftjob-1", 2)
    end(tenants, "ftjob-1")
    Relay(tenants, settings, interval=0).run_once()
    called = [json.loads(line) for line in (tmp_path / "wandb" / "ftjob-1.jsonl").read_text().splitlines()]
    assert [what for what, _ in called] == ["init", "log", "preempting", "finish", "init", "log", "finish"]
    options = called[0][1]
    assert (options["project"], options["tags"], options["resume"]) == ("p", ["a"], "allow")
    moment = {"_timestamp": AT.timestamp()}
    assert called[1][1] == [1, {"train_loss": 0.25} | moment]
    assert called[-2:] == [["log", [2, {"train_loss": 0.5} | moment]], ["finish", 0]]
    (warning,) = warnings_of(tenants, "ftjob-2")
    assert "wandb failed (OSError)" in warning
    assert "abc123" not in warning


REAL = """
import sys
from pathlib import Path
from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.integrations import Relay
from swapmeet.settings import load_settings
Relay(Database(sys.argv[1]), load_settings(home=Path(sys.argv[2])), interval=0).run_once()
"""


def wandb_records(path: Path) -> Iterator[tuple[str, Any]]:
    """What the package wrote down to be sent: kinds and records, in LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record.FromString(whole)
            name = record.WhichOneof("record_type")
            yield name, getattr(record, name)
            whole = b""


@pytest.mark.slow
def test_the_real_package_of_weights_and_biases_takes_it(tmp_path: Path) -> None:
    """In its offline mode, in a process of its own as in a server's: two relays, the second of which ends the run."""
    pytest.importorskip("wandb", reason="pip install 'swapmeet[wandb]' tests Weights & Biases' own package")
    database = Database(f"sqlite:///{tmp_path}/swapmeet.db")
    upgrade(database)
    database.write(lambda session: session.add(TenantRow(name="acme")))
    add_job(database, "ftjob-1", [WANDB])
    measure(database, "ftjob-1", 1, 2)
    clean = {"WANDB_MODE": "offline", "WANDB_API_KEY": "hush" * 10, "SWAPMEET_HOME": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", REAL, database.url, str(tmp_path)]
    for step in (3, None):
        done = subprocess.run(command, env=os.environ | clean, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        if step is not None:
            measure(database, "ftjob-1", step)
            end(database, "ftjob-1")
    assert warnings_of(database, "ftjob-1") == []
    (sink,) = sinks(database)
    assert sink.closed_at is not None
    database.close()

    written = sorted(tmp_path.glob("wandb/wandb/offline-run-*/*.wandb"))
    assert [path.name for path in written] == ["run-ftjob-1.wandb"] * 2
    first, second = (list(wandb_records(path)) for path in written)
    run = dict(first)["run"]
    config = {each.key: json.loads(each.value_json) for each in run.config.update if each.key != "_wandb"}
    assert config == {"job": "ftjob-1", "model": "tiny", "adapter": "acme/x"}
    assert (run.run_id, run.project, list(run.tags), run.host) == ("ftjob-1", "p", ["a"], "swapmeet")
    history = [
        (record.step.num, {item.nested_key[0]: json.loads(item.value_json) for item in record.item})
        for kind, record in [*first, *second]
        if kind == "history"
    ]
    assert [step for step, _ in history] == [1, 2, 3]
    assert [values["train_loss"] for _, values in history] == [0.25, 0.5, 0.75]
    assert {values["_timestamp"] for _, values in history} == {AT.timestamp()}
    assert [kind for kind, _ in first if kind in ("preempting", "exit")] == ["preempting", "exit"]
    assert (dict(first)["exit"].exit_code, dict(second)["exit"].exit_code) == (1, 0)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in kept if b"hushhush" in path.read_bytes()]
    assert not [path for path in kept if path.name in ("requirements.txt", "wandb-metadata.json")]


@pytest.mark.parametrize("way", ["url", "variables", "token"])
def test_credentials_are_sent_and_not_logged(
    way: str, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from swapmeet.integrations.mlflow_server import MlflowSink
    from swapmeet.integrations.request import Mlflow as Wanted

    caplog.set_level("DEBUG")
    url = mlflow.url.replace("//", "//ana:hunter2@") if way == "url" else mlflow.url
    if way == "variables":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ana")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    if way == "token":
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
    MlflowSink(url, Wanted(), Run("ftjob-1", "acme", "tiny", "acme/x", AT)).close()
    assert mlflow.authorization == {"Bearer hunter2" if way == "token" else "Basic YW5hOmh1bnRlcjI="}
    assert "hunter2" not in caplog.text


FAILING: list[Callable[[], object]] = [
    lambda: _open("http://127.0.0.1:9"),
    lambda: _open("http://ana:hunter2@127.0.0.1:9"),
    lambda: _open("http://[::1"),
]


def _open(url: str) -> object:
    from swapmeet.integrations.mlflow_server import MlflowSink
    from swapmeet.integrations.request import Mlflow as Wanted

    return MlflowSink(url, Wanted(), Run("ftjob-1", "acme", "tiny", "acme/x", AT))


@pytest.mark.parametrize("work", FAILING)
def test_a_server_that_is_not_there_is_said_so(work: Callable[[], object]) -> None:
    with pytest.raises(SinkFailed) as caught:
        work()
    assert "hunter2" not in str(caught.value)
