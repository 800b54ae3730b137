"""Checkpoints and results as models: from the storage into the registry, each once, however often it is tried."""

import csv
import hashlib
import io
import secrets
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from swapmeet.adapter_withdrawals import withdraw
from swapmeet.database import Database
from swapmeet.database.tables import CheckpointRow, EventRow, FileRow, JobRow
from swapmeet.database.tables.base import now
from swapmeet.errors import QuotaExceeded
from swapmeet.jobs.leftovers import clear_copies, kept_bytes
from swapmeet.marketplace import Market
from swapmeet.settings import Settings
from swapmeet.tenancy.audit import Audit
from swapmeet.tenancy.caller import Caller
from swapmeet.tenancy.quotas import require_storage, require_versions
from swapmeet_registry import AdapterName, NotFound, Provenance, Refused, Registry, Version, open_store
from swapmeet_registry.bases import BaseLibrary, module_shapes
from swapmeet_registry.names import MAX_PART
from swapmeet_training.attempts.run_storage import Contents, RunStorage, step_of
from swapmeet_training.attempts.telling import Finished, Saved

ADAPTER = frozenset({"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", Provenance.FILE})
"""What of a checkpoint is its adapter."""
LISTED = 3
"""So many of a job's newest checkpoints are models, and the best one is."""
KEPT = 2
"""So many of a run's newest checkpoints stay in the storage, and the best one does."""
COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "full_valid_loss",
    "valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
}
"""Columns of a result file, and what they are called in events."""


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint that became a model; the checkpoints in `dropped` (ids) are none any more."""

    version: Version
    dropped: tuple[str, ...]
    bytes: int = 0
    """Of the model."""
    kept: int = 0
    """Of all checkpoints that the job has in the storage."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run, the version that it became, and the file with its figures, whose bytes are stored already.

    That of a sweep becomes one at the sweep's end, if it is the best.
    """

    version: Version | None
    file: FileRow
    bytes: int = 0
    """Of the version."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The version that a sweep's best adapter became, and its bytes."""

    version: Version
    bytes: int


class Publisher:
    """Publishes what attempts left in the storage.

    Args:
        settings: say where storage, registry and bases are.
        database: has the jobs' events and checkpoints, which are only read; is told what quotas have room again for,
            and has the audit log.

    Raises:
        SigningKeyInvalid: adapters are to be signed, and the key can not be read.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._database = database
        self._store = open_store(settings.storage_url)
        self._registry = Registry(settings.registry_url)
        self._signer = settings.signer
        self._library = BaseLibrary(settings.folder)
        self._market = Market(database, self._registry)
        self._audit = Audit(database)

    def checkpoint(self, job: JobRow, saved: Saved) -> Model:
        """Make a checkpoint a model, and those that it pushes off the list none; delete old ones in the storage.

        Raises:
            RegistryError: it can not be published.
        """
        runs, step = RunStorage(self._store, job.id), step_of(saved.checkpoint)
        _delete_old(runs, saved)
        self._require_room(job, runs.contents(saved.checkpoint))
        name = checkpoint_name(job.adapter, step, job.id)
        version = self._push(runs, job, saved.checkpoint, name, _run(job, step))
        query = select(CheckpointRow).where(CheckpointRow.job == job.id, CheckpointRow.step != step)
        others = self._database.read(lambda session: list(session.scalars(query)))
        dropped = _unlisted(others, step, saved)
        for row in dropped:
            self.delete(job, row.step, "Newer checkpoints of the same job took its place.")
        size = self._registry.manifest(version).size
        return Model(version, tuple(row.id for row in dropped), size, kept_bytes(runs))

    def result(self, job: JobRow, finished: Finished) -> Outcome:
        """Store the file with a finished run's figures, and make its adapter, unless it is a sweep's, the next version.

        Raises:
            RegistryError: it can not be published.
        """
        runs = RunStorage(self._store, job.id)
        version = None if job.sweep else self._push(runs, job, finished.adapter, job.adapter, job.id)
        query = select(EventRow).where(EventRow.job == job.id, EventRow.type == "metrics").order_by(EventRow.number)
        figures = self._database.read(lambda session: list(session.scalars(query)))
        file = self._store_figures(job, figures)
        return Outcome(version, file, self._registry.manifest(version).size if version else 0)

    def delete_unlisted(self, job: JobRow) -> None:
        """Leave no checkpoint of a job that was cancelled or failed a model that was published but never listed."""
        query = select(CheckpointRow.step).where(CheckpointRow.job == job.id)
        listed = set(self._database.read(lambda session: list(session.scalars(query))))
        for step in {step_of(key) for key in RunStorage(self._store, job.id).checkpoints()} - listed:
            self.delete(job, step, "Its job ended before it was listed.")

    def forget(self, job: JobRow) -> None:
        """Delete the checkpoints of a job that succeeded: nothing goes on from them."""
        runs = RunStorage(self._store, job.id)
        for key in list(runs.checkpoints()):
            runs.drop(key)

    def _require_room(self, job: JobRow, contents: Contents | None) -> None:
        """Nothing, if a checkpoint may become a model. The adapter of a finished run is published in any case.

        Raises:
            Refused: its tenant stores all that it may, or has as many versions.
        """
        size = sum(entry.size for entry in contents.files if entry.path in ADAPTER) if contents else 0

        def look(session: Session) -> None:
            require_storage(session, job.tenant, size, "for the model")
            require_versions(session, job.tenant)

        try:
            self._database.write(look)
        except QuotaExceeded as error:
            raise Refused(str(error)) from error

    def kept(self, job: JobRow, adapter: str) -> Kept:
        """Make the adapter of a sweep's best job, which lies in the storage, the next version of its name.

        Raises:
            RegistryError: it can not be published.
        """
        version = self._push(RunStorage(self._store, job.id), job, adapter, job.adapter, job.id)
        return Kept(version, self._registry.manifest(version).size)

    def discard(self, job: str) -> None:
        """Delete the checkpoints and the adapter that a job's attempts left in the storage."""
        clear_copies(self._store, job)

    def _push(self, runs: RunStorage, job: JobRow, key: str, name: str, run: str) -> Version:
        base = self._library.find(job.base)
        with tempfile.TemporaryDirectory(prefix="swapmeet-") as scratch:
            folder = Path(scratch)
            runs.fetch(key, folder, ADAPTER)
            provenance = Provenance.read(folder)
            assert provenance is not None, "the run writes it"
            provenance.model_copy(update={"run": run, "parent": job.parent}).write(folder)
            with self._audit.noting(_itself(name, job.id), "adapter.publish", name, operation=run) as doing:
                version = self._registry.push(
                    folder,
                    name,
                    base=base.fingerprint,
                    base_license=base.license,
                    modules=module_shapes(base.path),
                    run=run,
                )
                if self._signer is not None:
                    self._registry.sign(version.pinned, self._signer)
                doing.subject, doing.detail = str(version), version.digest
        self._market.note(name)
        return version

    def delete(self, job: JobRow, step: int, reason: str) -> None:
        """Make a checkpoint no model any more, so that its files are collected. What others published there stays."""
        name = checkpoint_name(job.adapter, step, job.id)
        try:
            made = self._registry.head(name).published(_run(job, step))
        except NotFound:
            return
        if made is not None and made.deleted is None:
            with self._audit.noting(_itself(name, job.id), "version.delete", f"{name}:{made.version}", detail=reason):
                withdraw(self._registry, self._database, f"{name}@{made.digest}", "deleted", reason)
        self._market.note(name)

    def _store_figures(self, job: JobRow, figures: Iterable[EventRow]) -> FileRow:
        data = figures_csv(figures)
        digest = hashlib.sha256(data).hexdigest()
        moment = now()
        identity = f"file-{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"
        self._store.put(f"files/{identity}", data, digest)
        return FileRow(
            id=identity,
            tenant=job.tenant,
            filename=f"{job.id}-results.csv",
            purpose="fine-tune-results",
            bytes=len(data),
            sha256=digest,
            created_at=moment,
            status="processed",
        )


def checkpoint_name(adapter: str, step: int, job: str) -> str:
    """The name that a checkpoint is published under: `TENANT/NAME.ckpt-STEP-XXXXXXXX`, its job's short in the end."""
    name = AdapterName.parse(adapter)
    ending = f".ckpt-{step}-{hashlib.sha256(job.encode()).hexdigest()[:8]}"
    return str(AdapterName(name.tenant, name.name[: MAX_PART - len(ending)] + ending))


def _run(job: JobRow, step: int) -> str:
    """What the version that a checkpoint becomes is known by, however often it is published."""
    return f"{job.id}/{step}"


def figures_csv(figures: Iterable[EventRow]) -> bytes:
    """A result file: a line per step, with what was measured after it."""
    steps: dict[int, dict[str, object]] = {}
    for event in figures:
        data = event.data or {}
        steps.setdefault(data["step"], {}).update(data)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([steps[step].get(name, "") for name in COLUMNS.values()] for step in sorted(steps))
    return stream.getvalue().encode()


def _itself(name: str, job: str) -> Caller:
    """A job, as what changes its tenant's models: where others have the id of their key, it has its own."""
    return Caller(AdapterName.parse(name).tenant, job, frozenset())


def insert_once(session: Session, row: FileRow) -> None:
    """Add a file's row in a transaction that may be tried again."""
    session.merge(row)


def _unlisted(others: Sequence[CheckpointRow], step: int, saved: Saved) -> list[CheckpointRow]:
    """The checkpoints that are models no more once this one is: all older ones but the newest and the best."""
    best = step_of(saved.best) if saved.best else None
    older = sorted((row for row in others if row.step < step), key=lambda row: row.step, reverse=True)
    return [row for row in older[LISTED - 1 :] if row.step != best]


def _delete_old(runs: RunStorage, saved: Saved) -> None:
    step = step_of(saved.checkpoint)
    older = sorted((key for key in runs.checkpoints() if step_of(key) <= step), key=step_of, reverse=True)
    kept = {saved.checkpoint, saved.best, *[key for key in older if key != saved.checkpoint][: KEPT - 1]}
    for key in older:
        if key not in kept:
            runs.drop(key)
