"""Whatever kind of adapter is trained: what is published, on a fresh base, computes what was trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import BaseMismatch
from swapmeet_registry.admission.admit import admit
from swapmeet_registry.bases import module_shapes
from swapmeet_registry.fingerprint import Quantization
from swapmeet_registry.origin.provenance import Provenance
from swapmeet_training import FineTune, SpecError, fine_tune, run

torch = pytest.importorskip("torch")

MakeSpec = Callable[..., FineTune]
pytestmark = [
    pytest.mark.filterwarnings("ignore:An output with one or more elements was resized:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "gaussian": {"init": "gaussian"},
    "pissa": {"init": "pissa"},
    "pissa rslora": {"init": "pissa", "rslora": True, "dropout": 0.1},
    "olora": {"init": "olora", "alpha": 4},
    "pissa wide": {"init": "pissa", "rank": 64, "target_modules": ["k_proj"]},
}


def exact_base(base: Path) -> Any:
    """NF4 as trained on, with products in fp32, so that differences are not the rounding's."""
    from swapmeet_training.lora.model import load_base

    return load_base(base, quantization=Quantization(compute_dtype="float32"))


def logits(model: Any) -> Any:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 35)[None]).logits[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_adapter_computes_what_was_trained(
    make_spec: MakeSpec, tmp_path: Path, tiny_llama: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft

    trained: list[Any] = []
    monkeypatch.setattr("swapmeet_training.qlora.load_base", lambda base, device: exact_base(base))
    monkeypatch.setattr("swapmeet_training.qlora.bits_per_parameter", lambda model: trained.append(model) or 4.1)
    spec = make_spec(**{"learning_rate": 1e-2, "keep_best": False} | KINDS[kind])
    result = run(spec, tmp_path / "run")

    expected = logits(trained[0])
    served = logits(peft.PeftModel.from_pretrained(exact_base(tiny_llama), result.adapter))
    bare = logits(exact_base(tiny_llama))
    assert float((expected - bare).norm()) > 0.05 * float(bare.norm()), "the adapter learnt something"
    assert float((served - expected).norm()) < 1e-5 * float(bare.norm())
    with admit(result.adapter, spec.base_fingerprint, module_shapes(tiny_llama)) as admitted:
        pass
    principal = "pissa" in kind or kind == "olora"
    assert admitted.lora.rank == spec.rank * (1 + principal)
    assert admitted.lora.dora == spec.dora
    with admit(tmp_path / "run" / "checkpoint-6", spec.base_fingerprint, module_shapes(tiny_llama)) as checkpoint:
        pass
    assert {file.path: file.sha256 for file in checkpoint.files} == {
        file.path: file.sha256 for file in admitted.files
    }, "a checkpoint can be published as it is"


def test_principal_parts_are_the_weights_own(make_spec: MakeSpec, tiny_llama: Path) -> None:
    """As PEFT makes them of a weight that is not quantised; and together with what is taken away, nothing."""
    from swapmeet_training.lora import principal
    from swapmeet_training.lora.model import attach_lora

    model = attach_lora(exact_base(tiny_llama), make_spec(init="pissa", alpha=8))
    assert float((logits(model) - logits(exact_base(tiny_llama))).norm()) < 1e-3
    for _, layer in principal._layers(model):
        weight = principal._weight(layer)
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        best = (u[:, :4] * s[:4]) @ v[:4]
        made = (
            layer.scaling["default"] * layer.lora_B["default"].weight.detach() @ layer.lora_A["default"].weight.detach()
        )
        assert float((made - best).norm()) < 0.01 * float(best.norm())
    assert all("default" in name for name, weight in model.named_parameters() if weight.requires_grad)


def test_a_rank_no_weight_has(make_spec: MakeSpec, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"rank is 65, but init pissa .*k_proj is of 64 x 128\. Lower rank, or set"):
        run(make_spec(rank=65, init="pissa", target_modules=["k_proj"]), tmp_path / "run")


def test_a_run_goes_on_from_its_parent(make_spec: MakeSpec, tmp_path: Path) -> None:
    first = run(make_spec(rslora=True, dropout=0.1), tmp_path / "first")
    settings = make_spec().model_dump(exclude={"rank", "alpha", "target_modules", "rslora", "dora", "name"})
    second = fine_tune(settings | {"name": "acme/second", "parent": first.adapter, "learning_rate": 1e-9})
    assert (second.rank, second.alpha, second.rslora) == (4, 32, True)
    result = run(second, tmp_path / "second")
    assert result.metrics["eval_loss"] == pytest.approx(first.metrics["eval_loss"], rel=1e-4)
    provenance = Provenance.read(result.adapter)
    assert provenance is not None
    assert str(provenance.training["parent"]).startswith("sha256:")
    assert str(tmp_path) not in json.dumps(provenance.training)
    third = run(second.model_copy(update={"learning_rate": 5e-3}), tmp_path / "third")
    assert third.metrics["eval_loss"] < first.metrics["eval_loss"]


def test_a_parent_of_another_base_is_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    parent = run(make_spec(max_steps=1), tmp_path / "first").adapter
    found = Provenance.read(parent)
    assert found is not None
    other = found.base.model_copy(update={"weights": "sha256:1"})
    found.model_copy(update={"base": other}).write(parent)
    with pytest.raises(BaseMismatch, match=r"The parent in .* was trained on tiny-llama with weights sha256:1"):
        run(make_spec(parent=parent), tmp_path / "second")


def test_a_parent_of_other_modules_is_refused(
    make_spec: MakeSpec, random_lora: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    parent = random_lora(tiny_llama, tmp_path / "parent", rank=4, targets=("q_proj",), lora_alpha=32)
    with pytest.raises(SpecError, match="target_modules chooses other modules than the parent has"):
        run(make_spec(parent=parent, target_modules="all-linear"), tmp_path / "run")


def test_the_template_is_published_unless_it_is_the_bases(
    make_spec: MakeSpec, tmp_path: Path, tiny_llama: Path
) -> None:
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(tiny_llama).chat_template
    plain = run(make_spec(max_steps=1, chat_template=own), tmp_path / "plain")
    assert not (plain.adapter / "chat_template.jinja").exists()
    changed = own + "{# mine, ä #}\n"
    spec = make_spec(max_steps=1, chat_template=changed)
    result = run(spec, tmp_path / "own")
    assert (result.adapter / "chat_template.jinja").read_bytes() == changed.encode()
    assert (tmp_path / "own" / "checkpoint-1" / "chat_template.jinja").is_file()
    with admit(result.adapter, spec.base_fingerprint):
        pass
    provenance = Provenance.read(result.adapter)
    assert provenance is not None
    assert str(provenance.training["chat_template"]).startswith("sha256:")
    following = make_spec(parent=shutil.copytree(result.adapter, tmp_path / "parent"))
    assert following.chat_template == changed, "a parent's template is its child's"
