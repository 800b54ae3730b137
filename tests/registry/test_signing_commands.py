"""`swapmeet signing-key|sign|verify|lineage|bom`, on a local registry."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet.cli import main
from swapmeet_registry import Fingerprint, Provenance, Registry, Version

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    for name in ("URL", "API_KEY", "CONFIG", "SIGNATURES", "TRUSTED_KEYS"):
        monkeypatch.delenv(f"SWAPMEET_{name}", raising=False)
    monkeypatch.setenv("SWAPMEET_HOME", str(tmp_path / "home"))

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["swapmeet", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def version(make_adapter: Callable[..., Path], base: Fingerprint, tmp_path: Path) -> Version:
    folder, registry = make_adapter(tmp_path / "adapter"), Registry((tmp_path / "home" / "registry").as_uri())
    first = registry.push(folder, "acme/older", base=base)
    known = Provenance(base=base, parent=first.pinned, license="mit", base_license="gemma", packages={"swapmeet": "1"})
    known.write(folder)
    return registry.push(folder, "acme/legal", base=base)


def test_a_version_is_signed_and_verified(
    run: Run, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run("signing-key", tmp_path / "keys", "--json")
    pair: Any = json.loads(out)
    assert code == 0
    assert run("verify", "acme/legal")[1].splitlines() == [
        f"acme/legal:1 {version.digest}: all bytes are as published", "no signatures"
    ]  # fmt: skip
    code, out, _ = run("sign", "acme/legal:1", "--key", pair["private"], "--json")
    assert (code, json.loads(out)["key"], json.loads(out)["digest"]) == (0, pair["key"], version.digest)
    assert "not among the trusted ones" in run("verify", "acme/legal")[1]
    code, out, _ = run("verify", "acme/legal", "--key", pair["public"], "--save", tmp_path / "saved", "--json")
    (found,) = json.loads(out)["signatures"]
    assert (found["good"], found["signer"], found["named"]) == (True, "signing-key.pub.pem", True)
    saved = tmp_path / "saved" / f"{pair['key']}.json"
    assert run("sign", "acme/legal", "--key", pair["public"], "--add", saved)[0] == 0
    code, _, err = run("sign", "acme/older", "--key", pair["public"], "--add", saved)
    assert (code, "does not fit acme/older:1" in err) == (1, True)

    monkeypatch.setenv("SWAPMEET_SIGNATURES", "require")
    code, _, err = run("pull", "acme/legal", tmp_path / "pulled")
    assert (code, "without trusted_keys" in err) == (1, True)
    monkeypatch.setenv("SWAPMEET_TRUSTED_KEYS", str(tmp_path / "keys"))
    code, _, err = run("pull", "acme/legal", tmp_path / "pulled")
    assert (code, "holds a private key" in err) == (1, True)
    Path(pair["private"]).unlink()
    assert run("pull", "acme/legal", tmp_path / "pulled")[0] == 0
    assert run("verify", "acme/legal")[1].splitlines()[1] == "good signature by signing-key.pub.pem"
    code, _, err = run("pull", "acme/older", tmp_path / "older")
    assert (code, "bears no good signature" in err, (tmp_path / "older").exists()) == (1, True, False)
    code, _, err = run("verify", "acme/older")
    assert (code, "swapmeet sign acme/older@sha256:" in err) == (1, True)


def test_mistakes_are_one_sentence(run: Run, version: Version, tmp_path: Path) -> None:
    run("signing-key", tmp_path)
    for arguments, words in (
        (("signing-key", tmp_path), "is there already"),
        (("signing-key", "/proc/nothing"), "can not be written"),
        (("sign", "acme/legal", "--key", tmp_path / "none.pem"), "can not be read"),
        (("sign", "acme/legal", "--key", tmp_path / "signing-key.pub.pem"), "no private key"),
        (("sign", "acme/none", "--key", tmp_path / "signing-key.pem"), "There is no adapter acme/none"),
        (("sign", "acme/legal", "--key", tmp_path / "signing-key.pub.pem", "--add", tmp_path), "Can not read"),
        (("verify", "acme/legal", "--key", tmp_path / "signing-key.pem"), "private key"),
        (("bom", "acme/legal", "--output", tmp_path), "Can not write"),
    ):
        code, out, err = run(*arguments)
        assert (code, out, words in err, len(err.splitlines())) == (1, "", True, 1), err


def test_lineage_and_bill(run: Run, version: Version, tmp_path: Path) -> None:
    code, out, _ = run("lineage", "acme/legal")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["acme/legal:1", "Swapmeet", "from", "on", "The"]
    assert "The base is under gemma" in out
    code, out, _ = run("lineage", "acme/legal:1", "--json")
    told = json.loads(out)
    assert (told["digest"], told["parents"][0]["version"], len(told["licence_concerns"])) == (version.digest, 1, 1)
    assert run("bom", "acme/legal", "--output", tmp_path / "bom.json")[0] == 0
    assert len(run("bom", "acme/legal", "--json")[1].splitlines()) == 1
    code, out, _ = run("bom", "acme/legal")
    assert json.loads(out) == json.loads((tmp_path / "bom.json").read_text())
    assert json.loads(out)["specVersion"] == "1.6"
