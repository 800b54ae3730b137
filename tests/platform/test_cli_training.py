"""`swapmeet train` and `plan` against a server that listens on loopback."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from swapmeet import Client, following, uploading
from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import FileRow, JobRow, SweepRow, SweepRunRow, TenantRow
from swapmeet.errors import ApiError
from swapmeet.gateway.app import create_app
from swapmeet.gateway.listener import event_loop, listening
from swapmeet.gateway.services import Services
from swapmeet.gateway.tuning import Tuning, build_tuning, tended
from swapmeet.jobs import Jobs
from swapmeet.jobs.events import tell
from swapmeet.settings import load_settings
from swapmeet.tenancy import Tenancy
from swapmeet_registry import Fingerprint, Registry
from swapmeet_registry.bases import BaseLibrary

DIGEST = "sha256:" + "0" * 64
FORM = '{{"messages": [{{"role": "user", "content": "{}"}}, {{"role": "assistant", "content": "x"}}]}}\n'


Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.05)
    monkeypatch.setattr("swapmeet.client.CHECK_SECONDS", 0.05)
    monkeypatch.setenv("SWAPMEET_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def run(command_line: Run) -> Run:
    return command_line


@pytest.fixture
def server(tuning_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SWAPMEET_URL", tuning_server.url)
    monkeypatch.setenv("SWAPMEET_API_KEY", tuning_server.key_of("acme"))
    return tuning_server


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "dates.jsonl"
    path.write_text("".join(FORM.format(number) for number in range(24)))
    return path


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "held-out.jsonl"
    path.write_text("".join(FORM.format(f"h{number}") for number in range(4)))
    return path


def rows(tuning: Tuning, table: Any) -> list[Any]:
    return tuning.files.database.read(lambda session: list(session.query(table)))


def jobs(server: Any) -> list[JobRow]:
    return rows(server.tuning, JobRow)


def files(server: Any) -> list[FileRow]:
    return [row for row in rows(server.tuning, FileRow) if row.deleted_at is None]


def end_soon(tuning: Tuning, state: str, **fields: Any) -> threading.Thread:
    """Tell events of the first job that there will be, and end it."""

    def work() -> None:
        until = time.monotonic() + 20
        while not (found := rows(tuning, JobRow)) and time.monotonic() < until:
            time.sleep(0.02)

        def write(session: Any) -> None:
            row = session.get(JobRow, found[0].id)
            tell(session, row.id, "step-1", "Step 1/9", type="metrics", data={"step": 1, "train_loss": 0.5})
            for name, value in {"state": state, **fields}.items():
                setattr(row, name, value)

        tuning.files.database.write(write)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_run_is_submitted_with_its_options(run: Run, server: Any, data: Path, held_out: Path) -> None:
    options = ["--rank", 8, "--alpha", 4, "--epochs", 2, "--batch-size", 2, "--gradient-accumulation", 3, "--seed", 0]
    options += ["--learning-rate", 1e-3, "--target", "q_proj", "--tag", "dates", "--cpus", 0.5, "--priority", 4]
    options += [
        "--metadata",
        "team=x",
        "--early-stopping",
        2,
        "--examples",
        2,
        "--show-examples",
        "--dora",
        "--no-gradient-checkpointing",
    ]
    done = run("train", data, "--base", "tiny", "--name", "acme/dates", "--validation", held_out, *options)
    (job,) = jobs(server)
    assert (done.code, done.out) == (0, f"{job.id}\n")
    assert (job.model, job.adapter, job.seed, job.priority, job.job_metadata) == (
        "tiny", "acme/dates", 0, 4, {"team": "x"},
    )  # fmt: skip
    assert job.hyperparameters == {"n_epochs": 2, "batch_size": 6, "learning_rate_multiplier": 1.0}
    wanted = {"rank": 8, "alpha": 4, "batch_size": 2, "gradient_accumulation": 3, "learning_rate": 1e-3, "dora": True}
    wanted |= {"target_modules": ["q_proj"], "tags": ["dates"], "early_stopping": 2, "gradient_checkpointing": False}
    wanted |= {"examples": 2, "show_examples": True}
    assert wanted.items() <= job.settings.items()
    assert job.resources == {"cpus": 0.5}
    uploads = {file.filename: file for file in files(server)}
    assert set(uploads) == {"dates.jsonl", "held-out.jsonl"}
    assert b"".join(server.tuning.files.read(uploads["dates.jsonl"])) == data.read_bytes()

    done = run("train", data, "--base", "tiny", "--name", "dates", "--url", server.url, "--json")
    assert done.out.count("\n") == 1
    assert json.loads(done.out)["id"] in {job.id for job in jobs(server)}
    assert done.err == ""


def test_bad_data_are_told_by_line_and_leave_nothing(run: Run, server: Any, data: Path, held_out: Path) -> None:
    with data.open("a") as file:
        file.write('{"messages": []}\n{"prompt": 1}\n')
    held_out.write_text("nonsense\n")
    done = run("train", data, "--base", "tiny", "--name", "acme/x", "--validation", held_out)
    assert (done.code, done.out) == (1, "")
    for says in ("dates.jsonl: 26 examples", "line 25: messages", "line 26:", "held-out.jsonl", "line 1:"):
        assert says in done.err
    assert done.err.splitlines()[-1].startswith("swapmeet: The data can not be trained on")
    assert (jobs(server), files(server)) == ([], [])


def test_what_is_refused_leaves_nothing(run: Run, server: Any, data: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        done = run("train", *arguments)
        assert (done.code, done.out) == (1, "")
        assert (jobs(server), files(server)) == ([], [])
        return done.err

    assert "The base 'other' is not known here. Known are tiny." in refused(data, "--base", "other")
    assert "beta/x" in refused(data, "--base", "tiny", "--name", "beta/x")
    error = refused(data, "--base", "tiny", "--rank", 0, "--epochs", 1.5, "--method", "ppo")
    assert all(says in error for says in ("--rank is 0", "--epochs is 1.5", "--method is 'ppo'"))
    error = refused(tmp_path, "--base", f"{tmp_path}/", "--alias", "prod", "--registry", "file:///x")
    assert all(says in error for says in ("--alias", "--registry", "folder of this machine", "is no file", "--local"))
    assert "absent.jsonl is not there" in refused(tmp_path / "absent.jsonl", "--base", "tiny")
    data.rename(tmp_path / "dates.txt")
    assert "*.jsonl" in refused(tmp_path / "dates.txt", "--base", "tiny")


@pytest.mark.parametrize(
    "arguments", [[], ["x.jsonl"], ["--base", "tiny"], ["x", "--base", "b", "--local", "--url", "u"]]
)
def test_wrong_usage(arguments: list[str], run: Run) -> None:
    for command in ("train", "plan"):
        assert run(command, *arguments).code == 2


def test_without_a_key_nothing_is_sent(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWAPMEET_API_KEY", raising=False)
    done = run("train", data, "--base", "tiny", "--url", "http://127.0.0.1:9")
    assert (done.code, "SWAPMEET_API_KEY" in done.err) == (1, True)


def test_local_asks_no_server(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAPMEET_URL", "http://127.0.0.1:9")
    done = run("train", data, "--base", "nowhere", "--name", "acme/x", "--local")
    assert (done.code, "There is no base 'nowhere'" in done.err) == (1, True)


def test_a_job_is_followed_to_its_end(run: Run, server: Any, data: Path) -> None:
    thread = end_soon(server.tuning, "succeeded", fine_tuned_model="acme/dates:1")
    done = run("train", data, "--base", "tiny", "--name", "acme/dates", "--follow")
    thread.join()
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == jobs(server)[0].id
    assert lines[1].endswith(f"Created fine-tuning job: {lines[0]}")
    assert lines[-1].endswith("Step 1/9  [loss 0.5]")


def test_with_json_there_is_one_line_at_the_end(run: Run, server: Any, data: Path) -> None:
    error = {"code": "diverged", "message": "The loss is no number.\x1b[2J", "param": None}
    thread = end_soon(server.tuning, "failed", error=error)
    done = run("train", data, "--base", "tiny", "--follow", "--json")
    thread.join()
    assert (done.code, done.out.count("\n"), json.loads(done.out)["status"]) == (1, 1, "failed")
    assert "Step 1/9" in done.err
    assert done.err.splitlines()[-1].endswith("failed. The loss is no number. [2J")


@pytest.mark.slow
def test_who_leaves_is_told_how_to_come_back(server: Any, data: Path) -> None:
    # Who starts the tests in the background has them ignore SIGINT, which processes inherit.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from swapmeet.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "train", data, "--base", "tiny", "--follow"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    job = process.stdout.readline().strip()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"swapmeet jobs events {job} --follow" in err
    assert f"swapmeet jobs cancel {job}" in err
    assert "Traceback" not in err
    assert [row.state for row in jobs(server)] != ["cancelled"]


@pytest.fixture
def restarting(tmp_path: Path) -> Iterator[tuple[Any, Tuning, int]]:
    """An app, its tuning and a free port, to serve it at more than once."""
    database = Database(f"sqlite:///{tmp_path}/restarting.db")
    upgrade(database)
    database.write(lambda session: session.add(TenantRow(name="acme")))
    settings = load_settings(home=tmp_path / "home", base="tiny")
    registry, tenancy = Registry(settings.registry_url), Tenancy(database)
    tuning = build_tuning(settings, database, registry, Jobs(database))
    replicas: Any = None
    services = Services(registry, tenancy, Fingerprint(name="tiny", weights=DIGEST, tokenizer=DIGEST), replicas)
    os.environ["SWAPMEET_API_KEY"] = tenancy.keys.create("acme", ["developer"]).key
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tended(tuning):
        yield create_app(services, tuning=tuning), tuning, port
    del os.environ["SWAPMEET_API_KEY"]
    database.close()


def test_a_server_that_restarts_is_waited_for(run: Run, restarting: Any, data: Path) -> None:
    app, tuning, port = restarting

    def serve() -> None:
        with event_loop() as loop:
            with listening(app, loop, "127.0.0.1", port, drain=1):
                while not rows(tuning, JobRow):
                    time.sleep(0.02)
                time.sleep(0.3)
            time.sleep(0.5)
            end_soon(tuning, "succeeded").join()
            with listening(app, loop, "127.0.0.1", port, drain=1):
                ended.wait(20)

    ended = threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    done = run("train", data, "--base", "tiny", "--follow", "--url", f"http://127.0.0.1:{port}")
    ended.set()
    thread.join()
    assert done.code == 0, done.err
    assert done.err.count("does not answer") == 1
    assert len(done.out.splitlines()) == len(set(done.out.splitlines()))
    assert done.out.splitlines()[-1].endswith("Step 1/9  [loss 0.5]")


def test_large_files_go_in_parts(run: Run, server: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "LARGEST_PIECE", 1000)
    monkeypatch.setattr("swapmeet.cli.submission.LARGEST_PIECE", 1000)
    send, sent = httpx.Client.send, list[str]()

    def unreliable(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        answer = send(self, request, **options)
        sent.append(request.url.path.rpartition("/")[2])
        if sent.count("parts") in (1, 3):  # it arrived, and nobody hears of it
            sent.append("lost")
            raise httpx.ReadError("lost")
        return answer

    monkeypatch.setattr(httpx.Client, "send", unreliable)
    done = run("train", data, "--base", "tiny")
    assert done.code == 0, done.err
    (file,) = files(server)
    assert b"".join(server.tuning.files.read(file)) == data.read_bytes()
    assert hashlib.sha256(data.read_bytes()).hexdigest() in file.sha256
    assert (sent.count("lost") > 1, "complete" in sent, "of 0 MiB" in done.err) == (True, True, True)


def test_an_upload_that_fails_is_cancelled(server: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "LARGEST_PIECE", 1000)

    def watch(sent: int, size: int) -> None:
        if sent > 1500:
            raise KeyboardInterrupt

    with Client() as client, pytest.raises(KeyboardInterrupt):
        client.upload(data, watch=watch)
    from swapmeet.database.tables import UploadRow

    assert [row.status for row in rows(server.tuning, UploadRow)] == ["cancelled"]
    assert files(server) == []


def test_python(server: Any, data: Path) -> None:
    told = list[tuple[int, int]]()
    with Client() as client:
        file = client.upload(data, watch=lambda *figures: told.append(figures))
        assert client.checked(file["id"])["status"] == "processed"
        request = {"model": "tiny", "training_file": file["id"], "lora": {"rank": 4}}
        job = client.create_job(request)
        assert client.create_job(request)["id"] == job["id"]
        end_soon(server.tuning, "cancelled").join()
        *events, last = client.events(job["id"])
        with pytest.raises(ApiError, match="no file"):
            client.checked("file-none")
    assert told[-1] == (data.stat().st_size, data.stat().st_size)
    assert (events[-1]["message"], last["status"]) == ("Step 1/9", "cancelled")


def test_a_file_describes_the_run(run: Run, server: Any, data: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "base: tiny\nname: acme/x\ntraining_file: dates.jsonl\nlora: {rank: 4, alpha: 1}\n"
    )
    done = run("train", "-f", tmp_path / "run.yaml", "--rank", 2)
    (job,) = jobs(server)
    assert done.out == f"{job.id}\n"
    assert (job.adapter, job.settings["rank"], job.settings["alpha"]) == ("acme/x", 2, 1)


@pytest.mark.slow
def test_a_server_plans(run: Run, server: Any, data: Path, held_out: Path, tiny_llama: Path, tmp_path: Path) -> None:
    BaseLibrary(server.tuning.requests.settings.folder).add(str(tiny_llama), name="tiny")
    done = run("plan", data, "--base", "tiny", "--rank", 4)
    assert done.code == 0, done.err
    assert "24 examples" in done.out
    assert "rank 4" in done.out
    told = json.loads(run("plan", data, "--base", "tiny", "--json").out)
    assert (told["base"], told["object"], told["settings"]["rank"]) == ("tiny", "fine_tuning.plan", 16)
    assert (jobs(server), files(server)) == ([], [])
    assert run("plan", data, "--base", "tiny", "--gpu", "H100").code == 2
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    told = json.loads(run("plan", "-f", tmp_path / "sweep.yaml", "--json").out)
    assert (told["base"], told["object"], len(told["runs"])) == ("tiny", "fine_tuning.sweep.plan", 4)
    assert told["steps"] == sum(each["steps"] for each in told["runs"]) > 0
    shown = run("plan", "-f", tmp_path / "sweep.yaml", "--local", "--home", server.tuning.requests.settings.folder)
    assert "one after the other" in shown.out, shown.err
    assert len([line for line in shown.out.splitlines() if "\t" in line]) == 4
    assert (jobs(server), files(server)) == ([], [])


SWEEP = "base: tiny\nname: acme/x\ntraining_file: dates.jsonl\nvalidation_file: held-out.jsonl\n"
SWEEP += "sweep: {grid: {rank: [2, 4], learning_rate: [1e-3, 1e-2]}}\n"


def end_sweep(server: Any) -> threading.Thread:
    """What the queue would do: the third configuration is the best."""

    def work() -> None:
        until = time.monotonic() + 60
        while not (found := rows(server.tuning, SweepRow)) and time.monotonic() < until:
            time.sleep(0.02)

        def write(session: Any) -> None:
            sweep = session.get(SweepRow, found[0].id)
            for run in session.query(SweepRunRow).order_by(SweepRunRow.number):
                session.get(JobRow, run.job).state = "failed" if run.number == 4 else "succeeded"
                run.metrics = {} if run.number == 4 else {"valid_loss": abs(run.number - 3) + 0.25}
                tell(session, run.job, "measured", f"Number {run.number} is trained")
                if run.number == 3:
                    sweep.best, sweep.fine_tuned_model, sweep.state = run.job, "acme/x:1", "succeeded"

        server.tuning.files.database.write(write)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_sweep_is_submitted_followed_and_shown(
    run: Run, server: Any, data: Path, held_out: Path, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    queue = end_sweep(server)
    done = run("train", "-f", tmp_path / "sweep.yaml", "--follow", "--alpha", 3)
    queue.join()
    assert done.code == 0, done.err
    sweep, *told = done.out.splitlines()
    assert sweep.startswith("ftsweep-")
    assert "[3] Number 3 is trained" in done.out
    made = jobs(server)
    assert (len(made), len({job.id for job in made}), {job.sweep for job in made}) == (4, 4, {sweep})
    assert {(job.adapter, job.settings["alpha"]) for job in made} == {("acme/x", 3.0)}
    assert len({job.seed for job in made}) == 1
    table = [line.split("\t") for line in told[-4:]]
    assert [row[:6] for row in table] == [
        ["*", "3", "4", "0.001", "0.2500", "succeeded"],
        ["", "2", "2", "0.01", "1.2500", "succeeded"],
        ["", "1", "2", "0.001", "2.2500", "succeeded"],
        ["", "4", "4", "0.01", "", "failed"],
    ]
    shown = run("sweeps", "show", sweep).out
    assert "result          acme/x:1" in shown
    assert shown.splitlines()[-4:] == told[-4:]
    found = json.loads(run("sweeps", "show", sweep, "--json").out)
    assert (found["object"], found["status"], found["counts"]) == (
        "fine_tuning.sweep", "succeeded", {"succeeded": 3, "failed": 1},
    )  # fmt: skip
    assert [each["best"] for each in found["runs"]] == [False, False, True, False]
    assert run("sweeps", "list").out.split("\t")[:3] == [sweep, "succeeded", "4 of 4"]
    assert "[1] Number 1 is trained" in run("sweeps", "events", sweep, "--limit", 4).out
    assert json.loads(run("jobs", "show", made[0].id, "--json").out)["sweep"] == sweep


def test_a_sweep_is_cancelled_and_refused(run: Run, server: Any, data: Path, held_out: Path, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    sweep = run("train", "-f", path).out.strip()
    assert run("train", "-f", path).out.strip() != sweep, "its files are others"
    assert run("sweeps", "cancel", sweep).out == f"{sweep} is cancelled\n"
    assert {job.state for job in jobs(server) if job.sweep == sweep} == {"cancelled"}
    told = run("sweeps", "cancel", "ftsweep-0")
    assert (told.code, told.err) == (1, "swapmeet: There is no sweep ftsweep-0. Check its id.\n")
    assert "sweep is for a server" in run("train", "-f", path, "--local").err


def test_python_sweeps(server: Any, data: Path, held_out: Path) -> None:
    with Client() as client:
        files = {
            name: client.upload(path)["id"] for name, path in (("training_file", data), ("validation_file", held_out))
        }
        for file in files.values():
            client.checked(file)
        body = {"model": "tiny", **files, "sweep": {"configurations": [{"rank": 2}, {"n_epochs": 1}]}}
        made = client.create_sweep(body)
        assert client.create_sweep(body)["id"] == made["id"], "it was asked for once, as far as anybody can tell"
        assert [each["id"] for each in client.sweeps()] == [made["id"]]
        assert client.cancel_sweep(made["id"])["status"] == "cancelled"
        *events, last = client.sweep_events(made["id"])
        assert last == client.sweep(made["id"])
    assert {event["run"] for event in events} == {1, 2}
    assert "Created fine-tuning job" in events[0]["message"]
