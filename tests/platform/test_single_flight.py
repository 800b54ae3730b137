"""One look-up for all who ask at once, and none older than the question."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from swapmeet.gateway.single_flight import SingleFlight
from swapmeet.gateway.unknown_models import UnknownModels
from swapmeet_registry import NotFound, StoreError

CALLERS = 100


class Slow:
    """A look-up that waits until the test lets it go on; answers with the value that holds when it begins."""

    def __init__(self) -> None:
        self.asked = 0
        self.value: str | Exception = "old"
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self, _: str = "") -> str:
        self.asked += 1
        value = self.value
        self.begun.release()
        assert self.go.wait(60)
        if isinstance(value, Exception):
            raise value
        return value


def joined(flights: SingleFlight, callers: int) -> None:
    """Wait until so many ask for the only key."""
    while sum(each.members for each in list(flights._flights.values())) < callers:
        threading.Event().wait(0.001)


def ask(flights: SingleFlight, slow: Slow, look: Callable[[], str], change: object = None) -> list[object]:
    """What the first caller finds, and all others, who come while the first one looks."""
    with ThreadPoolExecutor(CALLERS) as pool:
        first = pool.submit(look)
        assert slow.begun.acquire(timeout=60)
        if change is not None:
            slow.value = change  # type: ignore[assignment]
        others = [pool.submit(look) for _ in range(CALLERS - 1)]
        joined(flights, CALLERS)
        slow.go.set()
        wait([first, *others])
    return [each.exception() or each.result() for each in (first, *others)]


def test_all_who_come_meanwhile_share_the_next_answer() -> None:
    flights, slow = SingleFlight(), Slow()
    found = ask(flights, slow, lambda: flights.look_up("a", slow), "new")
    assert found == ["old"] + ["new"] * (CALLERS - 1), "what changed before they asked is seen"
    assert slow.asked == 2
    assert len(flights) == 0


def test_a_failure_is_shared_and_not_kept() -> None:
    flights, slow = SingleFlight(), Slow()
    found = ask(flights, slow, lambda: flights.look_up("a", slow), StoreError("away"))
    assert found[0] == "old"
    assert {str(each) for each in found[1:]} == {"away"}
    assert slow.asked == 2
    slow.value = "back"
    assert flights.look_up("a", slow) == "back"


def test_other_names_do_not_wait() -> None:
    flights, slow = SingleFlight(), Slow()
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(flights.look_up, "a", slow)
        assert slow.begun.acquire(timeout=60)
        assert flights.look_up("b", lambda: "b") == "b"
        slow.go.set()
        assert stuck.result() == "old"


def test_a_name_that_nobody_knows_is_asked_for_once() -> None:
    unknown, slow = UnknownModels(), Slow()
    slow.value = NotFound("There is no a.")
    found = ask(unknown._flights, slow, lambda: unknown.look_up("a", slow))
    assert all(isinstance(each, NotFound) for each in found)
    assert {str(each) for each in found} == {"There is no a."}
    assert slow.asked == 1


@pytest.mark.parametrize("known", [True, False])
def test_over_a_gateway(known: bool) -> None:
    """The same through the threads in which the gateway looks names up."""
    import asyncio

    from fastapi.concurrency import run_in_threadpool

    unknown, slow = UnknownModels(), Slow()
    slow.value = "version" if known else NotFound("There is no a.")

    async def flood() -> list[object]:
        asked = [asyncio.create_task(run_in_threadpool(unknown.look_up, "a", slow)) for _ in range(CALLERS)]
        await asyncio.to_thread(slow.begun.acquire)
        slow.go.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(flood())
    assert all(each == "version" if known else isinstance(each, NotFound) for each in found)
    if not known:
        assert slow.asked == 1
