"""The policy of `routing`, as Ray Serve's request router; each handle has one.

Ray sends this module by value to every process that has a handle, so all but the glue is elsewhere.
"""

import asyncio
from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from swapmeet_serving.calls import Call
from swapmeet_serving.routing import Candidate, Replica, Report, rank


class AdapterRouter(RequestRouter):
    """Prefers replicas that hold a call's adapters, within bounds of load."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Ray in place of a constructor."""
        super().initialize_state(**kwargs)  # type: ignore[no-untyped-call]
        self._known: dict[ReplicaID, Replica] = {}
        self._chosen: dict[asyncio.Future[Any], ReplicaID] = {}
        self._unsent: Counter[ReplicaID] = Counter()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas in order of preference, each by itself: Ray takes the first that has room."""
        adapters = _adapters(pending_request)
        by_name = {each.replica_id.unique_id: each for each in candidate_replicas}
        ranked = [by_name[name] for name in rank(adapters, [self._look(each) for each in candidate_replicas])]
        if pending_request and ranked:
            self._known[ranked[0].replica_id].send(adapters)
            self._choose(pending_request.future, ranked[0].replica_id)
        return [[each] for each in ranked]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Replicas came, went or reported."""
        super().update_replicas(replicas)
        for replica in replicas:
            self._look(replica)
        for gone in self._known.keys() - self._replica_id_set:
            del self._known[gone]

    def _look(self, replica: RunningReplica) -> Candidate:
        """What is known of a replica: its newest report, and the load as Ray counts it from the last answers."""
        known = self._known.setdefault(replica.replica_id, Replica(replica.replica_id.unique_id))
        if replica.routing_stats:
            known.take(Report(**replica.routing_stats))
        counted = self.replica_queue_len_cache.get(replica.replica_id)
        return known.candidate(counted, unsent=self._unsent[replica.replica_id])

    def _choose(self, future: "asyncio.Future[Any]", replica: ReplicaID) -> None:
        """Count a request that Ray, which counts when it sends, does not count yet."""
        before = self._chosen.get(future)
        if before:
            self._unsent[before] -= 1
        else:
            future.add_done_callback(self._sent)
        self._chosen[future] = replica
        self._unsent[replica] += 1

    def _sent(self, future: "asyncio.Future[Any]") -> None:
        self._unsent[self._chosen.pop(future)] -= 1
        self._unsent += Counter()  # forgets the zeros


def _adapters(request: PendingRequest | None) -> tuple[str, ...]:
    call = request.args[0] if request and request.args else None
    return call.adapters if isinstance(call, Call) else ()
