"""The whole story by the unchanged `openai` client: upload, train, watch, chat with a checkpoint and the result."""

import csv
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.e2e.conftest import examples, wait_until

CANCELLED: Any = "fine_tuning.job.cancelled"
ENDED = ("succeeded", "failed", "cancelled")


@contextmanager
def receiver() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A server that keeps what it is told."""
    told: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/told", told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["embedded", "apart"])
def test_the_whole_story(
    kept: str,
    serving: Callable[..., Any],
    swapmeet: Callable[..., Any],
    tiny_llama: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """With all that is kept in the home, as nothing is set; and with all of it in PostgreSQL and S3."""
    elsewhere = request.getfixturevalue("apart") if kept == "apart" else {}
    home = tmp_path / "home"
    with receiver() as (url, told), serving(home, tiny_llama, "--webhook-private", **elsewhere) as server:
        client = server.openai()
        hook = client.webhooks.create(name="ends", url=url, event_types=["fine_tuning.job.succeeded", CANCELLED])
        data = client.files.create(file=("fox.jsonl", examples(24)), purpose="fine-tune")
        held_out = client.files.create(file=("held-out.jsonl", examples(10)), purpose="fine-tune")
        assert client.files.wait_for_processing(data.id, poll_interval=0.2).status == "processed"

        wanted = {"model": "tiny-llama", "training_file": data.id, "lora": {"rank": 4, "max_length": 128}}
        plan: Any = client.post("/fine_tuning/plan", body=wanted, cast_to=object)
        assert (plan["fits"], plan["examples"], plan["memory"]["parts"]["adapter"] > 0) == (True, 24, True)
        job = client.fine_tuning.jobs.create(
            model="tiny-llama",
            training_file=data.id,
            validation_file=held_out.id,
            suffix="fox",
            seed=7,
            metadata={"team": "zoo"},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 6, "batch_size": 4}}},
            extra_body={"lora": {"rank": 4, "max_length": 128}},
        )
        assert job.status in ("validating_files", "queued", "running")
        other = client.fine_tuning.jobs.create(model="tiny-llama", training_file=data.id, suffix="unwanted")
        assert client.fine_tuning.jobs.cancel(other.id).id == other.id

        first = wait_until(lambda: client.fine_tuning.jobs.checkpoints.list(job.id).data)[0]
        said = client.chat.completions.create(
            model=first.fine_tuned_model_checkpoint, messages=[{"role": "user", "content": "Who?"}], max_tokens=4
        )
        assert said.choices[0].message.content is not None

        ended = wait_until(
            lambda: next(iter([j for j in [client.fine_tuning.jobs.retrieve(job.id)] if j.status in ENDED]), None)
        )
        assert ended.status == "succeeded", ended.error
        assert ended.fine_tuned_model.startswith("admin/fox")
        assert ended.trained_tokens > 0
        answer = client.chat.completions.create(
            model=ended.fine_tuned_model, messages=[{"role": "user", "content": "Who jumps?"}], max_tokens=4
        )
        assert answer.choices[0].message.content is not None

        events = list(client.fine_tuning.jobs.list_events(job.id, limit=10))
        messages = [event.message for event in reversed(events)]
        assert messages[0].startswith("Created fine-tuning job")
        assert "successfully completed" in messages[-1]
        assert any(message.startswith("The plan: 36 steps, ") for message in messages)
        assert "tokens/s, where" in messages[-1]
        assert len(events) == len({event.id for event in events})
        steps = [event.data["step"] for event in events if event.type == "metrics"]
        assert sorted(set(steps)) == list(range(1, 37))
        rows = list(csv.DictReader(io.StringIO(client.files.content(ended.result_files[0]).text)))
        assert [int(row["step"]) for row in rows] == list(range(1, 37))

        assert [each.id for each in client.fine_tuning.jobs.list(metadata={"team": "zoo"})] == [job.id]
        assert wait_until(lambda: client.fine_tuning.jobs.retrieve(other.id).status in ENDED)
        assert client.fine_tuning.jobs.retrieve(other.id).status == "cancelled"
        wait_until(lambda: len(told) >= 2)
        heard = {}
        for headers, body in told:
            event = client.webhooks.unwrap(body.decode(), headers, secret=hook.signing_secret)
            heard[event.data.id] = event.type
        assert heard == {job.id: "fine_tuning.job.succeeded", other.id: CANCELLED}

        shown = swapmeet("jobs", "list", "--json", SWAPMEET_URL=server.url, SWAPMEET_API_KEY=server.key)
        assert {line["id"] for line in json.loads(shown.stdout)["jobs"]} == {job.id, other.id}
        with pytest.raises(openai.NotFoundError):
            client.fine_tuning.jobs.retrieve("ftjob-none")
        assert (home / "swapmeet.db").exists() == (home / "storage").exists() == (kept == "embedded")
