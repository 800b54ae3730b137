"""Advice on a version, beside others of its owner's, as far as it can be given at once.

Only reports that are stored are read, a few of them, for a moment; a store that fails has no advice to give.
"""

import logging
from collections.abc import Iterable
from time import monotonic

from swapmeet_registry.admission import advice
from swapmeet_registry.admission.statistics import Report
from swapmeet_registry.backend import Backend
from swapmeet_registry.errors import RegistryError
from swapmeet_registry.store_backend import StoreBackend, report_key

MOST = 32
"""Others that a version is compared with."""
SECONDS = 0.5
"""After which it is compared with those that were read."""

_log = logging.getLogger(__name__)


def compared(backend: Backend, digest: str, others: Iterable[str | None]) -> tuple[str, ...]:
    """Sentences for people about the version with a digest; none where no report on it is stored.

    Args:
        backend: where the versions are.
        digest: the version's.
        others: digests of versions to compare it with, looked up as far as there is time; None for what is none.
    """
    until = monotonic() + SECONDS
    try:
        own = _stored(backend, digest)
        if own is None:
            return ()
        found: list[Report] = []
        for other in others:
            report = _stored(backend, other) if other is not None else None
            found += [report] if report is not None else []
            if len(found) == MOST or monotonic() > until:
                break
        return tuple(advice.lines(own, found))
    except RegistryError as error:
        _log.warning(f"There is no advice on {digest} at present: {error}")
        return ()


def _stored(backend: Backend, digest: str) -> Report | None:
    """The report on a version, where one is kept; a Hub keeps none."""
    stored = backend.store.get(report_key(digest)) if isinstance(backend, StoreBackend) else None
    return None if stored is None else Report.decode(stored.data, f"The report on {digest}")
