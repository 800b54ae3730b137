"""Write versions into one file, to be taken to where no network goes.

A name that is exported whole comes out of it as by `mirror`: the same numbers, aliases and withdrawals. Of a version
that is exported alone nothing is said but what it is.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO
from uuid import uuid4

from swapmeet_registry import canonical
from swapmeet_registry.backend import Backend, Notes
from swapmeet_registry.contents import Contents
from swapmeet_registry.copies.bundle_file import INDEX, MAX_INDEX, note_name, write_end, write_member
from swapmeet_registry.copies.bundle_index import Index, Noted, Part
from swapmeet_registry.copies.notes import notes_of
from swapmeet_registry.errors import Refused, RegistryError, StoreError
from swapmeet_registry.fault import reached
from swapmeet_registry.head import Head
from swapmeet_registry.names import AdapterName, Reference
from swapmeet_registry.registry import Registry
from swapmeet_registry.store_backend import blob_key, manifest_key
from swapmeet_registry.stores.files import os_errors, sync_folder
from swapmeet_registry.version import Version


def export_bundle(registry: Registry, refs: Iterable[str], file: Path) -> tuple[Version, ...]:
    """Write versions into a file, which appears whole or not at all.

    Args:
        registry: where they are.
        refs: `TENANT/NAME` for all versions with aliases and history; `TENANT/NAME:3`, `:ALIAS` or `@sha256:…` for one.
        file: must not exist.

    Returns:
        What is in it.

    Raises:
        NotFound, Recalled: a single version may not be used.
        Refused: the file exists, or nothing is to be exported, or more than fits into one file.
        StoreError: the file can not be written.
    """
    if not (refs := list(refs)):
        raise Refused("Nothing is to be exported. Name adapters or versions.")
    index = Index(parts=tuple(_parts(registry, refs)))
    data = index.encode()
    if len(data) > MAX_INDEX:
        raise Refused(f"The index of so many versions has {len(data)} bytes; at most {MAX_INDEX} fit. Export fewer.")
    with os_errors(f"write {file}"):
        if file.exists():
            raise Refused(f"{file} exists. Name a new file, or remove it.")
        partial = file.with_name(f".{file.name}.{uuid4().hex}.partial")
        try:
            with partial.open("xb") as stream:
                write_member(stream, INDEX + canonical.sha256(data), len(data), [data])
                exported = tuple(_write(registry.backend, index, stream))
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(file.absolute().parent)
    return exported


def _parts(registry: Registry, refs: Iterable[str]) -> Iterator[Part]:
    """The parts for these references; all mistakes are told at once."""
    wanted: dict[AdapterName, set[int] | None] = {}
    mistakes = []
    for ref in refs:
        try:
            reference = Reference.parse(ref)
            whole = reference.version is None and reference.alias is None and reference.digest is None
            number = registry.resolve(ref).version if not whole else len(registry.head(ref).versions)
        except StoreError:
            raise
        except RegistryError as error:
            mistakes.append(error)
            continue
        single = wanted.setdefault(reference.name, set())
        if whole or single is None:
            wanted[reference.name] = None
        else:
            single.add(number)
    if mistakes:
        raise type(mistakes[0])(" ".join(map(str, mistakes)))
    for name, numbers in sorted(wanted.items()):
        head = registry.head(str(name))
        if numbers is not None:  # whoever gets one version need not learn of the others
            kept = tuple(record for record in head.versions if record.version in numbers)
            head = Head(adapter=str(name), versions=kept)
        part = Part(head=head, whole=numbers is None)
        notes = {version.digest: _noted(notes_of(registry.backend, version)) for version in part.versions()}
        yield part.model_copy(update={"notes": {about: noted for about, noted in notes.items() if noted != Noted()}})


def _noted(notes: Notes) -> Noted:
    signatures = {key: canonical.sha256(bundle) for key, bundle in notes.signatures.items()}
    return Noted(signatures=signatures, report=None if notes.report is None else canonical.sha256(notes.report))


def _write(backend: Backend, index: Index, stream: IO[bytes]) -> Iterator[Version]:
    """Of each version its manifest, what is noted about it, and the files that are not there yet."""
    contents, written = Contents(backend), set[str]()

    def write(name: str, size: int, pieces: Iterable[bytes]) -> None:
        if name not in written:
            written.add(name)
            write_member(stream, name, size, pieces)

    for part in index.parts:
        for version in part.versions():
            manifest = contents.manifest(version)
            data = manifest.encode()
            write(manifest_key(version.digest), len(data), [data])
            notes = notes_of(backend, version)
            if _noted(notes) != part.notes.get(version.digest, Noted()):
                raise Refused(f"{version} was signed while it was exported. Export again.")
            for note in (*notes.signatures.values(), *([notes.report] if notes.report is not None else [])):
                write(note_name(canonical.sha256(note)), len(note), [note])
            for file in manifest.files:
                write(blob_key(file), file.size, contents.blob(version, file))
            reached("bundle.exported")
            yield version
    write_end(stream)
