"""The index of a bundle: which versions of which names are in it, and what others made about them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints

from swapmeet_registry.backend import KEY_ID, MAX_SIGNERS
from swapmeet_registry.errors import Refused
from swapmeet_registry.head import Head, Record
from swapmeet_registry.manifest import Sha256
from swapmeet_registry.names import AdapterName
from swapmeet_registry.origin.provenance import Digest, Document
from swapmeet_registry.upkeep.head_mistakes import mistakes
from swapmeet_registry.version import Version

KeyId = Annotated[str, StringConstraints(pattern=rf"^{KEY_ID.pattern}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True, validate_by_name=True)


class Noted(_Entry):
    """The SHA-256 of a version's signatures, by their keys' ids, and of the report on its weights."""

    signatures: dict[KeyId, Sha256] = Field(default_factory=dict, max_length=MAX_SIGNERS)
    report: Sha256 | None = None


class Part(_Entry):
    """A name's head, as a whole or with some versions only; those that are not deleted are here.

    Attributes:
        head: the name's, or as much of it as the versions that are here need.
        whole: whether all of it is here.
        notes: about versions, by their digests.
    """

    head: Head
    whole: bool
    notes: dict[Digest, Noted] = Field(default_factory=dict, exclude_if=lambda notes: not notes)

    def records(self) -> list[Record]:
        """The versions that are here."""
        return [record for record in self.head.versions if record.deleted is None]

    def versions(self) -> list[Version]:
        """The same."""
        return [Version.of(self.head, record) for record in self.records()]


class Index(Document):
    """What a bundle has: its parts, sorted by name."""

    schema_: Literal["swapmeet.bundle/1"] = Field("swapmeet.bundle/1", alias="schema")
    parts: Annotated[tuple[Part, ...], FailFast()] = Field(min_length=1)

    def require_consistent(self, what: str) -> None:
        """Compare what the index says with itself; `what` names it.

        Raises:
            InvalidName: a name is none.
            Refused: it contradicts itself.
        """
        if len({part.head.adapter for part in self.parts}) < len(self.parts):
            raise Refused(f"{what} names an adapter twice. Do not trust it.")
        for part in self.parts:
            name = AdapterName.parse(part.head.adapter)
            if mistake := next(mistakes(part.head), None) if part.whole else None:
                raise Refused(f"{what} contradicts itself about {name}: {mistake} Do not trust it.")
            if part.notes.keys() - {record.digest for record in part.records()}:
                raise Refused(f"{what} notes something about versions of {name} that are not in it. Do not trust it.")
