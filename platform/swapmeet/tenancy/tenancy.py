"""All of tenancy over one database, and the books that are kept in the background."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from swapmeet.database import Database
from swapmeet.errors import DatabaseFailed
from swapmeet.tenancy.audit import Audit
from swapmeet.tenancy.keys import Keys
from swapmeet.tenancy.ledger import Ledger
from swapmeet.tenancy.quotas import Quotas
from swapmeet.tenancy.rates import Rates
from swapmeet.tenancy.tenants import Tenants
from swapmeet.tenancy.usage import Usage

FLUSH_SECONDS = 3.0
STORAGE_SECONDS = 600.0
log = logging.getLogger("swapmeet.tenancy")


class Tenancy:
    """Tenants, keys, quotas, usage and the audit log of one database, which must have its tables."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self.database = database
        self.audit = Audit(database)
        self.tenants = Tenants(database)
        self.keys = Keys(database, clock)
        self.quotas = Quotas(database)
        self.rates = Rates(clock)
        self.usage = Usage(database)
        self.ledger = Ledger(database)

    def flush(self) -> None:
        """Write what is kept in memory: usage, refusals, and when keys were used last.

        Raises:
            DatabaseFailed: not all could be written; usage is kept for the next time.
        """
        for each in (self.ledger, self.audit, self.keys):
            each.flush()

    @asynccontextmanager
    async def keeping_books(self) -> AsyncIterator[None]:
        """Write every few seconds within the block, and once more at its end."""
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await asyncio.to_thread(_try, self.flush)

    async def _keep(self) -> None:
        measured = -STORAGE_SECONDS
        while True:
            if time.monotonic() - measured >= STORAGE_SECONDS:
                await asyncio.to_thread(_try, self.usage.measure_storage)
                measured = time.monotonic()
            await asyncio.sleep(FLUSH_SECONDS)
            await asyncio.to_thread(_try, self.flush)


def _try(write: Callable[[], None]) -> None:
    try:
        write()
    except DatabaseFailed as error:
        log.warning("usage could not be written, and is kept until it can: %s", error)
    except Exception:
        log.exception("usage could not be written")
