"""`kill -9` at every step of a mirror and of an import: what is seen is whole, and the next one ends it, once."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from swapmeet_registry import Fingerprint, Registry
from swapmeet_registry.copies.bundle import export_bundle
from swapmeet_registry.signing.keys import PrivateKey, make_keys

NAME = "acme/legal"


@pytest.fixture
def source(make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint) -> Registry:
    """A deleted version and a signed one, in the same place for all kinds of targets."""
    registry = Registry((tmp_path / "source").as_uri())
    for seed in range(2):
        registry.push(make_adapter(tmp_path / f"adapter-{seed}", seed), NAME, base=base, alias="prod")
    registry.sign(NAME, PrivateKey(make_keys(tmp_path / "pair")[0]))
    registry.delete(f"{NAME}:1", "wrong")
    return registry


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mirror", "import"])
@pytest.mark.parametrize("place", ["local", "s3"])
def test_killed_at_any_step(
    kind: str, place: str, source: Registry, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    target = f"s3://{request.getfixturevalue('bucket')}/copy" if place == "s3" else (tmp_path / uuid4().hex).as_uri()
    what = source.backend.url
    if kind == "import":
        export_bundle(source, [NAME], tmp_path / "bundle.tar")
        what = str(tmp_path / "bundle.tar")
    script = Path(__file__).with_name("killed_copies.py")
    done = subprocess.run(
        [sys.executable, script, what, target, NAME], capture_output=True, text=True, timeout=600, check=True
    )
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    head = source.head(NAME).encode().decode()
    assert [line["killed"] for line in lines] == [True] * (len(lines) - 1) + [False]
    assert len(lines) > 15
    seen = [line["after"]["versions"] for line in lines]
    assert (seen[0], seen[-1]) == (0, 2)
    assert seen == sorted(seen), "what was seen after a step is seen after every later one"
    for line in lines:
        assert line["after"]["sound"]
        assert line["after"]["signed"] or line["after"]["versions"] < 2, "no version without its signatures"
        assert line["again"] == (1 if line["after"]["versions"] < 2 else 0), "nothing twice"
        assert line["end"] == {"versions": 2, "sound": True, "signed": True, "head": head}
