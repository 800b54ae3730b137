"""What is said of a version's weights, beside its owner's other adapters: soon, or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swapmeet_registry import Fingerprint, Registry, StoreError
from swapmeet_registry.admission import comparing
from swapmeet_registry.stores.local import LocalStore
from swapmeet_registry.version import Version

B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture
def registry(make_adapter: Callable[..., Path], base: Fingerprint, other_base: Fingerprint, tmp_path: Path) -> Registry:
    """With ten adapters of acme's that are alike, one far larger, and others on another base or of another tenant."""
    registry = Registry((tmp_path / "registry").as_uri())
    for number in range(10):
        registry.push(make_adapter(tmp_path / f"a{number}", seed=number), f"acme/a{number}", base=base)
    large = {B: np.full((16, 4), 1e3, dtype=np.float32)}
    registry.push(make_adapter(tmp_path / "large", tensors=large), "acme/large", base=base)
    registry.push(tmp_path / "large", "acme/apart", base=other_base)
    registry.push(tmp_path / "large", "ben/large", base=base)
    return registry


def test_an_adapter_unlike_its_owner_s_others(registry: Registry, base: Fingerprint) -> None:
    told = registry.advice(registry.resolve("acme/large"))
    assert any("much more than your other 10 adapters" in line for line in told), told
    for name in ("acme/apart", "ben/large"):
        assert not any("your other" in line for line in registry.advice(registry.resolve(name))), name
    assert len(registry.advice(registry.resolve("acme/large"), ())) == len(told) - 1


def test_advice_has_no_time_and_fails_nothing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    version = registry.resolve("acme/large")
    reads: list[str] = []
    original = LocalStore.get

    def get(self: LocalStore, key: str) -> Any:
        reads.append(key)
        return original(self, key)

    def gone(self: LocalStore, key: str) -> Any:
        raise StoreError("The store is gone.")

    with monkeypatch.context() as hurried:
        hurried.setattr(comparing, "SECONDS", -1.0)
        hurried.setattr(LocalStore, "get", get)
        assert registry.advice(version)
        assert len(reads) < 6, "one look at another"
    with monkeypatch.context() as broken:
        broken.setattr(LocalStore, "get", gone)
        assert registry.advice(version) == ()
    assert "There is no advice" in caplog.text
    unknown = Version("acme/none", 1, "sha256:" + "0" * 64, version.created_at)
    assert registry.advice(unknown) == ()
