"""Adapters whose numbers overflow: their requests fail and say why, and nobody else notices."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swapmeet_serving import Engine, Output, Request, Sampling
from swapmeet_serving.errors import NotFinite

PROMPT = tuple(range(20, 60))
Answer = Callable[..., dict[str, list[Output]]]
MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def good(tiny_llama: Path, random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_lora(tiny_llama, tmp_path_factory.mktemp("adapters") / "good"))


@pytest.fixture(scope="module")
def bad(tiny_llama: Path, random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every weight is a number, and so passes admission."""
    from safetensors.torch import load_file, save_file

    folder = random_lora(tiny_llama, tmp_path_factory.mktemp("adapters") / "bad", seed=1)
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        if "lora_B" in name:
            weight.copy_(weight.sign() * 3e38)
    save_file(weights, path, {"format": "pt"})
    return str(folder)


def request(name: str, adapter: Any = None, prompt: tuple[int, ...] = PROMPT, **sampling: Any) -> Request:
    return Request(name, prompt, adapter, Sampling(**{"max_tokens": 8, "ignore_eos": True} | sampling))


def tokens_of(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@pytest.mark.parametrize("exact", [False, True])
def test_it_is_told_by_name_and_neighbours_go_on(
    tiny_llama: Path, good: str, bad: str, make_engine: MakeEngine, answer: Answer, exact: bool
) -> None:
    engine = make_engine(tiny_llama, exact=exact)
    neighbours = [request("base"), request("good", good), request("drawn", good, temperature=1.0, seed=3)]
    alone = {each.id: tokens_of(answer(engine, each)[each.id]) for each in neighbours}
    hostile = [
        request("bad", bad),
        request("bad drawn", bad, temperature=1.0, top_p=0.5, logprobs=2),
        request("bad penalised", bad, repetition_penalty=1.5, prompt=PROMPT[:3]),
        request("bad mixed", ((good, 0.5), (bad, 1.0))),
        request("bad echo", bad, max_tokens=0, prompt_logprobs=1),
    ]
    first, second, *others = hostile
    outputs = answer(engine, first, neighbours[0], second, neighbours[1], *others, neighbours[2])
    for each in hostile:
        (only,) = outputs[each.id]
        assert (only.finish_reason, only.token_ids, only.text) == ("error", (), "")
        assert isinstance(only.error, NotFinite)
        assert bad in str(only.error)
    assert {name: tokens_of(outputs[name]) for name in alone} == alone
    assert not engine.dead


def test_its_pages_harm_nobody_later(
    tiny_llama: Path, good: str, bad: str, make_engine: MakeEngine, answer: Answer
) -> None:
    token_bytes = 2 * 2 * 2 * 32 * 2
    roomy, engine = make_engine(tiny_llama), make_engine(tiny_llama, kv_bytes=64 * token_bytes)
    requests = [request("base"), request("good", good)]
    expected = {each.id: tokens_of(answer(roomy, each)[each.id]) for each in requests}
    for _ in range(2):
        (only,) = answer(engine, request("bad", bad))["bad"]
        assert isinstance(only.error, NotFinite)
        scheduler: Any = engine._scheduler
        assert scheduler._pages.idle == 0, "nothing of it is kept"
        assert scheduler.prefix_hits == 0
        assert scheduler._pages.free == scheduler._pages.count
        for each in requests:
            assert tokens_of(answer(engine, each)[each.id]) == expected[each.id]
        for each in requests:
            assert tokens_of(answer(engine, each)[each.id]) == expected[each.id]
        scheduler.prefix_hits = 0
        taken = scheduler._pages.allocate(scheduler._pages.count)
        scheduler._pages.release(taken)


def test_in_the_middle_of_an_answer(
    tiny_llama: Path, make_engine: MakeEngine, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of one step: its request ends with what it has, and the other has all its tokens."""
    import torch

    engine = make_engine(tiny_llama)
    expected = tokens_of(answer(engine, request("other"))["other"])
    run, steps = engine._runner.run, 0

    def break_one(batch: Any, adapters: Any) -> Any:
        nonlocal steps
        logits = run(batch, adapters)
        steps += 1
        if steps == 4:
            names = [each.sequence.request.id for each in batch if not each.sequence.missing - each.count]
            rows = logits.next.clone()
            rows[names.index("one")] = -torch.inf
            return replace(logits, next=rows)
        return logits

    monkeypatch.setattr(engine._runner, "run", break_one)
    outputs = answer(engine, request("one"), request("other"))
    assert tokens_of(outputs["other"]) == expected
    assert tokens_of(outputs["one"]) == expected[:3]
    assert isinstance(outputs["one"][-1].error, NotFinite)
    assert "the base" in str(outputs["one"][-1].error)


def test_which_rows_tell_nothing() -> None:
    import torch

    from swapmeet_serving.sampling import not_finite

    rows = torch.randn(6, 40)
    assert not_finite(rows) == []
    assert not_finite(rows[:0]) == []
    rows[0, 3] = torch.nan
    rows[1] = -torch.inf
    rows[2, 5] = torch.inf
    rows[3, :39] = -torch.inf  # one token is left, as where a vocabulary is padded
    rows[4] = torch.nan
    assert not_finite(rows) == [0, 1, 2, 4]
