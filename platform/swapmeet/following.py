"""A job's events as they come, over a server that may go away for a while."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from swapmeet.errors import ApiError

if TYPE_CHECKING:
    from swapmeet.client import Client

ENDED = ("succeeded", "failed", "cancelled")
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 300.0
"""How long a server that does not answer is asked again."""
PAGE = 100
T = TypeVar("T")
Tell = Callable[[str], None]
Path = Callable[..., str]
"""The route of a job or a sweep by its id, and of what is below it."""


def silent(_: str) -> None:
    """For callers who need not know that a server was away."""


def job_path(job: str, *more: str) -> str:
    """A job's route."""
    return "/".join(["/v1/fine_tuning/jobs", quote(job, safe=""), *more])


def sweep_path(sweep: str, *more: str) -> str:
    """A sweep's route."""
    return "/".join(["/v1/fine_tuning/sweeps", quote(sweep, safe=""), *more])


def newer(client: "Client", job: str, seen: set[str], path: Path = job_path) -> list[dict[str, Any]]:
    """A job's events that were not seen yet, oldest first; they are from now on.

    Reads back until a page has something known, and not just to the newest known: of two that are told at once, the
    older may appear last.
    """
    found: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": PAGE}
    while True:
        page = client.call("GET", path(job, "events"), query=query)
        events = page["data"]
        found += [event for event in events if event["id"] not in seen]
        if not events or not page.get("has_more") or any(event["id"] in seen for event in events):
            break
        query["after"] = events[-1]["id"]
    seen |= {event["id"] for event in found}
    return found[::-1]


def follow(client: "Client", job: str, tell: Tell, path: Path = job_path) -> Iterator[dict[str, Any]]:
    """All of a job's events, oldest first, until the job has ended; then, last, the job itself.

    Args:
        client: of the server that runs it.
        job: its id.
        tell: is told, once each time, that the server does not answer.
        path: `sweep_path`, to follow a sweep instead.

    Raises:
        ApiError: the server refuses, or has not answered for five minutes.
    """
    seen: set[str] = set()
    while True:
        state = patiently(lambda: client.call("GET", path(job)), tell)  # first: what is told by its end is told
        yield from patiently(lambda: newer(client, job, seen, path), tell)
        if state["status"] in ENDED:
            yield state
            return
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of an attempt's log."""

    attempt: int
    line: str


def follow_log(client: "Client", job: str, tail: int | None, tell: Tell) -> Iterator[LogLine]:
    """The lines of a job's attempts, oldest first, as they come, until the job has ended.

    Args:
        client: of the server that runs it.
        job: its id.
        tail: how many lines of each attempt that has begun by now, at most; None for all.
        tell: is told, once each time, that the server does not answer.

    Raises:
        ApiError: the server refuses, or has not answered for five minutes.
    """
    attempt, known, begun = 1, -1, -1
    while True:
        state = patiently(lambda: client.call("GET", job_path(job)), tell)  # first: by its end its log is complete
        begun = state["attempts"] if begun < 0 else begun
        while attempt <= state["attempts"]:
            first = {"tail": tail} if attempt <= begun else {}
            query = {"attempt": attempt, **(first if known < 0 else {"skip": known})}
            answer = patiently(partial(client.answered, job_path(job, "logs"), query), tell)
            lines = answer.text.split("\n")[:-1]
            yield from (LogLine(attempt, line) for line in lines)
            known = int(answer.headers["x-swapmeet-first-line"]) + len(lines)
            if attempt == state["attempts"]:
                break
            attempt, known = attempt + 1, -1
        if state["status"] in ENDED:
            return
        time.sleep(POLL_SECONDS)


def patiently(ask: Callable[[], T], tell: Tell) -> T:
    """The answer to what may be asked again, of a server that may go away for a while.

    Raises:
        ApiError: it refuses, or has not answered for five minutes.
    """
    told, until = False, time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except ApiError as error:
            if not _passes(error) or time.monotonic() > until:
                raise
            if not told:
                tell(f"{error} Asking again for {PATIENCE_SECONDS:.0f} s.")
                told = True
        time.sleep(POLL_SECONDS)


def _passes(error: ApiError) -> bool:
    """Whether to ask again is of use: the server is away or busy. A quota that is used up stays so."""
    busy = error.status == 429 and error.code != "insufficient_quota"
    return busy or error.status == 0 or error.status >= 500
