"""What an adapter comes from: the adapters that its training went on from, up to the base."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from swapmeet_registry.errors import Corrupt, InvalidName, NotFound, Refused
from swapmeet_registry.heads import Heads
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.names import Reference
from swapmeet_registry.version import Version

MOST = 1000
"""So many generations are followed."""
UNAVAILABLE = "not available: it is not there, or may not be read"


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A generation of an adapter.

    Attributes:
        ref: as its child names it, `TENANT/NAME@sha256:HEX`.
        version: which version that is, where it is there and may be read.
        manifest: its manifest, if it is still there.
        problem: why there is no version or no manifest, or that it was withdrawn and why.
    """

    ref: str
    version: Version | None = None
    manifest: Manifest | None = None
    problem: str | None = None


def ancestors(
    heads: Heads, read: Callable[[Version], Manifest], child: Manifest, reader: str | None, most: int = MOST
) -> Iterator[Ancestor]:
    """A version's parent, its parent, and so on, as far as they can be read.

    There is no way in a circle: a version's digest is over the name of its parent's digest. A parent that is named by
    anything else, which could mean the child itself, is not followed.

    Args:
        heads: of the registry.
        read: gives a version's manifest.
        child: the version's own manifest.
        reader: the tenant who asks. What he may not see looks as what is missing. None sees all.
        most: generations that are followed.
    """
    parent = child.parent
    for _ in range(most):
        if parent is None:
            return
        found = _ancestor(heads, read, parent, reader)
        yield found
        parent = found.manifest.parent if found.manifest else None
    if parent is not None:
        yield Ancestor(parent, problem=f"there are more than {most} generations, which are not followed")


def _ancestor(heads: Heads, read: Callable[[Version], Manifest], ref: str, reader: str | None) -> Ancestor:
    try:
        reference = Reference.parse(ref)
        if reference.digest is None:
            return Ancestor(ref, problem="not the digest of a version")
        head = heads.get(reference.name)
        if reader is not None and not head.visible_to(reader):
            return Ancestor(ref, problem=UNAVAILABLE)
        version = Version.of(head, head.find(reference))
    except InvalidName:
        return Ancestor(ref, problem="not the name of a version")
    except NotFound:
        return Ancestor(ref, problem=UNAVAILABLE if reader is not None else "missing")
    try:
        return Ancestor(ref, version, read(version), _withdrawn(version))
    except Corrupt:
        return Ancestor(ref, version, problem=_withdrawn(version) or "its manifest is gone or was changed")
    except Refused:
        return Ancestor(ref, version, problem=_withdrawn(version) or "its manifest is one of another Swapmeet's")


def _withdrawn(version: Version) -> str | None:
    for how, why in (("deleted", version.deleted), ("recalled", version.recalled), ("yanked", version.yank_reason)):
        if why is not None:
            return f"{how}: {why}"
    return None


def lines(version: Version, manifest: Manifest, parents: tuple[Ancestor, ...]) -> list[str]:
    """A lineage for people: the version, its parents and at last the base, each further in than its child."""
    rows = [f"{version} {version.digest}", *(each for each in _origin(manifest))]
    for depth, each in enumerate(parents, 1):
        inset = "  " * depth
        name = f"{each.version} {each.version.digest}" if each.version else each.ref
        rows.append(f"{inset}from {name}{f' ({each.problem})' if each.problem else ''}")
        rows += [inset + row for row in (_origin(each.manifest) if each.manifest else ())]
    inset = "  " * (len(parents) + 1)
    return [*rows, f"{inset}on the base {manifest.base.name}, weights {manifest.base.weights}"]


def _origin(manifest: Manifest) -> Iterator[str]:
    """What else is known of how a version came to be."""
    known = {"run": manifest.run, "data": manifest.dataset, "code": manifest.code}
    known["Swapmeet"] = manifest.packages.get("swapmeet")
    yield from (f"    {name} {value}" for name, value in known.items() if value)
