"""Reads multipart forms with one file, which goes to the disk as it comes: memory is bounded by the pieces."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from anyio import CapacityLimiter, to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from swapmeet.errors import RequestRefused, TooLarge
from swapmeet.files.blobs import spooled
from swapmeet.gateway.presence import ClientLeft
from swapmeet_registry.stores.files import os_errors

PIECE = 1 << 20
"""Bytes that are parsed and written at a time, off the loop."""
LONGEST_FIELD = 4 << 10
MOST_FIELDS = 20


@dataclass(frozen=True, slots=True)
class Form:
    """The text fields, and the file: its name, as sent, and where its bytes are for now."""

    fields: dict[str, str]
    filename: str
    path: Path


@asynccontextmanager
async def received(
    request: Request, folder: Path, name: str, largest: int, threads: CapacityLimiter
) -> AsyncIterator[Form]:
    """A request's form, within the block; the file's bytes are gone after it.

    Args:
        request: nothing of its body has been read.
        folder: on this machine, for the file's bytes.
        name: the field that the file is in.
        largest: bytes that the file may have.
        threads: on which it is written.

    Raises:
        RequestRefused: this is no such form.
        TooLarge: the file is over its limit.
        ClientLeft: before all of it had come.
    """
    with spooled(folder) as stream:
        reader = _Reader(name, largest, stream, _boundary(request))
        held = bytearray()
        try:
            async for chunk in request.stream():
                held += chunk
                if len(held) >= PIECE:
                    await to_thread.run_sync(reader.feed, bytes(held), limiter=threads)
                    held.clear()
        except ClientDisconnect as error:
            raise ClientLeft("The client left in the middle of its file.") from error
        await to_thread.run_sync(reader.end, bytes(held), limiter=threads)
        yield reader.form(Path(stream.name))


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise RequestRefused("The body is no form. Send it as multipart/form-data, with the file in it.")
    return options[b"boundary"]


@dataclass(slots=True)
class _Reader:
    """What python_multipart tells, part by part."""

    name: str
    largest: int
    stream: IO[bytes]
    boundary: bytes
    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    size: int = 0
    parser: Any = None
    header: list[bytearray] = field(default_factory=list)
    disposition: bytes = b""
    field_name: str = ""
    text: bytearray | None = None
    ended: bool = False

    def feed(self, data: bytes) -> None:
        """Parse some more."""
        try:
            self.parser = self.parser or MultipartParser(self.boundary, self._callbacks())
            with os_errors("keep the file"):
                self.parser.write(data)
        except FormParserError as error:
            raise RequestRefused(f"The body is no sound multipart form ({error}).") from error

    def end(self, data: bytes) -> None:
        """Parse the rest, and have all of the file on the disk."""
        self.feed(data)
        if not self.ended:
            raise RequestRefused("The form ends before its last boundary. Send all of it.")
        with os_errors("keep the file"):
            self.stream.flush()

    def form(self, path: Path) -> Form:
        """What was read."""
        if self.filename is None:
            raise RequestRefused(f"The form has no file. Send it in the field {self.name!r}.", self.name)
        return Form(self.fields, self.filename, path)

    def _callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_begin": self._begin_header,
            "on_header_field": lambda data, start, end: self.header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self.header[1].extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": lambda data, start, end: self._take(data[start:end]),
            "on_part_end": self._close,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self.disposition = b""

    def _begin_header(self) -> None:
        self.header = [bytearray(), bytearray()]

    def _end_header(self) -> None:
        if self.header[0].lower() == b"content-disposition":
            self.disposition = bytes(self.header[1])

    def _open(self) -> None:
        _, options = parse_options_header(self.disposition)
        self.field_name = _decoded(options.get(b"name", b""))
        if self.field_name != self.name:
            self.text = bytearray()
        elif self.filename is not None:
            raise RequestRefused(f"The form has two files. Send one, in the field {self.name!r}.", self.name)
        else:
            self.text, self.filename = None, _decoded(options.get(b"filename", b""))

    def _take(self, data: bytes) -> None:
        if self.text is None:
            self.size += len(data)
            if self.size > self.largest:
                raise TooLarge(f"The file is over the {self.largest >> 20} MB that one may have here.")
            self.stream.write(data)
        elif len(self.text) + len(data) > LONGEST_FIELD:
            raise RequestRefused(f"A field of the form is over {LONGEST_FIELD} bytes. The file is {self.name!r}.")
        else:
            self.text += data

    def _close(self) -> None:
        if self.text is None:
            return
        if self.field_name in self.fields or len(self.fields) == MOST_FIELDS:
            raise RequestRefused(
                f"The form has the field {self.field_name[:80]!r} twice, or over {MOST_FIELDS} fields."
            )
        self.fields[self.field_name] = _decoded(bytes(self.text))

    def _finish(self) -> None:
        self.ended = True


def _decoded(text: bytes) -> str:
    """UTF-8, as clients send it; what is not can not be kept, and is refused where it matters."""
    return text.decode(errors="replace")
