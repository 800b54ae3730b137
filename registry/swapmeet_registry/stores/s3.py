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
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from swapmeet_registry.errors import Conflict, StoreError
from swapmeet_registry.fault import reached
from swapmeet_registry.stores.protocol import CHUNK, Entry, Stored, require_key, verified
from swapmeet_registry.stores.s3_errors import NETWORK_ERRORS, s3_errors, status

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between attempts at a conditional write, and at a download that breaks off."""

ATTEMPTS = 4
"""How often the library tries what may be sent twice."""

NONCE = "swapmeet-nonce"

LARGEST_PUT = 5 << 30
"""Bytes that S3 takes at once; a larger object goes up in parts, and is there once all of them are."""


class S3Store:
    """Keys are object keys below a prefix in a bucket."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self.bucket, self.prefix = bucket, prefix

    @property
    def url(self) -> str:
        """`s3://BUCKET/PREFIX`."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def get(self, key: str) -> Stored | None:
        """See `Store`."""
        where = self._where(key)
        with s3_errors(self.bucket):
            try:
                answer = self._client.get_object(**where)
                return Stored(answer["Body"].read(), _bare(answer["ETag"]))
            except ClientError as error:
                _require_missing(error)
                return None

    def stream(self, key: str) -> Iterator[bytes] | None:
        """See `Store`."""
        return self._pieces(key) if self.size(key) is not None else None

    def put(self, key: str, source: bytes | Path, sha256: str) -> None:
        """See `Store`."""
        where = self._where(key)
        check = _md5(verified(source, sha256))
        reached("s3.before_put")
        with s3_errors(self.bucket):
            if isinstance(source, bytes):
                self._client.put_object(**where, Body=source, ContentMD5=check)
            else:
                with source.open("rb") as stream:
                    if source.stat().st_size > LARGEST_PUT:
                        self._client.upload_fileobj(stream, where["Bucket"], where["Key"])
                    else:
                        self._client.put_object(**where, Body=stream, ContentMD5=check)
        reached("s3.put")

    def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """See `Store`."""
        nonce = uuid4().hex
        for pause in PAUSES:
            reached("s3.before_swap")
            etag = self._swap_once(key, data, expected, nonce)
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
        root = f"{self.prefix}/" if self.prefix else ""
        with s3_errors(self.bucket):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=root + prefix)
            for page in pages:
                for item in page.get("Contents", []):
                    key, written_at = item["Key"].removeprefix(root), item["LastModified"].timestamp()
                    yield Entry(key, item["Size"], written_at, _bare(item["ETag"]))

    def delete(self, key: str) -> None:
        """See `Store`."""
        with s3_errors(self.bucket):
            self._client.delete_object(**self._where(key))

    def _swap_once(self, key: str, data: bytes, expected: str | None, nonce: str) -> str | None:
        """The new etag, or None where the write did not happen and may be tried again."""
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        with s3_errors(self.bucket):
            try:
                answer = self._client_without_retries.put_object(
                    **self._where(key), **condition, Body=data, ContentMD5=_md5([data]), Metadata={NONCE: nonce}
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

    def _look(self, key: str) -> Mapping[str, Any] | None:
        with s3_errors(self.bucket):
            try:
                return self._client.head_object(**self._where(key))
            except ClientError as error:
                _require_missing(error)
                return None

    def _pieces(self, key: str) -> Iterator[bytes]:
        """An object's bytes; a download that breaks off goes on where it was, as long as it gets further."""
        offset, pauses = 0, iter(PAUSES)
        while True:
            with s3_errors(self.bucket):
                try:
                    body = self._client.get_object(**self._where(key), Range=f"bytes={offset}-")["Body"]
                    for chunk in body.iter_chunks(CHUNK):
                        offset += len(chunk)
                        yield chunk
                    return
                except ClientError as error:
                    if status(error) == 416:  # nothing from here on: the end, or an empty object
                        return
                    raise
                except NETWORK_ERRORS:
                    pause = next(pauses, None)
                    if pause is None:
                        raise
            time.sleep(pause)

    def _where(self, key: str) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{require_key(key)}".lstrip("/")}

    @cached_property
    def _session(self) -> boto3.Session:
        with s3_errors(self.bucket):
            # botocore reads AWS_DEFAULT_REGION; the other AWS tools read AWS_REGION as well.
            return boto3.Session(region_name=os.environ.get("AWS_REGION"))

    @cached_property
    def _client(self) -> "S3Client":
        return self._connect(ATTEMPTS)

    @cached_property
    def _client_without_retries(self) -> "S3Client":
        return self._connect(1)

    def _connect(self, attempts: int) -> "S3Client":
        own_server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        config = Config(
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=5,
            read_timeout=60,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if own_server else "auto"},
        )
        with s3_errors(self.bucket):
            return self._session.client("s3", config=config)

    def __getstate__(self) -> dict[str, Any]:
        return {"bucket": self.bucket, "prefix": self.prefix}


def _undecided(error: ClientError) -> bool:
    """Whether the object must be looked at: a failed condition, a concurrent write, or the server's failure."""
    missing = status(error) == 404 and error.response["Error"]["Code"] != "NoSuchBucket"
    return missing or status(error) in (409, 412, 429) or status(error) >= 500


def _require_missing(error: ClientError) -> None:
    if error.response["Error"]["Code"] not in ("NoSuchKey", "404", "NotFound"):
        raise error


def _bare(etag: str) -> str:
    return etag.strip('"')


def _md5(chunks: Iterable[bytes]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        digest.update(chunk)
    return base64.b64encode(digest.digest()).decode()
