"""A real server: `swapmeet up` in a process of its own, as a user starts it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

START_SECONDS = 180


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "swapmeet", *map(str, arguments)]


def clean_environment() -> dict[str, str]:
    """Without anyone's settings; engines take as many threads as tests may."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SWAPMEET_")}
    return inherited | {"SWAPMEET_THREADS": os.environ["OMP_NUM_THREADS"]}


def wait_until(ready: Callable[[], Any], seconds: float = 300, pause: float = 0.1) -> Any:
    """What `ready` gives as soon as it is true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := ready():
            return found
        time.sleep(pause)
    raise AssertionError(f"nothing within {seconds} s")


def examples(count: int) -> bytes:
    """A file to train on."""
    ask, say = "Who jumps over {}?", "Fox {}."
    lines = [
        {"messages": [{"role": "user", "content": ask.format(n)}, {"role": "assistant", "content": say.format(n)}]}
        for n in range(count)
    ]
    return "\n".join(json.dumps(line) for line in lines).encode()


@dataclass
class Server:
    url: str
    key: str
    home: Path
    process: subprocess.Popen[str]
    clients: list[Any]
    """Closed with the server: whoever leaves them to the garbage collector warns in another test."""

    def openai(self) -> Any:
        import openai

        self.clients.append(openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, timeout=120, max_retries=0))
        return self.clients[-1]


@pytest.fixture(scope="session")
def swapmeet() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of the command line to its end."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            env=clean_environment() | environment,
            capture_output=True,
            text=True,
            timeout=280,
        )

    return run


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture(scope="session")
def shared() -> Iterator[ExitStack]:
    """Holds the server of `running`, if there is one."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def serving(free_port: Callable[[], int], shared: ExitStack) -> Callable[..., Any]:
    """`with serving(home, base, *options, **environment) as server`: started and ready; SIGTERM must stop it well.

    A shared server is stopped first, so that two never compete. One that the test killed is not looked at any more.
    """

    @contextmanager
    def start(home: Path, base: object, *arguments: object, **environment: str) -> Iterator[Server]:
        shared.close()
        port = free_port()
        process = subprocess.Popen(
            command("up", "--base", base, "--home", home, "--port", port, "--json", *arguments),
            env=clean_environment() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        clients: list[Any] = []
        try:
            assert process.stdout
            assert process.stderr
            line = process.stdout.readline()
            assert line, process.stderr.read()
            ready = json.loads(line)
            yield Server(ready["url"], ready["admin_key"], home, process, clients)
        finally:
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            errors = process.communicate(timeout=60)[1] if process.returncode is None else ""
            for pipe in (process.stdout, process.stderr):  # of one whose end a test has waited for
                assert pipe
                pipe.close()
            for client in clients:
                client.close()
        assert process.returncode in (0, -signal.SIGKILL), errors
        assert time.monotonic() - began < 60

    return start


@pytest.fixture(scope="session")
def running(
    serving: Callable[..., Any], shared: ExitStack, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Server]:
    """`running(base, *options)`: a server that tests share; it goes on until another one is started."""
    up: dict[tuple[object, ...], Server] = {}

    def run(base: Path, *options: str) -> Server:
        if (base, *options) not in up:
            server = shared.enter_context(serving(tmp_path_factory.mktemp("home"), base, *options))
            shared.callback(up.clear)
            up[base, *options] = server
        return up[base, *options]

    return run


@pytest.fixture
def apart(s3_server: str, postgres_url: str) -> dict[str, str]:
    """The environment of servers that share nothing but a PostgreSQL database and a bucket, both new."""
    import boto3

    bucket = f"bucket-{uuid4().hex[:12]}"
    aws = {"AWS_ENDPOINT_URL": s3_server, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    session = boto3.Session("test", "test", region_name="us-east-1")
    with closing(session.client("s3", endpoint_url=s3_server)) as client:
        client.create_bucket(Bucket=bucket)
    return aws | {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "SWAPMEET_DATABASE": postgres_url,
        "SWAPMEET_STORAGE": f"s3://{bucket}/storage",
        "SWAPMEET_REGISTRY": f"s3://{bucket}/registry",
    }
