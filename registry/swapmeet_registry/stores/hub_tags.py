"""The tags of an adapter's versions: `v3` is the commit that version 3 was published with.

A publisher may die between commit and tag, so tags that are missing are set later, by the digests in commits' messages.
"""

from collections.abc import Mapping

from swapmeet_registry.errors import Corrupt
from swapmeet_registry.head import Head, Record
from swapmeet_registry.stores.hub_files import BRANCH
from swapmeet_registry.stores.hub_repository import HubRepository, overtaken
from swapmeet_registry.version import Version


def require_room(repository: HubRepository, head: Head, parent: str) -> None:
    """Refuse where tags say that there were more versions than the head knew; set those that are missing."""
    tip, tags = repository.refs()
    if tip != parent:
        raise overtaken(repository.name)
    new = head.versions[-1].version
    ahead = sorted(int(tag[1:]) for tag in tags if tag[:1] == "v" and tag[1:].isdecimal() and int(tag[1:]) >= new)
    if ahead:
        raise Corrupt(
            f"{repository.name} has the tag v{ahead[0]}, and its branch {BRANCH} knows of {new - 1} versions only: "
            "somebody moved the branch back, or made the tag. Put the branch right, or delete the tag."
        )
    set_tags(repository, head.versions[:-1], tags)


def set_tags(repository: HubRepository, versions: tuple[Record, ...], known: Mapping[str, str]) -> None:
    """Tag the commits of versions that have no tag yet."""
    missing = {record.digest: record.version for record in versions if f"v{record.version}" not in known}
    for commit in repository.commits() if missing else ():
        number = missing.pop(commit["message"].partition("\n")[0], None)
        if number is not None:
            repository.tag(f"v{number}", commit["id"])
        if not missing:
            return


def revision(repository: HubRepository, version: Version) -> str:
    """Where a version is: at its tag, or on the branch where its publisher died before the tag and was the last."""
    tag = f"v{version.version}"
    return tag if tag in repository.refs()[1] else BRANCH
