"""What a target's head becomes when it follows a source's: pure, and all that decides whether it may."""

from typing import Any

from swapmeet_registry.errors import Conflict
from swapmeet_registry.head import KEPT_MOVES, Head, Record

MOVING = ("aliases", "history", "forgotten", "visibility", "shared_with")
"""What of a head changes without a new version."""


def following(held: Head, source: Head, count: int) -> Head:
    """A target's head with what it lacks of the source's first versions, and with all of them, of the rest, too.

    What was withdrawn in the target stays so.

    Raises:
        Conflict: the target has something that the source has not.
    """
    name = source.adapter
    for mine, theirs in zip(held.versions, source.versions, strict=False):
        if mine.digest != theirs.digest:
            raise Conflict(
                f"The target has another {name}:{mine.version}: {mine.digest}, where the source has {theirs.digest}. "
                "Mirror into a registry of its own, or publish under another name."
            )
    if len(held.versions) > len(source.versions):
        raise Conflict(
            f"The target has {name}:{len(held.versions)}, and the source only {len(source.versions)} versions. "
            "Mirror the other way round, or into a registry of its own."
        )
    if not _goes_on(held, source):
        raise Conflict(f"Aliases of {name} were moved in the target. Mirror into a registry of its own.")
    pairs = zip(held.versions, source.versions, strict=False)
    versions = [_withdrawn(mine, theirs) for mine, theirs in pairs]
    versions += source.versions[len(versions) : count]
    changes: dict[str, Any] = {"versions": tuple(versions)}
    if len(versions) == len(source.versions):
        changes |= {field: getattr(source, field) for field in MOVING}
    return held.model_copy(update=changes)


def _goes_on(held: Head, source: Head) -> bool:
    """Whether a head's aliases were moved as the source's were; of what the source forgot nothing can be said."""
    if not source.forgotten:
        return held.history == source.history[: len(held.history)]
    moves, of_source = held.forgotten + len(held.history), source.forgotten + len(source.history)
    return moves <= of_source - KEPT_MOVES or (moves <= of_source and held.history[-1] in source.history)


def _withdrawn(mine: Record, theirs: Record) -> Record:
    """The source's record, with what was withdrawn in the target only."""
    kept = {
        how: getattr(mine, how)
        for how in ("yanked", "recalled", "deleted")
        if getattr(mine, how) is not None and getattr(theirs, how) is None
    }
    return theirs.model_copy(update=kept | {"withdrawn_at": mine.withdrawn_at}) if kept else theirs
