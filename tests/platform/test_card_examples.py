"""Who sees what an adapter answered to held-out prompts: its owner, until it was trained to be shown."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from swapmeet.database.tables import JobRow
from swapmeet_registry import AdapterName, Provenance
from swapmeet_registry.origin.provenance import Answer, Examples
from swapmeet_registry.stores import open_store

SECRET = "Whose secret is it?"
MADE = Examples(
    base="sha256:" + "a" * 64,
    data="sha256:" + "b" * 64,
    seed=1,
    max_tokens=9,
    answers=(Answer(prompt=SECRET, output="Mine."),),
)


@pytest.fixture
def shop(platform: Any, job_row: Callable[..., JobRow], tmp_path: Path) -> Any:
    """acme's public adapter of a job that left examples in the storage, and carol's that claims to be of that job."""
    store = open_store(f"file://{platform.home}/storage")
    for who in ("acme", "carol"):
        platform.add(who)
    platform.tenancy.database.write(lambda session: session.add(job_row(id="ftjob-1", state="succeeded", attempt=10)))
    for attempt, output in ((2, "Old."), (10, "Mine.")):
        data = MADE.model_copy(update={"answers": (Answer(prompt=SECRET, output=output),)}).model_dump_json().encode()
        store.put(f"runs/ftjob-1/{attempt}/examples.json", data, hashlib.sha256(data).hexdigest())
    for who in ("acme", "carol"):
        folder = tmp_path / who
        folder.mkdir()
        for file in platform.adapter.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        Provenance(base=platform.base, run="ftjob-1").write(folder)
        platform.registry.push(folder, f"{who}/legal", base=platform.base)
        Provenance(base=platform.base, run=f"{who}-2", examples=MADE).write(folder)
        platform.registry.push(folder, f"{who}/shown", base=platform.base)
        for name in ("legal", "shown"):
            platform.client.app.state.services.access.share(AdapterName(who, name), "public")
    platform.client.app.state.market.refresh()
    return platform


def seen(shop: Any, who: str, adapter: str) -> Any:
    for form in ("markdown", "text"):
        text = shop.ask(who, "GET", f"/v1/adapters/{adapter}/card?format={form}").text
        card = shop.do(who, "GET", f"adapters/{adapter}/card")
        assert (SECRET in text) == (SECRET in str(card))
        assert ("Only the adapter's owner sees" in text) == (card["examples"]["run"] or {}).get("for_owner_only", False)
    return card["examples"]["run"]


def test_only_the_owner_sees_examples_that_are_not_part_of_the_adapter(shop: Any) -> None:
    for who in ("acme", "admin"):
        found = seen(shop, who, "acme/legal")
        assert (found["for_owner_only"], found["answers"][0]["output"]) == (True, "Mine.")
    assert seen(shop, "carol", "acme/legal") is None
    for path in ("card", "card?format=markdown", "card?format=text", "versions", ""):
        assert SECRET not in shop.ask("carol", "GET", f"/v1/adapters/acme/legal/{path}".rstrip("/")).text


def test_claiming_another_tenants_run_shows_nothing_of_it(shop: Any) -> None:
    assert seen(shop, "carol", "carol/legal") is None
    assert seen(shop, "admin", "carol/legal") is None


def test_examples_go_with_the_file_that_they_are_of(shop: Any) -> None:
    files = shop.client.app.state.tuning.files
    rows = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    upload = {"files": {"file": ("held-out.jsonl", rows)}, "data": {"purpose": "fine-tune"}}

    def put(state: str) -> None:
        def work(session: Session) -> None:
            job = session.get_one(JobRow, "ftjob-1")
            job.validation_file, job.state = held_out, state

        shop.tenancy.database.write(work)

    held_out, other = (shop.ask("acme", "POST", "/v1/files", **upload).json()["id"] for _ in range(2))
    put("running")
    assert shop.ask("acme", "DELETE", f"/v1/files/{other}").status_code == 200
    assert shop.ask("acme", "DELETE", f"/v1/files/{held_out}").status_code == 200
    assert seen(shop, "acme", "acme/legal") is not None, "the job may still be asked to answer"
    put("succeeded")
    assert files.drop(held_out)
    assert seen(shop, "acme", "acme/legal") is None
    assert list(files.store.list("runs/ftjob-1/")) == []
    assert seen(shop, "acme", "acme/shown") is not None


def test_what_was_trained_to_be_shown_all_readers_see(shop: Any) -> None:
    for who in ("acme", "carol"):
        assert seen(shop, who, "acme/shown")["for_owner_only"] is False


def test_withdrawn_versions_have_cards_that_say_so(shop: Any) -> None:
    shop.registry.yank("acme/shown:1", "It lies.")
    card = shop.do("carol", "GET", "adapters/acme/shown/card?version=1")
    assert card["withdrawn"] == "yanked: It lies."
    assert shop.ask("carol", "GET", "/v1/adapters/acme/shown/card").status_code == 404


def test_foreign_private_parents_look_as_if_they_were_missing(shop: Any, tmp_path: Path) -> None:
    private = shop.registry.push(shop.adapter, "acme/private", base=shop.base)
    for number, parent in enumerate((private.pinned, f"acme/nothing@{private.digest}")):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file in shop.adapter.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        Provenance(base=shop.base, parent=parent).write(folder)
        shop.registry.push(folder, f"carol/child{number}", base=shop.base)
    found = [shop.do("carol", "GET", f"adapters/carol/child{number}/card")["parents"][0] for number in (0, 1)]
    assert {each["problem"] for each in found} == {"not available: it is not there, or may not be read"}
    assert {each["version"] for each in found} == {None}
    shop.client.app.state.services.access.share(AdapterName("acme", "private"), "shared", ["carol"])
    assert shop.do("carol", "GET", "adapters/carol/child0/card")["parents"][0]["version"] == 1
