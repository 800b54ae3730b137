"""A run is what a plain loop of torch and transformers makes of the same batches: rate, clipping, decay and loss."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from swapmeet_training import FineTune, Progress, run

torch = pytest.importorskip("torch")

STEPS, EXAMPLES = 10, 22
SETTINGS = {
    "max_steps": STEPS,
    "optimizer": "adamw_torch",
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "warmup_ratio": 0.2,
    "gradient_checkpointing": False,
    "validation": None,
    "seed": 3,
}


def plain_losses(spec: FineTune) -> list[float]:
    """Each step's loss: transformers' own over all positions, torch's AdamW, a linear schedule, shuffled by epoch."""
    from swapmeet_training.data.dataset import load_dataset
    from swapmeet_training.lora.model import attach_lora, choose_attention, load_base

    data = load_dataset(spec)
    base = load_base(spec.base)
    choose_attention(base, data.longest)
    model = attach_lora(base, spec).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0)[step]
    )
    losses: list[float] = []
    epoch = 0
    while len(losses) < STEPS:
        examples = list(data.training)
        random.Random(f"{spec.seed}/{epoch}").shuffle(examples)
        for start in range(0, len(examples), spec.batch_size):
            if len(losses) == STEPS:
                break
            rows = examples[start : start + spec.batch_size]
            longest = max(len(row.tokens) for row in rows)
            pads = [longest - len(row.tokens) for row in rows]
            loss = model(
                input_ids=torch.tensor([[*row.tokens, *[data.pad] * pad] for row, pad in zip(rows, pads, strict=True)]),
                attention_mask=torch.tensor([[1] * (longest - pad) + [0] * pad for pad in pads]),
                labels=torch.tensor([[*row.labels, *[-100] * pad] for row, pad in zip(rows, pads, strict=True)]),
            ).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, spec.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
        epoch += 1
    return losses


def test_a_run_makes_the_steps_of_a_plain_loop(make_spec: Callable[..., FineTune], tmp_path: Path) -> None:
    """Over more than one epoch, whose last step is a short one. The base computes in bf16, hence the tolerance."""
    spec = make_spec(examples=EXAMPLES, **SETTINGS)
    told: list[Progress] = []
    run(spec, tmp_path / "run", report=told.append)
    losses = [progress.loss for progress in told]
    plain = plain_losses(spec)
    assert plain[-1] < plain[0] - 1, "it learns, so a step too few or too weak shows"
    assert losses == pytest.approx(plain, abs=0.01)
