"""What an engine has counted after a few requests."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_serving import Engine, Output, Request, Sampling
from swapmeet_serving.metrics import Distribution

PROMPT = tuple(range(20, 50))
Answer = Callable[..., dict[str, list[Output]]]
MakeEngine = Callable[..., Engine]


def request(name: str, adapter: str | None = None, prompt: tuple[int, ...] = PROMPT, tokens: int = 8) -> Request:
    return Request(name, prompt, adapter, Sampling(max_tokens=tokens, ignore_eos=True))


@pytest.fixture(scope="module")
def adapters(tiny_llama: Path, random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("adapters")
    return [str(random_lora(tiny_llama, folder / str(seed), rank=8, seed=seed)) for seed in range(2)]


def measured(engine: Engine) -> dict[str, Any]:
    """Values of all families: plain where there are no labels."""
    families = engine.families()
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert all(len(labels) == len(family.labels) for labels in family.points)
    return {
        family.name.removeprefix("swapmeet_"): family.points.get((), family.points)
        if not family.labels
        else family.points
        for family in families
    }


def count(value: Distribution) -> int:
    return value.count


def test_every_token_and_request_is_counted_once(
    tiny_llama: Path, adapters: list[str], make_engine: MakeEngine, answer: Answer
) -> None:
    engine = make_engine(tiny_llama)
    one, two = adapters
    answer(engine, request("1", one), request("2"), request("3", two, PROMPT[:5], tokens=1))
    outputs = answer(engine, request("4", one, tokens=4))
    found = measured(engine)
    assert (found["generated_tokens"], found["prompt_tokens"]) == (21, 95)
    assert found["requests"] == {("length",): 4}
    for name in ("time_to_first_token", "request", "queue", "prefill"):
        assert count(found[f"{name}_seconds"]) == 4, name
    assert count(found["inter_token_seconds"]) == 21 - 4
    assert count(found["adapter_wait_seconds"]) == 2
    assert count(found["step_seconds"]) == count(found["batch_size"])
    assert found["batch_size"].sum == 21
    assert {step: count(each) for step, each in found["load_step_seconds"].items()} == {("open",): 2, ("read",): 2}
    assert found["adapters"] == {("device",): 2}
    assert (found["running_requests"], found["waiting_requests"], found["kv_pages_used"]) == (0, 0, 0)
    assert 0 < found["adapter_memory_used_bytes"] <= found["adapter_memory_bytes"]

    labels = (one, "")
    assert found["adapter_requests"] == {labels: 2, (two, ""): 1, ("other", ""): 0}
    assert (found["adapter_hits"][labels], found["adapter_misses"][labels]) == (1, 1)
    assert (found["adapter_prompt_tokens"][labels], found["adapter_generated_tokens"][labels]) == (60, 12)
    assert count(found["adapter_load_seconds"][(*labels, "read")]) == 1
    assert found["adapter_resident"][(*labels, "device")] == 1

    timeline = outputs["4"][-1].timeline
    assert timeline
    assert timeline.resident
    assert timeline.submitted <= timeline.admitted <= timeline.first_token <= timeline.last_token <= timeline.ended
    assert {output.timeline for output in outputs["4"][:-1]} == {None}


def test_gauges_follow_what_runs_and_waits(tiny_llama: Path, make_engine: MakeEngine) -> None:
    engine = make_engine(tiny_llama, max_batch=1)
    for name in ("1", "2", "3"):
        engine.submit(request(name, tokens=20))
    assert measured(engine)["waiting_requests"] == 3
    engine.step()
    found = measured(engine)
    assert (found["running_requests"], found["waiting_requests"]) == (1, 2)
    assert 0 < found["kv_pages_used"] < found["kv_pages"]
    engine.cancel("1")
    engine.cancel("3")
    engine.step()
    found = measured(engine)
    assert (found["running_requests"], found["waiting_requests"]) == (1, 0)
    assert found["requests"] == {("cancelled",): 2}
    assert count(found["queue_seconds"]) == 2  # the third never ran


def test_evictions_and_the_loads_after_them(
    tiny_llama: Path, adapters: list[str], make_engine: MakeEngine, answer: Answer
) -> None:
    engine = make_engine(tiny_llama)
    answer(engine, request("1", adapters[0]))
    size = int(measured(engine)["adapter_memory_used_bytes"])
    small = make_engine(tiny_llama, adapter_bytes=size)
    for number in range(4):
        answer(small, request(str(number), adapters[number % 2]))
    found = measured(small)
    assert found["adapter_misses"] == {(adapters[0], ""): 2, (adapters[1], ""): 2, ("other", ""): 0}
    assert sum(found["adapter_evictions"].values()) == 3
    assert sum(found["adapter_hits"].values()) == 0
    assert found["adapter_resident"] == {
        (adapters[0], "", "device"): 0, (adapters[1], "", "device"): 1, ("other", "", "device"): 0,
    }  # fmt: skip


def test_failures_bear_their_code(tiny_llama: Path, tmp_path: Path, make_engine: MakeEngine, answer: Answer) -> None:
    engine = make_engine(tiny_llama)
    answer(engine, request("1", str(tmp_path)))  # an empty folder
    found = measured(engine)
    (((code,), number),) = found["requests"].items()
    assert number == 1
    assert code not in ("stop", "length", "error", "internal_error")
    assert found["adapter_load_failures"][str(tmp_path), ""] == 1
    assert count(found["request_seconds"]) == 0


def test_an_engine_that_dies_counts_whom_it_took_along(tiny_llama: Path, make_engine: MakeEngine) -> None:
    engine = make_engine(tiny_llama)
    engine.submit(request("1"))
    engine.step()
    runner: Any = engine._runner
    runner.run = lambda *_: 1 / 0
    engine.submit(request("2"))
    assert len(engine.step()) == 2
    assert measured(engine)["requests"] == {("engine_dead",): 2}


def test_reading_while_counting(tiny_llama: Path, adapters: list[str], make_engine: MakeEngine, answer: Answer) -> None:
    engine = make_engine(tiny_llama)
    stop, failures = threading.Event(), []

    def scrape() -> None:
        while not stop.is_set():
            try:
                engine.families()
            except Exception as error:
                failures.append(error)

    reader = threading.Thread(target=scrape)
    reader.start()
    try:
        answer(engine, *(request(str(number), adapters[number % 2], tokens=3) for number in range(20)))
    finally:
        stop.set()
        reader.join()
    assert failures == []
