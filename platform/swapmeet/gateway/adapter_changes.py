"""What goes on around every change of an adapter that is asked for over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager

from swapmeet.gateway.authority import Caller
from swapmeet.gateway.marketplace import Noting
from swapmeet.gateway.services import Services
from swapmeet_registry import AdapterName


@contextmanager
def changing(
    backend: Services,
    changed: Noting,
    caller: Caller,
    name: AdapterName,
    action: str,
    subject: str,
    detail: str = "",
) -> Iterator[None]:
    """A block that changes what is under a name, if the caller may; how that ended is noted, and the index told."""
    backend.access.require_own(caller, name)
    with backend.tenancy.audit.noting(caller, action, subject, tenant=name.tenant, detail=detail):
        try:
            yield
        finally:  # what failed may have been done nevertheless
            changed(name)
