"""The card of a version that is signed after it was published: it names the new key."""

import hashlib
from collections.abc import Collection

from swapmeet_registry import canonical
from swapmeet_registry.errors import RegistryError
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.stores import hub_layout as layout
from swapmeet_registry.stores.hub_card import card
from swapmeet_registry.stores.hub_files import HubFiles
from swapmeet_registry.version import Version


def signed_card(
    repository: HubFiles, version: Version, commit: str, files: Collection[str], key: str
) -> dict[str, bytes]:
    """The branch's card as it is once a key has signed too; nothing where it is not ours to write.

    That is where the branch has another version's files by now, or a card that somebody wrote himself.

    Args:
        repository: the version's.
        version: what is signed.
        commit: where the branch is.
        files: paths of what the commit has.
        key: the id of the key that signs.
    """

    def read(path: str) -> bytes | None:
        found = repository.get(commit, path) if path in files else None
        return found.data if found else None

    stored, config, shown = read(layout.MANIFEST), read(layout.CONFIG), read(layout.CARD)
    if stored is None or config is None or canonical.digest(stored) != version.digest:
        return {}
    known = layout.signers_in(files, version.digest)
    try:
        manifest, own = Manifest.decode(stored, "it"), read(layout.OWN_README)
        if hashlib.sha256(config).hexdigest() not in {file.sha256 for file in manifest.files}:  # somebody's edit
            return {}
        before, after = (
            card(manifest, repository.name, version.version, config, own, keys).encode()
            for keys in (known, {*known, key})
        )
    except (RegistryError, ValueError):  # others wrote what the card is made from
        return {}
    return {layout.CARD: after} if shown == before else {}
