"""Settings: bounds, defaults, and every mistake told at once."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import swapmeet_training
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_training import FineTune, Resources, SpecError, errors, fine_tune

GOOD: dict[str, Any] = {
    "name": "acme/dates",
    "base": Path("base"),
    "base_fingerprint": Fingerprint(name="base", weights="sha256:0", tokenizer="sha256:0"),
    "data": Path("data.jsonl"),
}


def test_defaults_are_qlora() -> None:
    spec = fine_tune(GOOD)
    assert (spec.target_modules, spec.optimizer, spec.gradient_checkpointing) == (
        "all-linear",
        "paged_adamw_32bit",
        True,
    )
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rank": 0}, "rank is 0 but should be greater than or equal to 1."),
        ({"epochs": 0}, "epochs is 0 but should be greater than 0."),
        ({"epochs": float("nan")}, "epochs is nan but should be"),
        ({"alpha": float("inf")}, "alpha is inf but should be a finite number."),
        ({"learning_rate": -1}, "learning_rate is -1 but should be greater than 0."),
        ({"dropout": 1}, "dropout is 1 but should be less than 1."),
        ({"batch_size": "eight"}, "batch_size is 'eight' but should be a valid integer"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd' but should be 'paged_adamw_32bit', 'paged_"),
        ({"target_modules": []}, "target_modules is [] but should be 'all-linear' or a list of module names"),
        ({"target_modules": "q_proj"}, "target_modules is 'q_proj' but should be 'all-linear' or a list"),
        ({"target_modules": ["q proj"]}, "but should be 'all-linear' or a list of module names"),
        ({"name": "dates"}, "'dates' is not an adapter name. Write TENANT/NAME"),
        ({"name": "Acme/dates"}, "is not an adapter name: its tenant must be"),
        ({"epoch": 3}, "epoch is not a setting; the settings are name, base, "),
        ({"max_steps": 0}, "max_steps is 0 but should be greater than or equal to 1."),
    ],
)
def test_each_mistake_is_one_sentence(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        fine_tune(GOOD | settings)
    assert expected in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert str(caught.value).count(". ") <= 1


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        fine_tune({name: value for name, value in GOOD.items() if name != "data"} | {"rank": 0, "speed": 1})
    for part in ("data is missing.", "rank is 0", "speed is not a setting"):
        assert part in str(caught.value)


def test_settings_name_no_file() -> None:
    settings = fine_tune(GOOD | {"validation": Path("held-out.jsonl")}).settings()
    assert settings["rank"] == 16
    assert not {"base", "data", "validation", "name"} & settings.keys()
    assert set(settings) < set(FineTune.model_fields)


def test_paths_mean_the_same_in_every_process() -> None:
    spec = fine_tune(GOOD | {"validation": "~/held-out.jsonl"})
    assert spec.base == Path.cwd() / "base"
    assert spec.data == Path.cwd() / "data.jsonl"
    assert spec.validation == Path.home() / "held-out.jsonl"


def test_resources() -> None:
    assert (Resources(cpus=0.66).threads, Resources(cpus=2.5).threads) == (1, 2)
    assert (Resources().device, Resources(gpus=0.5).device) == ("cpu", "cuda:0")


def test_errors_are_picklable_standard_and_have_codes() -> None:
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and value is not errors.TrainingError
    ]
    assert len(classes) >= 10
    for cls in classes:
        error = pickle.loads(pickle.dumps(cls("what to do")))
        assert isinstance(error, errors.TrainingError)
        assert type(error) is cls
        assert str(error) == "what to do"
        assert len(cls.__mro__) > len(errors.TrainingError.__mro__) + 1, "also a standard class"
        assert f" {cls.__name__} " in str(errors.__doc__)
    codes = [cls.code for cls in classes]
    assert len(set(codes)) == len(codes)


def test_importing_the_package_imports_neither_torch_nor_ray() -> None:
    code = "import sys, swapmeet_training; print({'torch', 'ray', 'transformers', 'peft'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_everything_named_is_there() -> None:
    assert sorted(swapmeet_training.__all__) == swapmeet_training.__all__
    assert all(hasattr(swapmeet_training, name) for name in swapmeet_training.__all__)
