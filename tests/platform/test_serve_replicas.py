"""Engine replicas under a real Ray Serve: where calls go, and what happens when replicas come, go and die."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swapmeet.cluster import SERVE
from swapmeet.gateway.listener import event_loop
from swapmeet_registry import BaseMismatch, Registry
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_serving import Call, Chunk, Sampling, deployment
from swapmeet_serving.deployment import ServedReplica, build_replicas
from swapmeet_serving.errors import ContextTooLong, EngineDead, Overloaded
from swapmeet_serving.metrics import Snapshot
from swapmeet_serving.replica_settings import ReplicaSettings, Scaling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),  # Ray's
]
SHORT = Sampling(max_tokens=4, ignore_eos=True)
LONG = Sampling(max_tokens=400, ignore_eos=True)
QUICK = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}


class Stuck(ServedReplica):
    """Its engine hangs once a file called `stuck` lies beside the cache."""

    def __init__(self, settings: ReplicaSettings, board: Any = None) -> None:
        super().__init__(settings, board)
        runner: Any = self._engine._runner
        run = runner.run

        def hang(*arguments: Any) -> Any:
            flag = settings.cache.parent / "stuck"
            if flag.exists():
                flag.unlink()  # the replica that replaces this one goes on
                threading.Event().wait()
            return run(*arguments)

        runner.run = hang


@pytest.fixture(scope="module")
def settings(
    tiny_llama: Path,
    random_lora: Callable[..., Path],
    replica_settings: Callable[..., ReplicaSettings],
    tmp_path_factory: pytest.TempPathFactory,
) -> ReplicaSettings:
    """A registry with adapters of the base, and one of another base."""
    folder = tmp_path_factory.mktemp("platform")
    settings = replica_settings(folder, kv_bytes=16 << 20, cpus=0.1, scaling=Scaling(min_replicas=2, max_replicas=2))
    registry, here = Registry(settings.registry), settings.fingerprint
    for seed, name in enumerate(("one", "two", "three")):
        registry.push(random_lora(tiny_llama, folder / name, rank=8, seed=seed), f"acme/{name}", base=here)
    elsewhere = Fingerprint(**here.model_dump() | {"name": "other", "weights": "sha256:" + "f" * 64})
    registry.push(folder / "one", "acme/elsewhere", base=elsewhere)
    return settings


@pytest.fixture(scope="module")
def pinned(settings: ReplicaSettings) -> Callable[[str], str]:
    registry = Registry(settings.registry)
    return lambda name: registry.resolve(f"acme/{name}").pinned


@pytest.fixture(scope="module")
def on_the_loop() -> Iterator[Callable[..., None]]:
    """`on_the_loop(part, …)`: one after the other on the loop of a gateway, on which handles live."""
    with event_loop() as loop:

        def run(*parts: Callable[[], Coroutine[Any, Any, None]]) -> None:
            for part in parts:
                asyncio.run_coroutine_threadsafe(part(), loop).result(200)

        yield run


@pytest.fixture(scope="module")
def deploy(on_the_loop: Callable[..., None]) -> Iterator[Callable[..., Any]]:
    """`deploy(settings)`: the replicas as the gateway sees them; `replica` may be a class of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SERVE | QUICK).items():
            patch.setenv(name, value)
        patch.setattr(deployment, "HEALTH_SECONDS", 1.0)
        patch.setattr(deployment, "LOOK_BACK_SECONDS", 10.1)  # Ray wants more than 10
        import ray
        from ray import serve

        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        serve.start(proxy_location="Disabled")

        def run(settings: ReplicaSettings, replica: type[ServedReplica] = ServedReplica) -> Any:
            from swapmeet.gateway.replicas import ServeReplicas

            serve.delete("test")  # whatever the test before has left
            built = build_replicas(settings, None, replica)
            handle = serve.run(built, name="test", route_prefix=None, logging_config={"log_level": "ERROR"})
            deployed.append(ServeReplicas(handle, handle, lambda: Snapshot("gateway", "test", ())))
            return deployed[-1]

        deployed: list[Any] = []
        yield run
        for each in deployed:
            on_the_loop(each.close)
        serve.delete("test")
        ray.shutdown()


async def described(replicas: Any) -> dict[int, dict[str, Any]]:
    """What each replica holds, by process."""
    found = await replicas.handle.broadcast("describe").results_async()
    return {each["process"]: each for each in found}


async def stream(replicas: Any, call: Call, begun: Callable[[], object] = lambda: None) -> list[Chunk]:
    chunks = []
    async for chunk in replicas.generate(call):
        chunks.append(chunk)
        if len(chunks) == 1:
            begun()
    return chunks


def tokens_of(chunks: list[Chunk]) -> int:
    """How many came, which must be as many as the last chunk says."""
    came = sum(len(chunk.token_ids) for chunk in chunks)
    assert chunks[-1].completion_tokens == came
    return came


async def until(what: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not await what():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def leave_all_along_the_way(replicas: Any) -> None:
    """Whoever leaves is not computed for, however far the call has come."""
    begun = replicas.generate(Call("begun", prompt="Hello", sampling=LONG))
    assert (await anext(begun)).completion_tokens >= 1
    await begun.aclose()
    for n in range(40):  # on every part of the way
        asking = asyncio.create_task(stream(replicas, Call(f"left{n}", prompt="Hello", sampling=LONG)))
        await asyncio.sleep(n * 0.0003)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    async def idle() -> bool:
        return not any(each["requests"] for each in (await described(replicas)).values())

    await until(idle, 5)


async def answer_and_refuse(replicas: Any, pinned: Callable[[str], str]) -> None:
    """Streams at once, several answers to one call, and errors that are what the replica raised."""
    calls = [Call(name, prompt="Hello", adapter=pinned(name), sampling=LONG) for name in ("one", "two")]
    one, two = await asyncio.gather(*(stream(replicas, call) for call in calls))
    assert tokens_of(one) == tokens_of(two) == 400
    assert "".join(chunk.text for chunk in one) != "".join(chunk.text for chunk in two)
    several = await replicas.answer(Call("several", prompt="Hello", sampling=SHORT, n=3))
    assert [(each.index, len(each.token_ids)) for each in several] == [(0, 4), (1, 4), (2, 4)]
    for call, kind in (
        (Call("1", prompt="Hello", adapter=pinned("elsewhere")), BaseMismatch),
        (Call("2", prompt="Hello", sampling=Sampling(max_tokens=600)), ContextTooLong),
    ):
        for asked in (replicas.answer(call), stream(replicas, call)):
            with pytest.raises(kind) as caught:
                await asked
            assert type(getattr(caught.value, "cause", caught.value)) is kind  # Ray may have wrapped it


def test_a_cold_adapter_sticks_a_hot_one_spreads_and_a_death_costs_only_its_own(
    deploy: Callable[..., Any],
    on_the_loop: Callable[..., None],
    settings: ReplicaSettings,
    pinned: Callable[[str], str],
) -> None:
    replicas = deploy(settings)

    async def cold() -> None:
        for n in range(3):
            for name in ("one", "two", "three"):
                await replicas.answer(Call(f"{n}{name}", prompt="Hello", adapter=pinned(name), sampling=SHORT))
        held = [set(each["resident_adapters"]) for each in (await described(replicas)).values()]
        assert len(held) == 2
        assert not held[0] & held[1]
        assert held[0] | held[1] == {pinned(name) for name in ("one", "two", "three")}

    async def hot() -> None:
        calls = [Call(f"hot{n}", prompt="Hello", adapter=pinned("one"), sampling=LONG) for n in range(12)]
        answers = asyncio.gather(*(stream(replicas, call) for call in calls))

        async def spread() -> bool:
            return all(each["requests"] for each in (await described(replicas)).values())

        await until(spread)
        assert [tokens_of(each) for each in await answers] == [400] * 12
        assert all(pinned("one") in each["resident_adapters"] for each in (await described(replicas)).values())

    async def death() -> None:
        from ray.exceptions import RayActorError

        before = set(await described(replicas))
        begun = asyncio.Semaphore(0)
        calls = [Call(f"d{n}", prompt="Hello", adapter=pinned("one"), sampling=LONG) for n in range(12)]
        answers = asyncio.gather(*(stream(replicas, call, begun.release) for call in calls), return_exceptions=True)
        for _ in calls:
            await begun.acquire()
        victim, load = next(iter((await described(replicas)).items()))
        os.kill(victim, signal.SIGKILL)
        # Nothing of this one is out yet, so it may be sent again, and whoever asks next is not sent to the dead.
        whole = await replicas.answer(Call("whole", prompt="Hello", adapter=pinned("one"), sampling=LONG))
        assert whole[0].completion_tokens == 400
        results = await answers
        lost = [each for each in results if isinstance(each, BaseException)]
        assert all(isinstance(each, EngineDead) for each in lost), lost
        assert 0 < len(lost) <= load["requests"]
        assert all(tokens_of(each) == 400 for each in results if not isinstance(each, BaseException))

        async def recovered() -> bool:
            try:
                return len(set(await described(replicas)) - {victim}) == 2
            except RayActorError:
                return False  # not known to be dead yet

        await until(recovered)
        assert before - {victim} < set(await described(replicas))
        assert await replicas.state() == "ready"

    on_the_loop(
        cold,
        lambda: answer_and_refuse(replicas, pinned),
        hot,
        lambda: leave_all_along_the_way(replicas),
        death,
    )


def test_one_replica_wakes_for_a_bounded_queue_is_replaced_when_stuck_sleeps_and_finishes_what_it_has_begun(
    deploy: Callable[..., Any], on_the_loop: Callable[..., None], settings: ReplicaSettings
) -> None:
    from ray import serve

    scaling = Scaling(min_replicas=0, max_replicas=1, upscale_delay=0, downscale_delay=1, max_queued=2)
    replicas = deploy(replace(settings, step_timeout=1, scaling=scaling), Stuck)

    async def queue() -> None:
        assert await replicas.state() == "asleep"
        calls = [Call(f"c{n}", prompt="Hello", sampling=SHORT) for n in range(5)]
        results = await asyncio.gather(*(replicas.answer(call) for call in calls), return_exceptions=True)
        refused = [each for each in results if isinstance(each, Overloaded)]
        assert len(refused) == 3, results
        assert all(each[0].completion_tokens == 4 for each in results if each not in refused)
        assert await replicas.state() == "ready"

    async def stick() -> None:
        (first,) = await described(replicas)
        (settings.cache.parent / "stuck").touch()
        # Nobody has read a token of it, so it is sent once more, and waits for the replica that comes instead.
        answer = await asyncio.wait_for(stream(replicas, Call("2", prompt="Hello", sampling=SHORT)), 120)
        assert tokens_of(answer) == 4
        (second,) = await described(replicas)
        assert first != second

    async def sleep() -> None:
        async def asleep() -> bool:
            return await replicas.state() == "asleep"

        await until(asleep)

    async def drain() -> None:
        begun = asyncio.Event()
        answer = asyncio.create_task(stream(replicas, Call("1", prompt="Hello", sampling=LONG), begun.set))
        await begun.wait()
        await asyncio.to_thread(serve.delete, "test")
        assert tokens_of(await answer) == 400

    on_the_loop(queue, stick, sleep, drain)
