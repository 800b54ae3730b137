"""A Ray Serve replica: one engine, the thread that steps it, and the registry its adapters come from.

Names are resolved before they get here: a call names an adapter by its digest, and the bytes are verified
against it. Errors leave `generate` as they were raised; Ray wraps them in a `RayTaskError` whose `cause` is
the error itself.
"""

import asyncio
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapmeet_registry import Refused, Registry
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_serving.calls import Call, Chunk
from swapmeet_serving.chat import ChatTemplates
from swapmeet_serving.errors import EngineDead, InvalidRequest
from swapmeet_serving.heartbeat import Heartbeat
from swapmeet_serving.routing import Report
from swapmeet_serving.sequence import Output, Request

if TYPE_CHECKING:
    from ray.serve import Application

    from swapmeet_serving.engine import Engine

DEPLOYMENT = "Replica"
IDLE_SECONDS = 1.0
REPORT_SECONDS = 1.0
HEALTH_SECONDS = 3.0
DRAIN_POLL_SECONDS = 0.5
LOOK_BACK_SECONDS = 15.0
FETCHERS = 8


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many replicas there are, and how they come and go. Times are in seconds.

    Attributes:
        min_replicas: at least so many; with 0, the first call after a pause waits for a replica to start.
        max_replicas: at most so many.
        target_requests: calls under way for each replica that scaling aims at.
        upscale_delay: how long there must be too many calls before a replica is added.
        downscale_delay: how long there must be too few before one is taken away.
        drain: how long a replica that is to go may go on with its answers.
        max_queued: most calls that one gateway holds back because no replica takes them.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target_requests: float = 32
    upscale_delay: float = 10
    downscale_delay: float = 600
    drain: float = 60
    max_queued: int = 512


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
        step_timeout: seconds after which a step counts as stuck and the replica is replaced.
        scaling: how many replicas there are.
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
    step_timeout: float = 120
    scaling: Scaling = Scaling()


class Replica:
    """Owns an engine and answers calls from it."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._settings = settings
        self._heartbeat = Heartbeat(settings.step_timeout)
        self._reports = 0
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
        """Stream one answer; leaving the generator cancels it.

        Raises:
            ServingError: the call can not be answered.
            RegistryError: its adapter can not be had.
        """
        request = Request(call.request_id, await self._prompt(call), call.adapter, call.sampling)
        if request.id in self._streams:
            raise InvalidRequest(f"A request with the id {request.id} is under way. Choose another.")
        stream = _Stream(asyncio.get_running_loop(), asyncio.Queue())
        self._streams[request.id] = stream  # before the engine's thread can have an output for it
        try:
            self._engine.submit(request)
            while True:
                output = await stream.outputs.get()
                if output.error:
                    raise output.error
                yield _chunk(output)
                if output.finish_reason:
                    return
        finally:
            del self._streams[request.id]
            self._engine.cancel(request.id)

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
            "process": os.getpid(),
        }

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces the replica when this raises.

        Raises:
            EngineDead: the engine's thread ended, or is stuck in a step.
        """
        if not self._thread.is_alive():
            raise EngineDead("The engine's thread ended; this replica must be replaced.")
        self._heartbeat.check()

    def record_routing_stats(self) -> dict[str, Any]:
        """Called by Ray Serve every second, for the request routers."""
        self._reports += 1
        load = self._engine.load
        report = Report(
            self._reports,
            adapters=tuple(sorted({*self._engine.resident, *load.wanted})),
            running=load.running,
            waiting=load.waiting,
            free_pages=load.free_pages,
            steps_per_second=round(self._heartbeat.rate(), 1),
        )
        return asdict(report)

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
            with self._heartbeat.step():
                outputs = engine.step()
            for output in outputs:
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


def _chunk(output: Output) -> Chunk:
    return Chunk(output.text, output.token_ids, output.finish_reason, output.prompt_tokens, output.completion_tokens)


def build_replicas(settings: ReplicaSettings, replica: type[Replica] = Replica) -> "Application":
    """The replica as a Ray Serve application, to bind into a gateway or to run by itself."""
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    from swapmeet_serving.request_router import AdapterRouter

    scaling = settings.scaling
    router: Any = {"request_router_class": AdapterRouter, "request_routing_stats_period_s": REPORT_SECONDS}
    replicas = serve.deployment(
        name=DEPLOYMENT,
        # More calls than the engine takes, so that it answers `Overloaded` instead of calls piling up unseen.
        max_ongoing_requests=settings.max_batch + 2 * settings.max_queue,
        max_queued_requests=scaling.max_queued,
        autoscaling_config=AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_requests,
            upscale_delay_s=scaling.upscale_delay,
            downscale_delay_s=scaling.downscale_delay,
            look_back_period_s=max(LOOK_BACK_SECONDS, scaling.upscale_delay),
        ),
        request_router_config=RequestRouterConfig(**router),
        graceful_shutdown_timeout_s=scaling.drain,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_SECONDS,
        health_check_period_s=HEALTH_SECONDS,
        ray_actor_options={
            "num_cpus": settings.cpus,
            "num_gpus": 1 if settings.device.startswith("cuda") else 0,
        },
    )(replica)
    application: Application = replicas.bind(settings)
    return application
