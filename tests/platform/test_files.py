"""Uploaded files: kept and checked, listed, expired, swept up, and each tenant's own."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import func, select

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import FileRow, JobRow, TenantRow
from swapmeet.errors import NotFound, QuotaExceeded, RequestRefused
from swapmeet.files import Files, Sweeper, Uploads, Validator
from swapmeet.ids import made_at, new_id
from swapmeet_registry.errors import Corrupt
from swapmeet_registry.stores import open_store

LINE = json.dumps({"prompt": "3 May 2024", "completion": "2024-05-03"}) + "\n"
GOOD = (LINE * 12).encode()


@pytest.fixture
def files(database: Database, tmp_path: Path, clock: Any) -> Files:
    database.write(lambda session: session.add_all([TenantRow(name=name) for name in ("acme", "beta")]))
    return Files(database, open_store(f"file://{tmp_path}/storage"), clock)


@pytest.fixture
def sweeper(files: Files, tmp_path: Path) -> Sweeper:
    return Sweeper(Uploads(files, tmp_path / "spool"))


@pytest.fixture
def source(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "source"
        path.write_bytes(data)
        return path

    return write


def blobs(files: Files) -> set[str]:
    return set(files.store.list("files/"))


def job_with(file_id: str, state: str) -> JobRow:
    plain: dict[str, Any] = {"hyperparameters": {}, "lora": {}, "settings": {}, "resources": {}, "plan": {}}
    return JobRow(
        id=new_id("ftjob-"), tenant="acme", created_by="", request_digest="", model="tiny", base="tiny", state=state,
        adapter="acme/x", training_file=file_id, method="supervised", seed=0, job_metadata={}, integrations=[], **plain
    )  # fmt: skip


def test_ids_sort_by_age_and_say_when_they_were_made() -> None:
    moment = datetime(2026, 11, 22, 12, 0, 0, 123000, UTC)
    assert made_at(new_id("file-", moment)) == moment
    assert new_id("file-", moment) < new_id("file-", moment + timedelta(milliseconds=1))
    for no_id in ("", "file-", "file-xyz", "file-" + "g" * 28, "\0", "file-" + "0" * 27 + "\n"):
        assert made_at(no_id) is None


def test_a_file_is_kept_as_it_came(files: Files, source: Callable[[bytes], Path], tmp_path: Path) -> None:
    row = files.create("acme", "C:\\data\\train.jsonl", "fine-tune", source(GOOD), 3600)
    assert (row.filename, row.status, row.bytes) == ("train.jsonl", "uploaded", len(GOOD))
    assert row.sha256 == hashlib.sha256(GOOD).hexdigest()
    assert row.expires_at is not None
    assert b"".join(files.read(files.get("acme", row.id))) == GOOD
    assert files.fetch(row.id, tmp_path / "job").read_bytes() == GOOD
    empty = files.create("acme", "none.txt", "user_data", source(b""))
    assert (empty.status, b"".join(files.read(empty))) == ("processed", b"")


def test_all_that_is_wrong_is_told_at_once(files: Files, source: Callable[[bytes], Path]) -> None:
    with pytest.raises(RequestRefused) as caught:
        files.create("acme", "train.json", "fine-tune", source(GOOD), 5)
    assert "*.jsonl" in str(caught.value)
    assert "3600" in str(caught.value)
    assert caught.value.param == "filename"
    for name in ("", "..", "a\0.jsonl", "a\n.jsonl", "\ud800.jsonl", "x" * 256 + ".jsonl", "folder/"):
        with pytest.raises(RequestRefused):
            files.create("acme", name, "fine-tune", source(GOOD))
    with pytest.raises(RequestRefused, match="purpose"):
        files.create("acme", "a.jsonl", "world-domination", source(GOOD))
    assert blobs(files) == set()


def test_a_repeated_creation_under_a_chosen_id_changes_nothing(files: Files, source: Callable[[bytes], Path]) -> None:
    chosen = new_id("file-")
    first = files.create("acme", "results.csv", "fine-tune-results", source(b"a"), file_id=chosen)
    again = files.create("acme", "results.csv", "fine-tune-results", source(b"a"), file_id=chosen)
    assert first.id == again.id == chosen
    assert len(files.page("acme")[0]) == 1


def test_pages_go_on_where_they_stopped_also_when_that_file_is_gone(
    files: Files, source: Callable[[bytes], Path], clock: Any
) -> None:
    made = []
    for number in range(5):
        clock.now += timedelta(milliseconds=number % 2)  # some of the same millisecond
        made.append(files.create("acme", f"{number}.txt", "user_data", source(b"x")).id)
    files.create("beta", "b.txt", "user_data", source(b"x"))
    whole = [row.id for row in files.page("acme")[0]]
    assert sorted(whole) == sorted(made)
    assert [row.id for row in files.page("acme", order="asc")[0]] == whole[::-1]
    seen: list[str] = []
    while True:
        rows, more = files.page("acme", seen[-1] if seen else None, 2)
        seen += [row.id for row in rows]
        files.delete("acme", seen[-1])
        if not more:
            break
    assert seen == whole
    assert files.page("acme", purpose="fine-tune") == ([], False)
    with pytest.raises(RequestRefused):
        files.page("acme", after="somewhere")


def test_another_tenant_s_file_is_missing_in_the_same_words(files: Files, source: Callable[[bytes], Path]) -> None:
    mine = files.create("acme", "a.txt", "user_data", source(b"x"))
    unknown = new_id("file-")
    for act in (files.get, files.delete):
        with pytest.raises(NotFound) as theirs:
            act("beta", mine.id)
        with pytest.raises(NotFound) as none:
            act("beta", unknown)
        assert str(theirs.value).replace(mine.id, unknown) == str(none.value)
        for odd in ("\0", "a" * 5000, "\ud800", "../../etc/passwd"):
            with pytest.raises(NotFound):
                act("acme", odd)
    assert files.get("acme", mine.id).id == mine.id


def test_a_deleted_file_stays_with_an_unfinished_job(
    files: Files, sweeper: Sweeper, source: Callable[[bytes], Path], tmp_path: Path
) -> None:
    row = files.create("acme", "a.jsonl", "fine-tune", source(GOOD))
    job = job_with(row.id, "running")
    files.database.write(lambda session: session.merge(job))
    files.delete("acme", row.id)
    with pytest.raises(NotFound):
        files.get("acme", row.id)
    assert files.page("acme") == ([], False)
    sweeper.sweep()
    assert files.fetch(row.id, tmp_path / "job").read_bytes() == GOOD

    def end(session: Any) -> None:
        session.get(JobRow, job.id).state = "succeeded"

    files.database.write(end)
    sweeper.sweep()
    assert blobs(files) == set()
    with pytest.raises(NotFound):
        files.fetch(row.id, tmp_path / "other")


def test_files_expire_and_orphans_are_swept_up(
    files: Files, sweeper: Sweeper, source: Callable[[bytes], Path], clock: Any, tmp_path: Path
) -> None:
    kept = files.create("acme", "a.txt", "user_data", source(b"x"))
    expiring = files.create("acme", "b.txt", "user_data", source(b"x"), 3600)
    orphan = f"files/{new_id('file-', clock.now)}"
    files.store.put(orphan, b"x", hashlib.sha256(b"x").hexdigest())
    left = tmp_path / "spool" / "tmpabc"
    left.parent.mkdir()
    left.write_bytes(b"x")
    os.utime(left, (0, 0))
    clock.now += timedelta(hours=1)
    with pytest.raises(NotFound):
        files.get("acme", expiring.id)  # before anything was swept
    sweeper.sweep()
    assert blobs(files) == {f"files/{kept.id}", orphan}, "the orphan is young: its row may be on its way"
    assert not left.exists()
    clock.now += timedelta(days=1)
    sweeper.sweep()
    assert blobs(files) == {f"files/{kept.id}"}
    assert files.get("acme", kept.id).id == kept.id


def test_changed_bytes_are_told(files: Files, source: Callable[[bytes], Path], tmp_path: Path) -> None:
    row = files.create("acme", "a.txt", "user_data", source(b"x" * (3 << 20)))
    path = tmp_path / "storage" / "files" / row.id
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    got: list[bytes] = []
    with pytest.raises(Corrupt):
        got.extend(files.read(row))  # a list keeps what came before an error
    assert sum(map(len, got)) < len(data), "the last piece does not go out"
    path.unlink()
    with pytest.raises(Corrupt):
        files.read(row)


def test_a_quota_holds_however_many_upload_at_once(
    files: Files, source: Callable[[bytes], Path], tmp_path: Path
) -> None:
    def limit(session: Any) -> None:
        session.get(TenantRow, "acme").stored_bytes = 1000

    files.database.write(limit)
    path, failed = source(b"x" * 300), []

    def upload() -> None:
        try:
            files.create("acme", "a.txt", "user_data", path)
        except QuotaExceeded as error:
            failed.append(error)

    threads = [threading.Thread(target=upload) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == 5
    assert len(blobs(files)) == 3
    assert files.create("beta", "a.txt", "user_data", path).bytes == 300


KILLED = """
import os, signal, sys
from pathlib import Path
from swapmeet.database import Database
from swapmeet.files import Files
from swapmeet_registry import fault
from swapmeet_registry.stores import open_store

def hook(step):
    if step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

fault.hook = hook
files = Files(Database(sys.argv[1]), open_store(sys.argv[2]))
files.create("acme", "a.jsonl", "fine-tune", Path(sys.argv[4]))
"""


@pytest.mark.parametrize("step", ["local.written", "local.renamed", "local.folder_synced"])
def test_a_killed_upload_leaves_no_file_and_is_swept_up(tmp_path: Path, clock: Any, step: str) -> None:
    database = Database(f"sqlite:///{tmp_path}/swapmeet.db")
    upgrade(database)
    database.write(lambda session: session.add(TenantRow(name="acme")))
    files = Files(database, open_store(f"file://{tmp_path}/storage"), clock)
    path = tmp_path / "source"
    path.write_bytes(GOOD)
    arguments = [database.url, files.store.url, step, str(path)]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert database.read(lambda session: session.scalar(select(func.count()).select_from(FileRow))) == 0
    clock.now += timedelta(days=2)
    Sweeper(Uploads(files, tmp_path / "spool")).sweep()
    assert blobs(files) == set()
    assert files.create("acme", "a.jsonl", "fine-tune", path).bytes == len(GOOD)
    database.close()


def test_files_are_checked_apart_and_a_killed_check_is_taken_up(
    files: Files, source: Callable[[bytes], Path], tmp_path: Path
) -> None:
    good = files.create("acme", "a.jsonl", "fine-tune", source(GOOD))
    bad = files.create("acme", "b.jsonl", "fine-tune", source(GOOD + b'{"prompt": "x"}\n'))
    odd = files.create("acme", "c.jsonl", "fine-tune", source(b"[" * 100_000))
    closed = Validator(files, tmp_path / "spool")
    closed.close()
    assert closed.submit(good.id) is None
    validator = Validator(files, tmp_path / "spool")
    waiting = [validator.submit(each.id) for each in (good, bad, odd)]
    for each in waiting:
        assert each is not None
        each.result()
    found = files.get("acme", good.id)
    assert (found.status, found.status_details) == ("processed", None)
    assert found.report is not None
    assert (found.report["form"], found.report["examples"]) == ("completion", 12)
    refused = files.get("acme", bad.id)
    assert refused.status == "error"
    assert "line 13" in str(refused.status_details)
    assert files.get("acme", odd.id).status == "error"
    slow = files.create("acme", "d.jsonl", "fine-tune", source(LINE.encode() * 300_000))
    under_way = validator.submit(slow.id)
    assert validator.submit(slow.id) is None, "once is enough"
    while not validator._processes:
        pass
    validator.close()
    assert under_way is not None
    under_way.result()
    assert files.get("acme", slow.id).status == "uploaded"
    again = Validator(files, tmp_path / "spool")
    again.recover()
    again._pool.shutdown(wait=True)
    assert files.get("acme", slow.id).status == "processed"
    assert list((tmp_path / "spool").iterdir()) == []


def test_openai_s_client_keeps_lists_reads_and_deletes_files(tuning_server: Any) -> None:
    client = tuning_server.client()
    made = client.files.create(
        file=("train.jsonl", GOOD), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(GOOD), "train.jsonl", "fine-tune")
    assert made.expires_at == made.created_at + 7200
    done = client.files.wait_for_processing(made.id, poll_interval=0.1)
    assert (done.status, done.model_extra["report"]["examples"]) == ("processed", 12)
    bad = client.files.create(file=("bad.jsonl", b"no json\n"), purpose="fine-tune")
    told = client.files.wait_for_processing(bad.id, poll_interval=0.1)
    assert told.status == "error"
    assert "line 1" in str(told.status_details)
    assert [each.id for each in client.files.list()] == [bad.id, made.id]
    assert [each.id for each in client.files.list(limit=1, order="asc")] == [made.id, bad.id]
    assert [each.id for each in client.files.list(purpose="batch")] == []
    page = client.files.list(limit=1)
    assert (page.has_more, page.first_id, page.last_id) == (True, bad.id, bad.id)
    assert client.files.content(made.id).content == GOOD
    assert client.files.delete(made.id).deleted
    for gone in (made.id, "file-none"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.files.retrieve(gone)
        assert caught.value.code == "not_found"
        assert caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)
    stranger = tuning_server.client("beta")
    assert list(stranger.files.list()) == []
    for act in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
        with pytest.raises(openai.NotFoundError) as theirs:
            act(bad.id)
        assert theirs.value.message.count(bad.id) == 1
    assert client.files.retrieve(bad.id).id == bad.id


def test_hostile_forms_are_refused_in_words(tuning_server: Any) -> None:
    client = tuning_server.client()
    for name in ("../../etc/passwd.jsonl", "..\\..\\x.jsonl", 'q"uote; x=1.jsonl', "naïve ✓ 名前.jsonl"):
        made = client.files.create(file=(name, GOOD), purpose="fine-tune")
        kept = name.replace("\\", "/").rpartition("/")[2].replace('"', "%22")  # as browsers write it, and the client
        assert client.files.retrieve(made.id).filename == kept
        assert client.files.content(made.id).read() == GOOD
    for filename, purpose in (("a.exe", "fine-tune"), ("a.jsonl", "fine-tune-results"), ("x" * 300, "batch")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.create(file=(filename, GOOD), purpose=purpose)  # type: ignore[arg-type]
        assert caught.value.code == "invalid_request"
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(
            file=("a.jsonl", GOOD), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 1}
        )
    assert caught.value.param == "expires_after[seconds]"
    url, headers = f"{tuning_server.url}/v1/files", {"authorization": f"Bearer {tuning_server.key_of('acme')}"}
    form = {**headers, "content-type": "multipart/form-data; boundary=b"}

    def post(content: bytes, given: dict[str, str] = form) -> dict[str, Any]:
        answer = httpx.post(url, content=content, headers=given, trust_env=False)
        assert answer.status_code == 400, answer.text
        return dict(answer.json()["error"])

    part = '--b\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'.format
    purpose_part, file_part = part("purpose", "", "fine-tune"), part("file", '; filename="a.jsonl"', "x")
    assert "no form" in post(b"{}", {**headers, "content-type": "application/json"})["message"]
    assert "no form" in post(b"x", {**headers, "content-type": "multipart/form-data"})["message"]
    assert "sound" in post(b"garbage")["message"]
    assert "ends before" in post((purpose_part + file_part).encode())["message"]
    assert post(f"{purpose_part}--b--\r\n".encode())["param"] == "file"
    assert "two files" in post(f"{file_part}{file_part}--b--\r\n".encode())["message"]
    assert "twice" in post(f"{purpose_part}{purpose_part}--b--\r\n".encode())["message"]
    assert "4096" in post(f"{part('purpose', '', 'x' * 5000)}--b--\r\n".encode())["message"]
    many = post(f"{file_part}{part('colour', '', 'red')}{part('expires_after[seconds]', '', '1e9')}--b--\r\n".encode())
    assert all(word in many["message"] for word in ("colour", "purpose is missing", "expires_after[seconds]"))
    assert "no sound" in post(f"--b\r\nContent-Disposition: {'x' * 100_000}\r\n\r\n".encode())["message"]
    assert httpx.post(url, content=b"x", trust_env=False).status_code == 401
    assert [path for path in tuning_server.tuning.spool.iterdir() if path.is_file()] == []


def test_a_file_over_the_limit_is_refused_while_it_comes(tuning_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from swapmeet.gateway import files as routes

    monkeypatch.setattr(routes, "LARGEST_FILE", 3 << 20)
    client = tuning_server.client()
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.create(file=("a.jsonl", b"x" * (8 << 20)), purpose="fine-tune")
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    assert client.files.create(file=("a.txt", b"x" * (2 << 20)), purpose="user_data").bytes == 2 << 20
    assert list(tuning_server.tuning.spool.iterdir()) == []


MEMORY = """
import resource, sys, openai
from pathlib import Path
client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0,
                       http_client=openai.DefaultHttpxClient(trust_env=False, timeout=120))
print(client.files.create(file=Path(sys.argv[3]), purpose="user_data").id)
"""


@pytest.mark.slow
def test_a_large_file_takes_little_memory(tuning_server: Any, tmp_path: Path) -> None:
    """200 MB go up, from another process, and come down, while this one grows by a few pieces."""
    path = tmp_path / "large.bin"
    with path.open("wb") as stream:
        for number in range(200):
            stream.write(number.to_bytes(4, "big") * (1 << 18))
    peaks = watched_peak()
    arguments = [f"{tuning_server.url}/v1", tuning_server.key_of("acme"), str(path)]
    sent = subprocess.run([sys.executable, "-c", MEMORY, *arguments], check=True, capture_output=True, text=True)
    file_id = sent.stdout.strip()
    found, size = hashlib.sha256(), 0
    with tuning_server.client().files.with_streaming_response.content(file_id) as answer:
        for chunk in answer.iter_bytes(1 << 20):
            found.update(chunk)
            size += len(chunk)
    grown = peaks()
    assert size == 200 << 20
    with path.open("rb") as stream:
        assert found.hexdigest() == hashlib.file_digest(stream, "sha256").hexdigest()
    assert grown < 80 << 20, f"{grown >> 20} MiB"


def watched_peak() -> Callable[[], int]:
    """Call what this gives for the bytes by which this process's memory rose at most."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    stop, before, most = threading.Event(), resident(), [0]

    def watch() -> None:
        while not stop.wait(0.01):
            most[0] = max(most[0], resident() - before)

    thread = threading.Thread(target=watch)
    thread.start()

    def end() -> int:
        stop.set()
        thread.join()
        return most[0]

    return end
