"""Settings: bounds, defaults, and every mistake told at once."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

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
        ({"method": "sft"}, "method is 'sft' but should be 'supervised' or 'dpo'."),
        ({"beta": 0.3}, "beta is a setting of the method dpo. Leave it out, or set method to dpo."),
        ({"method": "dpo", "beta": 2.5}, "beta is 2.5 but should be less than or equal to 2."),
        ({"method": "dpo", "packing": True}, "packing is for the method supervised, as pairs are compared whole."),
        ({"early_stopping": 3}, "early_stopping needs held-out examples. Name a validation file, or leave"),
        ({"eval_every": 3}, "eval_every needs held-out examples."),
        ({"dora": True, "init": "pissa"}, "dora and init pissa exclude each other: DoRA scales the whole weight"),
        ({"init": "loftq"}, "init is 'loftq' but should be 'default', 'gaussian', 'pissa' or 'olora'."),
        ({"chat_template": "x" * 300_000}, "chat_template has more than 256 KiB, which is all that serving takes."),
        ({"chat_template": ""}, "chat_template is '' but should"),
        ({"parent": "/nowhere"}, "parent: /nowhere holds no adapter to go on from ([Errno 2]"),
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


def test_mistakes_in_combination_are_told_beside_others() -> None:
    with pytest.raises(SpecError) as caught:
        fine_tune(GOOD | {"rank": 0, "beta": 1, "early_stopping": 2, "dora": True, "init": "olora", "dropout": "x"})
    for part in ("rank is 0", "dropout is 'x'", "beta is a setting", "early_stopping needs", "dora and init olora"):
        assert part in str(caught.value)
    with pytest.raises(ValidationError) as direct:
        FineTune(**GOOD | {"beta": 1, "early_stopping": 2})
    assert len(direct.value.errors()) == 2


def test_what_follows_from_other_settings() -> None:
    assert (fine_tune(GOOD).learning_rate, fine_tune(GOOD | {"method": "dpo"}).learning_rate) == (2e-4, 5e-6)
    given = fine_tune(GOOD | {"method": "dpo", "learning_rate": 1e-3})
    assert given.learning_rate == 1e-3
    for spec in (given, fine_tune(GOOD), fine_tune(GOOD | {"method": "dpo", "beta": 0.5})):
        assert FineTune.model_validate_json(spec.model_dump_json()) == spec, "written out, it means the same"
        assert FineTune.model_validate(spec) is spec


PARENT = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 24,
    "target_modules": ["v_proj", "q_proj"],
    "use_rslora": True,
    "use_dora": True,
}


def make_parent(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(PARENT | changes))
    return folder


def test_a_parents_settings_are_its_childs(tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent")
    spec = fine_tune(GOOD | {"parent": str(parent)})
    assert (spec.rank, spec.alpha, spec.target_modules) == (8, 24, ("q_proj", "v_proj"))
    assert (spec.rslora, spec.dora, spec.chat_template) == (True, True, None)
    assert fine_tune(GOOD | {"parent": parent, "rank": 8, "target_modules": ["q_proj", "v_proj"]}) == spec
    assert FineTune.model_validate_json(spec.model_dump_json()) == spec
    (parent / "chat_template.jinja").write_text("{{ messages }}")
    assert fine_tune(GOOD | {"parent": parent}).chat_template == "{{ messages }}"
    assert fine_tune(GOOD | {"parent": parent, "chat_template": "{{ 1 }}"}).chat_template == "{{ 1 }}"


def test_settings_other_than_the_parents_are_refused(tmp_path: Path) -> None:
    given = {"parent": make_parent(tmp_path / "parent"), "rank": 4, "target_modules": ["q_proj"], "init": "pissa"}
    with pytest.raises(SpecError) as caught:
        fine_tune(GOOD | given | {"dropout": 2})
    for part in (
        "rank is 4, but the parent's is 8, which an adapter keeps. Leave rank out.",
        "target_modules is ['q_proj'], but the parent's is ('q_proj', 'v_proj')",
        "init is pissa, but with a parent the adapter starts as the parent is. Leave init out.",
        "dropout is 2",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"modules_to_save": ["lm_head"]}, "was made with modules_to_save, which can not be trained on here."),
        ({"rank_pattern": {"q_proj": 4}}, "was made with rank_pattern"),
        ({"target_modules": "model.*q_proj"}, "was made with a pattern for target_modules"),
        ({"use_qalora": True}, "uses use_qalora: QALoRA, which Swapmeet does not support"),
        ({"r": 0}, "holds no adapter to go on from (adapter_config.json: r: input should be greater"),
    ],
)
def test_parents_that_can_not_be_trained_on(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        fine_tune(GOOD | {"parent": make_parent(tmp_path / "parent", **changes)})
    assert expected in str(caught.value)


def test_settings_name_no_file() -> None:
    settings = fine_tune(GOOD | {"validation": Path("held-out.jsonl")}).settings()
    assert settings["rank"] == 16
    assert not {"base", "data", "validation", "parent", "chat_template", "name"} & settings.keys()
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
