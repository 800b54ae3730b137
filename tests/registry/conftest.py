"""Adapters without torch, buckets of the real S3 server, a proxy before it that loses answers, and a loopback Hub."""

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from safetensors.numpy import save_file

from swapmeet_registry import AdapterName, Fingerprint, Registry, Version
from swapmeet_registry.store_backend import StoreBackend
from swapmeet_registry.stores import hub_names

sys.path += [str(Path(__file__).with_name(folder)) for folder in ("loopback_hub", "s3_servers")]
from hub_repositories import Repository
from hub_server import LoopbackHub, User
from s3_proxy import Proxy

KEY, SECRET = "test", "test"
PREFIX = "base_model.model."
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "auto_mapping": None,
    "peft_version": "0.21.2",
    "base_model_name_or_path": "somewhere/base",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "lora_dropout": 0.05,
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
    "layer_replication": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "loftq_config": {},
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "inference_mode": True,
    "init_lora_weights": True,
}


@pytest.fixture
def base() -> Fingerprint:
    return Fingerprint(name="tiny", weights="sha256:" + "a" * 64, tokenizer="sha256:" + "b" * 64)


@pytest.fixture
def other_base() -> Fingerprint:
    return Fingerprint(name="other", weights="sha256:" + "c" * 64, tokenizer="sha256:" + "b" * 64)


@pytest.fixture
def make_adapter() -> Callable[..., Path]:
    """`make_adapter(folder, seed=0, tensors=None, **config)`: a PEFT folder.

    `tensors` replace those of the same name; None leaves one out.
    """

    def make(folder: Path, seed: int = 0, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
        random = np.random.default_rng(seed)
        weights: dict[str, Any] = {}
        for name in ("q_proj", "v_proj"):
            module = f"{PREFIX}model.layers.0.self_attn.{name}"
            weights[f"{module}.lora_A.weight"] = random.normal(size=(4, 32)).astype(np.float32)
            weights[f"{module}.lora_B.weight"] = random.normal(size=(16, 4)).astype(np.float32)
        weights |= tensors or {}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value for name, value in weights.items() if value is not None},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},  # as PEFT does it
        )
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
        (folder / "README.md").write_text("An adapter.\n")
        return folder

    return make


@pytest.fixture
def anything_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests may say what a publish refuses: others may have written them."""
    monkeypatch.setattr("swapmeet_registry.publishing.require_plain", lambda _: None)


@pytest.fixture
def aws(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The AWS variables point to the loopback server; change them through what this gives."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture(scope="session")
def other_s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of another S3 server, by other people: moto."""
    if importlib.util.find_spec("moto") is None and not os.environ.get("CI"):
        pytest.skip("moto is not installed")
    program = Path(__file__).parent / "s3_servers" / "moto_server.py"
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        address = server.stdout.readline().decode().strip()
        assert address, "moto did not come up"
        yield address
        server.terminate()


@pytest.fixture
def bucket(aws: pytest.MonkeyPatch) -> str:
    import boto3

    name = f"bucket-{uuid4().hex[:12]}"
    with closing(boto3.client("s3")) as client:
        client.create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["local", "s3", "other-s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store's URL, once for each kind of store."""
    return _url(request, tmp_path)


@pytest.fixture(params=["local", "s3", "hub"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty registry's URL, once for each kind of backend."""
    return _url(request, tmp_path)


def _url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return (tmp_path / "registry").as_uri()
    if request.param == "other-s3":
        server = request.getfixturevalue("other_s3_server")
        request.getfixturevalue("aws").setenv("AWS_ENDPOINT_URL", server)
    if request.param in ("s3", "other-s3"):
        return f"s3://{request.getfixturevalue('bucket')}/some/prefix"
    request.getfixturevalue("hub")
    return f"hf://{ORGANIZATION}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """huggingface_hub 2.4 sends large files in a way that its HTTP library is about to give up."""
    foreign = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(foreign)


ORGANIZATION, TOKEN = "Lab-1", "hf_loopbackToken0123456789"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty Hub that the environment points to, with a token that may write to one organization."""
    import huggingface_hub

    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # read from the environment only once
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with LoopbackHub() as server:
        server.users[TOKEN] = User("alice", {ORGANIZATION.lower(): "write"})
        for name, value in {
            "HF_ENDPOINT": server.address,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "hf"),
        }.items():
            monkeypatch.setenv(name, value)
        yield server
        huggingface_hub.close_session()


class Tampering:
    """What somebody who can write to where a registry's bytes are can do to them."""

    def __init__(self, registry: Registry, hub: Callable[[], LoopbackHub]) -> None:
        self.backend, self._hub = registry.backend, hub

    def file(self, version: Version, path: str, data: bytes | None) -> None:
        """Replace a version's file, or remove it."""
        if isinstance(self.backend, StoreBackend):
            manifest = Registry(self.backend.store).manifest(version)
            (sha256,) = [file.sha256 for file in manifest.files if file.path == path]
            self.key(f"blobs/sha256/{sha256}", data)
        else:
            self.repository(version.name).tamper(f"v{version.version}", path, data)

    def manifest(self, version: Version, data: bytes | None) -> None:
        if isinstance(self.backend, StoreBackend):
            self.key(f"manifests/{version.digest.replace(':', '/')}", data)
        else:
            self.repository(version.name).tamper(f"v{version.version}", ".swapmeet/manifest.json", data)

    def head(self, name: str, data: bytes) -> None:
        if isinstance(self.backend, StoreBackend):
            self.key(f"heads/{name}.json", data)
        else:
            short = hub_names.repository_name(ORGANIZATION, AdapterName.parse(name))
            repository = self._hub().repositories.setdefault(
                f"{ORGANIZATION}/{short}".lower(), Repository(f"{ORGANIZATION}/{short}", private=True)
            )
            content = {"path": ".swapmeet/head.json", "content": base64.b64encode(data).decode()}
            header = {"key": "header", "value": {"summary": "Edit"}}
            repository.commit("main", [header, {"key": "file", "value": content}], "mallory")

    def key(self, key: str, data: bytes | None) -> None:
        assert isinstance(self.backend, StoreBackend)
        if data is None:
            self.backend.store.delete(key)
        else:
            self.backend.store.put(key, data, hashlib.sha256(data).hexdigest())

    def repository(self, name: str) -> Repository:
        short = hub_names.repository_name(ORGANIZATION, AdapterName.parse(name))
        return self._hub().repositories[f"{ORGANIZATION}/{short}".lower()]

    @property
    def empty(self) -> bool:
        """Whether nothing was ever written."""
        if isinstance(self.backend, StoreBackend):
            return list(self.backend.store.list("")) == []
        return not self._hub().repositories


@pytest.fixture
def tampering(url: str, request: pytest.FixtureRequest) -> Tampering:
    return Tampering(Registry(url), lambda: request.getfixturevalue("hub"))


@pytest.fixture
def proxy(bucket: str, aws: pytest.MonkeyPatch, s3_server: str) -> Iterator[Proxy]:
    """A proxy that the AWS variables point to."""
    with Proxy(s3_server) as server:
        aws.setenv("AWS_ENDPOINT_URL", server.address)
        yield server
