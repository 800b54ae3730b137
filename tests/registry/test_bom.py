"""Bills of materials and lineage, out of manifests."""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Fingerprint, Provenance, Registry, Version
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.origin.bom import bom
from swapmeet_registry.origin.lineage import UNAVAILABLE, lines
from swapmeet_registry.origin.provenance import code_digest

SAMPLES = Path(__file__).with_name("samples")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry((tmp_path / "registry").as_uri())


@pytest.fixture
def push(registry: Registry, make_adapter: Callable[..., Path], base: Fingerprint, tmp_path: Path) -> Any:
    """`push(name, parent=None, …)`: publish an adapter that went on from another."""

    def publish(name: str, parent: Version | str | None = None, **facts: Any) -> Version:
        folder = make_adapter(tmp_path / "adapter")
        parent = parent.pinned if isinstance(parent, Version) else parent
        Provenance(base=base, parent=parent, **facts).write(folder)
        return registry.push(folder, name, base=base)

    return publish


def sample(name: str) -> tuple[Version, Manifest]:
    manifest = Manifest.decode((SAMPLES / name).read_bytes(), name)
    return Version(manifest.adapter, 3, manifest.digest, manifest.created_at), manifest


def test_a_bill_says_what_the_manifest_does(registry: Registry, push: Any) -> None:
    first = push("acme/older")
    version, manifest = sample("manifest-1-full.json")
    document = json.loads(bom(version, manifest, registry.lineage(push("acme/legal", first))))
    model = document["metadata"]["component"]
    assert (model["group"], model["name"], model["version"]) == ("acme", "legal", "3")
    assert model["licenses"] == [{"license": {"id": "CC-BY-NC-4.0"}}]
    assert [each["hashes"][0]["content"] for each in model["components"]] == [f.sha256 for f in manifest.files]
    base, parent = model["pedigree"]["ancestors"]
    assert (base["name"], base["licenses"]) == ("smollm2-135m", [{"license": {"id": "Apache-2.0"}}])
    assert {"name": "swapmeet:weights", "value": manifest.base.weights} in base["properties"]
    assert (parent["name"], parent["hashes"][0]["content"]) == ("acme/older", first.digest[7:])
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "eval_loss", "value": "0.125"} in metrics
    data, *packages = document["components"]
    assert (data["hashes"][0]["content"], data["licenses"][0]["license"]) == ("d" * 64, {"id": "CC-BY-NC-4.0"})
    assert [each["purl"] for each in packages] == ["pkg:pypi/swapmeet@0.1.0", "pkg:pypi/torch@2.13.0%2Bcpu"]
    assert bom(version, manifest) == bom(version, manifest)
    assert document["serialNumber"] == "urn:uuid:" + document["serialNumber"][-36:]


@pytest.fixture
def validator() -> Any:
    """Holds bills to the official schema."""
    pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib is not installed")
    import jsonschema
    import referencing.jsonschema

    def schema(file: str) -> Any:
        return json.loads((resources.files("cyclonedx.schema") / "_res" / file).read_text("utf-8"))

    files = ("bom-1.6", "spdx", "jsf-0.82", "cryptography-defs")
    schemas = {f"{name}.SNAPSHOT.schema.json": schema(f"{name}.SNAPSHOT.schema.json") for name in files}
    main = schemas["bom-1.6.SNAPSHOT.schema.json"]
    folder = main["$id"].rpartition("/")[0]
    known = referencing.Registry().with_resources(
        (f"{folder}/{file}", referencing.Resource.from_contents(each, referencing.jsonschema.DRAFT7))
        for file, each in schemas.items()
    )
    return jsonschema.Draft7Validator(main, registry=known, format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER)


@pytest.mark.parametrize("name", ["manifest-1.json", "manifest-1-full.json", "manifest-1-first.json"])
def test_bills_are_what_the_official_schema_says(name: str, registry: Registry, push: Any, validator: Any) -> None:
    parents = registry.lineage(push("acme/legal", f"acme/gone@sha256:{'0' * 64}"))
    document = json.loads(bom(*sample(name), parents))
    assert [error.message for error in validator.iter_errors(document)] == []
    assert not validator.is_valid(document | {"serialNumber": "7"})


@pytest.mark.parametrize("parent", ["acme/x@evil", "@", "x" * 9000, "acme/x:1\n\x1b[2J", "acme/x@sha256:" + "A" * 64])
@pytest.mark.usefixtures("anything_said")
def test_bills_of_hostile_manifests_are_sound(parent: str, registry: Registry, push: Any, validator: Any) -> None:
    odd = '"\n\x1b[31m\u202e<b>' + "y" * 3000
    facts: dict[str, Any] = {
        "run": odd,
        "license": odd,
        "base_license": " ",
        "dataset_license": "\n",
        "tags": ("a", "a"),
    }
    facts |= {"metrics": {odd: 1e308, "": 0.0}, "training": {odd: [None, {"x": odd}]}}
    facts |= {"packages": {odd: odd, "A_b": "1", "a-b": "1", "a_b": "2"}, "dataset": "sha256:" + "d" * 64}
    version = push("acme/odd", parent, **facts)
    document = json.loads(bom(version, registry.manifest(version), registry.lineage(version)))
    assert [error.message for error in validator.iter_errors(document)] == []
    refs = [each["bom-ref"] for each in document["components"]]
    assert len(refs) == len(set(refs)) == 4


def test_a_lineage_goes_up_to_the_base(registry: Registry, push: Any) -> None:
    first = push("acme/first", run="ftjob-1")
    second = push("acme/second", first, dataset="sha256:" + "d" * 64)
    third = push("acme/third", second, packages={"swapmeet": "0.1.0"}, code="sha256:" + "f" * 64)
    found = registry.lineage("acme/third")
    assert [each.version for each in found] == [second, first]
    assert registry.lineage("acme/first") == ()
    assert lines(third, registry.manifest(third), found) == [
        f"acme/third:1 {third.digest}",
        f"    code sha256:{'f' * 64}",
        "    Swapmeet 0.1.0",
        f"  from acme/second:1 {second.digest}",
        f"      data sha256:{'d' * 64}",
        f"    from acme/first:1 {first.digest}",
        "        run ftjob-1",
        f"      on the base tiny, weights sha256:{'a' * 64}",
    ]


def test_parents_that_are_withdrawn_missing_or_no_names(registry: Registry, push: Any, tmp_path: Path) -> None:
    first = push("acme/first")
    child = push("acme/child", first)
    for how, change in (("yanked", registry.yank), ("recalled", registry.recall), ("deleted", registry.delete)):
        change("acme/first:1", "Bad.")
        (found,) = registry.lineage(child)
        assert (found.problem, found.manifest is None) == (f"{how}: Bad.", False)
    (tmp_path / "registry" / "manifests" / "sha256" / first.digest[7:]).unlink()
    assert [(each.manifest, each.problem) for each in registry.lineage(child)] == [(None, "deleted: Bad.")]
    for parent, problem in (
        (f"acme/none@sha256:{'0' * 64}", "missing"),
        (f"acme/first@sha256:{'0' * 64}", "missing"),
        ("../../etc", "not the name of a version"),
        ("acme/other", "not the digest of a version"),
        ("acme/other:1", "not the digest of a version"),
        ("acme/other:latest", "not the digest of a version"),
    ):
        (found,) = registry.lineage(push("acme/other", parent))
        assert (found.ref, found.problem, found.version) == (parent, problem, None)


def test_a_long_lineage_is_followed_as_far_as_is_asked(registry: Registry, push: Any) -> None:
    version = push("acme/g0")
    chain = [version := push(f"acme/g{number}", version) for number in range(1, 4)]
    assert len(registry.lineage(chain[-1], most=3)) == 3
    *known, more = registry.lineage(chain[-1], most=2)
    assert [each.problem for each in known] == [None, None]
    assert (more.version, more.problem) == (None, "there are more than 2 generations, which are not followed")


def test_what_a_reader_may_not_see_looks_missing(registry: Registry, push: Any) -> None:
    private = push("acme/private", push("acme/older"))
    child = push("globex/child", private)
    missing = push("globex/orphan", f"acme/none@sha256:{'0' * 64}")
    for version in (child, missing):
        (found,) = registry.lineage(version, reader="globex")
        assert (found.version, found.manifest, found.problem) == (None, None, UNAVAILABLE)
    assert len(registry.lineage(child)) == len(registry.lineage(child, reader="acme")) == 2
    registry.share("acme/private", "shared", ["globex"])
    assert [each.version for each in registry.lineage(child, reader="globex")] == [private, None]


def test_the_digest_of_code_changes_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package" / "inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = code_digest("some_package")
    (package / "notes.txt").write_text("not code")
    assert code_digest("some_package") == before
    (package / "__init__.py").write_text("x = 1\n")
    assert code_digest("some_package") != before
    assert code_digest("swapmeet_registry", "some_package") == code_digest("some_package", "swapmeet_registry")
