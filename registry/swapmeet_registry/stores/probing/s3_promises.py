"""What only shows on the way to S3: statuses, parts, checks of what arrives, and writes whose answers are lost."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from botocore.exceptions import ClientError

from swapmeet_registry.stores.probing.promises import Lacking, Promise, require
from swapmeet_registry.stores.protocol import Store
from swapmeet_registry.stores.s3 import S3Store
from swapmeet_registry.stores.s3_errors import s3_errors, status
from swapmeet_registry.stores.s3_upload import PART, unfinished

HONEST = 40
"""Times that a write whose condition holds must be taken."""


def s3_promises(store: Store) -> tuple[tuple[str, Promise], ...]:
    """The promises of a bucket, to be tried in an empty store."""
    assert isinstance(store, S3Store)
    tried = _S3Promises(store)
    return (
        ("conditions answered truly", tried.conditions),
        ("lost answers", tried.lost_answers),
        ("listing in pages", tried.pages),
        ("ranges as asked for", tried.ranges),
        ("upload goes on", tried.upload_goes_on),
        ("damage on the way refused", tried.damage),
    )


@dataclass(frozen=True)
class _S3Promises:
    store: S3Store

    def conditions(self) -> None:
        self._require_status("true", 200, IfNoneMatch="*")
        self._require_status("true", 412, IfNoneMatch="*")
        self._require_status("true", 412, IfMatch="0" * 32)
        self._require_status("absent", 404, 412, IfMatch="0" * 32)
        for turn in range(HONEST):
            etag = self._head("true")["ETag"].strip('"')
            self._require_status("true", 200, IfMatch=etag)
            self._require_status(f"true-{turn}", 200, IfNoneMatch="*")

    def lost_answers(self) -> None:
        """A write that is sent again, because its answer was lost, must be known for what it is."""
        for key, expected in (("lost", None), ("lost-2", self.store.swap("lost-2", b"old", None))):
            nonce = uuid4().hex
            first = self.store.attempt(key, b"new", expected, nonce)
            again = self.store.attempt(key, b"new", expected, nonce)
            require(
                first is not None and first == again,
                "A write that was sent again was not recognized: the object's metadata, or its etag, is not kept.",
            )

    def pages(self) -> None:
        keys = [f"pages/{number}" for number in range(5)]
        for key in keys:
            self.store.put(key, b"", hashlib.sha256().hexdigest())
        prefix = self._where("pages/0")["Key"].removesuffix("0")
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.store.bucket.name, Prefix=prefix, PaginationConfig={"PageSize": 2}
        )
        with s3_errors(self.store.bucket.name):
            found = [item["Key"] for page in pages for item in page.get("Contents", [])]
        wanted = [self._where(key)["Key"] for key in keys]
        require(found == wanted, f"A listing in pages of two gave {len(found)} of {len(wanted)} keys, or in disorder.")

    def ranges(self) -> None:
        data = bytes(range(256)) * 64
        self.store.put("wire", data, hashlib.sha256(data).hexdigest())
        for first, last in ((0, 0), (1, 99), (1000, 9999), (len(data) - 5, len(data) - 1)):
            with s3_errors(self.store.bucket.name):
                answer = self._client.get_object(**self._where("wire"), Range=f"bytes={first}-{last}")
                body = answer["Body"].read()
            stated = answer.get("ContentRange")
            require(stated == f"bytes {first}-{last}/{len(data)}", f"Bytes {first} to {last} came as {stated}.")
            require(body == data[first : last + 1], f"Bytes {first} to {last} came as others.")

    def upload_goes_on(self) -> None:
        """An upload in parts is found again, with its parts, and leaves nothing when it is given up."""
        where, data = self._where("parts"), bytes(PART)
        with s3_errors(self.store.bucket.name):
            upload = self._client.create_multipart_upload(**where)["UploadId"]
            self._client.upload_part(**where, UploadId=upload, PartNumber=1, Body=data)
            found = [begun["UploadId"] for begun in unfinished(self.store.bucket, where["Key"])]
            parts = self._client.list_parts(**where, UploadId=upload).get("Parts", [])
            self._client.abort_multipart_upload(**where, UploadId=upload)
            left = list(unfinished(self.store.bucket, where["Key"]))
        require(self.store.get("parts") is None, "An upload that was given up is there.")
        if found != [upload] or [part["Size"] for part in parts] != [PART] or left:
            raise Lacking("Unfinished uploads are not listed as they are: one that breaks off begins anew.")

    def damage(self) -> None:
        """What is damaged on its way must not be taken."""
        check = base64.b64encode(hashlib.md5(b"sent", usedforsecurity=False).digest()).decode()
        answer = self._status(
            lambda: self._client.put_object(**self._where("damaged"), Body=b"arrived", ContentMD5=check)
        )
        if answer == 200:
            raise Lacking("Content-MD5 is not checked: damage on the way is seen by the next reader only.")
        require(self.store.get("damaged") is None, "A damaged write was refused, and is there.")

    @property
    def _client(self) -> Any:
        return self.store.bucket.client_without_retries

    def _where(self, key: str) -> dict[str, Any]:
        return self.store.where(key)

    def _head(self, key: str) -> Mapping[str, Any]:
        with s3_errors(self.store.bucket.name):
            found: Mapping[str, Any] = self._client.head_object(**self._where(key))
        return found

    def _require_status(self, key: str, *wanted: int, **condition: str) -> None:
        body = uuid4().bytes
        found = self._status(lambda: self._client.put_object(**self._where(key), **condition, Body=body))
        (name,) = condition
        held = "that held" if 200 in wanted else "that did not hold"
        require(found in wanted, f"A write with {name}, a condition {held}, was answered {found}.")

    def _status(self, call: Callable[[], Any]) -> int:
        with s3_errors(self.store.bucket.name):
            try:
                return int(call()["ResponseMetadata"]["HTTPStatusCode"])
            except ClientError as error:
                if status(error) not in (400, 404, 409, 412, 501) or error.response["Error"]["Code"] == "NoSuchBucket":
                    raise
                return status(error)
