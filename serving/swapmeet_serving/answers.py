"""The answers to a call under way, between the engine's thread and the loop of whoever asked."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swapmeet_serving.calls import Call, Tier
from swapmeet_serving.echo import Echo
from swapmeet_serving.errors import InvalidRequest
from swapmeet_serving.request import Output, Request
from swapmeet_serving.tools.calling import CallReader

if TYPE_CHECKING:
    from swapmeet_serving.grammars import Grammar

log = logging.getLogger("swapmeet.serving")


@dataclass(slots=True)
class Answers:
    """Where a call's outputs go, and the answer that each of its requests stands for."""

    call: Call
    prompt: tuple[int, ...]
    grammar: "Grammar | None"
    shown: frozenset[int]
    readers: list[CallReader] | None
    tier: Tier | None
    began: float
    echo: Echo | None = None
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    outputs: asyncio.Queue[Output] = field(default_factory=asyncio.Queue)

    def requests(self) -> list[Request]:
        """One request for each answer."""
        call = self.call
        names = [f"{call.request_id}/{index}" if index else call.request_id for index in range(call.n)]
        return [
            Request(
                name, self.prompt, call.adapter, call.sampling.of_choice(index), call.tenant, call.share,
                self.grammar, self.shown,
            )
            for index, name in enumerate(names)
        ]  # fmt: skip


class UnderWay:
    """Calls under way, by their requests; the engine's thread may take out a request at any time.

    Args:
        cancel: ends a request that nobody waits for any more, by its id.
    """

    def __init__(self, cancel: Callable[[str], None]) -> None:
        self._cancel = cancel
        self._calls: dict[str, tuple[Answers, int]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, answers: Answers, requests: Iterable[Request]) -> None:
        """Know from now on where these requests' outputs go.

        Raises:
            InvalidRequest: one of their ids is under way.
        """
        calls = {request.id: (answers, index) for index, request in enumerate(requests)}
        if not calls.keys().isdisjoint(self._calls):
            raise InvalidRequest(f"A request with the id {answers.call.request_id} is under way. Choose another.")
        self._calls |= calls

    def leave(self, answers: Answers) -> None:
        """Forget a call; what it still has under way is cancelled."""
        for name in [name for name, (whose, _) in tuple(self._calls.items()) if whose is answers]:
            self._drop(name)

    def index(self, output: Output) -> int:
        """Which of its call's answers an output belongs to."""
        return self._calls[output.request_id][1]

    def hand_out(self, outputs: Iterable[Output]) -> None:
        """Wake each loop once for all that a step gave; who can not be reached is not computed for any longer."""
        whose: dict[asyncio.AbstractEventLoop, list[tuple[Answers, Output]]] = {}
        for output in outputs:
            if found := self._calls.get(output.request_id):
                answers, _ = found
                whose.setdefault(answers.loop, []).append((answers, output))
        for loop, each in whose.items():
            try:
                loop.call_soon_threadsafe(_deliver, each)
            except Exception:  # a loop that was closed under its calls, say
                names = [output.request_id for _, output in each]
                log.exception("outputs can not be delivered; their requests are cancelled: %s", ", ".join(names))
                for name in names:
                    self._drop(name)

    def _drop(self, name: str) -> None:
        self._calls.pop(name, None)
        self._cancel(name)


def _deliver(outputs: list[tuple[Answers, Output]]) -> None:
    for answers, output in outputs:
        answers.outputs.put_nowait(output)
