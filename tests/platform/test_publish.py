"""What a run leaves is checked against its base before it is published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet.training import publish
from swapmeet_registry import Refused, Registry
from swapmeet_registry.fingerprint import fingerprint
from swapmeet_training import fine_tune
from swapmeet_training.attempts.ray_driver import Outcome


@pytest.fixture
def spec(tiny_llama: Path, tmp_path: Path) -> Any:
    base = {"base": tiny_llama, "base_fingerprint": fingerprint(tiny_llama, "tiny")}
    return fine_tune({"name": "acme/one", "data": tmp_path / "none.jsonl", **base})


@pytest.fixture
def adapter(tiny_llama: Path, random_lora: Callable[..., Path], tmp_path: Path) -> Path:
    return random_lora(tiny_llama, tmp_path / "adapter", rank=2)


def outcome(adapter: Path) -> Outcome:
    return Outcome("acme/one", adapter)


def test_an_adapter_that_fits_is_published(spec: Any, adapter: Path, tmp_path: Path) -> None:
    registry = Registry(f"file://{tmp_path}/registry")
    version = publish(registry, spec, outcome(adapter), alias="prod")
    assert registry.resolve("acme/one:prod") == version


def test_one_of_other_shapes_is_refused(spec: Any, adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    narrow = {name: weight[:, :64].contiguous() if "lora_A" in name else weight for name, weight in weights.items()}
    save_file(narrow, path, {"format": "pt"})
    registry = Registry(f"file://{tmp_path}/registry")
    with pytest.raises(Refused, match="tiny"):
        publish(registry, spec, outcome(adapter))
    assert registry.names() == []
