"""What an adapter's author says of it, in the README.md of its folder.

    | ---
    | purpose: Answers questions about German tenancy law.
    | task: question-answering
    | language: [de, en]
    | notes: Trained on twice the data of version 2.
    | examples:
    |   - prompt: Darf der Vermieter die Wohnung betreten?
    |     output: Nur mit Ihrer Zustimmung, außer bei Gefahr im Verzug.
    | ---
    | Free text in Markdown.

Other names in the front matter are other tools' and left alone. What is wrong is left out and told in `mistakes`: the
version is published already, and its bytes never change.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swapmeet_registry.cards import front_matter
from swapmeet_registry.cards.sanitizing import without_html

if TYPE_CHECKING:
    from swapmeet_registry.manifest import Manifest
    from swapmeet_registry.registry import Registry
    from swapmeet_registry.version import Version

FILE = "README.md"
MOST_BYTES = 256 << 10
"""A longer README is not read."""
MOST_PURPOSE, MOST_WORD, MOST_EXAMPLE, MOST_EXAMPLES, MOST_LANGUAGES = 2000, 64, 8000, 20, 20


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, and what the adapter answered."""

    prompt: str
    output: str


@dataclass(frozen=True, slots=True)
class Readme:
    """A README taken apart.

    Attributes:
        purpose: what the adapter is for, in a sentence or two.
        task: such as `summarization`.
        language: codes such as `de`.
        notes: what is new in this version.
        text: the rest, Markdown without HTML.
        mistakes: what could not be read.
    """

    purpose: str | None = None
    task: str | None = None
    language: tuple[str, ...] = ()
    notes: str | None = None
    examples: tuple[Example, ...] = ()
    text: str = ""
    mistakes: tuple[str, ...] = ()


def read_readme(registry: "Registry", version: "Version", manifest: "Manifest") -> Readme:
    """A version's README; an empty one where it has none.

    Raises:
        Corrupt: what is stored was changed.
    """
    file = next((file for file in manifest.files if file.path == FILE), None)
    if file is None:
        return Readme()
    if file.size > MOST_BYTES:
        return Readme(mistakes=(f"{FILE} is longer than {MOST_BYTES >> 10} KiB, and is not shown.",))
    return parse_readme(b"".join(registry.stream(version, file)))


def parse_readme(data: bytes) -> Readme:
    """A README's bytes taken apart; never fails."""
    header, text = front_matter.split(data.decode(errors="replace"))
    text = without_html(text).strip()
    if header is None:
        return Readme(text=text)
    try:
        fields = front_matter.load(header)
    except ValueError as error:
        return Readme(text=text, mistakes=(f"The front matter of {FILE} {error}; it is left out.",))
    mistakes: list[str] = []
    task = "task" if "task" in fields else "pipeline_tag"  # the latter is what a Hub's cards call it
    return Readme(
        purpose=_text(fields, "purpose", MOST_PURPOSE, mistakes),
        task=_text(fields, task, MOST_WORD, mistakes),
        language=_words(fields, "language", mistakes),
        notes=_text(fields, "notes", MOST_PURPOSE, mistakes),
        examples=_examples(fields, mistakes),
        text=text,
        mistakes=tuple(mistakes),
    )


def _text(fields: dict[str, Any], name: str, most: int, mistakes: list[str]) -> str | None:
    value = fields.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > most:
        mistakes.append(f"{name} in {FILE} must be a text of at most {most} characters; it is left out.")
        return None
    return " ".join(without_html(value).split()) or None


def _words(fields: dict[str, Any], name: str, mistakes: list[str]) -> tuple[str, ...]:
    value = fields.get(name) or []
    words = [value] if isinstance(value, str) else value
    good = isinstance(words, list) and len(words) <= MOST_LANGUAGES
    if not good or not all(isinstance(word, str) and 0 < len(word) <= MOST_WORD for word in words):
        mistakes.append(f"{name} in {FILE} must be a word or a list of at most {MOST_LANGUAGES}; it is left out.")
        return ()
    return tuple(words)


def _examples(fields: dict[str, Any], mistakes: list[str]) -> tuple[Example, ...]:
    value = fields.get("examples") or []
    if not isinstance(value, list) or len(value) > MOST_EXAMPLES:
        mistakes.append(f"examples in {FILE} must be a list of at most {MOST_EXAMPLES}; they are left out.")
        return ()
    found = []
    for number, each in enumerate(value, 1):
        if (
            isinstance(each, dict)
            and set(each) == {"prompt", "output"}
            and all(isinstance(text, str) and len(text) <= MOST_EXAMPLE for text in each.values())
        ):
            found.append(Example(each["prompt"], each["output"]))
        else:
            mistakes.append(
                f"Example {number} in {FILE} must have a prompt and an output of at most {MOST_EXAMPLE} characters, "
                "and nothing else; it is left out."
            )
    return tuple(found)
