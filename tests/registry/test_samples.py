"""Documents of every released schema: they load for ever, and keep their digests."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from swapmeet_registry import Refused, canonical, schemas

SAMPLES = Path(__file__).with_name("samples")
DIGESTS: dict[str, str] = json.loads((SAMPLES / "digests.json").read_text())


def schema_of(sample: str) -> str:
    """`manifest-1` of `manifest-1-full.json`."""
    return "-".join(sample.removesuffix(".json").split("-")[:2])


@pytest.mark.parametrize("sample", DIGESTS)
def test_a_sample_loads_and_keeps_its_digest(sample: str) -> None:
    data = (SAMPLES / sample).read_bytes()
    read = schemas.DOCUMENTS[schema_of(sample)].decode(data, sample)
    assert canonical.digest(data) == DIGESTS[sample]
    assert read.encode() == data


@pytest.mark.parametrize("sample", DIGESTS)
def test_a_sample_is_what_its_schema_says(sample: str) -> None:
    document, schema = json.loads((SAMPLES / sample).read_bytes()), schemas.load(schema_of(sample))
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(document)
    for wrong in ({"schema": "swapmeet.other/1"}, {"surprise": 1}):
        assert not validator.is_valid(document | wrong)
    for name in ("schema", "adapter" if "adapter" in document else "base"):
        assert not validator.is_valid({key: value for key, value in document.items() if key != name})


def test_every_sample_is_listed_and_every_schema_has_a_sample_with_every_field() -> None:
    assert sorted(DIGESTS) == sorted(path.name for path in SAMPLES.glob("*-[0-9]*.json"))
    for name, model in schemas.DOCUMENTS.items():
        found = {key for path in SAMPLES.glob(f"{name}-*.json") for key in json.loads(path.read_bytes())}
        assert found == {field.alias or key for key, field in model.model_fields.items()}


@pytest.mark.parametrize("name", schemas.DOCUMENTS)
def test_the_json_schemas_are_what_the_models_give(name: str) -> None:
    path = Path(schemas.__file__).with_name(f"{name}.json")
    assert path.read_text("utf-8") == schemas.text(name), "Run: python -m swapmeet_registry.schemas"
    jsonschema.Draft202012Validator.check_schema(schemas.load(name))


@pytest.mark.parametrize("sample", DIGESTS)
@pytest.mark.parametrize("wrong", [{"schema": "swapmeet.manifest/2"}, {"surprise": 1}])
def test_what_a_reader_does_not_know_it_refuses(sample: str, wrong: dict[str, Any]) -> None:
    document = json.loads((SAMPLES / sample).read_bytes()) | wrong
    with pytest.raises(Refused, match=r"has the schema|surprise"):
        schemas.DOCUMENTS[schema_of(sample)].decode(canonical.encode(document), "it")


def test_the_wheel_has_the_schemas(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"swapmeet_registry/schemas/{name}.json" for name in schemas.DOCUMENTS} <= set(names)
