"""What inference uses, in the memory of one gateway until it is written."""

import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import uuid4

from swapmeet.database import Database
from swapmeet.database.tables.base import now
from swapmeet.tenancy.caller import Caller
from swapmeet.tenancy.usage import Cell, minute, put, shares


class Ledger:
    """Tokens and requests by minute, caller and adapter; for any thread.

    A minute's amounts are written whole each time, and replace what was written of them before: an attempt that
    failed, or that nobody knows the end of, is simply made again.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock
        self._source = f"gateway-{uuid4().hex}"
        self._minute = minute(clock())
        self._amounts: dict[Cell, int] = {}
        self._changed: set[Cell] = set()
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    def count(self, caller: Caller, models: Sequence[tuple[str, str]], prompt: int, output: int) -> None:
        """Count an answer.

        Args:
            caller: who asked.
            models: name and owner of each adapter that answered, or of the base. Of a mix each bears an equal part of
                the tokens, and the first one the request.
            prompt: tokens read.
            output: tokens made.
        """
        with self._lock:
            # Clocks may be set back, but a minute that is written and forgotten can not be added to.
            self._minute = max(self._minute, minute(self._clock()))
            amounts = {"inference_requests": 1, "inference_prompt_tokens": prompt, "inference_output_tokens": output}
            for kind, amount in amounts.items():
                parts = [1] if kind == "inference_requests" else shares(amount, len(models))
                for (name, owner), part in zip(models, parts, strict=False):
                    cell = Cell(self._minute, caller.tenant, caller.key, kind, name[:200], owner)
                    self._amounts[cell] = self._amounts.get(cell, 0) + part
                    self._changed.add(cell)

    def flush(self) -> None:
        """Write what was counted.

        Raises:
            DatabaseFailed: it could not be written; it is kept, and written the next time.
        """
        with self._writing:
            with self._lock:
                changed, self._changed = self._changed, set()
                amounts = {cell: self._amounts[cell] for cell in changed}
            try:
                if amounts:
                    self._database.write(lambda session: put(session, self._source, amounts))
            except BaseException:
                with self._lock:
                    self._changed |= changed
                raise
            with self._lock:
                self._minute = max(self._minute, minute(self._clock()))
                over = [cell for cell in self._amounts if cell.at < self._minute and cell not in self._changed]
                for cell in over:
                    del self._amounts[cell]
