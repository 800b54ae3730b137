"""`swapmeet search|card|like|unlike`: find adapters, and read of them.

A server is asked, which knows likes and downloads; or the store itself, through an index in the user's cache.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from swapmeet.cli.adapters import Ref
from swapmeet.cli.adapters_opened import adapters_at
from swapmeet.cli.options import Home, Json, RegistryUrl, ServerUrl, show
from swapmeet.cli.remote import given
from swapmeet.cli.tables import fields, table
from swapmeet_registry.names import AdapterName, Reference

HEADINGS = ("name", "version", "base", "rank", "size", "licence", "task", "likes", "downloads", "purpose")
SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
Name = Annotated[str, typer.Argument(help="TENANT/NAME")]
Size = Annotated[str | None, typer.Option(metavar="SIZE", help="Of all files: bytes, or with K, M or G.")]
Sort = Literal["relevance", "downloads", "likes", "date"]


def search(
    query: Annotated[str, typer.Argument(help="Words that the name, tags, base, purpose or card have.")] = "",
    base: Annotated[str | None, typer.Option(help="A base's name or weights digest.")] = None,
    license: Annotated[str | None, typer.Option(help="An SPDX licence id.")] = None,  # noqa: A002 - the option's name
    task: Annotated[str | None, typer.Option(help="Such as summarization.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; may be given again.")] = None,
    owner: Annotated[str | None, typer.Option(help="A tenant.")] = None,
    rank_min: Annotated[int | None, typer.Option(help="The least LoRA rank.")] = None,
    rank_max: Annotated[int | None, typer.Option(help="The largest LoRA rank.")] = None,
    size_min: Size = None,
    size_max: Size = None,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME<=X", help="A metric's range, also <, >=, > or =; may be repeated.")
    ] = None,
    sort: Annotated[Sort, typer.Option(help="Best first.")] = "relevance",
    versions: Annotated[bool, typer.Option("--versions", help="Find versions, not adapters by their newest.")] = False,
    limit: Annotated[int, typer.Option(help="Results at most, up to 200.")] = 20,
    after: Annotated[str | None, typer.Option(help="What the page before gave as next.")] = None,
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Find adapters by words and filters; all must fit."""
    from swapmeet.adapter_reading import understanding
    from swapmeet_registry import Registry

    filters: dict[str, Any] = given(
        base=base, license=license, task=task, owner=owner, rank_min=rank_min, rank_max=rank_max,
        size_min=_bytes(size_min), size_max=_bytes(size_max), sort=sort, limit=limit,
    )  # fmt: skip
    with adapters_at(url, registry, home) as adapters:
        if isinstance(adapters, Registry):
            several: dict[str, Any] = {"tags": tuple(tag or ()), "metrics": tuple(metric or ())}
            found = adapters.search(query, **filters, **several, versions=versions, after=after)
            hits, following = [asdict(hit) for hit in found.hits], found.next
        else:
            more = {"tag": tag or [], "metric": metric or [], "versions": versions, "cursor": after}
            with understanding():
                page = adapters.client.call("GET", "/v1/search", query={"query": query, **filters, **given(**more)})
                hits, following = page["data"], page["next_cursor"]
    with understanding():
        lines = table(HEADINGS, map(_row, hits)) if hits else "Nothing fits. Try fewer words or filters."
    more_ = f"\nMore: --after {following}" if following else ""
    show({"hits": hits, "next": following}, lines + more_, json)


def card(
    reference: Ref, url: ServerUrl = None, registry: RegistryUrl = None, home: Home = None, json: Json = False
) -> None:
    """An adapter's card: what it is for, on what it was trained, what it measured and answers; Markdown for a file."""
    from swapmeet.adapter_reading import path_of
    from swapmeet_registry import Registry
    from swapmeet_registry.cards import Card, markdown, terminal
    from swapmeet_registry.cards.visible import visible  # what the server says is a stranger's word, too

    wanted, for_people = Reference.parse(reference), sys.stdout.isatty()
    with adapters_at(url, registry, home) as adapters:
        if isinstance(adapters, Registry):
            about = adapters.resolve(reference) if wanted == Reference(wanted.name) else adapters.find(reference)
            found = Card.of(adapters, about, adapters.show(str(wanted.name)), {})
            made, text = found.as_json(), (terminal if for_people else markdown)(found)
        else:
            version = str(reference).removeprefix(str(wanted.name)).lstrip(":@") or None
            query = given(version=version) | {"format": "json" if json else "text" if for_people else "markdown"}
            path = f"{path_of(wanted.name)}/card"
            made = adapters.client.call("GET", path, query=query) if json else {}
            text = "" if json else visible(adapters.client.text(path, query))
    show(made, text.rstrip(), json)


def like(name: Name, url: ServerUrl = None, json: Json = False) -> None:
    """Like an adapter, in your tenant's name; once more changes nothing."""
    _like("PUT", name, url, json)


def unlike(name: Name, url: ServerUrl = None, json: Json = False) -> None:
    """Take a like back."""
    _like("DELETE", name, url, json)


def find_file(
    file: Annotated[Path, typer.Argument(help="A file, such as adapter_model.safetensors, or its hex SHA-256.")],
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Which adapters a file is part of, withdrawn ones too."""
    from swapmeet.adapter_reading import understanding
    from swapmeet_registry import Registry

    sha256 = _sha256(file)
    with adapters_at(url, registry, home) as adapters:
        if isinstance(adapters, Registry):
            from swapmeet_registry.index import open_index

            hits = [asdict(hit) for hit in open_index(adapters, lambda index: index.by_file(sha256))]
        else:
            with understanding():
                hits = adapters.client.call("GET", f"/v1/files-by-hash/{sha256}")["data"]
    with understanding():
        lines = [f"{hit['name']}:{hit['version']} {hit['digest']}{_withdrawn(hit)}" for hit in hits]
    show({"sha256": sha256, "hits": hits}, "\n".join(lines) or "No version has this file.", json)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (search, card, like, unlike):
        app.command()(command)
    app.command("find-file")(find_file)


def _like(method: str, name: str, url: str | None, as_json: bool) -> None:
    from swapmeet.adapter_reading import path_of, understanding
    from swapmeet.client import Client  # stores keep no likes

    with Client(url or "") as client, understanding():
        found = client.call(method, f"{path_of(AdapterName.parse(name))}/likes")
    with understanding():
        told = [
            ("likes", found["likes"]),
            ("you", "like it" if found["liked"] else None),
            ("downloads", found["downloads"]),
        ]
    show(found, fields(told), as_json)


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    number, unit = text.rstrip("kKmMgG"), text[len(text.rstrip("kKmMgG")) :].lower()
    if unit not in SIZES or not (number.isascii() and number.isdecimal()):
        raise typer.BadParameter(f"{text!r} is no size. Write bytes, or such as 20M.")
    return int(number) * SIZES[unit]


def _sha256(file: Path) -> str:
    import hashlib

    name = str(file).removeprefix("sha256:")
    if len(name) == 64 and set(name) <= set("0123456789abcdef"):
        return name
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise typer.BadParameter(f"{file} can not be read ({error.strerror}). Name a file or its SHA-256.") from error


def _row(hit: dict[str, Any]) -> tuple[Any, ...]:
    size = f"{hit['size'] / (1 << 20):.1f} MB"
    purpose = hit["purpose"] if hit["purpose"] is None or len(hit["purpose"]) <= 80 else hit["purpose"][:79] + "…"
    return (
        hit["name"], hit["version"], hit["base"], hit["rank"], size, hit["license"], hit["task"],
        hit["likes"], hit["downloads"], purpose,
    )  # fmt: skip


def _withdrawn(hit: dict[str, Any]) -> str:
    return f"  {hit['withdrawn']}" if hit["withdrawn"] else ""
