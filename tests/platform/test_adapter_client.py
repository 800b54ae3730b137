"""Push and pull through a server, by commands and from Python: resumed, checked, and for nothing where it is there."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from swapmeet import adapter_parts, following
from swapmeet.client import Client
from swapmeet.errors import ApiError
from swapmeet_registry import Refused, Registry
from swapmeet_registry.errors import Corrupt
from swapmeet_registry.life import now
from swapmeet_registry.recall_documents import ServerWord
from swapmeet_registry.signing.keys import make_keys


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """SQLite's: what differs between databases is tested where it is decided."""
    return f"sqlite:///{tmp_path}/swapmeet.db"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests that clients send."""
    found: list[str] = []
    original = httpx.Client.send

    def send(self: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
        found.append(f"{request.method} {request.url.path}")
        return original(self, request, **more)

    monkeypatch.setattr(httpx.Client, "send", send)
    return found


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_one_digest_all_the_way(
    hub: Any, command_line: Callable[..., Any], tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object) -> Any:
        done = command_line(*arguments, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    pushed = run("push", hub.adapter, "acme/legal", "--base", "tiny", "--alias", "prod", "--license", "mit")
    assert pushed["version"] == 1
    pulled = run("pull", "acme/legal:prod", tmp_path / "there")
    assert pulled["digest"] == pushed["digest"] == hub.registry.resolve("acme/legal").digest
    hub.registry.pull("acme/legal:1", tmp_path / "straight")
    assert contents(tmp_path / "there") == contents(tmp_path / "straight")
    made, left = contents(tmp_path / "there"), contents(hub.adapter)
    assert made.keys() - left.keys() == {"swapmeet.json"}
    assert {name for name in left if made[name] != left[name]} <= {"adapter_config.json"}, "which is made canonical"
    asked.clear()
    run("pull", "acme/legal:prod", tmp_path / "there")
    assert asked == ["GET /v1/adapters/acme/legal/versions/prod"], "what is there costs one request"
    assert run("push", hub.adapter, "acme/legal", "--base", "tiny")["version"] == 2
    assert run("tag", "acme/legal:2", "prod", "--expect", 1)["version"] == 2
    assert run("yank", "acme/legal:1", "--reason", "old")["reason"] == "old"
    shown = run("show", "acme/legal")
    assert (shown["aliases"], len(shown["history"]), shown["visibility"]) == ({"prod": 2, "latest": 2}, 2, "private")
    assert "layers are changed" in shown["advice"][0]
    assert "advice: " in command_line("show", "acme/legal").out
    assert run("reach", "acme/legal:1") == {
        "name": "acme/legal", "version": 1, "digest": pushed["digest"], "reason": None, "servers": []
    }  # fmt: skip
    refused = command_line("pull", "acme/legal:1", tmp_path / "x")
    assert (refused.code, "was yanked: old" in refused.err) == (1, True)
    store = f"file://{tmp_path}/own"
    assert "There is no adapter" in command_line("show", "acme/legal", "--registry", store).err
    assert command_line("show", "acme/legal", "--registry", store, "--url", "http://x").code == 2
    monkeypatch.setenv("SWAPMEET_API_KEY", hub.add("beta"))
    assert "There is no adapter acme/legal" in command_line("pull", "acme/legal", tmp_path / "y").err
    assert not (tmp_path / "y").exists()


def test_the_life_of_a_version_by_commands(
    hub: Any, command_line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a tenant does with its key, without a store at hand."""
    monkeypatch.setattr("swapmeet.cli.withdrawal.FIRST_WORD_SECONDS", 0.0)
    hub.add("beta")
    for _ in range(3):
        hub.registry.push(hub.adapter, "acme/legal", base=hub.base, alias="prod")

    def run(*arguments: object) -> Any:
        done = command_line(*arguments, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    assert run("undo", "acme/legal", "prod")["version"] == 2
    assert command_line("untag", "acme/legal", "prod", "--expect", 3).code == 1
    assert run("untag", "acme/legal", "prod", "--expect", 2)["version"] == 0
    moves = run("history", "acme/legal")["history"]
    assert [(move["version"], move["by"]) for move in moves[3:]] == [(2, "acme"), (0, "acme")]
    assert run("share", "acme/legal", "shared", "--with", "beta")["shared_with"] == ["beta"]
    recalled = run("recall", "acme/legal:1", "--reason", "leaks", "--wait")
    assert (recalled["reason"], recalled["servers"]) == ("leaks", [])
    assert run("delete", "acme/legal:2", "--reason", "old")["version"] == 2
    deleted = run("delete", "acme/legal", "--all", "--reason", "closed")
    assert [each["version"] for each in deleted["versions"]] == [1, 3]
    assert {version.deleted for version in hub.registry.show("acme/legal").versions} == {"old", "closed"}
    noted = [entry["action"] for entry in hub.do("acme", "GET", "audit")["data"]]
    assert noted[:6] == ["version.delete"] * 6, "of each that it began, and that it is done"
    assert {"alias.undo", "alias.remove", "adapter.share", "version.recall"} <= set(noted)


def test_a_push_that_broke_off_goes_on(hub: Any, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_parts, "PART", 4000)
    pieces = sum(-(-path.stat().st_size // 4000) for path in hub.adapter.iterdir())
    sent: list[int] = []

    def stop(done: int, _: int) -> None:
        sent.append(done)
        if len(sent) == 3:
            raise KeyboardInterrupt

    with Client() as client:
        with pytest.raises(KeyboardInterrupt):
            client.adapters().push(hub.adapter, "acme/legal", base="tiny", watch=stop)
        asked.clear()
        assert client.adapters().push(hub.adapter, "acme/legal", base="tiny").version == 1
        assert len([each for each in asked if each.startswith("PUT")]) == pieces - 3
        runs = [client.adapters().push(hub.adapter, "acme/legal", base="tiny", run="r1").version for _ in range(2)]
        assert runs == [2, 2]


def test_a_pull_that_broke_off_goes_on(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.registry.push(hub.adapter, "acme/legal", base=hub.base)
    whole = (hub.adapter / "adapter_model.safetensors").read_bytes()
    ranges: list[str] = []
    original = Client.chunks

    def cut(self: Client, path: str, query: Any = None, headers: Any = None) -> Iterator[bytes]:
        ranges.append(headers["range"])
        data = b"".join(original(self, path, query, headers))
        yield data[: len(data) // 2 + 1]
        if len(data) > 100:
            raise ApiError("The connection is gone.")

    with monkeypatch.context() as broken, Client() as client:
        broken.setattr(following, "PATIENCE_SECONDS", -1)
        broken.setattr(Client, "chunks", cut)
        for _ in range(3):
            with pytest.raises(ApiError):
                client.adapters().pull("acme/legal", tmp_path / "there")
        assert not (tmp_path / "there").exists()
        broken.setattr(following, "PATIENCE_SECONDS", 10)
        client.adapters().pull("acme/legal", tmp_path / "there")
    assert (tmp_path / "there" / "adapter_model.safetensors").read_bytes() == whole
    starts = [int(each.removeprefix("bytes=").removesuffix("-")) for each in ranges]
    assert max(starts) > len(whole) * 0.9
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_client_asks_for_signatures_itself(
    hub: Any, tmp_path: Path, command_line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the server asks for."""
    hub.registry.push(hub.adapter, "acme/legal", base=hub.base)
    private, public, _ = make_keys(tmp_path / "keys")
    (tmp_path / "trusted").mkdir()
    shutil.copy(public, tmp_path / "trusted" / "ci.pem")
    monkeypatch.setenv("SWAPMEET_SIGNATURES", "require")
    monkeypatch.setenv("SWAPMEET_TRUSTED_KEYS", str(tmp_path / "trusted"))
    refused = command_line("pull", "acme/legal", tmp_path / "there")
    assert (refused.code, "bears no good signature" in refused.err) == (1, True)
    assert not (tmp_path / "there").exists()
    hub.registry.sign("acme/legal", private)
    done = command_line("pull", "acme/legal", tmp_path / "there")
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "there" / "adapter_config.json").exists()


def test_what_a_server_gets_wrong_is_seen(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.registry.push(hub.adapter, "acme/legal", base=hub.base)
    calls = Client.call

    def other(self: Client, *arguments: Any, **more: Any) -> dict[str, Any]:
        found = calls(self, *arguments, **more)
        found["manifest"]["license"] = "other"
        return found

    def zeros(self: Client, path: str, query: Any = None, headers: Any = None) -> Iterator[bytes]:
        yield b"\0" * 10_000_000

    with Client() as client:
        with monkeypatch.context() as lying:
            lying.setattr(Client, "call", other)
            with pytest.raises(Corrupt, match="that is another's"):
                client.adapters().pull("acme/legal", tmp_path / "there")
        with monkeypatch.context() as lying:
            lying.setattr(Client, "chunks", zeros)
            with pytest.raises(Corrupt, match="Pull again"):
                client.adapters().pull("acme/legal", tmp_path / "there")
        assert not (tmp_path / "there").exists()
        client.adapters().pull("acme/legal", tmp_path / "there")
        shutil.rmtree(tmp_path / "there")
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "mine.txt").write_text("mine")
        with pytest.raises(Refused, match="something other"):
            client.adapters().pull("acme/legal", tmp_path / "there")


def test_what_a_run_left_beside_the_adapter_is_not_sent(hub: Any, tmp_path: Path) -> None:
    """As it is not published by a push without a server."""
    folder = Path(shutil.copytree(hub.adapter, tmp_path / "left"))
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "optimizer.pt").write_bytes(b"x")
    (folder / "training_args.bin").write_bytes(b"x")
    told: list[str] = []
    with Client() as client:
        version = client.adapters(told.append).push(folder, "acme/legal", base="tiny")
    assert [line.rpartition(": ")[2] for line in told] == ["checkpoint-500/, training_args.bin."]
    assert {file.path for file in hub.registry.manifest(version).files}.isdisjoint({"training_args.bin"})


def test_everything_else_from_python(hub: Any, tmp_path: Path) -> None:
    hub.add("beta")
    with Client() as client:
        adapters = client.adapters()
        version = adapters.push(hub.adapter, "acme/legal", base=hub.base.weights, tags=["law"])
        assert adapters.manifest(adapters.resolve("acme/legal")).tags == ("law",)
        assert adapters.share("acme/legal", "shared", ["beta"]).shared_with == ("beta",)
        assert list(adapters.names()) == ["acme/legal"]
        assert adapters.recall("acme/legal:1", "leaks").recalled == "leaks"
        word = ServerWord(server="s1", host="gpu-7", process=1, base="tiny", since=now(), notice=1)
        hub.registry.recalls.say(word)
        recalled, reached = adapters.reach("acme/legal:1")
        assert (recalled.recalled, [(each.server, each.tenants) for each in reached]) == ("leaks", [("s1", ())])
        with pytest.raises(ApiError, match="recalled") as raised:
            adapters.pull(version.pinned, tmp_path / "x")
        assert (raised.value.status, raised.value.code) == (410, "model_recalled")
        assert adapters.delete(version.pinned, "gone").deleted == "gone"
        with pytest.raises(Refused, match="not a folder"):
            adapters.push(tmp_path / "none", "acme/x", base="tiny")
        (tmp_path / "odd").mkdir()
        (tmp_path / "odd" / "link").symlink_to(hub.adapter)
        with pytest.raises(Refused, match="'link' is a link"):
            adapters.push(tmp_path / "odd", "acme/x", base="tiny")
    assert Registry(hub.registry.backend.url).show("acme/legal").visibility == "shared"
