"""Log-probabilities are those of transformers, whatever is sampled, and name tokens by their very bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_serving import Engine, Output, Request, Sampling, TokenLogprob

LENGTHS = (1, 2, 19, 150)
"""Of prompts; one is longer than what is widened at once."""

MakeEngine = Callable[..., Engine]
Answer = Callable[..., dict[str, list[Output]]]


def prompt_of(length: int) -> tuple[int, ...]:
    return tuple((7 * n + 13 * n * n + length) % 370 + 5 for n in range(length))


def reference(base: Path, adapter: Path | None) -> Callable[[list[int]], Any]:
    """By transformers: tokens to the (tokens, vocabulary) log-probabilities of what follows each."""
    import warnings

    import torch
    from peft import PeftModel

    from swapmeet_registry.bases.nf4 import load_nf4
    from swapmeet_registry.fingerprint import Quantization

    model = load_nf4(base, quantization=Quantization(compute_dtype="float32"))
    if adapter:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on tied heads and Hub look-ups
            model = PeftModel.from_pretrained(model, adapter).eval()

    def compute(tokens: list[int]) -> Any:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([tokens])).logits[0].float().log_softmax(-1)

    return compute


def assert_alike(found: list[TokenLogprob], tokens: list[int], predicted: Any, top: int) -> None:
    """`predicted` row by row are what `tokens` were predicted from."""
    assert [each.chosen.token_id for each in found] == tokens
    for each, row in zip(found, predicted, strict=True):
        assert each.chosen.logprob == pytest.approx(float(row[each.chosen.token_id]), abs=2e-4)
        assert [other.logprob for other in each.top] == pytest.approx(row.topk(top).values.tolist(), abs=2e-4)
        for other in each.top:
            assert other.logprob == pytest.approx(float(row[other.token_id]), abs=2e-4)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("base_name", ["tiny_llama", "tiny_qwen2"])
def test_they_are_those_of_transformers_and_peft(
    base_name: str,
    exact: bool,
    request: pytest.FixtureRequest,
    random_lora: Callable[..., Path],
    make_engine: MakeEngine,
    answer: Answer,
    tmp_path: Path,
) -> None:
    """Prompts beside prompts and answers of others, with an adapter on the output head among them."""
    base: Path = request.getfixturevalue(base_name)
    head = random_lora(base, tmp_path / "head", rank=8, targets=("lm_head", "up_proj"))
    other = random_lora(base, tmp_path / "other", rank=4, seed=1)
    engine = make_engine(base, exact=exact, compute_dtype="float32")
    samplings = {
        "plain": Sampling(max_tokens=6, logprobs=2, prompt_logprobs=3, ignore_eos=True),
        "none": Sampling(max_tokens=6, temperature=1, seed=1),
        "hot": Sampling(
            max_tokens=6, temperature=2, seed=1, frequency_penalty=2, logit_bias=((9, 5),), logprobs=0, ignore_eos=True
        ),
    }
    adapters = {"head": head, "base": None, "other": other}
    requests = [
        Request(f"{name}:{adapter}:{length}", prompt_of(length), str(folder) if folder else None, sampling)
        for length in LENGTHS
        for adapter, folder in adapters.items()
        for name, sampling in samplings.items()
    ]
    outputs = answer(engine, *requests)
    references = {name: reference(base, folder) for name, folder in adapters.items()}
    for each in requests:
        name, adapter, _ = each.id.split(":")
        mine = outputs[each.id]
        tokens = [token for output in mine for token in output.token_ids]
        found = [entry for output in mine for entry in output.logprobs]
        if name == "none":
            assert found == []
            continue
        expected = references[adapter]([*each.prompt, *tokens])
        assert_alike(found, tokens, expected[len(each.prompt) - 1 : -1], samplings[name].logprobs or 0)
        assert all(not output.prompt_logprobs for output in mine[1:])
        if name == "plain":
            first, *others = mine[0].prompt_logprobs
            assert (first.chosen.token_id, first.chosen.logprob, first.top) == (each.prompt[0], None, ())
            assert_alike(others, list(each.prompt[1:]), expected[: len(each.prompt) - 1], 3)
        else:
            assert mine[0].prompt_logprobs == ()


def test_the_prompt_alone(tiny_llama: Path, make_engine: MakeEngine, answer: Answer) -> None:
    sampling = Sampling(max_tokens=0, prompt_logprobs=0)
    (only,) = answer(make_engine(tiny_llama), Request("1", prompt_of(19), None, sampling))["1"]
    assert (only.token_ids, only.text, only.finish_reason, only.completion_tokens) == ((), "", "length", 0)
    assert [each.chosen.token_id for each in only.prompt_logprobs] == list(prompt_of(19))


def test_a_bias_on_an_unknown_token_is_refused(tiny_llama: Path, make_engine: MakeEngine) -> None:
    from swapmeet_serving.errors import InvalidRequest

    with pytest.raises(InvalidRequest, match="logit_bias names the token id 100000, outside of 0 to"):
        make_engine(tiny_llama).submit(Request("1", (1,), None, Sampling(logit_bias=((3, 1), (100_000, 1)))))


def test_special_tokens_are_not_shown(tiny_llama: Path, make_engine: MakeEngine, answer: Answer) -> None:
    sampling = Sampling(max_tokens=3, logit_bias=((2, 100),), logprobs=0, ignore_eos=True)
    outputs = answer(make_engine(tiny_llama), Request("1", (7,), None, sampling))["1"]
    entries = [entry for output in outputs for entry in output.logprobs]
    assert [(each.chosen.piece, each.shown) for each in entries] == [(b"<|im_end|>", False)] * 3


def test_pieces_of_a_byte_level_vocabulary_join_to_the_text(tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    from swapmeet_serving.token_bytes import TokenBytes

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    pieces = TokenBytes(tokenizer)
    for text in ("Tell me a story", "  two\n\tlines", "日本語 🙂 naïve \ufffd", "<|im_start|>user"):
        tokens = tokenizer(text).input_ids
        assert b"".join(pieces[token] for token in tokens) == text.encode()
    assert sorted(pieces[token] for token in tokenizer("🙂").input_ids) == sorted(bytes([b]) for b in "🙂".encode())
    assert pieces[100_000] == b""


def test_pieces_of_a_vocabulary_with_byte_fallback() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from swapmeet_serving.token_bytes import TokenBytes

    words = ["<unk>", "▁Hello", "a", "▁"] + [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(
        models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert [pieces[n] for n in range(4)] == [b"<unk>", b" Hello", b"a", b" "]
    assert [pieces[4 + byte] for byte in range(256)] == [bytes([byte]) for byte in range(256)]
