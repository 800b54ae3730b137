"""From a data file to an adapter that PEFT loads, by the command line alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Registry
from swapmeet_registry.bases import load_nf4
from swapmeet_registry.fingerprint import fingerprint


@pytest.mark.slow
def test_train_publishes_a_version_with_its_provenance(
    swapmeet: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    home, data = tmp_path / "home", tmp_path / "data.jsonl"
    turns = [{"role": "user", "content": "Who jumps?"}, {"role": "assistant", "content": "The fox."}]
    data.write_text("\n".join(json.dumps({"messages": turns}) for _ in range(16)))

    options = [
        "--rank",
        4,
        "--max-steps",
        6,
        "--batch-size",
        4,
        "--license",
        "mit",
        "--tag",
        "foxes",
        "--alias",
        "prod",
    ]
    done = swapmeet(
        "train", data, "--base", tiny_llama, "--name", "acme/fox", "--validation", data, *options,
        "--home", home, "--follow", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step 6/6" in done.stderr
    published = json.loads(done.stdout)
    assert published["metrics"]["eval_loss"] > 0
    assert not list((home / "runs").iterdir())

    registry = Registry(f"file://{home}/registry")
    version = registry.resolve("acme/fox:prod")
    assert version.digest == published["digest"]
    manifest = registry.manifest(version)
    assert manifest.base.weights == fingerprint(tiny_llama, "tiny").weights
    assert manifest.lora.rank == 4
    assert manifest.training["max_steps"] == 6
    assert manifest.dataset is not None
    assert manifest.dataset.startswith("sha256:")
    assert {"torch", "peft", "transformers", "bitsandbytes"} <= set(manifest.packages)
    assert (manifest.license, manifest.tags) == ("mit", ("foxes",))

    from peft import PeftModel

    registry.pull(version, tmp_path / "pulled", base=fingerprint(tiny_llama, "tiny"))
    model = PeftModel.from_pretrained(load_nf4(tiny_llama), tmp_path / "pulled")
    changed = [p for name, p in model.named_parameters() if "lora_B" in name and p.abs().max() > 0]
    assert changed
