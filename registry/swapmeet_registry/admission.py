"""What is checked before an adapter's folder is published, and which of its files are.

The rule: `adapter_config.json` and `adapter_model.safetensors` must be there; the extras named below may be;
`swapmeet.json` goes into the manifest; hidden files are left out; anything else is refused by name, so that
nothing is left out without a word. Pickled weights run code when they are loaded, and are always refused.
"""

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from swapmeet_registry import lora_config, lora_parts, lora_weights
from swapmeet_registry.errors import Refused
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_registry.manifest import FILE_NAME, Lora, StoredFile
from swapmeet_registry.provenance import Provenance
from swapmeet_registry.stores.files import os_errors

REQUIRED = (lora_config.FILE, lora_weights.FILE)
EXTRAS = re.compile(r"README\.md|LICEN[CS]E(\.md)?|NOTICE|.+\.(json|txt|jinja|model)")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_WEIGHTS = 4 << 30
MAX_EXTRA = 64 << 20
MAX_FILES = 64


@dataclass(frozen=True, slots=True)
class Admitted:
    """An adapter's folder that passed every check: the files to publish, and what the manifest says of them."""

    folder: Path
    files: tuple[StoredFile, ...]
    lora: Lora
    provenance: Provenance | None


def admit(folder: Path, base: Fingerprint, modules: lora_parts.Modules | None = None) -> Admitted:
    """Check an adapter's folder.

    Args:
        folder: what PEFT's `save_pretrained()` wrote, with or without `swapmeet.json`.
        base: the base it is meant for, for messages.
        modules: the shapes of the base's weights by module name, where known.

    Raises:
        Refused: something is unsound or unsupported; the message names it and the way out.
        StoreError: the folder can not be read.
    """
    with os_errors(f"read {folder}"):
        # Digests come first: a store takes only bytes that have them, so what is checked is what is published.
        files = tuple(_hashed(path) for path in _published(folder))
        config = lora_config.parse((folder / lora_config.FILE).read_bytes())
        weights = lora_weights.read_weights(folder / lora_weights.FILE, config)
        if modules is not None:
            lora_parts.require_shapes(weights, modules, base.name)
        lora_weights.require_finite(folder / lora_weights.FILE, weights)
        return Admitted(folder, files, _lora(config, weights), Provenance.read(folder))


def _published(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise Refused(f"{folder} is not a folder. Name the folder that PEFT's save_pretrained() wrote.")
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if len(paths) > MAX_FILES:
        raise Refused(f"{folder} holds {len(paths)} files; an adapter may have {MAX_FILES}.")
    for path in paths:
        _require_sound(path)
    for name in REQUIRED:
        if name not in {path.name for path in paths}:
            raise Refused(f"{folder} has no {name}. Save the adapter with PEFT's save_pretrained().")
    return [path for path in paths if path.name != Provenance.FILE]


def _require_sound(path: Path) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise Refused(f"{path.name!r} is a link. Put the file itself into the folder.")
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{path.name!r} is not a plain file. Move it out of the adapter's folder.")
    if path.suffix.lower() in PICKLED:
        raise Refused(
            f"{path.name} is a pickle, which can run code when it is loaded. Save the adapter with "
            "save_pretrained(), which writes safetensors, and remove this file."
        )
    if not re.fullmatch(FILE_NAME, path.name):
        raise Refused(f"{path.name!r} is not a file name that can be published. Use letters, digits and . _ + -.")
    if path.name not in REQUIRED and not EXTRAS.fullmatch(path.name):
        raise Refused(f"{path.name} does not belong to an adapter. Move it out of the folder.")
    limit = MAX_WEIGHTS if path.name == lora_weights.FILE else MAX_EXTRA
    if status.st_size > limit:
        raise Refused(f"{path.name} has {status.st_size} bytes; at most {limit} are accepted.")


def _hashed(path: Path) -> StoredFile:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return StoredFile(path=path.name, size=os.fstat(stream.fileno()).st_size, sha256=digest)


def _lora(config: lora_config.LoraConfig, weights: lora_parts.LoraWeights) -> Lora:
    targets = config.target_modules
    return Lora(
        rank=config.r,
        max_rank=max((pair.rank for pair in weights.pairs), default=config.r),
        alpha=config.lora_alpha,
        target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
        rslora=config.use_rslora,
        dora=config.use_dora,
        parameters=weights.parameters,
    )
