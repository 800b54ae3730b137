"""One adapter's way over a running server: pushed, pulled, loaded and served by one digest; recalled within seconds."""

import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from swapmeet.client import Client
from swapmeet_registry import Registry, Version
from swapmeet_registry.bases import load_nf4

NAME = "lab/story"
QUESTION = "Tell me a short story about a village near the sea."
NEW_TOKENS = 24
SECONDS = 10.0
"""Within which a server obeys a recall, on a machine that computes other things as well."""

LOAD = """
import hashlib, json, sys
import torch
from huggingface_hub import HfApi, snapshot_download
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, repository, *folders = sys.argv[1:]

def logits(adapter, **more):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, **more).eval()
    with torch.no_grad():
        found = model(torch.arange(3, 60)[None]).logits
    return hashlib.sha256(found.numpy().tobytes()).hexdigest()

snapshot = snapshot_download(repository, revision="prod")
print(json.dumps({
    "snapshot": snapshot,
    "commit": HfApi().model_info(repository, revision="prod").sha,
    "logits": [logits(each) for each in (*folders, snapshot)] + [logits(repository), logits(repository, revision="v1")],
}))
"""


@dataclass
class Lab:
    """A running server with two tenants: `lab` pushes, and `friend` may use what it shares."""

    server: Any
    base: Path
    base_name: str
    keys: dict[str, str]
    folder: Path

    @property
    def registry(self) -> Registry:
        return Registry(f"file://{self.server.home}/registry")

    def machine(self, name: str, tenant: str = "lab") -> dict[str, str]:
        """The environment of another machine, that has nothing but the server's address and a key."""
        home = self.folder / name
        return {
            "HOME": str(home),
            "SWAPMEET_HOME": str(home / "swapmeet"),
            "SWAPMEET_URL": self.server.url,
            "SWAPMEET_API_KEY": self.keys[tenant],
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": self.server.url,
            "HF_TOKEN": self.keys[tenant],
            "HF_HUB_OFFLINE": "0",
        }

    def openai(self, tenant: str = "lab") -> Any:
        import openai

        return openai.OpenAI(base_url=f"{self.server.url}/v1", api_key=self.keys[tenant], timeout=60, max_retries=0)

    def ask(self, model: str, tenant: str = "lab", **more: Any) -> Any:
        """The raw answer to the question; greedy."""
        with self.openai(tenant) as client:
            return client.chat.completions.with_raw_response.create(
                model=model,
                messages=[{"role": "user", "content": QUESTION}],
                max_tokens=NEW_TOKENS,
                temperature=0,
                extra_body={"return_token_ids": True},
                **more,
            )


@pytest.fixture(scope="module")
def lab(
    running: Callable[..., Any],
    swapmeet: Callable[..., Any],
    tiny_qwen2: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Lab:
    server = running(tiny_qwen2, "--exact")
    boss = {"SWAPMEET_URL": server.url, "SWAPMEET_API_KEY": server.key}
    keys = {}
    for tenant in ("lab", "friend"):
        assert swapmeet("tenant", "create", tenant, **boss).returncode == 0
        made = swapmeet("key", "create", "--tenant", tenant, "--scope", "developer", "--json", **boss)
        assert made.returncode == 0, made.stderr
        keys[tenant] = json.loads(made.stdout)["value"]
    with server.openai() as client:
        base_name = client.models.list().data[0].id
    return Lab(server, tiny_qwen2, base_name, keys, tmp_path_factory.mktemp("machines"))


def train(base: Path, folder: Path, seed: int) -> Path:
    """What anybody's script does with PEFT: a few steps, and `save_pretrained`."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.05)
        tokens = torch.randint(3, 300, (4, 32))
        for _ in range(8):
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder)
    return folder


def greedy(base: Path, adapter: Path) -> list[int]:
    """PEFT's own answer to the question, on the base as it is served."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    chat = [{"role": "user", "content": QUESTION}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model = PeftModel.from_pretrained(load_nf4(base), adapter).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return [int(each) for each in output[0, inputs["input_ids"].shape[1] :]]


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
def test_one_digest_all_the_way(lab: Lab, swapmeet: Callable[..., Any], tmp_path: Path) -> None:
    here, there = lab.machine("here"), lab.machine("there")
    trained = train(lab.base, tmp_path / "trained", seed=1)
    pushed = swapmeet("push", trained, NAME, "--base", lab.base_name, "--alias", "prod", "--json", **here)
    assert pushed.returncode == 0, pushed.stderr
    digest = json.loads(pushed.stdout)["digest"]

    pulled = swapmeet("pull", f"{NAME}:prod", tmp_path / "pulled", "--json", **there)
    assert pulled.returncode == 0, pulled.stderr
    version = lab.registry.resolve(f"{NAME}:prod")
    assert digest == json.loads(pulled.stdout)["digest"] == version.digest
    with Client(lab.server.url, lab.keys["lab"]) as client:
        assert client.adapters().resolve(NAME).digest == digest
        manifest = client.adapters().manifest(client.adapters().resolve(NAME))
    assert manifest.digest == digest
    files = {file.path: file.sha256 for file in manifest.files}
    assert files.items() <= sums(tmp_path / "pulled").items()

    loaded = load(lab, trained, tmp_path / "pulled")
    assert loaded["commit"] == digest.removeprefix("sha256:")[:40] == Path(loaded["snapshot"]).name
    snapshot = sums(Path(loaded["snapshot"]))
    assert {path: sha256 for path, sha256 in files.items() if path != "README.md"}.items() <= snapshot.items()
    assert len(loaded["logits"]) == 5
    assert len(set(loaded["logits"])) == 1, "the same adapter, to the last bit, by whichever way it came"
    headers = {"authorization": f"Bearer {lab.keys['lab']}"}
    place = f"{lab.server.url}/{NAME}/resolve/prod/adapter_model.safetensors"
    looked = httpx.head(place, headers=headers, trust_env=False, timeout=30)
    assert looked.headers["x-repo-commit"] == loaded["commit"]
    assert looked.headers["etag"] == f'"{files["adapter_model.safetensors"]}"'

    answer = lab.ask(NAME)
    assert answer.headers["x-swapmeet-adapter"] == f"{NAME}@{digest}"
    tokens = list(answer.parse().choices[0].token_ids)
    assert tokens == greedy(lab.base, tmp_path / "pulled")
    assert tokens != list(lab.ask(lab.base_name).parse().choices[0].token_ids)
    assert list(lab.ask(f"{NAME}@{digest}").parse().choices[0].token_ids) == tokens


def load(lab: Lab, *folders: Path) -> dict[str, Any]:
    """What huggingface_hub and PEFT, unmodified, make of the server and of folders, on a machine of their own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SWAPMEET_"))}
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(lab.base), NAME, *map(str, folders)]
    done = subprocess.run(command, env=kept | lab.machine("elsewhere"), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_a_recall_is_obeyed_within_seconds(lab: Lab, swapmeet: Callable[..., Any], tmp_path: Path) -> None:
    """By requests under way and by those that come, under every name that the version has; others go on."""
    import openai

    name = "lab/withdrawn"
    with Client(lab.server.url, lab.server.key) as boss:
        adapters = boss.adapters()
        sound, bad = (
            adapters.push(train(lab.base, tmp_path / f"trained-{seed}", seed), name, base=lab.base_name, alias="prod")
            for seed in (2, 3)
        )
        adapters.share(name, "shared", ["friend"])
    for tenant in ("lab", "friend"):
        assert lab.ask(f"{name}:prod", tenant).headers["x-swapmeet-adapter"] == bad.pinned
    with ThreadPoolExecutor(4) as pool:
        asked = {model: pool.submit(until_refused, lab, model) for model in (bad.pinned, f"{name}:2", f"{name}:prod")}
        streams = [pool.submit(stream_until_refused, lab, bad)]
        time.sleep(1)
        with Client(lab.server.url, lab.keys["lab"]) as client:
            client.adapters().recall(f"{name}:2", "it tells names")
        at = time.monotonic()
        ended = {model: each.result(60) for model, each in asked.items()}
        streamed = streams[0].result(60)
    for model, (error, when) in {**ended, "streamed": streamed}.items():
        assert when - at < SECONDS, model
        assert "it tells names" in error.message, model
    for error, _ in ended.values():
        assert (error.status_code, error.code) == (410, "model_recalled")
    for model in (f"{name}:1", sound.pinned, lab.base_name):
        assert lab.ask(model, "friend").parse().choices[0].finish_reason in ("stop", "length")
    with pytest.raises(openai.APIStatusError, match="it tells names"):
        lab.ask(bad.pinned, "friend")
    assert_the_report_says_whom_it_reached(lab, swapmeet, bad)


def until_refused(lab: Lab, model: str) -> tuple[Any, float]:
    """Ask again and again: the error that ended it, and when."""
    import openai

    while True:
        try:
            lab.ask(model)
        except openai.APIStatusError as error:
            return error, time.monotonic()


def stream_until_refused(lab: Lab, version: Version) -> tuple[Any, float]:
    """The same with streams that are as long as they can be, so that one is under way."""
    import openai

    while True:
        try:
            with (
                lab.openai() as client,
                client.completions.create(
                    model=version.pinned, prompt="Hello", max_tokens=480, stream=True, extra_body={"ignore_eos": True}
                ) as stream,
            ):
                for _ in stream:
                    pass
        except openai.APIError as error:
            return error, time.monotonic()


def assert_the_report_says_whom_it_reached(lab: Lab, swapmeet: Callable[..., Any], version: Version) -> None:
    until = time.monotonic() + SECONDS
    while True:
        told = swapmeet("reach", str(version), "--home", lab.server.home, "--json")
        assert told.returncode == 0, told.stderr
        report = json.loads(told.stdout)
        if all(each["at"] for each in report["servers"]) or time.monotonic() > until:
            break
    assert (report["version"], report["digest"], report["reason"]) == (2, version.digest, "it tells names")
    (server,) = report["servers"]
    assert (server["alive"], server["held"], server["tenants"]) == (True, True, ["friend", "lab"])
    assert server["at"] is not None
