"""What a card tells, in order, before it is Markdown or a terminal's text."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from swapmeet_registry.cards.card import Card, Note
from swapmeet_registry.cards.readme import Readme
from swapmeet_registry.origin import lineage
from swapmeet_registry.origin.provenance import Examples

MOST_FACTS = 50
"""Rows of a table; there may be any number of metrics and settings."""
ENDED = {"stop": "", "length": " (cut off at the limit)", "time": " (cut off, as time was up)"}


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A prompt with its output, and what is said of how that ended."""

    prompt: str
    output: str
    ended: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it; all of it may come from strangers.

    Attributes:
        intro: a sentence or two.
        facts: names with values.
        points: sentences, each for itself.
        rows: lines whose beginnings are as they are.
        examples: prompts with outputs.
        text: its author's Markdown, without HTML.
    """

    heading: str
    intro: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    points: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    examples: tuple[Dialogue, ...] = ()
    text: str = ""


def warnings(card: Card) -> Iterator[str]:
    """What somebody must know before all else."""
    if card.withdrawn:
        yield f"Do not use version {card.version.version}. It was {card.withdrawn}"
    if card.newer:
        yield f"A newer version exists: {card.newer}, of {card.newer.created_at[:10]}."
    yield from card.concerns


def facts(card: Card) -> dict[str, str]:
    """What the registry knows of the version, by what it is called; what is not known is not there."""
    manifest, lora, version = card.manifest, card.manifest.lora, card.version
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    kinds = [name for name, used in (("rank-stabilized", lora.rslora), ("DoRA", lora.dora)) if used]
    given = {
        "version": f"{version.version}{''.join(f', {alias}' for alias in card.aliases)}",
        "digest": version.digest,
        "published": version.created_at,
        "base": f"{manifest.base.name}, weights {manifest.base.weights}",
        "task": card.readme.task,
        "language": ", ".join(card.readme.language),
        "licence": manifest.license or "not stated",
        "licence of the base": manifest.base_license,
        "licence of the data": manifest.dataset_license,
        "tags": ", ".join(manifest.tags),
        "rank": ", ".join([f"{lora.rank}, alpha {lora.alpha:g}", *kinds]),
        "targets": targets,
        "size": f"{manifest.size:,} bytes, {lora.parameters:,} weights",
        "training data": manifest.dataset or "not stated",
        "trained from": manifest.parent,
        "made by": manifest.run,
        "who may read it": card.visibility,
    }
    return {name: value for name, value in given.items() if value}


def sections(card: Card) -> Iterator[Section]:
    """Everything after the facts."""
    manifest, readme = card.manifest, card.readme
    if manifest.metrics:
        yield Section("Metrics", facts=_some({name: f"{value:g}" for name, value in manifest.metrics.items()}))
    yield from answers(card.examples, readme, own=card.own)
    if manifest.training:
        yield Section("Training", facts=_some({name: _said(value) for name, value in manifest.training.items()}))
    yield Section("Lineage", rows=tuple(lineage.lines(card.version, manifest, card.parents)))
    if card.advice:
        yield Section("Weights", "Advice for somebody who knows the adapter, and no verdict.", points=card.advice)
    for heading, known in card.more.items():
        yield Section(heading.capitalize(), facts=_some({name: _said(value) for name, value in known.items()}))
    yield Section("Versions", points=tuple(map(_version, card.versions)))
    if readme.text:
        yield Section("From its author", text=readme.text)
    if readme.mistakes:
        yield Section("Could not be read", points=readme.mistakes)


def answers(made: Examples | None, readme: Readme, *, own: bool = False) -> Iterator[Section]:
    """Prompts with outputs, by where they are from: the run, of which `own` says that only the owner sees them."""
    if made:
        yield _answered(made, own=own)
    if readme.examples:
        stated = tuple(Dialogue(each.prompt, each.output) for each in readme.examples)
        yield Section("Examples stated by the author", "Written by hand: nothing checked them.", examples=stated)


def _answered(examples: Examples, *, own: bool) -> Section:
    seen = " Only the adapter's owner sees them: they are no part of it." if own else ""
    return Section(
        "Examples made by the run",
        f"Answers of the finished adapter to prompts that it was not trained on, as the run recorded them.{seen}",
        {
            "decoding": f"{examples.decoding}, {examples.max_tokens} tokens at most, the run's seed {examples.seed}",
            "on the base": f"NF4, weights {examples.base}",
            "prompts from": f"the held-out data {examples.data}",
        },
        examples=tuple(Dialogue(each.prompt, each.output, ENDED[each.ended]) for each in examples.answers),
    )


def _version(note: Note) -> str:
    said = f": {note.notes}" if note.notes else ""
    withdrawn = f" (withdrawn: {note.withdrawn})" if note.withdrawn else ""
    return f"{note.version}, {note.created_at[:10]}{said}{withdrawn}"


def _some(known: dict[str, str]) -> dict[str, str]:
    """The first of them by name, and how many more there are."""
    names = sorted(known)
    left = {"…": f"and {len(names) - MOST_FACTS} more, in the manifest"} if len(names) > MOST_FACTS else {}
    return {name: known[name] for name in names[:MOST_FACTS]} | left


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
