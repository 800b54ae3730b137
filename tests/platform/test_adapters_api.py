"""The registry over HTTP: publish from a plain PEFT folder, pull, aliases, withdrawals, and who may see any of it."""

import hashlib
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swapmeet import adapter_parts, adapter_publishes
from swapmeet.database.tables import TenantRow
from swapmeet.retention import Retention
from swapmeet.settings import load_settings
from swapmeet_registry import NotFound, Registry, Trust
from swapmeet_registry.bases import BaseLibrary
from swapmeet_registry.life import now
from swapmeet_registry.recall_documents import Obeyed, ServerWord
from swapmeet_registry.signing.keys import make_keys
from swapmeet_registry.stores.local import LocalStore

LEGAL = "adapters/acme/legal"
FILES = ("adapter_config.json", "adapter_model.safetensors")
HOW = ("yank", "recall", "delete")
on_both = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """SQLite's, but where a test asks for both: most of what is told here is no matter of the database."""
    if getattr(request, "param", "sqlite") == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/swapmeet.db"


@pytest.fixture
def hub(platform: Any, tiny_llama: Path) -> Any:
    """The API with the tenants `acme` and `beta`, and a base to publish for."""
    BaseLibrary(platform.home).add(str(tiny_llama), "tiny")
    for tenant in ("acme", "beta"):
        platform.add(tenant)
    return platform


def announced(folder: Path, **more: Any) -> dict[str, Any]:
    files = [
        {"path": path.name, "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
    ]
    return {"base": "tiny", "files": files} | more


def send(hub: Any, upload: dict[str, Any], folder: Path, who: str = "acme") -> None:
    """All parts that are missing."""
    for file in upload["files"]:
        data = (folder / file["path"]).read_bytes()
        for at in file["missing"]:
            part = data[at : at + upload["part_size"]]
            headers = {"x-content-sha256": hashlib.sha256(part).hexdigest()}
            place = f"adapters/{upload['adapter']}/uploads/{upload['id']}/files/{file['path']}?offset={at}"
            hub.do(who, "PUT", place, content=part, headers=headers)


def publish(hub: Any, name: str = "acme/legal", who: str = "acme", **more: Any) -> dict[str, Any]:
    upload = hub.do(who, "POST", f"adapters/{name}/uploads", json=announced(hub.adapter, **more))
    send(hub, upload, hub.adapter, who)
    return dict(hub.do(who, "POST", f"adapters/{name}/uploads/{upload['id']}/complete"))


def refused(answer: Any, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code, error
    return str(error["message"])


@on_both
def test_a_folder_is_published_pulled_and_withdrawn(hub: Any, tmp_path: Path) -> None:
    done = publish(hub, alias="prod", license="Apache-2.0", tags=["law"])
    assert (done["status"], done["version"]) == ("published", 1)
    shown = hub.do("acme", "GET", f"{LEGAL}/versions/prod")
    assert (shown["digest"], shown["manifest"]["license"], shown["manifest"]["tags"]) == (
        done["digest"], "Apache-2.0", ["law"],
    )  # fmt: skip
    assert hub.registry.resolve("acme/legal:prod").digest == done["digest"]
    files = hub.do("acme", "GET", f"{LEGAL}/versions/1/files")
    for file in files["data"]:
        got = hub.ask("acme", "GET", f"/v1/{LEGAL}/versions/1/files/{file['path']}")
        assert hashlib.sha256(got.content).hexdigest() == file["sha256"]
        if file["path"] != "adapter_config.json":  # which is written anew, in one form
            assert got.content == (hub.adapter / file["path"]).read_bytes()
        assert got.headers["etag"] == f'"{file["sha256"]}"'
        assert got.headers["x-swapmeet-adapter"] == f"acme/legal@{done['digest']}"
    assert publish(hub)["version"] == 2
    moved = hub.do("acme", "PUT", f"{LEGAL}/aliases/prod", json={"version": 2, "expect": 1})
    assert moved["version"] == 2
    again = hub.ask("acme", "PUT", f"/v1/{LEGAL}/aliases/prod", json={"version": 2, "expect": 1})
    refused(again, 409, "conflict")
    assert hub.do("acme", "POST", f"{LEGAL}/aliases/prod/undo")["aliases"] == {"prod": 1, "latest": 2}
    moves = hub.do("acme", "GET", f"{LEGAL}/history")["data"]
    assert [(move["alias"], move["version"], move["by"]) for move in moves] == [
        ("prod", 1, None), ("prod", 2, "acme"), ("prod", 1, "acme"),
    ]  # fmt: skip
    assert hub.do("acme", "DELETE", f"{LEGAL}/aliases/prod?expect=1")["aliases"] == {"latest": 2}
    assert hub.do("acme", "POST", f"{LEGAL}/versions/2/yank", json={"reason": "too eager"})["yanked"] == "too eager"
    assert "too eager" in refused(hub.ask("acme", "GET", f"/v1/{LEGAL}/versions/2"), 404, "model_not_found")
    digest = hub.do("acme", "GET", LEGAL)["versions"][1]["digest"]
    assert hub.do("acme", "GET", f"{LEGAL}/versions/{digest}")["version"] == 2, "who pinned it is not broken"
    hub.do("acme", "POST", f"{LEGAL}/versions/1/recall", json={"reason": "leaks"})
    for path in ("", "/files", "/files/adapter_config.json"):
        refused(hub.ask("acme", "GET", f"/v1/{LEGAL}/versions/1{path}"), 410, "model_recalled")
    hub.do("acme", "POST", f"{LEGAL}/versions/2/delete", json={"reason": "gone"})
    refused(hub.ask("acme", "GET", f"/v1/{LEGAL}/versions/{digest}"), 404, "model_not_found")
    entries = hub.do("acme", "GET", "audit?limit=100")["data"][::-1]
    begun, ended = entries[::2], entries[1::2]
    assert {entry["outcome"] for entry in begun} == {"begun"}
    assert [(entry["action"], entry["operation"]) for entry in begun] == [
        (entry["action"], entry["operation"]) for entry in ended
    ]
    assert len({entry["operation"] for entry in ended}) == len(ended)
    assert [(entry["action"], entry["subject"], entry["outcome"]) for entry in ended] == [
        ("adapter.publish", "acme/legal:1", "done"),
        ("adapter.publish", "acme/legal:2", "done"),
        ("alias.move", "acme/legal:prod", "done"),
        ("alias.move", "acme/legal:prod", "conflict"),
        ("alias.undo", "acme/legal:prod", "done"),
        ("alias.remove", "acme/legal:prod", "done"),
        ("version.yank", "acme/legal:2", "done"),
        ("version.recall", "acme/legal:1", "done"),
        ("version.delete", "acme/legal:2", "done"),
    ]


@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [
        ("bytes=0-9", 206, (0, 10)), ("bytes=5-", 206, (5, None)), ("bytes=-7", 206, (-7, None)),
        ("bytes=3-999999999", 206, (3, None)), ("bytes=9-3", 200, (0, None)), ("bytes=-", 200, (0, None)),
        ("bytes=0-1,4-5", 200, (0, None)), ("lines=1-2", 200, (0, None)), ("bytes=999999999-", 416, None),
        ("bytes=-0", 416, None),
    ],
)  # fmt: skip
def test_a_part_of_a_file_is_pulled(asked: str, status: int, span: tuple[int, int | None] | None, hub: Any) -> None:
    hub.registry.push(hub.adapter, "acme/legal", base=hub.base)
    place = f"/v1/{LEGAL}/versions/latest/files/adapter_model.safetensors"
    whole = (hub.adapter / "adapter_model.safetensors").read_bytes()
    got = hub.ask("acme", "GET", place, headers={"range": asked})
    assert got.status_code == status
    if span is None:
        assert refused(got, 416, "range_not_satisfiable")
        assert got.headers["content-range"] == f"bytes */{len(whole)}"
        return
    assert got.content == whole[slice(*span)]
    start = span[0] % len(whole)
    if status == 206:
        assert got.headers["content-range"] == f"bytes {start}-{start + len(got.content) - 1}/{len(whole)}"
    stale = hub.ask("acme", "GET", place, headers={"range": asked, "if-range": '"other"'})
    assert (stale.status_code, stale.content) == (200, whole)


def test_a_file_is_looked_at_and_not_sent_again(hub: Any) -> None:
    version = hub.registry.push(hub.adapter, "acme/legal", base=hub.base)
    sizes = {file.path: file.size for file in hub.registry.manifest(version).files}
    place = f"/v1/{LEGAL}/versions/1/files/adapter_config.json"
    looked = hub.ask("acme", "HEAD", place)
    assert (looked.status_code, looked.content) == (200, b"")
    assert int(looked.headers["content-length"]) == sizes["adapter_config.json"]
    known = hub.ask("acme", "GET", place, headers={"if-none-match": looked.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    others = {"if-none-match": f'"other", W/{looked.headers["etag"]}'}
    assert hub.ask("acme", "GET", place, headers=others).status_code == 304
    assert hub.ask("acme", "HEAD", place, headers={"range": "bytes=0-1"}).status_code == 200
    refused(hub.ask("acme", "GET", f"/v1/{LEGAL}/versions/1/files/..%2f..%2fetc"), 404, "not_found")
    refused(hub.ask("acme", "GET", f"/v1/{LEGAL}/versions/1/files/other.json"), 404, "model_not_found")


def test_links_are_given_and_counted_where_they_are_asked_for(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.registry.push(hub.adapter, "acme/legal", base=hub.base)
    monkeypatch.setattr(LocalStore, "presigned", lambda _, key, seconds: f"http://store/{key}?for={seconds}")
    place = f"{LEGAL}/versions/1/files"
    for _ in range(2):
        assert {file["url"] for file in hub.do("acme", "GET", place)["data"]} == {None}
    assert hub.do("acme", "GET", f"{LEGAL}/card")["downloads"] == 0
    for _ in range(2):
        linked = hub.do("acme", "GET", f"{place}?links=true")["data"]
        assert all(file["url"] == f"http://store/blobs/sha256/{file['sha256']}?for=3600" for file in linked)
    assert hub.do("acme", "GET", f"{LEGAL}/card")["downloads"] == 1


def test_damage_in_the_store_is_never_a_whole_file(hub: Any) -> None:
    version = hub.registry.push(hub.adapter, "acme/legal", base=hub.base)
    (file,) = [each for each in hub.registry.manifest(version).files if each.path.endswith(".safetensors")]
    blob = hub.home / "registry" / "blobs" / "sha256" / file.sha256
    blob.chmod(0o600)
    blob.write_bytes(b"\0" * file.size)
    place = f"/v1/{LEGAL}/versions/1/files"
    refused(hub.ask("acme", "GET", f"{place}/{file.path}"), 500, "corrupt")
    for other in (path for path in blob.parent.iterdir() if path != blob):
        other.unlink()
    refused(hub.ask("acme", "GET", f"{place}/adapter_config.json"), 500, "corrupt")


@on_both
def test_an_upload_goes_on_where_it_was(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_parts, "PART", 1000)
    wanted, key = announced(hub.adapter), {"idempotency-key": "run 7"}
    upload = hub.do("acme", "POST", f"{LEGAL}/uploads", json=wanted, headers=key)
    assert upload["part_size"] == 1000
    parts = {file["path"]: len(file["missing"]) for file in upload["files"]}
    assert parts["adapter_model.safetensors"] > 3
    first = upload | {"files": [file | {"missing": file["missing"][:1]} for file in upload["files"]]}
    for _ in range(2):
        send(hub, first, hub.adapter)
    refused(hub.ask("acme", "POST", f"/v1/{LEGAL}/uploads/{upload['id']}/complete"), 400, "invalid_request")
    same = hub.do("acme", "POST", f"{LEGAL}/uploads", json=wanted, headers=key)
    assert same["id"] == upload["id"]
    assert [len(file["missing"]) for file in same["files"]] == [count - 1 for count in parts.values()]
    send(hub, same, hub.adapter)
    done = [hub.do("acme", "POST", f"{LEGAL}/uploads/{upload['id']}/complete") for _ in range(2)]
    assert done[0] == done[1]
    begun = hub.do("acme", "POST", f"{LEGAL}/uploads", json=wanted, headers=key)
    assert (begun["id"], begun["version"], begun["status"]) == (upload["id"], 1, "published")
    other = hub.ask("acme", "POST", f"/v1/{LEGAL}/uploads", json=wanted | {"alias": "x"}, headers=key)
    refused(other, 409, "conflict")
    assert len(hub.registry.show("acme/legal").versions) == 1
    assert not list((hub.home / "storage").rglob("publishing/*/*/*"))
    refused(hub.ask("acme", "DELETE", f"/v1/{LEGAL}/uploads/{upload['id']}"), 400, "invalid_request")


@on_both
def test_a_lost_answer_makes_no_second_version(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version was published, and the server killed before it wrote so."""
    upload = hub.do("acme", "POST", f"{LEGAL}/uploads", json=announced(hub.adapter))
    send(hub, upload, hub.adapter)
    with monkeypatch.context() as killed:
        killed.setattr(adapter_publishes, "note_published", lambda *_: 1 / 0)
        assert hub.ask("acme", "POST", f"/v1/{LEGAL}/uploads/{upload['id']}/complete").status_code == 500
    assert len(hub.registry.show("acme/legal").versions) == 1
    assert hub.do("acme", "POST", f"{LEGAL}/uploads/{upload['id']}/complete")["version"] == 1
    assert len(hub.registry.show("acme/legal").versions) == 1


def test_bytes_that_are_not_what_was_announced(hub: Any) -> None:
    wanted = announced(hub.adapter)
    upload = hub.do("acme", "POST", f"{LEGAL}/uploads", json=wanted)
    place = f"/v1/{LEGAL}/uploads/{upload['id']}"
    config = (hub.adapter / "adapter_config.json").read_bytes()
    parts = f"{place}/files/adapter_config.json"
    assert "another SHA-256" in refused(
        hub.ask("acme", "PUT", parts, content=config, headers={"x-content-sha256": "0" * 64}), 400, "invalid_request"
    )
    for content, offset in ((config[:-1], 0), (config + b" ", 0), (b"", 0), (config, 1), (config, 16 << 20)):
        refused(hub.ask("acme", "PUT", f"{parts}?offset={offset}", content=content), 400, "invalid_request")
    refused(hub.ask("acme", "PUT", f"{place}/files/other.json", content=b"x"), 404, "not_found")
    send(hub, upload, hub.adapter)
    wrong = bytes(reversed(config))
    hub.ask("acme", "PUT", parts, content=wrong)
    assert "adapter_config.json came with another" in refused(
        hub.ask("acme", "POST", f"{place}/complete"), 400, "invalid_request"
    )
    shown = hub.do("acme", "GET", f"{LEGAL}/uploads/{upload['id']}")
    assert [file["path"] for file in shown["files"] if file["missing"]] == ["adapter_config.json"]
    send(hub, shown, hub.adapter)
    assert hub.do("acme", "POST", f"{LEGAL}/uploads/{upload['id']}/complete")["version"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"base": "unknown"}, {"base": "sha256:" + "0" * 64}, {"alias": "latest"}, {"alias": "A"}, {"files": []},
        {"files": [{"path": "../x", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "x", "size": 1 << 40, "sha256": "0" * 64}]},
        {"files": [{"path": "x", "size": 1, "sha256": "0" * 64}] * 2},
        {"files": [{"path": "x", "size": -1, "sha256": "0" * 64}]}, {"more": 1}, {"run": ""}, {"run": "a b"},
    ],
)  # fmt: skip
def test_what_could_not_be_published_is_refused_at_once(change: dict[str, Any], hub: Any) -> None:
    answer = hub.ask("acme", "POST", f"/v1/{LEGAL}/uploads", json=announced(hub.adapter) | change)
    refused(answer, 400, "invalid_request")


def test_what_the_registry_does_not_admit_is_noted(hub: Any, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for path in hub.adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    upload = hub.do("acme", "POST", f"{LEGAL}/uploads", json=announced(folder))
    send(hub, upload, folder)
    refused(hub.ask("acme", "POST", f"/v1/{LEGAL}/uploads/{upload['id']}/complete"), 400, "adapter_refused")
    entries = hub.do("acme", "GET", "audit")["data"][::-1]
    assert [(entry["action"], entry["subject"], entry["outcome"]) for entry in entries] == [
        ("adapter.publish", "acme/legal", "begun"),
        ("adapter.publish", "acme/legal", "adapter_refused"),
    ]
    with pytest.raises(NotFound):
        hub.registry.show("acme/legal")
    for _ in range(2):
        assert hub.do("acme", "DELETE", f"{LEGAL}/uploads/{upload['id']}")["status"] == "cancelled"
    (entry,) = hub.do("acme", "GET", "audit?action=adapter.cancel")["data"]
    assert (entry["subject"], entry["outcome"], entry["detail"]) == ("acme/legal", "done", upload["id"])
    refused(hub.ask("acme", "GET", f"/v1/adapters/acme/other/uploads/{upload['id']}"), 404, "not_found")


@on_both
def test_quotas_of_bytes_and_of_versions(hub: Any) -> None:
    size = sum(path.stat().st_size for path in hub.adapter.iterdir())
    hub.do("admin", "POST", "tenants/acme", json={"quotas": {"stored_versions": 2, "stored_bytes": 3 * size}})
    publish(hub)
    begun = hub.do("acme", "POST", f"{LEGAL}/uploads", json=announced(hub.adapter))
    answer = hub.ask("acme", "POST", f"/v1/{LEGAL}/uploads", json=announced(hub.adapter))
    assert "1 of 2 are published, and 1 are on their way" in refused(answer, 429, "insufficient_quota")
    hub.do("acme", "DELETE", f"{LEGAL}/uploads/{begun['id']}")
    stored = hub.registry.manifest(hub.registry.resolve("acme/legal")).size
    hub.do("admin", "POST", "tenants/acme", json={"quotas": {"stored_bytes": stored + size - 1}})
    answer = hub.ask("acme", "POST", f"/v1/{LEGAL}/uploads", json=announced(hub.adapter))
    assert "bytes are stored" in refused(answer, 429, "insufficient_quota")
    hub.do("admin", "POST", "tenants/acme", json={"quotas": {"stored_bytes": None}})
    publish(hub)
    for how in ("yank", "recall"):
        hub.do("acme", "POST", f"{LEGAL}/versions/1/{how}", json={"reason": "room"})
        answer = hub.ask("acme", "POST", f"/v1/{LEGAL}/uploads", json=announced(hub.adapter))
        assert "Delete some first" in refused(answer, 429, "insufficient_quota")
    hub.do("acme", "POST", f"{LEGAL}/versions/1/delete", json={"reason": "room"})
    assert publish(hub)["version"] == 3, "there is room at once"


def stored(hub: Any, tenant: str = "acme") -> tuple[int, int]:
    """What a tenant's adapters are counted as: bytes, and versions."""
    row = hub.tenancy.database.read(lambda session: session.get_one(TenantRow, tenant))
    return row.adapter_bytes, row.adapter_versions


def test_what_is_deleted_is_free_at_once(hub: Any) -> None:
    size = sum(path.stat().st_size for path in hub.adapter.iterdir())
    for name in ("acme/legal", "acme/legal", "acme/other", "acme/legal"):
        publish(hub, name)
    retention(hub).count()
    assert stored(hub) == (size, 4), "files that are the same count once"
    for how, left in zip((*HOW, *HOW), (4, 4, 3, 3, 3, 3), strict=True):
        hub.do("acme", "POST", f"{LEGAL}/versions/1/{how}", json={"reason": "r"})
        assert stored(hub) == (size, left), "yanked and recalled versions are still there, and one is deleted once"
    with ThreadPoolExecutor(8) as pool:
        done = pool.map(
            lambda _: hub.ask("acme", "POST", f"/v1/{LEGAL}/versions/2/delete", json={"reason": "r"}), range(8)
        )
        assert {each.status_code for each in done} == {200}
    assert stored(hub) == (size, 2)
    assert hub.ask("acme", "DELETE", "/v1/models/acme/other").status_code == 200
    assert hub.ask("acme", "DELETE", "/v1/models/acme/legal").status_code == 200
    assert stored(hub) == (0, 0)
    retention(hub).count()
    assert stored(hub) == (0, 0)


def finds(hub: Any, who: str, words: str = "legal") -> list[int]:
    """The versions of `acme/legal` that a search gives."""
    hits = hub.do(who, "GET", f"search?query={words}&versions=true&sort=date")["data"]
    return sorted(hit["version"] for hit in hits if hit["name"] == "acme/legal")


def test_a_search_knows_at_once(hub: Any) -> None:
    assert finds(hub, "acme") == []
    publish(hub, tags=["contracts"])
    assert (finds(hub, "acme"), finds(hub, "acme", "contracts"), finds(hub, "beta")) == ([1], [1], [])
    publish(hub)
    hub.do("acme", "PUT", f"{LEGAL}/visibility", json={"visibility": "shared", "tenants": ["beta"]})
    assert finds(hub, "beta") == [1, 2]
    hub.do("acme", "PUT", f"{LEGAL}/visibility", json={"visibility": "private"})
    assert finds(hub, "beta") == []
    hub.do("acme", "PUT", f"{LEGAL}/visibility", json={"visibility": "public"})
    for number, how in enumerate(("yank", "recall"), 1):
        hub.do("acme", "POST", f"{LEGAL}/versions/{number}/{how}", json={"reason": "r"})
        assert finds(hub, "beta") == ([2] if number == 1 else [])
    publish(hub)
    assert finds(hub, "beta") == [3]
    hub.do("acme", "POST", f"{LEGAL}/versions/3/delete", json={"reason": "r"})
    assert finds(hub, "acme") == []


def test_unsigned_versions_are_let_out_as_the_policy_says(hub: Any, tmp_path: Path) -> None:
    publish(hub)
    private, public, _ = make_keys(tmp_path / "keys")
    registry = Registry(hub.registry.backend.url, Trust("require", public))
    hub.client.app.state.services = replace(hub.client.app.state.services, registry=registry)
    ways = [(method, f"/files/{path}") for path in FILES for method in ("GET", "HEAD")] + [("GET", "/files")]
    for method, rest in ways:
        answer = hub.ask("acme", method, f"/v1/{LEGAL}/versions/latest{rest}", headers={"range": "bytes=1-"})
        assert answer.status_code == 403, rest
        if method == "GET":
            assert "bears no good signature" in refused(answer, 403, "signature_invalid")
    assert hub.do("acme", "GET", f"{LEGAL}/versions/1")["version"] == 1, "it may be looked at"
    registry.sign("acme/legal:1", private)
    for method, rest in ways:
        assert hub.ask("acme", method, f"/v1/{LEGAL}/versions/latest{rest}").status_code == 200, rest


def test_advice_is_given_who_asks_for_it(hub: Any) -> None:
    publish(hub)
    assert "advice" not in hub.do("acme", "GET", LEGAL)
    told = hub.do("acme", "GET", f"{LEGAL}?advice=true")["advice"]
    assert "layers are changed" in told[0]
    assert "advice" not in hub.do("acme", "GET", "adapters")["data"][0]
    (report,) = (hub.home / "registry" / "reports").rglob("*.json")
    report.chmod(0o600)
    report.write_bytes(b"{")
    assert hub.do("acme", "GET", f"{LEGAL}?advice=true")["advice"] == [], "it never refuses anything"


def test_what_a_recall_reached_is_told_its_owner(hub: Any) -> None:
    version = hub.registry.push(hub.adapter, "acme/legal", base=hub.base)
    hub.do("acme", "PUT", f"{LEGAL}/visibility", json={"visibility": "public"})
    hub.do("acme", "POST", f"{LEGAL}/versions/1/recall", json={"reason": "leaks"})
    obeyed = Obeyed(digest=version.digest, at=now(), held=True, ended=2, tenants=("acme", "beta"))
    word = ServerWord(server="s1", host="gpu-7", process=1, base="tiny", since=now(), notice=1, obeyed=(obeyed,))
    hub.registry.recalls.say(word)
    place = f"{LEGAL}/versions/1/reach"
    told = hub.do("acme", "GET", place)
    assert (told["version"]["recalled"], told["version"]["digest"]) == ("leaks", version.digest)
    (server,) = told["data"]
    assert {name: server[name] for name in ("server", "held", "ended", "tenants", "alive", "host")} == {
        "server": "s1", "held": True, "ended": 2, "tenants": ["acme", "beta"], "alive": True, "host": "",
    }  # fmt: skip
    assert hub.do("admin", "GET", place)["data"][0]["host"] == "gpu-7"
    assert hub.do("acme", "GET", f"{LEGAL}/versions/{version.digest}/reach")["data"] == [server]
    refused(hub.ask("beta", "GET", f"/v1/{place}"), 403, "permission_denied")
    refused(hub.ask("acme", "GET", f"/v1/{LEGAL}/versions/9/reach"), 404, "model_not_found")


def retention(hub: Any) -> Retention:
    settings = load_settings(home=hub.home, base="tiny", database=hub.tenancy.database.url)
    return Retention(settings, hub.tenancy.database)


@on_both
def test_what_nobody_completes_expires(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.do("admin", "POST", "tenants/acme", json={"quotas": {"stored_versions": 1}})
    upload = hub.do("acme", "POST", f"{LEGAL}/uploads", json=announced(hub.adapter, run="r1"))
    send(hub, upload, hub.adapter)
    assert list((hub.home / "storage").rglob("publishing/*/*/*"))
    later = adapter_publishes.now() + adapter_publishes.LIFE
    with monkeypatch.context() as tomorrow:
        tomorrow.setattr(adapter_publishes, "now", lambda: later)
        tomorrow.setattr("swapmeet.tenancy.quotas.now", lambda: later)
        retention(hub)._publishes.sweep()
        assert not list((hub.home / "storage").rglob("publishing/*/*/*"))
        shown = hub.do("acme", "GET", f"{LEGAL}/uploads/{upload['id']}")
        assert shown["status"] == "expired"
        refused(hub.ask("acme", "POST", f"/v1/{LEGAL}/uploads/{upload['id']}/complete"), 400, "invalid_request")
        again = hub.do("acme", "POST", f"{LEGAL}/uploads", json=announced(hub.adapter, run="r1"))
        assert (again["id"], again["status"]) == (upload["id"], "pending")
        send(hub, again, hub.adapter)
        done = hub.do("acme", "POST", f"{LEGAL}/uploads/{upload['id']}/complete")
    assert hub.do("acme", "GET", f"{LEGAL}/versions/{done['version']}")["manifest"]["run"] == "r1"


def chat(hub: Any, who: str, model: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "?"}]}
    return int(hub.ask(who, "POST", "/v1/chat/completions", json=body).status_code)


def readings(hub: Any, who: str) -> set[Any]:
    """How each way to read `acme/legal` ends."""
    paths = [f"/v1/{LEGAL}{rest}" for rest in ("", "/versions/1", "/history", "/versions/1/files")]
    paths += [f"/v1/{LEGAL}/versions/prod/files/adapter_config.json", "/v1/models/acme/legal"]
    statuses = {hub.ask(who, "GET", path).status_code for path in paths} | {chat(hub, who, "acme/legal:prod")}
    listed = "acme/legal" in {each["id"] for each in hub.do(who, "GET", "adapters")["data"]}
    modelled = "acme/legal" in {each["id"] for each in hub.do(who, "GET", "models")["data"]}
    return statuses | {200 if listed else 404, 200 if modelled else 404}


@on_both
def test_who_may_read_what_is_shared_and_public(hub: Any) -> None:
    hub.add("gamma")
    hub.registry.push(hub.adapter, "acme/legal", base=hub.base, alias="prod")
    hub.registry.push(hub.adapter, "beta/own", base=hub.base)
    assert [readings(hub, who) for who in ("acme", "admin", "beta", "gamma")] == [{200}, {200}, {404}, {404}]
    shared = hub.do("acme", "PUT", f"{LEGAL}/visibility", json={"visibility": "shared", "tenants": ["beta"]})
    assert shared["shared_with"] == ["beta"]
    assert [readings(hub, who) for who in ("acme", "beta", "gamma")] == [{200}, {200}, {404}]
    assert hub.do("beta", "GET", LEGAL)["shared_with"] == [], "its owner's to know"
    assert [each["id"] for each in hub.do("beta", "GET", "adapters")["data"]] == ["beta/own", "acme/legal"]
    assert [each["id"] for each in hub.do("beta", "GET", "adapters?owner=acme")["data"]] == ["acme/legal"]
    assert hub.do("beta", "GET", "adapters?limit=1")["has_more"] is True
    assert [each["id"] for each in hub.do("beta", "GET", "adapters?after=beta/own")["data"]] == ["acme/legal"]
    for method, path, body in (
        ("PUT", "aliases/x", {"version": 1}), ("DELETE", "aliases/prod", None), ("POST", "aliases/prod/undo", None),
        ("POST", "versions/1/yank", {"reason": "r"}), ("PUT", "visibility", {"visibility": "public"}),
        ("POST", "uploads", announced(hub.adapter)),
    ):  # fmt: skip
        assert "only acme may" in refused(
            hub.ask("beta", method, f"/v1/{LEGAL}/{path}", json=body), 403, "permission_denied"
        )
        refused(hub.ask("gamma", method, f"/v1/{LEGAL}/{path}", json=body), 404, "model_not_found")
    hub.do("acme", "PUT", f"{LEGAL}/visibility", json={"visibility": "public"})
    assert readings(hub, "gamma") == {200}
    hub.registry.share("acme/legal", "private")  # past the server: closed at once, though still on lists of names
    assert hub.ask("gamma", "GET", f"/v1/{LEGAL}").status_code == 404
    retention(hub).count()
    assert readings(hub, "gamma") == {404}
    hub.registry.share("acme/legal", "shared", ["gamma"])  # opened with the next count
    retention(hub).count()
    assert [readings(hub, who) for who in ("beta", "gamma")] == [{404}, {200}]
    odd = hub.ask("acme", "PUT", f"/v1/{LEGAL}/visibility", json={"visibility": "public", "tenants": ["beta"]})
    refused(odd, 400, "adapter_refused")


def test_sharing_does_not_tell_which_tenants_there_are(hub: Any) -> None:
    hub.registry.push(hub.adapter, "acme/legal", base=hub.base, alias="prod")
    granting = "fine_tuning/checkpoints/acme/legal/permissions"
    for method, path, body, shown in (
        ("PUT", f"{LEGAL}/visibility", {"visibility": "shared", "tenants": ["beta", "later"]}, ["beta", "later"]),
        ("POST", granting, {"project_ids": ["later", "beta"]}, ["beta", "later"]),
    ):
        told = hub.do("acme", method, path, json=body)
        assert (told.get("shared_with") or [each["project_id"] for each in told["data"]]) == shown
        wrong = {name: ["beta", "Me!", "x/y"] if isinstance(each, list) else each for name, each in body.items()}
        assert "no tenants 'Me!', 'x/y'. Check" in refused(
            hub.ask("acme", method, f"/v1/{path}", json=wrong), 404, "not_found"
        )
        assert "no tenants 'later'. Check" in refused(
            hub.ask("admin", method, f"/v1/{path}", json=body), 404, "not_found"
        )
    assert len(hub.do("acme", "GET", granting)["data"]) == 2
    hub.add("later")
    assert readings(hub, "later") == {200}


def test_who_moved_an_alias_is_the_owner_s_to_know(hub: Any) -> None:
    hub.registry.push(hub.adapter, "acme/legal", base=hub.base)
    hub.registry.tag("acme/legal", "prod", "1", by="jane")
    hub.do("acme", "PUT", f"{LEGAL}/visibility", json={"visibility": "public"})
    told = {who: hub.do(who, "GET", f"{LEGAL}/history")["data"][0]["by"] for who in ("acme", "admin", "beta")}
    assert told == {"acme": "jane", "admin": "jane", "beta": None}
    paths = ("v1/" + LEGAL, f"v1/{LEGAL}/card", "api/models/acme/legal", "api/models/acme/legal/refs")
    for path in paths:
        answer = hub.ask("beta", "GET", f"/{path}")
        assert (answer.status_code, "jane" in answer.text) == (200, False), path


def test_a_permission_opens_just_what_it_names(hub: Any) -> None:
    for _ in range(2):
        hub.registry.push(hub.adapter, "acme/legal", base=hub.base)
    hub.registry.tag("acme/legal", "prod", "1")
    hub.do("acme", "POST", "fine_tuning/checkpoints/acme/legal:prod/permissions", json={"project_ids": ["beta"]})
    time.sleep(1.1)  # as long as a key's caller is remembered
    got = {ref: hub.ask("beta", "GET", f"/v1/{LEGAL}/versions/{ref}").status_code for ref in ("prod", "1", "latest")}
    assert got == {"prod": 200, "1": 404, "latest": 404}
    assert hub.ask("beta", "GET", f"/v1/{LEGAL}/versions/prod/files/adapter_config.json").status_code == 200
    first, second = (hub.registry.find(f"acme/legal:{number}").digest for number in (1, 2))
    pinned = [hub.ask("beta", "GET", f"/v1/{LEGAL}/versions/{each}/files").status_code for each in (first, second)]
    assert pinned == [200, 404], "who is told a digest may ask by it"
    assert (chat(hub, "beta", "acme/legal:prod"), chat(hub, "beta", "acme/legal")) == (200, 404)
    assert hub.ask("beta", "GET", f"/v1/{LEGAL}").status_code == 404
    hub.do("acme", "POST", "fine_tuning/checkpoints/acme/legal/permissions", json={"project_ids": ["beta"]})
    time.sleep(1.1)
    assert hub.do("beta", "GET", f"{LEGAL}/versions/latest")["version"] == 2, "which is what the bare name means"
    hub.registry.tag("acme/legal", "secret", "1")
    hub.registry.untag("acme/legal", "prod")
    for place in (f"/v1/{LEGAL}/versions/prod", "/v1/models/acme/legal:prod"):
        assert "There is no adapter acme/legal in" in refused(hub.ask("beta", "GET", place), 404, "model_not_found")
        assert "aliases: secret" in refused(hub.ask("acme", "GET", place), 404, "model_not_found")


def test_scopes(hub: Any) -> None:
    hub.registry.push(hub.adapter, "acme/legal", base=hub.base)
    hub.add("acme", "application")
    assert hub.ask("acme", "GET", f"/v1/{LEGAL}").status_code == 403
    hub.add("acme", "reader")
    assert hub.ask("acme", "GET", f"/v1/{LEGAL}").status_code == 200
    assert hub.ask("acme", "POST", f"/v1/{LEGAL}/versions/1/yank", json={"reason": "r"}).status_code == 403
    hub.add("acme", "developer")
    assert hub.ask("acme", "PUT", f"/v1/{LEGAL}/visibility", json={"visibility": "public"}).status_code == 403


def foreign_paths(name: str) -> list[tuple[str, str, Any]]:
    place = f"/v1/adapters/{name}"
    reads = [
        "",
        "/versions/1",
        "/versions/prod",
        "/history",
        "/versions/1/files",
        "/versions/1/files/adapter_config.json",
    ]
    return [("GET", place + rest, None) for rest in reads] + [
        ("GET", f"/v1/models/{name}", None),
        ("PUT", f"{place}/aliases/prod", {"version": 1}),
        ("POST", f"{place}/versions/1/yank", {"reason": "r"}),
        ("PUT", f"{place}/visibility", {"visibility": "public"}),
        ("POST", "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "?"}]}),
        ("POST", "/v1/fine_tuning/jobs", {"model": name, "training_file": "file-1"}),
    ]


def test_a_private_name_and_none_are_looked_up_alike(hub: Any, looks_at: Callable[[Registry], list[str]]) -> None:
    looks = looks_at(hub.registry)
    for _ in range(3):
        hub.registry.push(hub.adapter, "acme/legal", base=hub.base, alias="prod")
    for private, missing in zip(foreign_paths("acme/legal"), foreign_paths("acme/legam"), strict=True):
        looks.clear()
        found, none = (hub.ask("beta", method, path, json=body) for method, path, body in (private, missing))
        assert looks == [], private
        assert found.status_code == none.status_code, private
        assert found.text == none.text.replace("legam", "legal"), private
        assert found.status_code in (400, 404)


def test_a_private_name_takes_as_long_as_none(hub: Any) -> None:
    """Asked for in turns, neither is the faster more often than chance has it."""
    for number in range(20):
        hub.registry.push(hub.adapter, "acme/legal", base=hub.base, alias=f"a{number}")

    def took(name: str) -> float:
        began = time.perf_counter()
        hub.ask("beta", "GET", f"/v1/adapters/{name}/versions/prod")
        return time.perf_counter() - began

    for _ in range(20):
        took("acme/legal")
    pairs = [
        (took("acme/legal"), took("acme/legam")) if turn % 2 else (took("acme/legam"), took("acme/legal"))[::-1]
        for turn in range(400)
    ]
    slower = sum(private > missing for private, missing in pairs)
    assert abs(slower - 200) < 60, "six standard deviations"
    private, missing = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert abs(private - missing) < 0.1 * missing


def test_own_names_that_are_not_there(hub: Any) -> None:
    for method, path, body in foreign_paths("acme/none"):
        answer = hub.ask("acme", method, path, json=body)
        assert answer.status_code in (400, 404), (path, answer.text)
    hub.registry.push(hub.adapter, "acme/legal", base=hub.base)
    for ref in ("9", "none", "sha256:" + "0" * 64, "A", "0", "1.5", "acme", "a" * 100, "%00"):
        assert hub.ask("acme", "GET", f"/v1/{LEGAL}/versions/{ref}").status_code == 404, ref
    latest = hub.ask("acme", "POST", f"/v1/{LEGAL}/versions/latest/yank", json={"reason": "r"})
    assert "Name its number" in refused(latest, 400, "adapter_refused")
    refused(hub.ask("acme", "POST", f"/v1/{LEGAL}/versions/1/yank", json={"reason": " "}), 400, "adapter_refused")
    refused(hub.ask("acme", "POST", f"/v1/{LEGAL}/versions/1/burn", json={"reason": "r"}), 400, "invalid_request")
