"""What a training run knows about its adapter: the file `swapmeet.json` in the adapter's folder."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, FiniteFloat, JsonValue, StringConstraints, ValidationError

from swapmeet_registry import canonical
from swapmeet_registry.errors import Refused
from swapmeet_registry.fingerprint import Fingerprint

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MOST_ERRORS = 10_000
"""Mistakes in a document that are looked at: each takes a kilobyte, and megabytes of nonsense have a million."""
Said = Annotated[str, StringConstraints(max_length=4000)]
MOST_ANSWERS = 10


class Document(BaseModel):
    """A JSON document with a `schema` key, written canonically."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True, validate_by_name=True)

    def encode(self) -> bytes:
        """The canonical bytes.

        Raises:
            Refused: a value has no place in JSON.
        """
        try:
            return canonical.encode(self.model_dump(mode="json"))
        except ValueError as error:
            raise Refused(f"The adapter's provenance can not be written as JSON ({error}).") from error

    @classmethod
    def build(cls, **fields: Any) -> Self:
        """A document from its fields.

        Raises:
            Refused: a field is wrong; the message names it.
        """
        return cls._checked(fields, f"The adapter's {cls.__name__.lower()}")

    @classmethod
    def decode(cls, data: bytes, what: str) -> Self:
        """Read a document; `what` names it in errors.

        Raises:
            Refused: it is not JSON, of an unknown schema, or has a wrong field.
        """
        try:
            value = canonical.decode(data)
        except ValueError as error:
            raise Refused(f"{what} is {error}.") from error
        known = cls.model_fields["schema_"].default
        if value.get("schema") != known:
            raise Refused(
                f"{what} has the schema {value.get('schema')!r}, and this version of Swapmeet reads {known!r}. "
                "Use the version that wrote it, or a newer one."
            )
        return cls._checked(value, what)

    @classmethod
    def _checked(cls, fields: dict[str, Any], what: str) -> Self:
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise Refused(f"{what}: {first_error(error)}") from error


class Answer(BaseModel):
    """What an adapter answered to a prompt.

    Attributes:
        prompt: a user's words alone, or all turns, each after its role; or a text to go on from.
        output: the answer as text, without special tokens.
        ended: by itself, or at the limit of tokens or of time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Said
    output: Said
    ended: Literal["stop", "length", "time"] = "stop"


class Examples(BaseModel):
    """What a run's adapter answered, at the run's end, to held-out prompts; and what makes it answer so again.

    Attributes:
        base: the weights digest of the NF4 base that it answered on.
        data: SHA-256 of the file that the prompts are from: the validation file, `sha256:HEX`.
        seed: the run's; decoding itself has none.
        max_tokens: where an answer was cut off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Digest
    data: Digest
    decoding: Literal["greedy"] = "greedy"
    seed: int
    max_tokens: int = Field(ge=1)
    answers: tuple[Answer, ...] = Field(min_length=1, max_length=MOST_ANSWERS)


class Facts(Document):
    """What provenance and manifest both say: the base, and how the adapter came to be."""

    base: Fingerprint
    training: dict[str, JsonValue] = {}
    dataset: Digest | None = None
    metrics: dict[str, FiniteFloat] = {}
    packages: dict[str, str] = {}
    license: str | None = None
    tags: Annotated[tuple[Tag, ...], FailFast()] = ()
    # What came later is left out where it is not known: as older documents, and their digests, have it.
    run: str | None = Field(None, exclude_if=lambda run: run is None)
    parent: str | None = Field(None, exclude_if=lambda parent: parent is None)
    code: Digest | None = Field(None, exclude_if=lambda code: code is None)
    base_license: str | None = Field(None, exclude_if=lambda name: name is None)
    dataset_license: str | None = Field(None, exclude_if=lambda name: name is None)
    examples: Examples | None = Field(None, exclude_if=lambda examples: examples is None)

    def facts(self) -> dict[str, Any]:
        """These fields only, to build another document from."""
        return {name: getattr(self, name) for name in Facts.model_fields}


class Provenance(Facts):
    """A training run's account of its adapter.

    Attributes:
        base: the base that the adapter was trained on.
        training: the training configuration as run.
        dataset: SHA-256 of the training file or files, `sha256:HEX`.
        metrics: final metrics by name.
        packages: installed versions by package name.
        license: an SPDX identifier or a licence's name.
        tags: free words to search by.
        run: what made it, such as the id of a fine-tuning job.
        parent: `TENANT/NAME@sha256:HEX` of the version that training went on from.
        code: `code_digest` of the packages that trained it.
        base_license: the base's licence, as it was known.
        dataset_license: the training data's licence, as whoever trained says.
        examples: answers to held-out prompts, where whoever trained lets all who may read the adapter see them.
    """

    FILE: ClassVar[str] = "swapmeet.json"

    schema_: Literal["swapmeet.provenance/1"] = Field("swapmeet.provenance/1", alias="schema")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The folder's provenance, or None where it has none.

        Raises:
            Refused: the file is not sound.
        """
        path = folder / cls.FILE
        return cls.decode(path.read_bytes(), str(path)) if path.is_file() else None

    def write(self, folder: Path) -> None:
        """Write the folder's provenance.

        Raises:
            Refused: a value has no place in JSON.
        """
        (folder / self.FILE).write_bytes(self.encode())


def code_digest(*packages: str) -> str:
    """`sha256:HEX` over the Python files of installed packages: one line `SHA-256  PACKAGE/PATH` each, sorted."""
    from importlib.resources import files  # takes longer to import than all that is here

    lines = [line for package in packages for line in _python_files(files(package), package)]
    return canonical.digest("".join(sorted(lines)).encode())


def _python_files(folder: "Traversable", path: str) -> Iterator[str]:
    for each in folder.iterdir():
        if each.is_dir():
            yield from _python_files(each, f"{path}/{each.name}")
        elif each.name.endswith(".py"):
            yield f"{hashlib.sha256(each.read_bytes()).hexdigest()}  {path}/{each.name}\n"


def first_error(error: ValidationError) -> str:
    """Pydantic's first complaint as one sentence."""
    if error.error_count() > MOST_ERRORS:
        return f"{error.error_count()} values in it are wrong."
    found = error.errors(include_url=False)
    place = ".".join(map(shown, found[0]["loc"])) or "the document"
    more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
    return f"{place}: {found[0]['msg'][:1].lower()}{found[0]['msg'][1:]}{more}."


def shown(part: str | int) -> str:
    """A key for a message: as it is, unless it holds what a terminal or an encoding would stumble over."""
    text = str(part)[:200]
    return text if text.isascii() and text.isprintable() else ascii(text)
