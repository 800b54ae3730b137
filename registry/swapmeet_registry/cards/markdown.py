"""A card as Markdown."""

import re
from typing import Any

from swapmeet_registry.cards.card import Card
from swapmeet_registry.cards.sanitizing import without_html


def markdown(card: Card) -> str:
    """The card's text: facts first, then examples, versions, and the author's own words."""
    readme = card.readme
    parts = [f"# {card.version.name}", readme.purpose or "", _table(_facts(card))]
    if card.manifest.metrics:
        metrics = {name: f"{value:g}" for name, value in sorted(card.manifest.metrics.items())}
        parts += ["## Metrics", _table(metrics)]
    if card.manifest.training:
        parts += ["## Training", _table({name: _said(value) for name, value in sorted(card.manifest.training.items())})]
    for heading, facts in card.more.items():
        parts += [f"## {heading.capitalize()}", _table({name: _said(value) for name, value in facts.items()})]
    if readme.examples:
        parts.append("## Examples")
        parts += [f"Prompt:\n\n{_fenced(each.prompt)}\n\nOutput:\n\n{_fenced(each.output)}" for each in readme.examples]
    parts += ["## Versions", "\n".join(map(_version, card.versions))]
    if readme.text:
        parts += ["## From its author", readme.text]
    if readme.mistakes:
        parts += ["## Could not be read", "\n".join(f"- {mistake}" for mistake in readme.mistakes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(card: Card) -> dict[str, str]:
    manifest, lora, version = card.manifest, card.manifest.lora, card.version
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    given = {
        "version": f"{version.version}{''.join(f', {alias}' for alias in card.aliases)}",
        "digest": f"`{version.digest}`",
        "published": version.created_at,
        "base": f"{manifest.base.name}, weights `{manifest.base.weights}`",
        "task": card.readme.task,
        "language": ", ".join(card.readme.language),
        "licence": manifest.license or "not stated",
        "tags": ", ".join(manifest.tags),
        "rank": f"{lora.rank}, alpha {lora.alpha:g}",
        "targets": targets,
        "size": f"{manifest.size:,} bytes, {lora.parameters:,} weights",
        "training data": f"`{manifest.dataset}`" if manifest.dataset else "not stated",
        "trained from": manifest.parent,
        "made by": manifest.run,
        "who may read it": card.visibility,
    }
    return {name: _cell(value) for name, value in given.items() if value}


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())])


def _version(note: Any) -> str:
    said = f": {_cell(note.notes)}" if note.notes else ""
    withdrawn = f" (withdrawn: {_cell(note.withdrawn)})" if note.withdrawn else ""
    return f"- {note.version}, {note.created_at[:10]}{said}{withdrawn}"


def _fenced(text: str) -> str:
    """A text as code, between more backticks than it has in a row."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cell(text: str) -> str:
    """One line of a table, in which nothing is a border or HTML."""
    return " ".join(re.sub(r"(?<!\\)\|", r"\\|", without_html(text)).split())
