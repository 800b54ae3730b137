"""The way of tokens from replicas to gateways, over real sockets."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapmeet_serving import Candidate, Chunk, TokenLogprob
from swapmeet_serving.calls import Stages, ToolCall
from swapmeet_serving.chunk_frames import Unpacker, pack
from swapmeet_serving.errors import EngineDead
from swapmeet_serving.inbox import Address, Inbox
from swapmeet_serving.outbox import Outbox

Work = Callable[[Inbox, Outbox], Awaitable[None]]
CANDIDATES = st.builds(
    Candidate,
    token_id=st.integers(0, 2**40),
    piece=st.binary(max_size=8),
    logprob=st.none() | st.floats(allow_nan=False, max_value=0),
)
CHUNKS = st.builds(
    Chunk,
    text=st.text(),
    token_ids=st.lists(st.integers(0, 2**40)).map(tuple),
    finish_reason=st.sampled_from([None, "stop", "length", "tool_calls"]),
    prompt_tokens=st.integers(0, 2**40),
    completion_tokens=st.integers(0, 2**40),
    tool_calls=st.lists(st.builds(ToolCall, st.integers(0, 9), st.text(), st.text(), st.text())).map(tuple),
    cached_tokens=st.integers(0, 2**40),
    logprobs=st.lists(
        st.builds(TokenLogprob, CANDIDATES, st.lists(CANDIDATES, max_size=3).map(tuple), st.booleans()), max_size=3
    ).map(tuple),
    index=st.integers(0, 99),
    stages=st.none()
    | st.builds(
        Stages,
        st.text(),
        st.sampled_from(["device", "disk", "registry", None]),
        st.dictionaries(st.text(), st.floats(0, 1e9)),
    ),
)


def piece(text: str, index: int = 0, last: bool = False) -> Chunk:
    return Chunk(text, (len(text),), "length" if last else None, 1, 1, index=index)


@pytest.fixture(params=["asyncio", "uvloop"])
def with_inbox(request: pytest.FixtureRequest) -> Callable[[Work], None]:
    """Replicas and gateways run on uvloop, whose transports differ in small ways."""
    factory = pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else None
    return lambda work: on_a_loop(factory, work)


def on_a_loop(factory: Callable[[], asyncio.AbstractEventLoop] | None, work: Work) -> None:
    async def run() -> None:
        inbox = Inbox("127.0.0.1")
        try:
            async with asyncio.timeout(30):
                await work(inbox, Outbox())
        finally:
            inbox.close()
            await asyncio.sleep(0.01)  # for the connections to end before their loop

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


@given(st.lists(st.tuples(st.integers(0, 2**40), CHUNKS)), st.integers(1, 50))
def test_pieces_arrive_as_they_were_however_the_bytes_are_cut(pieces: list[tuple[int, Chunk]], size: int) -> None:
    sent = b"".join(pack(*each) for each in pieces)
    unpacker = Unpacker()
    cuts = [sent[place : place + size] for place in range(0, len(sent), size)]
    assert [each for cut in cuts for each in unpacker.feed(cut)] == pieces


@pytest.mark.parametrize("bytes_", [b"\xc1", b"\x01", b"\x92\x01\x90", b"\x93\x01\x02\x03", b"\x92\x01\x91\x01"])
def test_bytes_that_are_no_pieces_are_refused(bytes_: bytes) -> None:
    with pytest.raises(ValueError, match="no pieces"):
        list(Unpacker().feed(bytes_))


def test_each_stream_gets_its_own_in_order_and_who_is_slow_gets_them_joined(with_inbox: Callable[[Work], None]) -> None:
    async def work(inbox: Inbox, outbox: Outbox) -> None:
        async with inbox.stream() as one, inbox.stream() as two:
            line = await outbox.line(one.address)
            assert await outbox.line(two.address) is line
            line.send(one.address.stream, piece("a"))
            assert await one.take() == [piece("a")]
            for text in "bcd":
                line.send(one.address.stream, piece(text))
                line.send(one.address.stream, piece(text, index=1))
                line.send(two.address.stream, piece(text * 2))
            await line.sent()
            assert [each.text for each in await two.take()] == ["bbccdd"]
            assert [(each.text, each.token_ids, each.index) for each in await one.take()] == [
                ("bcd", (1, 1, 1), 0),
                ("bcd", (1, 1, 1), 1),
            ]

    with_inbox(work)


def test_an_error_comes_after_what_was_there_before_it(with_inbox: Callable[[Work], None]) -> None:
    async def work(inbox: Inbox, outbox: Outbox) -> None:
        async with inbox.stream() as stream:
            stream.put(piece("a"))
            stream.fail(LookupError("gone"))
            assert await stream.take() == [piece("a")]
            for _ in range(2):
                with pytest.raises(LookupError, match="gone"):
                    await stream.take()

    with_inbox(work)


def test_what_comes_for_a_stream_that_was_left_is_thrown_away(with_inbox: Callable[[Work], None]) -> None:
    async def work(inbox: Inbox, outbox: Outbox) -> None:
        async with inbox.stream() as left:
            line = await outbox.line(left.address)
        line.send(left.address.stream, piece("late"))
        async with inbox.stream() as next_one:
            line.send(next_one.address.stream, piece("mine"))
            assert await next_one.take() == [piece("mine")]

    with_inbox(work)


def test_nobody_gets_in_without_the_secret(
    with_inbox: Callable[[Work], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def work(inbox: Inbox, outbox: Outbox) -> None:
        async with inbox.stream() as stream:
            stranger = replace(stream.address, secret=bytes(32))
            line = await outbox.line(stranger)
            line.send(stream.address.stream, piece("forged"))
            await asyncio.sleep(0.1)
            with pytest.raises(ConnectionResetError):
                await line.room()
            mine = await outbox.line(stream.address)
            mine.send(stream.address.stream, piece("true"))
            assert await stream.take() == [piece("true")]
            assert repr(stream.address.secret) not in repr(stream.address)

    with_inbox(work)
    assert "without the secret" in caplog.text


def test_who_sends_nonsense_is_hung_up_on(with_inbox: Callable[[Work], None], caplog: pytest.LogCaptureFixture) -> None:
    async def work(inbox: Inbox, outbox: Outbox) -> None:
        async with inbox.stream() as stream:
            reader, writer = await asyncio.open_connection(stream.address.host, stream.address.port)
            writer.write(stream.address.secret[:7])
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(stream.address.secret[7:] + b"\xc1")
            assert await reader.read() == b""
            writer.close()

    with_inbox(work)
    assert "hung up on a replica" in caplog.text


def test_who_does_not_say_the_secret_in_time_is_hung_up_on(
    with_inbox: Callable[[Work], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swapmeet_serving.inbox.GREETING_SECONDS", 0.05)

    async def work(inbox: Inbox, outbox: Outbox) -> None:
        async with inbox.stream() as stream:
            mine = await outbox.line(stream.address)
            reader, writer = await asyncio.open_connection(stream.address.host, stream.address.port)
            writer.write(stream.address.secret[:7])
            assert await reader.read() == b""
            writer.close()
            mine.send(stream.address.stream, piece("still here"))
            assert await stream.take() == [piece("still here")]

    with_inbox(work)


def test_a_line_that_broke_is_made_anew(with_inbox: Callable[[Work], None]) -> None:
    async def work(inbox: Inbox, outbox: Outbox) -> None:
        async with inbox.stream() as stream:
            first = await outbox.line(stream.address)
            transport: Any = first._transport
            transport.abort()
            await asyncio.sleep(0.01)
            first.send(stream.address.stream, piece("lost"))
            with pytest.raises(ConnectionResetError, match="hung up"):
                await first.sent()
            second = await outbox.line(stream.address)
            assert second is not first
            second.send(stream.address.stream, piece("here"))
            assert await stream.take() == [piece("here")]

    with_inbox(work)


def test_a_gateway_that_can_not_be_reached_is_an_error_each_time(with_inbox: Callable[[Work], None]) -> None:
    async def work(inbox: Inbox, outbox: Outbox) -> None:
        async with inbox.stream() as stream:
            gone = stream.address
        inbox.close()
        await asyncio.sleep(0.01)
        for _ in range(2):
            with pytest.raises(EngineDead, match="can not reach the gateway"):
                await outbox.line(Address(gone.host, gone.port, gone.secret))

    with_inbox(work)


def test_a_failure_is_not_kept_for_those_who_come_later(with_inbox: Callable[[Work], None]) -> None:
    async def work(inbox: Inbox, outbox: Outbox) -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            to = Address(*gone.getsockname(), secret=bytes(32))
        asked = asyncio.create_task(outbox.line(to))
        await asyncio.sleep(0)
        asked.cancel()  # its caller left
        await asyncio.sleep(0.05)
        assert not outbox._lines

    with_inbox(work)


def test_who_does_not_read_holds_up_who_sends(with_inbox: Callable[[Work], None]) -> None:
    async def work(inbox: Inbox, outbox: Outbox) -> None:
        async with inbox.stream() as stream:
            line = await outbox.line(stream.address)
            line.send(stream.address.stream, piece("hello"))
            await stream.take()
            server_side: Any = next(iter(inbox._lines))
            server_side.pause_reading()
            large = piece("x" * (1 << 20))
            held: asyncio.Task[None] | None = None
            for _ in range(64):
                line.send(stream.address.stream, large)
                held = asyncio.create_task(line.sent())
                await asyncio.wait([held], timeout=0.2)
                if not held.done():
                    break
            assert held
            assert not held.done()
            server_side.resume_reading()
            await held

    with_inbox(work)
