"""A bucket and how it is reached: by the usual AWS variables and files, and by a store's own settings."""

import os
import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlencode

import boto3
from botocore.config import Config

from swapmeet_registry.errors import InvalidName
from swapmeet_registry.stores.s3_errors import s3_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ATTEMPTS = 4
"""How often the library tries what may be sent twice."""
READ_TIMEOUT = 60.0
"""Seconds without any byte until a request is given up."""
CONNECTIONS = 32

ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")
ADDRESSINGS = ("path", "virtual", "auto")


@dataclass(frozen=True, slots=True)
class S3Options:
    """What a store's URL says beyond its bucket.

    Attributes:
        encryption: at rest: `AES256` by S3's own keys, `aws:kms` or `aws:kms:dsse` by a key of KMS; None takes
            SWAPMEET_S3_ENCRYPTION, or else what the bucket does by itself.
        kms_key: the key's id; None takes SWAPMEET_S3_KMS_KEY, or else the account's default.
        addressing: `path`, `virtual` or `auto`; None is `path` with an own endpoint and else `auto`.
    """

    encryption: str | None = None
    kms_key: str | None = None
    addressing: str | None = None

    @classmethod
    def parse(cls, query: str) -> Self:
        """The options of `encryption=aws:kms&kms_key=ID&addressing=path`.

        Raises:
            InvalidName: an option or its value is unknown.
        """
        given = dict(parse_qsl(query, keep_blank_values=True))
        wrong = [f"{name} is none of encryption, kms_key, addressing" for name in given.keys() - set(cls.__slots__)]
        options = cls(**{name: value for name, value in given.items() if name in cls.__slots__})
        wrong += options.mistakes()
        if wrong:
            raise InvalidName(f"The options of the store are wrong: {'; '.join(wrong)}.")
        return options

    def mistakes(self) -> list[str]:
        """What can not be meant."""
        wrong = []
        if self.encryption is not None and self.encryption not in ENCRYPTIONS:
            wrong.append(f"encryption is {self.encryption!r}, and none of {', '.join(ENCRYPTIONS)}")
        if self.addressing is not None and self.addressing not in ADDRESSINGS:
            wrong.append(f"addressing is {self.addressing!r}, and none of {', '.join(ADDRESSINGS)}")
        if self.kms_key is not None and not (self.kms_key and (self.encryption or "aws:kms").startswith("aws:kms")):
            wrong.append("kms_key is the id of a key, and goes with encryption=aws:kms")
        return wrong

    def query(self) -> str:
        """What `parse` reads, with its question mark; nothing where nothing is set."""
        given = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return f"?{urlencode(given, safe=':/')}" if given else ""

    def encrypting(self) -> dict[str, Any]:
        """The arguments of every request that makes an object.

        Raises:
            InvalidName: the environment asks for an unknown encryption.
        """
        key = self.kms_key or os.environ.get("SWAPMEET_S3_KMS_KEY") or None
        kind = self.encryption or os.environ.get("SWAPMEET_S3_ENCRYPTION") or ("aws:kms" if key else None)
        if kind is None:
            return {}
        if kind not in ENCRYPTIONS:
            raise InvalidName(f"SWAPMEET_S3_ENCRYPTION is {kind!r}. Set it to one of {', '.join(ENCRYPTIONS)}.")
        return {"ServerSideEncryption": kind} | ({"SSEKMSKeyId": key} if key and kind != "AES256" else {})


_MAKING = threading.Lock()
"""A session of boto3 makes one client at a time; the clients themselves are for any thread."""


@dataclass(frozen=True)
class S3Bucket:
    """A bucket; can be pickled, and used by several threads."""

    name: str
    options: S3Options = field(default_factory=S3Options)

    @cached_property
    def client(self) -> "S3Client":
        """For what may be sent twice."""
        return self._connect(ATTEMPTS)

    @cached_property
    def client_without_retries(self) -> "S3Client":
        """For what may be sent once only."""
        return self._connect(1)

    @cached_property
    def _session(self) -> boto3.Session:
        with s3_errors(self.name):
            # botocore reads AWS_DEFAULT_REGION; the other AWS tools read AWS_REGION as well.
            return boto3.Session(region_name=os.environ.get("AWS_REGION"))

    def _connect(self, attempts: int) -> "S3Client":
        own_server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        addressing: Any = self.options.addressing or ("path" if own_server else "auto")
        config = Config(
            signature_version="s3v4",
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=5,
            read_timeout=READ_TIMEOUT,
            max_pool_connections=CONNECTIONS,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # An object's Content-MD5 is signed, and S3 compares it: a SHA-256 of the body would be one more pass.
            s3={"addressing_style": addressing, "payload_signing_enabled": False},
        )
        with s3_errors(self.name), _MAKING:
            return self._session.client("s3", config=config)

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "options": self.options}
