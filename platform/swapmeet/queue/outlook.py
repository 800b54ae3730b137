"""Why each waiting job waits, in words, and about how long: by going on as the policy would, in one dimension."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from heapq import heapify, heappop, heappush
from math import inf

from swapmeet.queue.backlog import Backlog, Cursor
from swapmeet.queue.ends import GUESS
from swapmeet.queue.preemption import Parking
from swapmeet.queue.records import SLACK, Need, Wait, Waiting
from swapmeet.queue.room import Room
from swapmeet.queue.turns import Turns


def explain_waits(
    backlog: Backlog,
    room: Room,
    turns: Turns,
    started: Mapping[str, str],
    parking: Parking,
) -> dict[str, Wait]:
    """A word for each job that waits on."""
    future = _Future(room)
    held = {hold.job.id: (name, hold.at) for name, hold in room.holds.items()}
    waits: dict[str, Wait] = {}
    before: Counter[str] = Counter()
    promised = [job for name in parking.promises if (job := backlog.get(name))]
    done = {*started, *parking.promises}
    for job in (*promised, *_in_turn(backlog, room, turns, done)):
        own, all_before = before[job.tenant], before.total()
        if not future.possible(job.need):
            waits[job.id] = Wait(nowhere(job.need, room), None)
            continue
        seconds: float | None = future.start(job) - room.now
        promise = parking.promises.get(job.id)
        if promise and promise.parked:
            number = len(promise.parked)
            reason = f"{_count(number, 'job')} on {promise.node} {'makes' if number == 1 else 'make'} way for it"
            seconds = held[job.id][1] - room.now
        elif not promise and (refused := turns.standing(job.tenant).refuses(job)):
            reason = f"{refused}; {_count(own, 'job')} of its tenant before it"
            seconds = seconds if turns.standing(job.tenant).full else None
        elif job.id in held:
            node, at = held[job.id]
            reason, seconds = f"needs {describe(job.need)}; {node} is held for it", at - room.now
        else:
            reason = f"needs {describe(job.need)}; {_count(all_before, 'job')} before it, {own} of its tenant"
        waits[job.id] = Wait(reason, seconds)
        before[job.tenant] += 1
    return waits


def nowhere(need: Need, room: Room) -> str:
    """Why a job fits on no node, even an empty one."""
    if not room.empty:
        return f"needs {describe(need)}, and no node is there"
    lacks = []
    for part, most in (
        (Need(0, need.gpus, 0), max(len(node.gpus) for node in room.empty)),
        (Need(need.cpus, 0, 0), max(node.cpus for node in room.empty)),
        (Need(0, 0, need.memory), max(node.memory for node in room.empty)),
    ):
        if not room.possible(part):
            lacks.append((describe(part), f"{most / 1e9:.3g} GB" if part.memory else f"{most:.6g}"))
    if not lacks:
        return f"needs {describe(need)} on one node, and none has all of that"
    return "; ".join(f"needs {wanted}, and the largest node has {most}" for wanted, most in lacks)


def describe(need: Need) -> str:
    """What a job takes, in words."""
    parts = []
    if need.gpus:
        parts.append(f"{need.gpus:.6g} of a GPU" if need.gpus < 1 else _count(int(need.gpus), "GPU"))
    if need.cpus:
        parts.append(f"{need.cpus:.6g} CPU" + "s" * (need.cpus != 1))
    if need.memory:
        parts.append(f"{need.memory / 1e9:.3g} GB of memory")
    return ", ".join(parts) or "nothing"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _in_turn(backlog: Backlog, room: Room, turns: Turns, done: Container[str]) -> Iterator[Waiting]:
    """Jobs in the order in which they would start if each ran to its end at once."""
    heap = [(turns.standing(tenant).turn, tenant) for tenant in backlog.lines]
    heapify(heap)
    cursors = {tenant: Cursor(line, room.now) for tenant, line in backlog.lines.items()}
    while heap:
        turn, tenant = heappop(heap)
        if (job := cursors[tenant].job) is None:
            continue
        cursors[tenant].advance()
        if job.id not in done:
            yield job
            turn += room.capacity.rate(job.need) * (job.seconds or GUESS) / turns.standing(tenant).weight
        heappush(heap, (turn, tenant))


class _Future:
    """The cluster as one number of free units, and when more are free."""

    def __init__(self, room: Room) -> None:
        self._room, self._time = room, room.now
        self._floors: dict[Need, float] = {}
        rate = room.capacity.rate
        self._ends = [(end, rate(job.need)) for end, _, job in room.ends]
        heapify(self._ends)
        self._free = room.capacity.units - sum(amount for _, amount in self._ends)

    def possible(self, need: Need) -> bool:
        """Whether it fits on some empty node."""
        return self._floor(need) < inf

    def start(self, job: Waiting) -> float:
        """When a job starts, if those that were asked about before start before it."""
        rate = self._room.capacity.rate(job.need)
        while self._free < rate - SLACK and self._ends:
            end, amount = heappop(self._ends)
            self._time, self._free = max(self._time, end), self._free + amount
        at = max(self._time, self._floor(job.need))
        self._free -= rate
        heappush(self._ends, (at + (job.seconds or GUESS), rate))
        return at

    def _floor(self, need: Need) -> float:
        if need not in self._floors:
            self._floors[need] = self._room.soonest(need)[0]
        return self._floors[need]
