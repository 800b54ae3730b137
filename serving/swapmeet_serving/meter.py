"""What the engine counts. Its thread calls in a few times a step; loads are told by the threads that do them.

Stages of one request are in its `Timeline`, which leaves with its last output.
"""

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

from swapmeet_serving.adapter_ledger import AdapterLedger
from swapmeet_serving.metrics import Family, Histogram, Points, single
from swapmeet_serving.request import FinishReason, Timeline
from swapmeet_serving.sequence import Sequence

LATENCIES = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0,
)  # fmt: skip
STEPS = (5e-5, 1e-4, 2.5e-4, 5e-4, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Seconds of one step, and between two tokens of a request: a small batch on a GPU up to a long prompt on a CPU."""
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


class Meter:
    """Counts of one engine, from its start."""

    def __init__(self) -> None:
        self._adapters = AdapterLedger()
        self._ready: dict[str, float] = {}  # adapters in memory, and since when
        self._lock = threading.Lock()  # guards what is not the engine's thread's alone: loads and outcomes
        self._loads: dict[str, Histogram] = {}
        self._outcomes: Counter[str] = Counter()
        self._unadmitted = 0
        self._stepped = -1.0  # when the last step gave its tokens; equals no timeline's zero
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._first_token = Histogram(LATENCIES)
        self._inter_token = Histogram(STEPS)
        self._request = Histogram(LATENCIES)
        self._queue = Histogram(LATENCIES)
        self._adapter_wait = Histogram(LATENCIES)
        self._prefill = Histogram(LATENCIES)
        self._step = Histogram(STEPS)
        self._batch = Histogram(SIZES)

    def arrived(self, sequences: list[Sequence]) -> None:
        """The engine took in new requests."""
        self._unadmitted += len(sequences)
        for sequence in sequences:
            for identity in sequence.adapters:
                counts = self._adapters.of(identity)
                counts.hits += identity in self._ready
                counts.misses += identity not in self._ready
            sequence.timeline.resident = all(identity in self._ready for identity in sequence.adapters)

    def admitted(self, batch: list[Sequence]) -> None:
        """The scheduler chose a step's sequences; costs nothing while none waits."""
        if not self._unadmitted:
            return
        now = time.monotonic()
        for sequence in batch:
            timeline = sequence.timeline
            if timeline.admitted:
                continue
            timeline.admitted = now
            self._unadmitted -= 1
            self._queue.observe(now - timeline.submitted)
            if not timeline.resident:
                ready = max(self._ready.get(identity, now) for identity in sequence.adapters)
                timeline.adapter_ready = max(timeline.submitted, ready)
                self._adapter_wait.observe(timeline.adapter_ready - timeline.submitted)

    def stepped(self, batch: list[Sequence], began: float) -> None:
        """A step that began then has a token for each of these sequences."""
        now = time.monotonic()
        before, self._stepped = self._stepped, now
        self._step.observe(now - began)
        self._batch.observe(len(batch))
        self._generated_tokens += len(batch)
        again = 0
        for sequence in batch:
            timeline = sequence.timeline
            if timeline.last_token == before:
                again += 1  # all these waited equally long
            else:
                self._first_or_late(sequence, timeline, now)
            timeline.last_token = now
        self._inter_token.observe(now - before, again)

    def ended(self, sequence: Sequence, reason: FinishReason, error: Exception | None = None) -> None:
        """A request ended."""
        timeline = sequence.timeline
        timeline.ended = time.monotonic()
        self._unadmitted -= not timeline.admitted
        self._count(_code(error) if error else reason)
        if reason in ("stop", "length"):
            self._request.observe(timeline.ended - timeline.submitted)
        for identity in sequence.adapters:
            counts = self._adapters.of(identity)
            counts.requests += 1
            counts.prompt_tokens += len(sequence.request.prompt) if timeline.first_token else 0
            counts.generated_tokens += sequence.completion_tokens

    def refused(self, error: Exception) -> None:
        """A request ended that the engine never took in."""
        self._count(_code(error))

    @contextmanager
    def load(self, identity: str, step: str) -> Iterator[None]:
        """Time a step of an adapter's way into memory, on any thread; the last one is `read`."""
        began = time.monotonic()
        try:
            yield
        except Exception:
            with self._lock:
                self._adapters.of(identity).failures += 1
            raise
        now = time.monotonic()
        with self._lock:
            for loads in (self._loads, self._adapters.of(identity).loads):
                bounds = LATENCIES if loads is self._loads else ()
                loads.setdefault(step, Histogram(bounds)).observe(now - began)
        if step == "read":
            self._ready[identity] = now

    def evicted(self, identities: Iterable[str]) -> None:
        """These adapters left memory."""
        for identity in identities:
            self._ready.pop(identity, None)
            self._adapters.of(identity).evictions += 1

    def families(self, tiers: Mapping[str, Collection[str]]) -> list[Family]:
        """All counts; `tiers` names the adapters that each tier of memory holds."""
        with self._lock:
            outcomes: Points = {(name,): float(number) for name, number in self._outcomes.items()}
            loads: Points = {(step,): seconds.read() for step, seconds in self._loads.items()}
        held: Points = {(tier,): float(len(adapters)) for tier, adapters in tiers.items()}
        text = "Loading adapters, by step: fetch from the registry, check on disk, open, read into memory."
        return [
            Family("swapmeet_requests", "counter", "Requests, by how they ended.", ("outcome",), outcomes),
            Family("swapmeet_load_step_seconds", "histogram", text, ("step",), loads),
            Family("swapmeet_adapters", "gauge", "Adapters that a tier holds.", ("tier",), held),
            *self._latencies(),
            *self._totals(),
            *self._adapters.families(tiers),
        ]

    def _count(self, outcome: str) -> None:
        with self._lock:
            self._outcomes[outcome] += 1

    def _first_or_late(self, sequence: Sequence, timeline: Timeline, now: float) -> None:
        if timeline.first_token:
            self._inter_token.observe(now - timeline.last_token)
            return
        timeline.first_token = now
        self._prompt_tokens += len(sequence.request.prompt)
        self._first_token.observe(now - timeline.submitted)
        self._prefill.observe(now - timeline.admitted)

    def _latencies(self) -> list[Family]:
        measured = {
            "time_to_first_token_seconds": (self._first_token, "From the engine taking a request to its first token."),
            "inter_token_seconds": (self._inter_token, "Between two tokens of a request."),
            "request_seconds": (self._request, "From the engine taking a request to its last token."),
            "queue_seconds": (self._queue, "From the engine taking a request to its first step."),
            "adapter_wait_seconds": (self._adapter_wait, "From the engine taking a request until its adapter was in."),
            "prefill_seconds": (self._prefill, "From a request's first step to its first token."),
            "step_seconds": (self._step, "One step of the whole batch."),
            "batch_size": (self._batch, "Sequences in a step."),
        }
        return [
            single(f"swapmeet_{name}", "histogram", text, histogram.read())
            for name, (histogram, text) in measured.items()
        ]

    def _totals(self) -> list[Family]:
        totals = {
            "prompt_tokens": (self._prompt_tokens, "Prompt tokens of requests that got a token."),
            "generated_tokens": (self._generated_tokens, "Tokens made."),
        }
        return [single(f"swapmeet_{name}", "counter", text, float(value)) for name, (value, text) in totals.items()]


def _code(error: Exception) -> str:
    return str(getattr(error, "code", "internal_error"))
