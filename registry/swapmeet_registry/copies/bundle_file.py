"""The file of a bundle: a plain tar of objects under their SHA-256, behind an index. Any tar program can unpack it.

    index/sha256/HEX            the index: heads with the versions that are here
    manifests/sha256/HEX        each version's manifest
    notes/sha256/HEX            signatures of it, and the report on its weights, as the index names them
    blobs/sha256/HEX            the files that it names

Nothing is there twice. There are no links, folders, owners or times in it, and nothing is compressed, so equal contents
make equal bytes, and none takes more room than the file itself. Read are 512 bytes at a time of headers, never what a
header promises.
"""

import hashlib
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from swapmeet_registry.errors import Refused

BLOCK, CHUNK = 512, 1 << 20
INDEX, NOTES = "index/sha256/", "notes/sha256/"
MAX_INDEX = 4 << 20
"""Bytes of an index, which as Python's objects may take twenty times as much. Some 8,000 signed versions fit."""
LIMITS = {"index": MAX_INDEX, "manifests": 8 << 20, "notes": 4 << 20, "blobs": 4 << 30}
"""Bytes of what may be in a bundle: no adapter has larger files, or more to say of itself."""
_OBJECT = re.compile(rf"({'|'.join(LIMITS)})/sha256/([0-9a-f]{{64}})")


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a bundle: its name, where its bytes begin, and how many there are."""

    name: str
    offset: int
    size: int

    @property
    def sha256(self) -> str:
        """The SHA-256 that its name says."""
        return self.name.rpartition("/")[2]


def write_member(stream: IO[bytes], name: str, size: int, pieces: Iterable[bytes]) -> None:
    """Add a file of `size` bytes.

    Raises:
        Refused: there are more or fewer.
    """
    stream.write(_header(name, size))
    written = 0
    for piece in pieces:
        stream.write(piece)
        written += len(piece)
    if written != size:
        raise Refused(f"{name} changed while it was exported. Export again.")
    stream.write(b"\0" * (-size % BLOCK))


def note_name(sha256: str) -> str:
    """What a signature or report with a SHA-256 is called."""
    return NOTES + sha256


def write_end(stream: IO[bytes]) -> None:
    """What a tar ends with."""
    stream.write(b"\0" * (2 * BLOCK))


def members(stream: IO[bytes], path: Path) -> Iterator[Member]:
    """The files of a bundle in their order; only headers are read.

    Raises:
        Refused: it is no bundle, or holds what has no place in one.
    """
    length = stream.seek(0, 2)
    offset = 0
    while True:
        stream.seek(offset)
        header = stream.read(BLOCK)
        if header == b"\0" * BLOCK:
            if stream.read(BLOCK + 1) != b"\0" * BLOCK:
                raise Refused(f"{path} does not end as a bundle does: it is damaged. Copy it again.")
            return
        member = _member(header, offset + BLOCK, path)
        if member.offset + member.size > length:
            raise Refused(f"{path} ends in the middle of {member.name}. Copy the bundle again.")
        stream.seek(member.offset + member.size)
        padding = -member.size % BLOCK
        if stream.read(padding) != b"\0" * padding:
            raise Refused(
                f"There is something between {member.name} in {path} and what follows. Copy the bundle again."
            )
        yield member
        offset = member.offset + member.size + padding


def pieces(stream: IO[bytes], member: Member) -> Iterator[bytes]:
    """A member's bytes, whatever else is read from the stream in between."""
    done = 0
    while done < member.size:
        stream.seek(member.offset + done)
        piece = stream.read(min(CHUNK, member.size - done))
        if not piece:
            raise Refused(f"The bundle became shorter while {member.name} was read. Copy it again.")
        done += len(piece)
        yield piece


def require_digest_of(stream: IO[bytes], member: Member, path: Path) -> None:
    """Read a member and compare it with its name.

    Raises:
        Refused: it has another SHA-256.
    """
    found = hashlib.sha256()
    for piece in pieces(stream, member):
        found.update(piece)
    if found.hexdigest() != member.sha256:
        raise Refused(f"{member.name} in {path} has the SHA-256 {found.hexdigest()}: it is damaged. Copy it again.")


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def _member(header: bytes, offset: int, path: Path) -> Member:
    if len(header) < BLOCK:
        raise Refused(f"{path} is no bundle, or its end is missing. Copy it again.")
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise Refused(f"{path} is no bundle, or damaged ({error}). Export it again.") from error
    name = info.name[:200]
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise Refused(f"{path} holds {name!r}, which is no plain file. Bundles have nothing else: do not trust it.")
    if not _OBJECT.fullmatch(info.name):
        raise Refused(f"{path} holds {name!r}, which does not belong into a bundle. Do not trust it.")
    limit = LIMITS[name.partition("/")[0]]
    if not 0 <= info.size <= limit:
        raise Refused(f"{name} in {path} has {info.size} bytes; at most {limit} are accepted.")
    if header != _header(info.name, info.size):
        raise Refused(f"{name} in {path} has an owner, a time or else what no bundle has. Do not trust it.")
    return Member(info.name, offset, info.size)
