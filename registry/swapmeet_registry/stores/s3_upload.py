"""Large files to S3 in parts: several at once, each checked by S3, and all of them visible at once or never.

An upload that was interrupted, by whatever, is found again by its key: the parts that arrived are not sent again. So
two uploads of the same bytes may go up as one. One that turns out to have parts of other bytes is left to whoever began
it; then, and where others end ours or write into it, an upload is begun anew that we found nowhere.
"""

import base64
import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from swapmeet_registry.errors import Refused, StoreError
from swapmeet_registry.fault import reached
from swapmeet_registry.stores.protocol import changed
from swapmeet_registry.stores.s3_bucket import S3Bucket
from swapmeet_registry.stores.s3_errors import missing

PART = 8 << 20
"""Bytes of a part, of files that do not need larger ones."""
MOST_PARTS = 10_000
WORKERS = 8
TURNS = 5
SHA256 = "swapmeet-sha256"


def upload(bucket: S3Bucket, where: Mapping[str, Any], source: Path, sha256: str) -> None:
    """Write a file's bytes under a content-addressed key.

    Raises:
        Refused: the file does not have this SHA-256; nothing was written.
        StoreError: others end the upload again and again.
    """
    for turn in range(TURNS):
        try:
            _Upload(bucket, where, sha256, resume=turn == 0).send(source)
            return
        except _Foreign:
            continue
        except ClientError as error:
            if not _disturbed(error):
                raise
        # An answer was lost, or another upload of the same bytes was done first, or somebody gave it up or spoilt it.
        if _there(bucket, where, sha256, source.stat().st_size):
            return
    raise StoreError(f"The upload of {source.name} to the bucket {bucket.name} was ended by others. Try again.")


def unfinished(bucket: S3Bucket, prefix: str) -> Iterator[Mapping[str, Any]]:
    """The uploads under a prefix that were begun and not ended: `Key`, `UploadId` and `Initiated`."""
    pages = bucket.client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket.name, Prefix=prefix)
    for page in pages:
        yield from page.get("Uploads", [])


def abort(bucket: S3Bucket, key: str, upload_id: str) -> None:
    """Give an upload up, unless it is over."""
    try:
        bucket.client.abort_multipart_upload(Bucket=bucket.name, Key=key, UploadId=upload_id)
    except ClientError as error:
        if not _ended(error):
            raise


class _Foreign(Exception):
    """An upload that was found has parts of another file."""


class _Upload:
    """One upload, begun anew or, to `resume`, found again."""

    def __init__(self, bucket: S3Bucket, where: Mapping[str, Any], sha256: str, resume: bool) -> None:
        self._bucket, self._where, self._sha256 = bucket, where, sha256
        self._encrypting = bucket.options.encrypting()
        found = self._found() if resume else None
        self._own = found is None
        self._id = found or self._begun()
        self._arrived = self._list_parts() if found else {}

    def send(self, source: Path) -> None:
        """Send what has not arrived, and end the upload.

        An upload of our own that can never be completed is given up; one that the network interrupts stays, to be found
        again, and one that was found may be another's, who still needs it.

        Raises:
            _Foreign: it was found, and is not one of these bytes.
        """
        reached("s3.upload_begun")
        try:
            parts = self._send_parts(source)
            reached("s3.parts_sent")
            self._bucket.client.complete_multipart_upload(
                **self._where, UploadId=self._id, MultipartUpload={"Parts": parts}
            )
        except (Refused, ClientError) as error:
            if self._own and (isinstance(error, Refused) or _useless(error)):
                with suppress(ClientError, BotoCoreError):  # `sweep` finds it, and why it failed is to be told
                    abort(self._bucket, self._where["Key"], self._id)
            raise

    def _found(self) -> str | None:
        """An unfinished upload of this key. Not with KMS, whose parts have etags that say nothing of their bytes."""
        if self._encrypting.get("ServerSideEncryption", "").startswith("aws:kms"):
            return None
        key = self._where["Key"]
        begun = [found for found in unfinished(self._bucket, key) if found["Key"] == key]
        return max(begun, key=lambda found: found["Initiated"])["UploadId"] if begun else None

    def _begun(self) -> str:
        metadata = {SHA256: self._sha256}
        answer = self._bucket.client.create_multipart_upload(**self._where, **self._encrypting, Metadata=metadata)
        return answer["UploadId"]

    def _list_parts(self) -> dict[int, tuple[int, str]]:
        pages = self._bucket.client.get_paginator("list_parts").paginate(**self._where, UploadId=self._id)
        parts = (part for page in pages for part in page.get("Parts", []))
        return {part["PartNumber"]: (part["Size"], part["ETag"]) for part in parts}

    def _send_parts(self, source: Path) -> list[Any]:
        """Send the parts, and list them if their bytes are those of the SHA-256."""
        found, parts, pending = hashlib.sha256(), [], deque[Future[dict[str, Any]]]()
        with source.open("rb") as stream, ThreadPoolExecutor(WORKERS, "s3-upload") as pool:
            length = max(PART, -(-source.stat().st_size // MOST_PARTS))
            try:
                while data := stream.read(length):
                    if len(pending) == WORKERS:
                        parts.append(pending.popleft().result())
                    pending.append(pool.submit(self._send_part, len(parts) + len(pending) + 1, data))
                    found.update(data)
                parts += [part.result() for part in pending]
            finally:
                pool.shutdown(cancel_futures=True)
        if found.hexdigest() != self._sha256:
            raise changed(source.name)
        return parts

    def _send_part(self, number: int, data: bytes) -> dict[str, Any]:
        check = hashlib.md5(data, usedforsecurity=False)
        size, etag = self._arrived.get(number, (0, ""))
        if (size, etag.strip('"')) != (len(data), check.hexdigest()):
            if etag:
                raise _Foreign
            etag = self._bucket.client.upload_part(
                **self._where,
                UploadId=self._id,
                PartNumber=number,
                Body=data,
                ContentMD5=base64.b64encode(check.digest()).decode(),
            )["ETag"]
        return {"PartNumber": number, "ETag": etag}


def _there(bucket: S3Bucket, where: Mapping[str, Any], sha256: str, size: int) -> bool:
    """Whether an upload of these bytes was completed."""
    try:
        found = bucket.client.head_object(**where)
    except ClientError as error:
        if missing(error):
            return False
        raise
    return (found["ContentLength"], found["Metadata"].get(SHA256)) == (size, sha256)


def _ended(error: ClientError) -> bool:
    return error.response["Error"]["Code"] == "NoSuchUpload"


def _disturbed(error: ClientError) -> bool:
    """Whether others ended the upload, or wrote parts of other bytes into it, so that it does not fit what we sent."""
    return error.response["Error"]["Code"] in ("NoSuchUpload", "InvalidPart")


def _useless(error: ClientError) -> bool:
    """Whether S3 would refuse the same again: not for lack of permission or time, but for what was sent."""
    return error.response["Error"]["Code"] in ("BadDigest", "InvalidPart", "InvalidPartOrder", "EntityTooSmall")
