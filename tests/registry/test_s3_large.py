"""Objects that S3 does not take at once."""

import hashlib
from pathlib import Path

import pytest

from swapmeet_registry.errors import StoreError
from swapmeet_registry.stores import open_store, s3


def test_a_very_large_object_goes_up_in_parts(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "LARGEST_PUT", 1 << 20)
    store, source = open_store(f"s3://{bucket}/x"), tmp_path / "large"
    data = bytes(range(256)) * (20 << 12)
    source.write_bytes(data)
    store.put("files/large", source, hashlib.sha256(data).hexdigest())
    assert store.size("files/large") == len(data)
    assert b"".join(store.stream("files/large") or []) == data
    missing = open_store("s3://no-such-bucket-here/x")
    with pytest.raises(StoreError, match="no bucket"):
        missing.put("files/large", source, hashlib.sha256(data).hexdigest())
