"""What a check of a registry found."""

from dataclasses import dataclass, field

MOST = 1000
"""Problems that are kept; more are counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, in a sentence or two with what to do, and whether it was mended."""

    what: str
    mended: bool = False


@dataclass(slots=True)
class Findings:
    """What a check found.

    Attributes:
        heads: names that were looked at.
        versions: that must be there; deleted ones need not.
        files: of these versions, each once.
        bytes: theirs together.
        orphans: objects that no version needs, which a collection of garbage removes.
        orphan_bytes: theirs together.
        headless: names without a head of which manifests are left: of a first publish that was killed, or of a head
            that was lost, which must be restored before garbage is collected.
        intents: of publishers that were killed more than a day ago; a collection removes them, too.
        partials: files that writers left half written more than a day ago.
        problems: the first of them.
        count: how many problems there are in all.
        mended: how many of them were mended.
    """

    heads: int = 0
    versions: int = 0
    files: int = 0
    bytes: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    headless: list[str] = field(default_factory=list)
    intents: int = 0
    partials: int = 0
    problems: list[Problem] = field(default_factory=list)
    count: int = 0
    mended: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong that was not mended."""
        return self.count == self.mended

    def add(self, what: str, mended: bool = False) -> None:
        """Another problem."""
        self.count += 1
        self.mended += mended
        if len(self.problems) < MOST:
            self.problems.append(Problem(what, mended))
