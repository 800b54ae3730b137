"""Objects from S3 in ranges: several at once, and each that breaks off goes on where it was."""

import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from swapmeet_registry.errors import StoreError
from swapmeet_registry.stores.protocol import CHUNK
from swapmeet_registry.stores.s3_bucket import S3Bucket
from swapmeet_registry.stores.s3_errors import NETWORK_ERRORS, PAUSES, endpoint, missing, s3_errors, status

RANGE = 8 << 20
"""Bytes that are asked for at once. The answer to the first range says how large the object is."""
AHEAD = 4
"""Ranges that are on their way while one is used; a slow reader holds so much memory, and one range more."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class _Answer:
    """The bytes of a range as they come in, and the size of the whole object."""

    chunks: Iterable[bytes]
    size: int


def download(bucket: S3Bucket, where: Mapping[str, str], start: int = 0) -> Iterator[bytes] | None:
    """An object's bytes from `start` on, in order, or None where there is none.

    Nothing here tells that an object was replaced meanwhile: whoever reads compares with a digest.
    """
    first = _begun(bucket, where, start, start + RANGE)
    if first is None:
        return None
    if first.size <= start + RANGE:
        whole = _range(bucket, where, start, start + RANGE, first)
        return None if whole is None else iter(whole)
    return _ordered(bucket, where, start, first)


def _ordered(bucket: S3Bucket, where: Mapping[str, str], start: int, first: _Answer) -> Iterator[bytes]:
    """The first range is read while others are asked for: that its answer has begun says where they are."""
    rest = iter(range(start + RANGE, first.size, RANGE))
    with ThreadPoolExecutor(AHEAD, "s3-download") as pool:
        pending = deque([pool.submit(_range, bucket, where, start, start + RANGE, first)])
        try:
            while pending:
                while len(pending) < AHEAD and (at := next(rest, None)) is not None:
                    pending.append(pool.submit(_range, bucket, where, at, min(at + RANGE, first.size)))
                found = pending.popleft().result()
                if found is None:
                    raise StoreError(f"{where['Key']} in the bucket {bucket.name} was deleted while it was read.")
                yield from found
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begun(bucket: S3Bucket, where: Mapping[str, Any], start: int, end: int) -> _Answer | None:
    """The answer for a range whose bytes are still to come; tried again while the network fails."""
    pauses = iter(PAUSES)
    while True:
        with s3_errors(bucket.name):
            try:
                return _ask(bucket, where, start, end)
            except NETWORK_ERRORS:
                if (pause := next(pauses, None)) is None:
                    raise
        time.sleep(pause)


def _ask(bucket: S3Bucket, where: Mapping[str, Any], start: int, end: int) -> _Answer | None:
    try:
        answer = bucket.client.get_object(**where, Range=f"bytes={start}-{end - 1}")
    except ClientError as error:
        if missing(error):
            return None
        if status(error) == 416:  # nothing from here on: the end, or an empty object
            return _Answer((), 0)
        raise
    return _Answer(answer["Body"].iter_chunks(CHUNK), _require_range(bucket, answer, start, end))


def _range(
    bucket: S3Bucket, where: Mapping[str, Any], start: int, end: int, answer: _Answer | None = None
) -> list[bytes] | None:
    """The bytes from `start` to before `end`, as far as there are, in pieces; or None where there is no object.

    Args:
        bucket: where it is.
        where: what names it.
        start: the first byte.
        end: the byte after the last.
        answer: one that has begun already.
    """
    pieces: list[bytes] = []
    at, size, pauses = start, 0, iter(PAUSES)
    while True:
        with s3_errors(bucket.name):
            try:
                answer = answer or _ask(bucket, where, at, end)
                if answer is None:
                    return None
                size = answer.size
                for chunk in answer.chunks:
                    pieces.append(chunk)
                    at += len(chunk)
                return pieces
            except NETWORK_ERRORS:
                if pieces and at == min(end, size):  # all but the end itself
                    return pieces
                answer = None
                if (pause := next(pauses, None)) is None:
                    raise
        time.sleep(pause)


def _require_range(bucket: S3Bucket, answer: Mapping[str, Any], start: int, end: int) -> int:
    """The whole object's size, if the answer is what was asked for."""
    found, length = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", "")), answer.get("ContentLength")
    if length is None:
        raise StoreError(f"S3 at {endpoint()} does not say how long its answers are. It can not be used.")
    first, last, size = map(int, found.groups()) if found else (0, length - 1, length)
    if (first, last + 1, length) != (start, min(end, size), last + 1 - first):
        raise StoreError(
            f"S3 at {endpoint()} answered bytes {first} to {last} of the bucket {bucket.name} where {start} to {end} "
            "were asked for. It can not be used: run swapmeet store probe."
        )
    return size
