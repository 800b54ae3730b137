"""One request's choices, of one prompt or several: a call for each prompt, so that any replica may take it.

Choices are numbered through the prompts, each prompt's `n` one after the other. If one fails, or nobody waits any
longer, all of them are cancelled.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from swapmeet.gateway.services import Replicas
from swapmeet_serving import Call, Chunk


def generate(replicas: Replicas, calls: list[Call]) -> AsyncIterator[Chunk]:
    """The choices' pieces as they come."""
    return replicas.generate(calls[0]) if len(calls) == 1 else _merge(replicas, calls)


async def answer(replicas: Replicas, calls: list[Call]) -> list[Chunk]:
    """The whole choices, in order."""
    tasks = [asyncio.ensure_future(replicas.answer(call)) for call in calls]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return [_numbered(chunk, place, calls) for place, each in enumerate(answers) for chunk in each]


async def _merge(replicas: Replicas, calls: list[Call]) -> AsyncIterator[Chunk]:
    pieces: asyncio.Queue[Chunk | Exception] = asyncio.Queue()

    async def read(place: int, call: Call) -> None:
        try:
            async for chunk in replicas.generate(call):
                pieces.put_nowait(_numbered(chunk, place, calls))
        except Exception as error:
            pieces.put_nowait(error)

    tasks = [asyncio.create_task(read(place, call)) for place, call in enumerate(calls)]
    try:
        left = sum(call.n for call in calls)
        while left:
            piece = await pieces.get()
            if isinstance(piece, Exception):
                raise piece
            yield piece
            left -= piece.finish_reason is not None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _numbered(chunk: Chunk, place: int, calls: list[Call]) -> Chunk:
    return replace(chunk, index=place * calls[0].n + chunk.index)
