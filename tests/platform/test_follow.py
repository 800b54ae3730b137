"""How a stream learns what became of its call."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from swapmeet_serving.errors import EngineDead, Overloaded
from swapmeet_serving.inbox import Address, Stream


class Response:
    """Ray's, of a call that ends at once: well, or with an error."""

    def __init__(self, error: BaseException | None = None) -> None:
        self._error = error

    async def __aiter__(self) -> AsyncIterator[Any]:
        if self._error:
            raise self._error
        for nothing in ():
            yield nothing


@pytest.mark.parametrize(
    ("error", "told"),
    [(None, EngineDead), (Overloaded("busy"), Overloaded), (asyncio.CancelledError(), EngineDead)],
)
def test_nobody_waits_for_a_call_that_ended(
    error: BaseException | None, told: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    from swapmeet.gateway import replicas

    monkeypatch.setattr(replicas, "LATE_SECONDS", 0.01)

    async def work() -> None:
        stream = Stream(Address("127.0.0.1", 1, b""))
        following = asyncio.create_task(replicas._follow(Response(error), stream))
        async with asyncio.timeout(5):
            with pytest.raises(told):
                await stream.take()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(work())
