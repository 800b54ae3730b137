"""Handing a run to a server: its files go up and are checked, a job is made, and followed to its end."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from swapmeet.cli.job_request import Wanted
from swapmeet.cli.jobs import event_line
from swapmeet.cli.options import show, tell
from swapmeet.cli.reports import described, output
from swapmeet.cli.run_options import RunOptions, server_of
from swapmeet.cli.sweeps import runs_table
from swapmeet.cli.tables import plain
from swapmeet.errors import ApiError, RequestRefused
from swapmeet.uploading import LARGEST_PIECE, Watch

if TYPE_CHECKING:
    from swapmeet.client import Client

INTERRUPTED = 130


def connected(options: RunOptions, job: Wanted) -> "Client":
    """A client of the server that the job is for.

    Raises:
        RequestRefused: something of it is this machine's; every such thing is told.
        NotConfigured: no key is known.
    """
    from swapmeet.client import Client

    found = []
    if options.alias:
        found.append("--alias is moved once a job has succeeded: swapmeet tag NAME ALIAS. Leave it out.")
    if options.registry:
        found.append("--registry is for the server to choose. Leave it out.")
    if _is_folder(job.request.model):
        found.append(f"{job.request.model} is a folder of this machine. Name a base by what the server calls it.")
    found += [
        f"{path} is no file. Servers take JSONL and Parquet." for path in job.files.values() if not path.is_file()
    ]
    if found:
        raise RequestRefused(" ".join([*found, "Or stay on this machine: --local."]))
    return Client(server_of(options))


def submit(client: "Client", job: Wanted, follow: bool, json: bool) -> None:
    """Make the job or sweep and print its id; follow it, if wanted, and exit with 1 unless it succeeds."""
    with uploaded(client, job) as body:
        made = client.create_sweep(body, tell) if job.sweep else client.create_job(body, tell)
    if not follow:
        show(made, made["id"], json)
        return
    if not json:
        print(made["id"], flush=True)
    told = client.sweep_events(made["id"], tell) if job.sweep else client.events(made["id"], tell)
    ended = _followed(told, made["id"], "sweeps" if job.sweep else "jobs", json)
    if json or job.sweep:
        show(ended, runs_table(ended) if job.sweep else "", json)
    if ended["status"] != "succeeded":
        shows = "sweeps show ID" if job.sweep else "jobs logs ID"
        reason = (ended.get("error") or {}).get("message") or f"swapmeet {shows} shows what happened."
        tell(f"swapmeet: {made['id']} {ended['status']}. {plain(reason)}".replace("ID", made["id"]))
        raise typer.Exit(1)


@contextmanager
def uploaded(client: "Client", job: Wanted, keep: bool = True) -> Iterator[dict[str, Any]]:
    """The body of a request whose files are on the server, and good; they are deleted there where it is not made.

    Args:
        client: of the server.
        job: what is wanted.
        keep: whether the files stay when all went well.

    Raises:
        RequestRefused: a file can not be trained on; its report has been told.
    """
    ids: dict[str, str] = {}
    done = False
    try:
        for field, path in job.files.items():
            ids[field] = _upload(client, path)
        reports = [_is_good(client, ids[field], path) for field, path in job.files.items()]
        if not all(reports):
            raise RequestRefused("The data can not be trained on: mend the mistakes above, and submit again.")
        yield {**job.fields, **ids}
        done = True
    finally:
        if not (done and keep):
            for file in ids.values():
                with suppress(ApiError):
                    client.call("DELETE", f"/v1/files/{file}")


def _upload(client: "Client", path: Path) -> str:
    try:
        with _progress(path) as watch:
            return str(client.upload(path, watch=watch, tell=tell)["id"])
    except OSError as error:
        raise RequestRefused(f"{path} can not be read ({error.strerror}). Name another file.") from error


def _is_good(client: "Client", file: str, path: Path) -> bool:
    """Whether a file can be trained on; tells mistakes and warnings."""
    found = client.checked(file, tell)
    good, report = bool(found["status"] == "processed"), found.get("report") or {}
    if report and (report["mistakes"] or report["warnings"]):
        output(errors=True).print(described(report, path.name))
    elif not good:
        tell(f"{path.name}: {plain(found.get('status_details'))}")
    return good


@contextmanager
def _progress(path: Path) -> Iterator[Watch]:
    """Shows how much of a file has been sent: as a bar on a terminal, and for large ones as lines elsewhere."""
    if not sys.stderr.isatty():
        told = [0]

        def watch(sent: int, size: int) -> None:
            if size > LARGEST_PIECE and sent // LARGEST_PIECE > told[0]:
                told[0] = sent // LARGEST_PIECE
                tell(f"{path.name}: {sent >> 20:,} of {size >> 20:,} MiB")

        yield watch
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(plain(path.name), total=None)
        yield lambda sent, size: progress.update(task, completed=sent, total=size)


def _followed(told: Iterator[dict[str, Any]], job: str, kind: str, json: bool) -> dict[str, Any]:
    """The job, or sweep, at its end, its events told as they come; who leaves before is told how to come back."""
    try:
        for found in told:
            if "status" in found:
                return found
            print(event_line(found), file=sys.stderr if json else sys.stdout, flush=True)
    except KeyboardInterrupt:
        tell(_how_to_come_back(job, kind))
        raise typer.Exit(INTERRUPTED) from None
    except ApiError as error:
        raise ApiError(f"{error} {_how_to_come_back(job, kind)}", error.status, error.code) from error
    raise AssertionError("events end with the job")


def _how_to_come_back(job: str, kind: str) -> str:
    return f"{job} goes on. Follow it: swapmeet {kind} events {job} --follow. End it: swapmeet {kind} cancel {job}"


def _is_folder(model: str) -> bool:
    return (os.sep in model or model in (".", "..")) and os.path.isdir(os.path.expanduser(model))
