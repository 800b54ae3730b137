"""The adapter that a fine-tune goes on from: what its files say. Works without torch."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swapmeet_registry.admission import lora_config
from swapmeet_registry.errors import RegistryError
from swapmeet_registry.fingerprint import Fingerprint, require_fit
from swapmeet_registry.origin.provenance import Provenance

WEIGHTS = "adapter_model.safetensors"
TEMPLATE = "chat_template.jinja"
FOREIGN = ("rank_pattern", "alpha_pattern", "lora_bias", "modules_to_save", "trainable_token_indices")
"""Parts of PEFT's LoRA that Swapmeet serves and does not train."""


def inherited(folder: Path, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings that follow from a parent, and a sentence for each given one that differs."""
    folder = folder.expanduser()
    try:
        config = lora_config.parse((folder / lora_config.FILE).read_bytes())
        template = _template(folder)
    except (OSError, UnicodeDecodeError, RegistryError) as error:
        return {}, [f"parent: {folder} holds no adapter to go on from ({error}). Name the folder of a pulled version."]
    foreign = [name for name in FOREIGN if getattr(config, name)]
    if foreign or isinstance(config.target_modules, str):
        what = ", ".join(foreign) or "a pattern for target_modules"
        return {}, [f"parent: {folder} was made with {what}, which can not be trained on here. Take another parent."]
    own = {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "target_modules": tuple(sorted(config.target_modules)),
        "rslora": config.use_rslora,
        "dora": config.use_dora,
    }
    differing = [
        f"{name} is {given[name]!r}, but the parent's is {value!r}, which an adapter keeps. Leave {name} out."
        for name, value in own.items()
        if name in given and not _same(given[name], value)
    ]
    if given.get("target_modules") == "all-linear":  # `attach_lora` knows the base, and compares
        del own["target_modules"]
    if given.get("chat_template") is None:
        own |= {"chat_template": template}
    return own, differing


def parent_digest(folder: Path, base: Fingerprint) -> str:
    """`sha256:HEX` of a parent's weights.

    Raises:
        BaseMismatch: the parent says that it was trained on another base.
    """
    provenance = Provenance.read(folder)
    if provenance is not None:
        require_fit(provenance.base, base, f"The parent in {folder}")
    with (folder / WEIGHTS).open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _template(folder: Path) -> str | None:
    path = folder / TEMPLATE
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _same(given: Any, own: Any) -> bool:
    if given == "all-linear":
        return isinstance(own, tuple)
    if isinstance(own, tuple):
        return isinstance(given, list | tuple) and sorted(map(str, given)) == list(own)
    return bool(given == own)
