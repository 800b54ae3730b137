"""Statistics of the change that an adapter makes, and what is said of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swapmeet_registry import Fingerprint, Registry
from swapmeet_registry.admission import statistics as module
from swapmeet_registry.admission.advice import lines
from swapmeet_registry.admission.reports import of_folder
from swapmeet_registry.admission.statistics import Layer, Report, robust_deviations

PREFIX = "base_model.model."
MODULE = "model.layers.0.self_attn.q_proj"
A, B = f"{PREFIX}{MODULE}.lora_A.weight", f"{PREFIX}{MODULE}.lora_B.weight"


def layer(make_adapter: Any, folder: Path, a: Any, b: Any, **config: Any) -> Layer:
    report = of_folder(make_adapter(folder, tensors={A: a, B: b}, **config))
    return next(layer for layer in report.layers if layer.module == MODULE)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}])
def test_they_are_those_of_the_change_itself(make_adapter: Any, tmp_path: Path, dtype: Any, config: Any) -> None:
    random = np.random.default_rng(1)
    a, b = (random.normal(size=shape).astype(dtype) for shape in ((4, 32), (16, 4)))
    scale = 3 / 4 if "alpha_pattern" in config else 8 / 2 if config else 2.0
    wanted = np.linalg.svd(scale * b.astype(float) @ a.astype(float), compute_uv=False)[:4]
    found = layer(make_adapter, tmp_path / "adapter", a, b, **config)
    assert found.spectrum == pytest.approx(wanted, rel=1e-5)
    assert found.spectral == found.spectrum[0]
    assert found.frobenius == pytest.approx(np.linalg.norm(wanted), rel=1e-5)
    assert found.stable_rank == pytest.approx((wanted**2).sum() / wanted[0] ** 2, rel=1e-5)


def test_bfloat16_is_read(make_adapter: Any, tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 0.15625, 3e38, -1e-30], np.float32)
    halves = (values.view("<u4") >> 16).astype("<u2")
    path = tmp_path / "file"
    path.write_bytes(halves.tobytes())
    entry = module.TensorEntry("x", "BF16", (5,), 0, 10)
    with path.open("rb") as stream:
        read = module._read(stream, 0, entry)
    assert read == pytest.approx(values, rel=2**-7)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(-37, 37), other=st.integers(-37, 37), rank=st.integers(1, 4), seed=st.integers(0, 9))
def test_neither_very_small_nor_very_large_numbers_break_them(size: int, other: int, rank: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(rank, 6)), random.normal(size=(7, rank))
    pair: Any = type("P", (), {"module": "m", "rank": rank})
    found = module._layer(pair, 2.0, a * 10.0**size, b * 10.0**other)
    assert found.frobenius == pytest.approx(2 * np.linalg.norm(b @ a) * 10.0 ** (size + other), rel=1e-4)
    assert 1 <= round(found.stable_rank, 4) <= rank


def test_an_untrained_layer(make_adapter: Any, tmp_path: Path) -> None:
    found = layer(make_adapter, tmp_path / "adapter", np.ones((4, 32), np.float32), np.zeros((16, 4), np.float32))
    assert (found.frobenius, found.spectral, found.stable_rank) == (0, 0, 0)
    said = lines(of_folder(tmp_path / "adapter"))
    assert f"1 layers are not changed at all: {MODULE}." in said


def test_what_would_take_too_long_is_left_out_and_said(
    make_adapter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_adapter(tmp_path / "adapter")
    monkeypatch.setattr(module, "MAX_WORK", 1000)
    report = of_folder(folder)
    assert (len(report.layers), len(report.left_out)) == (1, 1)
    assert "1 layers are too large to be looked at in the time there is." in lines(report)
    monkeypatch.setattr(module, "MAX_TENSOR", 10)
    assert lines(of_folder(folder)) == ["No layer has low-rank weights to look at."]


def test_a_version_has_its_report(url: str, make_adapter: Callable[..., Path], tmp_path: Path, base: Any) -> None:
    """Stored, or computed where it is not; a Hub keeps none."""
    registry = Registry(url)
    folder = make_adapter(tmp_path / "adapter")
    version = registry.push(folder, "acme/legal", base=base)
    wanted = of_folder(folder)
    assert registry.report(version) == wanted
    assert Report.decode(wanted.encode(), "it") == wanted


def test_a_lost_or_damaged_report_is_computed_anew(make_adapter: Any, tmp_path: Path, base: Fingerprint) -> None:
    registry = Registry((tmp_path / "registry").as_uri())
    version = registry.push(make_adapter(tmp_path / "adapter"), "acme/legal", base=base)
    (path,) = (tmp_path / "registry" / "reports").rglob("*.json")
    wanted = Report.decode(path.read_bytes(), "it")
    for damage in (b"{}", b'{"schema":"swapmeet.report/9"}', None):
        path.write_bytes(damage) if damage else path.unlink()
        assert registry.report(version) == wanted


@pytest.mark.parametrize("error", [np.linalg.LinAlgError("no convergence"), MemoryError()])
def test_a_push_does_not_fail_for_want_of_a_report(
    make_adapter: Any, tmp_path: Path, base: Fingerprint, monkeypatch: pytest.MonkeyPatch, caplog: Any, error: Exception
) -> None:
    def broken(folder: Path) -> Report:
        raise error

    monkeypatch.setattr("swapmeet_registry.admission.reports.of_folder", broken)
    registry = Registry((tmp_path / "registry").as_uri())
    assert registry.push(make_adapter(tmp_path / "adapter"), "acme/legal", base=base).version == 1
    why = str(error) or "MemoryError"
    assert f"were not stored; they are computed when they are asked for. {why}" in caplog.text


def report(norms: list[float], kind: str = "q_proj") -> Report:
    layers = [
        Layer(module=f"layers.{n}.{kind}", rank=4, frobenius=norm, spectral=norm, stable_rank=1, spectrum=(norm,))
        for n, norm in enumerate(norms)
    ]
    return Report(layers=tuple(layers))


def test_a_layer_unlike_the_others_is_named() -> None:
    norms = [1 + n / 100 for n in range(20)]
    assert len(lines(report(norms))) == 1
    norms[7] = 500
    (_, said) = lines(report(norms))
    assert said == "Among the 20 layers called q_proj these are changed much more or less: layers.7.q_proj (500)."


def test_an_adapter_unlike_the_owners_others_is_told() -> None:
    others = [report([1 + n / 100]) for n in range(10)]
    assert len(lines(report([1.02]), others)) == 1
    (_, said) = lines(report([90]), others)
    assert said.startswith("It changes the base much more than your other 10 adapters on it: a norm of 90, and")
    assert len(lines(report([90]), others[:3])) == 1, "three say nothing"


def test_deviations_of_equal_values_are_none() -> None:
    assert robust_deviations([1.0, 1.0, 1.0, 5.0]) == [0, 0, 0, 0]


def test_the_document_has_a_schema() -> None:
    found = report([1.0])
    jsonschema.validate(json.loads(found.encode()), Report.model_json_schema(by_alias=True))
    assert json.loads(found.encode())["schema"] == "swapmeet.report/1"
