"""Time to the first token by where the adapter is, and what loading adapters does to running streams.

    python benchmarks/serving/cold_and_hot.py [--rounds 10] [--streams 8] [--tokens 128] [--every 0.2] [--no-s3]

One request at a time asks a replica whose memory holds a single adapter, so that each new one evicts the last:

    memory      the adapter was asked for just before
    disk        it is in the replica's folder, whose every file is checked against its digest again
    registry    it is in a local-folder registry: fetched, checked, written durably, opened, read
    s3          the same out of S3, here a server on loopback

The replica says with each answer where it found the adapter, and an answer from elsewhere ends the benchmark. Files
were written shortly before, so reading them costs no seek: what is measured is the platform, not the disk.

Then streams run on one adapter while another request of one token comes every so many seconds: not at all; for an
adapter in memory; or for the next of 24 others, of which 4 have room, so that nearly each is loaded and evicts one.
"""

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from measure import (
    Answer,
    Side,
    adapter_bytes,
    bench_base,
    parser,
    percentile,
    random_adapter,
    report,
    serve_side,
)

from swapmeet_registry import Registry
from swapmeet_serving import Call, Sampling

if TYPE_CHECKING:
    from swapmeet_serving.replica import Replica

PROMPT = "Tell me a short story about a fox near the sea."
ROOM, OTHERS = 4, 24
WARM_UP = 2


def main() -> None:
    """Publish, measure, print tables, end with one JSON line."""
    parse = parser(__doc__)
    parse.add_argument("--rounds", type=int, default=10)
    parse.add_argument("--streams", type=int, default=8)
    parse.add_argument("--tokens", type=int, default=128, help="of each stream")
    parse.add_argument("--every", type=float, default=0.2, help="seconds between the other requests")
    parse.add_argument("--no-s3", action="store_true")
    parse.add_argument("--side", nargs=3, metavar=("REGISTRY", "FOLDER", "ROOM"), help="for the script itself")
    options = parse.parse_args()
    if options.side:
        url, folder, room = options.side
        serve_side(lambda: side(url, Path(folder), int(room)))
        return
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        urls = {"registry": f"file://{folder}/registry"}
        if not options.no_s3:
            urls["s3"] = stack.enter_context(s3_server(folder / "s3"))
        adapter = random_adapter(bench_base().path, folder / "adapter", seed=0)
        adapters = {kind: publish(url, adapter, options.rounds + WARM_UP) for kind, url in urls.items()}
        firsts = time_to_first_token(urls, adapters, folder, options.rounds)
        others = publish(urls["registry"], adapter, OTHERS + 1, "other")
        gaps = between_tokens(urls["registry"], others, folder, options)
    show(firsts, gaps, options)


def publish(url: str, adapter: Path, count: int, tenant: str = "bench") -> list[str]:
    """So many names for the same weights, which have a digest each because the name is part of it."""
    registry, fingerprint = Registry(url), bench_base().fingerprint
    names = [f"{tenant}/{number}" for number in range(count)]
    return [registry.push(adapter, name, base=fingerprint).pinned for name in names]


def time_to_first_token(
    urls: dict[str, str], adapters: dict[str, list[str]], folder: Path, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds by tier, which take turns; each registry has a replica of its own."""
    found: dict[str, list[float]] = {tier: [] for tier in ("memory", "disk", *urls)}
    with ExitStack() as stack:
        replicas = {kind: stack.enter_context(_side(url, folder / f"cache-{kind}", 1)) for kind, url in urls.items()}
        for number in range(rounds + WARM_UP):
            for kind, replica in replicas.items():
                asked = [(kind, number, "registry"), ("memory", number, "device")]
                asked += [("disk", number - 1, "disk")] if number else []
                for tier, which, expected in asked:
                    answer = replica.ask(adapter=adapters[kind][which])
                    if answer["from"] != expected:
                        raise SystemExit(f"The adapter came from {answer['from']}, not from {expected}.")
                    if number >= WARM_UP:
                        found[tier].append(answer["ms"])
    return found


def between_tokens(url: str, adapters: list[str], folder: Path, options: Any) -> dict[str, dict[str, float]]:
    """Milliseconds between tokens of the streams, by what else is asked for; medians of the rounds."""
    streamed, *others = adapters
    loads = {"nothing else": [], "in memory": [streamed], "loading": others}
    rounds = max(1, options.rounds // 3)
    with _side(url, folder / "cache-streams", ROOM) as replica:
        work = {"streamed": streamed, "streams": options.streams, "tokens": options.tokens, "every": options.every}
        turns = [{name: replica.ask(others=each, **work) for name, each in loads.items()} for _ in range(rounds + 1)]
    measured = turns[1:]  # the first was the warm-up
    figures = ("p50", "p99", "requests")
    return {name: {each: round(median(turn[name][each] for turn in measured), 2) for each in figures} for name in loads}


def show(firsts: dict[str, list[float]], gaps: dict[str, dict[str, float]], options: Any) -> None:
    """The tables and the line."""
    first = {tier: round(median(values), 1) for tier, values in firsts.items()}
    ratios = {tier: round(each / first["memory"], 2) for tier, each in first.items()}
    print(f"\n{'first token':12} {'median ms':>9} {'p99':>8} {'to memory':>9}")
    for tier, values in firsts.items():
        print(f"{tier:12} {first[tier]:9.1f} {percentile(values, 99):8.1f} {ratios[tier]:9.2f}")
    print(f"\n{'others':12} {'p50 ms':>9} {'p99 ms':>8} {'requests':>9}")
    for name, each in gaps.items():
        print(f"{name:12} {each['p50']:9.2f} {each['p99']:8.2f} {each['requests']:9.0f}")
    between = {name.replace(" ", "_"): each for name, each in gaps.items()}
    settings = {"rounds": options.rounds, "streams": options.streams}
    report("cold_and_hot", **settings, first_token_ms=first, over_memory=ratios, between_tokens_ms=between)


def _side(url: str, cache: Path, room: int) -> Side:
    return Side(sys.executable, Path(__file__), "--side", url, cache, str(room))


def side(url: str, cache: Path, room: int) -> Answer:
    """A replica whose memory has room for so many adapters."""
    from swapmeet_serving.replica import Replica
    from swapmeet_serving.replica_settings import ReplicaSettings

    base = bench_base()
    memory = room * adapter_bytes(base.path)
    replica = Replica(ReplicaSettings(base.path, base.fingerprint, url, cache, adapter_bytes=memory))
    numbers = itertools.count()

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        return asyncio.run(streams(replica, numbers, **question) if "streams" in question else one(question["adapter"]))

    async def one(adapter: str) -> dict[str, Any]:
        moments, tier = await ask(replica, numbers, adapter, 2)
        return {"ms": 1000 * (moments[1] - moments[0]), "from": tier}

    return answer


async def ask(replica: "Replica", numbers: Iterator[int], adapter: str, tokens: int) -> tuple[list[float], str | None]:
    """When a request was made and each of its tokens came, and where its adapter was."""
    sampling = Sampling(max_tokens=tokens, ignore_eos=True)
    call = Call(str(next(numbers)), prompt=PROMPT, adapter=adapter, sampling=sampling)
    moments, tier = [time.perf_counter()], None
    async for chunk in replica.generate(call):
        moments.append(time.perf_counter())
        tier = chunk.stages.adapter_from if chunk.stages else None
    return moments, tier


async def streams(
    replica: "Replica",
    numbers: Iterator[int],
    streamed: str,
    others: list[str],
    streams: int,
    tokens: int,
    every: float,
) -> dict[str, Any]:
    """Milliseconds between tokens of streams that run while others ask."""
    await ask(replica, numbers, streamed, 1)
    running = asyncio.gather(*(ask(replica, numbers, streamed, tokens) for _ in range(streams)))
    asked = []
    for other in itertools.cycle(others):
        if running.done():
            break
        asked.append(asyncio.create_task(ask(replica, numbers, other, 1)))
        await asyncio.sleep(every)
    moments = [each for each, _ in await running]
    await asyncio.gather(*asked)
    gaps = [1000 * (after - before) for each in moments for before, after in itertools.pairwise(each[1:])]
    return {"p50": percentile(gaps, 50), "p99": percentile(gaps, 99), "requests": len(asked)}


@contextmanager
def s3_server(home: Path) -> Iterator[str]:
    """A real S3 server on loopback, that the AWS variables point to; gives a bucket's URL."""
    home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    settings = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": address.rpartition(":")[2], "SERVICES": "s3", "AUTH": "false"}
    settings |= {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "IOT_MTLS_ENABLED": "0"}
    program = Path(sys.executable).with_name("ministack")
    os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    with (home / "log").open("wb") as log, subprocess.Popen([program], env=settings, stdout=log, stderr=log) as server:
        try:
            _wait_until_up(f"{address}/_ministack/health", server)
            import boto3

            boto3.client("s3").create_bucket(Bucket="bench")
            yield "s3://bench/registry"
        finally:
            server.terminate()


def _wait_until_up(url: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        if server.poll() is not None:
            break
        with suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit("The S3 server did not come up. Install ministack, or leave it out with --no-s3.")


if __name__ == "__main__":
    main()
