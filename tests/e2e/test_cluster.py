"""A cluster of several nodes whose only shared state is S3 and PostgreSQL, while machines and servers die.

The nodes are raylets on this machine, each with an address of its own on loopback and, by a mount namespace, with
folders of its own for Ray and for the platform under the same paths.
"""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.e2e.conftest import examples, wait_until

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


class Node:
    """A raylet, and what it started: all in one session."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._command, self._environment, self._log = command, environment, log
        self._start()

    def _start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Until it is up. Ray gives up after 30 s, which a machine that is busy with other tests may take."""

        def up() -> bool:
            if self._process.poll() is not None:
                self._start()
            return "Ray runtime started" in self._log.read_text()

        wait_until(up)

    def processes(self, word: str = "") -> list[int]:
        """Those that live, and have a word in their title."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                title = (folder / "cmdline").read_bytes().decode(errors="replace")
                if int(session) == self._process.pid and state not in "ZX" and word in title:
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
        self._process.wait()


class Cluster:
    """A head without CPUs, and nodes that come and go."""

    def __init__(self, folder: Path, base: Path, free_port: Callable[[], int], environment: dict[str, str]) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self._folder, self._base, self._free_port, self._numbers = folder, base, free_port, count(2)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SWAPMEET_")}
        # Ray would kill workers where other processes of this machine take its memory.
        self.environment = inherited | environment | {"RAY_memory_monitor_refresh_ms": "0"}
        self._stack = ExitStack()
        short = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)  # sockets have short names
        self._ray = Path(self._stack.enter_context(short))
        self._node(
            [], "head", "--head", f"--port={port}", "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false",
            "--node-ip-address=127.0.0.1", f"--temp-dir={self._ray}", f"--system-config={QUICKLY}",
            f"--ray-client-server-port={free_port()}",
        ).wait()  # fmt: skip

    @contextmanager
    def node(self, name: str, *options: str, gpus: str = "") -> Iterator[Node]:
        """A node with options of `ray start`; the base is in its home, and nothing else.

        Args:
            name: no other's.
            options: of Ray.
            gpus: what its driver answers.
        """
        home, ray, programs = (self._folder / f"{name}{each}" for each in ("", "-ray", "-programs"))
        BaseLibrary(home).add(str(self._base))
        ray.mkdir()
        programs.mkdir()
        driver = programs / "nvidia-smi"
        driver.write_text(f"#!/bin/sh\necho '{gpus}'\n")
        driver.chmod(0o755)
        script = 'mount --bind "$1" "$2" && mount --bind "$3" "$4" && PATH="$5:$PATH" && shift 5 && exec "$@"'
        own = map(str, (home, self.home, ray, self._ray, programs))
        apart = ["unshare", "--mount", "sh", "-ec", script, "sh", *own]
        ip = f"127.0.0.{next(self._numbers)}"
        node = self._node(apart, name, f"--address={self.address}", f"--node-ip-address={ip}", *options)
        try:
            yield node
        finally:
            node.close()

    def close(self) -> None:
        self._stack.close()

    def _node(self, within: list[str], name: str, *options: str) -> Node:
        ports = [f"--dashboard-agent-{each}-port={self._free_port()}" for each in ("listen", "grpc")]
        fixed = ["--block", "--include-log-monitor=false", f"--object-store-memory={100 << 20}", *ports]
        command = [*within, str(Path(sys.executable).with_name("ray")), "start", *fixed, *options]
        node = Node(command, self.environment, self._folder / f"{name}.log")
        self._stack.callback(node.close)
        return node


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, free_port: Callable[[], int], s3_server: str
) -> Iterator[Cluster]:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make mount namespaces, by which each node gets a home of its own")
    environment = AUTHENTICATED | {"AWS_ENDPOINT_URL": s3_server, "AWS_DEFAULT_REGION": "us-east-1"}
    environment |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), tiny_llama, free_port, environment)
    try:
        yield cluster
    finally:
        cluster.close()


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
    environment = AUTHENTICATED | apart | {"SWAPMEET_RAY_ADDRESS": cluster.address, "SWAPMEET_MIN_REPLICAS": "0"}
    home, database = cluster.home, Database(apart["SWAPMEET_DATABASE"])
    names = [f"{name}-{server_too:d}" for name in ("small", "large")]

    def row(job: str) -> JobRow:
        return database.read(lambda session: session.get_one(JobRow, job))

    with ExitStack() as stack:
        stack.callback(database.close)
        small, large = (
            stack.enter_context(cluster.node(name, f"--num-cpus={cpus}", "--num-gpus=0"))
            for cpus, name in enumerate(names, 1)
        )
        for node in (small, large):
            node.wait()
        server = stack.enter_context(serving(home, tiny_llama, **environment))
        client = server.openai()
        data = client.files.create(file=("fox.jsonl", examples(24)), purpose="fine-tune").id
        jobs = [client.fine_tuning.jobs.create(**wanted(data, suffix)).id for suffix in ("one", "two")]
        (begun,) = wait_until(lambda: list(home.with_name(names[0]).glob("scratch/ftjob-*-1.lock")))
        struck, calm = sorted(jobs, key=lambda job: not begun.name.startswith(job))
        wait_until(lambda: row(struck).checkpoint is not None, pause=0.02)
        if server_too:
            server.process.kill()
        small.die()
        assert row(struck).state == "running"
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
        assert [each.id for each in client.fine_tuning.jobs.list()] == jobs[::-1]

        for name, value in apart.items():
            monkeypatch.setenv(name, value)
        registry = Registry(apart["SWAPMEET_REGISTRY"])
        for job in jobs:
            model = str(row(job).fine_tuned_model)
            registry.pull(model, tmp_path / job)
            assert len(registry.show(model.partition(":")[0]).versions) == 1
        calm_weights, struck_weights = (tmp_path / job / "adapter_model.safetensors" for job in (calm, struck))
        assert calm_weights.read_bytes() == struck_weights.read_bytes()
        assert not list(home.glob("scratch/ftjob-*")), "runs were on the nodes, each in a home of its own"
        assert not list(home.with_name(names[1]).glob("scratch/ftjob-*"))


MACHINES = """
import json, ray, sys
from dataclasses import asdict
from swapmeet.queue.dispatcher import RayDispatcher
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps([asdict(machine) for machine in RayDispatcher("s3://none").machines()]))
"""


def test_placement_knows_what_each_node_has(cluster: Cluster) -> None:
    """Its own memory, and by its own driver the GPU with the least; all of that is another on the head."""
    gpus = {
        "a100": "NVIDIA A100-SXM4-80GB, 81920\nNVIDIA A100-PCIE-40GB, 40960",
        "geforce": "NVIDIA GeForce RTX 4090, 24564",
        "none": "",
    }
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(cluster.node(name, "--num-cpus=3", f"--num-gpus={each.count(',')}", memory, gpus=each))
            for (name, each), memory in zip(gpus.items(), (f"--memory={n << 30}" for n in (1, 2, 3)), strict=True)
        ]
        for node in nodes:
            node.wait()
        program = [sys.executable, "-c", MACHINES, cluster.address]
        found = json.loads(subprocess.run(program, env=cluster.environment, check=True, stdout=subprocess.PIPE).stdout)
        known = {
            (each["memory"], each["gpus"], each["accelerator"], each["gpu_memory"]) for each in found if each["cpus"]
        }
        assert known == {
            (1 << 30, 2, "NVIDIA A100-PCIE-40GB", 40 << 30),
            (2 << 30, 1, "NVIDIA GeForce RTX 4090", 24564 << 20),
            (3 << 30, 0, None, None),
        }
