"""What is where in an adapter's repository.

adapter_config.json, adapter_model.safetensors, …      the newest version's files
swapmeet.json                                          its provenance, as in a pulled folder
README.md                                              a card, made from its manifest
.swapmeet/manifest.json                                its manifest
.swapmeet/README.md                                    its own README.md, if it has one
.swapmeet/head.json                                    all versions and aliases
.swapmeet/nonce                                        no two commits are equal
.swapmeet/signatures/HEX/KEY.json                      on the branch only: who signed the version with this manifest
"""

import re
from collections.abc import Iterable, Iterator

from swapmeet_registry.backend import KEY_ID, LargeFile, Staged
from swapmeet_registry.manifest import StoredFile
from swapmeet_registry.origin.provenance import Provenance
from swapmeet_registry.stores.hub_card import card

HEAD, MANIFEST, OWN_README = ".swapmeet/head.json", ".swapmeet/manifest.json", ".swapmeet/README.md"
SIGNATURES = ".swapmeet/signatures/"
CARD, CONFIG = "README.md", "adapter_config.json"

_SIGNATURE = re.compile(rf"{re.escape(SIGNATURES)}([0-9a-f]{{64}})/({KEY_ID.pattern})\.json")


def goes_with_version(path: str) -> bool:
    """Whether a file goes with its version: all but signatures and hidden ones, such as .gitattributes."""
    return not path.startswith(".") or (path.startswith(".swapmeet/") and not path.startswith(SIGNATURES))


def signature_path(digest: str, key: str) -> str:
    """Where the signature of the version with a digest is, by the key with an id."""
    return f"{SIGNATURES}{digest.removeprefix('sha256:')}/{key}.json"


def signatures_in(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The version's digest and the key's id of each signature among some paths."""
    return ((f"sha256:{found[1]}", found[2]) for path in paths if (found := _SIGNATURE.fullmatch(path)))


def signers_in(paths: Iterable[str], digest: str) -> list[str]:
    """The ids of the keys that there are signatures by, among some paths, of the version with a digest; sorted."""
    return sorted(key for signed, key in signatures_in(paths) if signed == digest)


def path_of(file: StoredFile) -> str:
    """Where a version's file is: its README.md makes room for the card."""
    return OWN_README if file.path == CARD else file.path


def published(staged: Staged, repository: str, version: int) -> dict[str, bytes | LargeFile]:
    """All files of a version's commit but the head."""
    manifest, sources = staged.manifest, staged.sources
    config, readme = _bytes(sources[CONFIG]), _bytes(sources[OWN_README]) if OWN_README in sources else None
    return {
        **sources,
        MANIFEST: manifest.encode(),
        Provenance.FILE: manifest.provenance().encode(),
        CARD: card(manifest, repository, version, config, readme, signers_in(sources, manifest.digest)).encode(),
    }


def _bytes(source: bytes | LargeFile) -> bytes:
    return source if isinstance(source, bytes) else source.path.read_bytes()
