"""Publish, resolve, pull, tag, yank and verify, on a local folder, on S3 and on a Hub alike."""

import hashlib
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import (
    AdapterName,
    BaseMismatch,
    Conflict,
    Corrupt,
    Fingerprint,
    InvalidName,
    NotFound,
    Provenance,
    Quantization,
    Refused,
    Registry,
    StoreDenied,
    open_store,
)
from swapmeet_registry.admission.lora_config import parse
from swapmeet_registry.head import Withdrawal
from swapmeet_registry.store_backend import StoreBackend

NAME = "acme/legal"
everywhere = pytest.mark.parametrize("url", ["local", "s3", "other-s3", "hub"], indirect=True)
"""Also on the second S3 server."""


@pytest.fixture
def registry(url: str) -> Registry:
    return Registry(url)


@pytest.fixture
def folder(make_adapter: Callable[..., Path], tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@everywhere
def test_a_plain_peft_folder_goes_in_and_comes_out(
    registry: Registry, folder: Path, base: Fingerprint, tmp_path: Path
) -> None:
    version = registry.push(folder, NAME, base=base, alias="prod", license="MIT", tags=["law", "german"])
    assert (str(version), version.yanked) == ("acme/legal:1", False)
    assert registry.names() == [NAME]
    for ref in (NAME, f"{NAME}:latest", f"{NAME}:1", f"{NAME}:prod", version.pinned):
        assert registry.resolve(ref) == version
    assert registry.verify(NAME) == version
    assert registry.pull(f"{NAME}:prod", tmp_path / "deep" / "pulled", base=base) == version
    pulled = contents(tmp_path / "deep" / "pulled")
    provenance = Provenance.read(tmp_path / "deep" / "pulled")
    assert provenance == Provenance(base=base, license="MIT", tags=("law", "german"))
    sent = contents(folder)
    assert parse(pulled.pop("adapter_config.json")).r == parse(sent.pop("adapter_config.json")).r == 4
    del pulled["swapmeet.json"]
    assert pulled == sent


def test_the_manifest_carries_what_the_training_run_knew(
    registry: Registry, folder: Path, base: Fingerprint, tmp_path: Path
) -> None:
    known = Provenance(
        base=base,
        training={"epochs": 3, "learning_rate": 2e-4},
        dataset="sha256:" + "d" * 64,
        metrics={"eval_loss": 0.125},
        packages={"peft": "0.21.2"},
        license="MIT",
        tags=("law",),
    )
    known.write(folder)
    version = registry.push(folder, NAME, base=base)
    manifest = registry.manifest(version)
    assert manifest.digest == version.digest
    assert manifest.provenance() == known
    assert (manifest.adapter, manifest.created_at, manifest.lora.rank) == (NAME, version.created_at, 4)
    registry.pull(NAME, tmp_path / "pulled")
    assert {file.path: file.sha256 for file in manifest.files} == {
        name: hashlib.sha256(data).hexdigest()
        for name, data in contents(tmp_path / "pulled").items()
        if name != "swapmeet.json"
    }
    again = registry.push(tmp_path / "pulled", "other/copy", base=base, license="Apache-2.0")
    assert registry.manifest(again).files == manifest.files, "what was pulled is canonical"
    assert registry.manifest(again).provenance() == known.model_copy(update={"license": "Apache-2.0"})


@everywhere
def test_versions_count_up_and_keep_their_bytes(
    registry: Registry, make_adapter: Any, base: Fingerprint, tmp_path: Path
) -> None:
    folders = [make_adapter(tmp_path / f"adapter-{seed}", seed) for seed in range(3)]
    versions = [registry.push(folder, NAME, base=base) for folder in folders]
    assert [version.version for version in versions] == [1, 2, 3]
    assert len({version.digest for version in versions}) == 3
    assert registry.resolve(NAME) == versions[2]
    for version, folder in zip(versions, folders, strict=True):
        registry.pull(version, tmp_path / version.digest.removeprefix("sha256:"))
        pulled = contents(tmp_path / version.digest.removeprefix("sha256:"))
        assert pulled["adapter_model.safetensors"] == contents(folder)["adapter_model.safetensors"]


def test_the_same_folder_pushed_twice_makes_two_versions(registry: Registry, folder: Path, base: Fingerprint) -> None:
    first, second = registry.push(folder, NAME, base=base), registry.push(folder, NAME, base=base)
    assert (first.version, second.version) == (1, 2)
    assert first.digest != second.digest
    assert registry.resolve(first.pinned) == first


def test_a_wrong_base_is_refused_with_both_digests(
    registry: Registry, folder: Path, base: Fingerprint, other_base: Fingerprint, tmp_path: Path
) -> None:
    Provenance(base=base).write(folder)
    for attempt in (
        lambda: registry.push(folder, NAME, base=other_base),
        lambda: (registry.push(folder, NAME, base=base), registry.pull(NAME, tmp_path / "pulled", base=other_base)),
    ):
        with pytest.raises(BaseMismatch) as caught:
            attempt()
        assert base.weights in str(caught.value)
        assert other_base.weights in str(caught.value)
        assert not (tmp_path / "pulled").exists()
    assert [version.version for version in registry.show(NAME).versions] == [1]


def test_a_wrong_base_is_refused_before_a_blob_is_read(
    registry: Registry, folder: Path, base: Fingerprint, other_base: Fingerprint, tmp_path: Path, tampering: Any
) -> None:
    tampering.file(registry.push(folder, NAME, base=base), "adapter_model.safetensors", None)
    with pytest.raises(BaseMismatch):
        registry.pull(NAME, tmp_path / "pulled", base=other_base)


def test_other_quantization_is_a_warning(
    registry: Registry, folder: Path, base: Fingerprint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exact = base.model_copy(update={"quantization": Quantization(compute_dtype="float32")})
    Provenance(base=exact).write(folder)
    with caplog.at_level(logging.WARNING):
        version = registry.push(folder, NAME, base=base)
    assert "bfloat16" in caplog.text
    assert "float32" in caplog.text
    assert registry.manifest(version).base == exact  # what it was trained on, not what it is meant for


@everywhere
def test_aliases_move_by_compare_and_swap(registry: Registry, folder: Path, base: Fingerprint) -> None:
    first, second = (registry.push(folder, NAME, base=base) for _ in range(2))
    assert registry.tag(NAME, "prod", "1", expect=0) == first
    assert registry.tag(NAME, "prod", f"{NAME}:2", expect=1) == second
    with pytest.raises(Conflict, match=r"points to version 2, not 1"):
        registry.tag(NAME, "prod", "1", expect=1)
    assert registry.tag(NAME, "old", first.digest) == first
    assert registry.tag(NAME, "older", "old") == first
    listing = registry.show(NAME)
    assert listing.aliases == {"prod": 2, "old": 1, "older": 1, "latest": 2}
    assert [(move.alias, move.version) for move in listing.history] == [
        ("prod", 1),
        ("prod", 2),
        ("old", 1),
        ("older", 1),
    ]


@everywhere
def test_a_yanked_version_answers_to_its_digest_only(
    registry: Registry, folder: Path, base: Fingerprint, tmp_path: Path
) -> None:
    first = registry.push(folder, NAME, base=base)
    second = registry.push(folder, NAME, base=base, alias="prod")
    yanked = registry.yank(f"{NAME}:prod", "leaked names")
    assert (yanked.version, yanked.yanked, yanked.yank_reason) == (2, True, "leaked names")
    assert registry.resolve(NAME) == first
    for ref in (f"{NAME}:2", f"{NAME}:prod"):
        with pytest.raises(NotFound, match=r"acme/legal:2 was yanked: leaked names\."):
            registry.pull(ref, tmp_path / "pulled")
    with pytest.raises(NotFound, match=r"was yanked"):
        registry.tag(NAME, "test", "2")
    assert registry.pull(second.pinned, tmp_path / "pulled") == yanked
    assert registry.push(folder, NAME, base=base).version == 3
    assert registry.yank(f"{NAME}:prod", "leaked names") == yanked, "once more changes nothing"
    with pytest.raises(Refused, match=r"needs a reason"):
        registry.yank(f"{NAME}:1", " ")
    for ref in (NAME, f"{NAME}:latest"):
        with pytest.raises(Refused, match=r"Name its number"):
            registry.yank(ref, "leaked names")
    assert [version.yanked for version in registry.show(NAME).versions] == [False, True, False]


def test_unknown_names_and_versions(registry: Registry, folder: Path, base: Fingerprint, tmp_path: Path) -> None:
    assert registry.names() == []
    version = registry.push(folder, NAME, base=base)
    registry.push(folder, "acme/other", base=base)
    for ref in (
        "acme/none",
        f"{NAME}:2",
        f"{NAME}:prod",
        f"acme/other@{version.digest}",
        f"acme/none@{version.digest}",
    ):
        with pytest.raises(NotFound, match=r"^There is no "):
            registry.pull(ref, tmp_path / "pulled")
    for attempt in (
        lambda: registry.show("acme/none"),
        lambda: registry.tag("acme/none", "prod", "1"),
        lambda: registry.yank("acme/none:1", "why"),
    ):
        with pytest.raises(NotFound, match=r"There is no adapter acme/none in "):
            attempt()
    assert registry.names() == [NAME, "acme/other"]


def test_misspelt_names_are_refused_before_anything_is_written(
    registry: Registry, folder: Path, base: Fingerprint, tampering: Any
) -> None:
    for name, alias in (("../x", None), ("acme", None), (NAME, "latest"), (NAME, "7"), (NAME, "Prod")):
        with pytest.raises(InvalidName):
            registry.push(folder, name, base=base, alias=alias)
    assert tampering.empty


def test_an_unsound_folder_writes_nothing(
    registry: Registry, make_adapter: Any, base: Fingerprint, tmp_path: Path, tampering: Any
) -> None:
    with pytest.raises(Refused, match=r"r: input should be greater"):
        registry.push(make_adapter(tmp_path / "adapter", r=0), NAME, base=base)
    assert tampering.empty


@pytest.mark.parametrize("tags", [[""], ["x" * 65]])
def test_unsound_tags_are_refused(registry: Registry, folder: Path, base: Fingerprint, tags: list[str]) -> None:
    with pytest.raises(Refused, match=r"tags\.0"):
        registry.push(folder, NAME, base=base, tags=tags)


def test_a_file_that_changes_during_the_push_is_refused(
    registry: Registry, folder: Path, base: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = folder / "adapter_model.safetensors"

    def change(step: str) -> None:
        if step == "push.checked":
            weights.write_bytes(weights.read_bytes()[:-1] + b"\1")

    monkeypatch.setattr("swapmeet_registry.fault.hook", change)
    with pytest.raises(Refused, match=r"adapter_model\.safetensors changed while it was published"):
        registry.push(folder, NAME, base=base)
    assert registry.names() == []


@pytest.mark.parametrize("damage", ["flip", "longer", "shorter", "gone"])
def test_a_tampered_file_is_found_and_nothing_is_left(
    registry: Registry, folder: Path, base: Fingerprint, tmp_path: Path, damage: str, tampering: Any
) -> None:
    version = registry.push(folder, NAME, base=base)
    data = (folder / "adapter_model.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    changed = {"flip": data[:-1] + bytes([data[-1] ^ 1]), "longer": data + b"\0", "shorter": data[:-1]}.get(damage)
    tampering.file(version, "adapter_model.safetensors", changed)
    found = hashlib.sha256(changed).hexdigest() if changed else "nothing"
    for attempt in (
        lambda: registry.verify(NAME),
        lambda: registry.verify(NAME, read=False),
        lambda: registry.pull(NAME, tmp_path / "pulled"),
    ):
        with pytest.raises(Corrupt, match=rf"adapter_model\.safetensors of acme/legal:1 .*{digest}.*{found}"):
            attempt()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("registry", "hf")) == ["adapter"]
    again = registry.push(folder, NAME, base=base)  # the way out that the message names
    assert registry.verify(NAME) == again
    if isinstance(registry.backend, StoreBackend):  # where equal files are one, the old version is mended too
        assert registry.verify(version.pinned) == version


def test_a_tampered_manifest_is_found(
    registry: Registry, folder: Path, base: Fingerprint, tmp_path: Path, tampering: Any
) -> None:
    version = registry.push(folder, NAME, base=base)
    changed = registry.manifest(version).encode().replace(b'"alpha":8.0', b'"alpha":9.0')
    tampering.manifest(version, changed)
    with pytest.raises(
        Corrupt, match=rf"manifest of acme/legal:1 .*{version.digest}.*{hashlib.sha256(changed).hexdigest()}"
    ):
        registry.pull(NAME, tmp_path / "pulled")
    tampering.manifest(version, None)
    with pytest.raises(Corrupt, match=r"holds nothing"):
        registry.verify(NAME)


@pytest.mark.parametrize("data", [b"", b'{"schema": "swapmeet.head/1"', b'{"schema": "swapmeet.head/2"}'])
def test_a_damaged_head_is_said_so(
    registry: Registry, folder: Path, base: Fingerprint, data: bytes, tampering: Any
) -> None:
    registry.push(folder, NAME, base=base)
    tampering.head(NAME, data)
    for attempt in (lambda: registry.resolve(NAME), lambda: registry.push(folder, NAME, base=base)):
        with pytest.raises(Corrupt, match=r"^heads/acme/legal\.json in "):
            attempt()


def test_a_head_under_another_name_is_found(
    registry: Registry, folder: Path, base: Fingerprint, tampering: Any
) -> None:
    registry.push(folder, NAME, base=base)
    stored = registry.backend.head(AdapterName.parse(NAME))
    assert stored is not None
    tampering.head("acme/stolen", stored.data)
    with pytest.raises(Corrupt, match=r"is the head of acme/legal"):
        registry.resolve("acme/stolen")


def test_pulling_twice_does_nothing_and_into_something_else_is_refused(
    registry: Registry, folder: Path, base: Fingerprint, tmp_path: Path
) -> None:
    registry.push(folder, NAME, base=base)
    target = tmp_path / "pulled"
    target.mkdir()
    registry.pull(NAME, target)
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    registry.pull(NAME, target)
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before
    (target / "README.md").write_text("mine")
    with pytest.raises(Refused, match=r"pulled holds something other than acme/legal@sha256:.* Name a new folder"):
        registry.pull(NAME, target)
    with pytest.raises(Refused, match=r"holds something other"):
        registry.pull(NAME, folder / "README.md")
    assert (target / "README.md").read_text() == "mine"


def test_a_target_that_can_not_be_made_is_said_so(
    registry: Registry, folder: Path, base: Fingerprint, tmp_path: Path
) -> None:
    registry.push(folder, NAME, base=base)
    with pytest.raises(StoreDenied, match=r"^Can not write /sys/swapmeet/pulled: "):
        registry.pull(NAME, Path("/sys/swapmeet/pulled"))


def test_a_registry_travels_between_processes(registry: Registry, folder: Path, base: Fingerprint) -> None:
    version = registry.push(folder, NAME, base=base)
    assert pickle.loads(pickle.dumps(registry)).resolve(NAME) == version


def test_what_is_stored_is_as_documented(store_url: str, folder: Path, base: Fingerprint) -> None:
    store = open_store(store_url)
    version = Registry(store).push(folder, NAME, base=base)
    keys = list(store.list(""))
    assert [key for key in keys if not key.startswith("blobs/sha256/")] == [
        f"heads/{NAME}.json",
        f"manifests/sha256/{version.digest.removeprefix('sha256:')}",
        f"reports/sha256/{version.digest.removeprefix('sha256:')}.json",
    ]
    assert len(keys) == 6
    stored = store.get(f"heads/{NAME}.json")
    assert stored is not None
    head = json.loads(stored.data)
    assert (head["schema"], head["versions"][0]["digest"]) == ("swapmeet.head/1", version.digest)


def test_moved_registries_still_work(make_adapter: Any, base: Fingerprint, tmp_path: Path) -> None:
    version = Registry((tmp_path / "a").as_uri()).push(make_adapter(tmp_path / "adapter"), NAME, base=base)
    shutil.copytree(tmp_path / "a", tmp_path / "b c")
    assert Registry((tmp_path / "b c").as_uri()).verify(NAME) == version


@everywhere
def test_a_run_is_published_once_however_often_it_is_tried(registry: Registry, folder: Path, base: Fingerprint) -> None:
    first = registry.push(folder, NAME, base=base, run="ftjob-1", alias="prod")
    assert registry.manifest(first).run == "ftjob-1"
    other = registry.push(folder, NAME, base=base)
    registry.tag(NAME, "prod", str(other))
    assert registry.push(folder, NAME, base=base, run="ftjob-1", alias="prod") == first
    assert registry.resolve(f"{NAME}:prod") == other, "the second publish moved the alias back"
    assert registry.push(folder, "acme/other", base=base, run="ftjob-1").version == 1
    assert registry.push(folder, NAME, base=base, run="ftjob-2").version == 3
    registry.yank(str(first), "wrong")
    again = registry.push(folder, NAME, base=base, run="ftjob-1")
    assert (again.version, again.yanked) == (1, True), "what was withdrawn does not come back by itself"


def test_a_run_that_is_published_at_the_same_moment_is_one_version(
    registry: Registry, folder: Path, base: Fingerprint
) -> None:
    with ThreadPoolExecutor(6) as pool:
        pushes = [pool.submit(registry.push, folder, NAME, base=base, run="ftjob-1") for _ in range(6)]
    assert {push.result().version for push in pushes} == {1}
    assert len(registry.show(NAME).versions) == 1


@pytest.mark.parametrize("others", ["yanked", "recalled", "deleted"])
def test_who_withdrew_first_is_told_so_also_where_the_answer_was_lost(
    tmp_path: Path, folder: Path, base: Fingerprint, monkeypatch: pytest.MonkeyPatch, others: Withdrawal
) -> None:
    """And another changed the head, or deleted another version of it, before it was looked at again."""
    registry, another = (Registry((tmp_path / "registry").as_uri()) for _ in range(2))
    version, beside = (registry.push(folder, "acme/legal", base=base) for _ in range(2))
    swap, calls = registry.backend.swap, list[int]()

    def lost(*arguments: Any) -> str:
        tag = swap(*arguments)
        calls.append(1)
        if len(calls) == 1:
            another.tag("acme/legal", "prod", "2")
            another.withdraw(str(beside), others, "the same")
            raise Conflict("the answer was lost, and another wrote")
        return tag

    monkeypatch.setattr(registry.backend, "swap", lost)
    assert registry.withdraw(str(version), "deleted", "the same").first
    assert len(calls) == 1, "it was done"
    assert not registry.withdraw(str(version), "deleted", "the same").first
    assert registry.withdraw(str(version), "recalled", "the same").first, "in this way it was not withdrawn before"


def test_of_many_who_delete_a_version_one_is_told_that_it_was_the_first(
    tmp_path: Path, folder: Path, base: Fingerprint
) -> None:
    registry = Registry((tmp_path / "registry").as_uri())
    version = registry.push(folder, "acme/legal", base=base)
    assert registry.withdraw(str(version), "yanked", "old").first
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: registry.withdraw(str(version), "deleted", "the same").first, range(16)))
    assert sorted(told) == [False] * 15 + [True]


@pytest.mark.parametrize("reason", ["x" * 2001, "\x1b[31mred", "a\0b", "\ud800", "\u202e"])
def test_a_reason_that_harms_its_readers_is_refused(
    tmp_path: Path, folder: Path, base: Fingerprint, reason: str
) -> None:
    registry = Registry((tmp_path / "registry").as_uri())
    registry.push(folder, "acme/legal", base=base)
    for withdraw in (registry.yank, registry.recall, registry.delete):
        with pytest.raises(Refused, match=r"at most 2000 letters, and all can be printed"):
            withdraw("acme/legal:1", reason)
    assert registry.yank("acme/legal:1", " two\nlines ").yank_reason == "two lines"


def test_a_name_is_not_shared_with_a_crowd(tmp_path: Path, folder: Path, base: Fingerprint) -> None:
    registry = Registry((tmp_path / "registry").as_uri())
    registry.push(folder, "acme/legal", base=base)
    with pytest.raises(Refused, match=r"at most 1000 tenants"):
        registry.share("acme/legal", "shared", [f"t{number}" for number in range(1001)])


def test_nobody_loses_the_folder_that_he_is_in(
    tmp_path: Path, folder: Path, base: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry((tmp_path / "registry").as_uri())
    registry.push(folder, "acme/legal", base=base)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(Refused, match=r"the one that you are in\. Name a new folder in it"):
        registry.pull("acme/legal", Path())
    registry.pull("acme/legal", Path("legal"))
    assert Path("legal", "adapter_config.json").is_file()
