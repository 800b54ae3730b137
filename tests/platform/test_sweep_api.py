"""Sweeps over HTTP: create, look, page, cancel; once, whoever asks again, and all or none of it."""

import json
import threading
from typing import Any

import httpx
import openai
import pytest

LINE = json.dumps({"messages": [{"role": "user", "content": "3 May"}, {"role": "assistant", "content": "05-03"}]})
SWEEP = {"grid": {"rank": [2, 4], "n_epochs": [1, 2]}}


class Asker:
    """A tenant's requests."""

    def __init__(self, server: Any, tenant: str = "acme") -> None:
        self.client = server.client(tenant)
        key = {"authorization": f"Bearer {self.client.api_key}"}
        self.http = httpx.Client(base_url=f"{server.url}/v1/fine_tuning", headers=key, trust_env=False, timeout=60)
        server.clients.append(self.http)  # to be closed with the others

    def __call__(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        answer = self.http.request(method, path, **more)
        return answer.status_code, answer.json()


@pytest.fixture
def body(tuning_server: Any) -> dict[str, Any]:
    client = tuning_server.client()
    names = ("training_file", "validation_file")
    made = {
        name: client.files.create(file=(f"{name}.jsonl", f"{LINE}\n".encode() * 12), purpose="fine-tune").id
        for name in names
    }
    for file in made.values():
        client.files.wait_for_processing(file, poll_interval=0.1)
    return {"model": "tiny", **made, "suffix": "Dates", "metadata": {"team": "x"}, "sweep": SWEEP}


def test_the_story_of_a_sweep(tuning_server: Any, body: dict[str, Any]) -> None:
    ask = Asker(tuning_server)
    status, sweep = ask("POST", "/sweeps", json=body)
    assert status == 200, sweep
    assert (sweep["object"], sweep["status"], sweep["adapter"], sweep["metric"]) == (
        "fine_tuning.sweep", "running", "acme/dates", "valid_loss",
    )  # fmt: skip
    assert (sweep["combinations"], sweep["counts"], sweep["metadata"]) == (4, {"validating_files": 4}, {"team": "x"})
    assert [each["configuration"] for each in sweep["runs"]][1:3] == [
        {"rank": 2, "n_epochs": 2}, {"rank": 4, "n_epochs": 1},
    ]  # fmt: skip
    jobs = [ask.client.fine_tuning.jobs.retrieve(each["job"]) for each in sweep["runs"]]
    assert {(job.model_extra or {})["sweep"] for job in jobs} == {sweep["id"]}
    assert {(job.model_extra or {})["adapter"] for job in jobs} == {"acme/dates"}
    assert len({job.seed for job in jobs}) == 1
    assert [(job.hyperparameters.n_epochs, (job.model_extra or {})["lora"]["rank"]) for job in jobs] == [
        (1, 2), (2, 2), (1, 4), (2, 4),
    ]  # fmt: skip
    assert [job.id for job in jobs] == sorted(job.id for job in jobs), "they run in their order"
    assert len(list(ask.client.fine_tuning.jobs.list(metadata={"team": "x"}))) == 4
    assert ask("GET", f"/sweeps/{sweep['id']}") == (200, sweep)
    assert ask("GET", "/sweeps")[1]["data"] == [sweep]
    events = ask("GET", f"/sweeps/{sweep['id']}/events", params={"limit": 3})[1]
    rest = ask("GET", f"/sweeps/{sweep['id']}/events", params={"after": events["last_id"], "limit": 100})[1]
    assert (events["has_more"], len(rest["data"]), rest["has_more"]) == (True, 5, False)
    assert {each["run"] for each in rest["data"]} == {1, 2, 3}
    cancelled = ask("POST", f"/sweeps/{sweep['id']}/cancel")[1]
    assert (cancelled["status"], cancelled["counts"]) == ("cancelled", {"cancelled": 4})
    assert {ask.client.fine_tuning.jobs.retrieve(job.id).status for job in jobs} == {"cancelled"}


def test_a_repeated_request_makes_no_second_sweep(tuning_server: Any, body: dict[str, Any]) -> None:
    ask = Asker(tuning_server)
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(ask("POST", "/sweeps", json=body)[1]["id"])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(made)) == 1
    assert len(list(ask.client.fine_tuning.jobs.list())) == 4
    keyed = [ask("POST", "/sweeps", json=body, headers={"idempotency-key": key})[1]["id"] for key in ("a", "b", "a")]
    assert keyed[0] == keyed[2]
    assert len({*made, *keyed}) == 3
    alone = body | {"lora": {"rank": 2}, "hyperparameters": {"n_epochs": 1}}
    del alone["sweep"]
    assert ask("POST", "/jobs", json=alone)[1]["sweep"] is None, "a job like one of a sweep is another"
    assert [each["id"] for each in ask("GET", "/sweeps?limit=2")[1]["data"]] == [keyed[1], keyed[0]]
    page = ask("GET", "/sweeps", params={"after": keyed[0]})[1]
    assert ([each["id"] for each in page["data"]], page["has_more"]) == ([made[0]], False)


def test_all_or_none_and_every_mistake_at_once(tuning_server: Any, body: dict[str, Any]) -> None:
    ask = Asker(tuning_server)
    wrong = body | {"validation_file": "file-0", "sweep": {"grid": {"rank": [2, 9999]}}}
    status, answer = ask("POST", "/sweeps", json=wrong)
    assert status == 400
    assert answer["error"]["message"] == (
        "Configuration 2 (rank 9999): lora.rank is 9999 but should be less than or equal to 512."
    )
    wrong = body | {"training_file": "file-0", "validation_file": "file-1", "lora": {"name": "beta/x"}, "suffix": None}
    status, answer = ask("POST", "/sweeps", json=wrong)
    assert status == 400
    for says in ("training_file: There is no file file-0", "validation_file: There is no file", "is not acme's"):
        assert answer["error"]["message"].count(says) == 1
    assert ask("POST", "/sweeps", json=body | {"model": "huge"})[0] == 404
    assert ask("POST", "/sweeps", content=b"[")[0] == 400
    assert ask("POST", "/jobs", json=body)[0] == 400, "a sweep is no job"
    assert ask("GET", "/sweeps")[1]["data"] == []
    assert list(ask.client.fine_tuning.jobs.list()) == []


def test_another_tenant_s_sweep_is_missing(tuning_server: Any, body: dict[str, Any]) -> None:
    sweep = Asker(tuning_server)("POST", "/sweeps", json=body)[1]["id"]
    other = Asker(tuning_server, "beta")
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/events")):
        status, answer = other(method, f"/sweeps/{sweep}{path}")
        nobodys = other(method, f"/sweeps/ftsweep-0{path}")[1]["error"]["message"]
        assert (status, answer["error"]["message"].replace(sweep, "ftsweep-0")) == (404, nobodys)
    assert other("GET", "/sweeps")[1]["data"] == []
    for odd in ("\0", "x" * 5000, "ftsweep-é"):
        assert other("GET", f"/sweeps/{odd.encode().hex() if odd == chr(0) else odd}")[0] == 404


def test_webhooks_of_sweeps_are_read_by_openai_s_client(monkeypatch: pytest.MonkeyPatch) -> None:
    from swapmeet.database.tables.base import now
    from swapmeet.webhooks.events import EVENTS, event_body

    client = openai.OpenAI(api_key="x", webhook_secret="whsec_" + "a" * 32)
    monkeypatch.setattr(client.webhooks, "verify_signature", lambda *_, **__: None)
    for kind in EVENTS:
        event = client.webhooks.unwrap(event_body("evt_1", kind, "ftsweep-1", now()), {})
        assert (event.type, event.data.id) == (kind, "ftsweep-1")
