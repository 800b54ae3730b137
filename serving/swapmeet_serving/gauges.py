"""How full an engine is, as metrics and for the router; what it did is counted by its meter."""

from dataclasses import dataclass

from swapmeet_serving.adapter_bank import AdapterBank
from swapmeet_serving.kv_pages import KvPages
from swapmeet_serving.metrics import Family, single
from swapmeet_serving.scheduler import Scheduler


def gauges(scheduler: Scheduler, pages: KvPages, bank: AdapterBank, arrivals: int) -> list[Family]:
    """Of these parts, for any thread; `arrivals` are requests that the scheduler has not seen yet."""
    levels = {
        "running_requests": (len(scheduler.running), "Requests in the batch."),
        "waiting_requests": (len(scheduler.waiting) + arrivals, "Requests that wait to be."),
        "kv_pages_used": (pages.count - pages.free, "Pages of the KV cache in use."),
        "kv_pages_cached": (pages.idle, "Pages that nobody uses and that a prefix may be found on."),
        "kv_pages": (pages.count, "Pages of the KV cache."),
        "adapter_memory_used_bytes": (bank.used, "Memory that adapters take."),
        "adapter_memory_bytes": (bank.budget, "Memory set aside for adapters."),
    }
    counts = {
        "preemptions": (scheduler.preemptions, "Running sequences that had to give their pages back."),
        "prefix_cache_hits": (scheduler.prefix_hits, "Sequences that found the start of their prompt cached."),
        "prefix_cache_hit_tokens": (scheduler.prefix_hit_tokens, "Prompt tokens found in the cache."),
    }
    return [
        *(single(f"swapmeet_{name}", "gauge", text, float(value)) for name, (value, text) in levels.items()),
        *(single(f"swapmeet_{name}", "counter", text, float(value)) for name, (value, text) in counts.items()),
    ]


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine has to do: requests, KV pages left, and adapters that waiting requests want."""

    running: int
    waiting: int
    free_pages: int
    wanted: tuple[str, ...]


def load_of(scheduler: Scheduler, pages: KvPages, arrivals: int) -> Load:
    """Of these parts, for any thread; `arrivals` are requests that the scheduler has not seen yet."""
    return Load(
        running=len(scheduler.running),
        waiting=len(scheduler.waiting) + arrivals,
        free_pages=pages.free,
        wanted=tuple({adapter for each in tuple(scheduler.waiting) for adapter in each.adapters}),
    )
