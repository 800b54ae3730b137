"""A Ray Serve replica: one engine, the thread that steps it, and the registry its adapters come from.

Names are resolved before they get here: a call names an adapter by its digest, and the bytes are verified
against it. Errors leave `generate` as they were raised; Ray wraps them in a `RayTaskError` whose `cause` is
the error itself.
"""

import asyncio
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapmeet_registry import Refused, Registry
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_serving.board import Board, Poster, poster_to, process_id
from swapmeet_serving.calls import Call, Chunk, Stages, Tier
from swapmeet_serving.chat import ChatTemplates
from swapmeet_serving.errors import EngineDead, InvalidRequest
from swapmeet_serving.metrics import Family
from swapmeet_serving.sequence import Output, Request

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

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
    """Owns an engine, answers calls from it, and posts its measurements to the board if there is one."""

    def __init__(self, settings: ReplicaSettings, board: "DeploymentHandle[Board] | None" = None) -> None:
        self._settings = settings
        self._id = process_id() if board else "alone"
        self._registry = Registry(settings.registry)
        self._flights: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        ready: Future[Engine] = Future()
        self._thread = threading.Thread(target=self._work, args=(ready,), name="engine", daemon=True)
        self._thread.start()
        self._engine = ready.result()
        self._templates = ChatTemplates(self._engine.tokenizer, self.fetch)
        self._fetchers = ThreadPoolExecutor(FETCHERS, "template-fetcher")
        self._streams: dict[str, _Stream] = {}
        if board:
            self._poster = Poster("replica", self._id, self.families, poster_to(board))

    def fetch(self, adapter: str) -> Path:
        """The folder of an adapter's verified files.

        Raises:
            BaseMismatch: it was trained on other weights than this base's.
            NotFound: there is no such adapter.
            Corrupt: its bytes are not those of its digest.
        """
        folder = self._folder(adapter)
        load = self._engine.meter.load
        # whoever comes second finds the folder there
        with self._flights[adapter], load(adapter, "check" if folder.exists() else "fetch"):
            self._pull(adapter, folder)
        return folder

    def families(self) -> list[Family]:
        """Everything measured here."""
        cache = self._settings.cache
        return self._engine.families({"disk": os.listdir(cache) if cache.exists() else []})

    async def generate(self, call: Call) -> AsyncIterator[Chunk]:
        """Stream one answer; leaving the generator cancels it.

        Raises:
            ServingError: the call can not be answered.
            RegistryError: its adapter can not be had.
        """
        began, tier = time.monotonic(), self._tier(call.adapter)
        stream = _Stream(asyncio.get_running_loop(), asyncio.Queue())
        await self._submit(call, stream)
        try:
            while True:
                output = await stream.outputs.get()
                if output.error:
                    raise output.error
                yield self._chunk(output, began, tier)
                if output.finish_reason:
                    return
        finally:
            del self._streams[call.request_id]
            self._engine.cancel(call.request_id)

    async def answer(self, call: Call) -> Chunk:
        """The whole answer in one message, where nobody reads along: it crosses processes once, not per token.

        Raises:
            ServingError: the call can not be answered.
            RegistryError: its adapter can not be had.
        """
        chunks = [chunk async for chunk in self.generate(call)]
        return replace(
            chunks[-1],
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        )

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

    def _folder(self, adapter: str) -> Path:
        return self._settings.cache / adapter.rpartition(":")[2]

    def _pull(self, adapter: str, folder: Path) -> None:
        try:
            self._registry.pull(adapter, folder, base=self._settings.fingerprint)
        except Refused:
            if not folder.exists():
                raise
            shutil.rmtree(folder)  # a damaged cache: fetch it anew
            self._registry.pull(adapter, folder, base=self._settings.fingerprint)

    def _tier(self, adapter: str | None) -> Tier | None:
        """Where an adapter is that is not in memory."""
        if not adapter:
            return None
        return "disk" if self._folder(adapter).exists() else "registry"

    def _chunk(self, output: Output, began: float, tier: Tier | None) -> Chunk:
        timeline = output.timeline
        return Chunk(
            output.text,
            output.token_ids,
            output.finish_reason,
            output.prompt_tokens,
            output.completion_tokens,
            Stages.of(timeline, self._id, tier, began) if timeline else None,
        )

    async def _submit(self, call: Call, stream: "_Stream") -> None:
        """Have the engine take the call; a refusal is counted as the call's outcome."""
        try:
            request = Request(call.request_id, await self._prompt(call), call.adapter, call.sampling)
            if request.id in self._streams:
                raise InvalidRequest(f"A request with the id {request.id} is under way. Choose another.")
            self._streams[request.id] = stream  # before the engine's thread can have an output for it
            try:
                self._engine.submit(request)
            except BaseException:
                del self._streams[request.id]
                raise
        except Exception as error:
            self._engine.meter.refused(error)
            raise

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
    loop: asyncio.AbstractEventLoop
    outputs: asyncio.Queue[Output]


def build_replicas(settings: ReplicaSettings, board: "Application | None" = None) -> "Application":
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
    application: Application = replicas.bind(settings, board)
    return application
