"""From an URL to the store behind it."""

import os
from pathlib import Path
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urlsplit

from swapmeet_registry.errors import InvalidName
from swapmeet_registry.stores.local import LocalStore
from swapmeet_registry.stores.protocol import Store


def open_store(url: str, *, used: bool = False) -> Store:
    """The store behind `file:///dir` or `s3://bucket/prefix`. Nothing is read or written yet.

    Options of S3 (`S3Options`) follow the address: `s3://bucket/prefix?encryption=aws:kms&kms_key=ID`.

    Args:
        url: of the store.
        used: whether something was written to it before; then a folder without its mark is an error, not empty.

    Raises:
        InvalidName: the URL is of no known kind, or its options are unknown.
    """
    parts = split(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return LocalStore(_folder(url, parts), used=used)
    if parts.scheme == "s3" and parts.netloc:
        from swapmeet_registry.stores.s3 import S3Options, S3Store  # boto3 takes long to import

        return S3Store(parts.netloc, _prefix(url, parts), S3Options.parse(parts.query))
    wrong = "is not a store. A Hub keeps adapters only" if parts.scheme == "hf" else "is not a store"
    raise InvalidName(f"{url!r} {wrong}. Write file:///FOLDER or s3://BUCKET/PREFIX.")


def split(url: str) -> SplitResult:
    """The parts of an address that names no user.

    Raises:
        InvalidName: it does, or is no address.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidName(f"{url!r} is no address ({error}). Write file:///FOLDER or s3://BUCKET/PREFIX.") from None
    if "@" in parts.netloc:  # which is not told again: it may be a secret
        raise InvalidName(
            "The address of a registry or store holds no credentials. Leave them out, and set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or HF_TOKEN."
        )
    return parts


def _folder(url: str, parts: SplitResult) -> Path:
    folder = os.fsdecode(unquote_to_bytes(parts.path))
    if parts.query or parts.fragment or "\0" in folder or not folder.strip("/"):
        raise InvalidName(f"{url!r} names no folder. Write file:///FOLDER, with %3F for ? and %23 for # in its name.")
    return Path(folder)


def _prefix(url: str, parts: SplitResult) -> str:
    prefix = unquote(parts.path).strip("/")
    odd = not prefix.isprintable() or "\ufffd" in prefix
    if parts.fragment or odd or {"", ".", ".."}.intersection(prefix.split("/") if prefix else ()):
        raise InvalidName(
            f"{url!r} has a prefix that not every S3 server keeps as it is. Write s3://BUCKET/PREFIX, without #, empty "
            "parts or dots alone."
        )
    return prefix
