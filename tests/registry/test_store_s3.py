"""What can go wrong between S3 and here: lost answers, refusals, and servers that are away."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from swapmeet_registry import Conflict, Registry, Store, StoreDenied, StoreError, open_store

Answer = tuple[int, bytes]
Forward = Callable[[], Answer]


def lose(forward: Forward) -> None:
    """The write takes place, and its answer never arrives."""
    forward()


def fail(forward: Forward) -> Answer:
    """The write takes place, and the answer says that it did not."""
    forward()
    return 500, b"<Error><Code>InternalError</Code></Error>"


def drop(forward: Forward) -> None:
    """The write never arrives."""


def busy(forward: Forward) -> Answer:
    return 503, b"<Error><Code>SlowDown</Code></Error>"


def concurrent(forward: Forward) -> Answer:
    return 409, b"<Error><Code>ConditionalRequestConflict</Code></Error>"


@pytest.fixture
def store(proxy: Any, bucket: str) -> Store:
    return open_store(f"s3://{bucket}/prefix")


@pytest.mark.parametrize("fault", [lose, fail, drop, busy, concurrent])
@pytest.mark.parametrize("times", [1, 2])
def test_a_swap_happens_once_whatever_becomes_of_its_answer(store: Store, proxy: Any, fault: Any, times: int) -> None:
    proxy.faults.extend([fault] * times)
    first = store.swap("head", b"1", None)
    proxy.faults.extend([fault] * times)
    second = store.swap("head", b"2", first)
    assert not proxy.faults or fault in (lose, fail)  # what took place is not tried again
    proxy.faults.clear()
    stored = store.get("head")
    assert stored is not None
    assert (stored.data, stored.etag) == (b"2", second)


def test_an_overtaken_write_is_a_conflict(store: Store, proxy: Any) -> None:
    first = store.swap("head", b"1", None)

    def overtake(forward: Forward) -> Answer:
        store.swap("head", b"theirs", first)
        return forward()

    proxy.faults.append(overtake)
    with pytest.raises(Conflict):
        store.swap("head", b"2", first)
    stored = store.get("head")
    assert stored is not None
    assert stored.data == b"theirs"


def test_a_publish_whose_answer_is_lost_and_that_is_built_upon_happens_once(
    proxy: Any, bucket: str, make_adapter: Any, tmp_path: Any, base: Any
) -> None:
    """The store can not tell any more whose write was first; the nonce in the head can."""
    registry = Registry(f"s3://{bucket}")
    folder = make_adapter(tmp_path / "adapter")

    def lose_and_build_upon(forward: Forward) -> None:
        forward()
        registry.push(folder, "acme/legal", base=base)

    proxy.faults.append(lose_and_build_upon)
    version = registry.push(folder, "acme/legal", base=base, alias="prod")
    assert version.version == 1
    listing = registry.show("acme/legal")
    assert [known.version for known in listing.versions] == [1, 2]
    assert listing.aliases == {"prod": 1, "latest": 2}


def test_a_server_that_never_takes_the_write_is_an_error(
    store: Store, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swapmeet_registry.stores.s3.PAUSES", (0.0, 0.0))
    proxy.faults.extend([busy] * 2)
    with pytest.raises(StoreError, match=r"keeps failing to write head. Try again later"):
        store.swap("head", b"1", None)
    assert store.get("head") is None


def every_call(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.get("a"),
        lambda: list(store.list("")),
        lambda: store.put("a", b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        lambda: store.swap("a", b"", None),
        lambda: store.size("a"),
        lambda: store.delete("a"),
    ]


def test_wrong_credentials(bucket: str, aws: pytest.MonkeyPatch) -> None:
    aws.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
    for call in every_call(open_store(f"s3://{bucket}")):
        with pytest.raises(StoreDenied, match=r"refuses these credentials for the bucket .* Check AWS_ACCESS_KEY_ID"):
            call()


def test_a_wrong_secret(bucket: str, aws: pytest.MonkeyPatch) -> None:
    import boto3

    iam = boto3.client("iam")
    everything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everything]})
    iam.create_user(UserName=bucket)
    iam.put_user_policy(UserName=bucket, PolicyName="all", PolicyDocument=policy)
    key = iam.create_access_key(UserName=bucket)["AccessKey"]
    aws.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    aws.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    assert open_store(f"s3://{bucket}").get("a") is None
    aws.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreDenied, match=r"refuses these credentials .* \(SignatureDoesNotMatch\)"):
        open_store(f"s3://{bucket}").get("a")


def test_no_credentials(bucket: str, aws: pytest.MonkeyPatch) -> None:
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    for call in every_call(open_store(f"s3://{bucket}")):
        with pytest.raises(StoreDenied, match=r"There are no credentials .* Set AWS_ACCESS_KEY_ID and"):
            call()


def test_a_missing_bucket(aws: pytest.MonkeyPatch) -> None:
    for call in every_call(open_store("s3://no-such-bucket"))[:4]:
        with pytest.raises(StoreError, match=r"There is no bucket no-such-bucket at http.* Create it, or name another"):
            call()


def test_a_server_that_is_away(aws: pytest.MonkeyPatch) -> None:
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    aws.setattr("swapmeet_registry.stores.s3_bucket.ATTEMPTS", 1)
    for call in every_call(open_store("s3://bucket")):
        with pytest.raises(StoreError, match=r"Can not reach S3 at http://127.0.0.1:9 .* Check AWS_ENDPOINT_URL"):
            call()


@pytest.mark.parametrize(("name", "value"), [("AWS_ENDPOINT_URL", "not an url"), ("AWS_PROFILE", "absent")])
def test_unusable_settings(aws: pytest.MonkeyPatch, name: str, value: str) -> None:
    aws.setenv(name, value)
    with pytest.raises(StoreError, match=r"can not be used .* Check the AWS settings"):
        open_store("s3://bucket").get("a")


def test_an_impossible_bucket_name(aws: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"can not be used"):
        open_store("s3://Not A Bucket").get("a")


def test_a_download_that_breaks_off_goes_on(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ResponseStreamingError
    from botocore.response import StreamingBody

    data = bytes(range(256)) * (3 << 12)
    store = open_store(f"s3://{bucket}")

    store.put("a", data, hashlib.sha256(data).hexdigest())
    read, broken = StreamingBody.read, iter([False, True, False, True])

    def unreliable(self: Any, amount: int | None = None) -> bytes:
        if next(broken, False):
            raise ResponseStreamingError(error="cut")
        return bytes(read(self, amount))

    with contextlib.ExitStack() as stack:
        stack.callback(monkeypatch.undo)
        monkeypatch.setattr(StreamingBody, "read", unreliable)
        assert b"".join(store.stream("a") or ()) == data


class Endless(BaseHTTPRequestHandler):
    """Answers every request with bytes that do not end."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("etag", '"1"')
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def test_an_answer_without_end_is_an_error(aws: pytest.MonkeyPatch) -> None:
    aws.setattr("swapmeet_registry.stores.s3.LARGEST_GET", 1 << 20)
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever).start()
        aws.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            with pytest.raises(StoreError, match=r"answered 1048577 bytes of a in the bucket b, and announced None"):
                open_store("s3://b").get("a")
        finally:
            server.shutdown()
