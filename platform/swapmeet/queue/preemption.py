"""Which running jobs to park for waiting ones: as few as help, and never one that has just begun.

Within a tenant, a job of higher priority may take the room of a lower one. From another tenant, whose turn would come
later, a job may take room if its own tenant holds nothing, or by higher priority; and only as long as that other still
holds, by its weight, no less than the taker then does. So priority moves work up to the fair share and not beyond, and
no two tenants park each other's jobs in turn.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

from swapmeet.queue.backlog import Backlog, Cursor
from swapmeet.queue.ends import PARKING
from swapmeet.queue.records import SLACK, Active, Promise, Waiting
from swapmeet.queue.room import Hold, Room
from swapmeet.queue.turns import Standing, Turns

LEAST = 600.0
"""A job that runs is left alone for so many seconds, so that none is parked twice without work between."""
PATIENCE = 120.0
"""Nobody is parked for a job that will have room within so many seconds anyway."""
CLAIMS = 8
"""So many waiting jobs are looked at in one decision."""


@dataclass(slots=True)
class Parking:
    """Jobs to park, each with the reason, and what is promised to whom."""

    because: dict[str, str] = field(default_factory=dict)
    promises: dict[str, Promise] = field(default_factory=dict)


def keep_promises(
    promises: Mapping[str, Promise], backlog: Backlog, active: Sequence[Active], room: Room, turns: Turns
) -> tuple[dict[str, str], Parking]:
    """Jobs that can start, with their nodes, as what they were promised is free; and what is still to come."""
    running = {job.id: job for job in active}
    starts: dict[str, str] = {}
    parking = Parking()
    for job_id, promise in sorted(promises.items()):
        job = backlog.get(job_id)
        if job is None or promise.node not in room.nodes:
            continue
        leaving = [running[name] for name in promise.parked if name in running]
        refused = turns.standing(job.tenant).refuses(job)
        if leaving and promise.node not in room.holds:
            _promise(job, promise.node, leaving, room, turns, parking)
        elif not leaving and not refused and room.put(job, promise.node):
            turns.begin(turns.standing(job.tenant), job)
            starts[job_id] = promise.node
        elif not promise.parked and not refused:
            promise_node(job, room, turns, parking)
    return starts, parking


def promise_node(job: Waiting, room: Room, turns: Turns, parking: Parking) -> None:
    """Hold the node on which it will fit first, until it runs."""
    if node := room.hold(job):
        parking.promises[job.id] = Promise(node, ())
        turns.begin(turns.standing(job.tenant), job)


def park_without_quota(active: Sequence[Active], room: Room, turns: Turns, parking: Parking) -> None:
    """Park the jobs of tenants that have used up their GPU-seconds."""
    without = {standing.tenant for standing in turns.standings.values() if standing.spent}
    for job in active if without else ():
        if job.tenant in without and job.need.gpus and job.preemptible and not job.parking:
            parking.because[job.id] = f"{job.tenant} has used up its GPU-seconds"
            room.leave(job)


def park_for_others(
    backlog: Backlog, active: Sequence[Active], room: Room, turns: Turns, started: Mapping[str, str], parking: Parking
) -> None:
    """Park what waiting jobs may take the room of."""
    victims = [job for job in active if _parkable(job, backlog, room, turns)]
    if not victims:
        return
    for job in list(_claimants(backlog, victims, room, turns, started, parking)):
        found = _best_way(job, victims, room, turns)
        if found is None or (not turns.standing(job.tenant).full and _soon(job, room)):
            continue
        _, _, node, parked = found
        for victim in parked:
            whose = "its tenant's" if victim.tenant == job.tenant else f"{job.tenant}'s"
            parking.because[victim.id] = f"makes way for {whose} {job.id}"
        _promise(job, node, parked, room, turns, parking)
        victims = [victim for victim in victims if victim.node != node]


def _parkable(job: Active, backlog: Backlog, room: Room, turns: Turns) -> bool:
    """Whether anybody might take its room: a tenant with more than it, or its own with a higher priority."""
    if not job.preemptible or job.parking or job.started_at > room.now - LEAST:
        return False
    line = backlog.lines.get(job.tenant)
    better = line is not None and line.first is not None and -line.first[0] > job.priority
    rich = turns.standings[job.tenant].held > room.capacity.rate(job.need) + SLACK
    return (better or rich) and job.node in room.nodes and job.id not in room.leaving


def _soon(job: Waiting, room: Room) -> bool:
    """Whether it will find room anyway."""
    return room.soonest(job.need, [name for name in room.nodes if room.open_to(job, name)])[0] <= room.now + PATIENCE


def _claimants(
    backlog: Backlog,
    victims: Sequence[Active],
    room: Room,
    turns: Turns,
    started: Mapping[str, str],
    parking: Parking,
) -> Iterator[Waiting]:
    """First jobs of tenants that hold nothing, or of higher priority than a running one; in turn."""
    lowest = min(victim.priority for victim in victims)
    able = (
        turns.standing(tenant)
        for tenant, line in backlog.lines.items()
        if line.first and (-line.first[0] > lowest or turns.standing(tenant).held <= SLACK)
    )
    for standing in nsmallest(CLAIMS, able, key=lambda standing: (standing.turn, standing.tenant)):
        cursor = Cursor(backlog.lines[standing.tenant], room.now)
        while (job := cursor.job) and (job.id in started or job.id in parking.promises):
            cursor.advance()
        if job and room.possible(job.need):
            yield job


def _best_way(
    job: Waiting, victims: Sequence[Active], room: Room, turns: Turns
) -> tuple[int, float, str, list[Active]] | None:
    """Of the nodes on which parking some makes room: how many the fewest are, how much they hold, where, and which."""
    taker, rate = turns.standing(job.tenant), room.capacity.rate
    if taker.refuses(job) and not taker.full:
        return None
    by_node = defaultdict(list)
    for victim in victims:
        if room.open_to(job, victim.node) and _may_take(job, victim, taker, turns):
            by_node[victim.node].append(victim)
    best = None
    for node, candidates in sorted(by_node.items()):
        if sum(victim.need.gpus for victim in candidates) + sum(room.nodes[node].gpus) < job.need.gpus - SLACK:
            continue
        if parked := _fewest(job, node, candidates, room, turns):
            way = len(parked), sum(rate(each.need) for each in parked), node, parked
            best = min(best or way, way, key=lambda way: way[:3])
            if way[:2] <= (1, rate(job.need)):
                break  # no other is better, but by its name
    return best


def _may_take(job: Waiting, victim: Active, taker: Standing, turns: Turns) -> bool:
    if victim.tenant == job.tenant:
        return job.priority > victim.priority
    if taker.full or not (taker.held <= SLACK or job.priority > victim.priority):
        return False
    return taker.turn < turns.standing(victim.tenant).turn


def _fewest(job: Waiting, node: str, candidates: Sequence[Active], room: Room, turns: Turns) -> list[Active]:
    """Those of a node's jobs to park for another: the lowest and youngest first, and none that would not be needed."""
    taker, rate = turns.standing(job.tenant), room.capacity.rate
    after = (taker.held + rate(job.need)) / taker.weight
    free, devices = room.nodes[node].copy(), room.seats(node)
    if free.devices(job.need) is not None and not taker.full:
        return []
    chosen: list[Active] = []
    lost: dict[str, float] = defaultdict(float)
    for victim in sorted(candidates, key=lambda victim: (victim.priority, -victim.started_at, victim.id)):
        giver, left = turns.standing(victim.tenant), lost[victim.tenant] + rate(victim.need)
        if giver is taker or (giver.held - left) / giver.weight >= after - SLACK:
            if _alone(job, victim, room):
                return [victim]
            lost[victim.tenant] = left
            free.give(victim.need, devices[victim.id])
            chosen.append(victim)
    if free.devices(job.need) is None:
        return []
    for victim in reversed(chosen[:]):  # spare whom it can, those that weigh most first
        free.take(victim.need, devices[victim.id])
        if len(chosen) > 1 and free.devices(job.need) is not None:
            chosen.remove(victim)
        else:
            free.give(victim.need, devices[victim.id])
    return chosen


def _alone(job: Waiting, victim: Active, room: Room) -> bool:
    """Whether the room of one suffices, with what is free."""
    free = room.nodes[victim.node].copy()
    free.give(victim.need, room.seats(victim.node)[victim.id])
    return free.devices(job.need) is not None


def _promise(job: Waiting, node: str, parked: Sequence[Active], room: Room, turns: Turns, parking: Parking) -> None:
    """Hold a node for a job until those that are told to park are gone, and count as if that were done."""
    then = room.nodes[node].copy()
    for victim in parked:
        then.give(victim.need, room.seats(node)[victim.id])
    room.release(job)
    room.holds[node] = Hold(job, room.now + PARKING, then)
    parking.promises[job.id] = Promise(node, tuple(victim.id for victim in parked))
    for victim in parked:
        room.leave(victim)
        turns.end(turns.standing(victim.tenant), victim)
    turns.begin(turns.standing(job.tenant), job)
