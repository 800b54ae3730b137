"""From an URL to the store behind it."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

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
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.strip("/"):
        return LocalStore(Path(unquote(parts.path)), used=used)
    if parts.scheme == "s3" and parts.netloc:
        from swapmeet_registry.stores.s3 import S3Options, S3Store  # boto3 takes long to import

        return S3Store(parts.netloc, unquote(parts.path).strip("/"), S3Options.parse(parts.query))
    wrong = "is not a store. A Hub keeps adapters only" if parts.scheme == "hf" else "is not a store"
    raise InvalidName(f"{url!r} {wrong}. Write file:///FOLDER or s3://BUCKET/PREFIX.")
