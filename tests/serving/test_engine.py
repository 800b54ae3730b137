"""The engine's life: joining, leaving, failing; nothing leaks and nobody waits for another's load."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_serving import Engine, Output, Request, Sampling, adapters
from swapmeet_serving.errors import AdapterTooLarge, ContextTooLong, EngineDead, InvalidRequest, Overloaded

PROMPT = tuple(range(20, 50))
Answer = Callable[..., dict[str, list[Output]]]
MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_lora(tiny_llama, tmp_path_factory.mktemp("adapters") / "one", rank=8))


@pytest.fixture(scope="module")
def several(tiny_llama: Path, random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("adapters")
    return [str(random_lora(tiny_llama, folder / str(seed), rank=8, seed=seed)) for seed in range(3)]


def request(name: str, adapter: str | None = None, prompt: tuple[int, ...] = PROMPT, **sampling: Any) -> Request:
    options = {"max_tokens": 8, "ignore_eos": True} | sampling
    return Request(name, prompt, adapter, Sampling(**options))


def tokens_of(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def text_of(outputs: list[Output]) -> str:
    return "".join(output.text for output in outputs)


def assert_nothing_held(engine: Engine) -> None:
    scheduler: Any = engine._scheduler
    assert not engine.busy
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler._pages.free == scheduler._pages.count
    bank: Any = engine._adapters._bank
    assert bank.reserve("everything", bank.budget) is not None, "a pin was left behind"


def test_outputs_add_up(tiny_llama: Path, adapter: str, make_engine: MakeEngine, answer: Answer) -> None:
    engine = make_engine(tiny_llama)
    outputs = answer(engine, request("one", adapter))["one"]
    assert [output.completion_tokens for output in outputs] == list(range(1, 9))
    assert {output.prompt_tokens for output in outputs} == {len(PROMPT)}
    assert [output.finish_reason for output in outputs] == [None] * 7 + ["length"]
    assert text_of(outputs) == engine.tokenizer.decode(tokens_of(outputs), skip_special_tokens=True)
    assert engine.resident == [adapter]
    assert_nothing_held(engine)


def test_a_single_token(tiny_llama: Path, make_engine: MakeEngine, answer: Answer) -> None:
    outputs = answer(make_engine(tiny_llama), request("one", max_tokens=1))["one"]
    assert [(len(output.token_ids), output.finish_reason) for output in outputs] == [(1, "length")]


def test_the_same_request_gives_the_same_alone_and_in_company(
    tiny_llama: Path, several: list[str], make_engine: MakeEngine, answer: Answer
) -> None:
    engine = make_engine(tiny_llama)
    for sampling in ({}, {"temperature": 1.2, "top_p": 0.9, "seed": 5}):
        alone = tokens_of(answer(engine, request("one", several[0], **sampling))["one"])
        company = [request(f"{n}", several[n % 3], PROMPT[: n + 1], temperature=1) for n in range(9)]
        crowd = answer(engine, *company, request("one", several[0], **sampling))
        assert tokens_of(crowd["one"]) == alone


def test_seeds_differ(tiny_llama: Path, make_engine: MakeEngine, answer: Answer) -> None:
    seeded = [request(str(seed), temperature=1.5, seed=seed) for seed in range(4)]
    outputs = answer(make_engine(tiny_llama), *seeded, request("free", temperature=1.5))
    assert len({tuple(tokens_of(each)) for each in outputs.values()}) == 5


def test_end_of_text_ends_unless_ignored(tiny_llama: Path, make_engine: MakeEngine, answer: Answer) -> None:
    engine = make_engine(tiny_llama)
    ignoring = answer(engine, request("one", max_tokens=400))["one"]
    end = tokens_of(ignoring).index(2)
    heeding = answer(engine, request("one", max_tokens=400, ignore_eos=False))["one"]
    assert tokens_of(heeding) == tokens_of(ignoring)[: end + 1]
    assert heeding[-1].finish_reason == "stop"
    assert ignoring[-1].finish_reason == "length"
    assert "<|im_end|>" not in text_of(ignoring)


def test_stop_texts(tiny_llama: Path, make_engine: MakeEngine, answer: Answer) -> None:
    engine = make_engine(tiny_llama)
    whole = text_of(answer(engine, request("one", max_tokens=40))["one"])
    stop = whole[11:14]
    outputs = answer(engine, request("one", max_tokens=40, stop=(stop, "never in there")))["one"]
    assert text_of(outputs) == whole[: whole.index(stop)]
    assert outputs[-1].finish_reason == "stop"
    assert_nothing_held(engine)


def test_cancelled_at_any_point_everything_is_given_back(
    tiny_llama: Path, adapter: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(tiny_llama)
    ended_after = []
    for steps in range(12):
        engine.submit(request("one", adapter, max_tokens=6))
        engine.submit(request("other", max_tokens=3))
        outputs: list[Output] = []
        for _ in range(steps):
            if engine.busy:
                engine.wait(10)
            outputs += engine.step()
        engine.cancel("one")
        engine.cancel("one")
        engine.cancel("nobody")
        while engine.busy:
            engine.wait(10)
            outputs += engine.step()
        mine = [output for output in outputs if output.request_id == "one"]
        assert [output.finish_reason for output in mine[:-1]] == [None] * (len(mine) - 1)
        ended_after.append(mine[-1].finish_reason)
        assert len([each for each in outputs if each.request_id == "other" and each.token_ids]) == 3
        engine.step()
        scheduler: Any = engine._scheduler
        assert scheduler._pages.free == scheduler._pages.count
    assert ended_after[0] == "cancelled"
    assert ended_after[-1] == "length"
    assert_nothing_held(engine)


def test_a_late_cancellation_does_not_hit_the_next_request_of_that_id(
    tiny_llama: Path, make_engine: MakeEngine, answer: Answer
) -> None:
    engine = make_engine(tiny_llama)
    answer(engine, request("one"))
    engine.cancel("one")
    assert answer(engine, request("one"))["one"][-1].finish_reason == "length"


def test_a_fetch_that_blocks_holds_up_nobody_else(
    tiny_llama: Path, adapter: str, make_engine: MakeEngine, answer: Answer
) -> None:
    gate, begun = threading.Event(), threading.Event()

    def fetch(identity: str) -> Path:
        if identity == "slow":
            begun.set()
            assert gate.wait(60)
            return Path(adapter)
        return Path(identity)

    engine = make_engine(tiny_llama, fetch=fetch)
    engine.submit(request("slow", "slow"))
    engine.step()
    assert begun.wait(10)
    engine.submit(request("quick", adapter))
    engine.submit(request("bare"))
    ended: set[str] = set()
    while ended != {"quick", "bare"}:
        engine.wait(10)
        ended |= {output.request_id for output in engine.step() if output.finish_reason}
    assert not gate.is_set()
    gate.set()
    slow = answer(engine)["slow"]
    assert slow[-1].finish_reason == "length"


def test_one_flight_for_all_who_ask(tiny_llama: Path, adapter: str, make_engine: MakeEngine, answer: Answer) -> None:
    fetched: list[str] = []

    def fetch(identity: str) -> Path:
        fetched.append(identity)
        return Path(adapter)

    engine = make_engine(tiny_llama, fetch=fetch)
    answer(engine, *(request(str(n), "one") for n in range(6)))
    assert fetched == ["one"]


def test_a_failed_fetch_fails_those_who_asked_and_may_be_tried_again(
    tiny_llama: Path, adapter: str, make_engine: MakeEngine, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure: list[Exception] = [FileNotFoundError("no such adapter")]

    def fetch(identity: str) -> Path:
        if identity == "broken" and failure:
            raise failure[0]
        return Path(adapter)

    engine = make_engine(tiny_llama, fetch=fetch)
    outputs = answer(engine, request("1", "broken"), request("2", "broken"), request("3", adapter), request("4"))
    for name in "12":
        (only,) = outputs[name]
        assert only.error is failure[0]
        assert (only.finish_reason, only.token_ids) == ("error", ())
    assert [outputs[name][-1].finish_reason for name in "34"] == ["length", "length"]
    failure.clear()
    monkeypatch.setattr(adapters, "FAILURE_SECONDS", 0.0)
    assert answer(engine, request("1", "broken"))["1"][-1].finish_reason == "length"
    assert_nothing_held(engine)


def test_more_adapters_than_room_take_turns(
    tiny_llama: Path, several: list[str], make_engine: MakeEngine, answer: Answer
) -> None:
    roomy = make_engine(tiny_llama)
    expected = answer(roomy, *(request(str(n), several[n % 3]) for n in range(9)))
    size = roomy._adapters._bank.used // 3
    engine = make_engine(tiny_llama, adapter_bytes=size + 1)
    outputs = answer(engine, *(request(str(n), several[n % 3]) for n in range(9)))
    assert {name: tokens_of(each) for name, each in outputs.items()} == {
        name: tokens_of(each) for name, each in expected.items()
    }
    assert len(engine.resident) == 1
    small = make_engine(tiny_llama, adapter_bytes=size - 1)
    (only,) = answer(small, request("1", several[0]))["1"]
    assert isinstance(only.error, AdapterTooLarge)


def test_more_sequences_than_pages_take_turns(tiny_llama: Path, make_engine: MakeEngine, answer: Answer) -> None:
    roomy = make_engine(tiny_llama)
    requests = [request(str(n), None, PROMPT[: n + 1]) for n in range(10)]
    expected = answer(roomy, *requests)
    token_bytes = 2 * 2 * 2 * 32 * 2
    engine = make_engine(tiny_llama, kv_bytes=64 * token_bytes)
    outputs = answer(engine, *requests)
    assert {name: tokens_of(each) for name, each in outputs.items()} == {
        name: tokens_of(each) for name, each in expected.items()
    }
    with pytest.raises(ContextTooLong, match="64 that fit"):
        engine.submit(request("long", max_tokens=40))


def test_what_can_not_be_served_is_refused_at_once(tiny_llama: Path, make_engine: MakeEngine, answer: Answer) -> None:
    engine = make_engine(tiny_llama, max_queue=2)
    with pytest.raises(ContextTooLong, match="the 512 that fit"):
        engine.submit(request("1", max_tokens=500))
    with pytest.raises(InvalidRequest, match="The prompt is empty"):
        engine.submit(request("1", prompt=()))
    for token in (-1, 10_000):
        with pytest.raises(InvalidRequest, match="token id outside of 0 to"):
            engine.submit(request("1", prompt=(3, token)))
    engine.submit(request("1"))
    with pytest.raises(InvalidRequest, match="id 1 is under way"):
        engine.submit(request("1"))
    engine.submit(request("2"))
    with pytest.raises(Overloaded, match="2 requests are waiting"):
        engine.submit(request("3"))
    assert set(answer(engine)) == {"1", "2"}


def test_without_max_tokens_the_context_bounds_it(tiny_llama: Path, make_engine: MakeEngine, answer: Answer) -> None:
    outputs = answer(make_engine(tiny_llama), request("one", max_tokens=None))["one"]
    assert outputs[-1].completion_tokens == 512 - len(PROMPT)
    assert outputs[-1].finish_reason == "length"


def test_a_step_that_fails_ends_all_requests_and_the_engine(
    tiny_llama: Path, adapter: str, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tiny_llama, max_batch=1)
    engine.submit(request("running"))
    engine.step()
    engine.submit(request("waiting", adapter))

    def fail(*_: Any) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine._runner, "run", fail)
    engine.submit(request("cancelled"))
    engine.cancel("cancelled")
    first, *outputs = engine.step()
    assert (first.request_id, first.finish_reason) == ("cancelled", "cancelled"), "it ended before the failure"
    assert {output.request_id for output in outputs} == {"running", "waiting"}
    for output in outputs:
        assert output.finish_reason == "error"
        with pytest.raises(EngineDead, match="RuntimeError: the device is gone"):
            raise output.error or AssertionError
    assert engine.dead
    assert engine.step() == []
    with pytest.raises(EngineDead, match="Start it anew"):
        engine.submit(request("late"))


def test_two_engines_in_one_process_do_not_meet(
    tiny_llama: Path, tiny_qwen2: Path, adapter: str, make_engine: MakeEngine, answer: Answer
) -> None:
    one, other = make_engine(tiny_llama), make_engine(tiny_qwen2)
    expected = [tokens_of(answer(engine, request("1"))["1"]) for engine in (one, other)]
    outputs: list[list[Output]] = [[], []]
    for engine in (one, other):
        engine.submit(request("1"))
    while one.busy or other.busy:
        for engine, mine in zip((one, other), outputs, strict=True):
            mine += engine.step()
    assert [tokens_of(each) for each in outputs] == expected
