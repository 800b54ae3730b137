"""Names: resolve without and with a server, alias moves by threads, and how fast the command line starts.

    python benchmarks/registry/names.py [--quick]

The folder, an S3 server of its own (a ministack) and the platform's API (a process of its own, on loopback, over the
folder) are asked in turns, so that a busy machine slows all of them; aliases also move on the same S3 server over a
link of ten milliseconds each way. Medians; start-up also as CPU time, which a busy machine changes little.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import transfer

from swapmeet_registry import Registry
from swapmeet_registry.stores.s3 import S3Store

FAR = 0.01
"""Seconds to a server on the other side of a link, where waiting is what counts and not its processor."""
START = "import sys; sys.argv[0] = 'swapmeet'; from swapmeet.cli import main; main()"
COMMANDS: Mapping[str, list[str]] = {
    "python": ["pass"],
    "--help": [START, "--help"],
    "--version": [START, "--version"],
    "search --help": [START, "search", "--help"],
    "push --help": [START, "push", "--help"],
    "show": [START, "show", "bench/warm", "--registry", "URL"],
}


def timed(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; the first counts for nothing."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def resolves(folder: Registry, bucket: Registry, url: str, key: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds to resolve a warm name: the median, and what 95 of 100 stay under."""
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}) as client:

        def ask() -> None:
            client.get("/v1/adapters/bench/warm/versions/prod").raise_for_status()

        calls = {
            "folder": lambda: folder.resolve("bench/warm:prod"),
            "S3": lambda: bucket.resolve("bench/warm:prod"),
            "server": ask,
        }
        found = {
            name: {
                "median_ms": round(statistics.median(each) * 1e3, 3),
                "p95_ms": round(statistics.quantiles(each, n=20)[-1] * 1e3, 3),
            }
            for name, each in timed(calls, rounds).items()
        }
    for name, figures in found.items():
        print(f"resolve of a warm name, {name:7} {figures['median_ms']:8.3f} ms  p95 {figures['p95_ms']:8.3f} ms")
    return found


def alias_moves(registry: Registry, where: str, adapter: Path, moves: int, rounds: int) -> dict[int, float]:
    """Moves a second by 1, 2, 4 and 8 threads, each on a name of its own; the median of some rounds."""
    names = [f"bench/alias-{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: registry.push(adapter, name, base=transfer.BASE), names))

    def move(name: str) -> None:
        for _ in range(moves):
            registry.tag(name, f"a{uuid4().hex[:6]}", f"{name}:1")

    def all_of(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(move, names[:threads]))

    calls = {str(threads): lambda threads=threads: all_of(threads) for threads in (1, 2, 4, 8)}
    speeds = {
        int(threads): round(int(threads) * moves / statistics.median(seconds), 1)
        for threads, seconds in timed(calls, rounds).items()
    }
    print(f"alias moves a second by threads, {where:7} {speeds}  {speeds[8] / speeds[1]:.1f} times by eight threads")
    return speeds


def starts(url: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the command line from nothing to its end: the median, the least, and CPU time."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for turn in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            words = [url if word == "URL" else word for word in arguments]
            begin, before = time.perf_counter(), os.times()
            subprocess.run([sys.executable, "-c", *words], check=True, stdout=subprocess.DEVNULL)
            after, spent = os.times(), time.perf_counter() - begin
            if turn:
                cpu = after.children_user + after.children_system - before.children_user - before.children_system
                found[name].append((spent, cpu))
    result = {
        name: {
            "median_ms": round(statistics.median(wall for wall, _ in each) * 1e3),
            "least_ms": round(min(wall for wall, _ in each) * 1e3),
            "cpu_ms": round(statistics.median(cpu for _, cpu in each) * 1e3),
        }
        for name, each in found.items()
    }
    for name, figures in result.items():
        print(f"start of {name:14} {json.dumps(figures)}")
    return result


@contextmanager
def api(home: Path, adapters: Path) -> Iterator[tuple[str, str]]:
    """The platform's API in a process of its own: its address, and a key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--serve", str(port), str(home), adapters.as_uri()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        key, url = running.stdout.readline().strip(), f"http://127.0.0.1:{port}"
        try:
            for _ in range(300):
                with suppress(httpx.TransportError):
                    httpx.get(f"{url}/healthz")
                    break
                time.sleep(0.1)
            yield url, key
        finally:
            running.terminate()


def serve(port: int, home: Path, adapters: str) -> None:
    """Serve the API without engines until told to end."""
    import signal
    from contextlib import nullcontext
    from types import SimpleNamespace

    from swapmeet.database import Database
    from swapmeet.database.migrations import upgrade
    from swapmeet.gateway.assembly import assemble
    from swapmeet.gateway.listener import event_loop, listening
    from swapmeet.settings import load_settings

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    url = f"sqlite:///{home}/swapmeet.db"
    upgrade(database := Database(url))
    database.close()
    settings = load_settings(home=home, base="bench", database=url, registry=adapters)
    replicas: Any = SimpleNamespace()  # nobody asks a model
    app = assemble(settings, transfer.BASE, replicas, background=lambda *_: nullcontext())
    tenancy = app.state.services.tenancy
    tenancy.tenants.ensure("bench")
    with event_loop() as loop, listening(app, loop, "127.0.0.1", port, drain=1):
        print(tenancy.keys.create("bench", ["owner"]).key, flush=True)
        signal.pause()


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--serve", nargs=3, metavar=("PORT", "HOME", "ADAPTERS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(int(given.serve[0]), Path(given.serve[1]), given.serve[2])
        return
    asked, moves, rounds, begun = (50, 5, 2, 3) if given.quick else (500, 25, 5, 15)
    with tempfile.TemporaryDirectory() as scratch, transfer.server() as bucket:
        home, kept = Path(scratch), Path(scratch) / "adapters"
        adapter = transfer.adapter(home / "adapter", 1)
        folder, remote = Registry(kept.as_uri()), Registry(S3Store(bucket, "names"))
        for registry in (folder, remote):
            registry.push(adapter, "bench/warm", base=transfer.BASE, alias="prod")
        with api(home, kept) as (url, key):
            found: dict[str, Any] = {"resolve": resolves(folder, remote, url, key, asked)}
        found["alias_moves_folder"] = alias_moves(folder, "folder", adapter, moves, rounds)
        found["alias_moves_s3"] = alias_moves(remote, "S3", adapter, moves, rounds)
        with transfer.slowed(1000, FAR):
            afar = Registry(S3Store(bucket, "afar"))
            found["alias_moves_far_s3"] = alias_moves(afar, "far S3", adapter, moves, rounds)
        found["start"] = starts(kept.as_uri(), begun)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
