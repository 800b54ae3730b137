"""The replica by itself; many under a real Ray Serve are in the platform's tests."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import BaseMismatch, NotFound, Registry
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_serving import Call, Chunk, Sampling
from swapmeet_serving.calls import ToolUse
from swapmeet_serving.constraints import Constraint
from swapmeet_serving.errors import ContextTooLong, EngineDead, InvalidRequest, NoChatTemplate, Overloaded
from swapmeet_serving.replica import Replica
from swapmeet_serving.replica_settings import ReplicaSettings

MESSAGES = ({"role": "user", "content": "Tell me a story"},)
SHORT = Sampling(max_tokens=6, ignore_eos=True)
LONG = Sampling(max_tokens=400, ignore_eos=True)
OWN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def settings(
    tiny_llama: Path,
    random_lora: Callable[..., Path],
    replica_settings: Callable[..., ReplicaSettings],
    tmp_path_factory: pytest.TempPathFactory,
) -> ReplicaSettings:
    """A registry with adapters of the base, one with its own chat template, and one of another base."""
    folder = tmp_path_factory.mktemp("platform")
    settings = replica_settings(folder)
    registry, here = Registry(settings.registry), settings.fingerprint
    for seed, name in enumerate(("one", "two", "templated")):
        adapter = random_lora(tiny_llama, folder / name, rank=8, seed=seed)
        if name == "templated":
            (adapter / "chat_template.jinja").write_text(OWN_TEMPLATE)
        registry.push(adapter, f"acme/{name}", base=here)
    elsewhere = Fingerprint(**here.model_dump() | {"name": "other", "weights": "sha256:" + "f" * 64})
    registry.push(folder / "one", "acme/elsewhere", base=elsewhere)
    return settings


@pytest.fixture(scope="module")
def replica(settings: ReplicaSettings) -> Replica:
    return Replica(settings)


@pytest.fixture
def pinned(settings: ReplicaSettings) -> Callable[[str], str]:
    registry = Registry(settings.registry)
    return lambda name: registry.resolve(f"acme/{name}").pinned


async def collect(chunks: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in chunks]


def ask(replica: Replica, *calls: Call) -> list[list[Chunk]]:
    async def all_at_once() -> list[list[Chunk]]:
        return await asyncio.gather(*(collect(replica.generate(call)) for call in calls))

    return asyncio.run(all_at_once())


def tokens_of(chunks: list[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def test_streams_of_different_adapters_at_once(replica: Replica, pinned: Callable[[str], str]) -> None:
    names = [None, pinned("one"), pinned("two")]
    calls = [Call(str(n), messages=MESSAGES, adapter=name, sampling=SHORT) for n, name in enumerate(names)]
    answers = ask(replica, *calls)
    assert len({tuple(tokens_of(each)) for each in answers}) == 3
    for chunks in answers:
        assert [chunk.completion_tokens for chunk in chunks] == [1, 2, 3, 4, 5, 6]
        assert chunks[-1].finish_reason == "length"
    described = asyncio.run(replica.describe())
    assert described["base"] == "tiny"
    assert described["context_length"] == 512
    assert set(described["resident_adapters"]) == {pinned("one"), pinned("two")}
    replica.check_health()


def test_prompts_in_messages_text_and_tokens_agree(replica: Replica) -> None:
    tokenizer = replica._engine.tokenizer
    text = tokenizer.apply_chat_template(list(MESSAGES), tokenize=False, add_generation_prompt=True)
    tokens = tuple(tokenizer(text).input_ids)
    calls = [
        Call("1", messages=MESSAGES, sampling=SHORT),
        Call("2", prompt=text, sampling=SHORT),
        Call("3", prompt=tokens, sampling=SHORT),
    ]
    first, second, third = ask(replica, *calls)
    assert tokens_of(first) == tokens_of(second) == tokens_of(third)
    assert first[0].prompt_tokens == len(tokens)
    with pytest.raises(InvalidRequest, match="Give messages or a prompt"):
        ask(replica, Call("4"))


def test_an_adapter_s_own_chat_template_is_used(replica: Replica, pinned: Callable[[str], str]) -> None:
    plain = len(replica._engine.tokenizer(MESSAGES[0]["content"]).input_ids)
    for adapter, expected in ((pinned("templated"), True), (pinned("one"), False), (None, False)):
        for attempt in range(2):
            (chunks,) = ask(replica, Call(str(attempt), messages=MESSAGES, adapter=adapter, sampling=SHORT))
            assert (chunks[0].prompt_tokens == plain) == expected


def test_messages_that_no_template_takes(settings: ReplicaSettings, replica: Replica, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(InvalidRequest, match="The chat template refuses"):
        ask(replica, Call("1", messages=({"role": "user"},)))
    base = shutil.copytree(settings.base, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    untemplated = Replica(replace(settings, base=base))
    with pytest.raises(NoChatTemplate, match="no chat template"):
        ask(untemplated, Call("1", messages=MESSAGES))


def test_errors_reach_the_one_who_asked(replica: Replica, pinned: Callable[[str], str]) -> None:
    with pytest.raises(BaseMismatch, match="sha256:ffff"):
        ask(replica, Call("1", messages=MESSAGES, adapter=pinned("elsewhere"), sampling=SHORT))
    with pytest.raises(BaseMismatch, match="sha256:ffff"):
        ask(replica, Call("1", prompt="Hello", adapter=pinned("elsewhere"), sampling=SHORT))
    with pytest.raises(NotFound):
        ask(replica, Call("1", prompt="Hello", adapter="acme/one@sha256:" + "0" * 64, sampling=SHORT))
    with pytest.raises(ContextTooLong):
        ask(replica, Call("1", prompt="Hello", sampling=Sampling(max_tokens=600)))


def test_leaving_a_stream_cancels_it(replica: Replica, pinned: Callable[[str], str]) -> None:
    async def leave() -> None:
        stream = replica.generate(Call("left", prompt="Hello", adapter=pinned("one"), sampling=LONG))
        assert (await anext(stream)).completion_tokens == 1
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    (chunks,) = ask(replica, Call("next", prompt="Hello", sampling=SHORT))
    assert len(chunks) == 6
    assert not replica._engine.busy
    assert not replica._under_way


def test_several_answers_to_one_prompt(replica: Replica) -> None:
    """Each is what its own seed gives alone; the first's is the seed itself."""
    sampling = Sampling(max_tokens=6, ignore_eos=True, temperature=1.5, seed=11)
    call = Call("several", messages=MESSAGES, sampling=sampling, n=4)
    (chunks,) = ask(replica, call)
    answers = [[each for each in chunks if each.index == index] for index in range(4)]
    assert {each.index for each in chunks[:5]} != {0}, "they grow together"
    for index, mine in enumerate(answers):
        (alone,) = ask(replica, Call("alone", messages=MESSAGES, sampling=sampling.of_choice(index)))
        assert tokens_of(mine) == tokens_of(alone)
        assert [each.finish_reason for each in mine] == [None] * 5 + ["length"]
    assert len({tuple(tokens_of(each)) for each in answers}) == 4
    assert tokens_of(answers[0]) == tokens_of(ask(replica, Call("1", messages=MESSAGES, sampling=sampling))[0])
    whole = asyncio.run(replica.answer(call))
    assert [each.index for each in whole] == [0, 1, 2, 3]
    assert [list(each.token_ids) for each in whole] == [tokens_of(each) for each in answers]


def test_if_one_answer_can_not_be_had_the_others_end(settings: ReplicaSettings) -> None:
    small = Replica(replace(settings, max_queue=3, max_batch=1))

    async def crowd() -> None:
        busy = small.generate(Call("busy", prompt="Hello", sampling=LONG, n=2))
        await anext(busy)
        with pytest.raises(Overloaded):
            await anext(small.generate(Call("late", prompt="Hello", sampling=LONG, n=3)))
        await busy.aclose()  # type: ignore[attr-defined]

    asyncio.run(crowd())
    with pytest.raises(InvalidRequest, match="n is 4, and 3 answers are the most"):
        ask(small, Call("more", prompt="Hello", n=4))
    deadline = time.monotonic() + 30
    while small._engine.busy:
        assert time.monotonic() < deadline, "the engine still computes for a caller who left"
        time.sleep(0.01)
    (chunks,) = ask(small, Call("next", prompt="Hello", sampling=SHORT, n=3))
    assert len(chunks) == 18
    assert not small._under_way


def test_an_echo_stands_before_every_answer(replica: Replica) -> None:
    tokenizer = replica._engine.tokenizer
    text = "Tell me <|im_start|> a story: \U0001f642"
    tokens = tuple(tokenizer(text).input_ids)
    for prompt in (text, tokens):
        sampling = replace(SHORT, logprobs=1, prompt_logprobs=1)
        for each in asyncio.run(replica.answer(Call("1", prompt=prompt, sampling=sampling, n=2, echo=True))):
            assert each.text.startswith(text)
            assert len(each.token_ids) == 6
            assert [entry.chosen.token_id for entry in each.logprobs] == [*tokens, *each.token_ids]
            shown = b"".join(entry.chosen.piece for entry in each.logprobs if entry.shown)
            assert shown.decode(errors="replace") == each.text
    (only,) = asyncio.run(replica.answer(Call("1", prompt=text, sampling=Sampling(max_tokens=0), echo=True)))
    assert (only.text, only.token_ids, only.logprobs, only.finish_reason) == (text, (), (), "length")


def test_a_long_text_does_not_hold_up_the_others(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    tokens = replica._prompts._tokens

    def noted(text: str) -> tuple[int, ...]:
        threads.append(threading.current_thread().name)
        return tokens(text)

    monkeypatch.setattr(replica._prompts, "_tokens", noted)
    monkeypatch.setattr("swapmeet_serving.prompts.LONG_TEXT", 100)
    for text in ("Hello" * 200, "Hello"):
        call = Call("1", prompt=text, sampling=SHORT)
        if len(text) > 5:
            with pytest.raises(ContextTooLong):
                ask(replica, call)
        else:
            ask(replica, call)
    assert [name.startswith("template-fetcher") for name in threads] == [True, False]
    with pytest.raises(ContextTooLong):
        ask(replica, Call("1", messages=({"role": "user", "content": "Hello" * 100_000},), sampling=SHORT))


def test_an_echo_of_no_tokens_is_refused(replica: Replica) -> None:
    with pytest.raises(InvalidRequest, match="outside of 0 to"):
        ask(replica, Call("1", prompt=(2**70,), sampling=SHORT, echo=True))
    assert not replica._under_way


def test_more_answers_than_one_tenant_may_have_waiting_are_never_promised(settings: ReplicaSettings) -> None:
    small = Replica(replace(settings, max_queue=8, max_batch=1))
    with pytest.raises(InvalidRequest, match="n is 7, and 6 answers are the most"):
        ask(small, Call("more", prompt="Hello", n=7))
    (chunks,) = ask(small, Call("most", prompt="Hello", sampling=SHORT, n=6))
    assert len(chunks) == 36


def test_tokens_that_a_tokenizer_adds_are_not_shown() -> None:
    from swapmeet_serving.echo import Echo

    class Tokenizer:
        def __call__(self, text: str, **_: Any) -> Any:
            return type("Encoding", (), {"special_tokens_mask": [1, 0, 0]})

    assert Echo.of("two tokens", (0, 1, 2), Tokenizer()) == Echo("two tokens", (False, True, True))


def test_an_id_under_way_is_not_disturbed_by_a_second_call(replica: Replica) -> None:
    async def twice() -> list[Chunk]:
        first = replica.generate(Call("same", prompt="Hello", sampling=SHORT))
        chunks = [await anext(first)]
        with pytest.raises(InvalidRequest, match="id same is under way"):
            await anext(replica.generate(Call("same", prompt="Hello", sampling=SHORT)))
        return chunks + await collect(first)

    assert len(asyncio.run(twice())) == 6


def test_health_notices_a_dead_engine(settings: ReplicaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Replica(settings)
    replica.check_health()

    def fail(*_: Any) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(replica._engine._runner, "run", fail)
    with pytest.raises(EngineDead, match="the device is gone"):
        ask(replica, Call("1", prompt="Hello"))
    replica._thread.join(10)
    with pytest.raises(EngineDead, match="must be replaced"):
        replica.check_health()


def test_constraints_and_tools(replica: Replica, settings: ReplicaSettings) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    add = {"name": "add", "parameters": schema}
    bound = Sampling(max_tokens=80)
    calls = [
        Call("regex", prompt="Hello", sampling=bound, constraint=Constraint.regex("[0-9]{5}")),
        Call("required", messages=MESSAGES, sampling=bound, tools=ToolUse((add,), required=True, parallel=False)),
        Call("auto", messages=MESSAGES, sampling=SHORT, tools=ToolUse((add,))),
        Call("free", messages=MESSAGES, sampling=SHORT),
    ]
    regex, required, auto, free = ask(replica, *calls)
    assert len("".join(chunk.text for chunk in regex)) == 5
    assert "".join(chunk.text for chunk in required) == ""
    (made,) = [each for chunk in required for each in chunk.tool_calls]
    assert (made.index, made.name, json.loads(made.arguments)["a"] in (1, 2)) == (0, "add", True)
    assert required[-1].finish_reason == "tool_calls"
    assert auto[-1].finish_reason == free[-1].finish_reason == "length"
    assert auto[0].prompt_tokens > free[0].prompt_tokens, "the functions are in the prompt"
    (whole,) = asyncio.run(replica.answer(calls[1]))
    assert (whole.text, len(whole.tool_calls), whole.finish_reason) == ("", 1, "tool_calls")

    with pytest.raises(InvalidRequest, match="Unimplemented keys"):
        ask(replica, Call("1", prompt="Hello", constraint=Constraint.json_schema({"not": {}})))
    bad = {"name": "bad", "parameters": {"properties": {"a": {"not": {}}}}}
    with pytest.raises(InvalidRequest, match=r"tools\.0\.function\.parameters: .*Unimplemented keys"):
        ask(replica, Call("1", messages=MESSAGES, tools=ToolUse((bad,), required=True)))
    with pytest.raises(InvalidRequest, match="Tools go with messages"):
        ask(replica, Call("1", prompt="Hello", tools=ToolUse((add,))))
    assert not replica._under_way
