"""`swapmeet jobs list|show|events|logs|cancel|pause|resume`: fine-tuning jobs of a running server."""

import itertools
import json as json_
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swapmeet.cli.options import Json, not_empty, show, tell
from swapmeet.cli.tables import duration, fields, moment, plain, table
from swapmeet.following import PAGE, follow, job_path

if TYPE_CHECKING:
    from swapmeet.client import Client

app = typer.Typer(help="Fine-tuning jobs of a running server (SWAPMEET_URL, SWAPMEET_API_KEY).", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="The job's id, ftjob-…", callback=not_empty)]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends; exit code 1 if it fails.")]
METRICS = {"train_loss": "loss", "valid_loss": "validation loss", "full_valid_loss": "full validation loss"}


def _client() -> "Client":
    from swapmeet.client import Client

    return Client()


def _metadata(pairs: list[str] | None) -> dict[str, str]:
    """`KEY=VALUE` as the server's query has it."""
    split = [pair.partition("=") for pair in pairs or []]
    if wrong := [plain(key) for key, equals, _ in split if not key or not equals]:
        raise typer.BadParameter(f"{', '.join(map(repr, wrong))}: write --metadata KEY=VALUE.")
    return {f"metadata[{key}]": value for key, _, value in split}


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="How many at most, newest first.")] = 20,
    after: Annotated[str | None, typer.Option(help="Go on behind the job of this id.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE that jobs must have; may be given again.")
    ] = None,
    json: Json = False,
) -> None:
    """Your jobs, newest first."""
    query = {"limit": min(limit, PAGE)} | ({"after": after} if after else {}) | _metadata(metadata)
    with _client() as client:
        jobs = list(itertools.islice(client.listed("/v1/fine_tuning/jobs", query), limit))
    headings = ("id", "status", "step", "model", "result", "created")
    rows = [
        (job["id"], job["status"], _step(job), job["model"], job["fine_tuned_model"], moment(job["created_at"]))
        for job in jobs
    ]
    show({"jobs": jobs}, table(headings, rows), json)


@app.command("show")
def show_(job: JobId, json: Json = False) -> None:
    """A job: where it stands, why it waits and about how long, and what went wrong."""
    with _client() as client:
        found = client.call("GET", job_path(job))
    show(found, _described(found), json)


@app.command()
def events(
    job: JobId,
    limit: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 20,
    follow: Follow = False,
    json: Json = False,
) -> None:
    """What happened to a job, oldest first."""
    with _client() as client:
        if follow:
            _follow(client, job, json)
            return
        query = {"limit": min(limit, PAGE)}
        newest = list(itertools.islice(client.listed(job_path(job, "events"), query), limit))[::-1]
    rows = [(moment(event["created_at"]), event["level"], event["message"]) for event in newest]
    show({"events": newest}, table(("at", "level", "message"), rows), json)


@app.command()
def logs(
    job: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt only.")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="The last lines of each attempt only.")] = None,
    follow: Follow = False,
    json: Json = False,
) -> None:
    """What a job's attempts wrote down: settings, versions, every step, and how they ended, with the traceback."""
    if follow and attempt is not None:
        raise typer.BadParameter(
            "--follow goes on through all attempts. Leave one of them out.", param_hint="--attempt"
        )
    with _client() as client:
        if follow:
            _follow_log(client, job, tail, json)
        elif json:
            attempts = range(1, client.call("GET", job_path(job))["attempts"] + 1) if attempt is None else [attempt]
            found = [(each, client.log(job, each, tail).split("\n")[:-1]) for each in attempts]
            show({"logs": [{"attempt": each, "lines": lines} for each, lines in found]}, "", json)
        else:
            _print_log(client.log(job, attempt, tail))


@app.command()
def cancel(job: JobId, json: Json = False) -> None:
    """End a job; its checkpoints stay."""
    _change(job, "cancel", json)


@app.command()
def pause(job: JobId, json: Json = False) -> None:
    """Have a job save a checkpoint and give its machines back."""
    _change(job, "pause", json)


@app.command()
def resume(job: JobId, json: Json = False) -> None:
    """Have a paused job go on where it stopped."""
    _change(job, "resume", json)


def _change(job: str, how: str, json: bool) -> None:
    with _client() as client:
        found = client.call("POST", job_path(job, how))
    show(found, f"{plain(found['id'])} is {_status(found)}", json)


def _follow(client: "Client", job: str, json: bool) -> None:
    """Print events until the job ends, and its end; a job that did not succeed is exit code 1."""
    for found in follow(client, job, tell):
        ended = found["object"] == "fine_tuning.job"
        if not ended:
            print(json_.dumps(found) if json else event_line(found), flush=True)
        elif found["status"] != "succeeded":
            raise typer.Exit(1)


def _follow_log(client: "Client", job: str, tail: int | None, json: bool) -> None:
    """Print an attempt's lines as they come, each attempt's below its number; exit code 1 unless the job succeeds."""
    attempt = 0
    for found in client.follow_log(job, tail, tell):
        if json:
            print(json_.dumps({"attempt": found.attempt, "line": found.line}), flush=True)
            continue
        if found.attempt != attempt:
            attempt = found.attempt
            print(f"--- attempt {attempt} ---")
        print(plain(found.line), flush=True)
    if client.call("GET", job_path(job))["status"] != "succeeded":
        raise typer.Exit(1)


def _print_log(text: str) -> None:
    for line in text.split("\n")[:-1]:
        print(plain(line))
    if not text:
        tell("No attempt has written anything yet; `swapmeet jobs events` shows what happened.")


def event_line(event: dict[str, Any]) -> str:
    """An event for people, with the figures that it measured; of a sweep, with the number of its configuration."""
    data = event.get("data") or {}
    figures = [f"{said} {data[name]:.4g}" for name, said in METRICS.items() if isinstance(data.get(name), int | float)]
    measured = f"  [{', '.join(figures)}]" if figures else ""
    which = f"[{event['run']}] " if "run" in event else ""
    return f"{moment(event['created_at'])}  {event['level']:5}  {which}{plain(event['message'])}{measured}"


def _described(job: dict[str, Any]) -> str:
    finish, error = job.get("estimated_finish"), job.get("error") or {}
    left = f" (in about {duration(finish - time.time())})" if finish and finish > time.time() else ""
    metadata = ", ".join(f"{key}={value}" for key, value in (job.get("metadata") or {}).items())
    return fields(
        [
            ("id", job["id"]),
            ("status", _status(job)),
            ("waits for", job.get("waits_for")),
            ("step", _step(job)),
            ("estimated finish", moment(finish) + left),
            ("error", error.get("message")),
            ("error code", error.get("code")),
            ("error param", error.get("param")),
            ("model", job["model"]),
            ("sweep", job.get("sweep")),
            ("result", job.get("fine_tuned_model")),
            ("result files", ", ".join(job.get("result_files") or [])),
            ("trained tokens", job.get("trained_tokens")),
            ("training file", job["training_file"]),
            ("validation file", job.get("validation_file")),
            ("created", moment(job["created_at"])),
            ("finished", moment(job.get("finished_at"))),
            ("metadata", metadata),
        ]
    )


def _status(job: dict[str, Any]) -> str:
    return str(job["status"]).replace("_", " ")


def _step(job: dict[str, Any]) -> str:
    step, total = job.get("step"), job.get("total_steps")
    if not step and not total:
        return ""
    return f"{step or 0} of {total}" if total else str(step)
