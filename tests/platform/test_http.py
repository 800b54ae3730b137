"""The gateway over real connections: floods of callers, an engine that has no room, and one that dies."""

import asyncio
import json
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from swapmeet.database.tables.base import now
from swapmeet.gateway.admission import Admission
from swapmeet.gateway.app import create_app
from swapmeet.gateway.listener import event_loop, listening
from swapmeet.gateway.services import Services
from swapmeet.tenancy import Tenancy
from swapmeet_registry import Registry
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_serving import Call, Chunk, join
from swapmeet_serving.replica import Replica
from swapmeet_serving.replica_settings import ReplicaSettings

DIGEST = "sha256:" + "0" * 64
BASE = Fingerprint(name="tiny", weights=DIGEST, tokenizer=DIGEST)
CONNECTIONS = 2000
LONG = {"model": "tiny", "prompt": "Hello", "max_tokens": 100, "extra_body": {"ignore_eos": True}}


class Crowd:
    """Replicas that begin to answer once so many calls are under way, each with its own prompt."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.under_way = self.most = 0
        self.complete = asyncio.Event()

    async def generate(self, call: Call) -> AsyncIterator[Chunk]:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if self.under_way >= self.size:
            self.complete.set()
        try:
            await self.complete.wait()
            yield Chunk(
                text=f"{call.prompt} is", token_ids=(1,), finish_reason=None, prompt_tokens=1, completion_tokens=1
            )
            await asyncio.sleep(0)
            yield Chunk(text=" here", token_ids=(1,), finish_reason="stop", prompt_tokens=1, completion_tokens=2)
        finally:
            self.under_way -= 1

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        return (join([chunk async for chunk in self.generate(call)]),)


@pytest.fixture
def gateway(
    tenancy: Tenancy, key_of: Callable[..., str], tmp_path: Path
) -> Callable[..., AbstractContextManager[tuple[str, Callable[[str], str]]]]:
    """`with gateway(replicas, caller_requests=256) as (url, key_of)`: listening, with a key for each tenant."""

    @contextmanager
    def start(replicas: Any, caller_requests: int = 256) -> Iterator[tuple[str, Callable[[str], str]]]:
        registry = Registry(f"file://{tmp_path}/registry")
        app = create_app(Services(registry, tenancy, BASE, replicas, Admission(caller_requests)))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with event_loop() as loop, listening(app, loop, "127.0.0.1", port, drain=5):
            yield f"http://127.0.0.1:{port}", lambda tenant: key_of(tenant, "infer")

    return start


@pytest.fixture(scope="module")
def settings(
    replica_settings: Callable[..., ReplicaSettings], tmp_path_factory: pytest.TempPathFactory
) -> ReplicaSettings:
    return replica_settings(tmp_path_factory.mktemp("http"))


def client_of(url: str, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=httpx.AsyncClient(trust_env=False, timeout=60)
    )


async def collect(stream: AsyncIterator[Any]) -> list[Any]:
    return [each async for each in stream]


async def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def error_of(failure: openai.APIStatusError) -> dict[str, Any]:
    return dict(failure.response.json()["error"])


def test_a_caller_with_too_many_requests_is_told_and_others_are_not_harmed(gateway: Callable[..., Any]) -> None:
    crowd = Crowd(4)

    async def flood(url: str, key_of: Callable[[str], str]) -> None:
        ana, ben = client_of(url, key_of("ana")), client_of(url, key_of("ben"))
        under_way = [asyncio.create_task(ana.completions.create(model="tiny", prompt=f"a{n}")) for n in range(3)]
        await until(lambda: crowd.under_way == 3)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                await ana.completions.create(model="tiny", prompt="more", stream=stream)
            assert caught.value.response.headers["retry-after"] == "1"
            assert error_of(caught.value) == {
                "message": "You have 3 requests under way already. Wait for one to end.",
                "type": "rate_limit_error",
                "param": None,
                "code": "rate_limit_exceeded",
            }
        assert [model.id async for model in ana.models.list()] == ["tiny"], "only what computes is counted"
        theirs = await ben.completions.create(model="tiny", prompt="b")  # the fourth, at which all are answered
        assert theirs.choices[0].text == "b is here"
        assert [each.choices[0].text for each in await asyncio.gather(*under_way)] == [
            f"a{n} is here" for n in range(3)
        ]
        again = await ana.completions.create(model="tiny", prompt="again")
        assert again.choices[0].text == "again is here"
        await ana.close()
        await ben.close()

    with gateway(crowd, caller_requests=3) as (url, key_of):
        asyncio.run(flood(url, key_of))
    assert crowd.most == 4


def test_a_full_engine_and_a_tenant_s_flood(settings: ReplicaSettings, gateway: Callable[..., Any]) -> None:
    """One place that computes and four that wait, of which three may be one tenant's."""
    replica = Replica(replace(settings, max_batch=1, max_queue=4))
    engine: Any = replica._engine
    run, go = engine._runner.run, threading.Event()

    def hold(*arguments: Any) -> Any:
        go.wait(60)
        return run(*arguments)

    engine._runner.run = hold

    async def flood(url: str, key_of: Callable[[str], str]) -> None:
        ana, ben, cara = (client_of(url, key_of(tenant)) for tenant in ("ana", "ben", "cara"))

        async def waiting(number: int) -> None:
            await until(lambda: engine.load.waiting == number)

        answers = [asyncio.create_task(ana.completions.create(**LONG))]
        await until(lambda: engine.load.running == 1)
        for number in range(1, 4):
            answers.append(asyncio.create_task(ana.completions.create(**LONG)))
            await waiting(number)
        with pytest.raises(openai.RateLimitError) as caught:
            await ana.completions.create(**LONG)
        assert (error_of(caught.value)["type"], caught.value.code) == ("rate_limit_error", "rate_limit_exceeded")
        assert "3 of your requests are waiting already" in caught.value.message
        assert caught.value.response.headers["retry-after"] == "1"
        answers.append(asyncio.create_task(ben.completions.create(**LONG)))
        await waiting(4)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as full:
                await cara.completions.create(**LONG, stream=stream)
            assert (full.value.status_code, full.value.code) == (503, "overloaded")
            assert error_of(full.value)["type"] == "server_error"
            assert full.value.response.headers["retry-after"] == "1"
        go.set()
        assert [each.usage.completion_tokens for each in await asyncio.gather(*answers) if each.usage] == [100] * 5
        after = await cara.completions.create(**LONG | {"max_tokens": 4})
        assert after.usage
        assert after.usage.completion_tokens == 4
        for client in (ana, ben, cara):
            await client.close()

    try:
        with gateway(replica) as (url, key_of):
            asyncio.run(flood(url, key_of))
    finally:
        go.set()


@contextmanager
def many_files() -> Iterator[None]:
    """Both ends of every connection are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * CONNECTIONS + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def ask(port: int, key: str, prompt: str, *, stream: bool) -> bytes:
    """One request on a connection of its own, without a client that would take more time than the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"model": "tiny", "prompt": prompt, "stream": stream}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def test_two_thousand_connections_at_once_are_all_answered(gateway: Callable[..., Any]) -> None:
    crowd = Crowd(CONNECTIONS)

    async def flood(url: str, key: str) -> list[bytes]:
        port = int(url.rpartition(":")[2])
        return await asyncio.gather(*(ask(port, key, f"caller {n},", stream=n % 2 == 1) for n in range(CONNECTIONS)))

    with many_files(), gateway(crowd, caller_requests=CONNECTIONS) as (url, key_of):
        answers = asyncio.run(flood(url, key_of("ana")))
        assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    assert crowd.most == CONNECTIONS
    for number, answer in enumerate(answers):
        assert answer.startswith(b"HTTP/1.1 200 "), answer[:200]
        if number % 2:
            assert answer.count(f"caller {number}, is".encode()) == answer.count(b'" here"') == 1
            assert b"data: [DONE]" in answer
        else:
            assert f'"caller {number}, is here"'.encode() in answer


@pytest.mark.parametrize("n", [1, 3])
def test_an_engine_that_dies_in_mid_stream(settings: ReplicaSettings, gateway: Callable[..., Any], n: int) -> None:
    replica = Replica(settings)
    engine: Any = replica._engine
    run, broken, steps = engine._runner.run, threading.Event(), 0

    def fail_later(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > 5:
            broken.wait(60)  # the first tokens have been read
            raise RuntimeError("the device is gone")
        return run(*arguments)

    engine._runner.run = fail_later
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": 400, "ignore_eos": True, "stream": True, "n": n}
    with gateway(replica) as (url, key_of):
        headers = {"authorization": f"Bearer {key_of('ana')}"}
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60, trust_env=False
        ) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            first = next(lines)
            broken.set()
            rest = [line for line in lines if line]
        assert json.loads(first.removeprefix("data: "))["choices"][0]["text"] is not None
        error = json.loads(rest[-1].removeprefix("data: "))["error"]
        assert (error["code"], error["type"], error["param"]) == ("engine_dead", "server_error", None)
        assert "the device is gone" in error["message"]
        assert all("error" not in json.loads(line.removeprefix("data: ")) for line in rest[:-1])
        after = httpx.post(
            f"{url}/v1/completions", json=body | {"stream": False}, headers=headers, timeout=60, trust_env=False
        )
        assert (after.status_code, after.json()["error"]["code"]) == (503, "engine_dead")
        assert after.headers["retry-after"] == "5"


def test_openai_s_client_raises_what_ends_a_stream(settings: ReplicaSettings, gateway: Callable[..., Any]) -> None:
    replica = Replica(settings)
    engine: Any = replica._engine

    def fail(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    async def read(url: str, key: str) -> None:
        client = client_of(url, key)
        stream = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=400,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        await anext(stream)
        engine._runner.run = fail
        with pytest.raises(openai.APIError) as caught:
            await collect(stream)
        assert caught.value.code == "engine_dead"
        await client.close()

    with gateway(replica) as (url, key_of):
        asyncio.run(read(url, key_of("ana")))


class Slow:
    """Replicas that make a token every ten milliseconds, as many as are asked for."""

    async def generate(self, call: Call) -> AsyncIterator[Chunk]:
        most = call.sampling.max_tokens or 100_000
        for made in range(1, most + 1):
            last = "length" if made == most else None
            yield Chunk(text="a", token_ids=(1,), finish_reason=last, prompt_tokens=7, completion_tokens=made)
            await asyncio.sleep(0.01)


def used(tenancy: Tenancy) -> tuple[int, int, int]:
    """Requests, tokens read and tokens made, as far as they are written."""
    (row,) = tenancy.usage.report(now() - timedelta(hours=1), now() + timedelta(hours=1))
    return row["inference_requests"], row["inference_prompt_tokens"], row["inference_output_tokens"]


def test_who_leaves_a_stream_pays_for_what_was_made(gateway: Callable[..., Any], tenancy: Tenancy) -> None:
    with gateway(Slow()) as (url, key_of):
        body, headers = {"model": "tiny", "prompt": "x", "stream": True}, {"authorization": f"Bearer {key_of('ana')}"}
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60, trust_env=False
        ) as answer:
            lines = answer.iter_lines()
            for _ in range(10):
                next(lines)
        deadline = time.monotonic() + 60
        while not used(tenancy)[0]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            tenancy.flush()
    requests, prompt, output = used(tenancy)
    assert (requests, prompt) == (1, 7)
    assert 5 <= output < 5000


def test_a_stop_lets_answers_end_and_writes_what_they_used(gateway: Callable[..., Any], tenancy: Tenancy) -> None:
    begun, lines = threading.Event(), list[str]()

    def read(url: str, key: str) -> None:
        body = {"model": "tiny", "prompt": "x", "stream": True, "max_tokens": 60}
        headers = {"authorization": f"Bearer {key}"}
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60, trust_env=False
        ) as answer:
            for line in answer.iter_lines():
                begun.set()
                lines.append(line)

    with gateway(Slow()) as (url, key_of):
        reader = threading.Thread(target=read, args=(url, key_of("ana")))
        reader.start()
        assert begun.wait(30)
    reader.join()
    assert lines[-2:] == ["data: [DONE]", ""]
    assert used(tenancy) == (1, 7, 60)
