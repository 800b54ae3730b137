import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapmeet_registry import Fingerprint, Lora, Manifest, Provenance, Refused, StoredFile, canonical

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_canonical_json_reads_back_and_is_a_fixed_point(value: dict[str, Any]) -> None:
    data = canonical.encode(value)
    assert canonical.decode(data) == value
    assert canonical.encode(canonical.decode(data)) == data


def test_canonical_json_does_not_depend_on_order() -> None:
    assert (
        canonical.encode({"b": 1, "ä": [1.5]}) == canonical.encode({"ä": [1.5], "b": 1}) == '{"b":1,"ä":[1.5]}'.encode()
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, "\ud800"])
def test_canonical_json_refuses_what_is_no_json(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical.encode({"x": value})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[]", "not a JSON object"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": 1, "a": 2}', "gives 'a' twice"),
        (b'{"a":' + b"[" * 200_000, "nested too deeply"),
    ],
)
def test_reading_says_what_is_wrong(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        canonical.decode(data)


def test_provenance_goes_through_a_folder(tmp_path: Path, base: Fingerprint) -> None:
    assert Provenance.read(tmp_path) is None
    written = Provenance(base=base, training={"rank": 8, "nested": [1.5, None]}, metrics={"loss": 0.25}, tags=("a",))
    written.write(tmp_path)
    assert Provenance.read(tmp_path) == written
    assert json.loads((tmp_path / "swapmeet.json").read_text())["schema"] == "swapmeet.provenance/1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": "swapmeet.provenance/2"}, r"has the schema 'swapmeet.provenance/2', and this version .* reads"),
        ({"schema": None}, r"has the schema None"),
        ({"surprise": 1}, r"surprise: extra inputs are not permitted\."),
        ({"dataset": "md5:0"}, r"dataset: string should match"),
        ({"base": {}}, r"base\.name: field required \(2 more\)\."),
    ],
)
def test_unsound_provenance_is_refused(tmp_path: Path, base: Fingerprint, change: dict[str, Any], reason: str) -> None:
    Provenance(base=base).write(tmp_path)
    path = tmp_path / "swapmeet.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Refused, match=reason):
        Provenance.read(tmp_path)


def test_provenance_that_is_no_json_is_refused_when_written(tmp_path: Path, base: Fingerprint) -> None:
    with pytest.raises(Refused, match=r"can not be written as JSON"):
        Provenance(base=base, training={"loss": math.nan}).write(tmp_path)
    assert not (tmp_path / "swapmeet.json").exists()


def manifest(base: Fingerprint) -> Manifest:
    return Manifest(
        adapter="acme/legal",
        created_at="2026-01-02T03:04:05.000006Z",
        base=base,
        files=(StoredFile(path="adapter_config.json", size=2, sha256="0" * 64),),
        lora=Lora(rank=8, max_rank=8, alpha=16, target_modules=("q_proj",), parameters=100),
    )


def test_a_manifest_keeps_its_digest(base: Fingerprint) -> None:
    """Written down once: if this changes, every digest in every registry changes."""
    made = manifest(base)
    assert made.digest == "sha256:3964a9f9b89b6edc5db761983618b0c4a8d4f93807cc2009dde270b62150819b"
    assert Manifest.decode(made.encode(), "it") == made
    assert made.provenance() == Provenance(base=base)


def test_what_made_an_adapter_is_written_only_where_it_is_known(base: Fingerprint) -> None:
    """So that documents from before keep their bytes."""
    assert b'"run"' not in manifest(base).encode()
    assert b'"parent"' not in Provenance(base=base).encode()
    made = manifest(base).model_copy(update={"run": "ftjob-1", "parent": f"acme/old@sha256:{'0' * 64}"})
    read = Manifest.decode(made.encode(), "it")
    assert (read.run, read.parent) == (made.run, made.parent)
    assert read.provenance().run == "ftjob-1"


@pytest.mark.parametrize("path", ["../x", "a/b", "/etc/passwd", "..", ".hidden", "a\\b", "a\n", "", "a" * 129])
def test_a_manifest_names_no_file_outside_its_folder(base: Fingerprint, path: str) -> None:
    document = json.loads(manifest(base).encode())
    document["files"][0]["path"] = path
    with pytest.raises(Refused, match=r"files\.0\.path"):
        Manifest.decode(json.dumps(document).encode(), "it")


def test_a_reader_refuses_a_manifest_from_the_future(base: Fingerprint) -> None:
    data = manifest(base).encode().replace(b"swapmeet.manifest/1", b"swapmeet.manifest/2")
    with pytest.raises(Refused, match=r"^The manifest has the schema 'swapmeet.manifest/2', and .* Use the version"):
        Manifest.decode(data, "The manifest")
