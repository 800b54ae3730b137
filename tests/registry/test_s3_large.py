"""Files that S3 gets in parts and gives in ranges: whole or not at all, and going on where they were."""

import hashlib
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_proxy import Answer, Proxy, Request

from swapmeet_registry import InvalidName, Refused, Registry, StoreDenied, StoreError, open_store
from swapmeet_registry.stores import s3, s3_download, s3_upload
from swapmeet_registry.stores.s3 import S3Store
from swapmeet_registry.stores.s3_upload import unfinished

PARTS = 5
DATA = os.urandom((PARTS << 20) - 5)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "large").write_bytes(DATA)
    return tmp_path / "large"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((s3, "LARGEST_PUT"), (s3_upload, "PART"), (s3_download, "RANGE")):
        monkeypatch.setattr(module, name, 1 << 20)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)


def opened(url: str) -> S3Store:
    store = open_store(url)
    assert isinstance(store, S3Store)
    return store


def sent_parts(proxy: Proxy) -> int:
    return sum("partNumber=" in request for request in proxy.requests)


@pytest.mark.usefixtures("small_parts")
def test_a_large_file_goes_and_comes_in_pieces(bucket: str, source: Path) -> None:
    store = opened(f"s3://{bucket}/x")
    store.put("files/large", source, SHA256)
    assert store.size("files/large") == len(DATA)
    for start in (0, 1, 1 << 20, (3 << 20) + 7, len(DATA) - 1, len(DATA)):
        assert b"".join(store.stream("files/large", start) or [b"none"]) == DATA[start:]
    assert list(unfinished(store.bucket, "")) == []
    with pytest.raises(StoreError, match="no bucket"):
        opened("s3://no-such-bucket-here/x").put("files/large", source, SHA256)


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_breaks_off_goes_on(proxy: Proxy, bucket: str, source: Path) -> None:
    store = opened(f"s3://{bucket}/x")
    proxy.wanted = lambda request: "partNumber=4" in request.path
    proxy.faults.extend([lambda forward: None] * 4)
    with pytest.raises(StoreError, match="Can not reach S3"):
        store.put("large", source, SHA256)
    assert store.get("large") is None
    (begun,) = unfinished(store.bucket, "x/large")
    proxy.requests.clear()
    store.put("large", source, SHA256)
    assert b"".join(store.stream("large") or ()) == DATA
    assert 1 <= sent_parts(proxy) < PARTS, "what had arrived was sent again"
    assert any(begun["UploadId"] in request for request in proxy.requests)
    assert list(unfinished(store.bucket, "")) == []


@pytest.mark.usefixtures("small_parts")
def test_parts_of_other_bytes_are_not_taken_for_ours(bucket: str, source: Path) -> None:
    store = opened(f"s3://{bucket}/x")
    where = store.where("large")
    upload = store.bucket.client.create_multipart_upload(**where)["UploadId"]
    for number in (1, 2, 9):
        store.bucket.client.upload_part(**where, UploadId=upload, PartNumber=number, Body=b"x" * (1 << 20))
    store.put("large", source, SHA256)
    assert b"".join(store.stream("large") or ()) == DATA
    (left,) = unfinished(store.bucket, "")
    assert left["UploadId"] == upload, "whoever began it may need it"


@pytest.mark.usefixtures("small_parts")
def test_a_file_that_changes_is_refused_and_nothing_stays(bucket: str, source: Path) -> None:
    store = opened(f"s3://{bucket}/x")
    with pytest.raises(Refused, match=r"large changed while it was published"):
        store.put("large", source, hashlib.sha256(b"other").hexdigest())
    assert store.get("large") is None
    assert list(unfinished(store.bucket, "")) == []


@pytest.mark.usefixtures("small_parts")
def test_why_a_file_is_refused_is_told_also_where_its_upload_can_not_be_given_up(
    proxy: Proxy, bucket: str, source: Path
) -> None:
    store = opened(f"s3://{bucket}/x")
    denied = Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
    proxy.behave = lambda request, forward: denied if request.method == "DELETE" else forward()
    with pytest.raises(Refused, match=r"large changed while it was published"):
        store.put("large", source, hashlib.sha256(b"other").hexdigest())


@pytest.mark.usefixtures("small_parts")
def test_two_uploads_of_the_same_bytes_at_once(bucket: str, source: Path) -> None:
    store = opened(f"s3://{bucket}/x")
    threads = [threading.Thread(target=store.put, args=("large", source, SHA256)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"".join(store.stream("large") or ()) == DATA
    assert list(store.list("")) == ["large"]


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_others_end_begins_anew(proxy: Proxy, bucket: str, source: Path) -> None:
    store = opened(f"s3://{bucket}/x")

    def given_up(forward: Callable[[], Answer]) -> Answer:
        store.sweep(0)
        return forward()

    proxy.wanted = lambda request: "partNumber=3" in request.path
    proxy.faults.append(given_up)
    store.put("large", source, SHA256)
    assert b"".join(store.stream("large") or ()) == DATA


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_others_write_into_begins_anew(proxy: Proxy, bucket: str, source: Path) -> None:
    """Somebody with other bytes for this key found our upload, before he was told that they are not of its SHA-256."""
    store = opened(f"s3://{bucket}/x")
    where = store.where("large")

    def spoilt(forward: Callable[[], Answer]) -> Answer:
        (begun,) = unfinished(store.bucket, "")
        store.bucket.client.upload_part(**where, UploadId=begun["UploadId"], PartNumber=1, Body=b"x" * (1 << 20))
        return forward()

    proxy.wanted = lambda request: request.method == "POST" and "uploadId=" in request.path
    proxy.faults.append(spoilt)
    store.put("large", source, SHA256)
    assert not proxy.faults
    assert b"".join(store.stream("large") or ()) == DATA
    assert list(unfinished(store.bucket, "")) == []


@pytest.mark.usefixtures("small_parts")
def test_who_is_refused_ends_no_upload_of_another(proxy: Proxy, bucket: str, source: Path) -> None:
    store, other = opened(f"s3://{bucket}/x"), source.with_name("other")
    other.write_bytes(DATA[:-1] + b"?")
    begun: list[str] = []

    def joined(forward: Callable[[], Answer]) -> Answer:
        begun.extend(each["UploadId"] for each in unfinished(store.bucket, ""))
        with pytest.raises(Refused, match=r"other changed while it was published"):
            store.put("large", other, SHA256)
        return forward()

    proxy.wanted = lambda request: f"partNumber={PARTS}" in request.path
    proxy.faults.append(joined)
    store.put("large", source, SHA256)
    assert len(begun) == 1
    assert b"".join(store.stream("large") or ()) == DATA


@pytest.mark.usefixtures("small_parts")
def test_ranges_that_break_off_go_on(proxy: Proxy, bucket: str, source: Path) -> None:
    store = opened(f"s3://{bucket}/x")
    store.put("large", source, SHA256)

    def cut(forward: Callable[[], Answer]) -> Answer:
        return forward()._replace(cut=True)

    proxy.wanted = lambda request: request.method == "GET" and "Range" in request.headers
    proxy.requests.clear()
    proxy.faults.extend([cut] * 3)
    assert b"".join(store.stream("large") or ()) == DATA
    assert len([request for request in proxy.requests if request.startswith("GET")]) == PARTS + 3


@pytest.mark.usefixtures("small_parts")
def test_a_server_that_ignores_ranges_is_not_believed(proxy: Proxy, bucket: str, source: Path) -> None:
    store = opened(f"s3://{bucket}/x")
    store.put("large", source, SHA256)

    def whole(request: Request, forward: Callable[[], Answer]) -> Answer:
        answer = forward()
        headers = tuple((name, value) for name, value in answer.headers if name.lower() != "content-range")
        return Answer(200, answer.body, headers) if "Range" in request.headers else answer

    proxy.behave = whole
    with pytest.raises(StoreError, match=r"where 1048576 to 2097152 were asked for. .* run swapmeet store probe"):
        b"".join(store.stream("large", 1 << 20) or ())


def test_answers_without_a_length_are_not_believed(bucket: str) -> None:
    store = opened(f"s3://{bucket}/x")
    store.put("small", b"data", hashlib.sha256(b"data").hexdigest())
    store.bucket.client.meta.events.register("after-call.s3.GetObject", lambda parsed, **_: parsed.pop("ContentLength"))
    for read in (store.get, store.stream):
        with pytest.raises(StoreError, match=r"announced None|does not say how long"):
            read("small")


def test_presigned_addresses(bucket: str, tmp_path: Path) -> None:
    store = opened(f"s3://{bucket}/x")
    store.put("a b", b"data", hashlib.sha256(b"data").hexdigest())
    address = store.presigned("a b", 60)
    assert address is not None
    assert urllib.request.urlopen(address).read() == b"data"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(address[:-1] + ("0" if address[-1] != "0" else "1"))
    for seconds in (0, -1, 7 * 24 * 3600 + 1):
        with pytest.raises(ValueError, match="1 to 604800 seconds"):
            store.presigned("a", seconds)
    with pytest.raises(InvalidName):
        store.presigned("../a", 60)
    local = open_store(tmp_path.as_uri())
    assert local.presigned("a", 60) is None


@pytest.mark.parametrize(
    ("query", "environment", "expected"),
    [
        ("?encryption=AES256", {}, ("AES256", None)),
        ("?encryption=aws:kms&kms_key=my-key", {}, ("aws:kms", "my-key")),
        ("?kms_key=my-key", {}, ("aws:kms", "my-key")),
        ("", {"SWAPMEET_S3_ENCRYPTION": "AES256"}, ("AES256", None)),
        ("", {"SWAPMEET_S3_KMS_KEY": "env-key"}, ("aws:kms", "env-key")),
        ("?kms_key=my-key", {"SWAPMEET_S3_KMS_KEY": "env-key"}, ("aws:kms", "my-key")),
    ],
)
@pytest.mark.usefixtures("small_parts")
def test_every_object_is_encrypted_as_asked(
    proxy: Proxy, bucket: str, aws: Any, source: Path, query: str, environment: dict[str, str], expected: Any
) -> None:
    for name, value in environment.items():
        aws.setenv(name, value)
    asked = []

    def note(request: Request, forward: Callable[[], Answer]) -> Answer:
        making = request.method == "PUT" and "partNumber" not in request.path
        if making or request.path.endswith("?uploads"):
            names = ("x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id")
            asked.append(tuple(request.headers.get(name) for name in names))
        return forward()

    proxy.behave = note
    store = opened(f"s3://{bucket}/a b{query}")
    assert opened(store.url).url == store.url
    store.put("small", b"", hashlib.sha256(b"").hexdigest())
    store.put("large", source, SHA256)
    store.swap("head", b"2", store.swap("head", b"1", None))
    assert asked == [expected] * 4
    assert b"".join(store.stream("large") or ()) == DATA


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("region=x&encryption=none", "region is none of .*; encryption is 'none'"),
        ("encryption=AES256&kms_key=a", "goes with encryption=aws:kms"),
        ("kms_key=", "is the id of a key"),
        ("addressing=dns", "none of path, virtual, auto"),
    ],
)
def test_unknown_options_are_refused_at_once(query: str, said: str) -> None:
    with pytest.raises(InvalidName, match=said):
        open_store(f"s3://bucket/x?{query}")
    with pytest.raises(InvalidName):
        Registry(f"s3://bucket/x?{query}")


def test_an_unknown_encryption_of_the_environment(bucket: str, aws: Any) -> None:
    aws.setenv("SWAPMEET_S3_ENCRYPTION", "rot13")
    with pytest.raises(InvalidName, match=r"SWAPMEET_S3_ENCRYPTION is 'rot13'\. Set it to one of AES256"):
        open_store(f"s3://{bucket}").swap("a", b"", None)


def test_a_wrong_clock_is_told(proxy: Proxy, bucket: str) -> None:
    body = b"<Error><Code>RequestTimeTooSkewed</Code><Message>too large</Message></Error>"
    proxy.behave = lambda request, forward: Answer(403, body)
    with pytest.raises(StoreDenied, match=r"this machine's clock differs .* Set the clock right"):
        open_store(f"s3://{bucket}").get("a")
