"""Mixed batches over HTTP give the tokens of transformers and PEFT on the same NF4 base, request by request.

With `--exact` they are always the same. Without, sums are taken in another order, and bfloat16 keeps 8 bits: where
two tokens are as likely as bits can tell, either may be chosen, and only there.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Registry
from swapmeet_registry.bases import load_nf4
from swapmeet_registry.fingerprint import fingerprint, weight_files

QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Count from one to five.",
    "Name three colours.",
    "Why does it rain?",
]
NEW_TOKENS = 16
SHAPES: dict[str, dict[str, Any]] = {
    "acme/rank-4": {"rank": 4},
    "acme/rank-16": {"rank": 16, "seed": 1},
    "acme/attention": {"rank": 8, "targets": ("q_proj", "v_proj"), "seed": 2},
    "acme/rslora": {"rank": 8, "use_rslora": True, "lora_alpha": 8, "seed": 3},
    "acme/patterns": {
        "rank": 4, "rank_pattern": {"down_proj": 12}, "alpha_pattern": {"q_proj": 24}, "seed": 4,
    },
}  # fmt: skip
ASKED = [(adapter, question) for question in QUESTIONS for adapter in (None, *SHAPES)]
"""Of the base itself where no adapter is named."""

TORN = 0.25
"""Logits between the best two tokens, in bfloat16 of values up to 32, that a change of the last bit can swap."""


@dataclass
class Hosted:
    server: Any
    base: Path
    exact: bool
    adapters: dict[str, Path]


@pytest.fixture(scope="module")
def adapters_of(
    random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], dict[str, Path]]:
    """A base's adapters, made once."""

    @cache
    def make(base: Path) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp("adapters")
        return {name: random_lora(base, folder / name.replace("/", "-"), **shape) for name, shape in SHAPES.items()}

    return make


@pytest.fixture(scope="module")
def expected_of(adapters_of: Callable[[Path], dict[str, Path]]) -> Callable[[Path], list[Any]]:
    """What transformers and PEFT give for everything that is asked, computed once for each base."""
    return cache(lambda base: reference(base, adapters_of(base)))


HOSTED = ["tiny_qwen2 exact", "smollm2 exact", "smollm2"]
either = pytest.mark.parametrize("hosted", [HOSTED[0], HOSTED[2]], indirect=True, scope="module")
"""The real base and exact arithmetic, but not both: what is asked is no matter of numbers."""


@pytest.fixture(scope="module", params=HOSTED)
def hosted(
    request: pytest.FixtureRequest,
    running: Callable[..., Any],
    adapters_of: Callable[[Path], dict[str, Path]],
    swapmeet: Callable[..., Any],
) -> Hosted:
    """A server over one base and a registry of adapters, one of them pushed by the command line."""
    name, *exact = request.param.split()
    base: Path = request.getfixturevalue(name)
    server, adapters = running(base, *(f"--{each}" for each in exact)), adapters_of(base)
    first, *others = adapters
    pushed = swapmeet("push", adapters[first], first, "--base", base, "--home", server.home, "--json")
    assert pushed.returncode == 0, pushed.stderr
    registry, trained_on = Registry(f"file://{server.home}/registry"), fingerprint(base, "base")
    for other in others:
        registry.push(adapters[other], other, base=trained_on)
    return Hosted(server, base, bool(exact), adapters)


@pytest.mark.slow
def test_mixed_batches_equal_peft(hosted: Hosted, expected_of: Callable[[Path], list[Any]]) -> None:
    client = hosted.server.openai()
    base_name = client.models.list().data[0].id
    with ThreadPoolExecutor(len(ASKED)) as pool:
        answers = list(pool.map(lambda each: ask(client, each[0] or base_name, each[1]), ASKED))
    for each, found, (tokens, logits) in zip(ASKED, answers, expected_of(hosted.base), strict=True):
        if hosted.exact:
            assert found == tokens, each
        else:
            assert_same_or_torn(each, found, tokens, logits)
    by_adapter = [answers[index :: len(SHAPES) + 1] for index in range(len(SHAPES) + 1)]
    assert all(by_adapter.count(each) == 1 for each in by_adapter), "adapters that answer alike prove nothing"


def assert_same_or_torn(asked: tuple[str | None, str], found: list[int], tokens: list[int], logits: Any) -> None:
    """Equal up to a token that the reference itself found almost as likely as its own."""
    parted = next((n for n, (a, b) in enumerate(zip(found, tokens, strict=False)) if a != b), None)
    if parted is None:
        assert len(found) == len(tokens), asked
    else:
        step = logits[parted]
        assert float(step.max() - step[found[parted]]) <= TORN, (asked, parted)


def ask(client: Any, model: str, question: str) -> list[int]:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=NEW_TOKENS,
        temperature=0,
        extra_body={"return_token_ids": True},
    )
    return list(answer.choices[0].token_ids)


def reference(base: Path, adapters: dict[str, Path]) -> list[Any]:
    """Greedy tokens of PEFT and the logits they were taken from, one request at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    names = {name: name.replace("/", "-") for name in adapters}
    first, *others = adapters
    model = PeftModel.from_pretrained(load_nf4(base), adapters[first], adapter_name=names[first])
    for name in others:
        model.load_adapter(adapters[name], adapter_name=names[name])
    model.eval()
    found = []
    for adapter, question in ASKED:
        chat = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        if adapter:
            model.set_adapter(names[adapter])
        alone = nullcontext() if adapter else model.disable_adapter()
        with alone, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = model.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        found.append((tokens, [each[0] for each in output.logits]))
    return found


@pytest.mark.slow
@either
def test_an_adapter_of_a_base_with_one_other_byte_is_refused(
    hosted: Hosted, swapmeet: Callable[..., Any], tmp_path: Path
) -> None:
    import shutil

    other = shutil.copytree(hosted.base, tmp_path / "other")
    with weight_files(other)[0].open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)[0]
        stream.seek(-1, 2)
        stream.write(bytes([last ^ 1]))
    here, there = fingerprint(hosted.base, "here").weights, fingerprint(other, "other").weights
    home, folder = hosted.server.home, hosted.adapters["acme/rank-4"]

    assert swapmeet("push", folder, "acme/foreign", "--base", other, "--home", home).returncode == 0
    pulled = swapmeet("pull", "acme/foreign", tmp_path / "pulled", "--base", hosted.base, "--home", home)
    assert pulled.returncode == 1
    assert here in pulled.stderr
    assert there in pulled.stderr
    assert not (tmp_path / "pulled").exists()

    import openai

    with pytest.raises(openai.BadRequestError) as caught:
        ask(hosted.server.openai(), "acme/foreign", "Hello")
    assert caught.value.code == "base_mismatch"
    assert here in caught.value.message
    assert there in caught.value.message

    ours = swapmeet("pull", "acme/rank-4", tmp_path / "ours", "--base", hosted.base, "--home", home)
    assert ours.returncode == 0, ours.stderr
    pushed = swapmeet("push", tmp_path / "ours", "acme/moved", "--base", other, "--home", home)
    assert pushed.returncode == 1
    assert here in pushed.stderr
    assert there in pushed.stderr


@pytest.mark.slow
@either
def test_names_follow_the_registry(hosted: Hosted) -> None:
    import openai

    client = hosted.server.openai()
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "acme/nobody-made-this", "Hello")
    assert caught.value.code == "model_not_found"

    registry = Registry(f"file://{hosted.server.home}/registry")
    trained_on = fingerprint(hosted.base, "base")
    first = registry.push(hosted.adapters["acme/rank-4"], "acme/moving", base=trained_on, alias="prod")
    one = ask(client, "acme/moving:prod", "Why does it rain?")
    second = registry.push(hosted.adapters["acme/rank-16"], "acme/moving", base=trained_on, alias="prod")
    two = ask(client, "acme/moving:prod", "Why does it rain?")
    assert one != two
    assert ask(client, "acme/moving:1", "Why does it rain?") == one
    assert ask(client, first.pinned, "Why does it rain?") == one
    assert ask(client, "acme/moving", "Why does it rain?") == two
    raw = client.chat.completions.with_raw_response.create(
        model="acme/moving:prod", messages=[{"role": "user", "content": "Hi"}], max_tokens=1
    )
    assert raw.headers["x-swapmeet-adapter"] == second.pinned
    assert {"acme/moving", *SHAPES} <= {model.id for model in client.models.list()}


@pytest.mark.slow
@either
def test_streams_carry_the_same_text(hosted: Hosted) -> None:
    client = hosted.server.openai()
    options: dict[str, Any] = {
        "model": "acme/rank-16",
        "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.chat.completions.create(**options)
    pieces = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for piece in pieces for choice in piece.choices)
    assert text == whole.choices[0].message.content
    assert pieces[-1].usage == whole.usage
    assert len(pieces) > 5


@pytest.mark.slow
@either
def test_a_blob_tampered_with_is_never_served(hosted: Hosted) -> None:
    import openai

    registry = Registry(f"file://{hosted.server.home}/registry")
    folder = hosted.adapters["acme/attention"]
    (folder / "note.txt").write_text("so that no other adapter has this file")
    version = registry.push(folder, "acme/tampered", base=fingerprint(hosted.base, "base"))
    stored = next(file for file in registry.manifest(version).files if file.path == "note.txt")
    (blob,) = (hosted.server.home / "registry").rglob(stored.sha256.removeprefix("sha256:"))
    blob.chmod(0o644)
    blob.write_text("something else of equal length........"[: blob.stat().st_size])
    with pytest.raises(openai.InternalServerError) as caught:
        ask(hosted.server.openai(), "acme/tampered", "Hello")
    assert caught.value.code == "corrupt"
