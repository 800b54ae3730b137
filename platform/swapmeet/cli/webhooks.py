"""`swapmeet webhook create|list|delete|deliveries|test|rotate|retry`: who is told of jobs' ends."""

import itertools
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from swapmeet.cli.options import Json, not_empty, show
from swapmeet.cli.tables import moment, plain, table

if TYPE_CHECKING:
    from swapmeet.client import Client

app = typer.Typer(help="Webhooks: URLs that a running server tells of jobs' ends.", no_args_is_help=True)
ROUTE = "/v1/webhooks"
WebhookId = Annotated[str, typer.Argument(help="The webhook's id, whep_…", callback=not_empty)]


def _client() -> "Client":
    from swapmeet.client import Client

    return Client()


def _path(webhook: str, *more: str) -> str:
    return "/".join([ROUTE, *(quote(part, safe="") for part in (webhook, *more))])


@app.command()
def create(
    url: Annotated[str, typer.Argument(help="Where to send events: https://HOST/PATH.")],
    event: Annotated[
        list[str] | None, typer.Option(help="An event to be told of; may be given again. All of them otherwise.")
    ] = None,
    name: Annotated[str, typer.Option(help="What to call it.")] = "",
    json: Json = False,
) -> None:
    """Make a webhook, and show its secret, which is not shown again."""
    body = {"url": url, "name": name} | ({"event_types": event} if event else {})
    with _client() as client:
        made = client.call("POST", ROUTE, body)
    show(made, f"{made['id']}\nsecret (shown only now): {made['signing_secret']}", json)


@app.command("list")
def list_(json: Json = False) -> None:
    """Your webhooks, newest first."""
    with _client() as client:
        found = list(client.listed(ROUTE))
    headings = ("id", "name", "url", "events", "secret", "created")
    rows = [
        (
            hook["id"],
            hook["name"],
            hook["url"],
            ",".join(hook["event_types"]),
            hook["signing_secret_hint"],
            moment(hook["created_at"]),
        )
        for hook in found
    ]
    show({"webhooks": found}, table(headings, rows), json)


@app.command()
def delete(webhook: WebhookId, json: Json = False) -> None:
    """Delete a webhook, with what is still to be delivered to it."""
    with _client() as client:
        show(client.call("DELETE", _path(webhook)), f"{plain(webhook)} is deleted", json)


@app.command()
def deliveries(
    webhook: WebhookId,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, newest first.")] = 20,
    json: Json = False,
) -> None:
    """What was and is to be delivered, newest first."""
    with _client() as client:
        query = {"limit": min(limit, 100)}
        found = list(itertools.islice(client.listed(_path(webhook, "deliveries"), query), limit))
    headings = ("id", "event", "state", "attempts", "created", "next attempt", "error")
    rows = [
        (
            each["id"],
            each["event_type"],
            each["state"].replace("_", " "),
            each["attempts"],
            moment(each["created_at"]),
            moment(each["next_attempt_at"]),
            each["error"],
        )
        for each in found
    ]
    show({"deliveries": found}, table(headings, rows), json)


@app.command()
def retry(
    webhook: WebhookId, delivery: Annotated[str, typer.Argument(help="The delivery's id, wh_…")], json: Json = False
) -> None:
    """Deliver once more, whatever became of it."""
    with _client() as client:
        found = client.call("POST", _path(webhook, "deliveries", delivery, "retry"))
    show(found, f"{found['id']} will be delivered again", json)


@app.command()
def rotate(
    webhook: WebhookId,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="The old secret stays valid for 24 hours.")] = False,
    json: Json = False,
) -> None:
    """Give a webhook a new secret, and show it, which is not done again."""
    with _client() as client:
        body = {"keep_old_secret_active_for_24_hours": keep_old}
        made = client.call("POST", _path(webhook, "rotate_secret"), body)
    show(made, f"secret (shown only now): {made['signing_secret']}", json)


@app.command("test")
def try_out(
    webhook: WebhookId,
    event: Annotated[str, typer.Option(help="Which event to send a sample of.")] = "fine_tuning.job.succeeded",
    json: Json = False,
) -> None:
    """Send a sample event now, and show what the URL answered."""
    with _client() as client:
        found = client.call("POST", _path(webhook, "test"), {"event_type": event})
    show(found, f"The URL answered {found['status_code']}", json)
    if not 200 <= found["status_code"] < 300:
        raise typer.Exit(1)
