import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import AdapterName, Fingerprint, Provenance, Registry, canonical, open_store
from swapmeet_registry.bases.catalogue import CATALOGUE
from swapmeet_registry.bases.license import stated_license
from swapmeet_registry.head import Head
from swapmeet_registry.life import now
from swapmeet_registry.origin.licences import RESTRICTIONS, Licences, concerns_of, normalized, spdx
from swapmeet_registry.store_backend import manifest_key
from swapmeet_registry.stores.hub_card import LICENSES


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("apache-2.0", "Apache-2.0"),
        (" Apache License 2.0\n", "Apache-2.0"),
        ("mit", "MIT"),
        ("GPL-3.0", "GPL-3.0-only"),
        ("gpl-3.0+", "GPL-3.0-or-later"),
        ("cc-by-nc-4.0", "CC-BY-NC-4.0"),
        ("Llama 3.1 Community", "llama3.1"),
        ("odbl", "ODbL-1.0"),
        ("Our own", "Our own"),
        ("", ""),
    ],
)
def test_names(given: str, known: str) -> None:
    assert normalized(given) == normalized(known) == known
    assert spdx(given) == (known if known in RESTRICTIONS and not known.startswith("llama") else None)


def test_nearly_all_licences_of_hubs_are_known() -> None:
    unknown = {name for name in LICENSES if normalized(name) not in RESTRICTIONS}
    assert unknown == {"unknown", "other", "bsd", "c-uda", "cc", "gpl", "lgpl", "gfdl", "lgpl-lr"}
    assert all(normalized(base.license) in RESTRICTIONS for base in CATALOGUE.values())


@pytest.mark.parametrize(
    ("own", "base", "dataset", "says"),
    [
        ("mit", "apache-2.0", "cc-by-4.0", []),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", None, []),
        (None, None, None, []),
        (None, "llama3.1", None, []),
        ("Apache-2.0", "llama3.1", None, ["The base is under llama3.1, which forbids some uses"]),
        ("mit", "cc-by-nc-sa-4.0", None, ["which forbids commercial use, asks for derivatives to be under the same"]),
        (
            "cc-by-nc-4.0",
            "cc-by-nc-nd-4.0",
            None,
            ["which forbids derivatives to be shared; the adapter's CC-BY-NC-4.0"],
        ),
        (None, "apache-2.0", "CC-BY-NC-4.0", ["The training data is under CC-BY-NC-4.0"]),
        (None, None, "gpl-3.0", ["the adapter states no licence"]),
        ("Ours", "gemma", "Theirs", ["The base is under gemma", "under Theirs, which is not known here"]),
        ("Theirs", "Theirs", None, []),
    ],
)
def test_concerns(own: str | None, base: str | None, dataset: str | None, says: list[str]) -> None:
    found = Licences(own, base, dataset).concerns()
    assert len(found) == len(says)
    assert all(part in each for part, each in zip(says, found, strict=True))


def test_a_publish_inherits_and_warns(
    make_adapter: Callable[..., Path], base: Fingerprint, tmp_path: Path, caplog: Any
) -> None:
    registry, folder = Registry(tmp_path.as_uri() + "/registry"), make_adapter(tmp_path / "adapter")
    with caplog.at_level(logging.WARNING):
        version = registry.push(folder, "acme/legal", base=base, base_license="llama3.1")
    manifest = registry.manifest(version)
    assert (manifest.license, manifest.base_license, caplog.messages) == ("llama3.1", "llama3.1", [])
    with caplog.at_level(logging.WARNING):
        given = registry.push(folder, "acme/legal", base=base, base_license="llama3.1", license="mit")
    assert registry.manifest(given).license == "mit"
    assert "acme/legal: The base is under llama3.1, which forbids some uses" in caplog.text
    registry.pull(given, tmp_path / "pulled")
    caplog.clear()
    again = registry.push(tmp_path / "pulled", "acme/copy", base=base, license="llama3.1")
    assert registry.manifest(again).base_license == "llama3.1"
    assert caplog.messages == []


def test_a_publish_is_warned_of_what_its_parent_restricts(
    make_adapter: Callable[..., Path], base: Fingerprint, tmp_path: Path, caplog: Any
) -> None:
    registry, folder = Registry(tmp_path.as_uri() + "/registry"), make_adapter(tmp_path / "adapter")
    for name in ("acme/strict", "globex/strict"):
        parent = registry.push(folder, name, base=base, license="cc-by-nc-4.0")
        Provenance(base=base, parent=parent.pinned).write(folder)
        caplog.clear()
        child = registry.push(folder, "acme/child", base=base, license="mit")
        (folder / Provenance.FILE).unlink()
        warned = "The adapter that it goes on from is under CC-BY-NC-4.0, which forbids commercial use" in caplog.text
        assert warned == (name == "acme/strict"), "of others' private adapters nothing is told"
    registry.share("globex/strict", "public")
    (found,) = registry.lineage(child, "acme")
    assert len(concerns_of(registry.manifest(child), found.manifest)) == 1


def test_a_parent_that_another_release_published_is_no_error(
    make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint
) -> None:
    store, data = open_store((tmp_path / "registry").as_uri()), b'{"schema":"swapmeet.manifest/9"}'
    registry, digest = Registry(store), canonical.digest(data)
    store.put(manifest_key(digest), data, canonical.sha256(data))
    name = AdapterName.parse("acme/new")
    registry.backend.swap(name, Head(adapter=str(name)).publish(digest, now(), "nonce"), None)
    folder = make_adapter(tmp_path / "adapter")
    Provenance.build(base=base, parent=f"{name}@{digest}").write(folder)
    (parent,) = registry.lineage(registry.push(folder, "acme/child", base=base))
    assert (str(parent.version), parent.problem) == ("acme/new:1", "its manifest is one of another Swapmeet's")


@pytest.mark.parametrize(
    ("card", "stated"),
    [
        ("---\nlicense: llama3.1\ntags: [x]\n---\n# A base", "llama3.1"),
        ("---\nlicense: other\nlicense_name: ours\n---\n", "ours"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("# license: mit\n", None),
        (None, None),
    ],
)
def test_what_a_base_states(card: str | None, stated: str | None, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert stated_license(f"folder:{tmp_path}", tmp_path) == stated
    assert stated_license("catalogue:smollm2-135m", tmp_path) == "apache-2.0"
    assert stated_license("catalogue:gone", tmp_path) == stated
