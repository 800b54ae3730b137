"""Requests over HTTP at given rates, whether or not the server keeps up, and how many are answered well.

    python benchmarks/serving/http_load.py [--rates 1 2 4] [--seconds 60] [--adapters 8] [--tokens 64]
                                           [--first-ms 1000] [--token-ms 100]
    SWAPMEET_BENCH_VLLM_PYTHON=PYTHON python benchmarks/serving/http_load.py ...     vLLM's server after it
    python benchmarks/serving/http_load.py --url URL --model NAME … [--key KEY]      another server instead

`swapmeet up` runs as users start it, with so many adapters of rank 16 in its registry. Requests come as a Poisson
process and never wait for one another's answers; each streams from the base or an adapter, chosen evenly. Goodput is
the requests a second whose first token came within `--first-ms`, and whose later tokens took at most `--token-ms` on
average. All servers get the same requests at the same moments, which follow from `--seed`. This script shares the
machine with the server, as it would not in earnest.
"""

import asyncio
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from measure import bench_base, parser, percentile, random_adapter, report

from swapmeet_registry import Registry

COLUMNS = ("rate", "requests", "failed", "goodput", "first_p50", "first_p99", "between_p50", "between_p99")


@dataclass(frozen=True, slots=True)
class Server:
    """Where to ask, and the models to ask for in turn."""

    url: str
    key: str
    models: list[str]


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one answer: to its first token, and between tokens."""

    first: float
    gaps: list[float]

    def within(self, options: Any) -> bool:
        """Whether it meets the objectives."""
        return self.first <= options.first_ms and sum(self.gaps) <= options.token_ms * max(1, len(self.gaps))


def main() -> None:
    """Load a server at each rate, print a table, end with one JSON line."""
    parse = parser(__doc__)
    parse.add_argument("--rates", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="requests a second")
    parse.add_argument("--seconds", type=float, default=60, help="for how long requests come, at each rate")
    parse.add_argument("--adapters", type=int, default=8)
    parse.add_argument("--tokens", type=int, default=64)
    parse.add_argument("--first-ms", type=float, default=1000)
    parse.add_argument("--token-ms", type=float, default=100)
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--url", help="of a running server, without /v1")
    parse.add_argument("--model", nargs="+", help="what to ask it for")
    parse.add_argument("--key", default="none")
    options = parse.parse_args()
    if options.url and not options.model:
        parse.error("--url needs --model")
    servers = (
        {"server": nullcontext(Server(options.url, options.key, options.model))} if options.url else local(options)
    )
    sides = {}
    for name, starting in servers.items():
        with starting as server:
            print(f"\n{name}", end="")
            sides[name] = asyncio.run(load(server, options))
    objective = {"first_ms": options.first_ms, "token_ms": options.token_ms}
    report("http_load", seconds=options.seconds, tokens=options.tokens, objective=objective, sides=sides)


def local(options: Any) -> dict[str, AbstractContextManager[Server]]:
    """Servers to start on this machine, one after another, because each takes all of it."""
    servers: dict[str, AbstractContextManager[Server]] = {"swapmeet": up(options.adapters)}
    if python := os.environ.get("SWAPMEET_BENCH_VLLM_PYTHON"):
        servers["vllm"] = vllm(python, options.adapters)
    return servers


async def load(server: Server, options: Any) -> list[dict[str, float]]:
    """One row for each rate, after every model answered once."""
    headers, limits = {"authorization": f"Bearer {server.key}"}, httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server.url, headers=headers, limits=limits, timeout=300, trust_env=False
    ) as client:
        for model in server.models:
            await stream(client, model, "Once upon a time", 4)
        print(f"\n{'req/s':>6}", *(f"{name:>11}" for name in COLUMNS[1:]), flush=True)
        return [await at_rate(client, server.models, rate, options) for rate in options.rates]


async def at_rate(client: httpx.AsyncClient, models: list[str], rate: float, options: Any) -> dict[str, float]:
    """Ask at random moments, so many a second on average, then wait for what is left; one row, printed."""
    chance = random.Random(options.seed)
    tasks, begin, due = [], time.perf_counter(), chance.expovariate(rate)
    while due < options.seconds:
        await asyncio.sleep(begin + due - time.perf_counter())
        prompt = f"Tell me a short story number {len(tasks)} about a fox near the sea."
        tasks.append(asyncio.create_task(stream(client, chance.choice(models), prompt, options.tokens)))
        due += chance.expovariate(rate)
    answers = [answer for answer in await asyncio.gather(*tasks) if answer]
    if not answers:
        raise SystemExit(f"None of {len(tasks)} requests was answered. Give more --seconds, or look at the server.")
    gaps = [gap for answer in answers for gap in answer.gaps] or [0.0]
    firsts = [answer.first for answer in answers]
    good = sum(answer.within(options) for answer in answers)
    values = (rate, len(tasks), len(tasks) - len(answers), good / options.seconds)
    times = (percentile(firsts, 50), percentile(firsts, 99), percentile(gaps, 50), percentile(gaps, 99))
    row = {name: round(value, 2) for name, value in zip(COLUMNS, (*values, *times), strict=True)}
    print(f"{rate:>6}", *(f"{row[name]:>11}" for name in COLUMNS[1:]), flush=True)
    return row


async def stream(client: httpx.AsyncClient, model: str, prompt: str, tokens: int) -> Timing | None:
    """Stream an answer; None if it was refused or failed."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    moments = [time.perf_counter()]
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith('data: {"error"'):
                    return None
                if line.startswith("data: {"):
                    moments.append(time.perf_counter())
    except httpx.HTTPError:
        return None
    if len(moments) == 1:
        return None
    first, *gaps = (1000 * (after - before) for before, after in itertools.pairwise(moments))
    return Timing(first, gaps)


@contextmanager
def up(adapters: int) -> Iterator[Server]:
    """A server as users start it, with fresh adapters in its registry."""
    base, port = bench_base(), free_port()
    with tempfile.TemporaryDirectory() as home:
        registry = f"file://{home}/registry"
        names = [f"bench/{number}" for number in range(adapters)]
        for seed, name in enumerate(names):
            Registry(registry).push(random_adapter(base.path, Path(home) / name, seed), name, base=base.fingerprint)
        command = [sys.executable, "-m", "swapmeet", "up", "--base", str(base.path), "--home", f"{home}/home"]
        command += ["--registry", registry, "--port", port, "--json"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SWAPMEET_")}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            try:
                line = server.stdout.readline()
                if not line:
                    raise SystemExit("The server did not start; its message stands above.")
                ready = json.loads(line)
                yield Server(ready["url"], ready["admin_key"], [base.path.name, *names])
            finally:
                server.terminate()


@contextmanager
def vllm(python: str, adapters: int) -> Iterator[Server]:
    """vLLM's server on the same base in bfloat16, with a slot for each adapter."""
    base, port = bench_base(), free_port()
    with tempfile.TemporaryDirectory() as home:
        folders = {f"bench-{seed}": random_adapter(base.path, Path(home) / str(seed), seed) for seed in range(adapters)}
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base.path), "--port", port]
        command += ["--dtype", "bfloat16", "--max-model-len", "1024", "--max-num-seqs", "32"]
        if folders:
            command += ["--enable-lora", "--max-loras", str(adapters), "--max-lora-rank", "16", "--lora-modules"]
            command += [f"{name}={folder}" for name, folder in folders.items()]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "2"} | os.environ
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                url = f"http://127.0.0.1:{port}"
                while not answers(f"{url}/health"):
                    if server.poll() is not None:
                        raise SystemExit("vLLM's server did not start. Run it by hand to see why.")
                    time.sleep(1)
                yield Server(url, "none", [str(base.path), *folders])
            finally:
                server.terminate()


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a server is ready."""
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main()
