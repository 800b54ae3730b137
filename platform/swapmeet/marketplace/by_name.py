"""What is on the market in the order of names, page by page, out of the index."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, or_, select

from swapmeet_registry.index.finding import readable
from swapmeet_registry.index.tables import ADAPTERS, TAGS, VERSIONS, folded


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which names: of one owner, with all of the words in them, and of which the newest version has all of the rest.

    Attributes:
        bases: digests of the base's weights, or tags `base:…`.
        licences: in small letters or not, or tags `license:…`.
        after: only names behind this.
        limit: most of them.
    """

    owner: str | None = None
    words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    after: str = ""
    limit: int = 100

    @property
    def possible(self) -> bool:
        """Whether any name could be meant; a database does not even take each text."""
        texts = (self.owner or "", self.after, *self.words)
        return all(text.isascii() and text.isprintable() for text in texts) and all(
            len(tag) <= 1000 and "\0" not in tag and tag.isprintable()
            for tag in (*self.tags, *self.bases, *self.licences)
        )


def names(connection: Connection, reader: str | None, wanted: Wanted) -> list[str]:
    """Names that a reader may know of, of adapters with a usable version; None may know of all."""
    if not wanted.possible:
        return []
    statement = select(ADAPTERS.c.name).join(VERSIONS, VERSIONS.c.adapter == ADAPTERS.c.id)
    statement = statement.where(VERSIONS.c.newest == 1, ADAPTERS.c.name > wanted.after, readable(reader))
    if wanted.owner is not None:
        statement = statement.where(VERSIONS.c.tenant == wanted.owner)
    for word in wanted.words:
        statement = statement.where(ADAPTERS.c.name.contains(word, autoescape=True))
    for tag in wanted.tags:
        statement = statement.where(_tagged(tag))
    for base in wanted.bases:
        statement = statement.where(or_(VERSIONS.c.weights == base, _tagged(f"base:{base}")))
    for licence in wanted.licences:
        statement = statement.where(or_(VERSIONS.c.license_key == folded(licence), _tagged(f"license:{licence}")))
    return list(connection.scalars(statement.order_by(ADAPTERS.c.name).limit(wanted.limit)))


def _tagged(tag: str) -> ColumnElement[bool]:
    return VERSIONS.c.id.in_(select(TAGS.c.id).where(TAGS.c.tag == folded(tag)))
