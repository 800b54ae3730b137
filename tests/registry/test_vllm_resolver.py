"""vLLM's plugin, against the interface that vLLM has for it; and against vLLM itself where that is installed."""

import asyncio
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import BaseNotFound, Fingerprint, InvalidName, Registry, StoreError, StoreFull
from swapmeet_registry.copies.held_folders import HeldFolders
from swapmeet_registry.errors import SigningKeyInvalid
from swapmeet_registry.fingerprint import fingerprint
from swapmeet_registry.signing.keys import make_keys
from swapmeet_registry.vllm_resolver import Resolver, Settings, int_id, register

REPOSITORY = Path(__file__).parents[2]


@dataclass
class LoRARequest:
    """As vLLM's: a name, a number from 1, and a folder."""

    lora_name: str
    lora_int_id: int
    lora_path: str

    def __post_init__(self) -> None:
        assert self.lora_int_id >= 1
        assert self.lora_path


class LoRAResolver(ABC):
    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None: ...


@dataclass
class Registered:
    resolvers: dict[str, Any] = field(default_factory=dict)

    def get_supported_resolvers(self) -> set[str]:
        return set(self.resolvers)

    def register_resolver(self, name: str, resolver: Any) -> None:
        assert isinstance(resolver, LoRAResolver)
        self.resolvers[name] = resolver


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Registered:
    """The interface, without vLLM."""
    registered = Registered()
    modules: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.lora.resolver": {"LoRAResolver": LoRAResolver, "LoRAResolverRegistry": registered},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return registered


@dataclass
class Place:
    registry: Registry
    folder: Path
    base: Path
    fingerprint: Fingerprint
    made: list[Resolver] = field(default_factory=list)

    def resolver(self, **settings: Any) -> Resolver:
        given: dict[str, Any] = {
            "registry": self.registry.backend.url, "tenants": frozenset({"acme"}), "cache": self.folder / "cache",
        }  # fmt: skip
        self.made.append(Resolver(Settings(**given | settings)))
        return self.made[-1]

    def resolve(self, name: str, resolver: Resolver | None = None) -> Any:
        return asyncio.run((resolver or self.resolver()).resolve_lora(str(self.base), name))

    def cached(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "cache").iterdir() if path.name.startswith("sha256-"))


@pytest.fixture
def place(vllm: Registered, tiny_llama: Path, make_adapter: Callable[..., Path], tmp_path: Path) -> Iterator[Place]:
    registry, base = Registry((tmp_path / "registry").as_uri()), fingerprint(tiny_llama, "tiny")
    for seed in range(2):
        registry.push(make_adapter(tmp_path / str(seed), seed), "acme/legal", base=base)
    registry.tag("acme/legal", "prod", "1")
    registry.push(tmp_path / "0", "ben/mine", base=base)
    place = Place(registry, tmp_path, tiny_llama, base)
    yield place
    for each in place.made:
        each.close()


def test_name_number_and_folder_follow_the_digest(place: Place) -> None:
    first, second = place.registry.show("acme/legal").versions
    resolver = place.resolver()
    for name, version in {"acme/legal": second, "acme/legal:prod": first, "acme/legal:1": first}.items():
        request = place.resolve(name, resolver)
        assert request.lora_name == version.pinned
        assert request.lora_int_id == int_id(version.digest)
        folder = Path(request.lora_path)
        assert folder == place.folder / "cache" / version.digest.replace(":", "-")
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}
    assert len(place.cached()) == 2
    place.registry.tag("acme/legal", "prod", "2")
    assert place.resolve("acme/legal:prod", resolver).lora_name == second.pinned
    assert place.resolve(second.pinned).lora_name == second.pinned  # another process finds the folder there


def test_numbers_fit() -> None:
    digests = ["sha256:" + character * 64 for character in "0123456789abcdef"]
    assert all(1 <= int_id(digest) < 2**31 for digest in digests)
    assert len(set(map(int_id, digests))) == 16


def test_what_is_not_served(place: Place, other_base: Fingerprint, caplog: pytest.LogCaptureFixture) -> None:
    place.registry.push(place.folder / "0", "acme/foreign", base=other_base)
    cases = {
        "gpt-4": "is not an adapter name",
        "../../etc/passwd": "is not an adapter name",
        "acme/" + "x" * 5000: "is not an adapter name",
        "acme/nothing": "There is no adapter acme/nothing",
        "acme/legal:9": "There is no acme/legal:9",
        "ben/mine": "SWAPMEET_VLLM_TENANTS does not name ben",
        "acme/foreign": "trained on other with weights sha256:ccc",
    }
    for name, words in cases.items():
        caplog.clear()
        assert place.resolve(name) is None
        assert words in caplog.text
    assert place.resolve("ben/mine", place.resolver(tenants=None)) is not None
    place.registry.recall("acme/legal:1", "poisoned")
    assert place.resolve("acme/legal:1") is None
    assert "poisoned" in caplog.text
    with pytest.raises(BaseNotFound, match="Set SWAPMEET_BASE to the folder with Org/Model's weights"):
        asyncio.run(place.resolver().resolve_lora("Org/Model", "acme/legal"))
    served = asyncio.run(place.resolver(base=place.base).resolve_lora("Org/Model", "acme/legal"))
    assert served is not None


def test_damaged_bytes_are_not_served(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    version = place.registry.resolve("acme/legal")
    request = place.resolve("acme/legal")
    for each in place.made:
        each.close()
    (Path(request.lora_path) / "adapter_model.safetensors").write_bytes(b"changed")  # in the cache: fetched anew
    again = place.resolve("acme/legal")
    assert (Path(again.lora_path) / "adapter_model.safetensors").read_bytes() != b"changed"
    for each in place.made:
        each.close()
    shutil.rmtree(request.lora_path)
    for file in place.registry.manifest(version).files:
        (place.folder / "registry" / "blobs" / "sha256" / file.sha256).write_bytes(b"changed")
    assert place.resolve("acme/legal") is None
    assert "Publish the adapter again" in caplog.text
    assert place.cached() == []


def test_one_fetches_for_all(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    pulls: list[object] = []
    pull = Registry.pull

    def counted(self: Registry, *arguments: Any, **more: Any) -> Any:
        pulls.append(arguments[0])
        return pull(self, *arguments, **more)

    monkeypatch.setattr(Registry, "pull", counted)
    resolver = place.resolver()

    async def all_at_once() -> list[Any]:
        names = ["acme/legal:prod", "acme/legal:1"] * 20
        return await asyncio.gather(*(resolver.resolve_lora(str(place.base), name) for name in names))

    assert len({(each.lora_name, each.lora_path) for each in asyncio.run(all_at_once())}) == 1
    assert len(pulls) == 1


def test_the_cache_is_bounded_and_what_is_in_use_stays(place: Place, make_adapter: Callable[..., Path]) -> None:
    version = place.registry.resolve("acme/legal:1")
    size = place.registry.manifest(version).size
    budget = size * 5 // 2  # two of them
    held = place.resolve("acme/legal:1", place.resolver(cache_bytes=budget))
    other = place.resolver(cache_bytes=budget)
    assert place.resolve("acme/legal:2", other) is not None
    for seed in range(2, 4):
        place.registry.push(make_adapter(place.folder / str(seed), seed), "acme/legal", base=place.fingerprint)
    with pytest.raises(StoreFull, match="restart the server"):
        place.resolve("acme/legal:3", place.resolver(cache_bytes=budget))
    other.close()  # as the end of its process does
    last = place.resolver(cache_bytes=budget)
    assert place.resolve("acme/legal:3", last) is not None
    assert Path(held.lora_path).is_dir()
    assert place.cached() == sorted(
        place.registry.resolve(f"acme/legal:{number}").digest.replace(":", "-") for number in (1, 3)
    )


def test_what_took_the_place_of_a_folder_is_not_removed_for_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at an old folder and its lock, another process deletes it, fetches it anew, and holds that."""
    old, new = map(place.registry.resolve, ("acme/legal:1", "acme/legal:2"))
    budget = place.registry.manifest(old).size * 3 // 2
    folders, other = (HeldFolders(place.folder / "cache", place.registry, budget) for _ in range(2))
    folder = folders.fetch(old, place.fingerprint)
    folders.close()
    flock, anew = fcntl.flock, shutil.copytree(folder, place.folder / "anew")

    def replaced(handle: int, how: int) -> None:
        if os.path.samestat(os.fstat(handle), folder.stat()):
            monkeypatch.setattr(fcntl, "flock", flock)
            shutil.rmtree(folder)
            anew.rename(folder)
            other.fetch(old, place.fingerprint)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", replaced)
    with pytest.raises(StoreFull):
        folders.fetch(new, place.fingerprint)
    assert (folder / "adapter_model.safetensors").is_file()
    other.close()


def test_a_folder_that_is_gone_again_costs_no_handle(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    version, handles = place.registry.resolve("acme/legal:1"), Path("/proc/self/fd")
    folders = HeldFolders(place.folder / "cache", place.registry, 1 << 30)
    folders.fetch(version, place.fingerprint)
    folders.close()
    before, utime = len(list(handles.iterdir())), os.utime

    def gone(folder: Path) -> None:
        monkeypatch.setattr(os, "utime", utime)
        shutil.rmtree(folder)
        utime(folder)

    monkeypatch.setattr(os, "utime", gone)
    assert folders.fetch(version, place.fingerprint).is_dir()
    folders.close()
    assert len(list(handles.iterdir())) == before


@pytest.mark.parametrize("seconds", [0, 7200])
def test_a_folder_that_grows_slowly_is_not_cleared_away(place: Place, seconds: int) -> None:
    partial = place.folder / "cache" / ".sha256-x.partial"
    partial.mkdir(parents=True)
    (partial / "adapter_model.safetensors").touch()
    os.utime(partial / "adapter_model.safetensors", (time.time() - seconds,) * 2)
    os.utime(partial, (time.time() - 7200,) * 2)
    place.resolve("acme/legal:1")
    assert partial.exists() is (seconds == 0)


def test_many_at_once_keep_what_they_hold(place: Place, make_adapter: Callable[..., Path]) -> None:
    """Holders come and go, with room for half; whoever holds a folder finds its files there."""
    for seed in range(2, 6):
        place.registry.push(make_adapter(place.folder / str(seed), seed), "acme/legal", base=place.fingerprint)
    versions = place.registry.show("acme/legal").versions
    budget = place.registry.manifest(versions[0]).size * 7 // 2
    failures: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for turn in range(12):
                folders = HeldFolders(place.folder / "cache", place.registry, budget)
                version = versions[(start + turn) % len(versions)]
                try:
                    folder = folders.fetch(version, place.fingerprint)
                    names = {file.path for file in place.registry.manifest(version).files}
                    assert names <= {path.name for path in folder.iterdir()}
                except StoreFull:
                    continue
                finally:
                    folders.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not list((place.folder / "cache").glob(".sha256-*"))


FETCHING = """
import sys, time
from pathlib import Path
from swapmeet_registry import Registry
from swapmeet_registry.copies.held_folders import HeldFolders
url, root, budget, reference = sys.argv[1:]
registry = Registry(url)
version = registry.resolve(reference)
stage = HeldFolders._make_room
def then_wait(self, *given):
    stage(self, *given)
    print("promised", flush=True)
    time.sleep(600)
HeldFolders._make_room = then_wait
HeldFolders(Path(root), registry, int(budget)).fetch(version, registry.manifest(version).base)
"""


def test_a_budget_is_that_of_all_processes(place: Place) -> None:
    """Another process is about to write; what it will need is not there for us, unless it is killed."""
    first, second = map(place.registry.resolve, ("acme/legal:1", "acme/legal:2"))
    root, budget = place.folder / "cache", place.registry.manifest(first).size * 3 // 2
    folders = HeldFolders(root, place.registry, budget)
    given = (place.registry.backend.url, str(root), str(budget), "acme/legal:1")
    with subprocess.Popen([sys.executable, "-c", FETCHING, *given], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "promised\n"
            with pytest.raises(StoreFull):
                folders.fetch(second, place.fingerprint)
        finally:
            other.kill()
    assert folders.fetch(second, place.fingerprint).is_dir()
    assert folders._turns == {}
    assert not list(root.glob("*.coming")) + list(root.glob(".*.coming"))
    folders.close()


def test_only_what_a_trusted_key_signed_is_served_where_that_is_asked_for(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    private, public, _ = make_keys(place.folder / "keys")
    environment = {
        "SWAPMEET_REGISTRY": place.registry.backend.url,
        "SWAPMEET_VLLM_TENANTS": "acme",
        "SWAPMEET_SIGNATURES": "require",
        "SWAPMEET_TRUSTED_KEYS": str(public),
    }
    settings = Settings.read(environment)
    assert settings is not None
    assert place.resolve("acme/legal:1", place.resolver(trust=settings.trust)) is None
    assert "acme/legal:1 is not served" in caplog.text
    place.registry.sign("acme/legal:1", private)
    assert place.resolve("acme/legal:1", place.resolver(trust=settings.trust)) is not None
    with pytest.raises(InvalidName, match="Set it to off, warn, require"):
        Settings.read(environment | {"SWAPMEET_SIGNATURES": "yes"})
    with pytest.raises(SigningKeyInvalid, match="without trusted keys"):
        Settings.read(environment | {"SWAPMEET_TRUSTED_KEYS": ""})


def test_registration(vllm: Registered, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SWAPMEET_")]:
        monkeypatch.delenv(name)
    register()
    assert vllm.resolvers == {}  # nothing is configured
    monkeypatch.setenv("SWAPMEET_REGISTRY", place.registry.backend.url)
    with pytest.raises(InvalidName, match="Name the tenants"):
        register()
    monkeypatch.setenv("SWAPMEET_VLLM_TENANTS", "acme, ben")
    monkeypatch.setenv("SWAPMEET_VLLM_CACHE", str(place.folder / "cache"))
    monkeypatch.setenv("SWAPMEET_BASE", str(place.base))
    register()
    register()
    (resolver,) = vllm.resolvers.values()
    assert asyncio.run(resolver.resolve_lora("any", "ben/mine")) is not None
    resolver.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SWAPMEET_VLLM_TENANTS", "acme,BEN"),
        ("SWAPMEET_VLLM_TENANTS", " , "),
        ("SWAPMEET_VLLM_CACHE_BYTES", "0"),
        ("SWAPMEET_VLLM_CACHE_BYTES", "1e9"),
        ("SWAPMEET_VLLM_CACHE_BYTES", "-5"),
    ],
)
def test_wrong_settings_are_told(name: str, value: str) -> None:
    environment = {"SWAPMEET_REGISTRY": "file:///x", "SWAPMEET_VLLM_TENANTS": "acme"} | {name: value}
    with pytest.raises(InvalidName):
        Settings.read(environment)


def test_settings() -> None:
    everybody = {"SWAPMEET_REGISTRY": "s3://bucket/x", "SWAPMEET_VLLM_TENANTS": "*", "SWAPMEET_VLLM_CACHE_BYTES": "7"}
    read = Settings.read(everybody | {"SWAPMEET_VLLM_CACHE": "/cache", "SWAPMEET_BASE": "~/base"})
    assert read == Settings("s3://bucket/x", None, Path("/cache"), 7, Path("~/base").expanduser())
    assert Settings.read({}) is None


def test_an_unreachable_registry_is_an_error(place: Place, aws: pytest.MonkeyPatch) -> None:
    """And not an adapter that does not exist, which its clients would take for final."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    aws.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    aws.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreError):
        place.resolve("acme/legal", place.resolver(registry="s3://bucket/prefix"))


REAL = """
import asyncio, json, sys
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry
from swapmeet_registry.vllm_resolver import register

register()
resolver = LoRAResolverRegistry.get_resolver("swapmeet")
assert isinstance(resolver, LoRAResolver)
assert asyncio.run(resolver.resolve_lora(sys.argv[1], "acme/nothing")) is None
request = asyncio.run(resolver.resolve_lora(sys.argv[1], "acme/legal:prod"))
assert isinstance(request, LoRARequest)
print(json.dumps([request.lora_name, request.lora_int_id, request.lora_path]))
"""


@pytest.mark.slow
def test_vllm_itself_takes_it(place: Place, tmp_path: Path) -> None:
    """SWAPMEET_VLLM_PYTHON names the Python of an environment with vLLM."""
    python = os.environ.get("SWAPMEET_VLLM_PYTHON", "")
    if not python:
        pytest.skip("SWAPMEET_VLLM_PYTHON does not name a Python with vLLM")
    version = place.registry.resolve("acme/legal:prod")
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY / "registry"),
        "SWAPMEET_REGISTRY": place.registry.backend.url,
        "SWAPMEET_VLLM_TENANTS": "acme",
        "SWAPMEET_VLLM_CACHE": str(tmp_path / "cache"),
    }
    command = [python, "-W", "ignore", "-c", REAL, str(place.base)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "cache" / version.digest.replace(":", "-")
    assert json.loads(done.stdout.splitlines()[-1]) == [version.pinned, int_id(version.digest), str(folder)]
