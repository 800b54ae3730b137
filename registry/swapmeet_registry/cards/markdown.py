"""A card as Markdown.

Strangers' words stand in a table's cell, in a list's item, between fences or in a quotation, each of which ends where
we end it: none can open a heading, a fence or a link that goes on outside.
"""

import re
from collections.abc import Iterator

from swapmeet_registry.cards.card import Card
from swapmeet_registry.cards.sanitizing import without_html
from swapmeet_registry.cards.sections import Dialogue, Section, facts, sections, warnings
from swapmeet_registry.cards.visible import line, visible


def markdown(card: Card) -> str:
    """The card's text: warnings and facts first, then what is known, and the author's own words."""
    parts = [f"# {card.version.name}"]
    parts += [f"> **{_cell(warning)}**" for warning in warnings(card)]
    parts += [_quoted(_cell(card.readme.purpose or "", 4000)), _table(facts(card))]
    parts += map(part, sections(card))
    return visible("\n\n".join(filter(None, parts))) + "\n"


def part(section: Section) -> str:
    """One of a card's parts."""
    return visible("\n\n".join(filter(None, _paragraphs(section))))


def _paragraphs(section: Section) -> Iterator[str]:
    yield f"## {_cell(section.heading)}"
    yield section.intro
    if section.facts:
        yield _table(section.facts)
    yield "\n".join(f"- {_cell(point)}" for point in section.points)
    if section.rows:
        yield _fenced("\n".join(row[: len(row) - len(row.lstrip())] + line(row) for row in section.rows))
    for each in section.examples:
        yield _dialogue(each)
    yield _quoted(section.text)


def _dialogue(shown: Dialogue) -> str:
    return f"Prompt:\n\n{_fenced(shown.prompt)}\n\nOutput{shown.ended}:\n\n{_fenced(shown.output)}"


def _table(rows: dict[str, str]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {_cell(name, 100)} | {_cell(value)} |" for name, value in rows.items())]
    )


def _quoted(text: str) -> str:
    return "\n".join(f"> {row}".rstrip() for row in text.split("\n")) if text else ""


def _fenced(text: str) -> str:
    """A text as code, between more backticks than it has in a row."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def _cell(text: str, most: int = 500) -> str:
    """One line, in which nothing is a border, a link, code or HTML."""
    return re.sub(r"([\\|\[`])", r"\\\1", without_html(line(text, most)).replace("\n", " "))
