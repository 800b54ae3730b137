"""Whatever a tenant does to what it has is noted, once, by whom and to what, and with what it did or not at all."""

from typing import Any

import pytest

from swapmeet.tenancy import audit as audit_log

Entry = tuple[str, str, str]


def entries(platform: Any, who: str = "acme") -> list[Entry]:
    """What stands in a tenant's log, oldest first, but for its keys and itself."""
    found = platform.do(who, "GET", "audit?limit=1000")["data"][::-1]
    assert all(each["actor"]["key"].startswith("key-") and each["request"] for each in found)
    mine = [each for each in found if each["action"].partition(".")[0] not in ("key", "tenant")]
    return [(each["action"], each["subject"], each["outcome"]) for each in mine]


@pytest.fixture
def acme(platform: Any) -> str:
    platform.add("acme")
    platform.add("beta")
    return "acme"


def test_files_and_jobs(platform: Any, acme: str) -> None:
    file = platform.upload(acme, "dates.jsonl")
    wanted = {"bytes": 1, "filename": "a.txt", "mime_type": "text/plain", "purpose": "user_data"}
    upload = platform.do(acme, "POST", "uploads", json=wanted)["id"]
    part = platform.do(acme, "POST", f"uploads/{upload}/parts", files={"data": ("blob", b"a")})["id"]
    for _ in range(2):
        joined = platform.do(acme, "POST", f"uploads/{upload}/complete", json={"part_ids": [part]})["file"]["id"]
    for _ in range(2):
        job = platform.do(acme, "POST", "fine_tuning/jobs", json={"model": "tiny", "training_file": file})["id"]
    for what in ("pause", "pause", "resume", "cancel", "cancel"):
        platform.ask(acme, "POST", f"/v1/fine_tuning/jobs/{job}/{what}")
    for _ in range(2):
        platform.ask(acme, "DELETE", f"/v1/files/{joined}")
    assert entries(platform) == [
        ("file.create", file, "done"),
        ("file.create", joined, "done"),
        ("job.create", job, "done"),
        ("job.pause", job, "done"),
        ("job.resume", job, "done"),
        ("job.cancel", job, "done"),
        ("file.delete", joined, "done"),
    ]
    assert entries(platform, "beta") == []


def test_webhooks(platform: Any, acme: str) -> None:
    hook = platform.do(acme, "POST", "webhooks", json={"url": "http://me:secret@127.0.0.1:9/x"})["id"]
    platform.do(acme, "POST", f"webhooks/{hook}", json={"name": "n"})
    platform.do(acme, "POST", f"webhooks/{hook}/rotate_secret")
    platform.do(acme, "DELETE", f"webhooks/{hook}")
    platform.ask(acme, "DELETE", f"/v1/webhooks/{hook}")
    did = ("create", "change", "rotate", "delete")
    assert entries(platform) == [(f"webhook.{each}", hook, "done") for each in did]


def test_models_and_who_may_use_them(platform: Any, acme: str) -> None:
    for name in ("acme/legal", "acme/other"):
        platform.registry.push(platform.adapter, name, base=platform.base, alias="prod")
    path = "fine_tuning/checkpoints/acme/legal/permissions"
    for _ in range(2):
        granted = platform.do(acme, "POST", path, json={"project_ids": ["beta"]})["data"][0]["id"]
    platform.do(acme, "DELETE", f"{path}/{granted}")
    platform.do("admin", "DELETE", "models/acme/legal:1")
    assert platform.ask(acme, "DELETE", "/v1/models/acme/other:latest").status_code == 400
    assert entries(platform) == [
        ("permission.grant", "acme/legal", "done"),
        ("permission.revoke", "acme/legal", "done"),
        ("model.delete", "acme/legal:1", "begun"),
        ("model.delete", "acme/legal:1", "done"),
        ("model.delete", "acme/other:latest", "begun"),
        ("model.delete", "acme/other:latest", "adapter_refused"),
    ]
    last = platform.do(acme, "GET", "audit?action=model.delete")["data"][-1]
    assert last["actor"]["tenant"] == "admin", "the operator's doing stands in the owner's log"


def test_what_can_not_be_noted_does_not_take_place(platform: Any, acme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = platform.upload(acme, "dates.jsonl")
    hook = platform.do(acme, "POST", "webhooks", json={"url": "http://127.0.0.1:9/"})
    job = platform.do(acme, "POST", "fine_tuning/jobs", json={"model": "tiny", "training_file": file})

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("no room for an entry")

    with monkeypatch.context() as broken:
        broken.setattr(audit_log, "_row", fail)
        for method, path in (
            ("DELETE", f"files/{file}"),
            ("DELETE", f"webhooks/{hook['id']}"),
            ("POST", f"fine_tuning/jobs/{job['id']}/cancel"),
        ):
            assert platform.ask(acme, method, f"/v1/{path}").status_code == 500, path
    assert platform.do(acme, "GET", f"files/{file}")["status"] == "processed"
    assert platform.do(acme, "GET", f"webhooks/{hook['id']}")["updated_at"] == hook["updated_at"]
    assert platform.do(acme, "GET", f"fine_tuning/jobs/{job['id']}")["status"] == job["status"]
