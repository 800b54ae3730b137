"""The fingerprint follows the bytes of the weights and nothing else."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from swapmeet_registry import BaseMismatch
from swapmeet_registry.errors import BaseInvalid, Refused
from swapmeet_registry.fingerprint import Quantization, fingerprint, require_fit, weight_files
from swapmeet_registry.safetensors_file import read_header
from swapmeet_registry.weights_digest import weights_digest

TENSORS = {
    "model.embed_tokens.weight": np.arange(64, dtype=np.float32).reshape(16, 4),
    "model.layers.0.q_proj.weight": np.ones((4, 4), dtype=np.float32),
    "model.layers.1.q_proj.weight": np.ones((4, 4), dtype=np.float32),
    "model.norm.weight": np.ones(4, dtype=np.float16),
}


def write_base(folder: Path, tensors: dict[str, np.ndarray] = TENSORS, shards: int = 1, tied: bool = True) -> Path:
    folder.mkdir(parents=True)
    config = {"vocab_size": 16, "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    names = list(tensors)
    for shard in range(shards):
        part = {name: tensors[name] for name in names[shard::shards]}
        file = "model.safetensors" if shards == 1 else f"model-{shard}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt", "shard": str(shard)})
    if shards > 1:
        weight_map = {name: f"model-{place % shards}.safetensors" for place, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def weights(folder: Path) -> str:
    return fingerprint(folder, "base").weights


def test_sharding_does_not_change_it(tmp_path: Path) -> None:
    one, many = write_base(tmp_path / "one"), write_base(tmp_path / "many", shards=3)
    assert weights(one) == weights(many)


def test_a_copy_saved_again_by_transformers_has_the_same(tiny_qwen2: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(tiny_qwen2).save_pretrained(tmp_path, max_shard_size="200KB")
    AutoTokenizer.from_pretrained(tiny_qwen2).save_pretrained(tmp_path)
    assert len(weight_files(tmp_path)) > 1
    again, first = fingerprint(tmp_path, "base"), fingerprint(tiny_qwen2, "base")
    assert (again.weights, again.chat_template) == (first.weights, first.chat_template)


def test_a_stored_copy_of_tied_embeddings_counts_once(tmp_path: Path) -> None:
    embedding = TENSORS["model.embed_tokens.weight"]
    copied = write_base(tmp_path / "copied", TENSORS | {"lm_head.weight": embedding})
    assert weights(copied) == weights(write_base(tmp_path / "plain"))
    other_head = write_base(tmp_path / "other", TENSORS | {"lm_head.weight": embedding + 1})
    assert weights(other_head) != weights(copied)


def test_equal_tensors_that_are_not_tied_all_count(tmp_path: Path) -> None:
    fewer = {name: value for name, value in TENSORS.items() if name != "model.layers.1.q_proj.weight"}
    assert weights(write_base(tmp_path / "fewer", fewer)) != weights(write_base(tmp_path / "all"))


def test_vocabulary_sized_matrices_that_differ_keep_their_names(tmp_path: Path) -> None:
    one, other = np.ones((16, 4), np.float32), np.zeros((16, 4), np.float32)
    first = write_base(tmp_path / "first", TENSORS | {"model.a": one, "model.b": other})
    swapped = write_base(tmp_path / "swapped", TENSORS | {"model.a": other, "model.b": one})
    assert weights(first) != weights(swapped)


def test_what_transformers_loads_is_what_is_hashed(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", shards=2)
    (base / "model.safetensors").write_bytes((write_base(tmp_path / "other") / "model.safetensors").read_bytes())
    assert [path.name for path in weight_files(base)] == ["model.safetensors"]
    (base / "adapter_config.json").write_text("{}")
    with pytest.raises(BaseInvalid, match="holds an adapter"):
        weight_files(base)


@pytest.mark.parametrize("weight_map", [[], {}, {"a": 1}, {"a": "../model.safetensors"}, {"a": "sub/x.safetensors"}])
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, weight_map: object) -> None:
    base = write_base(tmp_path / "base", shards=2)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(BaseInvalid, match="index"):
        weight_files(base)


@pytest.mark.parametrize("change", ["byte", "name", "shape", "dtype"])
def test_any_change_changes_it(tmp_path: Path, change: str) -> None:
    changed = dict(TENSORS)
    norm = changed.pop("model.norm.weight")
    match change:
        case "byte":
            raw = bytearray(norm.tobytes())
            raw[3] ^= 1
            changed["model.norm.weight"] = np.frombuffer(bytes(raw), dtype=norm.dtype)
        case "name":
            changed["model.norm2.weight"] = norm
        case "shape":
            changed["model.norm.weight"] = norm.reshape(2, 2)
        case "dtype":
            changed["model.norm.weight"] = norm.view(np.int16)
    assert weights(write_base(tmp_path / "changed", changed)) != weights(write_base(tmp_path / "plain"))


def test_the_cache_is_used_until_a_file_changes(tmp_path: Path) -> None:
    base, cache = write_base(tmp_path / "base"), tmp_path / "cache"
    first = fingerprint(base, "base", cache)
    (kept,) = cache.glob("*.json")
    planted = json.loads(kept.read_text()) | {"weights": "sha256:planted"}
    kept.write_text(json.dumps(planted))
    assert fingerprint(base, "base", cache).weights == "sha256:planted"

    path = base / "model.safetensors"
    times = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # a forged time hides nothing
    assert fingerprint(base, "base", cache).weights not in {first.weights, "sha256:planted"}


def test_two_threads_may_fill_the_cache_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, cache, replace = write_base(tmp_path / "base"), tmp_path / "cache", Path.replace

    def beside(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", replace)
        fingerprint(base, "base", cache)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", beside)
    assert fingerprint(base, "base", cache) == fingerprint(base, "base", cache)
    assert len(list(cache.iterdir())) == 1


def test_memory_stays_below_the_largest_tensor(tmp_path: Path) -> None:
    large = {"weight": np.zeros((4096, 2048), dtype=np.float32)}
    base = write_base(tmp_path / "large", large)
    tracemalloc.start()
    weights_digest(weight_files(base), {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < large["weight"].nbytes


def test_a_base_under_other_settings_fits_with_a_warning(tmp_path: Path) -> None:
    mine = fingerprint(write_base(tmp_path / "base"), "base")
    assert require_fit(mine, mine, "acme/a") is None
    other = mine.model_copy(update={"quantization": Quantization(double=False)})
    warning = require_fit(mine, other, "acme/a")
    assert warning is not None
    assert "double-quantized" in warning


def test_another_base_is_refused_with_both_digests(tmp_path: Path) -> None:
    mine = fingerprint(write_base(tmp_path / "mine"), "mine")
    other = fingerprint(write_base(tmp_path / "other", {"a": np.ones((2, 2), np.float32)}), "other")
    with pytest.raises(BaseMismatch) as caught:
        require_fit(mine, other, "acme/a")
    assert mine.weights in str(caught.value)
    assert other.weights in str(caught.value)


def test_unusable_folders_are_told_apart(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    cases = {"config.json": "config.json", "tokenizer.json": "tokenizer", "model.safetensors": "safetensors"}
    for removed, word in cases.items():
        broken = shutil.copytree(base, tmp_path / f"without {removed}")
        (broken / removed).unlink()
        with pytest.raises(BaseInvalid, match=word):
            fingerprint(broken, "base")
    with pytest.raises(BaseInvalid, match="not a folder"):
        fingerprint(tmp_path / "absent", "base")


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
def test_a_cut_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_base(tmp_path / "base") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(Refused):
        read_header(path)
