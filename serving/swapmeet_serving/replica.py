"""A replica: one engine, the thread that steps it, and the registry its adapters come from.

Names are resolved before they get here: a call names adapters by their digests, and the bytes are verified against
them. Errors leave `generate` as they were raised.
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from swapmeet_registry import Registry, RegistryError
from swapmeet_serving.adapter_folders import AdapterFolders
from swapmeet_serving.answers import Answers, UnderWay
from swapmeet_serving.calls import Call, Chunk, Stages, Tier, join
from swapmeet_serving.chat import ChatTemplates
from swapmeet_serving.echo import Echo
from swapmeet_serving.errors import BaseUnsupported, EngineDead, InvalidRequest
from swapmeet_serving.heartbeat import Heartbeat
from swapmeet_serving.metrics import Family
from swapmeet_serving.prompts import Prompts
from swapmeet_serving.recall_watch import Done, RecallWatch, Users
from swapmeet_serving.replica_settings import ReplicaSettings
from swapmeet_serving.request import Output
from swapmeet_serving.routing import Report
from swapmeet_serving.scheduler import most_of_one_tenant
from swapmeet_serving.text_limit import TextLimit
from swapmeet_serving.tools.calling import ToolCalling

if TYPE_CHECKING:
    from swapmeet_serving.engine import Engine
    from swapmeet_serving.grammars import Grammar

IDLE_SECONDS = 1.0
LEAST_CONTEXT = 1024
"""Tokens that a sequence can have at least, if the base's context is as long: less would refuse nearly everything."""
COMPILERS = 2
"""Threads that compile grammars: few, because they take the engine's cores."""


class Replica:
    """Owns an engine and answers calls from it; `id` names it in traces."""

    def __init__(self, settings: ReplicaSettings, id: str = "alone") -> None:  # noqa: A002 - the word of traces
        self._settings = settings
        self._id = id
        self._heartbeat = Heartbeat(settings.step_timeout)
        self._reports = 0
        self._under_way = UnderWay(lambda name: self._engine.cancel(name))  # which its thread is about to make
        ready: Future[Engine] = Future()
        self._thread = threading.Thread(target=self._work, args=(ready,), name="engine", daemon=True)
        registry = Registry(settings.registry, settings.trust)
        self._folders = AdapterFolders(
            settings.cache, registry, settings.fingerprint, self._time_load, settings.cache_bytes
        )
        self._thread.start()
        self._engine = ready.result()
        tokenizer, limit = self._engine.tokenizer, TextLimit(self._engine.tokenizer, self._engine.room)
        self._templates = ChatTemplates(tokenizer, self._folders.fetch, settings.tool_format, limit=limit.check)
        self._prompts = Prompts(tokenizer, self._templates, limit)
        self._tools = ToolCalling(tokenizer, self._templates, self._engine.compile)
        self._compilers = ThreadPoolExecutor(COMPILERS, "grammar-compiler")
        self._users = Users()
        self._recalls = RecallWatch(
            registry, settings.fingerprint.name, id, self._held, self._drop, self._users, lambda: self._engine.dead
        )

    def families(self) -> list[Family]:
        """Everything measured here."""
        return self._engine.families({"disk": self._folders.digests()})

    async def generate(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """Stream a call's answers, in turn as they grow; leaving the generator cancels them.

        Raises:
            ServingError: the call can not be answered.
            RegistryError: its adapter can not be had.
        """
        try:
            answers = await self._begin(call)
        except Exception as error:
            self._engine.meter.refused(error)
            raise
        begun: set[int] = set()
        left = call.n
        try:
            while left:
                output = await answers.outputs.get()
                if output.error:
                    raise output.error
                chunk = self._chunk(output, answers)
                if answers.readers:
                    chunk = answers.readers[chunk.index].read(chunk)
                if answers.echo and chunk.index not in begun:
                    begun.add(chunk.index)
                    chunk = answers.echo.before(chunk, output.prompt_logprobs)
                yield chunk
                left -= output.finish_reason is not None
        finally:
            self._under_way.leave(answers)

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

    async def _begin(self, call: Call) -> Answers:
        """Have the engine take a call, all of its answers or none."""
        began = time.monotonic()
        most = most_of_one_tenant(self._settings.max_queue)
        if call.n > most:
            raise InvalidRequest(f"n is {call.n}, and {most} answers are the most at once.")
        tier = self._tier(call)
        self._users.add(call.adapters, call.tenant)
        prompt, grammar = await self._prompts.of(call), await self._grammar(call)
        readers = [self._tools.reader(call) for _ in range(call.n)] if call.tools else None
        answers = Answers(call, prompt, grammar, self._tools.shown(call), readers, tier, began)
        requests = answers.requests()
        self._under_way.add(answers, requests)  # before the engine's thread can have an output for them
        try:
            for request in requests:
                self._engine.submit(request)
            if call.echo:  # of tokens that the engine found to be some
                answers.echo = Echo.of(call.prompt, prompt, self._engine.tokenizer)
        except BaseException:
            self._under_way.leave(answers)
            raise
        return answers

    def _tier(self, call: Call) -> Tier | None:
        """Where a call's adapters are that are not in memory: as far away as the farthest of them."""
        if not call.adapters:
            return None
        copies = self._engine.in_host_memory
        if copies and all(adapter in copies for adapter in call.adapters):
            return "host"
        return "disk" if all(adapter in self._folders for adapter in call.adapters) else "registry"

    def _held(self) -> set[str]:
        return {*self._engine.resident, *self._engine.in_host_memory, *self._engine.load.wanted}

    def _drop(self, adapter: str, error: RegistryError) -> Done:
        """Serve an adapter no more; returns when the engine has let it go."""
        held = adapter in self._held() or adapter in self._folders
        ended = self._engine.withdraw(adapter, error).result(self._settings.step_timeout)
        self._folders.remove(adapter)
        return Done(held or ended > 0, ended)

    def _chunk(self, output: Output, answers: Answers) -> Chunk:
        timeline = output.timeline
        return Chunk(
            text=output.text,
            token_ids=output.token_ids,
            finish_reason=output.finish_reason,
            prompt_tokens=output.prompt_tokens,
            completion_tokens=output.completion_tokens,
            cached_tokens=output.cached_tokens,
            logprobs=output.logprobs,
            index=self._under_way.index(output),
            stages=Stages.of(timeline, self._id, answers.tier, answers.began) if timeline else None,
        )

    async def _grammar(self, call: Call) -> "Grammar | None":
        if not call.constraint and not call.tools:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._compilers, self._tools.grammar, call)

    def _time_load(self, adapter: str, step: str) -> AbstractContextManager[None]:
        return self._engine.meter.load(adapter, step)

    def _work(self, ready: "Future[Engine]") -> None:
        """The engine's thread: makes it, and steps it until it dies."""
        try:
            engine = self._make_engine()
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(engine)
        try:
            while not engine.dead:
                engine.wait(IDLE_SECONDS)
                with self._heartbeat.step():
                    outputs = engine.step()
                self._under_way.hand_out(outputs)
        except BaseException as error:  # whatever it is, nobody steps the engine any more
            self._under_way.hand_out(engine.fail(error))

    def _make_engine(self) -> "Engine":
        from swapmeet_serving.engine import Engine

        settings = self._settings
        engine = Engine(
            settings.base,
            fetch=self._folders.fetch,
            adapter_bytes=settings.adapter_bytes,
            host_bytes=settings.host_bytes,
            kv_bytes=settings.kv_bytes,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            threads=settings.threads,
            device=settings.device,
            quantization=settings.fingerprint.quantization,
            exact=settings.exact,
        )
        least = min(engine.context_length, LEAST_CONTEXT)
        if engine.room < least:
            engine.close()
            raise BaseUnsupported(
                f"{settings.kv_bytes} bytes for keys and values hold {engine.room} tokens of this base, and at least "
                f"{least} must have room. Set kv_memory to {engine.kv_bytes(least)} or more."
            )
        return engine
