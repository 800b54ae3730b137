"""Adapters on this machine's disk: each in a folder named by its digest, verified, fetched by one thread at a time."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from swapmeet_registry import NotFound, Recalled, Refused, Registry, RegistryError
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_serving.disk_tier import DiskTier
from swapmeet_serving.turns import Turns

Timer = Callable[[str, str], AbstractContextManager[None]]
"""Brackets a step of an adapter's load, to be timed: `timer(identity, step)`."""


class AdapterFolders:
    """Pulls adapters out of a registry as they are asked for; processes may share the folder.

    Args:
        root: where the folders are.
        registry: where adapters come from.
        base: adapters of other weights are refused.
        timer: times each step.
        budget: bytes on disk; beyond them, the folders longest unused go.
    """

    def __init__(self, root: Path, registry: Registry, base: Fingerprint, timer: Timer, budget: int) -> None:
        self._disk = DiskTier(root, budget)
        self._registry = registry
        self._base = base
        self._timer = timer
        self._turns = Turns()

    def fetch(self, adapter: str) -> Path:
        """The folder of an adapter's verified files; `adapter` is `TENANT/NAME@sha256:HEX`.

        It may have to make room for others later: whoever misses a file then fetches anew.

        Raises:
            BaseMismatch: it was trained on other weights than this base's.
            NotFound: there is no such adapter.
            Recalled: nobody may use it any more.
            Corrupt: its bytes are not those of its digest.
        """
        folder = self._folder(adapter)
        # whoever comes second finds the folder there
        with self._turns.of(adapter), self._timer(adapter, "check" if folder.exists() else "fetch"):
            self._pull(adapter, folder)
        return folder

    def __contains__(self, adapter: str) -> bool:
        return self._folder(adapter).exists()

    def remove(self, adapter: str) -> None:
        """Delete an adapter's folder, if it is there; of several processes that share it, one is enough."""
        self._disk.remove(self._folder(adapter))

    def digests(self) -> list[str]:
        """The hex digests of the adapters that are there."""
        return self._disk.folders()

    def _folder(self, adapter: str) -> Path:
        return self._disk.root / adapter.rpartition(":")[2]

    def _pull(self, adapter: str, folder: Path) -> None:
        cached = self._disk.use(folder)
        try:
            self._fetch(adapter, folder)
        except (Recalled, NotFound):
            self._disk.remove(folder)  # nobody may have it, and it will not be asked for again
            raise
        except RegistryError as error:
            damaged = isinstance(error, Refused)
            if not cached or (folder.exists() and not damaged):
                raise
            self._disk.remove(folder)  # damaged, or another process needed the room: fetch it anew
            cached = False
            self._fetch(adapter, folder)
        if not cached:
            self._disk.make_room()  # again, because other processes may have written meanwhile

    def _fetch(self, adapter: str, folder: Path) -> None:
        with self._disk.writing() as make_room:
            self._registry.pull(adapter, folder, base=self._base, make_room=make_room)
