"""Everything at once for many minutes, and whether memory, or anything else, grows.

    python benchmarks/serving/soak.py [--minutes 15] [--clients 12] [--every 60]

A replica in this process, with a registry in a local folder, is asked by clients that each do one thing after another,
at random: the base, one of 12 adapters of which 4 have room in memory, a mix of two, an answer that is left early, an
adapter that does not exist, one that was trained on another base, and a name under which another adapter is published
every ten seconds. Every `--every` seconds a line tells medians of what was sampled each second, latencies of whole
answers, and what happened. At the end, a line is fitted through each column from the third line on: the column is flat
if the fit changes by no more than its tolerance. Anything that happens and should not ends the run with exit code 1.
"""

import asyncio
import itertools
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, mean, median
from typing import Any

from measure import adapter_bytes, bench_base, gauge, parser, percentile, random_adapter, report, resident_memory

from swapmeet_registry import BaseMismatch, NotFound, Registry
from swapmeet_serving import Call, Sampling
from swapmeet_serving.replica import Replica
from swapmeet_serving.replica_settings import ReplicaSettings

ADAPTERS, ROOM, RANK = 12, 4, 4
REPUBLISH_SECONDS = 10
NOWHERE = "soak/nowhere@sha256:" + "0" * 64
TOLERANCE = {"resident_mb": (0.03, 0), "kv_used": (0.25, 8), "kv_idle": (0.05, 8), "files": (0, 2), "threads": (0, 2),
             "p50_ms": (0.25, 0), "p99_ms": (0.5, 0)}  # fmt: skip
"""By how much a fitted column may change over the run: a part of its mean, or an absolute amount."""
FLAT_FROM = 3


@dataclass(slots=True)
class Tally:
    """What happened since the last line, and since the beginning."""

    seconds: list[float] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        """Count it."""
        self.counts[what] += 1

    def row(self) -> dict[str, float]:
        """The line's figures; the next line begins."""
        row = {name: round(median(each[name] for each in self.samples), 1) for name in self.samples[0]}
        times = [1000 * each for each in self.seconds] or [0.0]
        row |= {"p50_ms": round(percentile(times, 50), 1), "p99_ms": round(percentile(times, 99), 1)}
        self.total.update(self.counts)
        self.seconds, self.samples, self.counts = [], [], Counter()
        return row


class Soak:
    """The clients of one replica, and what they met."""

    def __init__(self, replica: Replica, registry: Registry, identities: list[str], misfit: str) -> None:
        self.replica, self.registry, self.tally = replica, registry, Tally()
        self._identities, self._misfit = identities, misfit
        self._random, self._numbers = random.Random(0), itertools.count()
        self._actions: dict[Callable[[], Awaitable[None]], int] = {
            self._base: 2, self._adapter: 8, self._mix: 2, self._leave: 2, self._missing: 1, self._wrong_base: 1,
            self._republished: 2,
        }  # fmt: skip

    async def client(self, until: float) -> None:
        """Do one thing after another."""
        while time.monotonic() < until:
            (action,) = self._random.choices(list(self._actions), self._actions.values())
            try:
                await action()
                self.tally.add(action.__name__.strip("_"))
            except Exception as error:
                self.tally.unexpected.append(f"{action.__name__}: {type(error).__name__}: {error}")

    async def publish(self, folders: list[Path], until: float) -> None:
        """Publish other weights under one name, again and again."""
        base = bench_base().fingerprint
        for folder in itertools.cycle(folders):
            await asyncio.to_thread(self.registry.push, folder, "soak/changing", base=base)
            self.tally.add("publish")
            await asyncio.sleep(min(REPUBLISH_SECONDS, max(0.0, until - time.monotonic())))
            if time.monotonic() >= until:
                return

    def sample(self) -> None:
        """Note what may grow."""
        engine = self.replica._engine
        self.tally.samples.append(
            {
                "resident_mb": resident_memory(),
                "kv_used": gauge(engine, "swapmeet_kv_pages_used"),
                "kv_idle": gauge(engine, "swapmeet_kv_pages_cached"),
                "files": len(os.listdir("/proc/self/fd")),
                "threads": threading.active_count(),
            }
        )

    async def _ask(self, adapter: Any, most: int | None = None) -> None:
        """One answer, or its first pieces."""
        chance = self._random
        prompt = tuple(chance.randrange(10, 200) for _ in range(chance.choice((8, 40, 150))))
        if chance.random() < 0.5:
            prompt = tuple(range(10, 42)) + prompt  # so that there is a prefix to find
        sampling = Sampling(max_tokens=chance.randrange(4, 48), ignore_eos=True, temperature=chance.choice((0.0, 0.8)))
        began, pieces = time.perf_counter(), 0
        call = Call(str(next(self._numbers)), prompt=prompt, adapter=adapter, sampling=sampling)
        async with aclosing(self.replica.generate(call)) as chunks:
            async for _ in chunks:
                pieces += 1
                if pieces == most:
                    return
        self.tally.seconds.append(time.perf_counter() - began)

    async def _base(self) -> None:
        await self._ask(None)

    async def _adapter(self) -> None:
        await self._ask(self._random.choice(self._identities))

    async def _mix(self) -> None:
        first, second = self._random.sample(self._identities, 2)
        await self._ask(((first, 0.7), (second, 0.3)))

    async def _leave(self) -> None:
        await self._ask(self._random.choice(self._identities), most=2)

    async def _missing(self) -> None:
        await _expect(NotFound, self._ask(NOWHERE))

    async def _wrong_base(self) -> None:
        await _expect(BaseMismatch, self._ask(self._misfit))

    async def _republished(self) -> None:
        version = await asyncio.to_thread(self.registry.resolve, "soak/changing")
        await self._ask(version.pinned)


async def _expect(error: type[Exception], coming: Awaitable[None]) -> None:
    try:
        await coming
    except error:
        return
    raise AssertionError(f"there was no {error.__name__}")


def main() -> None:
    """Run, print a line each minute, end with one JSON line."""
    parse = parser(__doc__)
    parse.add_argument("--minutes", type=float, default=15)
    parse.add_argument("--clients", type=int, default=12)
    parse.add_argument("--every", type=float, default=60, help="seconds between lines")
    options = parse.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak, folders = _make(Path(folder))
        rows = asyncio.run(_run(soak, folders, options))
    total, unexpected = soak.tally.total + soak.tally.counts, soak.tally.unexpected
    flat = {name: is_flat([row[name] for row in rows[FLAT_FROM - 1 :]], *TOLERANCE[name]) for name in TOLERANCE}
    print("\n" + ", ".join(f"{name}: {count}" for name, count in sorted(total.items())))
    for name, answer in flat.items():
        print(f"{name:12} {answer['change']:+9.1f} fitted, of {answer['mean']:.1f}: {answer['verdict']}")
    print(*unexpected[:10], sep="\n")
    verdicts = {name: answer["verdict"] for name, answer in flat.items()}
    settings = {"minutes": options.minutes, "clients": options.clients}
    report("soak", **settings, flat=verdicts, last=rows[-1], counts=total, unexpected=len(unexpected))
    sys.exit(1 if unexpected else 0)


def _make(folder: Path) -> tuple[Soak, list[Path]]:
    """A replica, and a registry with everything that is asked for."""
    base, url = bench_base(), f"file://{folder}/registry"
    registry = Registry(url)
    folders = [random_adapter(base.path, folder / str(seed), seed, RANK) for seed in range(4)]
    names = [f"soak/{number}" for number in range(ADAPTERS)]
    pushed = [registry.push(folders[n % 4], name, base=base.fingerprint).pinned for n, name in enumerate(names)]
    registry.push(folders[0], "soak/changing", base=base.fingerprint)
    other = base.fingerprint.model_copy(update={"name": "other", "weights": "sha256:" + "f" * 64})
    misfit = registry.push(folders[0], "soak/misfit", base=other).pinned
    memory = ROOM * adapter_bytes(base.path, RANK)
    settings = ReplicaSettings(
        base.path, base.fingerprint, url, folder / "cache", adapter_bytes=memory, kv_bytes=256 << 20
    )
    return Soak(Replica(settings), registry, pushed, misfit), folders


async def _run(soak: Soak, folders: list[Path], options: Any) -> list[dict[str, float]]:
    """The rows, printed as they come."""
    begin = time.monotonic()
    until = begin + 60 * options.minutes
    tasks = [asyncio.create_task(soak.client(until)) for _ in range(options.clients)]
    tasks.append(asyncio.create_task(soak.publish(folders, until)))
    rows: list[dict[str, float]] = []
    print(f"{'minute':>6}", *(f"{name:>11}" for name in TOLERANCE), " counts", flush=True)
    while (line := begin + options.every * (len(rows) + 1)) <= until + 1e-6:
        while time.monotonic() < line:
            await asyncio.sleep(min(1.0, max(0.01, line - time.monotonic())))
            soak.sample()
        counts = dict(sorted(soak.tally.counts.items()))
        rows.append(soak.tally.row())
        minute = (time.monotonic() - begin) / 60
        print(f"{minute:6.1f}", *(f"{rows[-1][name]:>11}" for name in TOLERANCE), f" {counts}", flush=True)
    await asyncio.gather(*tasks)
    return rows


def is_flat(values: list[float], part: float, amount: float) -> dict[str, Any]:
    """A line through the values, and whether it rises or falls by more than is tolerated between first and last."""
    if len(values) < 3:
        return {"change": 0.0, "mean": mean(values or [0.0]), "verdict": "too short to tell"}
    change = linear_regression(range(len(values)), values).slope * (len(values) - 1)
    flat = abs(change) <= max(part * mean(values), amount)
    return {"change": change, "mean": mean(values), "verdict": "flat" if flat else "not flat"}


if __name__ == "__main__":
    main()
