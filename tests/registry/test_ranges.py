"""A version's file from some byte on: what is before it is not read, and what comes is no more than what should."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Corrupt, Fingerprint, Registry, StoredFile, Version
from swapmeet_registry import contents as reading
from swapmeet_registry.store_backend import StoreBackend, blob_key


def weights(registry: Registry, version: Version) -> StoredFile:
    return next(file for file in registry.manifest(version).files if file.path.endswith(".safetensors"))


@pytest.mark.parametrize("whole", [0, 1 << 20])
def test_a_file_from_some_byte_on(
    whole: int, url: str, make_adapter: Callable[..., Path], base: Fingerprint, tmp_path: Path, monkeypatch: Any
) -> None:
    """On every store and on a Hub."""
    monkeypatch.setattr(reading, "WHOLE", whole)
    registry = Registry(url)
    version = registry.push(make_adapter(tmp_path / "adapter"), "acme/legal", base=base)
    file = weights(registry, version)
    data = b"".join(registry.stream(version, file))
    for start in (0, 1, 1000, file.size - 1, file.size):
        assert b"".join(registry.stream(version, file, start)) == data[start:], start


def test_what_is_skipped_is_not_read(
    make_adapter: Callable[..., Path], base: Fingerprint, tmp_path: Path, monkeypatch: Any
) -> None:
    registry = Registry((tmp_path / "registry").as_uri())
    version = registry.push(make_adapter(tmp_path / "adapter"), "acme/legal", base=base)
    file = weights(registry, version)
    assert isinstance(registry.backend, StoreBackend)
    blob = tmp_path / "registry" / blob_key(file)
    data = blob.read_bytes()
    blob.chmod(0o600)
    for wrong, whole, fails in (
        (b"\1" + data[1:], 1 << 20, True),  # a small file is read whole, and seen
        (b"\1" + data[1:], 0, False),  # of a large one whoever joins the parts compares the digest
        (data[:-1], 0, True),
        (data + b"\0", 0, True),
        (b"", 0, True),
        (None, 0, True),
    ):
        monkeypatch.setattr(reading, "WHOLE", whole)
        blob.unlink() if wrong is None else blob.write_bytes(wrong)
        got = bytearray()
        with pytest.raises(Corrupt, match="or restore the store") if fails else nullcontext():
            for chunk in registry.stream(version, file, 9):
                got += chunk
        assert fails or bytes(got) == data[9:]
