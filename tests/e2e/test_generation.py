"""OpenAI's generation parameters through the unchanged `openai` client, from the socket to the engine and back."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry.bases import load_nf4

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me a short story about a village near the sea."}]
TEXT = "Tell me a short story \U0001f642 about"
TOLERANCE = 0.1
"""Between logits in bfloat16, whose last bit depends on how many rows are multiplied at once."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tiny_qwen2: Path) -> Path:
    return tiny_qwen2


@pytest.fixture(scope="module")
def client(base: Path, running: Callable[..., Any]) -> Iterator[Any]:
    with running(base, "--exact").openai() as client:
        yield client


@pytest.fixture(scope="module")
def model(client: Any) -> str:
    return str(client.models.list().data[0].id)


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def logprobs_of(base: Path) -> Callable[[list[int]], Any]:
    """(tokens, vocabulary) by transformers, of what follows each token."""
    import torch

    reference = load_nf4(base)

    def compute(tokens: list[int]) -> Any:
        with torch.inference_mode():
            return reference(input_ids=torch.tensor([tokens])).logits[0].float().log_softmax(-1)

    return compute


def test_an_echoed_prompt_and_its_logprobs(
    client: Any, model: str, tokenizer: Any, logprobs_of: Callable[[list[int]], Any]
) -> None:
    answer = client.completions.create(
        model=model, prompt=TEXT, echo=True, logprobs=5, max_tokens=4, temperature=0,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )  # fmt: skip
    (choice,) = answer.choices
    tokens = [*tokenizer(TEXT).input_ids, *choice.token_ids]
    found = choice.logprobs
    assert choice.text.startswith(TEXT)
    assert len(found.tokens) == len(found.text_offset) == len(tokens)
    assert found.token_logprobs[0] is None
    assert found.top_logprobs[0] is None
    expected = logprobs_of(tokens)
    for place, token in enumerate(tokens[1:], start=1):
        row = expected[place - 1]
        assert found.token_logprobs[place] == pytest.approx(float(row[token]), abs=TOLERANCE)
        best = sorted(found.top_logprobs[place].values(), reverse=True)[:5]
        assert best == pytest.approx(row.topk(5).values.tolist()[: len(best)], abs=TOLERANCE)
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        assert token.startswith("bytes:") or choice.text[offset:].startswith(token)
    alone = client.completions.create(model=model, prompt=TEXT, echo=True, logprobs=5, max_tokens=0)
    length = len(tokens) - 4
    assert alone.choices[0].text == TEXT
    assert alone.choices[0].logprobs.token_logprobs[1:] == pytest.approx(found.token_logprobs[1:length], abs=TOLERANCE)
    assert (alone.usage.prompt_tokens, alone.usage.completion_tokens) == (length, 0)
    assert client.completions.create(model=model, prompt=TEXT, echo=True, max_tokens=0).choices[0].text == TEXT


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_chat(
    client: Any, model: str, tokenizer: Any, logprobs_of: Callable[[list[int]], Any], stream: bool
) -> None:
    options = {"model": model, "messages": MESSAGES, "max_completion_tokens": 6, "temperature": 1.5, "seed": 3}
    options |= {"logprobs": True, "top_logprobs": 4, "extra_body": {"return_token_ids": True, "ignore_eos": True}}
    if stream:
        choices = [each for part in client.chat.completions.create(**options, stream=True) for each in part.choices]
        text = "".join(each.delta.content or "" for each in choices)
    else:
        choices = client.chat.completions.create(**options).choices
        text = choices[0].message.content
    content = [entry for each in choices if each.logprobs for entry in each.logprobs.content]
    generated = [token for each in choices for token in getattr(each, "token_ids", None) or []]
    assert len(generated) == len(content) == 6
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    expected = logprobs_of([*prompt, *generated])[len(prompt) - 1 :]
    for entry, token, row in zip(content, generated, expected, strict=False):
        assert entry.logprob == pytest.approx(float(row[token]), abs=TOLERANCE), "of the raw logits, at any temperature"
        assert [each.logprob for each in entry.top_logprobs] == pytest.approx(
            row.topk(4).values.tolist(), abs=TOLERANCE
        )
    special = {tokenizer.decode([each]) for each in tokenizer.all_special_ids}
    shown = b"".join(bytes(entry.bytes) for entry in content if entry.token not in special)
    assert shown.decode(errors="replace") == text


def test_choices_are_sampled_apart_and_repeatably(client: Any, model: str) -> None:
    options = {"model": model, "messages": MESSAGES, "max_tokens": 12, "temperature": 1.2, "seed": 5}
    several = client.chat.completions.create(**options, n=5)
    texts = [choice.message.content for choice in several.choices]
    assert [choice.index for choice in several.choices] == list(range(5))
    assert len(set(texts)) == 5
    one = client.chat.completions.create(**options)
    assert one.choices[0].message.content == texts[0]
    assert several.usage.prompt_tokens == one.usage.prompt_tokens
    streamed = dict.fromkeys(range(5), "")
    options["stream_options"] = {"include_usage": True}
    parts = list(client.chat.completions.create(**options, n=5, stream=True))
    for choice in (each for part in parts for each in part.choices):
        streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == texts
    counts = several.usage.model_dump(exclude={"prompt_tokens_details"})
    assert parts[-1].usage.model_dump(exclude={"prompt_tokens_details"}) == counts
    assert parts[-1].usage.prompt_tokens_details.cached_tokens >= 0
    assert all(part.usage is None for part in parts[:-1])


def test_lists_of_prompts(client: Any, model: str, tokenizer: Any) -> None:
    prompts = ["Tell me", "January", "The quick brown"]
    options = {"model": model, "max_tokens": 5, "temperature": 0}
    together = client.completions.create(prompt=prompts, n=2, **options)
    alone = [client.completions.create(prompt=prompt, **options).choices[0].text for prompt in prompts]
    assert [(choice.index, choice.text) for choice in together.choices] == [
        (index, alone[index // 2]) for index in range(6)
    ]
    tokens = [tokenizer(prompt).input_ids for prompt in prompts]
    assert together.usage.prompt_tokens == sum(map(len, tokens))
    parts = client.completions.create(prompt=tokens, n=2, stream=True, **options)
    streamed = dict.fromkeys(range(6), "")
    for choice in (each for part in parts for each in part.choices):
        streamed[choice.index] += choice.text
    assert streamed == {choice.index: choice.text for choice in together.choices}


def test_biases_and_penalties_choose_tokens(client: Any, model: str, tokenizer: Any) -> None:
    def ask(**more: Any) -> list[int]:
        extra = {"return_token_ids": True, "ignore_eos": True} | more.pop("extra_body", {})
        answer = client.completions.create(
            model=model, prompt=TEXT, max_tokens=24, temperature=0, extra_body=extra, **more
        )
        return list(answer.choices[0].token_ids)

    (forced,) = tokenizer(" sea").input_ids
    assert ask(logit_bias={str(forced): 100}) == [forced] * 24
    plain = ask()
    assert plain[0] not in ask(logit_bias={str(plain[0]): -100})
    assert len(set(ask(logit_bias={str(forced): 20}, frequency_penalty=2))) > 1
    assert len(set(ask(presence_penalty=2))) > len(set(plain))
    assert len(set(ask(extra_body={"repetition_penalty": 2}))) > len(set(plain))
    certain = client.completions.create(
        model=model, prompt=TEXT, max_tokens=24, temperature=2, logprobs=1, extra_body={"min_p": 1}
    )
    found = certain.choices[0].logprobs
    assert found.token_logprobs == [max(each.values()) for each in found.top_logprobs]


def test_mistakes_are_openai_s_errors(client: Any, model: str) -> None:
    import openai

    def refusal(**options: Any) -> Any:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**{"model": model, "messages": MESSAGES} | options)
        return caught.value

    long = refusal(messages=[{"role": "user", "content": "story " * 600}])
    assert long.code == "context_length_exceeded"
    assert "more than the 512 that fit" in long.message
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]
    assert "only text is served" in refusal(messages=[{"role": "user", "content": picture}]).message
    several = refusal(temperature=3, extra_body={"temprature": 1}, n=0).message
    assert all(name in several for name in ("temperature", "temprature", "n:"))
    assert "token id 100000" in refusal(logit_bias={"100000": 1}).message
    assert refusal(top_logprobs=2).param == "top_logprobs"
    with pytest.raises(openai.BadRequestError, match="only as many as n"):
        client.completions.create(model=model, prompt="x", best_of=2)


def test_leaving_a_stream_of_several_choices_cancels_them_all(client: Any, model: str) -> None:
    options = {"model": model, "prompt": ["one", "two"], "n": 8, "max_tokens": 400, "extra_body": {"ignore_eos": True}}
    for _ in range(20):  # 320 answers, which a queue of 256 would refuse if they stayed
        with client.completions.create(stream=True, **options) as stream:
            next(iter(stream))
    assert client.completions.create(model=model, prompt="x", max_tokens=1).choices[0].finish_reason == "length"
