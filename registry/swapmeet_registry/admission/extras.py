"""The files beside an adapter's weights: texts, templates, licences, a tokenizer. Copied while they are checked."""

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import yaml

from swapmeet_registry.errors import Refused
from swapmeet_registry.manifest import StoredFile

CHUNK = 1 << 20
PARSED = 2 << 20
"""Bytes up to which JSON is parsed, and the limit of texts that are no tokenizer's."""
LARGE = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model")
"""A tokenizer's tables, which may be as large as any extra file; of their JSON only the outside is looked at."""
MAX_DEPTH = 64
MAX_PARTS = 250_000
"""Lists and objects of JSON that is parsed: two bytes of it can mean a hundred in memory."""
MAX_FRONT_MATTER = 64 << 10
MAX_NODES = 10_000

_BINARIES = {
    b"PK\3\4": "a zip archive", b"PK\5\6": "a zip archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x1f\x8b": "a gzip archive", b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive", b"Rar!": "a rar archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive", b"\x7fELF": "a program", b"MZ": "a program", b"#!": "a program",
    **{bytes((0x80, protocol)): "a pickle" for protocol in range(1, 6)},
}  # fmt: skip
"""How files begin that have no place beside an adapter, whatever their names say."""
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_IMPORTS = ("auto_map", "custom_pipelines")


def copy(name: str, stream: BinaryIO, target: Path) -> StoredFile:
    """Copy a file and check what is copied.

    Raises:
        Refused: it is not what its name says, or holds what could harm whoever reads it.
    """
    digest, size, kept = hashlib.sha256(), 0, bytearray()
    accept = _text(name) if not name.endswith(".model") else lambda _chunk, _final: None
    with target.open("xb") as copied:
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            if not size:
                _require_plain(name, chunk)
            accept(chunk, False)
            digest.update(chunk)
            size += len(chunk)
            if size > PARSED and name not in LARGE:
                raise Refused(f"{name} has over {PARSED} bytes, which only a tokenizer's files may. Move it out.")
            if size <= PARSED:
                kept += chunk
            copied.write(chunk)
        accept(b"", True)
    if size <= PARSED:
        _require_sound(name, bytes(kept))
    return StoredFile(path=name, size=size, sha256=digest.hexdigest())


def _require_plain(name: str, start: bytes) -> None:
    for magic, kind in _BINARIES.items():
        if start.startswith(magic) or (start[257:262] == b"ustar"):
            raise Refused(f"{name} is {kind} under another name. Move it out of the folder.")
    if name.endswith(".model") and not start.startswith(b"\x0a"):
        raise Refused(f"{name} is no SentencePiece model. Move it out of the folder.")
    if name.endswith(".json") and start.lstrip(b" \t\r\n")[:1] not in (b"{", b"["):
        raise Refused(f"{name} is not JSON. Save it again, or move it out of the folder.")


def _text(name: str) -> Callable[[bytes, bool], None]:
    decoder = codecs.getincrementaldecoder("utf-8")()

    def accept(chunk: bytes, final: bool) -> None:
        try:
            decoder.decode(chunk, final)
        except UnicodeDecodeError:
            raise Refused(f"{name} is not UTF-8 text. Save it again, or move it out of the folder.") from None
        if b"\0" in chunk:
            raise Refused(f"{name} holds a zero byte, which no text has. Save it again, or move it out of the folder.")

    return accept


def _require_sound(name: str, data: bytes) -> None:
    if name.endswith(".json"):
        _require_json(name, data)
    elif name == "README.md":
        _require_front_matter(name, data.decode())


def _require_json(name: str, data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") > MAX_PARTS:
        raise Refused(f"{name} has over {MAX_PARTS} lists and objects. Move it out of the folder.")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
        deep = any(depth > MAX_DEPTH for depth in _depths(value))
    except RecursionError:
        deep = True
    except ValueError as error:
        raise Refused(
            f"{name} is not JSON ({str(error)[:200]}). Save it again, or move it out of the folder."
        ) from None
    if deep:
        raise Refused(f"{name} is nested over {MAX_DEPTH} levels deep. Move it out of the folder.")
    if isinstance(value, dict) and (found := sorted(value.keys() & set(_IMPORTS))):
        raise Refused(f"{name} has {found[0]}, which has a loader import code by name. Take it out.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("it gives a key twice")
    return result


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _depths(value: Any) -> Iterator[int]:
    todo = [(value, 1)]
    while todo:
        item, depth = todo.pop()
        if isinstance(item, dict | list):
            yield depth
            todo += [(inner, depth + 1) for inner in (item.values() if isinstance(item, dict) else item)]


def _require_front_matter(name: str, text: str) -> None:
    """A card's YAML is read by every page that shows it: a few aliases in it can mean gigabytes."""
    found = _FRONT_MATTER.match(text)
    if not found:
        return
    if len(found[1]) > MAX_FRONT_MATTER:
        raise Refused(f"{name} begins with over {MAX_FRONT_MATTER} bytes of metadata. Shorten it.")
    depth = nodes = 0
    try:
        for event in yaml.parse(found[1], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            nodes += isinstance(event, yaml.NodeEvent)
            odd = isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or _tagged(event)
            if odd or depth > MAX_DEPTH or nodes > MAX_NODES:
                raise Refused(
                    f"{name}: its metadata uses references or tags, or is nested too deeply. Write it plainly."
                )
    except (yaml.YAMLError, RecursionError):
        raise Refused(f"{name}: its metadata is not YAML. Put it right, or remove it.") from None


def _tagged(event: yaml.Event) -> bool:
    tag = getattr(event, "tag", None)
    return tag is not None and not tag.startswith("tag:yaml.org,2002:str")
