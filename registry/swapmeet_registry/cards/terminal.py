"""A card as a terminal shows it: headings, columns and insets, and no character but those that stand there."""

import textwrap
from collections.abc import Iterator

from swapmeet_registry.cards.card import Card
from swapmeet_registry.cards.sections import Dialogue, Section, facts, sections, warnings
from swapmeet_registry.cards.visible import line, visible

WIDTH = 100
INSET = "  "


def terminal(card: Card) -> str:
    """The card's text."""
    parts = [str(card.version), *(_wrapped(f"! {line(warning)}") for warning in warnings(card))]
    parts += [_wrapped(line(card.readme.purpose or "", 4000)), _columns(facts(card))]
    for section in sections(card):
        parts += ["\n".join([section.heading.upper(), *filter(None, _section(section))])]
    return visible("\n\n".join(part for part in parts if part)) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield _wrapped(section.intro)
    yield _columns(section.facts)
    yield "\n".join(_wrapped(f"- {line(point)}") for point in section.points)
    yield "\n".join(row[: len(row) - len(row.lstrip())] + line(row) for row in section.rows)
    yield "\n\n".join(map(_dialogue, section.examples))
    yield textwrap.indent(visible(section.text), "| ", lambda _: True)


def _dialogue(shown: Dialogue) -> str:
    prompt, output = (
        textwrap.indent(visible(text).rstrip(), INSET, lambda _: True) for text in (shown.prompt, shown.output)
    )
    return f"prompt:\n{prompt}\noutput{shown.ended}:\n{output}"


def _columns(known: dict[str, str]) -> str:
    names = {name: line(name, 40) for name in known}
    width = max(map(len, names.values()), default=0) + 2
    return "\n".join(f"{names[name]:{width}}{line(value)}" for name, value in known.items())


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, subsequent_indent=INSET if text[:2] in ("! ", "- ") else ""))
