"""A cluster of several nodes whose only shared state is S3 and PostgreSQL, while machines and servers die.

The nodes are raylets on this machine, each with an address of its own on loopback and, by a mount namespace, with a
home folder of its own under the one path.
"""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from swapmeet.database import Database
from swapmeet.database.tables import JobRow
from swapmeet_registry import Registry
from swapmeet_registry.bases import BaseLibrary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EPOCHS, PER_EPOCH, SAVE_EVERY = 40, 6, 40
STEPS = EPOCHS * PER_EPOCH
QUICKLY = '{"health_check_period_ms": 1000, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}'
"""Nodes are found dead after 3 s, not 15 to 25."""
AUTHENTICATED = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""As `ray start` has it where nothing else is said."""
WORKER = "ray::RayTrainWorker"


class Node:
    """A raylet, and what it started: all in one session."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path, home: Path | None = None) -> None:
        if home is not None:
            mounted = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
            command = [
                "unshare",
                "--mount",
                "sh",
                "-ec",
                mounted,
                "sh",
                str(home),
                environment["HOME_OF_ALL"],
                *command,
            ]
        self.home = home
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )

    def processes(self, word: str = "") -> list[int]:
        """Those that live, and have a word in their title."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                title = (folder / "cmdline").read_bytes().decode(errors="replace")
                if int(session) == self.process.pid and state not in "ZX" and word in title:
                    found.append(int(folder.name))
        return found

    def die(self) -> None:
        """Kill the raylet alone."""
        (raylet,) = self.processes("raylet/raylet")
        os.kill(raylet, signal.SIGKILL)

    def close(self) -> None:
        while living := self.processes():
            for process in living:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)
        self.process.wait()


class Cluster:
    """A head without CPUs, and nodes."""

    def __init__(self, folder: Path, home: Path, base: Path, free_port: Callable[[], int], **environment: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._folder, self._base, self._free_port = folder, base, free_port
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SWAPMEET_")}
        self._environment = inherited | environment | {"HOME_OF_ALL": str(home), "RAY_raylet_start_wait_time_s": "180"}
        self.nodes: dict[str, Node] = {}
        self._stack = ExitStack()
        scratch = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        port = self.address.rpartition(":")[2]
        self._start(
            "head", None, "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false",
            "--node-ip-address=127.0.0.1", f"--temp-dir={scratch}", f"--system-config={QUICKLY}",
            f"--ray-client-server-port={free_port()}",
        )  # fmt: skip
        wait_until(lambda: self._listens(int(port)))

    def add(self, name: str, number: int, cpus: int, *options: str) -> Node:
        """A node; the base is in its home, and nothing else."""
        home = self._folder / name
        home.mkdir()
        BaseLibrary(home).add(str(self._base))
        return self._start(
            name, home, f"--address={self.address}", f"--node-ip-address=127.0.0.{number}", f"--num-cpus={cpus}",
            *options,
        )  # fmt: skip

    def close(self) -> None:
        self._stack.close()

    def _listens(self, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def _start(self, name: str, home: Path | None, *options: str) -> Node:
        ray = str(Path(sys.executable).with_name("ray"))
        fixed = ["--block", "--num-gpus=0", f"--dashboard-agent-listen-port={self._free_port()}"]
        fixed += [f"--dashboard-agent-grpc-port={self._free_port()}"]
        fixed += ["--include-log-monitor=false", f"--object-store-memory={100 << 20}"]
        node = Node([ray, "start", *fixed, *options], self._environment, self._folder / f"{name}.log", home)
        self._stack.callback(node.close)
        return node


@pytest.fixture
def cluster(tmp_path: Path, tiny_llama: Path, free_port: Callable[[], int], apart: dict[str, str]) -> Iterator[Cluster]:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make mount namespaces, by which each node gets a home of its own")
    (tmp_path / "home").mkdir()
    cluster = Cluster(tmp_path, tmp_path / "home", tiny_llama, free_port, **AUTHENTICATED, **apart)
    try:
        yield cluster
    finally:
        cluster.close()


def wait_until(ready: Callable[[], Any], seconds: float = 300, pause: float = 0.1) -> Any:
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


def wanted(data: str, suffix: str) -> dict[str, Any]:
    """The arguments that create a job."""
    hyperparameters: Any = {"n_epochs": EPOCHS, "batch_size": 24 // PER_EPOCH}
    return {
        "model": "tiny-llama",
        "training_file": data,
        "suffix": suffix,
        "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "extra_body": {"lora": {"rank": 4, "max_length": 128, "save_every": SAVE_EVERY}},
    }


def require_complete(client: openai.OpenAI, job: str) -> list[str]:
    """It succeeded, and every step and checkpoint was told once; its messages, oldest first."""
    assert client.fine_tuning.jobs.retrieve(job).status == "succeeded"
    events: list[Any] = list(reversed(list(client.fine_tuning.jobs.list_events(job, limit=100))))
    assert [event.data["step"] for event in events if event.type == "metrics"] == [*range(1, STEPS + 1)]
    messages = [event.message for event in events]
    once = [f"Checkpoint created at step {step}" for step in range(SAVE_EVERY, STEPS + 1, SAVE_EVERY)]
    once += ["Files validated, moving job to queued state"]
    assert {each: messages.count(each) for each in once} == dict.fromkeys(once, 1)
    assert sum("The job has successfully completed" in each for each in messages) == 1
    return messages


@pytest.mark.parametrize("server_too", [False, True], ids=["node", "node_and_server"])
def test_a_node_is_killed_in_mid_run(
    server_too: bool,
    cluster: Cluster,
    serving: Callable[..., Any],
    tiny_llama: Path,
    apart: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of two equal jobs loses its machine. It goes on elsewhere, and their adapters are equal, bit for bit."""
    small, large = cluster.add("small", 2, 1), cluster.add("large", 3, 2)
    environment = AUTHENTICATED | apart | {"SWAPMEET_RAY_ADDRESS": cluster.address, "SWAPMEET_MIN_REPLICAS": "0"}
    home, database = tmp_path / "home", Database(apart["SWAPMEET_DATABASE"])

    def row(job: str) -> JobRow:
        return database.read(lambda session: session.get_one(JobRow, job))

    with ExitStack() as stack:
        stack.callback(database.close)
        server = stack.enter_context(serving(home, tiny_llama, **environment))
        client = server.openai()
        data = client.files.create(file=("fox.jsonl", examples(24)), purpose="fine-tune").id
        jobs = [client.fine_tuning.jobs.create(**wanted(data, suffix)).id for suffix in ("one", "two")]
        wait_until(lambda: small.processes(WORKER) and large.processes(WORKER))
        folders = {job: next(tmp_path.glob(f"*/scratch/{job}-1")) for job in jobs}
        (struck,) = (job for job in jobs if folders[job].parts[-3] == "small")
        (calm,) = (job for job in jobs if folders[job].parts[-3] == "large")
        wait_until(lambda: row(struck).checkpoint is not None, pause=0.02)
        if server_too:
            server.process.kill()
        small.die()
        if server_too:
            server.process.wait()
            server = stack.enter_context(serving(home, tiny_llama, **environment))
            client = server.openai()
        for job in jobs:
            wait_until(lambda job=job: row(job).state not in ("queued", "running"))
        require_complete(client, calm)
        messages = require_complete(client, struck)
        (lost,) = (each for each in messages if each.startswith("The run was interrupted"))
        assert re.fullmatch(r"The run was interrupted and goes on from step \d+: Its machine was lost\.", lost)
        assert (row(calm).attempt, row(struck).attempt) == (1, 2)
        assert [each.id for each in client.fine_tuning.jobs.list()] == [jobs[1], jobs[0]]

        for name, value in apart.items():
            monkeypatch.setenv(name, value)
        registry = Registry(apart["SWAPMEET_REGISTRY"])
        adapters = []
        for job in jobs:
            model = str(row(job).fine_tuned_model)
            registry.pull(model, tmp_path / job)
            assert len(registry.show(model.partition(":")[0]).versions) == 1
            adapters.append((tmp_path / job / "adapter_model.safetensors").read_bytes())
        assert adapters[0] == adapters[1]
        assert not any(list((tmp_path / name / "scratch").glob("ftjob-*")) for name in ("home", "large"))
