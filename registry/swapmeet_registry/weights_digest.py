"""The digest of a base model's weights, however they are spread over files.

The weights digest is a SHA-256 over one line per tensor, sorted by tensor name:

    NAME \\t DTYPE \\t SHAPE \\t SHA-256 of the tensor's bytes \\n

so it does not depend on how the tensors are spread over files or in which order they stand in them. Where
the config ties the input and output embeddings, of equal matrices with a row per token only the last by name
counts (`model.embed_tokens.weight`, not `lm_head.weight`): some tools store the copy and some do not.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from swapmeet_registry.errors import BaseInvalid
from swapmeet_registry.safetensors_file import SafetensorsFile, TensorEntry, read_header

CHUNK = 1 << 20

Progress = Callable[[int, int], None]
"""Called with bytes read so far and bytes in all."""


def weights_digest(files: list[Path], config: dict[str, Any], progress: Progress | None = None) -> str:
    """SHA-256 over all tensors of the files; see the module's docstring for the exact form."""
    tied_rows = _tied_rows(config)
    total, done = sum(path.stat().st_size for path in files), 0
    lines: dict[str, str] = {}
    for path in files:
        header = read_header(path)
        if odd := [entry.name for entry in header.tensors if not entry.name.isprintable()]:
            raise BaseInvalid(f"{path} has a tensor called {odd[0]!r}, which can not be printed. Save the base again.")
        with path.open("rb") as stream:
            for entry in header.tensors:
                shape = ",".join(map(str, entry.shape))
                what = f"{entry.dtype}\t{shape}\t{_tensor_digest(stream, header, entry)}\n"
                tied = len(entry.shape) == 2 and entry.shape[0] == tied_rows
                key = what if tied else entry.name
                lines[key] = max(lines.get(key, ""), f"{entry.name}\t{what}")
                done += entry.size
                if progress:
                    progress(done, total)
    return "sha256:" + hashlib.sha256("".join(sorted(lines.values())).encode()).hexdigest()


def _tensor_digest(stream: Any, header: SafetensorsFile, entry: TensorEntry) -> str:
    digest = hashlib.sha256()
    stream.seek(header.data_start + entry.start)
    for chunk in _chunks(stream, entry.size):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(stream: Any, size: int) -> Iterator[bytes]:
    while size:
        chunk = stream.read(min(CHUNK, size))
        if not chunk:
            raise BaseInvalid(f"{stream.name} changed or was cut short while it was read. Fetch the base again.")
        size -= len(chunk)
        yield chunk


def _tied_rows(config: dict[str, Any]) -> int | None:
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    rows = text.get("vocab_size")
    return rows if tied and isinstance(rows, int) else None
