"""Checks files after their upload, some at a time, apart from whoever answers requests."""

import logging
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import select

from swapmeet.database.tables import FileRow
from swapmeet.errors import NotFound, PlatformError
from swapmeet.files.files import Files
from swapmeet.files.validation import Interrupted, validate_apart
from swapmeet_registry import RegistryError

log = logging.getLogger(__name__)

AT_ONCE = 2
LONGEST_SECONDS = 3600.0
RECOVER_SECONDS = 60.0


class Validator:
    """Takes ids of files, and notes in their rows whether they can be trained on.

    A process that is killed leaves its files unchecked: `serve`, here or in any other, finds them. Two that check one
    file at once say the same, and the first is believed.
    """

    def __init__(self, files: Files, folder: Path, at_once: int = AT_ONCE, seconds: float = LONGEST_SECONDS) -> None:
        self.files, self.folder, self.seconds = files, folder, seconds
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="validation")
        self._under_way: set[str] = set()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, file_id: str) -> "Future[None] | None":
        """Check a file soon; None where that is under way already, or this validator is closed."""
        with self._lock:
            if self._closed or file_id in self._under_way:
                return None
            self._under_way.add(file_id)
            return self._pool.submit(self._check, file_id)

    def serve(self, stop: threading.Event, pause: float = RECOVER_SECONDS) -> None:
        """Take up files that nobody has checked, at once and every so many seconds until told to stop."""
        while True:
            try:
                self.recover()
            except PlatformError as error:
                log.warning("files still to be checked could not be read, next try in %s s: %s", pause, error)
            if stop.wait(pause):
                return

    def recover(self) -> None:
        """Submit every file that is still to be checked."""
        waiting = select(FileRow.id).where(FileRow.status == "uploaded", FileRow.deleted_at.is_(None))
        for file_id in self.files.database.read(lambda session: list(session.scalars(waiting))):
            self.submit(file_id)

    def close(self) -> None:
        """End what is under way; those files stay unchecked."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self._processes):
            process.terminate()
        self._pool.shutdown(wait=True)

    def _check(self, file_id: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="check-", dir=self.folder))
            try:
                path = self.files.fetch(file_id, folder)
                verdict = validate_apart(path, self._processes, self.seconds)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            self.files.judge(file_id, ok=verdict.ok, details=verdict.details, report=verdict.report)
        except (Interrupted, NotFound):  # to be done later, or not at all
            pass
        except (PlatformError, RegistryError, OSError) as error:
            log.warning("%s could not be checked, to be tried again: %s", file_id, error)
        finally:
            with self._lock:
                self._under_way.discard(file_id)
