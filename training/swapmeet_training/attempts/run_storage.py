"""What runs leave in the storage: folders that count only once their manifest stands beside them, written last.

    runs/JOB/ATTEMPT/checkpoint-STEP/HEX       the files of a checkpoint, by their SHA-256
    runs/JOB/ATTEMPT/checkpoint-STEP.json      its manifest: each file's path, size and SHA-256, and what is known of it
    runs/JOB/ATTEMPT/adapter/HEX               those of the finished adapter, with adapter.json beside it
    runs/JOB/ATTEMPT/losses.jsonl              how well each line of the training file was learnt
    runs/JOB/ATTEMPT/examples.json             what the adapter answered to held-out prompts
    runs/JOB/ATTEMPT/log/000001.txt            what the attempt left to read, in pieces

Each attempt writes only under its own number. So one that is long given up, and does not know it, overwrites nothing,
and what it leaves is not found: an attempt goes on from what was told of earlier ones, or from its predecessor's.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from swapmeet_registry.errors import Corrupt
from swapmeet_registry.stores import Store

_CHECKPOINT = re.compile(r"runs/[^/]+/(\d+)/checkpoint-(\d+)")


class Entry(BaseModel):
    """One file of a kept folder: its relative path, bytes, and hex SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int = Field(ge=0)
    sha256: str


class Contents(BaseModel):
    """A kept folder's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[Entry, ...]
    history: Entry | None = None
    facts: dict[str, JsonValue] = {}


@dataclass(frozen=True, slots=True)
class RunStorage:
    """One job's part of the storage."""

    store: Store
    job: str

    def key(self, attempt: int, folder: str) -> str:
        """What a folder of an attempt is kept as: `runs/JOB/ATTEMPT/FOLDER`."""
        return f"runs/{self.job}/{attempt}/{folder}"

    def keep(self, key: str, folder: Path, facts: dict[str, JsonValue], history: Path | None = None) -> None:
        """Keep a folder, and beside it the history of its run; whole and durable on return.

        Raises:
            StoreError: the storage failed; what was written does not count.
        """
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        entries = {path: _entry(path.relative_to(folder).as_posix(), path) for path in paths}
        told = _entry(history.name, history) if history else None
        for path, entry in [*entries.items(), *([(history, told)] if history and told else [])]:
            self.store.put(f"{key}/{entry.sha256}", path, entry.sha256)
        contents = Contents(files=tuple(entries.values()), history=told, facts=facts)
        self.put(f"{key}.json", contents.model_dump_json().encode())

    def put(self, key: str, data: bytes) -> None:
        """Write one small object."""
        self.store.put(key, data, hashlib.sha256(data).hexdigest())

    def contents(self, key: str) -> Contents | None:
        """The manifest of a kept folder, or None where there is no whole one.

        Raises:
            Corrupt: it is no manifest.
        """
        stored = self.store.get(f"{key}.json")
        try:
            return Contents.model_validate_json(stored.data) if stored else None
        except ValidationError as error:
            raise Corrupt(f"{key}.json in {self.store.url} is damaged. Start the job again.") from error

    def fetch(self, key: str, folder: Path, only: frozenset[str] | None = None) -> Contents:
        """Fetch a kept folder, or only some of its files, each compared with its digest.

        Raises:
            Corrupt: something of it is gone or was changed.
            StoreError: the storage failed.
        """
        contents = self.contents(key)
        if contents is None:
            raise Corrupt(f"{self.store.url} has lost {key}. Restore the storage, or start the job again.")
        for entry in contents.files:
            if only is None or entry.path in only:
                self.fetch_entry(key, entry, folder / entry.path)
        return contents

    def fetch_entry(self, key: str, entry: Entry, path: Path) -> None:
        """Fetch one file of a kept folder, or its history."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fetch_object(self.store, f"{key}/{entry.sha256}", path, entry.sha256)

    def newest(self, attempt: int, known: str | None) -> str | None:
        """The checkpoint that attempt number `attempt` goes on from: one told of, or its predecessor's last whole one.

        Others are those of attempts that were given up before, and are left alone.
        """
        found = list(self.checkpoints(attempt - 1))
        if known is not None:
            found.append(known)
        return max(found, key=_age, default=None)

    def checkpoints(self, attempt: int | None = None) -> Iterator[str]:
        """The keys of the whole checkpoints, of one attempt or of all."""
        prefix = f"runs/{self.job}/" if attempt is None else f"runs/{self.job}/{attempt}/"
        for key in self.store.list(prefix):
            if key.endswith(".json") and _CHECKPOINT.fullmatch(key.removesuffix(".json")):
                yield key.removesuffix(".json")

    def drop(self, key: str) -> None:
        """Forget a kept folder: from the first moment on it is not whole any more."""
        self.store.delete(f"{key}.json")
        for each in list(self.store.list(f"{key}/")):
            self.store.delete(each)


def step_of(key: str) -> int:
    """The step that a checkpoint was taken after."""
    return _age(key)[0]


def fetch_object(store: Store, key: str, path: Path, sha256: str) -> None:
    """Write an object into a file, if it has this digest.

    Raises:
        Corrupt: it is gone, or has another.
    """
    found, chunks = hashlib.sha256(), store.stream(key)
    with path.open("wb") as stream:
        for chunk in chunks or ():
            found.update(chunk)
            stream.write(chunk)
    if chunks is None or found.hexdigest() != sha256:
        path.unlink()
        raise Corrupt(f"{store.url} holds other bytes than were written under {key}. Restore the storage.")


def _age(key: str) -> tuple[int, int]:
    found = _CHECKPOINT.fullmatch(key)
    assert found is not None, key
    return int(found[2]), int(found[1])


def _entry(name: str, path: Path) -> Entry:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Entry(path=name, size=path.stat().st_size, sha256=digest)
