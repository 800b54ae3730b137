"""Everything that is told of one version on one page."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from swapmeet_registry.admission import advice
from swapmeet_registry.cards.readme import Readme, read_readme
from swapmeet_registry.cards.visible import all_visible
from swapmeet_registry.errors import Corrupt, NotFound, Refused
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.origin.licences import concerns_of
from swapmeet_registry.origin.lineage import Ancestor
from swapmeet_registry.origin.provenance import Examples
from swapmeet_registry.store_backend import StoreBackend
from swapmeet_registry.version import Listing, Version

if TYPE_CHECKING:
    from swapmeet_registry.registry import Registry

NOTED = 20
"""Of so many of the newest versions the notes are shown."""
GENERATIONS = 20
"""So many ancestors are shown."""


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
        more: headings and their facts that others add, such as who signed the version.
        newer: the newest version, if that is not this one.
        parents: the adapters that training went on from, the last first.
        concerns: where base or data restrict more than the licence says.
        advice: what the weights look like, for somebody to judge.
        examples: what the adapter answered at the end of its training.
        own: these are shown to the adapter's owner only.
    """

    version: Version
    manifest: Manifest
    readme: Readme
    aliases: tuple[str, ...]
    versions: tuple[Note, ...]
    visibility: str = "private"
    more: dict[str, dict[str, Any]] = field(default_factory=dict)
    newer: Version | None = None
    parents: tuple[Ancestor, ...] = ()
    concerns: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    examples: Examples | None = None
    own: bool = False

    @classmethod
    def of(
        cls,
        registry: "Registry",
        version: Version,
        listing: Listing,
        more: dict[str, dict[str, Any]],
        *,
        reader: str | None = None,
        examples: Examples | None = None,
    ) -> Self:
        """A version's card, from what the registry has.

        Args:
            registry: where it is.
            version: which; it may have been withdrawn.
            listing: of its name.
            more: headings and facts to add.
            reader: the tenant who asks: ancestors that he may not see look as if they were missing. None sees all.
            examples: those that only the owner sees, where he asks and the version has none for all.

        Raises:
            Corrupt: what is stored was changed.
            NotFound: the version was deleted, and is gone.
        """
        try:
            manifest = registry.manifest(version)
            readme = read_readme(registry, version, manifest)
        except Corrupt as error:
            if version.deleted is None:
                raise
            raise NotFound(f"{version} was deleted: {version.deleted} Name another version.") from error
        shown = [each for each in reversed(listing.versions) if each.deleted is None]
        newest = next((each for each in shown if each.usable), None)
        parents = registry.lineage(version, reader, most=GENERATIONS)
        return cls(
            version=version,
            manifest=manifest,
            readme=readme,
            aliases=tuple(sorted(name for name, number in listing.aliases.items() if number == version.version)),
            versions=tuple(_note(registry, each, read=place < NOTED) for place, each in enumerate(shown)),
            visibility=listing.visibility,
            more=more,
            newer=newest if newest is not None and newest.version > version.version else None,
            parents=parents,
            concerns=concerns_of(manifest, parents[0].manifest if parents else None),
            advice=_advice(registry, version),
            examples=manifest.examples or examples,
            own=manifest.examples is None and examples is not None,
        )

    @property
    def withdrawn(self) -> str | None:
        """How and why the version was withdrawn."""
        version = self.version
        for how, why in (
            ("deleted", version.deleted),
            ("recalled", version.recalled),
            ("yanked", version.yank_reason or ("no reason was given" if version.yanked else None)),
        ):
            if why is not None:
                return f"{how}: {why}"
        return None

    def as_json(self) -> dict[str, Any]:
        """The card as a JSON object; its texts have no characters that do what is not seen."""
        manifest, readme = self.manifest, self.readme
        told: dict[str, Any] = {
            "name": self.version.name,
            "version": self.version.version,
            "digest": self.version.digest,
            "created_at": self.version.created_at,
            "withdrawn": self.withdrawn,
            "newer": self.newer.version if self.newer else None,
            "aliases": list(self.aliases),
            "visibility": self.visibility,
            "purpose": readme.purpose,
            "task": readme.task,
            "language": list(readme.language),
            "license": manifest.license,
            "base_license": manifest.base_license,
            "dataset_license": manifest.dataset_license,
            "licence_concerns": list(self.concerns),
            "tags": list(manifest.tags),
            "base": manifest.base.model_dump(mode="json"),
            "lora": manifest.lora.model_dump(mode="json"),
            "size": manifest.size,
            "files": [file.model_dump(mode="json") for file in manifest.files],
            "dataset": manifest.dataset,
            "training": manifest.training,
            "metrics": manifest.metrics,
            "parent": manifest.parent,
            "parents": [_ancestor(each) for each in self.parents],
            "run": manifest.run,
            "advice": list(self.advice),
            "examples": self._examples(),
            "text": readme.text,
            "versions": [
                {"version": n.version, "created_at": n.created_at, "notes": n.notes, "withdrawn": n.withdrawn}
                for n in self.versions
            ],
            "mistakes": list(readme.mistakes),
            **self.more,
        }
        clean: dict[str, Any] = all_visible(told)
        return clean

    def _examples(self) -> dict[str, Any]:
        """Examples by where they are from, for nobody to take the author's for the run's."""
        stated = [{"prompt": each.prompt, "output": each.output} for each in self.readme.examples]
        made = self.examples.model_dump(mode="json") | {"for_owner_only": self.own} if self.examples else None
        return {"run": made, "author": stated}


def _note(registry: "Registry", version: Version, *, read: bool) -> Note:
    withdrawn = version.recalled or version.yank_reason
    notes = None
    if read and version.usable:
        try:
            notes = read_readme(registry, version, registry.manifest(version)).notes
        except Corrupt:
            notes = "its files are gone or were changed"
    return Note(version.version, version.created_at, notes, withdrawn)


def _advice(registry: "Registry", version: Version) -> tuple[str, ...]:
    """What is said of the weights, where that is kept and need not be computed from files far away."""
    if not isinstance(registry.backend, StoreBackend):
        return ()
    try:
        report = registry.report(version)
    except (Corrupt, Refused):
        return ("The weights can not be looked at: they are gone or were changed.",)
    return tuple(advice.lines(report)) if report else ()


def _ancestor(found: Ancestor) -> dict[str, Any]:
    return {"ref": found.ref, "version": found.version.version if found.version else None, "problem": found.problem}
