"""Every write, and everything that can become of it on its way: it ends exactly once, and what is told is true."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_proxy import Answer, Fault, Forward, Proxy, Request

from swapmeet_registry import open_store
from swapmeet_registry.stores import Stored, s3, s3_upload
from swapmeet_registry.stores.s3 import S3Store
from swapmeet_registry.stores.s3_upload import unfinished

TIMEOUT = 1.0
LARGE = os.urandom((2 << 20) + 3)

ANSWERS = {
    "reset": None,
    "time-out": "late",
    "500": (500, b"<Error><Code>InternalError</Code></Error>"),
    "503": (503, b"<Error><Code>SlowDown</Code></Error>"),
    "409": (409, b"<Error><Code>ConditionalRequestConflict</Code></Error>"),
    "412": (412, b"<Error><Code>PreconditionFailed</Code></Error>"),
}
WRITES: dict[str, Callable[[Request], bool]] = {
    "create": lambda request: "If-None-Match" in request.headers,
    "replace": lambda request: "If-Match" in request.headers,
    "put": lambda request: request.method == "PUT" and "partNumber" not in request.path,
    "begin upload": lambda request: request.method == "POST" and request.path.endswith("?uploads"),
    "part": lambda request: request.method == "PUT" and "partNumber=2" in request.path,
    "end upload": lambda request: request.method == "POST" and "uploadId=" in request.path,
    "delete": lambda request: request.method == "DELETE",
}
CASES = [("s3", write) for write in WRITES] + [("other-s3", write) for write in ("create", "replace", "put", "delete")]
"""The second server takes no parts as small as these."""


@pytest.fixture
def s3_server(request: pytest.FixtureRequest, s3_server: str) -> str:
    """The server behind the proxy."""
    return str(request.getfixturevalue("other_s3_server")) if request.param == "other-s3" else s3_server


@pytest.fixture
def store(proxy: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    monkeypatch.setattr("swapmeet_registry.stores.s3_bucket.READ_TIMEOUT", TIMEOUT)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    monkeypatch.setattr(s3, "LARGEST_PUT", 1 << 19)
    monkeypatch.setattr(s3_upload, "PART", 1 << 20)
    opened = open_store(f"s3://{bucket}/prefix")
    assert isinstance(opened, S3Store)
    return opened


def fault(answer: Any, arrives: bool) -> Fault:
    def become(forward: Forward) -> Answer | tuple[int, bytes] | None:
        if arrives:
            forward()
        if answer == "late":
            time.sleep(1.5 * TIMEOUT)
            return None
        return answer  # type: ignore[no-any-return]

    return become


@pytest.mark.parametrize("arrives", [True, False], ids=["arrives", "lost"])
@pytest.mark.parametrize(("s3_server", "write"), CASES, indirect=["s3_server"])
def test_a_write_ends_exactly_once(store: S3Store, proxy: Proxy, tmp_path: Path, write: str, arrives: bool) -> None:
    proxy.wanted = WRITES[write]
    for answer in ANSWERS:
        place = store.below(answer)
        first = place.swap("old", b"old", None) if write in ("replace", "delete") else ""
        taken: Counter[int] = Counter()
        proxy.taken = lambda request, found, taken=taken: taken.update([found.status] * proxy.wanted(request))  # type: ignore[misc]
        proxy.faults.append(fault(ANSWERS[answer], arrives))
        done(place, write, first, tmp_path / "large")
        assert not proxy.faults, f"nothing went wrong with {answer}"
        if write in ("create", "replace"):
            assert taken[200] == 1, f"{answer}: {taken}"
        assert list(place.list("")) == {"replace": ["old"], "delete": []}.get(write, ["new"]), answer
        # An upload that was begun twice, because the first answer was lost, waits to be swept.
        left = len(list(unfinished(store.bucket, "")))
        assert left == 0 or (write, arrives) == ("begin upload", True), answer
        assert (store.sweep(0), list(unfinished(store.bucket, ""))) == (left, [])


def done(store: S3Store, write: str, first: str, large: Path) -> None:
    """Do it, and look whether what is told of it is true."""
    if write == "delete":
        store.delete("old")
        assert store.get("old") is None
    elif write in ("create", "replace"):
        key, expected = ("new", None) if write == "create" else ("old", first)
        etag = store.swap(key, b"new", expected)
        assert store.get(key) == Stored(b"new", etag)
    else:
        data = b"small" if write == "put" else LARGE
        large.write_bytes(data)
        store.put("new", large, hashlib.sha256(data).hexdigest())
        assert b"".join(store.stream("new") or ()) == data
