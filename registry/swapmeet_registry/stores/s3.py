"""A store in an S3 bucket, or in anything that speaks S3 with conditional writes.

Endpoint, region and credentials come from the usual AWS variables and files. What the rules guard against:

* A conditional write whose answer is lost looks like somebody else's success when it is sent again. So the
  library's own retries are off for it, each write carries a nonce, and the object's nonce decides.
* A 409, a 5xx or a time-out says nothing of what happened: the object is read back.
* Some servers compare ETags with their quotes, so they are sent without.
* Some servers reject the checksums that boto3 adds on its own; an MD5 is understood by all of them.
"""

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from botocore.exceptions import ClientError

from swapmeet_registry.errors import Conflict, StoreError
from swapmeet_registry.fault import reached
from swapmeet_registry.stores.protocol import Entry, Stored, changed, require_key
from swapmeet_registry.stores.s3_bucket import S3Bucket, S3Options
from swapmeet_registry.stores.s3_download import download
from swapmeet_registry.stores.s3_errors import NETWORK_ERRORS, PAUSES, endpoint, missing, s3_errors, status
from swapmeet_registry.stores.s3_upload import abort, unfinished, upload

__all__ = ["S3Options", "S3Store"]

NONCE = "swapmeet-nonce"
LARGEST_PUT = 32 << 20
"""Bytes of a file that goes up at once; a larger one goes in parts, and is there once all of them are."""
BESIDE = 1 << 20
"""Bytes that are hashed twice at once."""
LARGEST_GET = 256 << 20
"""Bytes of an object that is read whole: those are documents, and no server is to fill the memory."""
LONGEST_PRESIGNED = 7 * 24 * 3600


class S3Store:
    """Keys are object keys below a prefix in a bucket."""

    AT_ONCE = 8
    """Small objects that are worth being written at once, since each costs a way there and back and hardly more."""

    def __init__(self, bucket: str, prefix: str = "", options: S3Options | None = None) -> None:
        self.prefix = prefix
        self.bucket = S3Bucket(bucket, options or S3Options())

    @property
    def url(self) -> str:
        """`s3://BUCKET/PREFIX?OPTIONS`."""
        return f"s3://{self.bucket.name}/{quote(self.prefix)}".rstrip("/") + self.bucket.options.query()

    def below(self, folder: str) -> "S3Store":
        """A store in the same bucket, inside a folder of this one's."""
        inner = S3Store(self.bucket.name, self._root + folder, self.bucket.options)
        inner.bucket = self.bucket  # with its connections
        return inner

    def where(self, key: str) -> dict[str, Any]:
        """What names an object in requests."""
        return {"Bucket": self.bucket.name, "Key": self._root + require_key(key)}

    def get(self, key: str) -> Stored | None:
        """See `Store`."""
        where = self.where(key)
        with s3_errors(self.bucket.name):
            try:
                answer = self.bucket.client.get_object(**where)
                size, data = answer.get("ContentLength"), answer["Body"].read(LARGEST_GET + 1)
            except ClientError as error:
                _require_missing(error)
                return None
        if len(data) != size or size > LARGEST_GET:
            raise StoreError(
                f"S3 at {endpoint()} answered {len(data)} bytes of {key} in the bucket {self.bucket.name}, and "
                f"announced {size}; at most {LARGEST_GET} are read. Try again, or run swapmeet store probe."
            )
        return Stored(data, _bare(answer["ETag"]))

    def stream(self, key: str, start: int = 0) -> Iterator[bytes] | None:
        """See `Store`."""
        return download(self.bucket, self.where(key), start)

    def put(self, key: str, source: bytes | Path, sha256: str) -> None:
        """See `Store`."""
        where = self.where(key)
        reached("s3.before_put")
        with s3_errors(self.bucket.name):
            if isinstance(source, Path) and source.stat().st_size > LARGEST_PUT:
                _insist(lambda: upload(self.bucket, where, source, sha256))
            else:
                data = source if isinstance(source, bytes) else source.read_bytes()
                md5 = _md5_of(data, sha256, source.name if isinstance(source, Path) else "The data")
                _insist(lambda: self._put_once(where, data, md5))
        reached("s3.put")

    def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """See `Store`."""
        nonce = uuid4().hex
        for pause in PAUSES:
            reached("s3.before_swap")
            etag = self.attempt(key, data, expected, nonce)
            if etag is not None:
                reached("s3.swapped")
                return etag
            time.sleep(pause)
        raise StoreError(f"{self.url} keeps failing to write {key}. Try again later.")

    def size(self, key: str) -> int | None:
        """See `Store`."""
        found = self._look(key)
        return found["ContentLength"] if found else None

    def list(self, prefix: str) -> Iterator[str]:
        """See `Store`."""
        yield from (entry.key for entry in self.scan(prefix))

    def scan(self, prefix: str) -> Iterator[Entry]:
        """See `Store`."""
        with s3_errors(self.bucket.name):
            pages = self.bucket.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket.name, Prefix=self._root + prefix
            )
            for page in pages:
                for item in page.get("Contents", []):
                    key, written_at = item["Key"].removeprefix(self._root), item["LastModified"].timestamp()
                    yield Entry(key, item["Size"], written_at, _bare(item["ETag"]))

    def delete(self, key: str) -> None:
        """See `Store`."""
        where = self.where(key)
        with s3_errors(self.bucket.name):
            _insist(lambda: self.bucket.client.delete_object(**where))

    def presigned(self, key: str, seconds: int) -> str | None:
        """See `Store`. Made here: whether the object is there, or these credentials may read it, is not asked."""
        if not 1 <= seconds <= LONGEST_PRESIGNED:
            raise ValueError(f"An address can be given for 1 to {LONGEST_PRESIGNED} seconds, not for {seconds}.")
        with s3_errors(self.bucket.name):
            where = self.where(key)
            return self.bucket.client.generate_presigned_url("get_object", Params=where, ExpiresIn=seconds)

    def sweep(self, age: float) -> int:
        """See `Store`: uploads in parts that were begun and not ended."""
        count, before = 0, datetime.now(UTC) - timedelta(seconds=age)
        with s3_errors(self.bucket.name):
            for found in list(unfinished(self.bucket, self._root)):
                if found["Initiated"] <= before:
                    abort(self.bucket, found["Key"], found["UploadId"])
                    count += 1
        return count

    def attempt(self, key: str, data: bytes, expected: str | None, nonce: str) -> str | None:
        """Try a `swap` once; with the same nonce again it is the same write.

        Returns:
            The new etag, or None where the write did not happen and may be tried again.
        """
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        with s3_errors(self.bucket.name):
            try:
                answer = self.bucket.client_without_retries.put_object(
                    **self.where(key),
                    **condition,
                    **self.bucket.options.encrypting(),
                    Body=data,
                    ContentMD5=_md5(data),
                    Metadata={NONCE: nonce},
                )
                return _bare(answer["ETag"])
            except NETWORK_ERRORS:
                pass
            except ClientError as error:
                if not _undecided(error):
                    raise
        found = self._look(key)
        etag = _bare(found["ETag"]) if found else None
        if found and found["Metadata"].get(NONCE) == nonce:
            return etag
        if etag != expected:
            raise Conflict(f"Somebody else wrote {key} in {self.url} first. Read it again.")
        return None

    def _put_once(self, where: Mapping[str, Any], data: bytes, md5: str) -> None:
        encrypting = self.bucket.options.encrypting()
        self.bucket.client.put_object(**where, **encrypting, Body=data, ContentMD5=md5)

    def _look(self, key: str) -> Mapping[str, Any] | None:
        with s3_errors(self.bucket.name):
            try:
                return self.bucket.client.head_object(**self.where(key))
            except ClientError as error:
                _require_missing(error)
                return None

    @property
    def _root(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""


def _insist(write: Callable[[], object]) -> None:
    """Do what may be done twice, and again where S3 says that something else is under way.

    A condition that failed is no answer to it either: there was none.
    """
    for pause in (*PAUSES, None):
        try:
            write()
            return
        except ClientError as error:
            if status(error) not in (409, 412) or pause is None:
                raise
        time.sleep(pause)


def _undecided(error: ClientError) -> bool:
    """Whether the object must be looked at: a failed condition, a concurrent write, or the server's failure."""
    missing = status(error) == 404 and error.response["Error"]["Code"] != "NoSuchBucket"
    return missing or status(error) in (409, 412, 429) or status(error) >= 500


def _require_missing(error: ClientError) -> None:
    if not missing(error):
        raise error


def _bare(etag: str) -> str:
    return etag.strip('"')


def _md5_of(data: bytes, sha256: str, name: str) -> str:
    """The MD5 of data that has this SHA-256. Of much, both are taken at once: they are half of what a write costs here.

    Raises:
        Refused: the data has another SHA-256.
    """
    if len(data) > BESIDE:
        with ThreadPoolExecutor(1, "md5") as pool:
            beside = pool.submit(_md5, data)
            found = hashlib.sha256(data).hexdigest()
            md5 = beside.result()
    else:
        found, md5 = hashlib.sha256(data).hexdigest(), _md5(data)
    if found != sha256:
        raise changed(name)
    return md5


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
