"""What stands in a store about recalls: notices of them, and what servers say that they did."""

from typing import Literal, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from swapmeet_registry.errors import NotFound, Recalled, RegistryError
from swapmeet_registry.manifest import Timestamp
from swapmeet_registry.origin.provenance import Digest, Document


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Notice(_Entry):
    """A version that must not be served any more; `number` grows by one with each notice."""

    number: int = Field(ge=1)
    name: str
    version: int = Field(ge=1)
    digest: Digest
    how: Literal["recalled", "deleted"]
    reason: str
    at: Timestamp

    @property
    def pinned(self) -> str:
        """`TENANT/NAME@sha256:HEX`."""
        return f"{self.name}@{self.digest}"

    def error(self) -> RegistryError:
        """What is said to whoever asks for the version."""
        what = f"{self.name}:{self.version}"
        if self.how == "deleted":
            return NotFound(f"{what} was deleted: {self.reason}. Use another version.")
        return Recalled(f"{what} was recalled and must not be used: {self.reason}. Use another version.")


class Feed(Document):
    """The last notices of each kind, oldest first.

    Attributes:
        id: made with the first notice: numbers of one feed say nothing of another.
        forgotten: the number of the newest notice that is not among them any more.
    """

    schema_: Literal["swapmeet.recalls/1"] = Field("swapmeet.recalls/1", alias="schema")
    id: str = ""
    notices: tuple[Notice, ...] = ()
    forgotten: int = Field(0, ge=0)

    @property
    def last(self) -> int:
        """The newest notice's number; 0 where there was none yet."""
        return self.notices[-1].number if self.notices else 0

    def grown(self, notice: Notice, kept: int) -> Self:
        """With one more, and of its kind no more than so many."""
        same = [each.number for each in self.notices if each.how == notice.how]
        gone = same[: max(0, len(same) + 1 - kept)]
        notices = (*(each for each in self.notices if each.number not in gone), notice)
        forgotten = max([self.forgotten, *gone])
        return self.model_copy(update={"id": self.id or uuid4().hex, "notices": notices, "forgotten": forgotten})


class Obeyed(_Entry):
    """What a server did about one version.

    Attributes:
        digest: of the version.
        at: when it was done.
        held: whether the server had it in memory or on disk.
        ended: how many requests under way it ended.
        tenants: who had used it on this server, since it started.
    """

    digest: Digest
    at: Timestamp
    held: bool
    ended: int = Field(ge=0)
    tenants: tuple[str, ...] = ()


class ServerWord(Document):
    """What a server says of itself: where it runs, since when, how far it followed which feed, what it did."""

    schema_: Literal["swapmeet.server/1"] = Field("swapmeet.server/1", alias="schema")
    server: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")
    host: str
    process: int
    base: str
    since: Timestamp
    feed: str = ""
    notice: int = Field(0, ge=0)
    obeyed: tuple[Obeyed, ...] = ()
