"""`swapmeet up|chat`."""

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from swapmeet.cli.options import Home, Json, RegistryUrl, load_settings, show, tell

if TYPE_CHECKING:
    from swapmeet.client import Client


def up(
    base: Annotated[str | None, typer.Option(help="The base to host.")] = None,
    registry: RegistryUrl = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    exact: Annotated[
        bool | None, typer.Option("--exact", help="Answer bit for bit as transformers and PEFT would, and slower.")
    ] = None,
    webhook_private: Annotated[
        bool | None, typer.Option("--webhook-private", help="Let webhooks reach private addresses, this machine's too.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Serve the base and every adapter of the registry, until Ctrl-C."""
    from swapmeet import server

    settings = load_settings(
        base=base,
        registry=registry,
        port=port,
        host=host,
        exact=exact,
        webhook_private=webhook_private,
        home=home,
    )

    def ready(running: server.Running) -> None:
        text = f"Ready.\n  export SWAPMEET_URL={running.url}\n  export SWAPMEET_API_KEY={running.admin_key}"
        with redirect_stdout(results):
            show({"url": running.url, "admin_key": running.admin_key}, text, json)

    results = sys.stdout
    with redirect_stdout(sys.stderr):  # Ray tells of its cluster there, in the middle of anything
        server.up(settings, ready, tell)


def chat(
    model: Annotated[str, typer.Argument(help="TENANT/NAME, or the base's name.")],
    prompt: Annotated[str | None, typer.Argument(help="What to say; without it, lines are read one by one.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")] = 0.0,
    json: Json = False,
) -> None:
    """Talk to an adapter on a running server (SWAPMEET_URL, SWAPMEET_API_KEY)."""
    from swapmeet.client import Client

    options = {"temperature": temperature} | ({"max_tokens": max_tokens} if max_tokens else {})
    opening = [{"role": "system", "content": system}] if system else []
    with Client() as client:
        if prompt is not None:
            answer = _say(client, model, [*opening, {"role": "user", "content": prompt}], options, json)
            if json:
                show({"model": model, "answer": answer}, answer, json)
            return
        conversation = opening
        for line in sys.stdin:
            conversation.append({"role": "user", "content": line.rstrip("\n")})
            answer = _say(client, model, conversation, options, json)
            conversation.append({"role": "assistant", "content": answer})
            if json:
                show({"model": model, "answer": answer}, answer, json)


def _say(
    client: "Client", model: str, conversation: list[dict[str, str]], options: dict[str, float], silent: bool
) -> str:
    answer = ""
    for piece in client.stream(model, conversation, **options):
        answer += piece
        if not silent:
            print(piece, end="", flush=True)
    if not silent:
        print()
    return answer


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(up)
    app.command()(chat)
