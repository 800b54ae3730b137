"""Copy adapters from one registry to another, of any kind: the same versions under the same numbers and digests.

Versions go over in order, each as a publish, and then what their heads say besides: aliases with their history, who
withdrew what and why, who may read. Signatures and reports come with their versions; signatures that are made later
follow. Whoever is killed leaves what he copied, and the next goes on from there; once all is there, nothing is written.
What was changed in the target on its own is never overwritten: its name is refused.

Each version is admitted as if it were pushed, for the source may be anybody's. One that is refused keeps its number in
the target, where it is deleted and has the reason; the others are copied.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from swapmeet_registry.backend import Backend, Source
from swapmeet_registry.copies.copier import Copier
from swapmeet_registry.copies.notes import copy_signatures
from swapmeet_registry.errors import InvalidName, NotFound, RegistryError, StoreError
from swapmeet_registry.names import AdapterName

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Mirrored:
    """How many names were looked at, and versions and bytes copied; and what was not, each with why.

    Attributes:
        refused: names that were left as they are, or as far as they came.
        unsound: versions that could not have been published; in the target they are deleted from the first.
    """

    names: int
    versions: int
    bytes: int
    refused: dict[str, str]
    unsound: dict[str, str] = field(default_factory=dict)


def mirror(
    source: Source, target: Backend, names: Iterable[str] | None = None, tell: Tell = lambda _: None
) -> Mirrored:
    """Bring a target to where a source is.

    Args:
        source: what to copy.
        target: what then has the same.
        names: which adapters, `TENANT/NAME`; all if None.
        tell: is told of each name that was changed.

    Raises:
        InvalidName: a name is misspelt.
        NotFound: a name is not in the source.
        StoreError: one of the two can not be read or written; what was copied stays.
    """
    copier, refused = Copier(source, target), dict[str, str]()
    chosen = []
    for each in source.names() if names is None else dict.fromkeys(names):
        try:
            chosen.append(AdapterName.parse(each))
        except InvalidName as error:
            if names is not None:
                raise
            refused[each] = str(error)  # what lies in the source by mistake keeps nothing else from being copied
    if names is not None and (missing := [str(name) for name in chosen if source.head(name) is None]):
        raise NotFound(f"{source.url} has no {', '.join(missing)}. Check the names.")
    for name in chosen:
        before = copier.versions
        try:
            changed = copier.follow(name)
        except StoreError:
            raise
        except RegistryError as error:
            refused[str(name)] = str(error)
            continue
        if changed:
            tell(f"{name}: {copier.versions - before} versions copied")
    copy_signatures(source, target, chosen)
    return Mirrored(len(chosen), copier.versions, copier.bytes, refused, copier.unsound)
