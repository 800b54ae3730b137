"""The commands for the life of a version, straight on a store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Registry
from swapmeet_registry.life import now
from swapmeet_registry.recall_documents import Obeyed, ServerWord

NAME = "acme/legal"


@pytest.fixture
def registry(tmp_path: Path, replica_settings: Any, tiny_llama: Path, random_lora: Callable[..., Path]) -> Registry:
    """Three versions, prod on the first."""
    settings = replica_settings(tmp_path)
    registry = Registry(settings.registry)
    folder = random_lora(tiny_llama, tmp_path / "adapter", rank=2)
    for alias in ("prod", None, None):
        registry.push(folder, NAME, base=settings.fingerprint, alias=alias)
    return registry


@pytest.fixture
def run(command_line: Callable[..., Any], registry: Registry) -> Callable[..., Any]:
    def call(command: str, *arguments: object) -> Any:
        return command_line(command, *arguments, "--registry", registry.backend.url)

    return call


def test_withdrawals_show_with_their_reasons(run: Callable[..., Any], registry: Registry) -> None:
    assert run("recall", f"{NAME}:1", "--reason", "leaks").out == f"{NAME}:1 is recalled: leaks\n"
    assert "can be printed" in run("delete", f"{NAME}:2", "--reason", "wrong\x1b[2J").err
    assert run("delete", f"{NAME}:2", "--reason", "wrong").out == f"{NAME}:2 is deleted: wrong\n"
    shown = run("show", NAME).out
    assert "prod, recalled: leaks" in shown
    assert "deleted: wrong" in shown
    assert run("delete", NAME, "--reason", "all").code == 1
    assert run("delete", f"{NAME}:3", "--all", "--reason", "all").code == 1
    assert registry.resolve(NAME).version == 3
    done = json.loads(run("delete", NAME, "--all", "--reason", "closed", "--json").out)
    assert [each["version"] for each in done["versions"]] == [1, 3]
    assert "no version" in run("delete", NAME, "--all", "--reason", "closed").out
    refused = run("pull", f"{NAME}:3", "somewhere")
    assert (refused.code, "closed" in refused.err) == (1, True)
    assert run("recall", NAME, "--reason", "x").code == 1
    assert run("recall", f"{NAME}:1", "--reason", " ").code == 1


def test_aliases_go_back_and_their_history_stays(run: Callable[..., Any]) -> None:
    run("tag", f"{NAME}:2", "prod")
    assert run("undo", NAME, "prod").out == f"{NAME}:prod is version 1 again\n"
    run("tag", f"{NAME}:3", "test")
    assert run("untag", NAME, "prod", "--expect", "2").code == 1
    assert run("untag", NAME, "prod", "--expect", "1").out == f"{NAME}:prod is removed\n"
    assert run("undo", NAME, "test").out == f"{NAME}:test is removed, as it was new\n"
    moves = json.loads(run("history", NAME, "--json").out)["history"]
    assert [(move["alias"], move["version"]) for move in moves] == [
        ("prod", 1), ("prod", 2), ("prod", 1), ("test", 3), ("prod", 0), ("test", 0),
    ]  # fmt: skip
    assert all(move["by"] for move in moves[1:])
    assert len(run("history", NAME).out.splitlines()) == 6
    assert run("undo", NAME, "never").code == 1


def test_sharing(run: Callable[..., Any], registry: Registry) -> None:
    assert run("share", NAME, "shared", "--with", "zeta", "--with", "beta").out == f"{NAME} is shared with beta, zeta\n"
    assert run("show", NAME).out.endswith("is shared with beta, zeta\n")
    assert run("share", NAME, "shared").code == 1
    assert run("share", NAME, "public", "--with", "zeta").code == 1
    assert run("share", NAME, "public").out == f"{NAME} is public\n"
    assert run("share", NAME, "private").out == f"{NAME} is private\n"
    assert run("share", NAME, "secret").code == 2
    assert registry.show(NAME).visibility == "private"


def test_a_recall_waits_for_servers(
    run: Callable[..., Any], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swapmeet.cli.withdrawal.WAIT_SECONDS", 0.1)
    monkeypatch.setattr("swapmeet.cli.withdrawal.FIRST_WORD_SECONDS", 0.0)
    assert "No server holds" in run("recall", f"{NAME}:1", "--reason", "leaks", "--wait").out
    idle = ServerWord(server="idle", host="there", process=7, base="tiny", since=now(), notice=1)
    registry.recalls.say(idle)
    late = run("recall", f"{NAME}:2", "--reason", "leaks", "--wait")
    assert (late.code, "not yet" in late.out, "1 of 1 servers" in late.err) == (1, True, True)
    had = Obeyed(digest=registry.find(f"{NAME}:2").digest, at=now(), held=True, ended=3, tenants=("acme", "zeta"))
    registry.recalls.say(idle.model_copy(update={"notice": 2, "obeyed": (had,)}))
    assert run("recall", f"{NAME}:2", "--reason", "leaks", "--wait").code == 0
    (server,) = json.loads(run("reach", f"{NAME}:2", "--json").out)["servers"]
    assert (server["server"], server["held"], server["ended"], server["tenants"]) == ("idle", True, 3, ["acme", "zeta"])
    assert "acme, zeta" in run("reach", f"{NAME}:2").out


def test_on_a_hub_nobody_is_waited_for(command_line: Callable[..., Any]) -> None:
    done = command_line("recall", f"{NAME}:1", "--reason", "x", "--wait", "--registry", "hf://lab-1")
    assert (done.code, "leave no word" in done.err) == (1, True)


def test_a_registry_is_checked_and_taken_along(
    run: Callable[..., Any], command_line: Callable[..., Any], registry: Registry, tmp_path: Path
) -> None:
    here, there = registry.backend.url, (tmp_path / "there").as_uri()
    assert "1 names, 3 versions" in run("store", "fsck", "--deep").out
    copied = command_line("store", "mirror", here, there)
    assert (copied.code, copied.err) == (0, f"{NAME}: 3 versions copied\n")
    assert json.loads(command_line("store", "mirror", here, there, NAME, "--json").out)["versions"] == 0
    manifest = tmp_path / "there" / "manifests" / registry.find(f"{NAME}:2").digest.replace(":", "/")
    manifest.unlink()
    damaged = command_line("store", "fsck", "--registry", there)
    assert (damaged.code, f"The manifest of {NAME}:2" in damaged.out) == (1, True)
    assert "come back with --repair --from" in damaged.out
    assert command_line("store", "fsck", "--registry", there, "--from", here).code == 1
    assert command_line("store", "fsck", "--registry", there, "--from", here, "--repair").code == 0
    Registry(there).tag(NAME, "mine", "2")
    refused = command_line("store", "mirror", here, there)
    assert (refused.code, f"{NAME}: Aliases of" in refused.err) == (1, True)
    bundle = tmp_path / "bundle.tar"
    assert run("store", "export", f"{NAME}:2", "--to", bundle).out.endswith(f"1 versions in {bundle}\n")
    assert run("store", "import", bundle).out.endswith(", which was there\n")
    strange = ("store", "import", bundle, "--registry", (tmp_path / "elsewhere").as_uri())
    refused = command_line(*strange, "--tenant", "zeta", "--tenant", "other")
    assert (refused.code, f"has adapters of {NAME.partition('/')[0]}, who may not be" in refused.err) == (1, True)
    elsewhere = command_line(*strange, "--tenant", NAME.partition("/")[0])
    assert elsewhere.out.startswith(f"{NAME}:1 {registry.find(f'{NAME}:2').digest}, which was :2 where")
    bundle.write_bytes(b"x")
    assert "no bundle" in run("store", "import", bundle).err
