"""Fine-tuning jobs by OpenAI's own client: create, look, page, stop; and what each refusal says."""

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openai
import pytest

from swapmeet.database.tables import CheckpointRow, EventRow, JobRow
from swapmeet.ids import new_id

LINE = (
    json.dumps({"messages": [{"role": "user", "content": "3 May"}, {"role": "assistant", "content": "05-03"}]}) + "\n"
)
LORA = {"rank": 8, "resources": {"cpus": 2}, "priority": 3}


@pytest.fixture
def training_file(tuning_server: Any) -> str:
    client = tuning_server.client()
    made = client.files.create(file=("train.jsonl", (LINE * 12).encode()), purpose="fine-tune")
    return str(client.files.wait_for_processing(made.id, poll_interval=0.1).id)


def change(server: Any, job: str, **fields: Any) -> None:
    """What the queue would write."""

    def work(session: Any) -> None:
        row = session.get(JobRow, job)
        for name, value in fields.items():
            setattr(row, name, value)

    server.tuning.files.database.write(work)


def test_the_story_of_a_job(tuning_server: Any, training_file: str) -> None:
    client = tuning_server.client()
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=training_file,
        suffix="Dates",
        seed=7,
        metadata={"team": "x"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        integrations=[{"type": "tensorboard"}],  # type: ignore[typeddict-item,list-item]
        extra_body={"lora": LORA},
    )
    assert (job.object, job.status, job.model, job.organization_id) == (
        "fine_tuning.job", "validating_files", "tiny", "acme",
    )  # fmt: skip
    assert (job.training_file, job.validation_file, job.result_files, job.seed) == (training_file, None, [], 7)
    assert (job.fine_tuned_model, job.finished_at, job.trained_tokens, job.error) == (None, None, None, None)
    assert job.hyperparameters.model_dump() == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.0}
    assert job.method
    assert job.method.supervised
    assert job.method.supervised.hyperparameters == job.hyperparameters or job.method.type == "supervised"
    assert job.integrations
    assert job.integrations[0].type == "tensorboard"
    extras = job.model_extra or {}
    assert (extras["adapter"], extras["lora"]["rank"], extras["lora"]["priority"]) == ("acme/dates", 8, 3)
    assert {"plan", "step", "waits_for", "total_steps"} <= set(extras)
    assert client.fine_tuning.jobs.retrieve(job.id) == job

    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert messages == [f"Validating training file: {training_file}", f"Created fine-tuning job: {job.id}"]
    assert [event.object for event in client.fine_tuning.jobs.list_events(job.id, limit=1)] == [
        "fine_tuning.job.event"
    ] * 2
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "validating_files"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"

    results = tuning_server.tuning.files
    path = tuning_server.tuning.spool / "results.csv"
    path.write_text("step,train_loss\n1,0.5\n")
    result = results.create("acme", "step_metrics.csv", "fine-tune-results", path)
    end = datetime.now(UTC)
    change(
        tuning_server, job.id, state="succeeded", result_file=result.id, fine_tuned_model="acme/dates:1",
        trained_tokens=1234, finished_at=end, step=6, total_steps=6,
    )  # fmt: skip
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "acme/dates:1", 1234)
    assert done.finished_at == int(end.timestamp())
    assert client.files.content(done.result_files[0]).text.startswith("step,train_loss")
    assert client.files.retrieve(done.result_files[0]).purpose == "fine-tune-results"
    change(tuning_server, job.id, state="failed", error={"code": "diverged", "message": "The loss is no number."})
    failed = client.fine_tuning.jobs.retrieve(job.id)
    assert failed.error
    assert (failed.error.code, failed.error.message, failed.error.param) == ("diverged", "The loss is no number.", None)


def test_jobs_are_listed_by_page_and_metadata(tuning_server: Any, training_file: str) -> None:
    client = tuning_server.client()
    made = [
        client.fine_tuning.jobs.create(
            model="tiny", training_file=training_file, metadata={"n": str(number), "odd [k] é": "a&b=c"}
        ).id
        for number in range(5)
    ]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == made[::-1]
    page = client.fine_tuning.jobs.list(limit=2, after=made[2])
    assert ([job.id for job in page.data], page.has_more) == (made[1::-1], False)
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"n": "3"})] == [made[3]]
    assert len(list(client.fine_tuning.jobs.list(metadata={"odd [k] é": "a&b=c"}))) == 5
    assert list(client.fine_tuning.jobs.list(metadata={"n": "3", "odd [k] é": "no"})) == []
    assert len(list(client.fine_tuning.jobs.list(metadata=None))) == 5
    assert list(tuning_server.client("beta").fine_tuning.jobs.list()) == []
    for query in ({"limit": 0}, {"limit": 10**9}, {"after": "\0"}, {"metadata": {"": "x"}}, {"metadata": {"k": "\0"}}):
        with pytest.raises(openai.BadRequestError):
            client.fine_tuning.jobs.list(**query)


def test_a_repeated_request_makes_no_second_job(tuning_server: Any, training_file: str) -> None:
    client = tuning_server.client()
    made: list[str] = []

    def create(**options: Any) -> str:
        return str(client.fine_tuning.jobs.create(model="tiny", training_file=training_file, **options).id)

    threads = [threading.Thread(target=lambda: made.append(create())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1
    keyed = [create(extra_headers={"idempotency-key": key}) for key in ("a", "b", "a")]
    assert keyed[0] == keyed[2]
    assert len({*made, *keyed}) == 3


def test_every_refusal_names_field_and_remedy(tuning_server: Any, training_file: str) -> None:
    client = tuning_server.client()

    def refused(**options: Any) -> openai.APIStatusError:
        with pytest.raises(openai.APIStatusError) as caught:
            client.fine_tuning.jobs.create(**{"model": "tiny", "training_file": training_file} | options)
        assert caught.value.request_id
        return caught.value

    error = refused(suffix="x" * 65, seed=-1, extra_body={"lora": {"ranks": 8}, "colour": "red"})
    assert (error.status_code, error.code, error.param) == (400, "invalid_request", "suffix")
    assert all(word in error.message for word in ("suffix", "seed", "lora.ranks", "colour"))
    missing = refused(model="ft:gpt-4o-mini:org::1")
    assert (missing.status_code, missing.code) == (404, "model_not_found")
    assert refused(model="gpt-4o").status_code == 404
    assert "reinforcement" in refused(method={"type": "reinforcement"}).message
    few = client.files.create(file=("few.jsonl", (LINE * 7).encode()), purpose="fine-tune").id
    client.files.wait_for_processing(few, poll_interval=0.1)
    error = refused(training_file=few)
    assert (error.code, error.param) == ("invalid_n_examples", "training_file")
    assert "has 7 example(s), but must have at least 10 examples" in error.message
    bad = client.files.create(file=("bad.jsonl", b"{}\n"), purpose="fine-tune").id
    client.files.wait_for_processing(bad, poll_interval=0.1)
    assert (refused(training_file=bad).code, refused(validation_file=bad).param) == (
        "invalid_training_file", "validation_file",
    )  # fmt: skip
    url, headers = (
        f"{tuning_server.url}/v1/fine_tuning/jobs",
        {"authorization": f"Bearer {tuning_server.key_of('acme')}"},
    )
    for body in (b"", b"[]", b"nul", b'{"model": NaN}', b'{"a": 1, "a": 2}', b"\xff", b'{"a":' + b"[" * 100_000):
        answer = httpx.post(url, content=body, headers=headers, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error"), body[:20]
    assert httpx.post(url, json={}, trust_env=False).status_code == 401


def test_events_and_checkpoints_are_paged_newest_first(tuning_server: Any, training_file: str) -> None:
    client = tuning_server.client()
    job = client.fine_tuning.jobs.create(model="tiny", training_file=training_file).id
    metrics = {"train_loss": 0.5, "train_mean_token_accuracy": 0.9, "something_else": 1}

    def fill(session: Any) -> None:
        for step in range(1, 26):
            data = {"step": step, **metrics}
            session.add(EventRow(id=new_id("ftevent-"), job=job, name=f"s{step}", message=f"Step {step}",
                                 type="metrics", data=data))  # fmt: skip
            session.add(CheckpointRow(id=new_id("ftckpt_"), job=job, step=step, model=f"acme/x-step-{step}",
                                      digest="sha256:0", metrics=metrics))  # fmt: skip
            session.flush()

    tuning_server.tuning.files.database.write(fill)
    events = list(client.fine_tuning.jobs.list_events(job))
    assert len(events) == 27
    assert (events[0].message, events[0].type, events[0].data["step"]) == ("Step 25", "metrics", 25)  # type: ignore[index]
    found = list(client.fine_tuning.jobs.checkpoints.list(job))
    assert [each.step_number for each in found] == list(range(25, 0, -1))
    newest = found[0]
    assert (newest.fine_tuned_model_checkpoint, newest.fine_tuning_job_id) == ("acme/x-step-25", job)
    assert newest.metrics.model_dump(exclude_none=True) == {
        "step": 25.0, "train_loss": 0.5, "train_mean_token_accuracy": 0.9,
    }  # fmt: skip
    page = client.fine_tuning.jobs.checkpoints.list(job, limit=3)
    assert (page.has_more, page.model_extra["first_id"], page.model_extra["last_id"]) == (True, newest.id, found[2].id)  # type: ignore[index]


def test_another_tenant_s_job_is_missing(tuning_server: Any, training_file: str) -> None:
    job = tuning_server.client().fine_tuning.jobs.create(model="tiny", training_file=training_file).id
    stranger = tuning_server.client("beta").fine_tuning.jobs
    said = []
    for name in (job, "ftjob-none", "\0", "ü"):
        for act in (
            stranger.retrieve, stranger.cancel, stranger.pause, stranger.resume, stranger.list_events,
            stranger.checkpoints.list,
        ):  # fmt: skip
            with pytest.raises(openai.NotFoundError) as caught:
                act(name)
            said.append(caught.value.message.replace(name, "X").replace("of that id", "X"))
    assert len(set(said)) == 1
    with pytest.raises(openai.BadRequestError) as theirs:
        stranger.create(model="tiny", training_file=training_file)
    with pytest.raises(openai.BadRequestError) as none:
        stranger.create(model="tiny", training_file="file-none")
    assert theirs.value.message.replace(training_file, "file-none") == none.value.message


def test_a_key_without_the_scope_may_not(tuning_server: Any) -> None:
    infer = tuning_server.key_of("acme", "infer")
    for method, path in (("POST", "/v1/files"), ("POST", "/v1/fine_tuning/jobs"), ("DELETE", "/v1/files/file-1")):
        headers = {"authorization": f"Bearer {infer}"}
        answer = httpx.request(method, tuning_server.url + path, headers=headers, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")


def test_the_document_describes_the_surface(tuning_server: Any) -> None:
    document = httpx.get(f"{tuning_server.url}/openapi.json", trust_env=False).json()
    body = document["paths"]["/v1/fine_tuning/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "training_file", "lora"} <= set(body["properties"])
    assert "rank" in body["properties"]["lora"]["properties"]
    assert "$ref" not in json.dumps(body)
    assert "multipart/form-data" in document["paths"]["/v1/files"]["post"]["requestBody"]["content"]


def test_a_deadline_goes_through(tuning_server: Any, training_file: str) -> None:
    moment = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    job = tuning_server.client().fine_tuning.jobs.create(
        model="tiny", training_file=training_file, extra_body={"lora": {"deadline": moment}}
    )
    row = tuning_server.tuning.jobs.get("acme", job.id)
    assert row.deadline == datetime.fromisoformat(moment)
