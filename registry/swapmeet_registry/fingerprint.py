"""Which base model an adapter belongs to: digests of the bytes, not a name."""

import hashlib
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from swapmeet_registry.errors import BaseInvalid, BaseMismatch
from swapmeet_registry.safetensors_file import read_header
from swapmeet_registry.weights_digest import Progress, weights_digest

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "added_tokens.json",
)


class Quantization(BaseModel):
    """How a base's linear layers are held in memory (QLoRA, arXiv 2305.14314: NF4 with double quantization)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = "nf4"
    double: bool = True
    block_size: int = 64
    compute_dtype: str = "bfloat16"

    def __str__(self) -> str:
        return f"{self.method}{' double-quantized' if self.double else ''}, {self.compute_dtype} compute"


class Fingerprint(BaseModel):
    """A base model's identity. Digests read `sha256:HEX`; `chat_template` is None where there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    weights: str
    tokenizer: str
    chat_template: str | None = None
    quantization: Quantization = Quantization()


def fingerprint(folder: Path, name: str, cache: Path | None = None, progress: Progress | None = None) -> Fingerprint:
    """The fingerprint of a transformers folder with safetensors weights.

    Reads every weight byte once, in pieces of one tensor or less; with `cache` (a folder), a result is kept
    there and used again while every file's size, times and inode stay the same.

    Raises:
        BaseInvalid: a file is missing or unusable.
        Refused: a weight file is not sound safetensors.
    """
    files = weight_files(folder)
    stamp = _stamp([*files, folder / "config.json"])
    kept = cache / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()}.json" if cache else None
    weights = _cached(kept, stamp)
    if weights is None:
        weights = weights_digest(files, _config(folder), progress)
        if kept:
            _keep(kept, stamp, weights)
    return Fingerprint(
        name=name,
        weights=weights,
        tokenizer=_tokenizer_digest(folder),
        chat_template=_template_digest(folder),
    )


def require_fit(trained_on: Fingerprint, hosted: Fingerprint, adapter: str) -> str | None:
    """Check that an adapter trained on one base may be used on another.

    Returns:
        None, or a warning that names both settings where the same weights are quantized otherwise.

    Raises:
        BaseMismatch: the weights differ; the message carries both digests.
    """
    if trained_on.weights != hosted.weights:
        raise BaseMismatch(
            f"{adapter} was trained on {trained_on.name} with weights {trained_on.weights}, but {hosted.name} has "
            f"weights {hosted.weights}. Use the base it was trained on, or train it again on this one."
        )
    if trained_on.quantization != hosted.quantization:
        return (
            f"{adapter} was trained on {trained_on.name} as {trained_on.quantization}, and is used on the same "
            f"weights as {hosted.quantization}; results may differ a little."
        )
    return None


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load: `model.safetensors`, or else the shards that its index names.

    Raises:
        BaseInvalid: there are none, one is missing, or the folder is an adapter's.
    """
    if not folder.is_dir():
        raise BaseInvalid(f"{folder} is not a folder. Name a transformers model folder.")
    if (folder / "adapter_config.json").exists():
        raise BaseInvalid(f"{folder} holds an adapter, which transformers would load too. Name a base's folder.")
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise BaseInvalid(
            f"{folder} holds no model.safetensors. Save the model with save_pretrained(), which writes it."
        )
    return [folder / name for name in _shards(index)]


def _shards(index: Path) -> list[str]:
    weight_map = _json(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise BaseInvalid(f"{index} must map every tensor to a file beside it. Fetch the base again.")
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise BaseInvalid(f"{index.parent} lacks {', '.join(missing)}, which its index names. Fetch it again.")
    return sorted(names)


def require_usable(folder: Path) -> None:
    """Check that a folder has all that a base needs, without reading its weights.

    Raises:
        BaseInvalid: something is missing.
        Refused: a weight file is not sound safetensors.
    """
    for path in weight_files(folder):
        read_header(path)
    _config(folder)
    _tokenizer_digest(folder)


def _tokenizer_digest(folder: Path) -> str:
    digest, found = hashlib.sha256(), False
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            found = True
            digest.update(f"{name}\t{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    if not found:
        raise BaseInvalid(f"{folder} holds no tokenizer ({', '.join(TOKENIZER_FILES[:3])}, …). Add its files.")
    return "sha256:" + digest.hexdigest()


def _template_digest(folder: Path) -> str | None:
    path, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if path.is_file():
        return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    template = _json(config).get("chat_template") if config.is_file() else None
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise BaseInvalid(f"{folder} has no config.json. Name a transformers model folder.")
    return _json(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise BaseInvalid(f"{path} is not JSON ({error}). Fetch the base again.") from error
    if not isinstance(value, dict):
        raise BaseInvalid(f"{path} is not a JSON object. Fetch the base again.")
    return value


def _stamp(files: list[Path]) -> list[list[int | str]]:
    """What changes when a file does: the change time can't be set back, as the modification time can."""
    stats = [(path.name, path.stat()) for path in files if path.is_file()]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats]


def _cached(path: Path | None, stamp: list[list[int | str]]) -> str | None:
    if path is None or not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text())
    except ValueError:
        return None
    known = isinstance(kept, dict) and kept.get("stamp") == stamp
    return str(kept["weights"]) if known else None


def _keep(path: Path, stamp: list[list[int | str]], weights: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{uuid4().hex}.partial")
    partial.write_text(json.dumps({"stamp": stamp, "weights": weights}))
    partial.replace(path)
