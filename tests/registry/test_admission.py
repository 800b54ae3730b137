"""Hostile and careless folders: each is refused in one sentence that names the trouble."""

import contextlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swapmeet_registry import Fingerprint, Refused
from swapmeet_registry.admission.admit import Admitted
from swapmeet_registry.admission.admit import admit as admitting
from swapmeet_registry.admission.lora_config import LoraConfig, parse

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
MODULE = f"{PREFIX}model.layers.0.self_attn.q_proj"
OTHER = "model.layers.0.self_attn.v_proj"
DELTA = "token_adapter.trainable_tokens_delta"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"


def admit(folder: Path, base: Fingerprint, modules: Any = None) -> Admitted:
    with admitting(folder, base, modules) as admitted:
        return admitted


@pytest.fixture
def folder(make_adapter: Callable[..., Path], tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")


def test_a_sound_folder_is_admitted(folder: Path, base: Fingerprint) -> None:
    (folder / "chat_template.jinja").write_text("{{ x }}")
    (folder / ".gitattributes").write_text("hidden files are left out")
    admitted = admit(folder, base)
    assert [file.path for file in admitted.files] == ["README.md", CONFIG, WEIGHTS, "chat_template.jinja"]
    assert admitted.files[2].size == (folder / WEIGHTS).stat().st_size
    assert admitted.lora.model_dump() == {
        "rank": 4,
        "max_rank": 4,
        "alpha": 8.0,
        "target_modules": ("q_proj", "v_proj"),
        "rslora": False,
        "dora": False,
        "parameters": 2 * 4 * (32 + 16),
    }
    assert admitted.provenance is None


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_half_precision_is_read_too(make_adapter: Any, tmp_path: Path, base: Fingerprint, dtype: Any) -> None:
    tensors = {A: np.ones((4, 32), dtype), B: np.ones((16, 4), dtype)}
    admit(make_adapter(tmp_path / "adapter", tensors=tensors), base)
    tensors[A][3, 31] = np.inf
    with pytest.raises(Refused, match=r"q_proj\.lora_A\.weight holds a NaN or an infinity"):
        admit(make_adapter(tmp_path / "adapter", tensors=tensors), base)


def with_files(name: str, data: bytes = b"x") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def linked(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


def too_large(folder: Path) -> None:
    with (folder / "big.json").open("wb") as stream:
        stream.truncate((64 << 20) + 1)


FOLDERS = {
    "no config": (lambda f: (f / CONFIG).unlink(), r"has no adapter_config\.json\. Save the adapter with PEFT's"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"has no adapter_model\.safetensors"),
    "bin": (
        with_files("adapter_model.bin", pickle.dumps([1])),
        r"^'adapter_model\.bin' is a pickle, .* Save .* safetens",
    ),
    "upper case pickle": (with_files("X.PT"), r"'X\.PT' is a pickle"),
    "checkpoint": (with_files("model.ckpt"), r"'model\.ckpt' is a pickle"),
    "program": (with_files("setup.py"), r"setup\.py does not belong to an adapter\. Move it out"),
    "other weights": (with_files("model.safetensors"), r"model\.safetensors does not belong"),
    "link": (linked, r"'adapter_model\.safetensors' is a link"),
    "dangling link": (lambda f: (f / "a.json").symlink_to("nowhere"), r"'a\.json' is a link"),
    "folder": (lambda f: (f / "weights").mkdir(), r"'weights' is not a plain file"),
    "pipe": (lambda f: os.mkfifo(f / "a.json"), r"'a\.json' is not a plain file"),
    "space": (with_files("a b.json"), r"'a b\.json' is not a file name that can be published"),
    "newline": (with_files("a\n.json"), r"'a\\n\.json' is not a file name"),
    "unicode": (with_files("ä.json"), r"'ä\.json' is not a file name"),
    "long name": (with_files("a" * 200 + ".json"), r"is not a file name"),
    "too large": (too_large, r"big\.json has 67108865 bytes; at most 67108864"),
    "too many": (
        lambda f: [(f / f"{n}.json").touch() for n in range(70)],
        r"holds 73 files; an adapter may have 64",
    ),
    "half provenance": (with_files("swapmeet.json", b'{"schema":'), r"swapmeet\.json is not JSON"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_unsound_folders(folder: Path, base: Fingerprint, case: str) -> None:
    change, reason = FOLDERS[case]
    change(folder)
    with pytest.raises(Refused, match=reason):
        admit(folder, base)


def test_no_folder(tmp_path: Path, base: Fingerprint) -> None:
    with pytest.raises(Refused, match=r"absent is not a folder\. Name the folder"):
        admit(tmp_path / "absent", base)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "rank 0": ({"r": 0}, r"r: input should be greater than or equal to 1"),
    "negative rank": ({"r": -8}, r"r: input should be greater"),
    "huge rank": ({"r": 10**9}, r"r: input should be less than or equal to 1024"),
    "rank as text": ({"r": "4"}, r"r: input should be a valid integer"),
    "rank as truth": ({"r": True}, r"r: input should be a valid integer"),
    "rank 0 by pattern": ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\.q_proj: input should be greater"),
    "alpha 0": ({"lora_alpha": 0}, r"lora_alpha: input should be greater than 0"),
    "infinite alpha": ({"lora_alpha": 1e999}, r"lora_alpha: input should be a finite|Infinity is no JSON number"),
    "other method": ({"peft_type": "IA3"}, r"peft_type: input should be 'LORA'"),
    "other task": ({"task_type": "SEQ_CLS"}, r"task_type: input should be 'CAUSAL_LM'"),
    "bias": ({"bias": "lora_only"}, r"bias: input should be 'none'"),
    "transposed": ({"fan_in_fan_out": True}, r"fan_in_fan_out: input should be False"),
    "qalora": ({"use_qalora": True}, r"uses use_qalora: QALoRA, which Swapmeet does not support\. Train the adapter w"),
    "arrow": ({"arrow_config": {"top_k": 3}}, r"uses arrow_config: Arrow routing"),
    "parameters": ({"target_parameters": ["experts.w"]}, r"uses target_parameters: LoRA on bare parameters"),
    "megatron": ({"megatron_config": {"x": 1}}, r"uses megatron_config: Megatron layers"),
    "activated": ({"alora_invocation_tokens": [1]}, r"uses alora_invocation_tokens: activated LoRA"),
    "tied": ({"ensure_weight_tying": True}, r"uses ensure_weight_tying: one adapter for tied layers"),
    "dora without magnitudes": ({"use_dora": True}, r"q_proj lacks its lora_magnitude_vector"),
    "lora bias without one": ({"lora_bias": True}, r"q_proj lacks its lora_B\.bias"),
    "nothing saved": ({"modules_to_save": ["lm_head"]}, r"modules_to_save names lm_head, of which .* holds no weights"),
    "no tokens": ({"trainable_token_indices": [1]}, r"trainable_token_indices, of which .* holds no weights"),
    "negative token": ({"trainable_token_indices": [-1]}, r"trainable_token_indices.*greater than or equal to 0"),
    "layers": ({"layer_replication": [[0, 1]]}, r"uses layer_replication: replicated layers"),
    "import": (
        {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}},
        r"uses auto_mapping: a model class imported by name",
    ),
    "from the future": ({"use_new_thing": True}, r"uses use_new_thing: a part of PEFT"),
    "zero is not off": ({"new_thing": 0}, r"uses new_thing"),
    "changed base": ({"init_lora_weights": "pissa"}, r"init_lora_weights"),
    "no targets": ({"target_modules": []}, r"target_modules"),
    "null targets": ({"target_modules": None}, r"target_modules"),
    "broken expression": ({"target_modules": "(q_proj"}, r"target_modules: .*is not a regular expression"),
    "slow expression": ({"target_modules": "(a+)+$"}, r"target_modules: .*repeats a group"),
    "slow pattern": ({"rank_pattern": {"(a+)+$": 4}}, r"rank_pattern.*is too free a pattern"),
    "untargeted": (
        {"target_modules": ["q_proj"]},
        r"weights for model\.layers\.0\.self_attn\.v_proj, which .* not name",
    ),
    "part of a name": ({"target_modules": ["proj"]}, r"does not name"),
    "other rank": ({"r": 8}, r"has rank 4, but adapter_config\.json gives it rank 8"),
    "other rank by pattern": ({"rank_pattern": {"v_proj": 2}}, r"v_proj has rank 4, but .* gives it rank 2"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_unsupported_configurations(make_adapter: Any, tmp_path: Path, base: Fingerprint, case: str) -> None:
    change, reason = CONFIGS[case]
    with pytest.raises(Refused, match=reason):
        admit(make_adapter(tmp_path / "adapter", **change), base)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"r": 4', r"^adapter_config\.json is not JSON .* Save the adapter again"),
        (b"\xef\xbb\xbf{}", r"not JSON"),
        (b"[]", r"not a JSON object"),
        (b"\x80\x04N.", r"not UTF-8"),
        (b'{"r": 4, "r": 8}', r"gives 'r' twice"),
        (b'{"r": NaN}', r"NaN is no JSON number"),
        (b"[" * 100_000, r"nested too deeply"),
        (b"{}", r"peft_type: field required"),
        (b" " * (1 << 20) + b"{}", r"at most 1048576 are accepted"),
    ],
)
def test_broken_configurations(data: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        parse(data)


def test_patterns_decide_as_in_peft() -> None:
    """PEFT: the first pattern that matches the end of the module's name, at a dot."""
    config = LoraConfig(
        peft_type="LORA",
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={r"layers\.0\.q_proj": 2, "q_proj": 4, "^layers.1.v_proj": 16},
        alpha_pattern={"v_proj": 32},
        use_rslora=True,
    )
    names = ("layers.0.q_proj", "layers.1.q_proj", "layers.1.v_proj", "x.layers.1.v_proj", "layers.0.xq_proj")
    assert [config.rank(name) for name in names] == [2, 4, 16, 8, 8]
    assert config.scale("layers.1.v_proj") == 32 / 16**0.5
    assert config.scale("layers.0.q_proj") == 16 / 2**0.5


def test_ranks_by_pattern_are_admitted(make_adapter: Any, tmp_path: Path, base: Fingerprint) -> None:
    tensors = {A: np.ones((6, 32), np.float32), B: np.ones((16, 6), np.float32)}
    folder = make_adapter(tmp_path / "adapter", tensors=tensors, rank_pattern={"layers.0.self_attn.q_proj": 6})
    assert admit(folder, base).lora.max_rank == 6


ones = np.ones((4, 32), np.float32)
TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "no B": ({B: None}, r"q_proj lacks its lora_B"),
    "no A": ({A: None}, r"q_proj lacks its lora_A"),
    "other inner rank": ({B: np.ones((16, 3), np.float32)}, r"A of rank 4 and B of rank 3"),
    "vector": ({A: np.ones(32, np.float32)}, r"has the shape \[32\]; it should be a matrix"),
    "empty": ({A: np.ones((0, 32), np.float32)}, r"has the shape \[0, 32\]"),
    "convolution": ({A: np.ones((4, 32, 1, 1), np.float32)}, r"it should be a matrix"),
    "nan": ({A: ones * np.nan}, r"holds a NaN or an infinity\. The training run diverged"),
    "late nan": ({B: np.array([[0.0] * 4] * 15 + [[0, 0, 0, np.nan]], np.float32)}, r"lora_B\.weight holds a NaN"),
    "double": ({A: ones.astype(np.float64)}, r"has the dtype F64\. Save the adapter as F32, F16, BF16"),
    "integers": ({A: ones.astype(np.int8)}, r"has the dtype I8"),
    "no prefix": ({"lm_head.weight": ones}, r"holds 'lm_head\.weight', which is no part of a LoRA adapter that"),
    "magnitude": (
        {f"{MODULE}.lora_magnitude_vector": np.ones(16, np.float32)},
        r"lora_magnitude_vector, which adapter_",
    ),
    "old magnitude": (
        {f"{MODULE}.lora_magnitude_vector.weight": np.ones(16, np.float32)},
        r"which adapter_config\.json d",
    ),
    "half an embedding": ({f"{PREFIX}embed.lora_embedding_A": ones}, r"embed lacks its lora_embedding_B"),
    "two kinds": ({f"{MODULE}.lora_embedding_A": ones}, r"q_proj lacks its lora_embedding_B"),
    "bias": ({f"{MODULE}.lora_B.bias": np.ones(16, np.float32)}, r"lora_B\.bias, which adapter_config\.json does not"),
    "unnamed norm": (
        {f"{PREFIX}norm.weight": np.ones(16, np.float32)},
        r"norm\.weight, which adapter_config\.json does",
    ),
    "unnamed rows": (
        {f"{PREFIX}embed_tokens.{DELTA}": ones},
        r"trainable_tokens_delta, which adapter_config\.json does",
    ),
    "traversal": ({"base_model.model.../../x.lora_A.weight": ones}, r"which is no part of a LoRA"),
    "trailing newline": ({f"{A}\n": ones}, r"which is no part of a LoRA"),
}


TRAINED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "short magnitude": (
        {f"{MODULE}.lora_magnitude_vector": np.ones(15, np.float32)},
        {"use_dora": True, "target_modules": ["q_proj"]},
        r"lora_magnitude_vector has 15 numbers, and B has 16 outputs",
    ),
    "magnitude as matrix": (
        {f"{MODULE}.lora_magnitude_vector": np.ones((16, 1), np.float32)},
        {"use_dora": True},
        r"has the shape \[16, 1\]; it should be a vector",
    ),
    "nan magnitude": (
        {f"{MODULE}.lora_magnitude_vector": np.full(16, np.nan, np.float32)},
        {"use_dora": True},
        r"lora_magnitude_vector holds a NaN",
    ),
    "saved layer": (
        {f"{PREFIX}mlp.up_proj.weight": ones},
        {"modules_to_save": ["mlp"]},
        r"holds mlp\.up_proj trained in full .* supports for norms, embed_tokens and lm_head only",
    ),
    "saved and adapted": (
        {},
        {"modules_to_save": ["q_proj"]},
        r"modules_to_save names model\.layers\.0\.self_attn\.q_proj, which has LoRA weights",
    ),
    "nan norm": (
        {f"{PREFIX}norm.weight": np.full(16, np.inf, np.float32)},
        {"modules_to_save": ["norm"]},
        r"norm\.weight holds a NaN",
    ),
    "lone bias": ({f"{PREFIX}norm.bias": ones[0]}, {"modules_to_save": ["norm"]}, r"norm should have a weight"),
    "too few rows": (
        {f"{PREFIX}embed_tokens.{DELTA}": ones},
        {"trainable_token_indices": [1, 2, 3]},
        r"has 4 rows, and .* names 3 different tokens",
    ),
    "token twice": (
        {f"{PREFIX}embed_tokens.{DELTA}": ones},
        {"trainable_token_indices": {"embed_tokens": [1, 2, 3, 3]}},
        r"has 4 rows, and .* names 3 different tokens",
    ),
}


@pytest.mark.parametrize("case", TRAINED)
def test_unsound_parts(make_adapter: Any, tmp_path: Path, base: Fingerprint, case: str) -> None:
    tensors, config, reason = TRAINED[case]
    other = {name.replace("q_proj", "v_proj"): value for name, value in tensors.items() if "magnitude" in name}
    sound = {name: np.ones(16, np.float32) for name in other}
    with pytest.raises(Refused, match=reason):
        admit(make_adapter(tmp_path / "adapter", tensors=tensors | sound, **config), base)


GROWN = r"embed_tokens has 40 tokens, and tiny has 32\. An adapter whose vocabulary grew or shrank does not fit"
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "grown": ({f"{PREFIX}embed_tokens.weight": np.ones((40, 16))}, {"modules_to_save": ["embed_tokens"]}, GROWN),
    "grown, unasked": ({f"{PREFIX}embed_tokens.weight": np.ones((40, 16))}, {}, GROWN),
    "other width": (
        {f"{PREFIX}embed_tokens.weight": np.ones((32, 8))},
        {"modules_to_save": ["embed_tokens"]},
        r"embed_tokens is 32 by 8, but in tiny it is 32 by 16",
    ),
    "other norm": (
        {f"{PREFIX}norm.weight": np.ones(8)},
        {"modules_to_save": ["norm"]},
        r"norm is 8, but in tiny it is 16",
    ),
    "no such norm": (
        {f"{PREFIX}q_norm.weight": np.ones(8)},
        {"modules_to_save": ["q_norm"]},
        r"tiny has no such module",
    ),
    "unknown token": (
        {f"{PREFIX}embed_tokens.{DELTA}": np.ones((1, 16))},
        {"trainable_token_indices": [32]},
        r"embed_tokens has 33 tokens, and tiny has 32",
    ),
}


@pytest.mark.parametrize("case", SHAPES)
def test_parts_of_another_base(make_adapter: Any, tmp_path: Path, base: Fingerprint, case: str) -> None:
    tensors, config, reason = SHAPES[case]
    modules = {"embed_tokens": (32, 16), "norm": (16,), **dict.fromkeys((MODULE[len(PREFIX) :], OTHER), (16, 32))}
    weights = {name: value.astype(np.float32) for name, value in tensors.items()}
    admit(make_adapter(tmp_path / "sound"), base, modules)
    with pytest.raises(Refused, match=reason):
        admit(make_adapter(tmp_path / "adapter", tensors=weights, **config), base, modules)


@pytest.mark.parametrize("case", TENSORS)
def test_unsound_tensors(make_adapter: Any, tmp_path: Path, base: Fingerprint, case: str) -> None:
    tensors, reason = TENSORS[case]
    with pytest.raises(Refused, match=reason):
        admit(make_adapter(tmp_path / "adapter", tensors=tensors), base)


def test_no_tensors(make_adapter: Any, tmp_path: Path, base: Fingerprint) -> None:
    folder = make_adapter(tmp_path / "adapter")
    (folder / WEIGHTS).write_bytes(container({}, b""))
    with pytest.raises(Refused, match=r"holds no LoRA weights"):
        admit(folder, base)


def container(header: Any, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def test_a_bfloat16_infinity_is_found(folder: Path, base: Fingerprint) -> None:
    header = {
        A: {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]},
        B: {"dtype": "BF16", "shape": [8, 4], "data_offsets": [64, 128]},
    }
    (folder / WEIGHTS).write_bytes(container(header, b"\x80\x3f" * 64))
    admit(folder, base)
    (folder / WEIGHTS).write_bytes(container(header, b"\x80\x3f" * 63 + b"\x80\xff"))
    with pytest.raises(Refused, match=r"lora_B\.weight holds a NaN or an infinity"):
        admit(folder, base)


FILES = {
    "empty file": b"",
    "five bytes": b"\x80\x04N.x",
    "pickle in disguise": pickle.dumps(list(range(100))),
    "header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "header not JSON": container(b"{" * 40, b""),
    "header in UTF-16": container(json.dumps({A: entry([4, 8], 0, 128)}).encode("utf-16"), b"\0" * 128),
    "header a list": container(b"[]", b""),
    "huge header": container(b'{"__metadata__": {"x": "' + b"x" * (5 << 20) + b'"}}', b""),
    "many tensors": container({f"base_model.model.m{n}.lora_A.weight": entry([0], 0, 0) for n in range(20_001)}, b""),
    "cut": container({A: entry([4, 8], 0, 128)}, b"\0" * 127),
    "trailing": container({A: entry([4, 8], 0, 128)}, b"\0" * 129),
    "shape lies": container({A: entry([4, 9], 0, 128)}, b"\0" * 128),
    "negative shape": container({A: entry([-4, -8], 0, 128)}, b"\0" * 128),
    "overflowing shape": container({A: entry([1 << 62, 4], 0, 128)}, b"\0" * 128),
    "overlap": container({A: entry([4, 8], 0, 128), B: entry([8, 4], 64, 192)}, b"\0" * 192),
    "gap": container({A: entry([4, 8], 0, 128), B: entry([8, 4], 192, 320)}, b"\0" * 320),
    "backwards": container({A: entry([4, 8], 128, 0)}, b"\0" * 128),
    "name twice": container(
        f'{{"{A}": {json.dumps(entry([4, 8], 0, 128))}, "{A}": {json.dumps(entry([4, 8], 0, 128))}}}'.encode(),
        b"\0" * 128,
    ),
    "unknown dtype": container({A: {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "dtype a list": container({A: {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "offsets as floats": container({A: {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}, b"\0" * 4),
    "more keys": container({A: {**entry([4, 8], 0, 128), "x": 1}}, b"\0" * 128),
    "metadata not text": container({"__metadata__": {"a": 1}}, b""),
    "deep header": container(b"[" * 100_000, b""),
}


@pytest.mark.parametrize("case", FILES)
def test_unsound_containers(folder: Path, base: Fingerprint, case: str) -> None:
    (folder / WEIGHTS).write_bytes(FILES[case])
    with pytest.raises(Refused, match=r"adapter_model\.safetensors"):
        admit(folder, base)


def test_no_bit_of_the_header_flips_unseen(folder: Path, base: Fingerprint) -> None:
    """A flip either is refused or leaves the tensors what they are; nothing else may come of it."""
    sound = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", sound[:8])
    wanted = admit(folder, base).lora
    for position in range(8 + length):
        data = bytearray(sound)
        data[position] ^= 1 << position % 8
        (folder / WEIGHTS).write_bytes(data)
        with contextlib.suppress(Refused):
            assert admit(folder, base).lora == wanted


def test_shapes_are_held_against_the_base(folder: Path, base: Fingerprint) -> None:
    q, v = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
    admit(folder, base, {q: (16, 32), v: (16, 32), "other": (1, 1)})
    with pytest.raises(Refused, match=r"q_proj is 16 by 32, but in tiny it is 32 by 16"):
        admit(folder, base, {q: (32, 16), v: (16, 32)})
    with pytest.raises(Refused, match=r"changes model\.layers\.0\.self_attn\.v_proj, and tiny has no such linear"):
        admit(folder, base, {q: (16, 32)})
