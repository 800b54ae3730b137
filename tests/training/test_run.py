"""One run on the tiny base: it learns, resumes bitwise, repeats itself, and refuses what it can't do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry.errors import BaseInvalid
from swapmeet_registry.origin.provenance import Provenance, code_digest
from swapmeet_training import (
    CheckpointError,
    DataError,
    DeviceMissing,
    Diverged,
    FineTune,
    Progress,
    SpecError,
    StorageFull,
    run,
)

pytest.importorskip("torch")

MakeSpec = Callable[..., FineTune]


def weights(adapter: Path) -> bytes:
    return (adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21, loading
def test_run_leaves_an_adapter_that_peft_loads(
    make_spec: MakeSpec, tmp_path: Path, tiny_llama: Path, capfd: Any
) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    told: list[Progress] = []
    result = run(make_spec(), tmp_path / "run", report=told.append)

    assert [p.step for p in told if not p.evaluation] == [1, 2, 3, 4, 5, 6]
    assert [p.step for p in told if p.evaluation] == [3, 6]
    assert told[-1].total_steps == result.steps == 6
    assert told[0].loss > told[-1].loss
    assert all(p.tokens_per_second > 0 for p in told)
    assert told[-1].seconds_left == 0
    assert result.metrics["eval_loss"] == told[-1].evaluation["eval_loss"]
    assert 4.0 < result.metrics["bits_per_parameter"] < 4.2
    assert sorted(path.name for path in result.adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "swapmeet.json",
    ]
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), result.adapter)
    assert any(weight.abs().sum() > 0 for name, weight in model.named_parameters() if "lora_B" in name)
    printed = capfd.readouterr()
    assert "{" not in printed.out + printed.err, "a foreign library printed its log"


def test_adapter_says_where_it_comes_from(make_spec: MakeSpec, tmp_path: Path, tiny_llama: Path) -> None:
    spec = make_spec(max_steps=1, license="cc-by-4.0", dataset_license="odbl", tags=("dates",))
    result = run(spec, tmp_path / "run")

    provenance = Provenance.read(result.adapter)
    assert provenance is not None
    assert provenance.base == spec.base_fingerprint
    assert provenance.training["rank"] == 4
    assert provenance.dataset is not None
    assert (provenance.license, provenance.dataset_license) == ("cc-by-4.0", "odbl")
    assert provenance.code == code_digest("swapmeet_registry", "swapmeet_training")
    assert provenance.tags == ("dates",)
    assert {"torch", "peft", "bitsandbytes"} <= provenance.packages.keys()
    assert provenance.metrics["loss"] == result.metrics["loss"]
    config = json.loads((result.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-llama"
    assert str(tiny_llama.parent) not in "".join(path.read_text() for path in result.adapter.glob("*.json"))


def test_a_run_repeats_itself_and_a_seed_changes_it(make_spec: MakeSpec, tmp_path: Path) -> None:
    runs = [run(make_spec(max_steps=2, seed=seed), tmp_path / str(i)) for i, seed in enumerate((1, 1, 2))]
    assert weights(runs[0].adapter) == weights(runs[1].adapter) != weights(runs[2].adapter)


def test_resuming_a_finished_run_only_saves_again(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec()
    first = run(spec, tmp_path / "run")
    before = weights(first.adapter)
    again = run(spec, tmp_path / "run", resume_from=tmp_path / "run" / "checkpoint-6")
    assert weights(again.adapter) == before
    assert again.metrics["eval_loss"] == first.metrics["eval_loss"]


def test_a_checkpoint_of_another_run_is_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    run(make_spec(max_steps=1), tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-1"
    with pytest.raises(CheckpointError, match="of another run: its training differs"):
        run(make_spec(max_steps=2), tmp_path / "run", resume_from=checkpoint)
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        run(make_spec(), tmp_path / "run", resume_from=tmp_path)


def test_evaluation_leaves_training_untouched(make_spec: MakeSpec, tmp_path: Path) -> None:
    often = run(make_spec(eval_every=1), tmp_path / "often")
    never = run(make_spec(validation=None), tmp_path / "never")
    assert weights(often.adapter) == weights(never.adapter)


def test_data_of_another_method(make_spec: MakeSpec, tmp_path: Path) -> None:
    wanted = r"train\.jsonl does not hold pairs of a chosen and a rejected answer, which method dpo needs\."
    with pytest.raises(DataError, match=wanted):
        run(make_spec(method="dpo"), tmp_path / "run")


def test_missing_base(make_spec: MakeSpec, tmp_path: Path) -> None:
    with pytest.raises(BaseInvalid, match="holds no base model"):
        run(make_spec(base=tmp_path / "nowhere"), tmp_path / "run")


def test_missing_gpu(make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(DeviceMissing, match="Set gpus to 0"):
        run(make_spec(), tmp_path / "run", device="cuda:0")


def test_unknown_target_module(make_spec: MakeSpec, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'w_proj', which the base lacks; its linear layers are down_proj, .*v_proj"):
        run(make_spec(target_modules=["q_proj", "w_proj"]), tmp_path / "run")


def test_divergence_is_told(make_spec: MakeSpec, tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(tiny_llama, tmp_path / "base")
    (weights,) = base.glob("*.safetensors")
    tensors = load_file(weights)
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(Diverged, match=r"diverged: its loss is nan at step 1. Lower learning_rate"):
        run(make_spec(base=base), tmp_path / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_leaves_nothing_half_made(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Provenance, folder: Path) -> None:
        with Path("/dev/full").open("wb") as stream:
            stream.write(self.encode())

    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    monkeypatch.setattr(Provenance, "write", full)
    with pytest.raises(StorageFull, match="no space left"):
        run(make_spec(max_steps=1, save_every=5), folder)
    assert not (folder / "adapter").exists()
    assert not (folder / "adapter.partial").exists()
