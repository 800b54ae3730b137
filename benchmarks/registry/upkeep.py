"""The upkeep of a registry of 100,000 versions: to list it, rebuild its index, collect its garbage, and check it.

    python benchmarks/registry/upkeep.py [--versions 100000] [--quick]

Writes a registry of 10 versions a name, with manifests and small blobs that versions share, into a local folder, and a
smaller one onto an S3 server on loopback (left out where none is installed). Each step is a process of its own, whose
peak memory stands beside the same on a tenth and a half of the versions. Beside it what one would do instead: `find`,
and a script that reads every head, or every head and manifest, one after the other and keeps what it read. Seconds are
of a clock, and of the processor. Ends with one JSON line.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from swapmeet_registry import Fingerprint, Lora, Manifest, Registry, StoredFile
from swapmeet_registry.head import Head
from swapmeet_registry.index import Index
from swapmeet_registry.store_backend import StoreBackend
from swapmeet_registry.stores.local import MARK
from swapmeet_registry.upkeep.collection import collect
from swapmeet_registry.upkeep.fsck import fsck

EACH, TENANTS, SHARED = 10, 100, 1000
"""Versions of a name, tenants, and different weights, so that blobs are shared as after many equal runs."""
GARBAGE = 1000
PARTS = (0.1, 0.5, 1.0)
ON_S3 = 20
"""How many times smaller the registry on S3 is."""
GROWTH_MB = 32
"""What half of the versions may need less than all: caches are full by then, a folder's listing is sorted in memory."""
STEPS = (
    "list",
    "names by a script",
    "rebuild",
    "refresh, one new",
    "fsck",
    "read all by a script",
    "gc",
    "gc, garbage",
)
DAY = "2026-01-01T00:00:00.{:06}Z"


def objects(versions: int) -> Iterator[tuple[str, bytes]]:
    """The keys and bytes of a registry, heads last."""
    config = b'{"r": 8}' + b" " * 400
    blobs = [config, *(f"weights {number}".encode() * 40 for number in range(min(SHARED, versions)))]
    digests = [hashlib.sha256(each).hexdigest() for each in blobs]
    yield from ((f"blobs/sha256/{digest}", data) for digest, data in zip(digests, blobs, strict=True))
    base = Fingerprint(name="base", weights="sha256:" + "a" * 64, tokenizer="sha256:" + "b" * 64)
    lora = Lora(rank=8, max_rank=8, alpha=16, target_modules=("q_proj", "v_proj"), parameters=500_000)
    sample, chance = None, random.Random(1)
    for adapter in range(versions // EACH):
        name = f"tenant-{adapter % TENANTS:03}/adapter-{adapter}"
        head = Head(adapter=name, visibility="public")
        for number in range(adapter * EACH, (adapter + 1) * EACH):
            place = 1 + number % (len(blobs) - 1)
            files = tuple(
                StoredFile(path=path, size=len(blobs[at]), sha256=digests[at])
                for path, at in (("adapter_config.json", 0), ("adapter_model.safetensors", place))
            )
            facts = {"adapter": name, "created_at": DAY.format(number % 1_000_000), "files": files}
            if sample is None:
                sample = Manifest.build(
                    base=base, lora=lora, metrics={"loss": 0.5}, license="mit", tags=("law", "chat"), **facts
                )
            made = sample.model_copy(update={**facts, "metrics": {"loss": chance.random()}})
            head = head.publish(made.digest, made.created_at, f"{number:032x}")
            yield f"manifests/{made.digest.replace(':', '/')}", made.encode()
        yield f"heads/{name}.json", head.encode()


def fill_folder(folder: Path, versions: int) -> None:
    """Write a registry as the local store has it, without waiting for the disk."""
    (folder / MARK).mkdir(parents=True)
    for key, data in objects(versions):
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def fill_store(url: str, versions: int) -> None:
    """Write a registry through the store."""
    from concurrent.futures import ThreadPoolExecutor

    backend = _backend(url)

    def put(each: tuple[str, bytes]) -> None:
        backend.store.put(each[0], each[1], hashlib.sha256(each[1]).hexdigest())

    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(put, objects(versions)):
            pass


def litter(backend: StoreBackend) -> None:
    """Objects that nobody needs."""
    for number in range(GARBAGE):
        data = f"garbage {number}".encode()
        digest = hashlib.sha256(data).hexdigest()
        backend.store.put(f"blobs/sha256/{digest}", data, digest)


def publish_one(backend: StoreBackend) -> None:
    """One more version of one name."""
    found = list(backend.store.list("heads/tenant-000/"))
    stored = backend.store.get(found[0])
    assert stored is not None
    head = Head.decode(stored.data, found[0])
    manifest = backend.store.get(f"manifests/{head.versions[-1].digest.replace(':', '/')}")
    assert manifest is not None
    made = Manifest.decode(manifest.data, "a manifest").model_copy(update={"tags": (f"{time.time_ns()}",)})
    backend.store.put(f"manifests/{made.digest.replace(':', '/')}", made.encode(), made.digest[7:])
    head = head.publish(made.digest, made.created_at, f"{time.time_ns():032x}")
    backend.store.swap(found[0], head.encode(), stored.etag)


def read_all(backend: StoreBackend, *, manifests: bool) -> dict[str, Any]:
    """What a script does: read one head after the other, and of each version its manifest and its files' sizes."""
    found = {}
    for key in backend.store.list("heads/"):
        stored = backend.store.get(key)
        assert stored is not None
        head = json.loads(stored.data)
        found[head["adapter"]] = [each["digest"] for each in head["versions"]]
        for digest in found[head["adapter"]] if manifests else ():
            data = backend.store.get(f"manifests/{digest.replace(':', '/')}")
            assert data is not None
            assert hashlib.sha256(data.data).hexdigest() == digest[7:]
            for file in json.loads(data.data)["files"]:
                assert backend.store.size(f"blobs/sha256/{file['sha256']}") == file["size"]
    return found


def step(name: str, url: str, index: str) -> dict[str, Any]:
    """One step in this process: wall and CPU seconds, and its peak memory in MB."""
    registry, backend, database = Registry(url), _backend(url), Index(f"sqlite:///{index}")

    def check() -> None:
        assert fsck(url).sound

    def clean(objects: int) -> None:
        assert collect(backend.store, age=0).objects == objects

    works: dict[str, Callable[[], Any]] = {
        "list": registry.names,
        "names by a script": lambda: read_all(backend, manifests=False),
        "rebuild": lambda: database.rebuild(registry),
        "refresh, one new": lambda: database.refresh(registry),
        "fsck": check,
        "read all by a script": lambda: read_all(backend, manifests=True),
        "gc": lambda: clean(0),
        "gc, garbage": lambda: clean(GARBAGE),
    }
    if name == "refresh, one new":
        publish_one(backend)
    if name == "gc, garbage":
        litter(backend)
    wall, cpu = time.perf_counter(), time.process_time()
    works[name]()
    taken = {"seconds": round(time.perf_counter() - wall, 2), "cpu": round(time.process_time() - cpu, 2)}
    return taken | {"mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}


def apart(name: str, url: str, index: Path) -> dict[str, Any]:
    """A step in a process of its own."""
    command = [sys.executable, __file__, "--step", name, url, str(index)]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def find(folder: Path) -> dict[str, Any]:
    """What `find` takes to list the heads."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(["find", folder / "heads", "-name", "*.json"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(time.perf_counter() - began, 2), "cpu": round(cpu, 2), "mb": 0}


@contextmanager
def s3() -> Iterator[str | None]:
    """The URL of a new bucket on a server of our own, where one is installed; the AWS variables lead to it."""
    program = shutil.which("ministack") or shutil.which("ministack", path=str(Path(sys.executable).parent))
    if program is None:
        yield None
        return
    import boto3

    with socket.socket() as free, tempfile.TemporaryDirectory() as state:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        for key in [each for each in os.environ if each.startswith("AWS_")]:
            del os.environ[key]
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        settings = {"SERVICES": "s3", "GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "IOT_MTLS_ENABLED": "0"}
        server = subprocess.Popen(
            [program],
            cwd=state,
            env=os.environ | settings | {"HOME": state, "TMPDIR": state},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for _ in range(600):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            boto3.client("s3").create_bucket(Bucket="upkeep")
            yield "s3://upkeep/registry"
        finally:
            server.terminate()
            server.wait()


def measure(versions: int, parts: tuple[float, ...]) -> dict[str, Any]:
    """Every step, of the whole and, for its memory, of parts."""
    with tempfile.TemporaryDirectory() as scratch:
        found: dict[str, Any] = {"versions": versions, "memory": {}}
        for part in parts:
            size, folder = int(versions * part), Path(scratch) / f"registry-{part}"
            fill_folder(folder, size)
            taken = {name: apart(name, folder.as_uri(), folder.with_suffix(".db")) for name in STEPS}
            found["memory"][size] = {name: row["mb"] for name, row in taken.items()}
            found["local"] = taken | {"find": find(folder)}
            shutil.rmtree(folder)
        with s3() as url:
            if url is not None:
                found["s3_versions"] = versions // ON_S3
                fill_store(url, versions // ON_S3)
                found["s3"] = {name: apart(name, url, Path(scratch) / "s3.db") for name in STEPS}
    return found


def show(found: dict[str, Any]) -> None:
    """The figures as tables."""
    for place in found.keys() & {"local", "s3"}:
        print(f"{place}: {found['versions' if place == 'local' else 's3_versions']:,} versions")
        for name, row in found[place].items():
            print(f"  {name:24} {row['seconds']:8.2f} s  {row['cpu']:8.2f} s CPU  {row['mb'] or '-':>5} MB")
    print("peak memory, MB, at " + ", ".join(f"{size:,}" for size in found["memory"]) + " versions")
    for name in STEPS:
        print(f"  {name:24} " + " ".join(f"{rows[name]:8}" for rows in found["memory"].values()))


def main() -> None:
    """Measure, show, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="2,000 versions")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(*options.step)))
        return
    found = measure(2000 if options.quick else options.versions, PARTS)
    show(found)
    ours = [name for name in STEPS if "script" not in name]
    sizes = list(found["memory"].values())
    grown = {name: sizes[-1][name] - sizes[1][name] for name in ours}
    met = max(grown.values()) < GROWTH_MB
    print(json.dumps({"benchmark": "registry/upkeep", **found, "grown_mb": grown, "met": met}))


def _backend(url: str) -> StoreBackend:
    backend = Registry(url).backend
    assert isinstance(backend, StoreBackend)
    return backend


if __name__ == "__main__":
    main()
