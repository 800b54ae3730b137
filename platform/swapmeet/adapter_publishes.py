"""Adapters that are published over the network: files come in parts, in any order, again where an answer was lost.

A publish says first what will come, with each file's size and SHA-256. Its parts lie in the storage, so that any
server takes the next one and whoever begins again, after a crash or on another day, sends only what is missing. When
it is completed the files are joined on this machine, compared with their SHA-256, and pushed into the registry, which
admits them or not; a publish that is completed twice makes one version.
"""

import hashlib
import logging
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from swapmeet import adapter_parts
from swapmeet.adapter_parts import Parts
from swapmeet.audit_export import EXPIRED
from swapmeet.database import Database
from swapmeet.database.tables import PublishRow
from swapmeet.database.tables.base import now
from swapmeet.errors import Conflict, NotFound, RequestRefused
from swapmeet.files.rules import refuse, shortened
from swapmeet.ids import new_id, shown
from swapmeet.tenancy.audit import Audit, Operation, note
from swapmeet.tenancy.caller import Caller
from swapmeet.tenancy.quotas import require_storage, require_versions
from swapmeet.tenancy.stocktaking import note_published
from swapmeet.tenancy.tenants import tenant_row
from swapmeet_registry import AdapterName, Registry, RegistryError, StoredFile, Version
from swapmeet_registry.bases import Base, BaseLibrary, module_shapes
from swapmeet_registry.errors import StoreError
from swapmeet_registry.names import require_settable_alias
from swapmeet_registry.origin.provenance import Tag
from swapmeet_registry.stores import Store
from swapmeet_registry.stores.files import os_errors

log = logging.getLogger("swapmeet.retention")

LARGEST = 4 << 30
MOST_FILES = 65
LIFE = timedelta(days=1)
REMEMBERED = timedelta(days=30)
"""How long a publish that is over is known of."""
AT_ONCE = 500

Word = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-~]+$")]


class PublishRequest(BaseModel):
    """What will come, and what it is: `base` by a name that the server has, or by the digest of its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Word
    files: Annotated[tuple[StoredFile, ...], Field(min_length=1, max_length=MOST_FILES)]
    alias: Annotated[str, Field(max_length=63)] | None = None
    license: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    tags: Annotated[tuple[Tag, ...], Field(max_length=50)] = ()
    run: Word | None = None


class Publishes:
    """The publishes of all tenants. For any thread.

    Args:
        database: has what was said of them.
        registry: where they go.
        store: for parts.
        library: the bases that adapters may be for; none is ever fetched.
        folder: on this machine, for one publish's files while it is completed.
    """

    def __init__(
        self, database: Database, registry: Registry, store: Store, library: BaseLibrary, folder: Path
    ) -> None:
        self.folder = folder
        self._database, self._registry, self._library = database, registry, library
        self._parts, self._audit = Parts(store), Audit(database)

    def begin(self, name: AdapterName, wanted: PublishRequest, key: str | None = None) -> PublishRow:
        """A publish, which is open for a day; the same again, by its run or an idempotency key, is the same one.

        Raises:
            Conflict: the run or the key stands for something else already.
            NotFound: the name's tenant is not there.
            QuotaExceeded: it may not store so much.
            RequestRefused: it could not be published, whatever its bytes.
        """
        self._require_sound(wanted)
        request, size = wanted.model_dump(mode="json"), sum(file.size for file in wanted.files)
        identity, moment = _identity(name, key, wanted.run), now()

        def work(session: Session) -> PublishRow:
            tenant_row(session, name.tenant, lock=True)  # of those who begin at once, one after the other
            row = session.get(PublishRow, identity, with_for_update=True)
            if row is not None and row.request != request:
                raise Conflict("This run, or idempotency key, stands for a publish of something else. Choose another.")
            if row is not None and (row.status == "published" or _open(row)):
                return row
            require_storage(session, name.tenant, size, "for the adapter")
            require_versions(session, name.tenant)
            row = row or PublishRow(id=identity, tenant=name.tenant, adapter=str(name), request=request, bytes=size)
            row.status, row.created_at, row.expires_at = "pending", moment, moment + LIFE
            session.add(row)
            return row

        return self._database.write(work)

    def get(self, name: AdapterName, identity: str) -> PublishRow:
        """A publish under a name.

        Raises:
            NotFound: there is none of this id.
        """
        row = self._database.read(lambda session: session.get(PublishRow, identity) if identity.isprintable() else None)
        if row is None or row.adapter != str(name):
            raise NotFound(
                f"There is no upload {shown(identity)} of {name}. Begin one: POST /v1/adapters/{name}/uploads."
            )
        return row

    def missing(self, row: PublishRow) -> dict[str, list[int]]:
        """By file: where the parts begin that have not come yet."""
        return self._parts.missing(row) if _open(row) else adapter_parts.wanted(row)

    def add(self, row: PublishRow, path: str, offset: int, source: Path, sha256: str | None = None) -> None:
        """Keep a part of a file, durable on return; sent again it takes the place of the earlier.

        Args:
            row: the publish.
            path: the file's.
            offset: where the part begins: a multiple of `PART`.
            source: its bytes: `PART`, or those to the file's end.
            sha256: what they must have, in hex, if that is known.

        Raises:
            NotFound: the publish has no such file.
            RequestRefused: it is over, or the part is not one of the file's.
        """
        _require_open(row)
        self._parts.keep(row, path, offset, source, sha256)

    def complete(self, row: PublishRow, by: Caller) -> PublishRow:
        """Publish the version; asked again, give the same answer.

        Raises:
            BaseMismatch: the adapter was trained on other weights.
            Refused: its files are unsound or unsupported.
            RequestRefused: the publish is over, or bytes are missing or wrong.
        """
        if row.status == "published":
            return row
        _require_open(row)
        try:
            done = self._publish(row, by)
        except (RegistryError, RequestRefused):
            ended = self._database.read(lambda session: session.get_one(PublishRow, row.id))
            if ended.status == "published":  # by another at the same time, who cleared the parts away
                return ended
            raise
        self._parts.clear(done.id)
        return done

    def cancel(self, row: PublishRow, by: Caller) -> PublishRow:
        """End a publish; again is no mistake.

        Raises:
            RequestRefused: it is published.
        """
        if row.status == "pending" and (version := self._made(row)) is not None:  # its server was killed, or is slow
            self._end(row, version, _publishing(row, by))

        def work(session: Session) -> PublishRow:
            found = session.get_one(PublishRow, row.id, with_for_update=True)
            if found.status == "published":
                raise RequestRefused(f"{row.id} is published as version {found.version}. Yank that instead.")
            if found.status != "cancelled":
                found.status = "cancelled"
                note(session, by, "adapter.cancel", found.adapter, tenant=found.tenant, detail=found.id)
            return found

        ended = self._database.write(work)
        self._parts.clear(ended.id)
        return ended

    def sweep(self) -> None:
        """Expire what nobody completed, remove the parts of what is over, and forget it after some time."""
        moment = now()
        self._expire_late(moment)
        over = delete(PublishRow).where(PublishRow.status != "pending", PublishRow.expires_at <= moment - REMEMBERED)
        self._database.write(lambda session: session.execute(over))
        for identity in self._parts.identities():
            query = select(PublishRow.status).where(PublishRow.id == identity)
            if self._database.read(lambda session, query=query: session.scalar(query)) != "pending":  # type: ignore[misc]
                self._parts.clear(identity)

    def _expire_late(self, moment: datetime) -> None:
        """Expire what can be: what can not, such as under a damaged head, is tried again with the next sweep."""
        late = select(PublishRow).where(PublishRow.status == "pending", PublishRow.expires_at <= moment)
        late = late.order_by(func.random()).limit(AT_ONCE)  # so that none of them stands in the others' way
        for row in self._database.read(lambda session: list(session.scalars(late))):
            try:
                self._expire(row)
                self._parts.clear(row.id)
            except StoreError as error:
                log.warning(f"Uploads that nobody completed are not expired now: {error}")
                return
            except RegistryError as error:
                log.warning(f"{row.id} of {row.adapter} is not expired: {error}")

    def base(self, named: str) -> Base:
        """A base that this server has.

        Raises:
            RequestRefused: it has none of this name or digest.
        """
        for record in self._library.records():
            if record.name == named:
                return self._library.find(named)
        for base in self._library.all() if named.startswith("sha256:") else ():
            if base.fingerprint.weights == named:
                return base
        known = ", ".join(record.name for record in self._library.records()) or "none yet"
        raise RequestRefused(f"There is no base {shortened(named)} here. Known are {known}.", "base", "base_not_found")

    def _publish(self, row: PublishRow, by: Caller) -> PublishRow:
        wanted, base = PublishRequest.model_validate(row.request), self.base(row.request["base"])
        with os_errors(f"write in {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(dir=self.folder, prefix="publish-")
        with scratch as folder:
            self._parts.join(row, Path(folder))
            noting = self._audit.noting(by, "adapter.publish", row.adapter, tenant=row.tenant, operation=row.id)
            with noting as doing:
                version = self._registry.push(
                    Path(folder),
                    row.adapter,
                    base=base.fingerprint,
                    alias=wanted.alias,
                    license=wanted.license,
                    base_license=base.license,
                    tags=wanted.tags,
                    modules=module_shapes(base.path),
                    run=wanted.run,
                    once=row.id,
                )
                return self._end(row, version, doing)

    def _end(self, row: PublishRow, version: Version, doing: Operation) -> PublishRow:
        """Note that a publish made a version, once."""
        size = self._registry.manifest(version).size
        doing.subject, doing.detail = str(version), version.digest

        def end(session: Session) -> PublishRow:
            doing.noted = False
            found = session.get_one(PublishRow, row.id, with_for_update=True)
            if found.status != "published":
                found.status, found.version, found.digest = "published", version.version, version.digest
                note_published(session, version, size)
                doing.done(session)
            return found

        return self._database.write(end)

    def _expire(self, row: PublishRow) -> None:
        """End a publish that nobody completed, or whose server was killed after it had made its version."""
        version, doing = self._made(row), _publishing(row, Caller(row.tenant, row.id, frozenset()))
        if version is not None:
            self._end(row, version, doing)
            return

        def expire(session: Session) -> None:
            found = session.get(PublishRow, row.id, with_for_update=True)
            if found is not None and found.status == "pending":
                found.status = "expired"
                doing.end(session, EXPIRED)

        self._database.write(expire)

    def _made(self, row: PublishRow) -> Version | None:
        """The version that a publish made, though it may not be noted yet: `push` knows it by the same name."""
        return self._registry.made(row.adapter, row.request.get("run") or row.id)

    def _require_sound(self, wanted: PublishRequest) -> None:
        paths = [file.path for file in wanted.files]
        mistakes = [("files", f"{path} is there twice.") for path in sorted(set(paths)) if paths.count(path) > 1]
        mistakes += [
            ("files", f"{file.path} has {file.size} bytes; at most {LARGEST} are taken.")
            for file in wanted.files
            if file.size > LARGEST
        ]
        try:
            require_settable_alias(wanted.alias or "any")
        except RegistryError as error:
            mistakes.append(("alias", str(error)))
        try:
            self.base(wanted.base)
        except RequestRefused as error:
            mistakes.append(("base", str(error)))
        refuse(mistakes)


def publish_object(row: PublishRow, missing: dict[str, list[int]]) -> dict[str, Any]:
    """A publish as the API shows it; files say where the parts begin that they lack."""
    return {
        "id": row.id,
        "object": "adapter.upload",
        "adapter": row.adapter,
        "status": "expired" if row.status == "pending" and not _open(row) else row.status,
        "created_at": int(row.created_at.timestamp()),
        "expires_at": int(row.expires_at.timestamp()),
        "part_size": adapter_parts.PART,
        "bytes": row.bytes,
        "files": [file | {"missing": missing.get(file["path"], [])} for file in row.request["files"]],
        "version": row.version,
        "digest": row.digest,
    }


def _publishing(row: PublishRow, by: Caller) -> Operation:
    return Operation(by, "adapter.publish", row.adapter, row.tenant, "", row.id)


def _identity(name: AdapterName, key: str | None, run: str | None) -> str:
    """A publish's id: the same for the same idempotency key, or else run. A key never means a run that is spelt so."""
    if key is None and run is None:
        return new_id("publish-")
    kind, word = ("run", run) if key is None else ("key", key)
    return "publish-" + hashlib.sha256(f"{name}\0{kind}\0{word}".encode(errors="surrogatepass")).hexdigest()[:32]


def _open(row: PublishRow, at: datetime | None = None) -> bool:
    return row.status == "pending" and row.expires_at > (at or now())


def _require_open(row: PublishRow) -> None:
    if not _open(row):
        raise RequestRefused(
            f"{row.id} is {'expired' if row.status == 'pending' else row.status}. Begin another upload."
        )
