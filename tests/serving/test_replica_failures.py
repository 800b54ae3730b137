"""What a replica survives, and what its callers are told where it does not."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Registry
from swapmeet_registry.fingerprint import fingerprint
from swapmeet_serving import Call, Chunk, Sampling
from swapmeet_serving.calls import ToolUse
from swapmeet_serving.errors import BaseUnsupported, ContextTooLong, EngineDead, InvalidRequest
from swapmeet_serving.replica import Replica
from swapmeet_serving.replica_settings import ReplicaSettings
from swapmeet_serving.text_limit import TextLimit, characters_of

MESSAGES = ({"role": "user", "content": "Tell me a story"},)
SHORT = Sampling(max_tokens=6, ignore_eos=True)
LONG = Sampling(max_tokens=400, ignore_eos=True)
TEMPLATES = {
    "own": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "grows": "{{ 'a' * 10 ** 12 }}",
}
TOKEN_BYTES = 2 * 2 * 2 * 32 * 2


@pytest.fixture(scope="module")
def settings(
    tiny_llama: Path,
    random_lora: Callable[..., Path],
    replica_settings: Callable[..., ReplicaSettings],
    tmp_path_factory: pytest.TempPathFactory,
) -> ReplicaSettings:
    """A registry with adapters of which each has a chat template of its own."""
    folder = tmp_path_factory.mktemp("platform")
    settings = replica_settings(folder)
    adapter = random_lora(tiny_llama, folder / "adapter", rank=2)
    for name, template in TEMPLATES.items():
        (adapter / "chat_template.jinja").write_text(template)
        Registry(settings.registry).push(adapter, f"acme/{name}", base=settings.fingerprint)
    return settings


@pytest.fixture(scope="module")
def replica(settings: ReplicaSettings) -> Replica:
    return Replica(settings)


@pytest.fixture
def pinned(settings: ReplicaSettings) -> Callable[[str], str]:
    registry = Registry(settings.registry)
    return lambda name: registry.resolve(f"acme/{name}").pinned


async def collect(replica: Replica, call: Call) -> list[Chunk]:
    return [chunk async for chunk in replica.generate(call)]


def answered(replica: Replica, name: str = "next") -> None:
    """The replica answers as ever."""
    assert len(asyncio.run(collect(replica, Call(name, prompt="Hello", sampling=SHORT)))) == 6
    assert not replica._under_way


def test_hostile_templates_cost_their_own_requests_only(replica: Replica, pinned: Callable[[str], str]) -> None:
    def call(number: object, name: str, tenant: str) -> Call:
        return Call(f"{name}{number}", messages=MESSAGES, adapter=pinned(name), sampling=SHORT, tenant=tenant)

    async def flood() -> list[Any]:
        hostile = [collect(replica, call(n, name, "mallory")) for name in ("loops", "grows") for n in range(10)]
        good = [collect(replica, call(n, "own", "ana")) for n in range(10)]
        plain = [collect(replica, Call(f"plain{n}", messages=MESSAGES, sampling=SHORT)) for n in range(10)]
        return await asyncio.gather(*hostile, *good, *plain, return_exceptions=True)

    results = asyncio.run(flood())
    for name, group in (("loops", results[:10]), ("grows", results[10:20])):
        assert all(isinstance(each, InvalidRequest) for each in group), group
        assert all(f"The chat template of {pinned(name)}" in str(each) for each in group)
    assert [len(each) for each in results[20:]] == [6] * 20
    answered(replica)


def test_the_event_loop_goes_on_while_a_template_loops(replica: Replica, pinned: Callable[[str], str]) -> None:
    """The worker is stopped, so that whoever waited for it would wait for ever."""
    import os
    import signal

    renderer = replica._templates._renderer
    asyncio.run(collect(replica, Call("warm", messages=MESSAGES, adapter=pinned("own"), sampling=SHORT)))
    pids = [each._process.pid for each in renderer._workers.queue if each._process]

    async def others() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        waits = asyncio.create_task(
            collect(replica, Call("waits", messages=MESSAGES, adapter=pinned("own"), sampling=SHORT))
        )
        try:
            for n in range(3):
                assert len(await collect(replica, Call(f"p{n}", messages=MESSAGES, sampling=SHORT))) == 6
            assert not waits.done()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert len(await waits) == 6

    asyncio.run(others())


def test_what_can_not_fit_is_refused_before_it_is_tokenized(replica: Replica, pinned: Callable[[str], str]) -> None:
    """16 MiB of text, as a request may have, would take 5 GB on the way to tokens."""
    text = "a b " * (4 << 20)
    tool = {"name": "f", "description": text}
    calls = [
        Call("prompt", prompt=text),
        Call("message", messages=({"role": "user", "content": text},)),
        Call("own", messages=({"role": "user", "content": text},), adapter=pinned("own")),
        Call("tool", messages=MESSAGES, tools=ToolUse((tool,))),
    ]
    began = time.process_time()
    for call in calls:
        with pytest.raises(ContextTooLong, match="characters, more than the 512 tokens"):
            asyncio.run(collect(replica, call))
    assert time.process_time() - began < 1
    answered(replica)


def test_a_text_within_the_limit_is_tokenized_to_be_counted() -> None:
    class Tokenizer:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "longest": 1}

    limit = TextLimit(Tokenizer(), room=3)
    limit.check(3 * 7)
    with pytest.raises(ContextTooLong, match="22 characters, more than the 3 tokens"):
        limit.check(3 * 7 + 1)
    assert characters_of([{"ab": ["c", 1, None, {"d": "ef"}]}, ("g",)]) == 7


def test_who_can_not_be_told_is_cancelled_and_the_engine_goes_on(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    """As when an event loop is closed with its calls under way."""
    loop = asyncio.new_event_loop()
    gone = replica.generate(Call("gone", prompt="Hello", sampling=LONG, n=2))
    with caplog.at_level(logging.ERROR, "swapmeet.serving"):
        loop.run_until_complete(anext(gone))
        loop.close()
        deadline = time.monotonic() + 60
        while replica._engine.busy:
            assert time.monotonic() < deadline, "it is computed on for nobody"
            time.sleep(0.01)
    told = [each for each in caplog.records if "can not be delivered" in each.message]
    assert {name for each in told for name in ("gone", "gone/1") if name in each.message} == {"gone", "gone/1"}
    assert all(each.exc_info for each in told)
    assert not replica._under_way
    answered(replica, "gone")
    replica.check_health()


@pytest.mark.parametrize("error", [RuntimeError("the clock broke"), SystemExit("the clock broke")])
def test_an_engine_s_thread_that_ends_tells_all_who_wait(
    settings: ReplicaSettings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    """Outside of `step`, which mends itself: running, waiting and later calls all end, and the log says why."""
    replica = Replica(replace(settings, max_batch=1))
    broken = threading.Event()
    wait = replica._engine.wait

    def stop(timeout: float | None = None) -> None:
        if broken.is_set():
            raise error
        wait(timeout)

    monkeypatch.setattr(replica._engine, "wait", stop)

    async def calls() -> list[Any]:
        running = replica.generate(Call("running", prompt="Hello", sampling=LONG))
        await anext(running)
        tasks = [asyncio.create_task(collect(replica, Call(f"w{n}", prompt="Hello", sampling=LONG))) for n in range(3)]
        while len(replica._under_way) < 4:  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.001)
        broken.set()
        waiting = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        with pytest.raises(EngineDead, match="the clock broke"):
            async for _ in running:
                pass
        return waiting

    with caplog.at_level(logging.ERROR, "swapmeet.serving"):
        waiting = asyncio.run(calls())
    assert all(isinstance(each, EngineDead) and "the clock broke" in str(each) for each in waiting)
    (told,) = [each for each in caplog.records if each.message == "the engine ends"]
    assert told.exc_info
    assert told.exc_info[1] is error
    replica._thread.join(60)
    with pytest.raises(EngineDead, match="must be replaced"):
        replica.check_health()
    with pytest.raises(EngineDead, match="the clock broke"):
        asyncio.run(collect(replica, Call("late", prompt="Hello", sampling=SHORT)))


def test_memory_for_too_few_tokens_is_refused_at_the_start(settings: ReplicaSettings) -> None:
    enough = 512 * TOKEN_BYTES  # the tiny base's whole context
    with pytest.raises(BaseUnsupported, match=f"hold 496 tokens .* at least 512 .* kv_memory to {enough} or more"):
        Replica(replace(settings, kv_bytes=enough - 1))
    with pytest.raises(BaseUnsupported, match="hold 0 tokens"):
        Replica(replace(settings, kv_bytes=1))
    answered(Replica(replace(settings, kv_bytes=enough)))


def test_of_a_long_context_a_part_is_enough(settings: ReplicaSettings, make_base: Callable[..., Path]) -> None:
    base = make_base("llama", max_position_embeddings=4096, vocab_size=384)
    least = replace(settings, base=base, fingerprint=fingerprint(base, "long"))
    with pytest.raises(BaseUnsupported, match=r"hold 1008 tokens .* at least 1024"):
        Replica(replace(least, kv_bytes=1024 * TOKEN_BYTES - 1))
    answered(Replica(replace(least, kv_bytes=1024 * TOKEN_BYTES)))
