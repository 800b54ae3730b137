"""What is published of an adapter does not depend on what wrote it, and says the same."""

import json
import os
import struct
import tracemalloc
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import TensorSpec, serialize

from swapmeet_registry import Fingerprint, Refused, Registry
from swapmeet_registry.admission.admit import admit
from swapmeet_registry.admission.canonical_config import encode
from swapmeet_registry.admission.canonical_weights import METADATA, header_of
from swapmeet_registry.admission.lora_config import MAX_MATCHES, parse
from swapmeet_registry.safetensors_file import TensorEntry

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model.model.layers.0.self_attn"
PAIRS = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


def digests(folder: Path, base: Fingerprint) -> dict[str, str]:
    with admit(folder, base) as admitted:
        return {file.path: file.sha256 for file in admitted.files}


def shuffled(data: bytes) -> bytes:
    """The same tensors in the opposite order, with spaces in the header and a tool's metadata."""
    (length,) = struct.unpack("<Q", data[:8])
    fields, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header: dict[str, Any] = {"__metadata__": {"tool": "another", "at": "2026-01-01"}}
    out = b""
    for name in sorted(fields.keys() - {"__metadata__"}, reverse=True):
        begin, end = fields[name]["data_offsets"]
        header[name] = {**fields[name], "data_offsets": [len(out), len(out) + end - begin]}
        out += body[begin:end]
    raw = json.dumps(header, indent=1).encode()
    return struct.pack("<Q", len(raw)) + raw + out


def test_equal_adapters_have_equal_digests(make_adapter: Any, tmp_path: Path, base: Fingerprint) -> None:
    first = make_adapter(tmp_path / "one")
    other = make_adapter(
        tmp_path / "two",
        target_modules=["v_proj", "q_proj"],
        lora_alpha=8.0,
        peft_version="0.13.0",
        inference_mode=False,
        init_lora_weights="gaussian",
        runtime_config={"ephemeral_gpu_offload": False},
        auto_mapping={
            "base_model_class": "LlamaForCausalLM",
            "parent_library": "transformers.models.llama.modeling_llama",
            "unsloth_fixed": True,
        },
        unsloth_version="2026.3.3",
    )
    (other / WEIGHTS).write_bytes(shuffled((other / WEIGHTS).read_bytes()))
    assert (other / WEIGHTS).read_bytes() != (first / WEIGHTS).read_bytes()
    assert digests(first, base) == digests(other, base)
    (other / WEIGHTS).write_bytes(shuffled((make_adapter(tmp_path / "three", seed=1) / WEIGHTS).read_bytes()))
    assert digests(first, base)[WEIGHTS] != digests(other, base)[WEIGHTS]


def test_what_is_canonical_stays_as_it_is(make_adapter: Any, tmp_path: Path, base: Fingerprint) -> None:
    registry = Registry((tmp_path / "registry").as_uri())
    registry.push(make_adapter(tmp_path / "adapter"), "acme/legal", base=base)
    registry.pull("acme/legal", tmp_path / "pulled")
    assert digests(tmp_path / "pulled", base) == digests(tmp_path / "adapter", base)
    with admit(tmp_path / "pulled", base) as admitted:
        assert (admitted.folder / WEIGHTS).is_symlink(), "large files are not copied in vain"
        for name in (CONFIG, WEIGHTS):
            assert (admitted.folder / name).read_bytes() == (tmp_path / "pulled" / name).read_bytes()
        assert admitted.folder.stat().st_mode & 0o77 == 0
    assert not admitted.folder.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "pulled", "registry"]


dtypes = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
names = st.text("abcXYZ019_.", min_size=1, max_size=12)


@given(st.dictionaries(names, st.tuples(st.sampled_from(sorted(dtypes)), st.integers(1, 3)), min_size=1, max_size=6))
def test_the_form_is_the_reference_writers(tensors: dict[str, tuple[str, int]]) -> None:
    widths = {"F32": 4, "F16": 2, "BF16": 2}
    entries = [TensorEntry(name, dtype, (n,), 0, n * widths[dtype]) for name, (dtype, n) in tensors.items()]
    zeros = np.zeros(3)
    given = {
        name: TensorSpec(dtype=dtypes[dtype], shape=[n], data_ptr=zeros.ctypes.data, data_len=n * widths[dtype])
        for name, (dtype, n) in tensors.items()
    }
    wanted = bytes(serialize(given, METADATA))
    assert header_of(entries) == wanted[: len(wanted) - sum(entry.size for entry in entries)]


def test_the_configuration_says_what_it_said() -> None:
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 6.5, "target_modules": ["v_proj", "q_proj", "q_proj"]}
    published = json.loads(encode(parse(json.dumps(settings).encode()), PAIRS))
    assert published["target_modules"] == ["q_proj", "v_proj"]
    assert (published["lora_alpha"], published["task_type"], published["peft_type"]) == (6.5, "CAUSAL_LM", "LORA")
    assert published.keys().isdisjoint({"peft_version", "auto_mapping", "lora_bias", "eva_config"})


@pytest.mark.parametrize(
    ("given", "published"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("tiny-llama", "tiny-llama"),
        ("/srv/models/llama", None),
        ("./models/llama", None),
        ("../llama", None),
        ("C:\\models", None),
        (None, None),
    ],
)
def test_nobodys_folders_are_published(given: str | None, published: str | None) -> None:
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "revision": "main"}
    written = json.loads(encode(parse(json.dumps(settings | {"base_model_name_or_path": given}).encode()), PAIRS))
    assert written["base_model_name_or_path"] == published
    assert written["revision"] == ("main" if published else None)


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": r".*self_attn\.(?:q_proj|v_proj)"},
        {"target_modules": "all-linear"},
        {"exclude_modules": ["lm_head"]},
        {"layers_to_transform": [0], "layers_pattern": "layers"},
    ],
)
def test_expressions_become_the_modules_that_have_weights(
    make_adapter: Any, tmp_path: Path, base: Fingerprint, change: dict[str, Any]
) -> None:
    with admit(make_adapter(tmp_path / "adapter", **change), base) as admitted:
        published = json.loads((admitted.folder / CONFIG).read_bytes())
        assert published["target_modules"] == list(admitted.lora.target_modules) == list(PAIRS)
        assert published.keys().isdisjoint({"exclude_modules", "layers_to_transform", "layers_pattern"})


def test_an_order_that_json_does_not_have_is_refused() -> None:
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    patterns = {"self_attn.q_proj": 2, "q_proj": 6}
    with pytest.raises(
        Refused, match=r"two keys of rank_pattern or alpha_pattern fit one module, and only their order"
    ):
        encode(parse(json.dumps(settings | {"rank_pattern": patterns}).encode()), PAIRS)
    turned = dict(reversed(patterns.items()))
    assert json.loads(encode(parse(json.dumps(settings | {"rank_pattern": turned}).encode()), PAIRS))


def written(pairs: tuple[str, ...], modules: Collection[str] | None = None, **settings: Any) -> dict[str, Any]:
    given = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | settings
    data = encode(parse(json.dumps(given).encode()), pairs, (), modules)
    assert encode(parse(data), pairs, (), modules) == data, "what is canonical stays as it is"
    return dict(json.loads(data))


LAYERS = tuple(f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(3) for name in "kqv")
Q, V = LAYERS[1::3], LAYERS[2::3]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rank_pattern": {"q_proj": 4, "v_proj": 4}, "alpha_pattern": {"self_attn.q_proj": 8.0}},
        {"rank_pattern": {"o_proj": 9}, "alpha_pattern": {"o_proj": 9}},
        {
            "r": 16,
            "lora_alpha": 1,
            "rank_pattern": {"q_proj": 4, "v_proj": 4},
            "alpha_pattern": dict.fromkeys(Q + V, 8),
        },
        {
            "r": 16,
            "rank_pattern": {r"layers\.\d\.self_attn\.q_proj": 4, "^model.layers.0.self_attn.v_proj": 4, "v_proj": 4},
        },
        {"target_modules": r".*\.(?:q_proj|v_proj)"},
        {"target_modules": [*Q, *V]},
        {"target_modules": ["self_attn.v_proj", "q_proj", "fc1"]},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
    ],
)
def test_what_is_said_in_another_way_has_the_same_bytes(settings: dict[str, Any]) -> None:
    assert written(Q + V, LAYERS, **settings) == written(Q + V, LAYERS)


def test_other_ranks_and_alphas_are_said_in_one_way() -> None:
    some = dict.fromkeys(Q, 2)
    expected = written(Q + V + LAYERS[::3], LAYERS, rank_pattern={"q_proj": 2})
    assert (expected["r"], expected["rank_pattern"]) == (4, {"q_proj": 2})
    assert written(Q + V + LAYERS[::3], LAYERS, rank_pattern=some) == expected
    others = {"r": 2, "rank_pattern": {"v_proj": 4, "k_proj": 4}}
    assert written(Q + V + LAYERS[::3], LAYERS, **others) == expected
    one = written(Q + V, LAYERS, alpha_pattern={r"layers\.1\.self_attn\.v_proj": 3})
    assert (one["lora_alpha"], one["alpha_pattern"]) == (8, {V[1]: 3})
    equal = written(Q + V, LAYERS, rank_pattern={"v_proj": 8})
    assert (equal["r"], equal["rank_pattern"]) == (8, {"q_proj": 4})
    assert written((), None, r=5, target_modules=["q_proj"], modules_to_save=["lm_head"])["r"] == 5


@pytest.mark.parametrize(
    ("pairs", "modules", "target_modules", "published"),
    [
        (Q[:1], LAYERS, ["q_proj", "fc1"], ["q_proj"]),  # as it was: PEFT adapts the others, by nothing
        (Q[:1], LAYERS, r".*0\.self_attn\.q_proj", [*Q[:1]]),
        (Q, None, ["q_proj", "fc1"], ["q_proj"]),
        (Q, None, r".*q_proj", [*Q]),
        (Q, [name.removeprefix("model.") for name in LAYERS], r".*q_proj", ["q_proj"]),
        (Q, [*LAYERS, "vision.q_proj.inner"], r"model.*q_proj", [*Q]),
        (Q, [*LAYERS, "vision.q_proj"], r"model.*q_proj", [*Q]),
    ],
)
def test_short_names_are_written_where_they_mean_the_same_modules(
    pairs: tuple[str, ...], modules: Collection[str] | None, target_modules: Any, published: list[str]
) -> None:
    assert written(pairs, modules, target_modules=target_modules)["target_modules"] == published


def test_more_patterns_than_a_configuration_may_have_stay_as_they_were() -> None:
    pairs = tuple(f"layers.{layer}.q_proj" for layer in range(5000))
    patterns = {r"1\d\d\d.q_proj": 2, r"2\d\d\d.q_proj": 2, r"\d\d\d.q_proj": 2}
    assert written(pairs, rank_pattern=patterns)["rank_pattern"] == patterns


def test_a_name_with_which_another_ends_is_said_from_its_beginning_on() -> None:
    inner, outer = "layers.0.q_proj", "vision.layers.0.q_proj"
    said = written((inner, outer, "layers.1.q_proj"), rank_pattern={f"^{inner}": 8})
    assert (said["r"], said["rank_pattern"]) == (4, {f"^{inner}": 8})
    assert written((inner, outer), rank_pattern={outer: 8})["rank_pattern"] == {f"^{inner}": 4}


def test_no_more_is_written_than_is_read_again() -> None:
    """One expression stands for hundreds of names: few patterns stay, where names were too many to compare."""
    names = [f"{module}_proj" for module in ("q", "k", "v", "o", "gate", "up", "down")]
    pairs = tuple(f"model.layers.{layer}.x.{name}" for layer in range(126) for name in names)
    patterns = {rf"layers\.{tens}\d\.x\.{name}": 8 for name in names for tens in ("", 1, 2, 3, 4, 5)}
    said = written(pairs, target_modules=names, rank_pattern=patterns, alpha_pattern=dict.fromkeys(patterns, 16))
    assert len(pairs) * (len(said["rank_pattern"]) + len(said["alpha_pattern"])) <= MAX_MATCHES
    assert said["rank_pattern"] == patterns
    many = tuple(
        f"layers.{layer}.q_proj" for layer in range(1000, 9999)
    )  # names of one length: nothing tells them apart
    ranks, alphas = {r"1\d\d\d\.q_proj": 8}, {r"3\d\d\d\.q_proj": 16, r"4\d\d\d\.q_proj": 16}
    assert written(many, target_modules=["q_proj"], rank_pattern=ranks, alpha_pattern=alphas)["rank_pattern"] == ranks


AXOLOTL = (
    "config.json", "training_args.bin", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state_0.pth",
    "debug.log", "checkpoint-20/", "runs/", "global_step20/", "latest", "zero_to_fp32.py",
)  # fmt: skip
LLAMA_FACTORY = (
    "all_results.json", "train_results.json", "trainer_log.jsonl", "trainer_state.json", "training_args.bin",
    "training_args.yaml", "training_loss.png", "training_eval_loss.png", "llamaboard_config.yaml", "runs/",
)  # fmt: skip
TRL = ("training_args.bin", "completions/", "wandb/", "checkpoint-5/", "checkpoint-10/")
TOKENIZER = {
    "tokenizer.json": '{"version": "1.0", "added_tokens": [], "model": {}}',
    "tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast"}',
    "special_tokens_map.json": '{"eos_token": "</s>"}',
    "added_tokens.json": '{"<|x|>": 32000}',
    "merges.txt": "a b\n",
    "vocab.json": '{"a": 0}',
    "chat_template.jinja": "{% for message in messages %}{{ message.content }}{% endfor %}",
    "tokenizer.model": "\n\x0e",
    "LICENSE": "MIT",
}


@pytest.mark.parametrize("left", [AXOLOTL, LLAMA_FACTORY, TRL, ()])
def test_a_training_tools_output_is_published_and_what_is_left_out_is_told(
    make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint, left: tuple[str, ...]
) -> None:
    folder = make_adapter(tmp_path / "adapter")
    for name in left:
        if name.endswith("/"):
            (folder / name).mkdir()
            (folder / name / "optimizer.pt").write_bytes(b"\x80\x04.")
        else:
            (folder / name).write_bytes(b"\x80\x04.")
    for name, text in TOKENIZER.items():
        (folder / name).write_text(text)
    with admit(folder, base) as admitted:
        assert {file.path for file in admitted.files} == {CONFIG, WEIGHTS, "README.md", *TOKENIZER}
        assert {path.name for path in admitted.folder.iterdir()} == {file.path for file in admitted.files}
        told = " ".join(admitted.notices)
    assert told.startswith("Left out, as the training run's own") == bool(left)
    assert [name for name in sorted(left)[:10] if name not in told] == []


def test_a_push_tells_what_it_left_out(
    make_adapter: Any, tmp_path: Path, base: Fingerprint, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_adapter(tmp_path / "adapter")
    (folder / "training_args.bin").write_bytes(b"\x80\x04.")
    Registry((tmp_path / "registry").as_uri()).push(folder, "acme/legal", base=base)
    assert "Left out, as the training run's own and no part of the adapter: training_args.bin." in caplog.messages


@pytest.mark.parametrize("moment", ["adapter_config.json", "README.md", "adapter_model.safetensors"])
def test_a_file_swapped_for_a_link_meanwhile_is_not_followed(
    make_adapter: Any, tmp_path: Path, base: Fingerprint, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder, secret = make_adapter(tmp_path / "adapter"), tmp_path / "secret"
    secret.write_bytes((folder / moment).read_bytes())
    opened = os.open

    def race(path: Any, flags: int, *args: Any, **more: Any) -> int:
        if path == moment:
            (folder / moment).unlink()
            (folder / moment).symlink_to(secret)
        return opened(path, flags, *args, **more)

    monkeypatch.setattr("swapmeet_registry.admission.adapter_folder.os.open", race)
    with pytest.raises(Refused, match=rf"{moment}' is a link"), admit(folder, base):
        pass


def test_weights_cut_short_while_they_are_read(
    make_adapter: Any, tmp_path: Path, base: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_adapter(tmp_path / "adapter")
    read = os.preadv

    def race(file: int, room: Any, at: int) -> int:
        os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)
        return read(file, room, at)

    monkeypatch.setattr("swapmeet_registry.admission.canonical_weights.os.preadv", race)
    with pytest.raises(Refused, match=r"was cut short while it was read\. Push again"), admit(folder, base):
        pass


def test_large_weights_take_little_memory(make_adapter: Any, tmp_path: Path, base: Fingerprint) -> None:
    """64 MB that have to be written anew."""
    rows = 16_000_000 // 32
    folder = make_adapter(
        tmp_path / "adapter", tensors={f"{PREFIX}.q_proj.lora_B.weight": np.ones((rows, 4), np.float32)}
    )
    whole = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    (folder / WEIGHTS).write_bytes(
        struct.pack("<Q", length + 8) + whole[8 : 8 + length] + b" " * 8 + whole[8 + length :]
    )
    size = len(whole)
    del whole
    tracemalloc.start()
    try:
        with admit(folder, base) as admitted:
            assert not (admitted.folder / WEIGHTS).is_symlink()
            assert (admitted.folder / WEIGHTS).stat().st_size == size
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()
