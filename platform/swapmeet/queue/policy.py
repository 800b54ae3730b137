"""Who runs next, and where: pure, so that it is tested and simulated anywhere."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence

from swapmeet.queue.backlog import Backlog
from swapmeet.queue.outlook import explain_waits
from swapmeet.queue.preemption import Parking, keep_promises, park_for_others, park_without_quota, promise_node
from swapmeet.queue.records import Active, Decision, Need, Node, Promise, Share, Start, Wait, Waiting
from swapmeet.queue.room import Room
from swapmeet.queue.turns import Turns

__all__ = ["Active", "Backlog", "Decision", "Need", "Node", "Promise", "Share", "Start", "Wait", "Waiting", "decide"]

HOLDS = 4
"""For so many blocked jobs at most is a node held; smaller jobs fill the others."""
OVERDUE = 3600.0
"""Once the job that waits longest of all tenants' first ones has waited so long, a node is held until it runs."""
DEPTH = 20
"""So many jobs of a tenant that need the same are tried between those that are held for."""


def decide(
    waiting: Iterable[Waiting] | Backlog,
    active: Sequence[Active],
    nodes: Sequence[Node],
    shares: Mapping[str, Share],
    now: float,
    promises: Mapping[str, Promise] | None = None,
    *,
    explain: bool = True,
) -> Decision:
    """What to start and what to park now, and why all else waits. The same arguments give the same decision.

    Tenants take turns by fair share; the one whose turn it is starts its first job, urgent and then higher priority
    first. A job that finds no room is passed by those that do, but nodes are held for the first such jobs, which
    others then may only use as far as that delays nobody. What still waits may have running jobs parked.

    Args:
        waiting: jobs that may run; a `Backlog` that the caller keeps saves the time to sort them.
        active: all jobs that hold room, also on nodes that are gone.
        nodes: those that are there, with what is free on them.
        shares: by tenant; who has none has weight 1 and no limits.
        now: seconds since the epoch.
        promises: of the decision before, which whoever decides next may not know, but better does.
        explain: whether to say why each job waits, which takes a time that grows with their number.
    """
    backlog = waiting if isinstance(waiting, Backlog) else Backlog(waiting)
    room = Room(nodes, active, now)
    turns = Turns(backlog, active, shares, room.capacity, now)
    started, parking = keep_promises(promises or {}, backlog, active, room, turns)
    _fill(backlog, room, turns, started, parking)
    park_without_quota(active, room, turns, parking)
    park_for_others(backlog, active, room, turns, started, parking)
    waits = explain_waits(backlog, room, turns, started, parking) if explain else {}
    starts = [Start(job, node) for job, node in started.items()]
    return Decision(starts, list(parking.because), waits, parking.because, parking.promises)


def _fill(backlog: Backlog, room: Room, turns: Turns, started: dict[str, str], parking: Parking) -> None:
    """Fill the room that there is: add to `started`, and hold nodes for the first that find none."""
    fitting = {need for need in backlog.needs if room.fits(need)}
    if not fitting:
        return
    tried: Counter[tuple[str, Need]] = Counter()
    holds = len(room.holds) + HOLDS
    _hold_for_overdue(backlog, fitting, room, turns, started, parking)
    turns.rewind()
    while fitting and (turn := turns.next()):
        standing, cursor, job = turn
        if job.id in started:
            cursor.advance()
        elif standing.over if job.id in parking.promises else standing.refuses(job):
            cursor.drop(job.need)
        elif job.need in fitting and (node := room.place(job)):
            started[job.id] = node
            if parking.promises.pop(job.id, None):
                room.release(job)
            else:
                turns.begin(standing, job)
            cursor.advance()
        elif room.fits(job.need) and tried[job.tenant, job.need] < DEPTH:
            tried[job.tenant, job.need] += 1
            cursor.advance()  # only a hold is in its way: a shorter one behind it may pass
        else:
            if len(room.holds) < holds and job.id not in parking.promises:
                room.hold(job)
            if not room.fits(job.need):
                fitting.discard(job.need)
            cursor.drop(job.need)
        turns.again(job.tenant)


def _hold_for_overdue(
    backlog: Backlog, fitting: set[Need], room: Room, turns: Turns, started: Container[str], parking: Parking
) -> None:
    """Promise a node to the job that waits longest, whatever its turn and however many small jobs come.

    One at a time, and only to a tenant with no more than its share: a flood of jobs is old, too.
    """
    if any(not promise.parked for promise in parking.promises.values()):
        return
    firsts = (line.first[3] for line in backlog.lines.values() if line.first)
    late = [job for job in firsts if job.queued_at <= room.now - OVERDUE and job.need not in fitting]
    for job in sorted(late, key=lambda job: (job.queued_at, job.id)):
        standing = turns.standing(job.tenant)
        if job.id in started or job.id in parking.promises or standing.refuses(job):
            continue
        if room.possible(job.need) and turns.entitled(standing):
            promise_node(job, room, turns, parking)
            return
