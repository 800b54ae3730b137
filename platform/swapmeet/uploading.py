"""Files on their way to a server: in one piece, or in parts that are sent again where an answer is lost."""

import hashlib
import io
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from swapmeet.errors import ApiError
from swapmeet.following import Tell, patiently

if TYPE_CHECKING:
    from swapmeet.client import Client

LARGEST_PIECE = 64 << 20
"""Bytes that are sent at once; so many may be a part."""
TYPES = {".jsonl": "application/jsonl", ".parquet": "application/vnd.apache.parquet"}
Watch = Callable[[int, int], object]


def unwatched(_: int, __: int) -> None:
    """For callers who show no progress."""


def upload(client: "Client", path: Path, purpose: str, watch: Watch, tell: Tell) -> dict[str, Any]:
    """Upload a file; see `Client.upload`."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_PIECE:
            return _in_parts(client, file, path.name, size, purpose, watch, tell)
        content = _Watched(file.read(), 0, size, watch)
    return client.send("/v1/files", {"purpose": purpose}, "file", path.name, content)


def _in_parts(
    client: "Client", file: BinaryIO, name: str, size: int, purpose: str, watch: Watch, tell: Tell
) -> dict[str, Any]:
    kind = TYPES.get(Path(name).suffix, "application/octet-stream")
    body = {"bytes": size, "filename": name, "purpose": purpose, "mime_type": kind}
    place = "/v1/uploads/" + str(patiently(lambda: client.call("POST", "/v1/uploads", body), tell)["id"])
    digest, parts, sent = hashlib.md5(usedforsecurity=False), list[str](), 0

    def send(piece: bytes) -> dict[str, Any]:
        return client.send(f"{place}/parts", {}, "data", "part", _Watched(piece, sent, size, watch))

    try:
        while piece := file.read(LARGEST_PIECE):
            digest.update(piece)
            parts.append(str(patiently(partial(send, piece), tell)["id"]))
            sent += len(piece)
        whole = {"part_ids": parts, "md5": digest.hexdigest()}
        return dict(patiently(lambda: client.call("POST", f"{place}/complete", whole), tell)["file"])
    except BaseException:
        with suppress(ApiError):
            client.call("POST", f"{place}/cancel")
        raise


class _Watched(io.BytesIO):
    """Bytes that tell how far they have been read, as part of a larger file."""

    def __init__(self, content: bytes, before: int, size: int, watch: Watch) -> None:
        super().__init__(content)
        self._before, self._size, self._watch = before, size, watch

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self._watch(self._before + self.tell(), self._size)
        return content
