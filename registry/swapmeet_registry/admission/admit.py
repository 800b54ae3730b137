"""What is checked before an adapter's folder is published, and what is published of it.

The rule: `adapter_config.json` and `adapter_model.safetensors` must be there; the extras of `adapter_folder` may be;
`swapmeet.json` goes into the manifest; hidden files and what a training run leaves are left out; anything else is
refused by name. Pickled weights run code when they are loaded, and are always refused.

Every file is opened once and read once: the very bytes that were checked are hashed, and a store takes only bytes
that have the hash, so nothing that changes meanwhile is published. Configuration and weights are published in a
canonical form, so that equal adapters have equal digests whatever wrote them, and no reader finds in them what
another did not.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from swapmeet_registry.admission import (
    canonical_config,
    canonical_weights,
    extras,
    lora_config,
    lora_parts,
    lora_weights,
)
from swapmeet_registry.admission.adapter_folder import MAX_EXTRAS, REQUIRED, AdapterFolder, open_folder
from swapmeet_registry.errors import Refused
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_registry.manifest import Lora, StoredFile
from swapmeet_registry.origin.provenance import Provenance
from swapmeet_registry.safetensors_file import parse_header, raw_header
from swapmeet_registry.stores.files import os_errors

MAX_PROVENANCE = 4 << 20


@dataclass(frozen=True)
class Admitted:
    """An adapter that passed every check: the files to publish, and what the manifest says of them.

    Attributes:
        folder: holds the files as they are published; it goes when `admit` ends.
        files: each with the digest of the bytes that were checked.
        notices: what was left out, a sentence each.
    """

    folder: Path
    files: tuple[StoredFile, ...]
    lora: Lora
    provenance: Provenance | None
    notices: tuple[str, ...] = field(default=())


@contextmanager
def admit(folder: Path, base: Fingerprint, modules: lora_parts.Modules | None = None) -> Iterator[Admitted]:
    """Check an adapter's folder, and make what is published of it: valid as long as the context lasts.

    Args:
        folder: what PEFT's `save_pretrained()` wrote, with or without `swapmeet.json`.
        base: the base it is meant for, for messages.
        modules: the shapes of the base's weights by module name, where known.

    Raises:
        Refused: something is unsound or unsupported; the message names it and the way out.
        StoreError: the folder can not be read, or there is no room for a copy.
    """
    with os_errors(f"read {folder}"), open_folder(folder) as opened:
        scratch = _scratch(folder)
        try:
            admitted = _admitted(opened, scratch, base, modules)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    try:
        yield admitted
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch(folder: Path) -> Path:
    """A private folder beside the adapter's, on the same disk; or, where nothing may be written there, in TMPDIR."""
    try:
        return Path(tempfile.mkdtemp(prefix=".swapmeet-", dir=folder.absolute().parent))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="swapmeet-"))


def _admitted(opened: AdapterFolder, scratch: Path, base: Fingerprint, modules: lora_parts.Modules | None) -> Admitted:
    source = lora_config.parse(opened.read(lora_config.FILE, lora_config.MAX_BYTES))
    weights, stored = _weights(opened, scratch, source, base, modules)
    pairs = [pair.module for pair in weights.pairs]
    tokens = [part.module for part in weights.tokens]
    data = canonical_config.encode(source, pairs, tokens, modules, len(set(weights.modules)))
    (scratch / lora_config.FILE).write_bytes(data)
    files = [stored, _stored(lora_config.FILE, data), *_extras(opened, scratch)]
    return Admitted(
        scratch,
        tuple(sorted(files, key=lambda file: file.path)),
        lora_of(scratch),  # as whoever reads it will find it
        _provenance(opened),
        opened.notices,
    )


def _weights(
    opened: AdapterFolder,
    scratch: Path,
    config: lora_config.LoraConfig,
    base: Fingerprint,
    modules: lora_parts.Modules | None,
) -> tuple[lora_parts.LoraWeights, StoredFile]:
    name = lora_weights.FILE
    with opened.open(name) as stream:
        raw = raw_header(stream, name, lora_weights.MAX_HEADER)
        header = parse_header(raw, stream, name, lora_weights.MAX_TENSORS)
        weights = lora_weights.parts(header, config)
        if modules is not None:
            lora_parts.require_shapes(weights, modules, base.name)
        canonical = canonical_weights.header_of(header.tensors)
        if canonical == raw:
            written = canonical_weights.rewrite(stream, canonical, header, lambda _: None)
            (scratch / name).symlink_to((opened.path / name).absolute())
        else:
            with (scratch / name).open("xb") as copied:
                written = canonical_weights.rewrite(stream, canonical, header, copied.write)
    return weights, StoredFile(path=name, size=written.size, sha256=written.sha256)


def _stored(name: str, data: bytes) -> StoredFile:
    return StoredFile(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _extras(opened: AdapterFolder, scratch: Path) -> Iterator[StoredFile]:
    total = 0
    for name in opened.files:
        if name not in (*REQUIRED, Provenance.FILE):
            with opened.open(name) as stream:
                file = extras.copy(name, stream, scratch / name)
            total += file.size
            if total > MAX_EXTRAS:
                raise Refused(f"The files beside the weights have over {MAX_EXTRAS} bytes together. Move some out.")
            yield file


def _provenance(opened: AdapterFolder) -> Provenance | None:
    if Provenance.FILE not in opened.files:
        return None
    return Provenance.decode(opened.read(Provenance.FILE, MAX_PROVENANCE), str(opened.path / Provenance.FILE))


def lora_of(folder: Path) -> Lora:
    """What a manifest says of the configuration and weights that are in a folder.

    Raises:
        OSError: one of them is not there, or can not be read.
        Refused: one of them is unsound.
    """
    config = lora_config.parse((folder / lora_config.FILE).read_bytes())
    weights, targets = lora_weights.read_weights(folder / lora_weights.FILE, config), config.target_modules
    return Lora(
        rank=config.r,
        max_rank=max((pair.rank for pair in weights.pairs), default=config.r),
        alpha=config.lora_alpha,
        target_modules=targets if isinstance(targets, str) else tuple(targets),
        rslora=config.use_rslora,
        dora=config.use_dora,
        parameters=weights.parameters,
    )
