"""Which version a name is answered by, as aliases move and versions are withdrawn: the gateway over a real replica."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from swapmeet.gateway.app import create_app
from swapmeet.gateway.services import Services
from swapmeet.gateway.unknown_models import UnknownModels
from swapmeet.tenancy import Tenancy
from swapmeet_registry import Registry, Version
from swapmeet_serving import Call, Chunk, join
from swapmeet_serving.replica import Replica

BODY = {"prompt": "Hello", "max_tokens": 12, "temperature": 0, "ignore_eos": True, "return_token_ids": True}


class Held:
    """A replica whose answers, once begun, go on when the test says so."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    async def generate(self, call: Call) -> AsyncIterator[Chunk]:
        async for chunk in self.replica.generate(call):
            yield chunk
            self.begun.set()
            await asyncio.to_thread(self.go.wait, 60)

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        return (join([chunk async for chunk in self.generate(call)]),)


class Counted(Registry):
    """A registry that counts look-ups."""

    asked = 0

    def resolve(self, ref: str) -> Version:
        self.asked += 1
        return super().resolve(ref)


@pytest.fixture(scope="module")
def replica(replica_settings: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Replica:
    return Replica(replica_settings(tmp_path_factory.mktemp("served")))


@pytest.fixture
def held(replica: Replica) -> Held:
    return Held(replica)


@pytest.fixture
def registry(replica: Replica) -> Counted:
    return Counted(replica._settings.registry)


@pytest.fixture
def now() -> list[float]:
    """What the gateway's memory of unknown names has for a clock."""
    return [0.0]


@pytest.fixture
def complete(
    held: Held, registry: Counted, now: list[float], tenancy: Tenancy, key_of: Callable[..., str]
) -> Iterator[Callable[[str], Any]]:
    base = held.replica._settings.fingerprint
    services = Services(registry, tenancy, base, held, unknown=UnknownModels(clock=lambda: now[0]))
    with TestClient(create_app(services), raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {key_of('admin', 'admin')}"
        yield lambda model: client.post("/v1/completions", json=BODY | {"model": model})


@pytest.fixture
def publish(
    registry: Counted, replica: Replica, random_lora: Callable[..., Path], tmp_path: Path
) -> Callable[..., Version]:
    def push(name: str, seed: int, alias: str | None = None) -> Version:
        folder = random_lora(replica._settings.base, tmp_path / f"{seed}", rank=4, seed=seed)
        return registry.push(folder, name, base=replica._settings.fingerprint, alias=alias)

    return push


def answered(response: Any) -> tuple[str, list[int]]:
    assert response.status_code == 200, response.text
    return response.headers["x-swapmeet-adapter"], response.json()["choices"][0]["token_ids"]


def message(response: Any) -> str:
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    return str(response.json()["error"]["message"])


def while_running(held: Held, ask: Callable[[], Any], change: Callable[[], None]) -> Any:
    """The answer to what was asked before the change, and had begun by then."""
    held.begun.clear()
    held.go.clear()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask)
        assert held.begun.wait(60)
        try:
            change()
        finally:
            held.go.set()
        return running.result(60)


def test_a_moved_alias_counts_at_once_and_what_runs_keeps_its_version(
    complete: Callable[[str], Any], publish: Callable[..., Version], registry: Counted, held: Held
) -> None:
    one, two = publish("acme/moves", 1, alias="prod"), publish("acme/moves", 2)
    of_one, of_two = answered(complete(one.pinned)), answered(complete(two.pinned))
    assert (of_one[0], of_two[0]) == (one.pinned, two.pinned)
    assert of_one[1] != of_two[1]

    def move() -> None:
        registry.tag("acme/moves", "prod", "2")

    assert answered(while_running(held, lambda: complete("acme/moves:prod"), move)) == of_one
    assert answered(complete("acme/moves:prod")) == of_two
    assert answered(complete("acme/moves:1")) == of_one


def test_a_yanked_version_ends_with_the_next_request_and_what_runs_goes_on(
    complete: Callable[[str], Any], publish: Callable[..., Version], registry: Counted, held: Held
) -> None:
    one, two = publish("acme/leaks", 3), publish("acme/leaks", 4, alias="prod")
    of_one, of_two = answered(complete(one.pinned)), answered(complete(two.pinned))
    names = ("acme/leaks:2", "acme/leaks:prod", "acme/leaks:prod*0.5+acme/leaks:1*0.5")

    def yank() -> None:
        registry.yank("acme/leaks:prod", "names of clients")
        for name in names:
            assert "acme/leaks:2 was yanked: names of clients." in message(complete(name))

    assert answered(while_running(held, lambda: complete("acme/leaks:prod"), yank)) == of_two
    assert answered(complete("acme/leaks")) == of_one, "the newest that is not yanked"
    assert answered(complete(two.pinned)) == of_two, "whoever pinned it is not broken"
    assert held.replica._engine.resident


def test_unknown_names_are_looked_up_once_a_moment_and_known_ones_each_time(
    complete: Callable[[str], Any], publish: Callable[..., Version], registry: Counted, now: list[float]
) -> None:
    first = message(complete("acme/late"))
    assert "There is no adapter acme/late" in first
    assert registry.asked == 1
    assert {message(complete("acme/late")) for _ in range(20)} == {first}
    assert registry.asked == 1
    assert "There is no adapter acme/other" in message(complete("acme/other"))
    assert registry.asked == 2

    version = publish("acme/late", 5)
    assert message(complete("acme/late")) == first
    now[0] += 1.0
    assert answered(complete("acme/late"))[0] == version.pinned
    asked = registry.asked
    for _ in range(3):
        complete("acme/late")
    assert registry.asked == asked + 3
