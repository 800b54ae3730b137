"""Publishes of many at once, on either database: within the quota, and one version however often completed."""

import hashlib
import shutil
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from swapmeet.adapter_publishes import Publishes, PublishRequest
from swapmeet.audit_export import verify
from swapmeet.database import Database
from swapmeet.database.tables import PublishRow, TenantRow
from swapmeet.database.tables.base import now
from swapmeet.errors import QuotaExceeded, RequestRefused
from swapmeet.tenancy import Caller
from swapmeet.tenancy.audit import Audit
from swapmeet_registry import AdapterName, Fingerprint, Registry, open_store
from swapmeet_registry.bases import BaseLibrary

ACME = Caller("acme", "key-1", frozenset({"publish"}))
LEGAL = AdapterName("acme", "legal")


@pytest.fixture
def publishes(database: Database, tiny_llama: Path, tmp_path: Path) -> Publishes:
    library = BaseLibrary(tmp_path)
    library.add(str(tiny_llama), "tiny")
    database.write(lambda session: session.add(TenantRow(name="acme", stored_versions=3)))
    registry, store = Registry(f"file://{tmp_path}/registry"), open_store(f"file://{tmp_path}/storage")
    return Publishes(database, registry, store, library, tmp_path / "spool")


def request_for(folder: Path) -> PublishRequest:
    files = [
        {"path": path.name, "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
    ]
    return PublishRequest.model_validate({"base": "tiny", "files": files, "alias": "prod"})


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each gives, or the error that it raises."""
    found: list[Any] = [None] * len(works)

    def run(place: int) -> None:
        try:
            found[place] = works[place]()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_publishes_of_many_at_once(
    publishes: Publishes, database: Database, published: tuple[Fingerprint, Path], tmp_path: Path
) -> None:
    folder = published[1]
    wanted = request_for(folder)
    same = at_once(*(lambda: publishes.begin(LEGAL, wanted, "same") for _ in range(6)))
    assert len({row.id for row in same}) == 1
    others = at_once(*(lambda key=str(number): publishes.begin(LEGAL, wanted, key) for number in range(6)))
    refused = [each for each in others if isinstance(each, QuotaExceeded)]
    assert len(refused) == 4, others
    begun = [same[0], *(each for each in others if each not in refused)]
    parts = [
        (lambda row=row, file=file: publishes.add(row, file.path, 0, folder / file.path))
        for row in begun
        for file in wanted.files
    ]
    assert at_once(*parts, *parts) == [None] * 2 * len(parts)
    done = at_once(*(lambda row=row: publishes.complete(row, ACME) for row in begun for _ in range(3)))
    again = at_once(*(lambda row=row: publishes.complete(publishes.get(LEGAL, row.id), ACME) for row in begun))
    assert {row.version for row in again} == {1, 2, 3}
    assert {(row.id, row.version) for row in done} == {(row.id, row.version) for row in again}
    listing = Registry(f"file://{tmp_path}/registry").show("acme/legal")
    assert len(listing.versions) == 3
    tenant = database.read(lambda session: session.get_one(TenantRow, "acme"))
    assert tenant.adapter_versions == 3
    assert tenant.adapter_bytes == 3 * sum(path.stat().st_size for path in folder.iterdir())
    entries = [line.decode() for line in Audit(database).export("acme")]
    (end,) = verify(entries)
    assert (end.sequence, end.unended) == (len(entries) - 1, ())
    begun, ended = (sum(f'"outcome":"{each}"' in line for line in entries) for each in ("begun", "done"))
    assert begun == ended >= 3, "each ends what it began, also who came second"


def test_what_was_made_before_its_server_was_killed_is_not_expired(
    publishes: Publishes, database: Database, published: tuple[Fingerprint, Path], tmp_path: Path
) -> None:
    wanted = request_for(published[1])
    made, not_made = publishes.begin(LEGAL, wanted), publishes.begin(LEGAL, wanted)
    registry = Registry(f"file://{tmp_path}/registry")
    with Audit(database).noting(ACME, "adapter.publish", str(LEGAL), operation=made.id) as doing:
        registry.push(published[1], str(LEGAL), base=published[0], once=made.id)
        doing.noted = True  # as whoever is killed leaves it
    publishes.sweep()
    assert {publishes.get(LEGAL, row.id).status for row in (made, not_made)} == {"pending"}
    late = update(PublishRow).values(expires_at=now() - timedelta(days=1))
    database.write(lambda session: session.execute(late))
    for _ in range(2):
        publishes.sweep()
    found = [publishes.get(LEGAL, row.id) for row in (made, not_made)]
    assert [(row.status, row.version) for row in found] == [("published", 1), ("expired", None)]
    assert database.read(lambda session: session.get_one(TenantRow, "acme")).adapter_versions == 1
    entries = Audit(database).page("acme")[0][::-1]
    told = [(row.key, row.subject, row.outcome, row.operation) for row in entries]
    assert told[0] == ("key-1", "acme/legal", "begun", made.id)
    assert sorted(told[1:], key=lambda entry: entry[2]) == [
        (made.id, "acme/legal:1", "done", made.id),
        (not_made.id, "acme/legal", "expired", not_made.id),
    ]


@pytest.mark.parametrize("run", [None, "run-1"])
def test_what_was_made_before_its_server_was_killed_is_not_cancelled(
    run: str | None, publishes: Publishes, database: Database, published: tuple[Fingerprint, Path], tmp_path: Path
) -> None:
    row = publishes.begin(LEGAL, request_for(published[1]).model_copy(update={"run": run}))
    registry = Registry(f"file://{tmp_path}/registry")
    with Audit(database).noting(ACME, "adapter.publish", str(LEGAL), operation=row.id) as doing:
        registry.push(published[1], str(LEGAL), base=published[0], run=run, once=row.id)
        doing.noted = True  # as whoever is killed leaves it
    for _ in range(2):
        with pytest.raises(RequestRefused, match="is published as version 1"):
            publishes.cancel(row, ACME)
    assert publishes.get(LEGAL, row.id).status == "published"
    assert database.read(lambda session: session.get_one(TenantRow, "acme")).adapter_versions == 1
    (end,) = verify(line.decode() for line in Audit(database).export("acme"))
    assert (end.sequence, end.unended) == (2, ())


@pytest.mark.parametrize("run", [None, "run-1"])
def test_one_damaged_name_holds_up_no_other(
    run: str | None, publishes: Publishes, database: Database, published: tuple[Fingerprint, Path], tmp_path: Path
) -> None:
    wanted = request_for(published[1]).model_copy(update={"run": run})
    names = [AdapterName("acme", name) for name in ("legal", "medical", "other")]
    rows = [publishes.begin(name, wanted) for name in names]
    registry = Registry(f"file://{tmp_path}/registry")
    for row in rows[:2]:
        registry.push(published[1], row.adapter, base=published[0], run=run, once=row.id)
    (head,) = (path for path in (tmp_path / "registry").rglob("*legal*") if path.is_file())
    head.write_text("damaged")
    late = update(PublishRow).values(expires_at=now() - timedelta(days=1))
    database.write(lambda session: session.execute(late))
    for _ in range(2):
        publishes.sweep()
    found = [publishes.get(name, row.id).status for name, row in zip(names, rows, strict=True)]
    assert found == ["pending", "published", "expired"]


def test_a_base_s_licence_is_inherited(
    publishes: Publishes, published: tuple[Fingerprint, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    licensed, folder = tmp_path / "licensed", published[1]
    shutil.copytree(tiny_llama, licensed)
    (licensed / "README.md").write_text("---\nlicense: gemma\n---\n# Tiny\n")
    BaseLibrary(tmp_path).add(str(licensed), "licensed")
    wanted = request_for(folder).model_copy(update={"base": "licensed"})
    row = publishes.begin(LEGAL, wanted)
    for file in wanted.files:
        publishes.add(row, file.path, 0, folder / file.path)
    done = publishes.complete(row, ACME)
    registry = Registry(f"file://{tmp_path}/registry")
    manifest = registry.manifest(registry.resolve(f"{LEGAL}@{done.digest}"))
    assert (manifest.license, manifest.base_license) == ("gemma", "gemma")


def test_a_key_is_no_run(publishes: Publishes, published: tuple[Fingerprint, Path]) -> None:
    wanted = request_for(published[1])
    with_run, with_key = wanted.model_copy(update={"run": "same"}), wanted.model_copy(update={"alias": "other"})
    first, second = publishes.begin(LEGAL, with_run), publishes.begin(LEGAL, with_key, "same")
    assert first.id != second.id
    assert publishes.begin(LEGAL, with_run).id == first.id
    assert publishes.begin(LEGAL, with_key, "same").id == second.id
    assert publishes.begin(LEGAL, with_run, "same run").id not in (first.id, second.id), "the key is what is asked by"


def test_parts_of_different_bytes_for_one_place_never_take_each_other_away(
    publishes: Publishes, published: tuple[Fingerprint, Path], tmp_path: Path
) -> None:
    """Whichever is written last is there whole; wrong bytes are told when the files are joined, and asked for again."""
    folder = published[1]
    wanted = request_for(folder)
    row = publishes.begin(LEGAL, wanted, "key")
    weights = next(file for file in wanted.files if file.path.endswith(".safetensors"))
    right, wrong = folder / weights.path, tmp_path / "wrong"
    wrong.write_bytes(b"x" * weights.size)
    for file in wanted.files:
        publishes.add(row, file.path, 0, folder / file.path)
    for _ in range(5):
        sent = at_once(
            *(lambda source=source: publishes.add(row, weights.path, 0, source) for source in (right, wrong) * 4)
        )
        assert sent == [None] * 8
        assert not any(publishes.missing(row).values()), "what was acknowledged is there"
    publishes.add(row, weights.path, 0, wrong)
    with pytest.raises(RequestRefused, match=r"another SHA-256 than was announced"):
        publishes.complete(row, ACME)
    assert publishes.missing(row)[weights.path] == [0]
    publishes.add(row, weights.path, 0, right)
    assert publishes.complete(row, ACME).version == 1
