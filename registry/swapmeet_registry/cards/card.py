"""Everything that is told of one version on one page."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from swapmeet_registry.cards.readme import Readme, read_readme
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.version import Listing, Version

if TYPE_CHECKING:
    from swapmeet_registry.registry import Registry

NOTED = 20
"""Of so many of the newest versions the notes are shown."""


@dataclass(frozen=True, slots=True)
class Note:
    """A version in the list of all: its number, when it was made, what its author says of it, why it was withdrawn."""

    version: int
    created_at: str
    notes: str | None = None
    withdrawn: str | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """One version's page.

    Attributes:
        version: which one it is about.
        readme: its author's words.
        versions: all that are there, newest first.
        more: headings and their facts that others add, such as who signed the version or what its weights look like.
    """

    version: Version
    manifest: Manifest
    readme: Readme
    aliases: tuple[str, ...]
    versions: tuple[Note, ...]
    visibility: str = "private"
    more: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, registry: "Registry", version: Version, listing: Listing, more: dict[str, dict[str, Any]]) -> Self:
        """A version's card, from what the registry has.

        Raises:
            Corrupt: what is stored was changed.
        """
        manifest = registry.manifest(version)
        shown = [each for each in reversed(listing.versions) if each.deleted is None]
        return cls(
            version=version,
            manifest=manifest,
            readme=read_readme(registry, version, manifest),
            aliases=tuple(sorted(name for name, number in listing.aliases.items() if number == version.version)),
            versions=tuple(_note(registry, each, read=place < NOTED) for place, each in enumerate(shown)),
            visibility=listing.visibility,
            more=more,
        )

    def as_json(self) -> dict[str, Any]:
        """The card as a JSON object."""
        manifest, readme, lora = self.manifest, self.readme, self.manifest.lora
        return {
            "name": self.version.name,
            "version": self.version.version,
            "digest": self.version.digest,
            "created_at": self.version.created_at,
            "aliases": list(self.aliases),
            "visibility": self.visibility,
            "purpose": readme.purpose,
            "task": readme.task,
            "language": list(readme.language),
            "license": manifest.license,
            "tags": list(manifest.tags),
            "base": manifest.base.model_dump(mode="json"),
            "lora": lora.model_dump(mode="json"),
            "size": manifest.size,
            "files": [file.model_dump(mode="json") for file in manifest.files],
            "dataset": manifest.dataset,
            "training": manifest.training,
            "metrics": manifest.metrics,
            "parent": manifest.parent,
            "run": manifest.run,
            "examples": [{"prompt": each.prompt, "output": each.output} for each in readme.examples],
            "text": readme.text,
            "versions": [
                {"version": n.version, "created_at": n.created_at, "notes": n.notes, "withdrawn": n.withdrawn}
                for n in self.versions
            ],
            "mistakes": list(readme.mistakes),
            **self.more,
        }


def _note(registry: "Registry", version: Version, *, read: bool) -> Note:
    withdrawn = version.recalled or version.yank_reason
    notes = None
    if read and version.usable:
        notes = read_readme(registry, version, registry.manifest(version)).notes
    return Note(version.version, version.created_at, notes, withdrawn)
