"""Adapters on this machine's disk: each in a folder named by its digest, verified, fetched by one thread at a time."""

import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from swapmeet_registry import Refused, Registry
from swapmeet_registry.fingerprint import Fingerprint

Timer = Callable[[str, str], AbstractContextManager[None]]
"""Brackets a step of an adapter's load, to be timed: `timer(identity, step)`."""


class AdapterFolders:
    """Pulls adapters out of a registry as they are asked for; processes may share the folder.

    Args:
        root: where the folders are.
        registry: where adapters come from.
        base: adapters of other weights are refused.
        timer: times each step.
    """

    def __init__(self, root: Path, registry: Registry, base: Fingerprint, timer: Timer) -> None:
        self._root = root
        self._registry = registry
        self._base = base
        self._timer = timer
        self._flights: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def fetch(self, adapter: str) -> Path:
        """The folder of an adapter's verified files; `adapter` is `TENANT/NAME@sha256:HEX`.

        Raises:
            BaseMismatch: it was trained on other weights than this base's.
            NotFound: there is no such adapter.
            Corrupt: its bytes are not those of its digest.
        """
        folder = self._folder(adapter)
        # whoever comes second finds the folder there
        with self._flights[adapter], self._timer(adapter, "check" if folder.exists() else "fetch"):
            self._pull(adapter, folder)
        return folder

    def __contains__(self, adapter: str) -> bool:
        return self._folder(adapter).exists()

    def digests(self) -> list[str]:
        """The hex digests of the adapters that are there."""
        return os.listdir(self._root) if self._root.exists() else []

    def _folder(self, adapter: str) -> Path:
        return self._root / adapter.rpartition(":")[2]

    def _pull(self, adapter: str, folder: Path) -> None:
        try:
            self._registry.pull(adapter, folder, base=self._base)
        except Refused:
            if not folder.exists():
                raise
            shutil.rmtree(folder)  # a damaged cache: fetch it anew
            self._registry.pull(adapter, folder, base=self._base)
