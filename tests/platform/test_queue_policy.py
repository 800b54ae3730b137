"""Who runs next: shares, priorities, deadlines, quotas, room, and who makes way; in single decisions and over time."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swapmeet.queue.ends import PARKING
from swapmeet.queue.policy import (
    Active,
    Backlog,
    Decision,
    Need,
    Node,
    Promise,
    Share,
    Start,
    Waiting,
    decide,
)
from swapmeet.queue.preemption import LEAST
from swapmeet.queue.turns import HALF_LIFE, decayed

GPU = Need(1, 1, 0)
NOW = 1_000_000.0
HOUR = 3600.0
_numbers = count()


def waiting(tenant: str = "acme", need: Need = GPU, **more: Any) -> Waiting:
    number = next(_numbers)
    usual = {"priority": 0, "queued_at": NOW - 60 + number / 1e6, "deadline": None, "seconds": HOUR}
    return Waiting(more.pop("id", f"{tenant}-{number:06}"), tenant, need, **(usual | more))


def active(tenant: str = "acme", need: Need = GPU, node: str = "n1", **more: Any) -> Active:
    usual = {"priority": 0, "started_at": NOW - HOUR / 2, "seconds": HOUR, "preemptible": True}
    return Active(more.pop("id", f"{tenant}-{next(_numbers):06}"), tenant, need, node=node, **(usual | more))


def node(gpus: Sequence[float] = (1.0,), cpus: float = 64, name: str = "n1", memory: float = 1e12) -> Node:
    return Node(name, cpus, tuple(gpus), memory)


def started(decision: Decision) -> list[str]:
    return [start.job for start in decision.starts]


# whose turn it is


def test_tenants_take_turns_and_not_jobs() -> None:
    flood = [waiting("flood") for _ in range(100)]
    few = [waiting("few") for _ in range(2)]
    decision = decide(flood + few, (), [node([1.0] * 4)], {}, NOW)
    assert Counter(name.split("-")[0] for name in started(decision)) == {"flood": 2, "few": 2}


def test_weights_say_how_much() -> None:
    jobs = [waiting(tenant) for tenant in ("one", "three") for _ in range(20)]
    decision = decide(jobs, (), [node([1.0] * 8)], {"three": Share(weight=3)}, NOW)
    assert Counter(name.split("-")[0] for name in started(decision)) == {"one": 2, "three": 6}


def test_who_used_little_lately_comes_first() -> None:
    jobs = [waiting("much"), waiting("little")]
    shares = {"much": Share(used=5000), "little": Share(used=4000)}
    assert started(decide(jobs, (), [node()], shares, NOW)) == [jobs[1].id]
    assert started(decide(jobs, (), [node()], {"much": Share(weight=2, used=5000), **shares} | {}, NOW)) == [jobs[1].id]
    heavy = {"much": Share(weight=2, used=5000), "little": Share(used=4000)}
    assert started(decide(jobs, (), [node()], heavy, NOW)) == [jobs[0].id]


def test_what_was_used_fades() -> None:
    assert decayed([(NOW, 100.0), (NOW - HALF_LIFE, 100.0), (NOW - 2 * HALF_LIFE, 100.0)], NOW) == 175.0
    assert decayed([(NOW + 5, 100.0)], NOW) == 100.0


def test_without_gpus_cpus_are_shared() -> None:
    jobs = [waiting(tenant, Need(2, 0, 0)) for tenant in "aaaaaab"]
    decision = decide(jobs, (), [node((), cpus=8)], {"b": Share(used=1.0)}, NOW)
    assert Counter(name[0] for name in started(decision)) == {"a": 3, "b": 1}


def test_the_resource_that_a_tenant_takes_most_of_counts() -> None:
    jobs = [waiting("cpus", Need(16, 0, 0)) for _ in range(8)] + [waiting("gpus") for _ in range(8)]
    decision = decide(jobs, (), [node([1.0] * 8, cpus=64)], {}, NOW)  # 16 of 64 CPUs weigh as much as 2 of 8 GPUs
    assert Counter(name.split("-")[0] for name in started(decision)) == {"cpus": 3, "gpus": 8}
    assert [name.split("-")[0] for name in started(decision)][:6] == ["cpus", "gpus", "gpus", "cpus", "gpus", "gpus"]


def test_within_a_tenant_priority_then_age() -> None:
    old, young, high = waiting(queued_at=1.0), waiting(queued_at=2.0), waiting(priority=1, queued_at=3.0)
    for room, chosen in ((1, [high]), (2, [high, old]), (3, [high, old, young])):
        decision = decide([young, old, high], (), [node([1.0] * room)], {}, NOW)
        assert started(decision) == [job.id for job in chosen]


def test_priority_is_worth_nothing_beyond_the_share() -> None:
    loud = [waiting("loud", priority=100) for _ in range(4)]
    modest = [waiting("modest") for _ in range(4)]
    decision = decide(loud + modest, (), [node([1.0] * 4)], {}, NOW)
    assert Counter(name.split("-")[0] for name in started(decision)) == {"loud": 2, "modest": 2}


def test_urgent_jobs_first_the_earliest_before_all_but_not_those_that_are_too_late() -> None:
    usual, high = waiting(), waiting(priority=5)
    soon = waiting(deadline=NOW + 1.5 * HOUR)
    sooner = waiting(deadline=NOW + 1.2 * HOUR)
    relaxed, late = waiting(deadline=NOW + 5 * HOUR), waiting(deadline=NOW + HOUR - 1)
    jobs = [usual, high, soon, sooner, relaxed, late]
    decision = decide(jobs, (), [node([1.0] * 6)], {}, NOW)
    assert started(decision) == [job.id for job in (sooner, soon, high, usual, relaxed, late)]


# room


def test_parts_of_gpus_are_packed_where_they_fit_best() -> None:
    nodes = [node([1.0, 0.5], name="a"), node([0.6, 0.25], name="b"), node([0.3], name="c")]
    assert decide([waiting(need=Need(0, 0.25, 0))], (), nodes, {}, NOW).starts[0].node == "b"
    assert decide([waiting(need=Need(0, 0.3, 0))], (), nodes, {}, NOW).starts[0].node == "c"
    assert decide([waiting(need=Need(0, 0.5, 0))], (), nodes, {}, NOW).starts[0].node == "a"


def test_tenths_add_up_to_a_gpu() -> None:
    jobs = [waiting(need=Need(0, 0.1, 0)) for _ in range(10)]
    assert len(decide(jobs, (), [node()], {}, NOW).starts) == 10
    assert len(decide([*jobs, waiting(need=Need(0, 0.1, 0))], (), [node()], {}, NOW).starts) == 10


def test_whole_gpus_are_taken_where_few_are_and_cpu_jobs_go_where_none_are() -> None:
    nodes = [node([1.0] * 8, name="large"), node([1.0] * 2, name="small"), node((), name="none")]
    jobs = [waiting("a"), waiting("b", Need(4, 0, 0)), waiting("c", Need(0, 8, 0))]
    decision = decide(jobs, (), nodes, {}, NOW)
    assert {start.job[0]: start.node for start in decision.starts} == {"a": "small", "b": "none", "c": "large"}


def test_two_halves_are_no_whole() -> None:
    assert decide([waiting()], (), [node([0.5, 0.5])], {}, NOW).starts == []


def test_memory_is_room_too() -> None:
    jobs = [waiting(need=Need(1, 0.1, 6e9)) for _ in range(3)]
    assert len(decide(jobs, (), [node(memory=13e9)], {}, NOW).starts) == 2


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        (Need(1, 4, 0), "needs 4 GPUs, and the largest node has 2"),
        (Need(100, 1, 0), "needs 100 CPUs, and the largest node has 64"),
        (Need(1, 1, 3e12), "needs 3e+03 GB of memory, and the largest node has 1e+03 GB"),
        (Need(100, 8, 0), "needs 8 GPUs, and the largest node has 2; needs 100 CPUs, and the largest node has 64"),
        (Need(32, 2, 0), "needs 2 GPUs, 32 CPUs on one node, and none has all of that"),
    ],
)
def test_what_fits_nowhere_says_so(need: Need, reason: str) -> None:
    nodes = [node([1.0] * 2, cpus=16, name="gpus"), node((), cpus=64, name="cpus")]
    jobs = [waiting(need=need, id="big"), waiting(need=Need(1, 0.5, 0))]
    decision = decide(jobs, (), nodes, {}, NOW)
    assert len(decision.starts) == 1, "what can never run is in nobody's way"
    assert decision.waits["big"].reason == reason
    assert decision.waits["big"].seconds is None


def test_without_nodes_all_wait() -> None:
    decision = decide([waiting(id="a")], [active(node="gone")], [], {}, NOW)
    assert decision.starts == []
    assert decision.waits["a"].reason == "needs 1 GPU, 1 CPU, and no node is there"


def test_jobs_on_a_node_that_vanished_count_for_their_tenant_and_take_no_room() -> None:
    ghosts = [active("acme", node="gone") for _ in range(2)]
    jobs = [waiting("acme"), waiting("other")]
    decision = decide(jobs, ghosts, [node()], {"acme": Share(concurrent_runs=2)}, NOW)
    assert started(decision) == [jobs[1].id]
    assert decision.preempts == []


def test_short_jobs_pass_a_big_one_and_long_ones_do_not() -> None:
    running = active("x", seconds=HOUR, started_at=NOW)
    big = waiting("big", Need(1, 2, 0), queued_at=1.0)
    short, long = waiting("short", seconds=HOUR / 2), waiting("long", seconds=2 * HOUR)
    unknown = waiting("unknown", seconds=0)
    decision = decide([unknown, long, short, big], [running], [node([0.0, 1.0])], {"short": Share(used=9e9)}, NOW)
    assert started(decision) == [short.id]
    assert decision.waits[big.id].reason == "needs 2 GPUs, 1 CPU; n1 is held for it"
    assert decision.waits[big.id].seconds == HOUR


def test_long_jobs_pass_where_room_for_the_big_one_is_left() -> None:
    running = [active("x", Need(1, 2, 0), started_at=NOW)]
    big, long = waiting("big", Need(1, 3, 0), queued_at=1.0), waiting("long", seconds=9 * HOUR)
    decision = decide([big, long], running, [node([0.0, 0.0, 1.0, 1.0])], {}, NOW)
    assert started(decision) == [long.id]


def test_the_one_that_waits_longest_is_held_for_whatever_its_turn() -> None:
    small = [waiting(f"t{number}", seconds=9 * HOUR) for number in range(20)]
    big = waiting("big", Need(1, 2, 0), queued_at=NOW - 2 * HOUR)
    decision = decide([*small, big], [active("x")], [node([0.0, 1.0])], {"big": Share(used=1e9)}, NOW)
    assert decision.starts == []
    assert "n1 is held for it" in decision.waits[big.id].reason


# quotas


def test_quotas_hold_jobs_back() -> None:
    jobs = [waiting("a") for _ in range(3)] + [waiting("b"), waiting("c")]
    shares = {"a": Share(concurrent_runs=2), "b": Share(concurrent_runs=0), "c": Share(gpu_seconds_left=0)}
    decision = decide(jobs, [active("a")], [node([0.0, *[1.0] * 7])], shares, NOW)
    assert started(decision) == [jobs[0].id]
    reasons = [decision.waits[job.id].reason for job in jobs[1:]]
    assert reasons[0] == "a runs 2 jobs, of at most 2 at once; 0 jobs of its tenant before it"
    assert reasons[2] == "b may run no jobs; 0 jobs of its tenant before it"
    assert reasons[3].startswith("c has used up its GPU-seconds")
    assert decision.waits[jobs[4].id].seconds is None


def test_gpu_seconds_that_running_jobs_will_use_are_not_given_twice() -> None:
    jobs = [waiting(need=Need(1, 2, 0)) for _ in range(3)]
    shares = {"acme": Share(gpu_seconds_left=2.5 * 2 * HOUR)}
    assert len(decide(jobs, [active(need=Need(1, 2, 0))], [node([0, 0, *[1.0] * 6])], shares, NOW).starts) == 2
    assert (
        len(decide([waiting(need=Need(1, 0, 0))], (), [node()], {"acme": Share(gpu_seconds_left=0)}, NOW).starts) == 1
    )


def test_who_has_used_up_its_gpu_seconds_is_parked() -> None:
    running = [active(id="gpu"), active(id="cpu", need=Need(1, 0, 0)), active(id="fixed", preemptible=False)]
    decision = decide((), running, [node([0.0, 0.0])], {"acme": Share(gpu_seconds_left=0)}, NOW)
    assert decision.preempts == ["gpu"]
    assert decision.because == {"gpu": "acme has used up its GPU-seconds"}
    again = decide((), [replace(job, parking=True) for job in running], [node([0.0, 0.0])], {}, NOW)
    assert again.preempts == []


# who makes way


def test_a_tenant_without_anything_gets_the_youngest_job_s_room_of_one_that_has_more() -> None:
    running = [active("rich", id=f"r{number}", started_at=NOW - 4000 - number, seconds=9 * HOUR) for number in range(3)]
    job = waiting("poor")
    decision = decide([job, waiting("poor")], running, [node([0.0] * 3)], {}, NOW)
    assert decision.preempts == ["r0"]
    assert decision.because == {"r0": f"makes way for poor's {job.id}"}
    assert decision.promises == {job.id: Promise("n1", ("r0",))}
    assert decision.waits[job.id].reason == "1 job on n1 makes way for it"
    assert decision.waits[job.id].seconds == PARKING
    parked = [replace(each, parking=each.id == "r0") for each in running]
    same = decide([job, waiting("poor")], parked, [node([0.0] * 3)], {}, NOW + 5, decision.promises)
    assert same.preempts == []
    assert same.promises == decision.promises
    after = decide([job, waiting("other")], running[1:], [node([0.0, 0.0, 1.0])], {}, NOW + 20, decision.promises)
    assert started(after) == [job.id]


@pytest.mark.parametrize(
    "change",
    [
        {"preemptible": False},
        {"started_at": NOW - LEAST + 1},
        {"seconds": HOUR / 2 + 60},  # ends in a minute
        {"tenant": "poor"},
        {"parking": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_some_are_left_alone(change: dict[str, Any]) -> None:
    running = [active(**({"tenant": "rich", "seconds": 9 * HOUR} | change)) for _ in range(2)]
    assert decide([waiting("poor")], running, [node([0.0] * 2)], {}, NOW).preempts == []


def test_nobody_loses_its_only_job_to_an_equal() -> None:
    assert decide([waiting("poor")], [active("one", seconds=9e9)], [node([0.0])], {}, NOW).preempts == []
    assert decide([waiting("poor", priority=9)], [active("one", seconds=9e9)], [node([0.0])], {}, NOW).preempts == []


def test_who_used_far_more_lately_waits_for_its_turn() -> None:
    running = [active("rich", seconds=9e9) for _ in range(2)]
    assert decide([waiting("poor")], running, [node([0.0] * 2)], {"poor": Share(used=1e6)}, NOW).preempts == []


def test_priority_makes_way_within_a_tenant() -> None:
    running = [active(priority=priority, id=f"p{priority}", seconds=9e9) for priority in (2, 1, 3)]
    for priority, parked in ((1, []), (2, ["p1"]), (9, ["p1"])):
        decision = decide([waiting(priority=priority)], running, [node([0.0] * 3)], {}, NOW)
        assert decision.preempts == parked


def test_priority_makes_way_where_only_the_number_of_runs_is_in_the_way() -> None:
    running = [active(id=f"p{number}", seconds=9e9, started_at=NOW - 5000 + number) for number in range(2)]
    shares = {"acme": Share(concurrent_runs=2)}
    decision = decide([waiting(priority=1)], running, [node([0.0, 0.0, 1.0])], shares, NOW)
    assert decision.preempts == ["p1"]
    after = decide([waiting(id="low"), waiting(id="high", priority=1)], running[:1], [node([0, 1.0, 1.0])], shares, NOW)
    assert started(after) == ["high"]


def test_priority_makes_way_across_tenants_up_to_the_share() -> None:
    running = [active("rich", seconds=9e9) for _ in range(5)] + [active("loud", seconds=9e9, priority=5)]
    jobs = [waiting("loud", priority=5) for _ in range(9)]
    decision = decide(jobs, running, [node([0.0] * 6)], {}, NOW)
    assert len(decision.preempts) == 1
    assert decide([replace(job, priority=0) for job in jobs], running, [node([0.0] * 6)], {}, NOW).preempts == []
    even = [active(tenant, seconds=9e9, priority=5 * (tenant == "loud")) for tenant in ("rich", "loud") * 3]
    assert decide(jobs, even, [node([0.0] * 6)], {}, NOW).preempts == []


def test_no_more_make_way_than_needed() -> None:
    need = Need(0, 0.25, 0)
    running = [active(need=need, id=f"q{number}", devices=(number // 4,), seconds=9e9) for number in range(8)]
    decision = decide([waiting(need=Need(0, 0.5, 0), priority=1)], running, [node([0.0, 0.0])], {}, NOW)
    assert len(decision.preempts) == 2
    assert len({int(name[1]) // 4 for name in decision.preempts}) == 1, "both of one GPU"
    one = decide([waiting(need=Need(0, 0.5, 0), priority=1)], running[:7], [node([0.0, 0.25])], {}, NOW)
    assert len(one.preempts) == 1
    assert one.preempts[0] in {"q4", "q5", "q6"}


# words, time, order


def test_a_word_and_a_time_for_each_that_waits() -> None:
    running = [active("a", seconds=HOUR, started_at=NOW - HOUR / 2) for _ in range(2)]
    jobs = [waiting("a") for _ in range(4)] + [waiting("b")]
    decision = decide(jobs, running, [node([0.0, 0.0])], {}, NOW)
    assert decision.preempts
    waits = [decision.waits[job.id] for job in jobs]
    assert [wait.seconds for wait in waits] == [HOUR / 2, HOUR + PARKING, 1.5 * HOUR, 2 * HOUR + PARKING, PARKING]
    assert waits[0].reason == "needs 1 GPU, 1 CPU; 1 job before it, 0 of its tenant"
    assert waits[3].reason == "needs 1 GPU, 1 CPU; 4 jobs before it, 3 of its tenant"


def test_jobs_that_outlast_their_estimates_or_have_none_end_some_time() -> None:
    for seconds in (60.0, 0.0):
        decision = decide([waiting(id="a")], [active(seconds=seconds)], [node([0.0])], {}, NOW)
        wait = decision.waits["a"].seconds
        assert wait is not None
        assert 0 < wait <= HOUR


def test_without_explanations_the_decision_is_the_same() -> None:
    jobs = [waiting(tenant) for tenant in "aab"]
    full = decide(jobs, (), [node()], {}, NOW)
    assert decide(jobs, (), [node()], {}, NOW, explain=False) == replace(full, waits={})


def test_a_backlog_that_is_kept_decides_like_a_new_one() -> None:
    dice, kept, jobs = random.Random(0), Backlog(), {}
    for _ in range(300):
        if jobs and dice.random() < 0.4:
            name = dice.choice(sorted(jobs))
            del jobs[name]
            kept.remove(name)
        else:
            need = Need(1, dice.choice((0, 0.5, 1, 2)), 0)
            job = waiting(
                dice.choice("abc"), need, priority=dice.randrange(3), deadline=dice.choice((None, NOW + HOUR))
            )
            jobs[job.id] = job
            kept.add(job)
        assert len(kept) == len(jobs)
    kept.add(next(iter(jobs.values())))  # once more, which changes nothing
    nodes = [node([1.0] * 4)]
    assert decide(kept, (), nodes, {}, NOW) == decide(jobs.values(), (), nodes, {}, NOW)
    with pytest.raises(KeyError):
        kept.remove("unknown")


def test_what_makes_no_sense_is_refused() -> None:
    for weight in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            Share(weight=weight)
    for gpus in (1.5, -1):
        with pytest.raises(ValueError, match="whole GPUs"):
            Need(1, gpus, 0)


# over time


@dataclass
class Job:
    """A job with what its estimate does not know."""

    waiting: Waiting
    length: float
    preemptible: bool = True
    left: float = 0.0
    parked_at: list[float] = field(default_factory=list)


class World:
    """Runs decisions against nodes of its own, and checks each."""

    STOPS_IN = 20.0

    def __init__(self, jobs: Iterable[Job], nodes: Sequence[Node], shares: dict[str, Share]) -> None:
        self.nodes = {each.id: each for each in nodes}
        self.shares = shares
        self.jobs = {job.waiting.id: job for job in jobs}
        self.waiting: dict[str, Waiting] = {}
        self.active: dict[str, Active] = {}
        self.ends: dict[str, float] = {}
        self.first_start: dict[str, float] = {}
        self.promises: dict[str, Promise] = {}
        self.now = 0.0
        self.parks = 0
        self.used: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for job in self.jobs.values():
            job.left = job.length

    def run(self, *until_started: str) -> None:
        """Until all have ended, or some have started."""
        coming = sorted(self.jobs.values(), key=lambda job: (job.waiting.queued_at, job.waiting.id))
        while coming or self.waiting or self.active:
            moments = [self.now + 300, *self.ends.values(), *(job.waiting.queued_at for job in coming[:1])]
            self.now = min(moment for moment in moments if moment > self.now)
            for name in [name for name, end in self.ends.items() if end <= self.now]:
                self.end(name)
            while coming and coming[0].waiting.queued_at <= self.now:
                new = coming.pop(0).waiting
                self.waiting[new.id] = new
            self.step()
            if until_started and set(until_started) <= set(self.first_start):
                return
            assert self.now < 40 * 86_400, f"never ran: {sorted(self.waiting)}"

    def used_by(self, tenant: str) -> float:
        running = [
            (self.now, (self.now - job.started_at) * job.need.gpus)
            for job in self.active.values()
            if job.tenant == tenant
        ]
        return decayed(self.used[tenant] + running, self.now)

    def step(self) -> None:
        tenants = {job.waiting.tenant for job in self.jobs.values()}
        shares = {name: self.shares.get(name, Share()) for name in tenants}
        shares = {name: replace(share, used=share.used + self.used_by(name)) for name, share in shares.items()}
        given = list(self.waiting.values()), list(self.active.values()), list(self.nodes.values())
        decision = decide(*given, shares, self.now, self.promises)
        shuffled = [list(reversed(each)) for each in given]
        assert decide(*shuffled, shares, self.now, self.promises) == decision  # type: ignore[arg-type]
        ready = {
            name
            for name, promise in self.promises.items()
            if name in self.waiting and promise.parked and not set(promise.parked) & set(self.active)
        }
        assert ready <= set(started(decision)), "who others made way for starts"
        for start in decision.starts:
            self.start(start)
        for name in decision.preempts:
            self.park(name)
        self.promises = decision.promises
        self.check(decision)

    def start(self, start: Start) -> None:
        job, place = self.waiting.pop(start.job), self.nodes[start.node]
        gpus, count = list(place.gpus), max(int(job.need.gpus), 1) if job.need.gpus else 0
        share = min(job.need.gpus, 1.0)
        fitting = sorted((free, number) for number, free in enumerate(gpus) if free >= share - 1e-6)
        assert len(fitting) >= count, "over capacity"
        devices = tuple(number for _, number in fitting[:count])
        for number in devices:
            gpus[number] -= share
        left = Node(place.id, place.cpus - job.need.cpus, tuple(gpus), place.memory - job.need.memory)
        assert min(left.cpus, left.memory) >= -1e-6, "over capacity"
        self.nodes[place.id] = left
        own = self.jobs[job.id]
        self.active[job.id] = Active(
            job.id,
            job.tenant,
            job.need,
            job.priority,
            place.id,
            self.now,
            job.seconds,
            own.preemptible,
            devices=devices,
        )
        self.ends[job.id] = self.now + own.left
        self.first_start.setdefault(job.id, self.now)

    def park(self, name: str) -> None:
        victim = self.active[name]
        assert victim.preemptible
        assert not victim.parking
        assert self.now >= victim.started_at + LEAST
        self.active[name] = replace(victim, parking=True)
        self.jobs[name].parked_at.append(self.now)
        self.ends[name] = min(self.ends[name], self.now + self.STOPS_IN)
        self.parks += 1

    def end(self, name: str) -> None:
        done, at = self.active.pop(name), self.ends.pop(name)
        place = self.nodes[done.node]
        gpus = list(place.gpus)
        for number in done.devices:
            gpus[number] += min(done.need.gpus, 1.0)
        self.nodes[place.id] = Node(place.id, place.cpus + done.need.cpus, tuple(gpus), place.memory + done.need.memory)
        job = self.jobs[name]
        self.used[done.tenant].append((at, (at - done.started_at) * done.need.gpus))
        job.left -= at - done.started_at
        if job.left > 1e-6:
            self.waiting[name] = job.waiting

    def check(self, decision: Decision) -> None:
        assert set(decision.waits) == set(self.waiting)
        assert all(wait.reason and (wait.seconds is None or wait.seconds >= 0) for wait in decision.waits.values())
        runs = Counter(job.tenant for job in self.active.values())
        for tenant, share in self.shares.items():
            assert share.concurrent_runs is None or runs[tenant] <= share.concurrent_runs, "over quota"
        held = {name for name in self.nodes for wait in decision.waits.values() if f"{name} is held" in wait.reason}
        held |= {promise.node for promise in decision.promises.values()}
        runs += Counter(self.waiting[name].tenant for name in decision.promises)
        for job in self.waiting.values():
            most = self.shares.get(job.tenant, Share()).concurrent_runs
            if most is None or runs[job.tenant] < most:
                idle = {name for name, place in self.nodes.items() if _fits(job.need, place)}
                assert idle <= held, f"{job.id} fits on {idle - held}"


def _fits(need: Need, place: Node) -> bool:
    gpus = sum(free >= min(need.gpus, 1.0) - 1e-6 for free in place.gpus)
    enough = not need.gpus or gpus >= max(need.gpus, 1)
    return enough and place.cpus >= need.cpus - 1e-6 and place.memory >= need.memory - 1e-6


@st.composite
def worlds(draw: st.DrawFn) -> World:
    nodes = [
        Node(f"n{number}", draw(st.sampled_from((4, 16))), (1.0,) * draw(st.integers(0, 4)), 64e9)
        for number in range(draw(st.integers(1, 3)))
    ]
    needs = [Need(1, share, memory) for share in (0, 0.25, 0.5, 1, 2, 4) for memory in (1e9, 40e9)]
    possible = [need for need in needs if any(_fits(need, place) for place in nodes)]
    jobs = []
    for number in range(draw(st.integers(1, 14))):
        length = draw(st.sampled_from((30.0, 600.0, 5000.0, 20_000.0)))
        at = draw(st.sampled_from((0.0, 0.0, 100.0, 3000.0, 9000.0)))
        new = Waiting(
            f"j{number:02}",
            draw(st.sampled_from("abc")),
            draw(st.sampled_from(possible)),
            draw(st.integers(0, 2)),
            at,
            draw(st.none() | st.sampled_from((at + length, at + 2 * length, at + 9000.0))),
            length * draw(st.sampled_from((0.0, 0.3, 1.0, 1.0, 3.0))),
        )
        jobs.append(Job(new, length, draw(st.booleans())))
    shares = {
        tenant: Share(draw(st.sampled_from((0.5, 1.0, 3.0))), 0.0, draw(st.sampled_from((None, 1, 2))))
        for tenant in draw(st.sets(st.sampled_from("abc")))
    }
    return World(jobs, nodes, shares)


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_all_jobs_run_within_capacity_and_quota_and_nothing_idles_needlessly(world: World) -> None:
    world.run()
    for job in world.jobs.values():
        gaps = [later - earlier for earlier, later in zip(job.parked_at, job.parked_at[1:], strict=False)]
        assert all(gap >= LEAST for gap in gaps)


@pytest.mark.parametrize("preemptible", [True, False])
@pytest.mark.parametrize("gpus", [1, 4])
def test_a_small_tenant_waits_at_most_one_job_s_length(gpus: int, preemptible: bool) -> None:
    flood = [Job(waiting("flood", id=f"f{number:03}", queued_at=0.0), HOUR, preemptible) for number in range(100)]
    few = [Job(waiting("few", id=f"s{number}", queued_at=HOUR / 4), HOUR, preemptible) for number in range(2)]
    world = World(flood + few, [node([1.0] * gpus)], {})
    world.run("s0", "s1")
    waits = [world.first_start[f"s{number}"] - HOUR / 4 for number in range(2)]
    assert waits[0] <= HOUR
    assert waits[1] <= (HOUR if gpus > 1 else 3 * HOUR), "on one GPU they take turns"
    if gpus == 4 and preemptible:
        assert waits[0] <= LEAST + World.STOPS_IN


def test_small_jobs_that_never_stop_coming_do_not_starve_a_big_one() -> None:
    small = [
        Job(waiting(f"t{number}", id=f"s{number:04}", queued_at=100.0 * number, seconds=600.0), 900.0, False)
        for number in range(300)
    ]
    big = Job(waiting("big", Need(1, 8, 0), id="big", queued_at=50.0), HOUR, False)
    world = World([*small, big], [node([1.0] * 8)], {"big": Share(used=1e9)})
    world.run("big")
    assert world.first_start["big"] <= 2 * HOUR
