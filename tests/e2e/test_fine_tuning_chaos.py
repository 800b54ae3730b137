"""The fine-tuning story while everything around it dies: ten kills of the server, storage that is away, full disks.

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
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import openai
import pytest
from sqlalchemy import select, update

from swapmeet.database import Database
from swapmeet.database.tables import CheckpointRow, FileRow, JobRow, WebhookRow
from swapmeet_registry import Registry
from swapmeet_registry.bases import BaseLibrary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SUCCEEDED: Any = "fine_tuning.job.succeeded"
CANCELLED: Any = "fine_tuning.job.cancelled"
ENDED = ("succeeded", "failed", "cancelled")
EPOCHS, PER_EPOCH, SAVE_EVERY = 40, 6, 40
STEPS = EPOCHS * PER_EPOCH
START_SECONDS = 120.0


class Platform:
    """`swapmeet up` on one home and port, killed and started again."""

    def __init__(self, home: Path, base: Path, port: int, **environment: str) -> None:
        self.home, self.port = home, port
        self.database = Database(environment.get("SWAPMEET_DATABASE", f"sqlite:///{home}/swapmeet.db"))
        self.up = threading.Event()
        self.killed: list[str] = []
        self.key = ""
        self._log = home.with_suffix(".log")
        program = [sys.executable, "-m", "swapmeet", "up", "--json", "--webhook-private"]
        self._command = [*program, "--base", str(base), "--home", str(home), "--port", str(port)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SWAPMEET_")}
        self._environment = inherited | {"SWAPMEET_MIN_REPLICAS": "0"} | environment  # engines come with the first chat
        self._process: subprocess.Popen[str] | None = None
        self._starting = threading.Thread(target=self._start)
        self._starting.start()

    def kill(self, point: str, between: Callable[[], object] = lambda: None) -> None:
        """Kill it at this point of the story, do what is to happen `between`, and have it start again."""
        self._starting.join()
        self.up.clear()
        self.killed.append(point)
        self._end()
        between()
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

    def row(self, job: str) -> JobRow:
        return self.database.read(lambda session: session.get_one(JobRow, job))

    def _start(self) -> None:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self._process.stdout
        if line := self._process.stdout.readline():
            self.key = json.loads(line)["admin_key"]
            self.up.set()

    def _end(self) -> None:
        assert self._process
        while living := [process for process in session_of(self._process.pid)]:
            for process in living:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


def session_of(leader: int) -> Iterator[int]:
    """The processes of a session that still run: Ray gives its workers groups of their own."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in "ZX":
                yield int(folder.name)


Fault = Callable[[Callable[[float], http.client.HTTPResponse]], bool]


class Proxy(ThreadingHTTPServer):
    """Stands before the platform, and lets requests wait while that is down. `faults` happen once each, by route.

    A fault is given what sends a share of the request and waits for an answer, and says whether the caller gets it.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, platform: Platform) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.platform = platform
        self.faults: list[tuple[str, Callable[["_Handler", bytes], bool]]] = []


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

    def ask(self, body: bytes, share: float = 1.0) -> tuple[int, str, bytes]:
        """Send a request on, or the first part of it, which gets no answer."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.platform.port, timeout=120)) as connection:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            connection.send(body[: int(len(body) * share)])
            if share < 1:
                time.sleep(0.2)  # so that it has arrived
                return 0, "", b""
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


class Receiver(ThreadingHTTPServer):
    """Keeps what webhooks tell it; each time it first does what `before` holds, and then gives no answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Ear)
        self.told: list[tuple[dict[str, str], bytes]] = []
        self.before: list[Callable[[], object]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/told"


class _Ear(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.told.append(({name.lower(): value for name, value in self.headers.items()}, body))
        if self.server.before:
            self.server.before.pop()()
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


def wait_until(ready: Callable[[], Any], seconds: float = 120, pause: float = 0.2) -> Any:
    """What `ready` gives as soon as it is true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := ready():
            return found
        time.sleep(pause)
    raise AssertionError(f"nothing within {seconds} s")


def examples(count: int) -> bytes:
    ask, say = "Who jumps over {}?", "Fox {}."
    lines = [
        {"messages": [{"role": "user", "content": ask.format(n)}, {"role": "assistant", "content": say.format(n)}]}
        for n in range(count)
    ]
    return "\n".join(json.dumps(line) for line in lines).encode()


def wanted(training_file: str, **more: Any) -> dict[str, Any]:
    hyperparameters: Any = {"n_epochs": EPOCHS, "batch_size": 24 // PER_EPOCH}
    return {
        "model": "tiny-llama",
        "training_file": training_file,
        "suffix": "fox",
        "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "extra_body": {"lora": {"rank": 4, "max_length": 128, "save_every": SAVE_EVERY, "eval_every": SAVE_EVERY}},
    } | more


def require_complete(client: openai.OpenAI, job: Any) -> list[str]:
    """Its messages, oldest first: every step, evaluation and checkpoint is told, and each thing once."""
    events = list(reversed(list(client.fine_tuning.jobs.list_events(job.id, limit=100))))
    assert len({event.id for event in events}) == len(events)
    figures = [event for event in events if event.type == "metrics"]
    steps = [event.data["step"] for event in figures if "full_valid_loss" not in event.data]
    evaluations = [event.data["step"] for event in figures if "full_valid_loss" in event.data]
    saves = [*range(SAVE_EVERY, STEPS + 1, SAVE_EVERY)]
    assert sorted(steps) == [*range(1, STEPS + 1)]
    assert sorted(evaluations) == (saves if job.validation_file else [])
    messages = [event.message for event in events]
    once = [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.training_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        *(f"Checkpoint created at step {step}" for step in saves),
        f"New fine-tuned model created: {job.fine_tuned_model}",
        "The job has successfully completed",
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
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{proxy.server_port}/v1", api_key=platform.key, timeout=120, max_retries=5
        )

        def cut(handler: _Handler, body: bytes) -> bool:
            handler.ask(body, share=0.5)
            platform.kill("in the middle of an upload")
            return False

        def answered(handler: _Handler, body: bytes) -> bool:
            handler.answer(*handler.ask(body))
            platform.kill("an upload was answered")
            return True

        def lost(point: str) -> Callable[[_Handler, bytes], bool]:
            def lose(handler: _Handler, body: bytes) -> bool:
                assert handler.ask(body)[0] == 200
                platform.kill(point)
                return False

            return lose

        hook = client.webhooks.create(name="ends", url=receiver.url, event_types=[SUCCEEDED, CANCELLED])
        proxy.faults += [("POST /v1/files", cut), ("POST /v1/files", answered)]
        data = client.files.create(file=("fox.jsonl", examples(24)), purpose="fine-tune")
        held_out = client.files.create(file=("held-out.jsonl", examples(10)), purpose="fine-tune")
        assert [file.id for file in client.files.list()] == [held_out.id, data.id]

        proxy.faults.append(("POST /v1/fine_tuning/jobs", lost("the answer to create was lost, while validating")))
        job: Any = client.fine_tuning.jobs.create(**wanted(data.id, validation_file=held_out.id))
        assert len(platform.killed) == 3
        other = client.fine_tuning.jobs.create(**wanted(data.id, suffix="unwanted"))
        assert [each.id for each in client.fine_tuning.jobs.list()] == [other.id, job.id]

        wait_until(lambda: platform.row(job.id).state == "running", pause=0.01)
        at_cancel = lost("an attempt just began, and the answer to cancel was lost")
        proxy.faults.append((f"POST /v1/fine_tuning/jobs/{other.id}/cancel", at_cancel))
        assert client.fine_tuning.jobs.cancel(other.id).status == "cancelled"
        wait_until(lambda: len(receiver.told) == 1)

        def stored(name: str) -> bool:
            return any((home / "storage" / "runs" / job.id).glob(f"*/{name}.json"))

        def checkpoint_told() -> bool:
            return platform.row(job.id).checkpoint is not None

        wait_until(checkpoint_told, pause=0.01)
        platform.kill("in mid-run, after the first checkpoint")
        assert platform.row(job.id).step < STEPS
        wait_until(lambda: stored(f"checkpoint-{STEPS // 2 + SAVE_EVERY}"), pause=0.01)
        platform.kill("a checkpoint was saved, and nobody had heard")
        wait_until(lambda: stored("adapter"), pause=0.01)
        platform.kill("the run was done, and nobody had heard")
        registry = Registry(f"file://{home}/registry")

        def published() -> bool:
            return any(name.startswith("admin/fox") and ".ckpt-" not in name for name in registry.names())

        wait_until(published, pause=0.01)
        platform.kill("while publishing")
        wait_until(lambda: platform.row(job.id).state == "succeeded", pause=0.01)
        platform.kill("right after success", lambda: forget_claims(platform))
        receiver.before.append(lambda: platform.kill("before a webhook was answered", lambda: forget_claims(platform)))
        wait_until(lambda: len(platform.killed) == 10)

        (ended, cancelled) = sorted(client.fine_tuning.jobs.list(), key=lambda each: each.status, reverse=True)
        assert (ended.id, ended.status, cancelled.id, cancelled.status) == (job.id, "succeeded", other.id, "cancelled")
        print(platform.killed, *require_complete(client, ended), sep="\n")

        assert ended.fine_tuned_model
        name = ended.fine_tuned_model.removesuffix(":1")
        assert ended.fine_tuned_model == f"{name}:1"
        versions = registry.show(name).versions
        assert len(versions) == 1
        manifest = registry.manifest(versions[0])
        assert manifest.run == job.id
        assert manifest.dataset == "sha256:" + platform.database.read(
            lambda session: session.get_one(FileRow, data.id).sha256
        )
        assert manifest.base == BaseLibrary(home).find("tiny-llama").fingerprint
        models = {each.fine_tuned_model_checkpoint for each in client.fine_tuning.jobs.checkpoints.list(job.id)}
        assert {each for each in registry.names() if ".ckpt-" in each} >= {each.partition(":")[0] for each in models}
        assert len(models) == 3

        wait_until(lambda: len(receiver.told) >= 3)
        events = [client.webhooks.unwrap(body, headers, secret=hook.signing_secret) for headers, body in receiver.told]
        assert [(event.type, event.data.id) for event in events[:1]] == [(CANCELLED, other.id)]
        assert {(event.type, event.data.id) for event in events[1:]} == {(SUCCEEDED, job.id)}
        assert len({headers["webhook-id"] for headers, _ in receiver.told[1:]}) == 1, "told again, by the same id"

        said = client.chat.completions.create(
            model=ended.fine_tuned_model, messages=[{"role": "user", "content": "Who jumps?"}], max_tokens=4
        )
        assert said.choices[0].message.content is not None
        platform.stop()
        states = platform.database.read(lambda session: set(session.scalars(select(JobRow.state))))
        assert states == {"succeeded", "cancelled"}
        assert list((home / "scratch").glob("ftjob-*")) == []


def forget_claims(platform: Platform) -> None:
    """As if a minute and a half had passed: then what a killed server was sending may be sent by another."""
    platform.database.write(lambda session: session.execute(update(WebhookRow).values(claimed_until=None)))
