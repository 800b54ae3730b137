"""What is pushed to a Hub is there for everybody: PEFT, huggingface_hub and the command line, each unchanged."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import LoopbackHub

from swapmeet.cli import main
from swapmeet_registry import Registry
from swapmeet_registry.fingerprint import fingerprint

pytest.importorskip("torch")
pytest.importorskip("peft")

LOAD = """
import json, sys
from hashlib import sha256
from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, repository, revision, folder = sys.argv[1:]
snapshot_download(repository, revision=revision, local_dir=folder)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), repository, revision=revision)
factors = {name: value for name, value in model.state_dict().items() if "lora_" in name}
digest = sha256()
for name in sorted(factors):
    digest.update(factors[name].numpy().tobytes())
print(json.dumps({"count": len(factors), "digest": digest.hexdigest()}))
"""


def digest_of(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    factors = load_file(folder / "adapter_model.safetensors")
    digest = hashlib.sha256()
    for name in sorted(factors):
        digest.update(factors[name].tobytes())
    return {"count": len(factors), "digest": digest.hexdigest()}


@pytest.mark.slow
def test_one_digest_all_the_way(
    hub: LoopbackHub, tiny_llama: Path, random_lora: Callable[..., Path], tmp_path: Path
) -> None:
    base, registry = fingerprint(tiny_llama, "tiny-llama"), Registry("hf://Lab-1")
    folders = [random_lora(tiny_llama, tmp_path / f"trained-{seed}", seed=seed) for seed in range(2)]
    first, second = (registry.push(folder, "lab-1/legal", base=base) for folder in folders)
    fetched = tmp_path / "snapshot"
    command = [sys.executable, "-W", "ignore", "-c", LOAD, tiny_llama, "Lab-1/legal", "v1", fetched]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == digest_of(folders[0]) == digest_of(fetched)
    assert digest_of(folders[0]) != digest_of(folders[1])

    manifest = registry.manifest(first)
    files = {file.path: file.sha256 for file in manifest.files}
    weights = (fetched / "adapter_model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == files["adapter_model.safetensors"]
    stored = hashlib.sha256((fetched / ".swapmeet" / "manifest.json").read_bytes()).hexdigest()
    assert f"sha256:{stored}" == first.digest
    registry.pull(first.pinned, tmp_path / "pulled", base=base)
    assert digest_of(tmp_path / "pulled") == digest_of(fetched)

    # What anybody fetched goes into any other registry as it is, and says where it comes from.
    local = Registry((tmp_path / "registry").as_uri())
    copy = local.manifest(local.push(fetched, "acme/copy", base=base))
    assert {file.path: file.sha256 for file in copy.files if file.path != "README.md"} == {
        path: sha256 for path, sha256 in files.items() if path != "README.md"
    }
    assert copy.provenance() == manifest.provenance()
    assert second.version == 2


def test_the_command_line(
    hub: LoopbackHub,
    tiny_llama: Path,
    random_lora: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SWAPMEET_HOME", str(tmp_path / "home"))
    folder = random_lora(tiny_llama, tmp_path / "trained")

    def run(*arguments: object) -> Any:
        monkeypatch.setattr(sys, "argv", ["swapmeet", *map(str, arguments), "--registry", "hf://Lab-1", "--json"])
        try:
            main()
        except SystemExit as done:
            if done.code:
                return capsys.readouterr().err
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    pushed = run("push", folder, "acme/legal", "--base", tiny_llama, "--license", "MIT")
    assert pushed["version"] == 1
    assert run("tag", "acme/legal:1", "prod", "--expect", "0")["alias"] == "prod"
    assert run("show", "acme/legal")["aliases"] == {"prod": 1, "latest": 1}
    assert run("pull", "acme/legal:prod", tmp_path / "pulled", "--base", tiny_llama)["digest"] == pushed["digest"]
    assert digest_of(tmp_path / "pulled") == digest_of(folder)
    assert run("yank", "acme/legal:1", "--reason", "leaked names")["reason"] == "leaked names"
    assert "was yanked: leaked names" in run("pull", "acme/legal:1", tmp_path / "again")
    monkeypatch.delenv("HF_TOKEN")
    assert "set HF_TOKEN to one that may read Lab-1/acme.legal" in run("show", "acme/legal")
