"""Packed examples see nothing of each other: their gradients are those of each alone, however they are batched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swapmeet_registry.fingerprint import Fingerprint, Quantization
from swapmeet_training import FineTune, SpecError
from swapmeet_training.data.masking import IGNORED, Sequence
from swapmeet_training.loop.packing import pack

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore:An output with one or more elements was resized:UserWarning")
Gradients = dict[str, Any]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=80))
def test_rows_hold_every_example_once_and_fit(lengths: list[int]) -> None:
    rows = pack(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= 64 for row in rows)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 64) * 2 + 1
    assert rows == first_fit(lengths, 64)


def first_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """First-fit-decreasing as the textbook has it."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        for row in rows:
            if sum(lengths[other] for other in row) + lengths[index] <= capacity:
                row.append(index)
                break
        else:
            rows.append([index])
    return rows


def test_a_hundred_thousand_examples_are_packed_at_once() -> None:
    lengths = [1 + (7919 * number) % 300 for number in range(100_000)]
    rows = pack(lengths, 1024)
    assert len(rows) < 1.01 * sum(lengths) / 1024


def examples(vocabulary: int) -> list[Sequence]:
    """Of 1 to 40 tokens; in some, the very first token is labelled, which nothing can predict."""
    torch.manual_seed(5)
    made = []
    for line, length in enumerate((40, 3, 17, 9, 2, 25, 12, 30), start=1):
        tokens = tuple(torch.randint(3, vocabulary, (length,)).tolist())
        masked = length // 2 if line % 2 else 0
        made.append(Sequence(line, tokens, (IGNORED,) * masked + tokens[masked:]))
    return made


def reference(model: Any, sequences: list[Sequence]) -> Gradients:
    """Token-mean gradient by the book: each example alone, all its logits, no mask but the model's own."""
    model.train()
    model.zero_grad()
    losses, tokens = [], 0
    for sequence in sequences:
        logits = model(input_ids=torch.tensor([sequence.tokens], device=model.device)).logits[0, :-1].float()
        targets = torch.tensor(sequence.labels[1:], device=model.device)
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED))
        tokens += int((targets != IGNORED).sum())
    (sum(losses) / tokens).backward()
    return taken(model)


def accumulated(model: Any, rows: list[Any], size: int) -> Gradients:
    """What one optimizer step of a run would apply."""
    from swapmeet_training.loop.losses import Supervised

    model.train()
    model.zero_grad()
    objective = Supervised(0)
    count = objective.count(rows)
    for start in range(0, len(rows), size):
        (objective.score(model, rows[start : start + size]).loss / count).backward()
    return taken(model)


def taken(model: Any) -> Gradients:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


def plain_model(base: Path) -> Any:
    """LoRA on the base unquantised, in fp32."""
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
    model.config.use_cache = False  # as `load_base` has it: with a cache, transformers overlooks that rows are packed
    return with_b(peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")))


def nf4_model(base: Path, device: str = "cpu") -> Any:
    from swapmeet_training.lora.model import attach_lora, load_base

    quantization = Quantization(compute_dtype="float32")
    spec = FineTune(
        name="acme/packed",
        base=base,
        base_fingerprint=Fingerprint(name="base", weights="sha256:0", tokenizer="sha256:0"),
        data=Path("unread.jsonl"),
        rank=4,
    )
    return with_b(attach_lora(load_base(base, device, quantization), spec))


def with_b(model: Any) -> Any:
    torch.manual_seed(7)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return model


@pytest.fixture(scope="module")
def tiny_mistral(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its attention sees no further than eight tokens."""
    return Path(make_tiny(tmp_path_factory.mktemp("bases") / "tiny-mistral", "mistral", sliding_window=8))


BASES = ("tiny_llama", "tiny_qwen2", "tiny_mistral")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [plain_model, nf4_model])
@pytest.mark.parametrize("base", BASES)
def test_a_packed_accumulated_step_has_the_gradient_of_each_example_alone(
    base: str, make: Any, attention: str, request: pytest.FixtureRequest
) -> None:
    require_equal_gradients(make(request.getfixturevalue(base)), attention, 1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("base", BASES)
def test_it_has_on_a_gpu(base: str, attention: str, request: pytest.FixtureRequest) -> None:
    """Whose sums come in another order for every shape."""
    require_equal_gradients(nf4_model(request.getfixturevalue(base), "cuda:0"), attention, 1e-5)


def require_equal_gradients(model: Any, attention: str, tolerance: float) -> None:
    from swapmeet_training.lora.model import require_apart

    model.set_attn_implementation(attention)
    require_apart(model.base_model.model)
    sequences = examples(model.config.vocab_size)
    rows = [tuple(sequences[index] for index in row) for row in pack([len(s.tokens) for s in sequences], 48)]
    assert [len(row) for row in rows] == [3, 2, 3]
    expected = reference(model, sequences)
    for size in (1, 2, 3):
        for name, gradient in accumulated(model, rows, size).items():
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=tolerance)


def test_what_leaks_is_noticed(tiny_llama: Path) -> None:
    """The control: with one mask for the whole row, gradients differ, and the check before a run refuses."""
    from swapmeet_training.lora.model import require_apart

    model = plain_model(tiny_llama)
    sequences = examples(model.config.vocab_size)
    joined = tuple(token for s in sequences[:2] for token in s.tokens)
    labels = tuple(label for s in sequences[:2] for label in (IGNORED, *s.labels[1:]))
    expected = reference(model, sequences[:2])
    leaking = accumulated(model, [(Sequence(1, joined, labels),)], 1)
    assert max(float((leaking[name] - expected[name]).abs().max()) for name in expected) > 1e-4
    model.config.use_cache = True
    with pytest.raises(SpecError, match="lets examples see each other on this base's architecture"):
        require_apart(model.base_model.model)
    forward = model.base_model.model.forward
    model.base_model.model.forward = lambda input_ids: forward(input_ids=input_ids)
    with pytest.raises(SpecError, match="takes position_ids"):
        require_apart(model.base_model.model)


def test_nothing_predicts_the_first_token_of_an_example() -> None:
    from swapmeet_training.loop.batches import collate

    first, second = Sequence(1, (5, 6), (5, 6)), Sequence(2, (7, 8, 9), (7, 8, 9))
    batch = collate([(first, second), (second,)], 0)
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 0, 1]]
    assert batch.targets.tolist() == [[6, IGNORED, 8, 9], [8, 9, IGNORED, IGNORED]]
    assert batch.owners.tolist() == [[0, 1, 1, 1], [2, 2, 0, 0]]
    assert batch.examples == 3


def test_single_examples_are_padded_and_masked() -> None:
    from swapmeet_training.loop.batches import collate

    batch = collate([(Sequence(1, (5, 6), (-100, 6)),), (Sequence(2, (7, 8, 9), (-100, -100, 9)),)], 1)
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 1], [7, 8, 9]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.targets.tolist() == [[6, -100], [-100, 9]]
