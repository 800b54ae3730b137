"""What `auto` means, and the settings of a run that follow from a request."""

from collections.abc import Mapping
from typing import Any

from swapmeet.fine_tuning.fields import AUTO
from swapmeet_training import FineTune
from swapmeet_training.rules import DPO_LEARNING_RATE

TARGET_EPOCHS, MOST_EPOCHS = 3, 25
FEWEST_SEEN, MOST_SEEN = 100, 25_000
"""Examples, counted once per epoch, below which more epochs are made, and above which fewer."""
SMALLEST_BATCH, LARGEST_BATCH = 4, 256
BATCHES_PER_EPOCH = 500
LEARNING_RATE = {"supervised": FineTune.model_fields["learning_rate"].default, "dpo": DPO_LEARNING_RATE}
"""What a multiplier of 1 means."""
BETA = FineTune.model_fields["beta"].default
SAME = (
    *("dropout", "init", "packing", "max_length", "schedule", "warmup_ratio", "weight_decay", "max_grad_norm"),
    *("optimizer", "max_steps", "gradient_accumulation", "gradient_checkpointing", "eval_every", "save_every"),
    *(
        "early_stopping",
        "keep_best",
        "examples",
        "show_examples",
        "chat_template",
        "license",
        "dataset_license",
        "tags",
    ),
)
"""Own options that a run has under the same name."""


def resolve(asked: Mapping[str, Any], examples: int, accumulation: int = 1) -> dict[str, Any]:
    """Hyper-parameters with every `auto` replaced, by OpenAI's names.

    Args:
        asked: as the caller gave them.
        examples: of the training file.
        accumulation: into how many parts a batch is cut, which must divide it.
    """
    automatic: dict[str, Any] = {
        "n_epochs": automatic_epochs(examples),
        "batch_size": automatic_batch(examples, accumulation),
        "learning_rate_multiplier": 1.0,
        "beta": BETA,
    }
    return {name: automatic[name] if value == AUTO else value for name, value in asked.items()}


def automatic_epochs(examples: int) -> int:
    """Three, more where few examples would be seen, fewer where very many would, as OpenAI's cookbook has it."""
    if examples * TARGET_EPOCHS < FEWEST_SEEN:
        return min(MOST_EPOCHS, FEWEST_SEEN // examples)
    if examples * TARGET_EPOCHS > MOST_SEEN:
        return max(1, MOST_SEEN // examples)
    return TARGET_EPOCHS


def automatic_batch(examples: int, accumulation: int = 1) -> int:
    """The power of two next above 0.2 % of the examples, from 4 to 256, and then a multiple of `accumulation`."""
    share = max(1, -(-examples // BATCHES_PER_EPOCH))
    batch = min(LARGEST_BATCH, max(SMALLEST_BATCH, 1 << (share - 1).bit_length()))
    return max(accumulation, batch - batch % accumulation)


def run_settings(hyperparameters: Mapping[str, Any], lora: Mapping[str, Any], method: str, seed: int) -> dict[str, Any]:
    """Everything of `FineTune` but names, paths and fingerprints; what is still `auto` is not yet among it.

    Args:
        hyperparameters: by OpenAI's names.
        lora: own options, all of them.
        method: `supervised` or `dpo`.
        seed: of all randomness.
    """
    rank, parts = lora["rank"] or 16, lora["gradient_accumulation"]
    known = {name: value for name, value in hyperparameters.items() if value != AUTO}
    found = {name: lora[name] for name in SAME} | {
        "method": method,
        "beta": known.get("beta", BETA),
        "rank": rank,
        "alpha": lora["alpha"] or 2.0 * rank,
        "target_modules": lora["target_modules"] or "all-linear",
        "rslora": bool(lora["rslora"]),
        "dora": bool(lora["dora"]),
        "learning_rate": lora["learning_rate"] or LEARNING_RATE[method] * known.get("learning_rate_multiplier", 1.0),
        "seed": seed,
    }
    if "n_epochs" in known:
        found["epochs"] = known["n_epochs"]
    if "batch_size" in known:
        found["batch_size"] = known["batch_size"] // parts
    return found
