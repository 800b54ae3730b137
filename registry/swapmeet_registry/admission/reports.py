"""Reports on versions' weights: `reports/sha256/HEX.json`, with the HEX of the version's manifest.

A report can always be computed again from the weights, so a publish never fails for want of one, and a Hub, where a
version is a commit whose files PEFT loads, keeps none.
"""

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from swapmeet_registry.admission import lora_config, lora_weights
from swapmeet_registry.admission.statistics import Report, statistics
from swapmeet_registry.backend import Backend
from swapmeet_registry.errors import Refused
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.store_backend import StoreBackend, report_key
from swapmeet_registry.stores import Store

MAX_COMPUTED = 256 << 20
"""Bytes of weights that are fetched to compute a report that is not stored."""

_log = logging.getLogger(__name__)


def of_folder(folder: Path) -> Report:
    """The report on an admitted adapter's files."""
    config = lora_config.parse((folder / lora_config.FILE).read_bytes())
    path = folder / lora_weights.FILE
    return statistics(path, config, lora_weights.read_weights(path, config))


@contextmanager
def computing(backend: Backend, folder: Path) -> Iterator[Callable[[str], None]]:
    """Compute a report beside what is done in this context.

    Args:
        backend: where the version will be.
        folder: the admitted files.

    Returns:
        What has the report stored under a version's digest, where reports are kept: to be called within the publish's
        intent. Whoever asks before it is there, computes it; the context ends when it is.
    """
    if not isinstance(backend, StoreBackend):
        yield lambda _: None
        return
    with ThreadPoolExecutor(1, "report") as pool:
        report = pool.submit(of_folder, folder)
        storing: list[Future[None]] = []

        def store(digest: str) -> None:
            if backend.at_once > 1:
                storing.append(pool.submit(_store, backend.store, report, digest))
            else:
                _store(backend.store, report, digest)

        yield store
        for each in storing:
            each.result()


def _store(store: Store, report: Future[Report], digest: str) -> None:
    try:
        data = report.result().encode()
        store.put(report_key(digest), data, hashlib.sha256(data).hexdigest())
    except (OSError, ValueError, MemoryError) as error:
        why = str(error) or type(error).__name__
        _log.warning(f"The statistics of {digest} were not stored; they are computed when they are asked for. {why}")


def read(
    backend: Backend, digest: str, manifest: Manifest, blob: Callable[[StoredFile], Iterator[bytes]]
) -> Report | None:
    """A version's report: the stored one, or one computed from its weights; None if they are too large for that.

    Args:
        backend: where the version is.
        digest: the version's.
        manifest: the version's.
        blob: gives a file's verified bytes.
    """
    stored = backend.store.get(report_key(digest)) if isinstance(backend, StoreBackend) else None
    if stored is not None:
        try:
            return Report.decode(stored.data, f"The report on {digest}")
        except Refused as error:
            _log.warning(f"{error} It is computed anew.")
    files = [file for file in manifest.files if file.path in (lora_config.FILE, lora_weights.FILE)]
    if sum(file.size for file in files) > MAX_COMPUTED:
        return None
    with tempfile.TemporaryDirectory(prefix="swapmeet-") as scratch:
        for file in files:
            with (Path(scratch) / file.path).open("xb") as stream:
                stream.writelines(blob(file))
        return of_folder(Path(scratch))
