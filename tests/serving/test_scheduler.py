"""Admission, checked over random histories of arrivals, loads, failures, endings and cancellations."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swapmeet_serving.adapter_bank import AdapterBank
from swapmeet_serving.adapters import Adapters
from swapmeet_serving.errors import AdapterTooLarge, ContextTooLong, Overloaded
from swapmeet_serving.kv_pages import KvPages
from swapmeet_serving.scheduler import Scheduler
from swapmeet_serving.sequence import Request, Sampling, Sequence

BUDGET, PAGES, PAGE, BATCH, PREFILL = 6, 10, 4, 3, 12
SIZES = {"a": 1, "b": 2, "c": 3, "d": 5, "e": 6, "huge": 7}


@dataclass
class File:
    """An adapter on disk whose weights are its own name."""

    name: str

    @property
    def size(self) -> int:
        return SIZES[self.name]

    def read(self) -> str:
        return self.name


class ByHand:
    """A loader whose jobs end when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, Callable[[], Any]]] = []
        self.done: list[tuple[str, Any]] = []

    def start(self, identity: str, job: Callable[[], Any]) -> None:
        assert identity not in [name for name, _ in self.jobs], "two flights for one adapter"
        self.jobs.append((identity, job))

    def end(self, index: int, error: Exception | None = None) -> None:
        identity, job = self.jobs.pop(index)
        self.done.append((identity, error or job()))

    def finished(self) -> list[tuple[str, Any]]:
        done, self.done = self.done, []
        return done


class World:
    def __init__(self) -> None:
        self.loader = ByHand()
        self.bank = AdapterBank(BUDGET)
        self.pages = KvPages(PAGES, PAGE)
        loader: Any = self.loader
        self.adapters = Adapters(self.bank, loader, Path, lambda _, identity: File(identity))
        self.scheduler = Scheduler(
            self.pages, self.adapters, context_length=99, max_batch=BATCH, max_queue=8, max_prefill_tokens=PREFILL
        )
        self.count = 0

    def arrive(self, adapter: str | None = None, prompt: int = 3, new: int = 3) -> Sequence:
        self.count += 1
        request = Request(str(self.count), (1,) * prompt, adapter, Sampling(max_tokens=new))
        sequence = Sequence.of(request, self.scheduler.room)
        self.scheduler.check(sequence)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[Sequence]:
        """One step of the engine without a model."""
        for identity, _ in self.adapters.collect().items():
            for sequence in [each for each in self.scheduler.waiting if each.adapter == identity]:
                self.scheduler.remove(sequence)
        batch = self.scheduler.schedule()
        for sequence in batch:
            sequence.cached = len(sequence.tokens)
            sequence.tokens.append(1)
            if sequence.completion_tokens == sequence.max_tokens:
                self.scheduler.remove(sequence)
        return batch

    def load_everything(self) -> None:
        while self.loader.jobs:
            self.loader.end(0)


class History(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.loader, self.scheduler = self.world.loader, self.world.scheduler

    @precondition(lambda self: len(self.scheduler.waiting) < 8)
    @rule(adapter=st.sampled_from([None, *SIZES]), prompt=st.integers(1, 20), new=st.integers(1, PAGE * PAGES - 20))
    def arrive(self, adapter: str | None, prompt: int, new: int) -> None:
        self.world.arrive(adapter, prompt, new)

    @precondition(lambda self: self.loader.jobs)
    @rule(data=st.data(), fails=st.booleans())
    def end_a_load(self, data: st.DataObject, fails: bool) -> None:
        index = data.draw(st.integers(0, len(self.loader.jobs) - 1))
        self.loader.end(index, OSError("no such adapter") if fails else None)

    @rule()
    def step(self) -> None:
        batch = self.world.step()
        assert [each.decoding for each in batch] == [True] * len(batch)

    @precondition(lambda self: self.scheduler.waiting or self.scheduler.running)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.scheduler.remove(data.draw(st.sampled_from(self.scheduler.waiting + self.scheduler.running)))

    @invariant()
    def pages_are_those_of_running_sequences(self) -> None:
        held = [page for each in self.scheduler.running for page in each.pages]
        assert len(held) == len(set(held)) == PAGES - self.world.pages.free
        assert all(len(each.pages) * PAGE >= each.most_tokens for each in self.scheduler.running)
        assert not any(each.pages for each in self.scheduler.waiting)

    @invariant()
    def adapters_of_running_sequences_are_resident(self) -> None:
        resident = self.world.adapters.resident
        assert all(each.adapter in resident for each in self.scheduler.running if each.adapter)
        assert self.world.bank.used <= BUDGET
        assert all(self.world.adapters.weights(name) == name for name in resident)

    @invariant()
    def limits_hold(self) -> None:
        assert len(self.scheduler.running) <= BATCH

    def teardown(self) -> None:
        """Whatever happened, once loads succeed everything ends, and all is given back."""
        for _ in range(2_000):
            if not (self.scheduler.waiting or self.scheduler.running):
                break
            self.world.load_everything()
            self.world.step()
        assert not self.scheduler.waiting, "deadlock"
        assert not self.scheduler.running
        self.world.load_everything()
        self.world.adapters.collect()
        assert self.world.pages.free == PAGES
        assert self.world.bank.reserve("everything", BUDGET) is not None, "a pin was left behind"


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_load_under_way_holds_up_nobody_else() -> None:
    world = World()
    slow, base = world.arrive("a"), world.arrive()
    assert world.step() == [base]
    assert slow in world.scheduler.waiting


def test_rows_of_one_adapter_stand_together_and_decoding_ones_first() -> None:
    world = World()
    first, second = world.arrive("b", prompt=2, new=4), world.arrive("a", prompt=2, new=4)
    for _ in range(2):
        world.step()
        world.load_everything()
    assert world.step() == [second, first]
    third = world.arrive("a", prompt=2, new=2)
    assert world.step() == [second, first, third]
    assert world.step() == [second, third, first]


def test_an_adapter_without_room_waits_for_those_in_use_and_is_not_passed_for_ever() -> None:
    world = World()
    world.arrive("d", new=8)
    for _ in range(2):
        world.step()
        world.load_everything()
    world.step()
    large = world.arrive("e", new=2)
    world.step()
    world.load_everything()  # on disk now, and without room
    again = world.arrive("d", new=2)
    bare = world.arrive(new=2)
    assert bare in world.step()
    assert again in world.scheduler.waiting, "it would keep the large one out"
    order = []
    for _ in range(30):
        world.load_everything()
        order += [each for each in world.step() if each in (large, again)]
    assert order == [large, large, again, again]


def test_prompts_are_taken_in_within_the_token_limit() -> None:
    world = World()
    sequences = [world.arrive(prompt=PREFILL + 1, new=1), world.arrive(prompt=1, new=1)]
    assert world.step() == sequences[:1]
    assert world.step() == sequences[1:]


def test_what_can_never_fit_is_refused() -> None:
    world = World()
    with pytest.raises(ContextTooLong, match=r"The prompt has 38 tokens and max_tokens is 3, .* the 40 that fit"):
        world.arrive(prompt=38, new=3)
    world.arrive(prompt=37, new=3)


def test_a_full_queue_is_overloaded() -> None:
    world = World()
    for _ in range(8):
        world.arrive("a")
    with pytest.raises(Overloaded, match="8 requests are waiting"):
        world.arrive("a")


def test_too_large_an_adapter_fails_its_own_requests_only() -> None:
    world = World()
    world.arrive("huge")
    world.step()
    world.load_everything()
    failed = world.adapters.collect()
    assert list(failed) == ["huge"]
    assert isinstance(failed["huge"], AdapterTooLarge)
