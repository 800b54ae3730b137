"""Every command about adapters through a server, by SWAPMEET_URL or `--url`; those about stores refuse one."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from swapmeet.client import Client
from swapmeet.errors import ApiError
from swapmeet.gateway import adapter_provenance
from swapmeet_registry import Provenance, Trust
from swapmeet_registry.errors import Corrupt, SignatureInvalid
from swapmeet_registry.signing import oms
from swapmeet_registry.signing.keys import PrivateKey, make_keys

Run = Callable[..., Any]
NAME = "acme/legal"


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/swapmeet.db"


@pytest.fixture
def family(hub: Any, tmp_path: Path) -> Any:
    """An adapter that goes on from another; `acme` has both."""
    first = hub.registry.push(hub.adapter, "acme/older", base=hub.base)
    known = Provenance(base=hub.base, parent=first.pinned, license="mit", base_license="gemma")
    made = tmp_path / "child"
    hub.registry.pull(first.pinned, made)
    known.write(made)
    hub.registry.push(made, NAME, base=hub.base, tags=["law"])
    hub.client.app.state.market.refresh()
    return hub


@pytest.fixture
def run(family: Any, command_line: Run) -> Run:
    def call(*arguments: object) -> Any:
        done = command_line(*arguments, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    return call


def test_what_is_read_is_what_the_store_says(family: Any, run: Run, tmp_path: Path) -> None:
    """The same command on the server and on its store: the same answer."""
    store = ("--registry", family.registry.backend.url)
    for command in ("lineage", "bom", "verify"):
        assert run(command, NAME) == run(command, NAME, *store), command
    there, here = run("export-oci", NAME, tmp_path / "there"), run("export-oci", NAME, tmp_path / "here", *store)
    assert there["manifest"] == here["manifest"]
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    card, straight = run("card", NAME), run("card", NAME, *store)
    assert {key: card[key] for key in straight} == straight
    weights = family.adapter / "adapter_model.safetensors"
    hits = run("find-file", weights)["hits"]
    assert [hit["name"] for hit in hits] == [hit["name"] for hit in run("find-file", weights, *store)["hits"]]
    assert [hit["name"] for hit in run("search", "law")["hits"]] == [NAME]
    assert (run("like", NAME)["liked"], run("unlike", NAME)["liked"]) == (True, False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_server_is_named_by_an_option(
    family: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Run
) -> None:
    url = command_url(monkeypatch)
    key = make_keys(tmp_path / "keys")[0]
    every = (
        ("search", "law"), ("card", NAME), ("find-file", "0" * 64), ("like", NAME), ("unlike", NAME),
        ("lineage", NAME), ("bom", NAME), ("sign", NAME, "--key", key), ("verify", NAME),
        ("export-oci", NAME, tmp_path / "layout"),
    )  # fmt: skip
    for command in every:
        run(*command, "--url", url)
    for name, *_ in every:
        both = command_line(name, NAME, "--url", url, "--registry", "file:///nowhere")
        assert both.code == 2, name
    assert "Set SWAPMEET_URL" in command_line("like", NAME).err


def command_url(monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's URL, which nothing but an option names from now on."""
    with Client() as client:
        url = str(client.http.base_url)
    monkeypatch.delenv("SWAPMEET_URL")
    return url


def test_a_version_is_signed_by_a_key_that_stays(
    family: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Run
) -> None:
    private, public, key = make_keys(tmp_path / "keys")
    sent: list[bytes] = []
    call = Client.call

    def noted(self: Client, method: str, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
        sent.append(json.dumps(body).encode())
        return call(self, method, path, body, **more)

    with monkeypatch.context() as watched:
        watched.setattr(Client, "call", noted)
        assert run("sign", NAME, "--key", private)["key"] == key.id
        assert run("sign", NAME, "--key", private)["key"] == key.id, "once more changes nothing"
    assert not [body for body in sent if b"PRIVATE" in body]
    family.registry.verify(NAME)
    (signed,) = family.registry.signatures(family.registry.resolve(NAME))
    assert signed.key == key.id
    (found,) = run("verify", NAME, "--key", public, "--save", tmp_path / "saved")["signatures"]
    assert (found["good"], found["named"]) == (True, True)
    saved = tmp_path / "saved" / f"{key.id}.json"
    assert run("sign", NAME, "--key", public, "--add", saved)["key"] == key.id
    unfit = command_line("sign", "acme/older", "--key", public, "--add", saved)
    assert (unfit.code, "does not fit acme/older:1" in unfit.err) == (1, True)
    other = make_keys(tmp_path / "other")[1]
    refused = command_line("verify", NAME, "--key", other)
    assert (refused.code, "bears no good signature" in refused.err) == (1, True)
    noted_actions = [entry["action"] for entry in family.do("acme", "GET", "audit")["data"]]
    assert noted_actions.count("version.sign") == 2 * 3, "begun and done each time"


def test_nobody_signs_in_another_s_name(family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = family.registry.resolve(NAME)
    signed = oms.Signed.of(version, family.registry.manifest(version))
    private, public, key = make_keys(tmp_path / "keys")
    other = make_keys(tmp_path / "other")[1]
    bundle = base64.b64encode(oms.sign(signed, PrivateKey(private))).decode()
    place = f"/v1/adapters/{NAME}/versions/1/signatures"
    for body, words in (
        ({"public_key": other.read_text(), "bundle": bundle}, "not made with this key"),
        ({"public_key": private.read_text(), "bundle": bundle}, "holds a private key"),
        ({"public_key": "none", "bundle": bundle}, "holds no public key"),
        ({"public_key": public.read_text(), "bundle": "*"}, "not Base64"),
        ({"public_key": public.read_text(), "bundle": "ä"}, "not Base64"),
        ({"public_key": public.read_text(), "bundle": base64.b64encode(b"{}").decode()}, "no model-signing bundle"),
        ({"public_key": public.read_text(), "bundle": "A" * (2 << 20)}, "bundle"),
        ({"public_key": public.read_text()}, "bundle"),
    ):
        answer = family.ask("acme", "POST", place, json=body)
        assert (answer.status_code, words in answer.json()["error"]["message"]) == (400, True), answer.text
    assert family.registry.signatures(version) == ()
    family.do("acme", "PUT", f"adapters/{NAME}/visibility", json={"visibility": "public"})
    family.add("beta")
    good = {"public_key": public.read_text(), "bundle": bundle}
    assert family.ask("beta", "POST", place, json=good).status_code == 403
    assert family.ask("acme", "POST", place, json=good).json()["signer"] == key.id
    assert [each["id"] for each in family.do("beta", "GET", place.removeprefix("/v1/"))["data"]] == [key.id]
    monkeypatch.setattr(adapter_provenance, "MOST_SIGNERS", 1)
    more = base64.b64encode(oms.sign(signed, PrivateKey(tmp_path / "other" / "signing-key.pem"))).decode()
    full = family.ask("acme", "POST", place, json={"public_key": other.read_text(), "bundle": more})
    assert (full.status_code, "signatures of 1 keys already" in full.text) == (400, True)
    assert family.ask("acme", "POST", place, json=good).status_code == 200, "which is there already"


def test_ancestors_that_are_private_look_as_if_missing(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    family.do("acme", "PUT", f"adapters/{NAME}/visibility", json={"visibility": "public"})
    with Client() as client:
        (parent,) = client.adapters().lineage(NAME)
        assert parent.version is not None
        family.registry.recall("acme/older:1", "leaks")
        assert client.adapters().lineage(NAME)[0].problem == "recalled: leaks"
    with Client(api_key=family.add("beta")) as client:
        (parent,) = client.adapters().lineage(NAME)
        assert (parent.version, parent.manifest) == (None, None)
        assert "may not be read" in (parent.problem or "")


def test_a_lying_server_is_not_signed_for(family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = make_keys(tmp_path / "keys")[0]
    call = Client.call

    def other(self: Client, method: str, path: str, *arguments: Any, **more: Any) -> dict[str, Any]:
        return call(self, method, path.replace("/legal/", "/older/"), *arguments, **more)

    def zeros(self: Client, path: str, query: Any = None, headers: Any = None) -> Any:
        yield b"\0" * 10_000_000

    with Client() as client:
        with monkeypatch.context() as lying:
            lying.setattr(Client, "call", other)
            with pytest.raises(Corrupt, match="The server gave acme/older:1"):
                client.adapters().sign(f"{NAME}:1", private)
        with monkeypatch.context() as lying:
            lying.setattr(Client, "chunks", zeros)
            with pytest.raises(Corrupt, match="the server at http"):
                client.adapters().verify(NAME)
        with pytest.raises(SignatureInvalid):
            client.adapters(trust=Trust("require", tmp_path / "keys" / "signing-key.pub.pem")).verify(NAME)
        with pytest.raises(ApiError, match="There is no"):
            client.adapters().sign("acme/none", private)
    assert family.registry.signatures(family.registry.resolve(NAME)) == ()


def test_no_file_is_named_by_a_lying_server(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    good, call = "a" * 64, Client.call
    version = family.registry.resolve(NAME)

    def lying(self: Client, method: str, path: str, *arguments: Any, **more: Any) -> dict[str, Any]:
        if path.endswith("/signatures"):
            return {"data": [{"id": each} for each in ("../../evil", "/etc/evil", f"{good}\n", good.upper(), good)]}
        return call(self, method, path, *arguments, **more)

    monkeypatch.setattr(Client, "call", lying)
    with Client() as client:
        assert client.adapters().signers(version) == [good]


@pytest.mark.parametrize("answer", [{}, [], {"data": [[]]}, "none"], ids=["object", "list", "entries", "text"])
def test_what_no_server_should_answer_is_one_sentence(
    answer: Any, family: Any, command_line: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "_request", lambda *_, **__: httpx.Response(200, json=answer))
    commands: tuple[tuple[str, ...], ...] = (
        ("show", NAME), ("search", "x"), ("find-file", "0" * 64), ("like", NAME), ("undo", NAME, "prod"),
        ("reach", NAME), ("history", NAME), ("verify", NAME), ("lineage", NAME),
    )  # fmt: skip
    for command in commands:
        refused = command_line(*command)
        assert (refused.code, len(refused.err.splitlines())) == (1, 1), (command, refused)
        assert "another version of Swapmeet" in refused.err, refused.err


def test_stores_are_not_taken_for_a_server_s(
    family: Any, tmp_path: Path, command_line: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a store that is named, the one in the home would be checked, cleaned or written: an empty one."""
    commands: tuple[tuple[object, ...], ...] = (
        ("store", "fsck"), ("store", "gc"), ("store", "export", NAME, "--to", tmp_path / "a.bundle"),
        ("store", "import", tmp_path / "none.bundle"),
    )  # fmt: skip
    for command in commands:
        refused = command_line(*command)
        assert (refused.code, len(refused.err.splitlines())) == (1, 1), refused
        assert "which SWAPMEET_URL names. Name the store, such as --registry file:///" in refused.err
    url = family.registry.backend.url
    done = command_line("store", "export", NAME, "--to", tmp_path / "a.bundle", "--registry", url)
    assert (done.code, done.err) == (0, "")
    monkeypatch.setenv("SWAPMEET_REGISTRY", url)
    done = command_line("store", "fsck")
    assert (done.code, done.err.startswith(f"On the store {url} itself, and not through http")) == (0, True)


def test_a_move_whose_answer_is_lost_is_made_once(
    family: Any, run: Run, command_line: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer to each move is lost, and before it is asked for again somebody else may move the alias."""
    for _ in range(2):
        family.registry.push(family.adapter, NAME, base=family.base)
    call, lost, between = Client.call, set[str](), [lambda: None]

    def losing(self: Client, method: str, path: str, *arguments: Any, **more: Any) -> dict[str, Any]:
        answer = call(self, method, path, *arguments, **more)
        if method != "GET" and (key := more["headers"]["idempotency-key"]) not in lost:
            lost.add(key)
            between.pop()() if between else None
            raise ApiError("The connection is gone.")
        return answer

    monkeypatch.setattr(Client, "call", losing)
    assert run("tag", f"{NAME}:1", "prod", "--expect", 0)["version"] == 1
    assert run("tag", f"{NAME}:2", "prod", "--expect", 1)["version"] == 2
    assert run("undo", NAME, "prod")["version"] == 1
    between.append(lambda: family.registry.tag(NAME, "prod", "2"))
    assert run("tag", f"{NAME}:3", "prod", "--expect", 1)["version"] == 3, "which somebody moved on since"
    assert run("untag", NAME, "prod", "--expect", 2)["version"] == 0
    assert command_line("untag", NAME, "prod", "--expect", 2).code == 1
    moves = [move.version for move in family.registry.show(NAME).history if move.alias == "prod"]
    assert moves == [1, 2, 1, 3, 2, 0]
    assert len(lost) == 5


def test_an_idempotency_key_stands_for_one_move(family: Any) -> None:
    place, key = f"/v1/adapters/{NAME}/aliases/prod", {"idempotency-key": "mine \U0001f511".encode()}
    to_one = {"json": {"version": 1, "expect": 0}, "headers": key}
    assert family.ask("acme", "PUT", place, **to_one).status_code == 200
    assert family.ask("acme", "PUT", place, **to_one).json()["version"] == 1
    family.registry.push(family.adapter, NAME, base=family.base)
    other = family.ask("acme", "PUT", place, json={"version": 2}, headers=key)
    assert (other.status_code, "stands for another move" in other.text) == (409, True)
    assert family.ask("acme", "DELETE", place, headers=key).status_code == 409
    assert family.ask("acme", "PUT", place, json={"version": 1, "expect": 0}).status_code == 409, "without its key"
    assert "mine" not in str(family.registry.head(NAME))
    assert family.ask("acme", "PUT", place, json={"version": 2}).status_code == 200
    for _ in range(2):  # the key of a move is another for an undo, which is one undo
        undone = family.ask("acme", "POST", f"{place}/undo", headers=key)
        assert (undone.status_code, undone.json()["aliases"]["prod"]) == (200, 1), undone.text
