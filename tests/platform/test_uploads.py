"""Files in parts: joined in order, once, whoever asks how often, and however a process ends."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import func, select

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import FileRow, PartRow, TenantRow, UploadRow
from swapmeet.errors import NotFound, PlatformError, QuotaExceeded, RequestRefused, TooLarge
from swapmeet.files import Files, Sweeper, Uploads
from swapmeet_registry.stores import open_store

DATA = os.urandom(3 << 20)
PIECES = [DATA[: 1 << 20], DATA[1 << 20 : (1 << 20) + 7], DATA[(1 << 20) + 7 :]]
MD5 = hashlib.md5(DATA).hexdigest()
LINE = json.dumps({"prompt": "3 May 2024", "completion": "2024-05-03"}) + "\n"


@pytest.fixture
def uploads(database: Database, tmp_path: Path, clock: Any) -> Uploads:
    database.write(lambda session: session.add_all([TenantRow(name=name) for name in ("acme", "beta")]))
    return Uploads(Files(database, open_store(f"file://{tmp_path}/storage"), clock), tmp_path / "spool")


@pytest.fixture
def source(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / f"source-{hashlib.md5(data).hexdigest()}"
        path.write_bytes(data)
        return path

    return write


def begin(uploads: Uploads, size: int = len(DATA)) -> str:
    return uploads.create("acme", "data.bin", "user_data", "application/octet-stream", size).id


def stored(uploads: Uploads) -> list[str]:
    return [key.split("/")[0] for key in uploads.store.list("")]


def rows(uploads: Uploads, table: Any) -> int:
    return uploads.database.read(lambda session: session.scalar(select(func.count()).select_from(table))) or 0


def test_parts_are_joined_in_the_order_given(uploads: Uploads, source: Callable[[bytes], Path]) -> None:
    upload = begin(uploads)
    last, first, middle = (uploads.add_part("acme", upload, source(PIECES[place])).id for place in (2, 0, 1))
    stale = uploads.add_part("acme", upload, source(PIECES[1])).id  # sent again, since its answer was lost
    for parts, word in (
        ([first, middle], "announced"),
        ([first, first, last], "twice"),
        ([first, middle, last, stale], "announced"),
        ([first, "part_none", last], "no part"),
        ([], "announced"),
    ):
        with pytest.raises(RequestRefused, match=word):
            uploads.complete("acme", upload, parts)
    with pytest.raises(RequestRefused, match="md5"):
        uploads.complete("acme", upload, [last, middle, first], MD5)
    row, file = uploads.complete("acme", upload, [first, middle, last], MD5.upper())
    assert (row.status, row.file, file.sha256) == ("completed", file.id, hashlib.sha256(DATA).hexdigest())
    assert b"".join(uploads.files.read(file)) == DATA
    assert stored(uploads) == ["files"]
    assert uploads.complete("acme", upload, [first, middle, last])[1].id == file.id
    for late in (
        lambda: uploads.complete("acme", upload, [middle, first, last]),
        lambda: uploads.add_part("acme", upload, source(b"x")),
        lambda: uploads.cancel("acme", upload),
    ):
        with pytest.raises(RequestRefused, match="completed"):
            late()
    assert list((uploads.folder).iterdir()) == []


def test_a_description_s_mistakes_are_told_at_once(uploads: Uploads) -> None:
    with pytest.raises(RequestRefused) as caught:
        uploads.create("acme", "a.txt", "fine-tune", "a\nb", 9 << 30, 5)
    for word in ("jsonl", "expires_after", "8589934592", "mime_type"):
        assert word in str(caught.value)
    for size in (0, -1, 1 << 70):
        with pytest.raises(RequestRefused, match="bytes"):
            uploads.create("acme", "a.jsonl", "fine-tune", "text/jsonl", size)


def test_parts_have_limits(
    uploads: Uploads, source: Callable[[bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(uploads, 10)
    with pytest.raises(RequestRefused, match="empty"):
        uploads.add_part("acme", upload, source(b""))
    huge = tmp_path / "huge"
    with huge.open("wb") as stream:
        stream.truncate((64 << 20) + 1)
    with pytest.raises(TooLarge):
        uploads.add_part("acme", upload, huge)
    monkeypatch.setattr("swapmeet.files.joining.MOST_PARTS", 2)
    for _ in range(2):
        uploads.add_part("acme", upload, source(b"x"))
    with pytest.raises(RequestRefused, match="2 parts"):
        uploads.add_part("acme", upload, source(b"x"))
    assert stored(uploads) == ["parts", "parts"]


def test_uploads_are_cancelled_and_expire(uploads: Uploads, source: Callable[[bytes], Path], clock: Any) -> None:
    upload = begin(uploads)
    part = uploads.add_part("acme", upload, source(PIECES[0])).id
    assert uploads.cancel("acme", upload).status == "cancelled"
    assert uploads.cancel("acme", upload).status == "cancelled"
    with pytest.raises(RequestRefused, match="cancelled"):
        uploads.complete("acme", upload, [part])
    late = begin(uploads)
    part = uploads.add_part("acme", late, source(DATA)).id
    clock.now += timedelta(hours=1)
    with pytest.raises(RequestRefused, match="expired"):
        uploads.complete("acme", late, [part])
    assert stored(uploads) == ["parts"]
    clock.now += timedelta(minutes=15)
    Sweeper(uploads).sweep()
    assert (stored(uploads), rows(uploads, PartRow), rows(uploads, UploadRow)) == ([], 0, 2)
    clock.now += timedelta(days=1)
    Sweeper(uploads).sweep()
    assert rows(uploads, UploadRow) == 0


def test_another_tenant_s_upload_is_missing(uploads: Uploads, source: Callable[[bytes], Path]) -> None:
    upload = begin(uploads)
    for name in (upload, "upload_none", "\0", "\ud800"):
        for act in (
            lambda name=name: uploads.add_part("beta", name, source(b"x")),
            lambda name=name: uploads.complete("beta", name, ["part_x"]),
            lambda name=name: uploads.cancel("beta", name),
        ):
            with pytest.raises(NotFound):
                act()
    mine = begin(uploads, 1)
    part = uploads.add_part("acme", upload, source(b"x")).id
    with pytest.raises(RequestRefused, match="no part of this upload"):
        uploads.complete("acme", mine, [part])


def test_announced_bytes_count_against_the_quota(uploads: Uploads, source: Callable[[bytes], Path]) -> None:
    def limit(session: Any) -> None:
        session.get(TenantRow, "acme").stored_bytes = 10

    uploads.database.write(limit)
    upload = begin(uploads, 10)
    with pytest.raises(QuotaExceeded):
        begin(uploads, 1)
    part = uploads.add_part("acme", upload, source(b"0123456789")).id
    assert uploads.complete("acme", upload, [part])[1].bytes == 10
    with pytest.raises(QuotaExceeded):
        begin(uploads, 1)


def test_of_all_who_complete_at_once_one_makes_the_file(uploads: Uploads, source: Callable[[bytes], Path]) -> None:
    upload = begin(uploads)
    parts = [uploads.add_part("acme", upload, source(piece)).id for piece in PIECES]
    outcomes: list[Any] = []

    def complete(order: list[str]) -> None:
        try:
            outcomes.append(uploads.complete("acme", upload, order)[1].id)
        except PlatformError as error:
            outcomes.append(type(error))

    orders = [parts, parts[::-1]] * 4
    threads = [threading.Thread(target=complete, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = {each for each in outcomes if isinstance(each, str)}
    assert len(made) == 1
    assert outcomes.count(RequestRefused) == 4
    assert stored(uploads) == ["files"]
    row = uploads.files.get("acme", made.pop())
    assert hashlib.sha256(b"".join(uploads.files.read(row))).hexdigest() == row.sha256
    assert rows(uploads, FileRow) == 1


def test_cancelled_while_it_is_completed(uploads: Uploads, source: Callable[[bytes], Path]) -> None:
    upload = begin(uploads)
    part = uploads.add_part("acme", upload, source(DATA)).id
    put = uploads.store.put

    def cancel_first(key: str, *rest: Any) -> None:
        uploads.cancel("acme", upload)
        put(key, *rest)

    uploads.store.put = cancel_first  # type: ignore[method-assign]
    with pytest.raises(RequestRefused, match="cancelled"):
        uploads.complete("acme", upload, [part])
    assert (stored(uploads), rows(uploads, FileRow)) == ([], 0)


KILLED = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from swapmeet.database import Database
from swapmeet.files import Files, Uploads
from swapmeet_registry import fault
from swapmeet_registry.stores import open_store

url, storage, folder, upload, data, step, *parts = sys.argv[1:]
database = Database(url)
uploads = Uploads(Files(database, open_store(storage)), Path(folder))

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def hook(reached):
    if reached == step:
        die()

fault.hook = hook
written = []
if step in ("before_commit", "after_commit"):
    @event.listens_for(database.engine, "commit")
    def committing(connection):
        if connection.get_execution_options().get("swapmeet_writes"):
            if step == "before_commit":
                die()
            written.append(connection)
if step == "after_commit":
    delete = uploads.store.delete
    uploads.store.delete = lambda key: die() if written else delete(key)
if parts:
    uploads.complete("acme", upload, parts)
else:
    uploads.add_part("acme", upload, Path(data))
"""


STEPS = ("local.written", "local.folder_synced", "before_commit", "after_commit")


@pytest.mark.parametrize(
    ("what", "step"),
    [*(("part", step) for step in STEPS[:-1]), *(("complete", step) for step in STEPS)],  # a commit ends a part
)
def test_a_killed_step_of_an_upload_is_done_again(tmp_path: Path, clock: Any, what: str, step: str) -> None:
    database = Database(f"sqlite:///{tmp_path}/swapmeet.db")
    upgrade(database)
    database.write(lambda session: session.add(TenantRow(name="acme")))
    uploads = Uploads(Files(database, open_store(f"file://{tmp_path}/storage"), clock), tmp_path / "spool")
    data = tmp_path / "data"
    data.write_bytes(DATA)
    upload = begin(uploads)
    parts = [uploads.add_part("acme", upload, data).id] if what == "complete" else []
    arguments = [database.url, uploads.store.url, str(uploads.folder), upload, str(data), step, *parts]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert ended.returncode == -signal.SIGKILL
    parts = parts or [uploads.add_part("acme", upload, data).id]
    _, file = uploads.complete("acme", upload, parts)
    assert b"".join(uploads.files.read(file)) == DATA
    assert rows(uploads, FileRow) == 1
    for path in uploads.folder.iterdir():
        os.utime(path, (0, 0))
    clock.now += timedelta(days=2)
    Sweeper(uploads).sweep()
    assert stored(uploads) == ["files"]
    assert list(uploads.folder.iterdir()) == []
    database.close()


def test_openai_s_client_uploads_in_parts(tuning_server: Any, tmp_path: Path) -> None:
    client = tuning_server.client()
    path = tmp_path / "train.jsonl"
    path.write_text(LINE * 2000)
    done = client.uploads.upload_file_chunked(
        file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=50_000,
        md5=hashlib.md5(path.read_bytes()).hexdigest(),
    )  # fmt: skip
    assert (done.status, done.bytes, done.filename) == ("completed", path.stat().st_size, "train.jsonl")
    assert done.file
    assert (done.file.object, done.file.purpose, done.file.bytes) == ("file", "fine-tune", done.bytes)
    assert client.files.wait_for_processing(done.file.id, poll_interval=0.1).status == "processed"
    assert client.files.content(done.file.id).read() == path.read_bytes()
    begun = client.uploads.create(
        bytes=5, filename="a.txt", mime_type="text/plain", purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )  # fmt: skip
    assert (begun.status, begun.expires_at - begun.created_at, begun.file) == ("pending", 3600, None)
    part = client.uploads.parts.create(begun.id, data=b"hello")
    assert (part.object, part.upload_id) == ("upload.part", begun.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.uploads.complete(begun.id, part_ids=[part.id], md5="0" * 32)
    assert caught.value.param == "md5"
    stranger = tuning_server.client("beta")
    for act in (
        lambda: stranger.uploads.parts.create(begun.id, data=b"x"),
        lambda: stranger.uploads.complete(begun.id, part_ids=[part.id]),
        lambda: stranger.uploads.cancel(begun.id),
    ):
        with pytest.raises(openai.NotFoundError):
            act()
    finished = client.uploads.complete(begun.id, part_ids=[part.id])
    assert finished.file
    assert finished.file.expires_at
    assert client.uploads.complete(begun.id, part_ids=[part.id]).file.id == finished.file.id  # type: ignore[union-attr]
    assert (
        client.uploads.cancel(client.uploads.create(bytes=1, filename="a", mime_type="x", purpose="batch").id).status
        == "cancelled"
    )
    assert list(tuning_server.tuning.spool.iterdir()) == []


def test_large_parts_pass_and_too_large_ones_do_not(tuning_server: Any) -> None:
    client = tuning_server.client()
    upload = client.uploads.create(bytes=64 << 20, filename="a", mime_type="x", purpose="user_data")
    part = client.uploads.parts.create(upload.id, data=bytes(64 << 20))
    with pytest.raises(openai.APIStatusError) as caught:
        client.uploads.parts.create(upload.id, data=bytes((64 << 20) + 1))
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    assert client.uploads.complete(upload.id, part_ids=[part.id]).status == "completed"
    headers = {"authorization": f"Bearer {tuning_server.key_of('acme')}"}
    for path, body in (
        ("/v1/uploads", {"bytes": "5", "filename": "a", "mime_type": "x", "purpose": "batch", "colour": 1}),
        (f"/v1/uploads/{upload.id}/complete", {"part_ids": ["x"] * 10_001}),
        (f"/v1/uploads/{upload.id}/complete", {"part_ids": [1, 2]}),
    ):
        answer = httpx.post(tuning_server.url + path, json=body, headers=headers, trust_env=False)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "invalid_request"
