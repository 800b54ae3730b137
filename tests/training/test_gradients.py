"""Gradients through the NF4 base are right, and stay right after an evaluation.

bitsandbytes 0.50.2 repacks weights for inference in the first evaluation on CPUs with AVX512-BF16; what it then
computes has no backward. The run still looks alive, because residual paths carry some gradient.

Cosines with the unquantised fp32 reference, for random tokens: 0.71 (tiny) and 0.60 (SmolLM2-135M), of which
NF4 itself costs most (0.73 and 0.63 with fp32 compute); with the gradients lost, 0.12 and 0.10.
"""

from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry.fingerprint import Fingerprint, Quantization
from swapmeet_training import FineTune

torch = pytest.importorskip("torch")

Gradients = dict[str, Any]
Rows = list[Any]

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:An output with one or more elements was resized:UserWarning",
)


def spec_of(base: Path, checkpointing: bool) -> FineTune:
    return FineTune(
        name="acme/gradients",
        base=base,
        base_fingerprint=Fingerprint(name="base", weights="sha256:0", tokenizer="sha256:0"),
        data=Path("unread.jsonl"),
        rank=4,
        gradient_checkpointing=checkpointing,
    )


def trainable(model: Any, spec: FineTune) -> Any:
    """A LoRA model whose B is not zero, so that A has a gradient too."""
    from swapmeet_training.lora.model import attach_lora

    lora = attach_lora(model, spec)
    torch.manual_seed(7)
    for name, weight in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return lora


def batch(vocabulary: int) -> Rows:
    """Two examples of 24 tokens, of which the last twelve are trained."""
    from swapmeet_training.data.masking import Sequence

    torch.manual_seed(11)
    tokens = [tuple(row) for row in torch.randint(3, vocabulary, (2, 24)).tolist()]
    return [(Sequence(line, row, (-100,) * 12 + row[12:]),) for line, row in enumerate(tokens)]


def gradients(model: Any, inputs: Rows) -> Gradients:
    from swapmeet_training.loop.losses import Supervised

    model.train()
    model.zero_grad()
    Supervised(0).score(model, inputs).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


def evaluate(model: Any, inputs: Rows) -> None:
    from swapmeet_training.loop.losses import Supervised

    model.eval()
    with torch.no_grad():
        Supervised(0).score(model, inputs)


def cosine(one: Gradients, other: Gradients) -> float:
    flat = [torch.cat([grads[name].flatten().double() for name in sorted(one)]) for grads in (one, other)]
    return float(torch.nn.functional.cosine_similarity(*flat, dim=0))


def reference_gradients(base: Path, inputs: Rows) -> Gradients:
    """Of the same adapter on the base as it is on disk, unquantised and in fp32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
    return gradients(trainable(model, spec_of(base, False)), inputs)


def check_gradients(base: Path, checkpointing: bool) -> None:
    from swapmeet_training.lora.model import load_base

    model = trainable(load_base(base), spec_of(base, checkpointing))
    inputs = batch(model.config.vocab_size)
    before = gradients(model, inputs)
    evaluate(model, inputs)
    after = gradients(model, inputs)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert cosine(before, reference_gradients(base, inputs)) > 0.5


@pytest.mark.parametrize("checkpointing", [True, False])
def test_an_evaluation_changes_no_gradient(tiny_llama: Path, checkpointing: bool) -> None:
    check_gradients(tiny_llama, checkpointing)


@pytest.mark.slow
def test_an_evaluation_changes_no_gradient_of_the_real_base(smollm2: Path) -> None:
    check_gradients(smollm2, True)


@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered:UserWarning")
def test_without_the_switch_gradients_are_lost(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what the tests above would miss if they could not fail."""
    from bitsandbytes.functional import has_avx512bf16

    from swapmeet_training.lora.model import load_base

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes does not repack weights")
    monkeypatch.setattr("swapmeet_training.lora.model.keep_differentiable", lambda model: None)
    model = trainable(load_base(tiny_llama), spec_of(tiny_llama, False))
    inputs = batch(model.config.vocab_size)
    before = gradients(model, inputs)
    evaluate(model, inputs)
    lost = gradients(model, inputs)
    assert cosine(before, lost) < 0.3
    assert cosine(lost, reference_gradients(tiny_llama, inputs)) < 0.3


def test_a_base_used_for_inference_is_refused(tiny_llama: Path) -> None:
    from bitsandbytes.functional import has_avx512bf16

    from swapmeet_registry.bases.nf4 import load_nf4
    from swapmeet_training.lora.model import keep_differentiable

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes does not repack weights")
    model = load_nf4(tiny_llama)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    with pytest.raises(AssertionError, match="used for inference already"):
        keep_differentiable(model)


def test_adapter_weights_are_fp32_and_the_base_is_frozen(tiny_qwen2: Path) -> None:
    from swapmeet_training.lora.model import attach_lora, load_base

    model = attach_lora(load_base(tiny_qwen2), spec_of(tiny_qwen2, True))
    trained = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad}
    assert set(trained.values()) == {torch.float32}
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * 7 * 2


def test_checkpointing_and_padding_change_no_gradient(tiny_llama: Path) -> None:
    """In fp32: recomputed activations are the same, and a neighbour's length adds nothing to a row's gradient."""
    from swapmeet_training.data.masking import Sequence
    from swapmeet_training.lora.model import load_base

    exact = Quantization(compute_dtype="float32")
    short = Sequence(1, (5, 6, 7, 8), (-100, -100, 7, 8))
    long = Sequence(2, tuple(range(10, 30)), (-100,) * 10 + tuple(range(20, 30)))
    plain, recomputed = (
        trainable(load_base(tiny_llama, quantization=exact), spec_of(tiny_llama, on)) for on in (False, True)
    )
    together = gradients(plain, [(short,), (long,)])
    assert cosine(together, gradients(recomputed, [(short,), (long,)])) == pytest.approx(1, abs=1e-9)
    alone = [gradients(plain, [(sequence,)]) for sequence in (short, long)]
    summed = {name: alone[0][name] + alone[1][name] for name in together}
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, summed[name], rtol=1e-4, atol=1e-6)
