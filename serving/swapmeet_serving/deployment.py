"""A Ray Serve replica: one engine, the thread that steps it, and the registry its adapters come from.

Names are resolved before they get here: a call names an adapter by its digest, and the bytes are verified
against it. Errors leave `generate` as they were raised; Ray wraps them in a `RayTaskError` whose `cause` is
the error itself.
"""

import asyncio
import shutil
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapmeet_registry import Refused, Registry
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_serving.calls import Call, Chunk, join
from swapmeet_serving.chat import ChatTemplates
from swapmeet_serving.echo import Echo
from swapmeet_serving.errors import EngineDead, InvalidRequest
from swapmeet_serving.sequence import Output, Request

if TYPE_CHECKING:
    from ray.serve import Application

    from swapmeet_serving.engine import Engine

IDLE_SECONDS = 1.0
FETCHERS = 8


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """What a replica is made from; it travels to the replica's process.

    Attributes:
        base: folder of the base.
        fingerprint: the base's; adapters of other weights are refused.
        registry: URL of the registry.
        cache: folder for adapters, each in one named by its digest; replicas may share it.
        cpus: what Ray sets aside for the replica.
        threads: CPU threads of a forward pass; all of the machine's if None.
        exact: compute in the very order of transformers and PEFT, bit for bit, and slower.
    """

    base: Path
    fingerprint: Fingerprint
    registry: str
    cache: Path
    device: str = "cpu"
    max_batch: int = 32
    max_queue: int = 256
    adapter_bytes: int = 256 << 20
    kv_bytes: int = 512 << 20
    cpus: float = 1
    threads: int | None = None
    exact: bool = False


class Replica:
    """Owns an engine and answers calls from it."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._settings = settings
        self._registry = Registry(settings.registry)
        self._flights: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        ready: Future[Engine] = Future()
        self._thread = threading.Thread(target=self._work, args=(ready,), name="engine", daemon=True)
        self._thread.start()
        self._engine = ready.result()
        self._templates = ChatTemplates(self._engine.tokenizer, self.fetch)
        self._fetchers = ThreadPoolExecutor(FETCHERS, "template-fetcher")
        self._streams: dict[str, _Stream] = {}

    def fetch(self, adapter: str) -> Path:
        """The folder of an adapter's verified files.

        Raises:
            BaseMismatch: it was trained on other weights than this base's.
            NotFound: there is no such adapter.
            Corrupt: its bytes are not those of its digest.
        """
        folder = self._settings.cache / adapter.rpartition(":")[2]
        with self._flights[adapter]:  # whoever comes second finds the folder there
            try:
                self._registry.pull(adapter, folder, base=self._settings.fingerprint)
            except Refused:
                if not folder.exists():
                    raise
                shutil.rmtree(folder)  # a damaged cache: fetch it anew
                self._registry.pull(adapter, folder, base=self._settings.fingerprint)
        return folder

    async def generate(self, call: Call) -> AsyncIterator[Chunk]:
        """Stream a call's answers, in turn as they grow; leaving the generator cancels them.

        Raises:
            ServingError: the call can not be answered.
            RegistryError: its adapter can not be had.
        """
        prompt, echo = await self._prompt(call), None
        if call.n > self._settings.max_queue:
            raise InvalidRequest(f"n is {call.n}, and {self._settings.max_queue} answers are the most at once.")
        if call.echo:
            echo = Echo.of(call.prompt, prompt, self._engine.tokenizer)
        requests = {_request_id(call, index): call.sampling.of_choice(index) for index in range(call.n)}
        if not requests.keys().isdisjoint(self._streams):
            raise InvalidRequest(f"A request with the id {call.request_id} is under way. Choose another.")
        stream = _Stream(asyncio.get_running_loop(), asyncio.Queue(), {each: n for n, each in enumerate(requests)})
        self._streams |= dict.fromkeys(requests, stream)  # before the engine's thread can have an output for them
        try:
            for request_id, sampling in requests.items():
                self._engine.submit(Request(request_id, prompt, call.adapter, sampling))
            begun: set[str] = set()
            left = call.n
            while left:
                output = await stream.outputs.get()
                if output.error:
                    raise output.error
                chunk = _chunk(output, stream.places[output.request_id])
                if echo and output.request_id not in begun:
                    begun.add(output.request_id)
                    chunk = echo.before(chunk, output.prompt_logprobs)
                yield chunk
                left -= output.finish_reason is not None
        finally:
            for request_id in requests:
                del self._streams[request_id]
                self._engine.cancel(request_id)

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        """The whole answers in one message, where nobody reads along: they cross processes once, not per token.

        Raises:
            ServingError: the call can not be answered.
            RegistryError: its adapter can not be had.
        """
        pieces: list[list[Chunk]] = [[] for _ in range(call.n)]
        async for chunk in self.generate(call):
            pieces[chunk.index].append(chunk)
        return tuple(join(each) for each in pieces)

    async def describe(self) -> dict[str, Any]:
        """What this replica holds."""
        return {
            "base": self._settings.fingerprint.name,
            "fingerprint": self._settings.fingerprint.model_dump(),
            "context_length": self._engine.context_length,
            "resident_adapters": self._engine.resident,
            "requests": self._engine.requests,
        }

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces the replica when this raises.

        Raises:
            EngineDead: the engine's thread ended.
        """
        if not self._thread.is_alive():
            raise EngineDead("The engine's thread ended; this replica must be replaced.")

    async def _prompt(self, call: Call) -> tuple[int, ...]:
        if call.messages is not None:
            if self._templates.knows(call.adapter):
                return self._templates.render(call.messages, call.adapter)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._fetchers, self._templates.render, call.messages, call.adapter)
        if call.prompt is None:
            raise InvalidRequest("Give messages or a prompt.")
        if isinstance(call.prompt, tuple):
            return call.prompt
        return tuple(self._engine.tokenizer(call.prompt).input_ids)

    def _work(self, ready: "Future[Engine]") -> None:
        """The engine's thread: makes it, and steps it until it dies."""
        try:
            engine = self._make_engine()
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(engine)
        while not engine.dead:
            engine.wait(IDLE_SECONDS)
            for output in engine.step():
                self._deliver(output)

    def _make_engine(self) -> "Engine":
        from swapmeet_serving.engine import Engine

        settings = self._settings
        return Engine(
            settings.base,
            fetch=self.fetch,
            adapter_bytes=settings.adapter_bytes,
            kv_bytes=settings.kv_bytes,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            threads=settings.threads,
            device=settings.device,
            quantization=settings.fingerprint.quantization,
            exact=settings.exact,
        )

    def _deliver(self, output: Output) -> None:
        stream = self._streams.get(output.request_id)
        if stream:
            stream.loop.call_soon_threadsafe(stream.outputs.put_nowait, output)


@dataclass(frozen=True, slots=True)
class _Stream:
    """Where a call's outputs go, and the answer that each request stands for."""

    loop: asyncio.AbstractEventLoop
    outputs: asyncio.Queue[Output]
    places: dict[str, int]


def _request_id(call: Call, index: int) -> str:
    return f"{call.request_id}/{index}" if index else call.request_id


def _chunk(output: Output, index: int) -> Chunk:
    return Chunk(
        text=output.text,
        token_ids=output.token_ids,
        finish_reason=output.finish_reason,
        prompt_tokens=output.prompt_tokens,
        completion_tokens=output.completion_tokens,
        cached_tokens=output.cached_tokens,
        logprobs=output.logprobs,
        index=index,
    )


def build_replicas(settings: ReplicaSettings) -> "Application":
    """The replica as a Ray Serve application, to bind into a gateway or to run by itself."""
    from ray import serve

    # More calls than the engine takes, so that it answers `Overloaded` instead of calls piling up unseen.
    replicas = serve.deployment(
        name="Replica",
        max_ongoing_requests=settings.max_batch + 2 * settings.max_queue,
        ray_actor_options={
            "num_cpus": settings.cpus,
            "num_gpus": 1 if settings.device.startswith("cuda") else 0,
        },
    )(Replica)
    application: Application = replicas.bind(settings)
    return application
