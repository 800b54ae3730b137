"""Objects from S3 in ranges: several at once, and each that breaks off goes on where it was."""

import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from botocore.exceptions import ClientError

from swapmeet_registry.errors import StoreError
from swapmeet_registry.stores.protocol import CHUNK
from swapmeet_registry.stores.s3_bucket import S3Bucket
from swapmeet_registry.stores.s3_errors import NETWORK_ERRORS, PAUSES, endpoint, missing, s3_errors, status

FIRST = 1 << 20
"""Bytes that are asked for first: most objects are no larger, and of others the answer says how large they are."""
RANGE = 8 << 20
"""Bytes that are asked for at once."""
AHEAD = 4
"""Ranges that are on their way while one is used; a slow reader holds so much memory."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def download(bucket: S3Bucket, where: Mapping[str, str], start: int = 0) -> Iterator[bytes] | None:
    """An object's bytes from `start` on, in order, or None where there is none.

    Nothing here tells that an object was replaced meanwhile: whoever reads compares with a digest.
    """
    first = _range(bucket, where, start, start + FIRST)
    return None if first is None else _ordered(bucket, where, start, *first)


def _ordered(bucket: S3Bucket, where: Mapping[str, str], start: int, data: bytes, size: int) -> Iterator[bytes]:
    yield data
    rest = iter(range(start + FIRST, size, RANGE))
    with ThreadPoolExecutor(AHEAD, "s3-download") as pool:
        pending: deque[Future[tuple[bytes, int] | None]] = deque()
        try:
            while True:
                while len(pending) < AHEAD and (at := next(rest, None)) is not None:
                    pending.append(pool.submit(_range, bucket, where, at, min(at + RANGE, size)))
                if not pending:
                    return
                found = pending.popleft().result()
                if found is None:
                    raise StoreError(f"{where['Key']} in the bucket {bucket.name} was deleted while it was read.")
                yield found[0]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _range(bucket: S3Bucket, where: Mapping[str, Any], start: int, end: int) -> tuple[bytes, int] | None:
    """The bytes from `start` to before `end`, as far as there are, and the size of all; or None."""
    data, size, pauses = bytearray(), 0, iter(PAUSES)
    while True:
        with s3_errors(bucket.name):
            try:
                answer = bucket.client.get_object(**where, Range=f"bytes={start + len(data)}-{end - 1}")
                size = _require_range(bucket, answer, start + len(data), end)
                for chunk in answer["Body"].iter_chunks(CHUNK):
                    data += chunk
                return bytes(data), size
            except ClientError as error:
                if missing(error):
                    return None
                if status(error) == 416:  # nothing from here on: the end, or an empty object
                    return b"", 0
                raise
            except NETWORK_ERRORS:
                if data and start + len(data) == min(end, size):  # all but the end itself
                    return bytes(data), size
                pause = next(pauses, None)
                if pause is None:
                    raise
        time.sleep(pause)


def _require_range(bucket: S3Bucket, answer: Mapping[str, Any], start: int, end: int) -> int:
    """The whole object's size, if the answer is what was asked for."""
    found = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
    first, last, size = map(int, found.groups()) if found else (0, answer["ContentLength"] - 1, answer["ContentLength"])
    if (first, last + 1, answer["ContentLength"]) != (start, min(end, size), last + 1 - first):
        raise StoreError(
            f"S3 at {endpoint()} answered bytes {first} to {last} of the bucket {bucket.name} where {start} to {end} "
            "were asked for. It can not be used: run swapmeet store probe."
        )
    return size
