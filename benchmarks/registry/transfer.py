"""Push and pull against plain boto3 and the AWS CLI, on one S3 server in one run.

    python benchmarks/registry/transfer.py [--quick] [--sizes 1 20 500] [--rounds 3] [--link 1000] [--bucket NAME]

Without --bucket it starts a ministack of its own, and asks it twice: on loopback, where nothing but processors counts,
and over a link of so many Mbit/s and half a millisecond each way. With it, the usual AWS variables say where the bucket
is.
What is compared takes turns, so that a busy machine slows all of them; medians and their ratios count. `put` and `get`
move the bytes as the registry does; `push` and `pull` also check the adapter, hash every byte and write the head.
"""

import argparse
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
import numpy as np
from link import link
from safetensors.numpy import save_file

from swapmeet_registry import Fingerprint, Registry
from swapmeet_registry.stores.s3 import S3Store

BASE = Fingerprint(name="bench", weights="sha256:" + "a" * 64, tokenizer="sha256:" + "b" * 64)
CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "bench", "r": 16, "lora_alpha": 32,
    "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
}  # fmt: skip
WEIGHTS = "adapter_model.safetensors"
DELAY = 0.0005
"""Seconds from one end of the link to the other."""


def adapter(folder: Path, megabytes: int) -> Path:
    """A PEFT folder of about so many MB: one layer is 1 MiB."""
    random, weights = np.random.default_rng(megabytes), {}
    for layer in range(megabytes):
        for module in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{name}.lora_A.weight"] = random.standard_normal((16, 4096), np.float32)
            weights[f"{name}.lora_B.weight"] = random.standard_normal((4096, 16), np.float32)
    folder.mkdir()
    save_file(weights, folder / WEIGHTS, {"format": "pt"})  # as PEFT does
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    return folder


@contextmanager
def server() -> Iterator[str]:
    """A ministack on loopback, and an empty bucket in it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        settings = {
            "PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home, "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port), "SERVICES": "s3", "IOT_MTLS_ENABLED": "0",
        }  # fmt: skip
        program = Path(sys.executable).with_name("ministack")
        running = subprocess.Popen(
            [program], cwd=home, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        address = f"http://127.0.0.1:{port}"
        os.environ |= {
            "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        try:
            for _ in range(300):
                with suppress(OSError), urllib.request.urlopen(f"{address}/_ministack/health", timeout=1):
                    break
                time.sleep(0.1)
            boto3.client("s3").create_bucket(Bucket="benchmark")
            yield "benchmark"
        finally:
            running.terminate()
            running.wait(10)


class Ways:
    """How one adapter goes up and comes down."""

    def __init__(self, bucket: str, folder: Path, scratch: Path) -> None:
        self.bucket, self.folder, self.scratch = bucket, folder, scratch
        self.source = folder / WEIGHTS
        self.sha256 = hashlib.sha256(self.source.read_bytes()).hexdigest()
        self.s3, self.store = boto3.client("s3"), S3Store(bucket, "bench")
        self.registry = Registry(self.store)
        self.key = f"plain/{folder.name}"
        self.name = f"bench/{folder.name}"

    def up(self) -> dict[str, Callable[[], object]]:
        """Ways up."""
        ways: dict[str, Callable[[], object]] = {
            "boto3": lambda: self.s3.upload_file(str(self.source), self.bucket, self.key),
            "put": lambda: self.store.put(f"blobs/sha256/{self.sha256}", self.source, self.sha256),
            "push": lambda: self.registry.push(self.folder, self.name, base=BASE),
        }
        return ways | self._cli(str(self.source), f"s3://{self.bucket}/{self.key}")

    def down(self) -> dict[str, Callable[[], object]]:
        """Ways down; each to a place of its own."""
        ways: dict[str, Callable[[], object]] = {
            "boto3": lambda: self.s3.download_file(self.bucket, self.key, str(self._place())),
            "get": self._get,
            "pull": lambda: self.registry.pull(self.name, self._place()),
        }
        return ways | self._cli(f"s3://{self.bucket}/{self.key}", str(self.scratch / "by-cli"))

    def _get(self) -> None:
        found = hashlib.sha256()
        with self._place().open("wb") as stream:
            for piece in self.store.stream(f"blobs/sha256/{self.sha256}") or ():
                found.update(piece)
                stream.write(piece)
        assert found.hexdigest() == self.sha256

    def _cli(self, source: str, target: str) -> dict[str, Callable[[], object]]:
        command = ["aws", "s3", "cp", "--only-show-errors", source, target]
        return {"aws": lambda: subprocess.run(command, check=True)} if shutil.which("aws") else {}

    def _place(self) -> Path:
        return self.scratch / uuid4().hex


def alternated(
    ways: dict[str, Callable[[], object]], rounds: int, clean: Callable[[], None]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each way in each round, and its median of CPU seconds; one round before them counts for nothing."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        order = list(ways) if turn % 2 else list(reversed(ways))
        for name in order:
            start, before = time.perf_counter(), os.times()
            ways[name]()
            after, spent = os.times(), time.perf_counter() - start
            if turn:
                seconds[name].append(spent)
                cpu[name].append(sum(after[:4]) - sum(before[:4]))
            clean()
    return seconds, {name: statistics.median(each) for name, each in cpu.items()}


def transfers(bucket: str, sizes: list[int], rounds: int, scratch: Path, way: str) -> list[dict[str, Any]]:
    """One row for each size and direction."""
    rows = []
    scratch.mkdir()
    for size in sizes:
        ways = Ways(bucket, adapter(scratch / f"adapter-{size}", size), scratch / "down")

        def clean() -> None:
            shutil.rmtree(scratch / "down", ignore_errors=True)
            (scratch / "down").mkdir()

        clean()
        for direction, tried in (("up", ways.up()), ("down", ways.down())):
            found, cpu = alternated(tried, rounds * max(1, min(10, 80 // size)), clean)
            medians = {name: statistics.median(all_) for name, all_ in found.items()}
            plain = min(medians[name] for name in ("boto3", "aws") if name in medians)
            ratios = {name: round(plain / value, 3) for name, value in medians.items() if name not in ("boto3", "aws")}
            row = {
                "way": way, "megabytes": size, "direction": direction, "seconds": medians, "cpu_seconds": cpu,
                "speed_to_fastest": ratios,
            }  # fmt: skip
            rows.append(row)
            cells = "  ".join(f"{name} {value:8.4f} s ({cpu[name]:.3f} CPU)" for name, value in medians.items())
            print(f"{way:10} {size:4} MB {direction:4}  {cells}  of the fastest: {ratios}")
    return rows


def requests_of(registry: Registry, call: Callable[[], object]) -> int:
    """How many requests a call sends."""
    sent = []
    store: Any = registry.backend.store  # type: ignore[attr-defined]
    for client in (store.bucket.client, store.bucket.client_without_retries):
        client.meta.events.register("before-send.s3", lambda **_: sent.append(1), unique_id="counting")
    call()
    for client in (store.bucket.client, store.bucket.client_without_retries):
        client.meta.events.unregister("before-send.s3", unique_id="counting")
    return len(sent)


def requests(bucket: str, scratch: Path) -> dict[str, int]:
    """How many requests each call sends for an adapter of 1 MB and two files."""
    registry = Registry(S3Store(bucket, "counted"))
    folder = adapter(scratch / "counted", 1)
    registry.push(folder, "bench/other", base=BASE)
    counts = {"push": requests_of(registry, lambda: registry.push(folder, "bench/one", base=BASE))}
    version = registry.resolve("bench/one")
    for name, call in {
        "resolve": lambda: registry.resolve("bench/one"),
        "pull": lambda: registry.pull("bench/one", scratch / "pulled"),
        "present_by_name": lambda: registry.pull("bench/one", scratch / "pulled"),
        "present_by_version": lambda: registry.pull(version, scratch / "pulled"),
        "alias_move": lambda: registry.tag("bench/one", "prod", "bench/one:1"),
    }.items():
        counts[name] = requests_of(registry, call)
    print("requests: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    return counts


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 and 20 MB, few rounds")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 20, 500], help="in MB")
    parser.add_argument("--rounds", type=int, default=3, help="of 1 MB ten times, and of 20 MB four times as many")
    parser.add_argument("--link", type=float, default=1000, help="Mbit/s; 0 for loopback alone")
    parser.add_argument("--bucket")
    given = parser.parse_args()
    sizes, rounds = ([1, 20], 1) if given.quick else (given.sizes, given.rounds)
    with tempfile.TemporaryDirectory() as folder, somewhere(given.bucket) as bucket:
        scratch = Path(folder)
        counts = requests(bucket, scratch)
        rows = transfers(bucket, sizes, rounds, scratch / "direct", given.bucket or "loopback")
        if given.link and not given.bucket:
            with slowed(given.link) as way:
                rows += transfers(bucket, sizes, rounds, scratch / "linked", way)
    print(json.dumps({"requests": counts, "transfers": rows}))


@contextmanager
def slowed(megabits: float, delay: float = DELAY) -> Iterator[str]:
    """Have clients that are made from now on reach the server over a link."""
    direct = os.environ["AWS_ENDPOINT_URL"]
    with link(urlsplit(direct).port or 80, megabits, delay) as port:
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        try:
            yield f"{megabits:g} Mbit/s"
        finally:
            os.environ["AWS_ENDPOINT_URL"] = direct


@contextmanager
def somewhere(bucket: str | None) -> Iterator[str]:
    """The bucket that was named, or one of an own server."""
    if bucket:
        yield bucket
    else:
        with server() as own:
            yield own


if __name__ == "__main__":
    main()
