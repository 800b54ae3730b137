"""The OCI layout keeps the specification's rules, and a stock tool reads and copies it."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet.cli import main
from swapmeet_registry import Corrupt, Fingerprint, Refused, Registry, SignatureInvalid, Trust, Version
from swapmeet_registry.copies.oci import export_oci
from swapmeet_registry.signing.keys import make_keys

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
REF_NAME = re.compile(r"[A-Za-z0-9]+(?:[-._:@/+][A-Za-z0-9]+|--[A-Za-z0-9]+)*")
TITLE = "org.opencontainers.image.title"


@pytest.fixture
def version(url: str, base: Fingerprint, make_adapter: Callable[..., Path], tmp_path: Path) -> Version:
    folder = make_adapter(tmp_path / "trained")
    for name in ("LICENSE", "NOTICE"):  # with the same bytes
        (folder / name).write_text("All rights reserved.\n")
    return Registry(url).push(folder, "acme/legal", base=base, license="Apache-2.0")


def described(folder: Path, descriptor: dict[str, Any]) -> bytes:
    """The blob of a descriptor, which keeps the rules of descriptors."""
    assert descriptor.keys() <= {"mediaType", "digest", "size", "annotations", "artifactType"}
    assert MEDIA_TYPE.fullmatch(descriptor["mediaType"])
    assert DIGEST.fullmatch(descriptor["digest"])
    data = (folder / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
    assert len(data) == descriptor["size"]
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == descriptor["digest"]
    assert all(isinstance(value, str) for value in descriptor.get("annotations", {}).values())
    return data


def manifest_of(folder: Path) -> dict[str, Any]:
    """A layout's one manifest, after every rule for layouts was checked."""
    assert json.loads((folder / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((folder / "index.json").read_text())
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    (listed,) = index["manifests"]
    assert listed["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert REF_NAME.fullmatch(listed["annotations"]["org.opencontainers.image.ref.name"])
    manifest: dict[str, Any] = json.loads(described(folder, listed))
    assert (manifest["schemaVersion"], manifest["mediaType"]) == (2, listed["mediaType"])
    assert MEDIA_TYPE.fullmatch(manifest["artifactType"])
    assert listed["artifactType"] == manifest["artifactType"]
    assert manifest["layers"]
    blobs = {each.name for each in (folder / "blobs" / "sha256").iterdir()}
    named = [listed, manifest["config"], *manifest["layers"]]
    assert blobs == {each["digest"].removeprefix("sha256:") for each in named}
    assert sorted(path.name for path in folder.iterdir()) == ["blobs", "index.json", "oci-layout"]
    for layer in manifest["layers"]:
        described(folder, layer)
    return manifest


def test_a_layout_keeps_the_rules(url: str, version: Version, base: Fingerprint, tmp_path: Path) -> None:
    registry, folder = Registry(url), tmp_path / "layout"
    done = export_oci(registry, "acme/legal", folder)
    manifest = manifest_of(folder)
    assert done.version == version
    layers = {layer["annotations"][TITLE]: layer for layer in manifest["layers"]}
    digests = {file.path: f"sha256:{file.sha256}" for file in registry.manifest(version).files}
    assert {name: layer["digest"] for name, layer in layers.items() if name != "swapmeet.json"} == digests
    assert {name: layer["mediaType"].split(".")[-3:-1] for name, layer in layers.items()} == {
        "LICENSE": ["doc", "v1"],
        "NOTICE": ["doc", "v1"],
        "README.md": ["doc", "v1"],
        "adapter_config.json": ["config", "v1"],
        "adapter_model.safetensors": ["weight", "v1"],
        "swapmeet.json": ["config", "v1"],
    }
    notes = manifest["annotations"]
    assert notes["dev.swapmeet.digest"] == version.digest
    assert notes["dev.swapmeet.base.weights"] == base.weights
    assert notes["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert notes["org.opencontainers.image.version"] == "1"
    config = json.loads(described(folder, manifest["config"]))
    assert config.keys() == {"descriptor", "config", "modelfs"}  # ModelPack's schema allows no other
    assert config["modelfs"] == {"type": "layers", "diffIds": [each["digest"] for each in manifest["layers"]]}
    assert config["descriptor"]["revision"] == version.digest

    # The layers by their titles are the folder that a pull makes.
    registry.pull("acme/legal", tmp_path / "pulled")
    pulled = {path.name: path.read_bytes() for path in (tmp_path / "pulled").iterdir()}
    assert {name: described(folder, layer) for name, layer in layers.items()} == pulled

    again = export_oci(registry, version.pinned, tmp_path / "again")
    assert again == done
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert all((folder / each).read_bytes() == (tmp_path / "again" / each).read_bytes() for each in files)


def test_what_is_refused(
    base: Fingerprint, make_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry((tmp_path / "registry").as_uri())
    version = registry.push(make_adapter(tmp_path / "trained"), "acme/legal", base=base)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(Refused, match="holds something already"):
        export_oci(registry, "acme/legal", tmp_path / "full")
    strict = Registry((tmp_path / "registry").as_uri(), Trust("require", make_keys(tmp_path / "pair")[1]))
    with pytest.raises(SignatureInvalid, match="there is none"):
        export_oci(strict, "acme/legal", tmp_path / "new")
    for file in registry.manifest(version).files:
        if file.path.endswith(".safetensors"):
            (tmp_path / "registry" / "blobs" / "sha256" / file.sha256).write_bytes(b"changed")
    with pytest.raises(Corrupt, match="adapter_model"):
        export_oci(registry, "acme/legal", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "full",
        "pair",
        "registry",
        "trained",
    ]  # and nothing half done


def test_the_command(
    base: Fingerprint,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = (tmp_path / "registry").as_uri()
    version = Registry(url).push(make_adapter(tmp_path / "trained"), "acme/legal", base=base, alias="prod")
    arguments = ["export-oci", "acme/legal:prod", tmp_path / "layout", "--registry", url, "--json"]
    monkeypatch.setattr(sys, "argv", ["swapmeet", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert (told["digest"], told["tag"]) == (version.digest, "1")
    assert told["manifest"] == f"sha256:{hashlib.sha256(json_of(tmp_path / 'layout')).hexdigest()}"


def json_of(folder: Path) -> bytes:
    return described(folder, json.loads((folder / "index.json").read_text())["manifests"][0])


def test_skopeo_copies_it(base: Fingerprint, make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    """SKOPEO names the program where it is not on the path."""
    skopeo = os.environ.get("SKOPEO") or shutil.which("skopeo")
    if not skopeo:
        pytest.skip("skopeo is not installed")
    registry = Registry((tmp_path / "registry").as_uri())
    version = registry.push(make_adapter(tmp_path / "trained"), "acme/legal", base=base)
    folder = tmp_path / "layout"
    done = export_oci(registry, "acme/legal", folder)

    def run(*arguments: object) -> str:
        command = [skopeo, "--insecure-policy", *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    raw = run("inspect", "--raw", f"oci:{folder}:1")
    assert f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}" == done.manifest
    run("copy", f"oci:{folder}:1", f"oci:{tmp_path / 'copy'}:3")
    copied = tmp_path / "copy" / "blobs" / "sha256"
    assert (copied / done.manifest.removeprefix("sha256:")).read_text() == raw
    assert {path.name for path in copied.iterdir()} == {path.name for path in (folder / "blobs" / "sha256").iterdir()}
    run("copy", f"oci:{folder}:1", f"dir:{tmp_path / 'plain'}")
    for file in registry.manifest(version).files:
        data = (tmp_path / "plain" / file.sha256).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file.sha256
