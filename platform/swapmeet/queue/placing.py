"""The policy's view of jobs and machines, and its answers in words."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf

from sqlalchemy.orm import Session

from swapmeet.database.tables import JobRow
from swapmeet.database.tables.base import now
from swapmeet.jobs.states import Wanted
from swapmeet.queue.dispatcher import Machine
from swapmeet.queue.policy import decide
from swapmeet.queue.records import SLACK, Active, Decision, Need, Node, Promise, Wait, Waiting
from swapmeet.queue.shares import shares
from swapmeet_training.plan import of_accelerator


class Placing:
    """One question to the policy.

    Args:
        machines: the cluster's nodes.
        waiting: jobs that may start.
        running: jobs that have attempts.
        parking: those of them, with their attempt, that were told to stop.
    """

    def __init__(
        self,
        machines: Sequence[Machine],
        waiting: Sequence[JobRow],
        running: Sequence[JobRow],
        parking: Collection[tuple[str, int]],
    ) -> None:
        self.waiting = {row.id: row for row in waiting}
        self.running = {row.id: row for row in running}
        self._machines, self._parking = lent(machines, running), parking
        kinds = {(machine.accelerator, machine.gpu_memory) for machine in self._machines if machine.gpus}
        self._mixed = len(kinds) > 1

    def decide(self, session: Session, moment: float, promises: Mapping[str, Promise]) -> Decision:
        """Ask; `moment` is in seconds since the epoch, and `promises` are those of the last decision."""
        gpus = any(machine.gpus for machine in self._machines)
        return decide(
            [_waiting(row) for row in self.waiting.values()],
            [self._active(row) for row in self.running.values()],
            [self._node(machine) for machine in self._machines],
            shares(session, self.running.values(), moment, gpus=gpus),
            moment,
            promises,
        )

    def _active(self, row: JobRow) -> Active:
        assert row.attempt_at is not None
        return Active(
            id=row.id,
            tenant=row.tenant,
            need=need_of(row),
            priority=row.priority,
            node=row.node or "",
            started_at=row.attempt_at.timestamp(),
            seconds=max((row.estimated_finish - row.attempt_at).total_seconds(), 0.0)
            if row.estimated_finish
            else _seconds(row),
            preemptible=True,
            parking=row.wanted == Wanted.PAUSE or (row.id, row.attempt) in self._parking,
        )

    def _node(self, machine: Machine) -> Node:
        """What is free: neither held by our jobs, also by those that Ray has not placed yet, nor by anything else."""
        needs = [need_of(row) for row in self.running.values() if row.node == machine.id]
        return Node(
            id=machine.id,
            cpus=min(machine.free_cpus, machine.cpus - sum(need.cpus for need in needs)),
            gpus=_free_shares(round(machine.gpus), needs),
            memory=min(machine.free_memory, machine.memory - sum(need.memory for need in needs)),
            gpu_memory=_gpu_memory(machine) if self._mixed else inf,
        )


def _gpu_memory(machine: Machine) -> float:
    """What each of its GPUs has, as its driver says or else by its kind; 0 where nobody knows."""
    if machine.gpu_memory is not None:
        return machine.gpu_memory
    known = of_accelerator(machine.accelerator or "")
    return known.memory if known else 0.0


def lent(machines: Sequence[Machine], running: Sequence[JobRow]) -> list[Machine]:
    """The machines with the GPUs that jobs may have: those that are free or run jobs, not those of engines."""
    taken: dict[str, float] = defaultdict(float)
    for row in running:
        taken[row.node or ""] += need_of(row).gpus
    return [
        machine
        if machine.free_gpus is None
        else replace(machine, gpus=float(int(min(machine.gpus, machine.free_gpus + taken[machine.id]) + SLACK)))
        for machine in machines
    ]


def planned_finish(row: JobRow) -> datetime | None:
    """When a job that starts now will be done, by its plan; None where nobody knows."""
    return now() + timedelta(seconds=min(_seconds(row), 1e8)) if _seconds(row) else None


def need_of(row: JobRow) -> Need:
    """What a job takes of its node."""
    resources = row.resources
    gpus, hardware = float(resources.get("gpus", 0)), row.plan.get("hardware", {}) if row.plan else {}
    of_each = float(hardware["memory"]) if gpus and hardware.get("kind") == "cuda" else 0.0
    return Need(float(resources.get("cpus", 1)), gpus, float(resources.get("memory", 0)), of_each)


def waits_in_words(row: JobRow, wait: Wait) -> tuple[str, datetime | None]:
    """Why a job waits and about how long, and when it may be done."""
    if wait.seconds is None:
        return wait.reason, None
    minutes = max(round(wait.seconds / 60), 1)
    length = f"{minutes} min" if minutes < 90 else f"{round(minutes / 60)} h"
    finish = now() + timedelta(seconds=min(wait.seconds + _seconds(row), 1e8))
    return f"{wait.reason} (about {length})", finish.astimezone(UTC) if _seconds(row) else None


def _waiting(row: JobRow) -> Waiting:
    assert row.queued_at is not None
    return Waiting(
        id=row.id,
        tenant=row.tenant,
        need=need_of(row),
        priority=row.priority,
        queued_at=row.queued_at.timestamp(),
        deadline=row.deadline.timestamp() if row.deadline else None,
        seconds=_seconds(row),
    )


def _seconds(row: JobRow) -> float:
    """What a job will still take, by its plan and the steps it has made; 0 where nobody knows."""
    planned = float(row.plan.get("seconds") or 0.0)
    done = row.step / row.total_steps if row.total_steps else 0.0
    return planned * max(1.0 - done, 0.0)


def _free_shares(count: int, needs: Sequence[Need]) -> tuple[float, ...]:
    """The free share of each GPU, as Ray packs: into the first that has enough."""
    free = [1.0] * count
    for need in needs:
        left = need.gpus
        for number, share in enumerate(free):
            taken = min(left, 1.0)
            if taken and share >= taken - 1e-6:
                free[number] -= taken
                left -= taken
    return tuple(free)
