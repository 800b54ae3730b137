"""What must not happen, tried: a wrong base, an unknown name, a tampered blob."""

import shutil
from collections.abc import Callable
from pathlib import Path

from openai import OpenAI, OpenAIError

from swapmeet_registry import Registry, RegistryError
from swapmeet_registry.bases import Base
from swapmeet_registry.fingerprint import fingerprint, weight_files


def refusals(client: OpenAI, base: Base, name: str, adapter: Path, scratch: Path) -> list[dict[str, str]]:
    """Try each case; returns what was tried and the error that answered it."""
    registry = Registry(f"file://{scratch}/registry")
    registry.push(adapter, name, base=base.fingerprint)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("wrong base", lambda: _pull_on_other_base(registry, base, name, scratch)),
        ("unknown name", lambda: _chat(client, f"{name}-nobody-made")),
        ("tampered blob", lambda: _pull_tampered(registry, name, scratch)),
    ]
    return [{"case": case, "error": _refused(attempt)} for case, attempt in cases]


def _refused(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (RegistryError, OpenAIError) as error:
        return str(error)
    raise AssertionError("this should have been refused")


def _pull_on_other_base(registry: Registry, base: Base, name: str, scratch: Path) -> None:
    """A base that differs in the last byte of its weights."""
    other = scratch / f"{base.name}-changed"
    shutil.copytree(base.path, other)
    _flip_last_byte(weight_files(other)[0])
    registry.pull(name, scratch / "never", base=fingerprint(other, other.name))


def _pull_tampered(registry: Registry, name: str, scratch: Path) -> None:
    weights = next(
        file for file in registry.manifest(registry.resolve(name)).files if file.path.endswith("safetensors")
    )
    (blob,) = (scratch / "registry").rglob(weights.sha256.removeprefix("sha256:"))
    _flip_last_byte(blob)
    registry.pull(name, scratch / "never")


def _chat(client: OpenAI, model: str) -> None:
    client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}])


def _flip_last_byte(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)[0]
        stream.seek(-1, 2)
        stream.write(bytes([last ^ 1]))
