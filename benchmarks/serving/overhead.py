"""What HTTP, gateway and Ray Serve add to the time to the first token, and to the time between tokens.

    python benchmarks/serving/overhead.py [--concurrency 1 8] [--requests 30] [--tokens 16]

One tiny random model is asked twice with the same prompts: the engine alone in one process, and a server as `swapmeet
up` starts it, over HTTP with streaming. Each of `concurrency` clients asks again as soon as its answer ends. A tiny
model's own time is near nothing, so the difference of the medians is what the layers cost. The client is Python's own,
because what a client's library needs (httpx about 1.5 ms a request) is no layer of the server's.
"""

import argparse
import http.client
import json
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).parents[2] / ".cache" / "swapmeet"
PROMPT = "Tell me a short story about a fox near the sea."
WARM_UP = 3
Ask = Callable[[], tuple[float, float]]
"""Ask once; seconds to the first token, and seconds a token after it."""


@dataclass(frozen=True, slots=True)
class Times:
    """Medians in milliseconds."""

    first: float
    token: float


def main() -> None:
    """Measure, print a table, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=int, default=30, help="by each client")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--side", choices=("engine", "platform"), help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = engine_side if options.side == "engine" else platform_side
        print(json.dumps(side(options.base, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        base = tiny_base(Path(folder) / "tiny")
        sides = {side: in_own_process(side, base, options) for side in ("engine", "platform")}
    report(sides, options)


def in_own_process(side: str, base: Path, options: argparse.Namespace) -> dict[str, Times]:
    """A side in a fresh process, so that none inherits the other's threads."""
    command = [sys.executable, __file__, "--side", side, "--base", str(base), "--tokens", str(options.tokens)]
    command += ["--requests", str(options.requests), "--concurrency", *map(str, options.concurrency)]
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {clients: Times(*times) for clients, times in json.loads(shown.stdout.splitlines()[-1]).items()}


def report(sides: dict[str, dict[str, Times]], options: argparse.Namespace) -> None:
    """A table for people and one line for programs."""
    print(f"\n{'clients':>7} {'side':9} {'first token ms':>14} {'per token ms':>12}")
    added = {}
    for clients in map(str, options.concurrency):
        for side, times in sides.items():
            print(f"{clients:>7} {side:9} {times[clients].first:14.2f} {times[clients].token:12.2f}")
        added[clients] = round(sides["platform"][clients].first - sides["engine"][clients].first, 2)
        print(f"{clients:>7} {'added':9} {added[clients]:14.2f}")
    settings = {"requests": options.requests, "tokens": options.tokens}
    print(json.dumps({"benchmark": "overhead", **settings, "added_ms_to_first_token": added}))


def measure(ask: Ask, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Medians for each number of clients."""
    for _ in range(WARM_UP):
        ask()
    medians = {}
    for clients in options.concurrency:
        times: list[tuple[float, float]] = []

        def client(times: list[tuple[float, float]] = times) -> None:
            times.extend(ask() for _ in range(options.requests))

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first, token = (statistics.median(column) * 1000 for column in zip(*times, strict=True))
        medians[str(clients)] = (first, token)
    return medians


def engine_side(base: Path, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """The engine in this process, stepped by a thread of its own."""
    from swapmeet_serving import Engine, Output, Request, Sampling

    outputs: dict[str, queue.SimpleQueue[Output]] = {}
    ready: queue.SimpleQueue[Engine] = queue.SimpleQueue()

    def work() -> None:
        engine = Engine(base, fetch=Path, threads=1, kv_bytes=64 << 20)
        ready.put(engine)
        while True:
            engine.wait()
            for output in engine.step():
                outputs[output.request_id].put(output)

    threading.Thread(target=work, daemon=True).start()
    engine = ready.get()
    sampling = Sampling(max_tokens=options.tokens, ignore_eos=True)

    def ask() -> tuple[float, float]:
        start = time.perf_counter()
        identity = f"{threading.get_ident()}-{start}"
        mine = outputs[identity] = queue.SimpleQueue()
        ids = tuple(engine.tokenizer(PROMPT).input_ids)
        engine.submit(Request(identity, ids, None, sampling))
        mine.get()
        first = time.perf_counter()
        while not mine.get().finish_reason:
            pass
        return first - start, (time.perf_counter() - first) / (options.tokens - 1)

    return measure(ask, options)


def platform_side(base: Path, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """The whole platform, asked over HTTP from this process by a client that does as little as can be."""
    body = {"model": base.name, "prompt": PROMPT, "max_tokens": options.tokens, "ignore_eos": True, "stream": True}
    connections = threading.local()
    with up(base) as (url, key):
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

        def ask() -> tuple[float, float]:
            if not hasattr(connections, "mine"):
                connections.mine = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
            start = time.perf_counter()
            first = 0.0
            connections.mine.request("POST", "/v1/completions", json.dumps(body), headers)
            answer = connections.mine.getresponse()
            if answer.status != 200:
                raise SystemExit(answer.read().decode())
            for line in answer:
                if line.startswith(b"data: {"):
                    first = first or time.perf_counter()
            return first - start, (time.perf_counter() - first) / (options.tokens - 1)

        return measure(ask, options)


@contextmanager
def up(base: Path) -> Iterator[tuple[str, str]]:
    """A server as users start it; its URL and key."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {"SWAPMEET_THREADS": "1", "SWAPMEET_KV_MEMORY": str(64 << 20), "SWAPMEET_DEVICE": "cpu"}
    with tempfile.TemporaryDirectory() as home:
        command = [
            sys.executable,
            "-m",
            "swapmeet",
            "up",
            "--base",
            str(base),
            "--home",
            home,
            "--port",
            port,
            "--json",
        ]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            try:
                ready = json.loads(server.stdout.readline())
                yield ready["url"], ready["admin_key"]
            finally:
                server.terminate()


def tiny_base(folder: Path) -> Path:
    """Two random layers behind a real tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from swapmeet_registry.bases import BaseLibrary

    real = BaseLibrary(HOME, print).find("smollm2-135m").path
    config = AutoConfig.from_pretrained(real)
    config.update({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "layer_types": None})
    config.update({"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(real).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
