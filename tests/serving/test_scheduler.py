"""Admission, checked over random histories of arrivals, loads, failures, endings and cancellations."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swapmeet_serving.adapter_bank import AdapterBank
from swapmeet_serving.adapters import MOST_FAILURES, Adapters
from swapmeet_serving.errors import AdapterTooLarge, ContextTooLong, Overloaded, TooManyRequests
from swapmeet_serving.host_tier import HostTier
from swapmeet_serving.kv_pages import KvPages
from swapmeet_serving.mix import Mix
from swapmeet_serving.request import Request, Sampling
from swapmeet_serving.scheduler import Scheduler
from swapmeet_serving.sequence import Sequence, Slice

BUDGET, PAGES, PAGE, BATCH, STEP = 6, 10, 4, 3, 12
SIZES = {"a": 1, "b": 2, "c": 3, "d": 5, "e": 6, "huge": 7}


@dataclass
class File:
    """An adapter on disk whose weights are its own name."""

    name: str
    portable = True

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
    """An engine without a model. `memory` is what stands in each page's slots: what computed it, and the tokens."""

    def __init__(self, whole: bool = False, max_queue: int = 8) -> None:
        self.loader = ByHand()
        self.bank = AdapterBank(BUDGET)
        self.pages = KvPages(PAGES, PAGE)
        loader: Any = self.loader
        self.adapters = Adapters(
            self.bank, loader, Path, lambda _, identity: File(identity), str, HostTier(5), clock=lambda: self.now
        )
        self.scheduler = Scheduler(
            self.pages,
            self.adapters,
            context_length=99,
            max_batch=BATCH,
            max_queue=max_queue,
            max_step_tokens=STEP,
            whole=whole,
        )
        self.now = 0.0
        self.count = 0
        self.memory: dict[tuple[int, int], Any] = {}
        self.tokens = 0
        self.served: Counter[str] = Counter()

    def arrive(
        self, adapter: str | Mix | None = None, prompt: int | tuple[int, ...] = 3, new: int = 3, tenant: str = "t"
    ) -> Sequence:
        self.count += 1
        tokens = (1,) * prompt if isinstance(prompt, int) else prompt
        request = Request(str(self.count), tokens, adapter, Sampling(max_tokens=new), tenant)
        sequence = Sequence.of(request, self.scheduler.room)
        self.scheduler.check(sequence)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[Sequence]:
        """One step of the engine without a model: the next token of a sequence is the sum of its tokens."""
        self.now += 1
        for identity, _ in self.adapters.collect().items():
            for sequence in [each for each in self.scheduler.waiting if identity in each.adapters]:
                self.scheduler.remove(sequence)
        batch = self.scheduler.schedule()
        for sequence, _ in self.scheduler.refused:
            self.scheduler.remove(sequence)
        for piece in batch:
            self.compute(piece)
        self.tokens = sum(each.count for each in batch)
        self.scheduler.computed(batch)
        for sequence in [each.sequence for each in batch if not each.sequence.missing]:
            sequence.tokens.append(sum(sequence.tokens) % 3)
            self.served[sequence.request.tenant] += 1
            if sequence.completion_tokens == sequence.max_tokens:
                self.scheduler.remove(sequence)
        return [each.sequence for each in batch]

    def compute(self, piece: Slice) -> None:
        """Write the slice's tokens, and check that what came before is this very sequence's."""
        sequence = piece.sequence
        who = (sequence.request.tenant, sequence.mix)
        for place in range(sequence.cached + piece.count):
            slot = (sequence.pages[place // PAGE], place % PAGE)
            content = (who, tuple(sequence.tokens[: place + 1]))
            if place >= sequence.cached:
                self.memory[slot] = content
            assert self.memory[slot] == content, "another's keys and values"

    def load_everything(self) -> None:
        while self.loader.jobs:
            self.loader.end(0)


MIXES = [
    None,
    *SIZES,
    (("a", 0.5), ("b", 0.5)),
    (("a", 0.5), ("b", 0.6)),
    (("d", 1.0), ("c", 1.0)),
    (("c", 2.0), ("b", 1.0)),
]


class History(RuleBasedStateMachine):
    whole = False

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.whole, max_queue=30)
        self.loader, self.scheduler = self.world.loader, self.world.scheduler

    @precondition(lambda self: len(self.scheduler.waiting) < 8)
    @rule(
        adapter=st.sampled_from(MIXES),
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20).map(tuple),
        new=st.integers(1, PAGE * PAGES - 20),
        tenant=st.sampled_from("tu"),
    )
    def arrive(self, adapter: str | Mix | None, prompt: tuple[int, ...], new: int, tenant: str) -> None:
        self.world.arrive(adapter, prompt, new, tenant)

    @precondition(lambda self: self.loader.jobs)
    @rule(data=st.data(), fails=st.booleans())
    def end_a_load(self, data: st.DataObject, fails: bool) -> None:
        index = data.draw(st.integers(0, len(self.loader.jobs) - 1))
        self.loader.end(index, OSError("no such adapter") if fails else None)

    @rule()
    def step(self) -> None:
        batch = self.world.step()
        assert self.whole or self.world.tokens <= max(STEP, BATCH + PAGE)
        assert len({id(each) for each in batch}) == len(batch)

    @precondition(lambda self: self.scheduler.waiting or self.scheduler.running)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.scheduler.remove(data.draw(st.sampled_from(self.scheduler.waiting + self.scheduler.running)))

    @invariant()
    def pages_are_those_of_running_sequences(self) -> None:
        held = Counter(page for each in self.scheduler.running for page in each.pages)
        assert len(held) == PAGES - self.world.pages.free
        assert all(len(each.pages) * PAGE >= each.cached for each in self.scheduler.running)
        assert not any(each.pages for each in self.scheduler.waiting)
        if self.whole:
            assert max(held.values(), default=1) == 1
            assert not self.scheduler.preemptions

    @invariant()
    def adapters_of_running_sequences_are_resident(self) -> None:
        resident = self.world.adapters.resident
        assert all(name in resident for each in self.scheduler.running for name in each.adapters)
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


class WholeHistory(History):
    whole = True


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWholeHistory = WholeHistory.TestCase
TestWholeHistory.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


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


def test_long_prompts_come_in_pieces_beside_those_that_decode() -> None:
    world = World()
    decoding = world.arrive(prompt=2, new=20)
    world.step()
    long = world.arrive(prompt=tuple(range(25)), new=1)
    cached = []
    while long in world.scheduler.running + world.scheduler.waiting:
        assert decoding in world.step()
        cached.append(long.cached)
    assert cached == [STEP - 1, 2 * STEP - 2, 25]


def test_whole_prompts_are_taken_in_at_once() -> None:
    world = World(whole=True)
    sequences = [world.arrive(prompt=STEP + 8, new=1), world.arrive(prompt=1, new=1)]
    assert world.step() == sequences[:1]
    assert world.step() == sequences[1:]


def test_a_known_prefix_is_not_computed_again() -> None:
    world = World()
    prompt = tuple(n % 5 for n in range(11))
    for again, shared in ((False, 0), (True, 8), (True, 8)):
        sequence = world.arrive(prompt=prompt, new=2)
        world.step()
        assert sequence.cached_prompt == shared, again
        world.step()
    for other in (world.arrive(prompt=prompt, tenant="other"), world.arrive("a", prompt=prompt)):
        world.step()
        world.load_everything()
        world.step()
        world.load_everything()
        world.step()
        assert other.cached_prompt == 0, "of another tenant or adapter"


def test_a_spoilt_prefix_is_computed_again() -> None:
    world = World()
    prompt = tuple(n % 5 for n in range(11))
    first = world.arrive(prompt=prompt, new=9)
    world.step()
    second = world.arrive(prompt=prompt, new=9)
    world.step()
    assert second.cached_prompt == 8
    world.scheduler.remove(first, spoilt=True)
    third = world.arrive(prompt=prompt, new=2)
    world.step()
    assert third.cached_prompt == 0
    world.scheduler.remove(second)
    while world.scheduler.running:
        world.step()
    assert world.pages.free == world.pages.count


def test_whoever_came_last_steps_back_when_pages_run_out_and_all_end() -> None:
    world = World()
    first, second = (world.arrive(prompt=(n,) * 14, new=22) for n in (1, 2))
    for _ in range(200):
        world.step()
        if second in world.scheduler.waiting:
            assert first in world.scheduler.running or first.completion_tokens == 22
        if not world.scheduler.running + world.scheduler.waiting:
            break
    assert world.scheduler.preemptions > 0
    assert first.completion_tokens == second.completion_tokens == 22


def test_a_flood_of_one_tenant_does_not_starve_another() -> None:
    world = World(max_queue=100)
    for _ in range(60):
        world.arrive(prompt=4, new=4, tenant="flood")
    for _ in range(5):
        world.step()
    modest = [world.arrive(prompt=4, new=4, tenant="modest") for _ in range(3)]
    steps = 0
    while any(each in world.scheduler.waiting or each in world.scheduler.running for each in modest):
        world.step()
        steps += 1
    assert steps < 15
    assert world.scheduler.waiting


def test_tenants_with_work_get_equal_shares() -> None:
    world = World(max_queue=400)
    for _ in range(100):
        world.arrive(prompt=2, new=8, tenant="long")
        world.arrive(prompt=2, new=2, tenant="short")
    for _ in range(100):
        world.step()
    assert abs(world.served["long"] - world.served["short"]) < 0.25 * world.served.total()


def test_a_tenant_can_not_fill_the_whole_queue() -> None:
    world = World()
    for _ in range(6):
        world.arrive("a", tenant="flood")
    with pytest.raises(TooManyRequests, match="6 of your requests are waiting"):
        world.arrive("a", tenant="flood")
    world.arrive("a", tenant="modest")


def test_what_can_never_fit_is_refused() -> None:
    world = World()
    with pytest.raises(ContextTooLong, match=r"The prompt has 38 tokens and max_tokens is 3, .* the 40 that fit"):
        world.arrive(prompt=38, new=3)
    world.arrive(prompt=37, new=3)


def test_a_full_queue_is_overloaded() -> None:
    world = World()
    for count in range(8):
        world.arrive("a", tenant=str(count))
    with pytest.raises(Overloaded, match="8 requests are waiting"):
        world.arrive("a", tenant="next")


def test_a_mix_that_can_never_be_in_memory_is_refused_and_others_go_on() -> None:
    world = World()
    world.arrive((("d", 1.0), ("c", 1.0)))
    for _ in range(5):
        world.step()
        world.load_everything()
    assert not world.scheduler.waiting
    assert isinstance(world.scheduler.refused, list)
    fits = world.arrive((("c", 1.0), ("b", 1.0)), new=1)
    steps = 0
    while fits in world.scheduler.waiting + world.scheduler.running:
        world.step()
        world.load_everything()
        steps += 1
        assert steps < 20


def test_a_failed_load_is_remembered_for_a_while() -> None:
    world = World()
    world.arrive("a")
    world.step()
    world.loader.end(0, OSError("no such adapter"))
    world.step()
    assert not world.scheduler.waiting
    again = world.arrive("a")
    world.step()
    assert not world.loader.jobs, "it is not asked for again"
    assert again not in world.scheduler.waiting
    world.now += 60
    world.arrive("a")
    world.step()
    assert len(world.loader.jobs) == 1


def test_bad_names_evict_nothing_and_memory_of_them_is_bounded() -> None:
    world = World(max_queue=3000)
    good = world.arrive("a", new=1)
    for _ in range(4):
        world.step()
        world.load_everything()
    assert good not in world.scheduler.waiting
    for number in range(1500):
        world.arrive(f"bad{number}")
        world.step()
        while world.loader.jobs:
            world.loader.end(0, LookupError("no such adapter"))
    world.step()
    assert world.adapters.resident == ["a"]
    assert len(world.adapters._failures) <= MOST_FAILURES


def test_too_large_an_adapter_fails_its_own_requests_only() -> None:
    world = World()
    world.arrive("huge")
    world.step()
    world.load_everything()
    failed = world.adapters.collect()
    assert list(failed) == ["huge"]
    assert isinstance(failed["huge"], AdapterTooLarge)
