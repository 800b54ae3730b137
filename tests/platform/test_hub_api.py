"""What the unmodified huggingface_hub and PEFT do with HF_ENDPOINT at the gateway; and whose adapters they find."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from swapmeet.gateway import hub_api
from swapmeet.gateway.app import create_app
from swapmeet.gateway.hub_api import listing
from swapmeet.gateway.hub_api.routes import router
from swapmeet.gateway.listener import event_loop, listening
from swapmeet.gateway.services import Services
from swapmeet.marketplace import Market
from swapmeet.permissions import Permissions
from swapmeet.tenancy import OPERATOR, Tenancy
from swapmeet_registry import AdapterName, Fingerprint, Registry, Trust, Version
from swapmeet_registry.signing.keys import make_keys
from swapmeet_registry.store_backend import StoreBackend, blob_key

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
FILES = [CARD, CONFIG, WEIGHTS, "swapmeet.json"]


@dataclass
class Server:
    """The gateway on loopback, over a registry with two versions of acme/legal; `prod` is the first."""

    url: str
    app: FastAPI
    registry: Registry
    market: Market
    base: Fingerprint
    key_of: Callable[..., str]
    versions: list[Version]
    home: Path
    pulls: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, path: str, tenant: str = "acme", method: str = "GET", **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key_of(tenant, 'read')}"} | more.pop("headers", {})
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.request(method, self.url + path, headers=headers, **more)

    def run(self, code: str, *arguments: object, tenant: str = "acme", key: str | None = None) -> Any:
        """What a client prints as JSON, in a process that knows the server as its Hub; or else what it fails with."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": self.url, "HF_TOKEN": key or self.key_of(tenant, "read")}
        environment |= {"HF_HOME": str(self.home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr


@pytest.fixture
def server(
    tenancy: Tenancy, key_of: Callable[..., str], published: tuple[Fingerprint, Path], tmp_path: Path
) -> Iterator[Server]:
    base, folder = published
    registry = Registry((tmp_path / "registry").as_uri())
    versions = [
        registry.push(folder, "acme/legal", base=base, alias="prod", license="MIT", tags=["contracts"]),
        registry.push(folder, "acme/legal", base=base),
    ]
    registry.push(folder, "ben/mine", base=base)
    replicas: Any = None
    app = create_app(Services(registry, tenancy, base, replicas))
    market = Market(tenancy.database, registry)
    market.refresh()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}", app, registry, market, base, key_of, versions, tmp_path / "hf")
    hub_api.install(app, market.names, lambda version, tenant: server.pulls.append((tenant, version.digest)))
    with event_loop() as loop, listening(app, loop, "127.0.0.1", port, drain=5):
        yield server


def commit(version: Version) -> str:
    return version.digest.removeprefix("sha256:")[:40]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


METADATA = """
import json
from dataclasses import asdict
from huggingface_hub import HfApi, HfFileSystem, ModelCard, file_exists
api = HfApi()
info = api.model_info("acme/legal", files_metadata=True)
refs = api.list_repo_refs("acme/legal")
print(json.dumps({
    "sha": info.sha, "tags": info.tags, "private": info.private, "gated": info.gated, "author": info.author,
    "created": str(info.created_at), "modified": str(info.last_modified), "library": info.library_name,
    "license": info.card_data.license, "siblings": {s.rfilename: [s.size, s.lfs.sha256] for s in info.siblings},
    "prod": api.model_info("acme/legal", revision="prod").sha,
    "revisions": {r: api.model_info("acme/legal", revision=r).sha for r in ("main", "1", "v2", info.sha)},
    "files": api.list_repo_files("acme/legal", revision="prod"),
    "paths": [p.path for p in api.get_paths_info("acme/legal", ["README.md", "no.json"])],
    "branches": {b.name: b.target_commit for b in refs.branches},
    "tags_": {t.name: t.target_commit for t in refs.tags},
    "commits": [c.commit_id for c in api.list_repo_commits("acme/legal")],
    "listed": [m.id for m in api.list_models()],
    "found": [[m.id for m in api.list_models(**q)] for q in (
        {"search": "legal"}, {"author": "ben"}, {"filter": "contracts"}, {"filter": ["lora", "license:mit"]},
        {"search": "nothing"})],
    "who": api.whoami()["name"],
    "config.json": file_exists("acme/legal", "config.json"),
    "exists": [api.repo_exists("acme/legal"), api.repo_exists("ben/mine"), api.revision_exists("acme/legal", "v9")],
    "auth": api.auth_check("acme/legal"),
    "card": ModelCard.load("acme/legal").data.license,
    "tensors": len(api.parse_safetensors_file_metadata("acme/legal", "adapter_model.safetensors").tensors),
    "mounted": json.loads(HfFileSystem().read_text("acme/legal@prod/adapter_config.json"))["peft_type"],
    "seen": sorted(HfFileSystem().ls("acme/legal", detail=False)),
}))
"""


def test_the_client_reads_metadata(server: Server) -> None:
    first, second = server.versions
    told = server.run(METADATA)
    assert isinstance(told, dict), told
    manifest = server.registry.manifest(second)
    assert told["sha"] == told["revisions"]["main"] == told["revisions"]["v2"] == commit(second)
    assert told["prod"] == told["revisions"]["1"] == commit(first)
    assert told["files"] == FILES
    assert told["branches"] == {"main": commit(second), "prod": commit(first)}
    assert told["tags_"] == {"v1": commit(first), "v2": commit(second)}
    assert told["commits"] == [commit(second), commit(first)]
    files = {file.path: [file.size, file.sha256] for file in manifest.files}
    assert {path: told["siblings"][path] for path in (CONFIG, WEIGHTS)} == {p: files[p] for p in (CONFIG, WEIGHTS)}
    assert {"peft", "lora", "swapmeet", "safetensors", f"base:{server.base.weights}"} <= set(told["tags"])
    assert (told["private"], told["gated"], told["author"], told["library"]) == (True, False, "acme", "peft")
    assert told["modified"][:19] == second.created_at[:19].replace("T", " ")
    assert told["created"][:19] == first.created_at[:19].replace("T", " ")
    assert told["listed"] == ["acme/legal"]
    assert told["found"] == [["acme/legal"], [], [], [], []]  # the latest has neither licence nor tag
    assert (told["who"], told["config.json"], told["exists"]) == ("acme", False, [True, False, False])
    assert (told["mounted"], told["seen"]) == ("LORA", [f"acme/legal/{name}" for name in FILES])
    assert told["tensors"] > 2


FETCH = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
folder, *revisions = sys.argv[1:]
snapshot_download("acme/legal", revision=revisions[0], local_dir=folder)
cached = {snapshot_download("acme/legal", revision=each) for each in revisions}
one = {hf_hub_download("acme/legal", "adapter_model.safetensors", revision=each) for each in revisions}
check = HfApi().verify_repo_checksums("acme/legal", revision=revisions[0])
print(json.dumps([list(cached), list(one), check.checked_count, len(check.mismatches)]))
"""


def test_a_snapshot_has_the_manifest_s_digests(server: Server, tmp_path: Path) -> None:
    first = server.versions[0]
    got = server.run(FETCH, tmp_path / "folder", "prod", "v1", "1", commit(first), first.digest)
    assert isinstance(got, list), got
    (cached,), (one,), *checked = got
    assert Path(cached).name == commit(first)
    assert checked == [4, 0]
    digests = {file.path: file.sha256 for file in server.registry.manifest(first).files if file.path != CARD}
    for folder in (tmp_path / "folder", Path(cached)):
        assert sorted(path.name for path in folder.iterdir() if path.is_file()) == FILES
        assert {path: sha256(folder / path) for path in digests} == digests
    assert Path(one).resolve().name == digests[WEIGHTS]  # a blob of the client's cache has the digest's name
    assert server.pulls == [("acme", first.digest)] * 2  # into the folder, and into the cache

    # What was downloaded can be published as it is, and is known to be the same.
    again = server.registry.manifest(server.registry.push(tmp_path / "folder", "acme/copy", base=server.base))
    assert {file.path: file.sha256 for file in again.files if file.path != CARD} == digests
    assert again.provenance() == server.registry.manifest(first).provenance()


LOAD = """
import hashlib, json, sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), "acme/legal", revision="prod")
factors = {name: value for name, value in model.state_dict().items() if "lora_" in name}
digest = hashlib.sha256()
for name in sorted(factors):
    digest.update(factors[name].numpy().tobytes())
print(json.dumps([len(factors), digest.hexdigest()]))
"""


@pytest.mark.slow
def test_peft_loads_by_name(server: Server, tiny_llama: Path, published: tuple[Fingerprint, Path]) -> None:
    from safetensors.numpy import load_file

    factors = load_file(published[1] / WEIGHTS)
    digest = hashlib.sha256()
    for name in sorted(factors):
        digest.update(factors[name].tobytes())
    assert server.run(LOAD, tiny_llama) == [len(factors), digest.hexdigest()]


ERRORS = """
import json
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
def kind(call, *arguments, **more):
    try:
        call(*arguments, **more)
    except Exception as error:
        return [type(error).__name__, str(error)]
api = HfApi()
print(json.dumps({
    "repository": kind(api.model_info, "acme/nothing"),
    "foreign": kind(snapshot_download, "ben/mine"),
    "revision": kind(snapshot_download, "acme/legal", revision="nothing"),
    "file": kind(hf_hub_download, "acme/legal", "config.json"),
    "base": kind(hf_hub_download, "gpt2", "config.json"),
    "sort": kind(lambda: list(api.list_models(sort="downloads"))),
}))
"""


def test_the_client_knows_what_is_wrong(server: Server) -> None:
    told = server.run(ERRORS)
    assert {case: error[0] for case, error in told.items()} == {
        "repository": "RepositoryNotFoundError",
        "foreign": "RepositoryNotFoundError",
        "revision": "RevisionNotFoundError",
        "file": "RemoteEntryNotFoundError",
        "base": "RepositoryNotFoundError",
        "sort": "BadRequestError",
    }
    assert "There is no adapter acme/nothing that this key may read" in told["repository"][1]
    assert "acme/legal has versions 1 to 2" in told["revision"][1]
    assert "ordered by name" in told["sort"][1]
    who = "import json; from huggingface_hub import HfApi; print(json.dumps(HfApi().whoami()))"
    for code in (who, who.replace("whoami()", "model_info('acme/legal')")):
        assert "Invalid credentials" in server.run(code, key="sm-wrong") or "Invalid user token" in code


def test_withdrawn_versions(server: Server) -> None:
    first, second = server.versions
    server.registry.yank("acme/legal:2", "leaked names")
    latest = server.ask("/api/models/acme/legal").json()
    assert latest["sha"] == commit(first)
    told = server.ask("/api/models/acme/legal/revision/v2")
    assert (told.status_code, told.headers["x-error-code"]) == (404, "RevisionNotFound")
    assert "leaked names" in told.headers["x-error-message"]
    assert server.ask(f"/api/models/acme/legal/revision/{commit(second)}").status_code == 200  # who pinned it
    assert [ref["name"] for ref in server.ask("/api/models/acme/legal/refs").json()["tags"]] == ["v1"]
    server.registry.recall("acme/legal:2", "poisoned")
    for revision in (commit(second), second.digest, "v2"):
        told = server.ask(f"/acme/legal/resolve/{revision}/{WEIGHTS}")
        assert (told.status_code, told.headers["x-error-code"]) == (404, "RevisionNotFound")
        assert "poisoned" in told.json()["error"]
    server.registry.yank("acme/legal:1", "old")
    assert server.ask("/api/models/acme/legal").headers["x-error-code"] == "RevisionNotFound"
    assert server.ask("/api/models").json() == []


def test_a_revision_that_moves_is_sent_on_to_its_commit(server: Server) -> None:
    first = server.versions[0]
    for method in ("GET", "HEAD"):
        told = server.ask(f"/acme/legal/resolve/prod/{WEIGHTS}", method=method)
        assert told.status_code == 307
        assert told.headers["location"] == f"/acme/legal/resolve/{commit(first)}/{WEIGHTS}"
        assert told.headers["x-repo-commit"] == commit(first)
        (digest,) = {file.sha256 for file in server.registry.manifest(first).files if file.path == WEIGHTS}
        assert told.headers["etag"] == told.headers["x-linked-etag"] == f'"{digest}"'
    server.registry.tag("acme/legal", "main", "1")
    server.registry.tag("acme/legal", "v2", "1")
    for revision in ("main", "v2"):  # no alias hides what the Hub's words mean
        assert server.ask(f"/api/models/acme/legal/revision/{revision}").json()["sha"] == commit(server.versions[1])
    assert [ref["name"] for ref in server.ask("/api/models/acme/legal/refs").json()["branches"]] == ["main", "prod"]


def test_ranges(server: Server) -> None:
    place = f"/acme/legal/resolve/{commit(server.versions[0])}"
    for path in (WEIGHTS, CARD):
        whole = server.ask(f"{place}/{path}")
        data, size, etag = whole.content, len(whole.content), whole.headers["etag"]
        assert (whole.status_code, whole.headers["content-length"]) == (200, str(size))
        assert etag == f'"{hashlib.sha256(data).hexdigest()}"'
        head = server.ask(f"{place}/{path}", method="HEAD")
        assert (head.content, head.headers["content-length"], head.headers["etag"]) == (b"", str(size), etag)
        cases = {"0-0": data[:1], "5-": data[5:], "-7": data[-7:], f"3-{size + 9}": data[3:], f"-{size * 2}": data}
        for asked, wanted in cases.items():
            part = server.ask(f"{place}/{path}", headers={"range": f"bytes={asked}"})
            assert (part.status_code, part.content) == (206, wanted), asked
            start = data.index(wanted) if len(wanted) > 1 else 0
            assert part.headers["content-range"] == f"bytes {start}-{start + len(wanted) - 1}/{size}"
        for asked in (f"{size}-", f"{size + 5}-{size + 9}", "-0", "9" * 18 + "-"):
            refused = server.ask(f"{place}/{path}", headers={"range": f"bytes={asked}"})
            assert (refused.status_code, refused.headers["content-range"]) == (416, f"bytes */{size}"), asked
        for ignored in ("bytes=9-2", "bytes=-", "bytes=0-1,3-4", "lines=1-2", "bytes=x-", f"bytes={'9' * 400}-"):
            assert server.ask(f"{place}/{path}", headers={"range": ignored}).status_code == 200, ignored
        other = {"range": "bytes=0-3", "if-range": '"other"'}
        assert server.ask(f"{place}/{path}", headers=other).content == data
        assert server.ask(f"{place}/{path}", headers={"if-none-match": etag}).status_code == 304
    assert len(server.pulls) == len(("whole", "all", *range(6), "if-range"))
    server.pulls.clear()
    half = server.registry.manifest(server.versions[0]).size // 3
    for asked in (f"bytes={half}-", "bytes=-1", f"bytes=0-{half - 2}"):
        assert server.ask(f"{place}/{WEIGHTS}", headers={"range": asked}).status_code == 206
    assert server.ask(f"{place}/{WEIGHTS}", method="HEAD").status_code == 200
    assert server.pulls == [], "a byte is missing"
    assert server.ask(f"{place}/{WEIGHTS}", headers={"range": f"bytes={half - 1}-{half - 1}"}).status_code == 206
    deadline = time.monotonic() + 30
    while not server.pulls and time.monotonic() < deadline:  # it is counted once the answer was sent
        time.sleep(0.01)
    assert len(server.pulls) == 1, "the parts are the whole"


def test_damaged_bytes_never_arrive_whole(server: Server) -> None:
    version = server.versions[0]
    (file,) = (each for each in server.registry.manifest(version).files if each.path == WEIGHTS)
    backend = server.registry.backend
    assert isinstance(backend, StoreBackend)
    stored = b"".join(backend.store.stream(blob_key(file)) or ())
    changed = bytes([stored[0] ^ 1]) + stored[1:]
    for wrong in (changed, stored[:-1], stored + b"x", b""):
        backend.store.put(blob_key(file), wrong, hashlib.sha256(wrong).hexdigest())
        for headers in ({}, {"range": "bytes=10-"}):
            try:
                answer = server.ask(f"/acme/legal/resolve/{commit(version)}/{WEIGHTS}", headers=headers)
            except httpx.RemoteProtocolError:
                continue
            assert answer.status_code == 500
            assert "Publish the adapter again" in answer.json()["error"]
    assert server.pulls == []


def requests(namespace: str, repository: str) -> list[tuple[str, str, dict[str, Any]]]:
    """A request to every route that names a repository."""
    found = []
    for route in router.routes:
        path: str = route.path  # type: ignore[attr-defined]
        if "{namespace}" in path:
            path = path.replace(":path}", "}").format(
                namespace=namespace, repository=repository, revision="main", path=WEIGHTS, folder="x"
            )
            for method in route.methods:  # type: ignore[attr-defined]
                found.append((method, path, {"data": {"paths": [CARD]}} if method == "POST" else {}))
    return found


def test_a_foreign_adapter_is_told_as_a_missing_one(server: Server, looks_at: Callable[[Registry], list[str]]) -> None:
    looks = looks_at(server.registry)
    asked = requests("ben", "mine")
    assert len(asked) == 10
    for (method, path, more), (_, other, _) in zip(asked, requests("ben", "none"), strict=True):
        looks.clear()
        foreign, missing = (server.ask(each, method=method, **more) for each in (path, other))
        assert looks == [], "neither is looked for"
        assert (foreign.status_code, missing.status_code) == (404, 404), path
        assert foreign.text.replace("ben/mine", "ben/none") == missing.text, path
        apart = {"date", "x-request-id", "x-error-message"}
        headers = [{n: v for n, v in each.headers.items() if n not in apart} for each in (foreign, missing)]
        assert headers[0] == headers[1]
        assert headers[0]["x-error-code"] == "RepoNotFound"
        if method != "HEAD":
            own = server.ask(path, "ben", method, **more)
            assert own.status_code in ((404,) if path.endswith("/x") else (200, 307)), path
    assert [each["id"] for each in server.ask("/api/models", "ben").json()] == ["ben/mine"]
    assert len(server.ask("/api/models", OPERATOR).json()) == 0  # a key of his that only reads
    boss = {"authorization": f"Bearer {server.key_of(OPERATOR, 'admin')}"}
    assert len(server.ask("/api/models", headers=boss).json()) == 2


def test_what_is_shared_is_found(server: Server) -> None:
    access, name = server.app.state.services.access, AdapterName("ben", "mine")
    server.key_of("acme", "read")
    access.share(name, "shared", ["acme"])
    server.market.note(name)
    assert [each["id"] for each in server.ask("/api/models").json()] == ["acme/legal", "ben/mine"]
    assert server.ask("/api/models/ben/mine").json()["private"] is True
    assert server.ask("/api/models/ben/mine", "cara").status_code == 404
    access.share(name, "public")
    assert server.ask("/api/models/ben/mine", "cara").json()["private"] is False
    server.registry.share("ben/mine", "private")  # past the server: closed at once, also on lists
    assert server.ask("/api/models/ben/mine").status_code == 404
    assert [each["id"] for each in server.ask("/api/models").json()] == ["acme/legal"]


SNAPSHOT = """
import json, sys
from huggingface_hub import HfApi, snapshot_download
from pathlib import Path
folder = Path(snapshot_download("acme/legal", revision=sys.argv[1]))
refs = HfApi().list_repo_refs("acme/legal")
print(json.dumps([sorted(p.name for p in folder.iterdir()), [b.name for b in refs.branches], len(refs.tags)]))
"""


def test_a_permission_opens_just_what_it_names(server: Server) -> None:
    """One of an alias gives its version, also by the commit that clients ask for then, and no word of others."""
    first, second = server.versions
    permissions = Permissions(server.app.state.services.tenancy.database)
    server.key_of("beta", "read")
    for who in ("acme", "beta"):
        server.app.state.services.tenancy.tenants.ensure(who)
    (granted,) = permissions.grant("acme/legal:prod", ["beta"])
    files, branches, tags = server.run(SNAPSHOT, "prod", tenant="beta")
    assert (files, branches, tags) == (FILES, ["prod"], 0)
    place = "/api/models/acme/legal"
    opened = {"prod", commit(first), first.digest, first.digest.removeprefix("sha256:")}
    for revision in (*opened, "main", "v1", "1", "v2", "latest", commit(second), second.digest, "a" * 40, "nothing"):
        told = server.ask(f"{place}/revision/{revision}", "beta")
        assert told.status_code == (200 if revision in opened else 404), revision
        missing = server.ask(f"{place}/revision/none", "beta").text.replace("'none'", repr(revision))
        assert revision in opened or told.text == missing, "not told from what is not there"
    assert server.ask(place, "beta").status_code == 404
    shown = server.ask(f"{place}/revision/prod", "beta").json()
    assert (shown["sha"], shown["createdAt"]) == (commit(first), shown["lastModified"])
    assert [each["id"] for each in server.ask(f"{place}/commits/prod", "beta").json()] == [commit(first)]
    assert server.ask("/api/models", "beta").json() == []
    server.registry.tag("acme/legal", "prod", "2")
    assert server.ask(f"{place}/revision/{commit(first)}", "beta").status_code == 404, "what it meant once"
    assert server.ask(f"{place}/revision/{commit(second)}", "beta").status_code == 200
    server.registry.recall("acme/legal:2", "leaks")
    assert server.ask(f"{place}/revision/prod", "beta").headers["x-error-code"] == "RevisionNotFound"
    server.registry.untag("acme/legal", "prod")
    told, missing = (server.ask(f"{place}/revision/{revision}", "beta").text for revision in ("prod", "none"))
    assert told == missing.replace("'none'", "'prod'"), "nor what there is beside it"
    permissions.revoke("acme/legal:prod", granted.id)
    permissions.grant("acme/legal", ["beta"])
    assert server.ask(place, "beta").json()["sha"] == commit(first), "the bare name means the latest"
    assert server.ask(f"{place}/revision/prod", "beta").status_code == 404
    permissions.grant("ben/mine:1", ["beta"])
    assert server.ask("/api/models/ben/mine/revision/v1", "beta").status_code == 200
    assert server.ask("/api/models/ben/mine/auth-check", "beta").status_code == 200


def test_unsigned_versions_are_let_out_as_the_policy_says(server: Server, tmp_path: Path) -> None:
    private, public, _ = make_keys(tmp_path / "keys")
    trust = Trust("require", public)
    services = server.app.state.services
    registry = Registry(server.registry.backend.url, trust)
    server.app.state.hub = replace(server.app.state.hub, registry=registry)
    server.app.state.services = replace(services, registry=registry)
    weights = f"/acme/legal/resolve/{commit(server.versions[0])}/{WEIGHTS}"
    words = "acme/legal:1 bears no good signature of the 1 keys that are trusted for it"
    for path in (weights, weights.replace(WEIGHTS, CARD), weights.replace(WEIGHTS, "swapmeet.json")):
        for method in ("GET", "HEAD"):
            told = server.ask(path, method=method, headers={"range": "bytes=1-"})
            assert (told.status_code, told.headers["x-error-code"]) == (403, "GatedRepo"), path
            assert words in told.headers["x-error-message"]
    assert words in server.run(SNAPSHOT, "prod")
    registry.sign("acme/legal:1", private)
    assert server.ask(weights).status_code == 200
    assert server.run(SNAPSHOT, "prod")[0] == FILES
    assert server.ask(weights.replace(commit(server.versions[0]), commit(server.versions[1]))).status_code == 403


def test_a_page_costs_the_same_whatever_there_is_beside_it(
    server: Server, looks_at: Callable[[Registry], list[str]]
) -> None:
    looks = looks_at(server.registry)
    server.ask("/api/models?limit=1")
    looks.clear()
    assert len(server.ask("/api/models?limit=1").json()) == 1
    assert looks == ["head"]
    for query in ("author=ben", "search=mine", "filter=absent", "search=%00", "author=%F0%9F%98%80", "cursor=%00x"):
        looks.clear()
        assert server.ask(f"/api/models?{query}").json() == []
        assert looks == [], query


def test_keys(server: Server) -> None:
    for method, path, more in [*requests("acme", "legal"), ("GET", "/api/models", {}), ("GET", "/api/whoami-v2", {})]:
        for header in ({}, {"authorization": "Bearer sm-wrong"}):
            told = httpx.request(method, server.url + path, headers=header, trust_env=False, **more)
            assert told.status_code == 401, path
            assert (told.headers["x-error-message"] == "Invalid credentials in Authorization header") == bool(header)
        narrow = {"authorization": f"Bearer {server.key_of('acme', 'infer')}"}
        told = server.ask(path, method=method, headers=narrow, **more)
        assert told.status_code == (200 if "whoami" in path else 403), path


def test_tenants_may_be_called_as_our_own_paths_are(server: Server, published: tuple[Fingerprint, Path]) -> None:
    for tenant in ("v1", "api", "docs", "healthz"):
        server.registry.push(published[1], f"{tenant}/legal", base=server.base)
        assert server.ask(f"/api/models/{tenant}/legal", tenant).json()["id"] == f"{tenant}/legal"
        got = server.ask(f"/{tenant}/legal/resolve/main/{WEIGHTS}", tenant, follow_redirects=True)
        assert got.headers["etag"] == f'"{hashlib.sha256(got.content).hexdigest()}"'
        assert server.ask(f"/{tenant}/legal/resolve/main/{WEIGHTS}").headers["x-error-code"] == "RepoNotFound"


def test_own_paths_stay_what_they_are(server: Server, published: tuple[Fingerprint, Path]) -> None:
    for name in ("v1/models", "api/models", "v1/keys"):
        server.registry.push(published[1], name, base=server.base)
    assert server.ask("/healthz").json()["status"] == "ok"
    assert server.ask("/v1/models").json()["object"] == "list"
    assert "error" in server.ask("/v1/models/resolve/main/x.json").json()
    assert server.ask("/docs").headers["content-type"].startswith("text/html")
    described = server.ask("/openapi.json").json()["paths"]
    assert not [path for path in described if path.startswith("/api/") or "{repository}" in path]
    assert server.ask("/api/models/resolve/main/x/y").status_code == 404
    unknown = server.ask("/nothing/here")
    assert unknown.json()["error"]["code"] == "not_found"  # in OpenAI's words, as ever


ODD = [
    "/api/models/acme/legal/revision/..%2f..%2fetc",
    "/api/models/acme/legal/revision/%00",
    "/api/models/acme%2f..%2fben/mine/refs",
    "/api/models/ACME/legal",
    "/api/models/acme/legal%0d%0ax-evil:%201/refs",
    "/api/models/acme/legal/tree/main/%2e%2e%2f",
    "/acme/legal/resolve/main/..%2f..%2fheads%2facme%2flegal.json",
    "/acme/legal/resolve/main/%2e%2e/%2e%2e/x",
    "/acme/legal/resolve/" + "9" * 500 + "/x",
    "/acme/legal/resolve/" + "a" * 40 + "/x",
    "/acme/legal/resolve/sha256:" + "0" * 64 + "/x",
    "/acme/legal/resolve/v1/README.md%0d%0aset-cookie:%20a=b",
    "/acme/legal/resolve/v1/\u00fc\u4e2d.json",
    "/acme/Legal/resolve/v1/README.md",
    "/Acme/legal/resolve/v1/README.md",
    "/api/models/acme/LEGAL/refs",
    "/api/models/acme/legal/revision/V1",
    "/api/models/acme/legal/revision/PROD",
    "/api/models/acme/legal/revision/refs%2Fheads%2Fmain",
    "/api/models/acme/legal/revision/refs%2Fpr%2F1",
    "/api/models/acme/legal/revision/%EF%BC%91",
    "/api/models/acme/legal/revision/01",
    "/api/models/acme/legal/revision/0",
    "/api/models/acme/legal/revision/-1",
    "/api/models/acme/legal/revision/1e0",
    "/api/models/acme/legal/revision/" + "1" * 5000,
    "/api/models/acme/legal/revision/%ED%A0%80",
    "/api/models/acme/legal/revision/main@sha256:" + "0" * 64,
    "/api/models/acme/legal/commits/%20",
    "/api/models/acme/legal/tree/prod%2F..%2Fmain",
    "/gpt2/resolve/main/config.json",
    "/api/models/gpt2",
]


def test_odd_paths_are_not_found(server: Server) -> None:
    for path in ODD:
        told = server.ask(path)
        assert told.status_code == 404, path
        known = ("RepoNotFound", "RevisionNotFound", "EntryNotFound")
        assert told.headers.get("x-error-code") in known or "%0d" in path, path
        assert told.headers.keys().isdisjoint(("x-evil", "set-cookie")), path


def test_one_damaged_adapter_is_left_out_of_the_list(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.app.state.services.access.share(AdapterName("ben", "mine"), "public")
    server.market.refresh()
    version = server.registry.resolve("ben/mine")
    path = server.home.parent / "registry" / "manifests" / version.digest.replace(":", "/")
    path.write_bytes(b"changed")
    assert [each["id"] for each in server.ask("/api/models").json()] == ["acme/legal"]
    assert "ben/mine is not listed: The manifest of ben/mine:1 should have the digest" in caplog.text
    assert server.ask("/api/models/ben/mine").status_code == 500


LIST = """
import json
from huggingface_hub import HfApi
queries = {}, {"filter": "letters", "limit": 2}, {"filter": "letters"}
print(json.dumps([[model.id for model in HfApi().list_models(**each)] for each in queries]))
"""


def test_lists_go_on(server: Server, published: tuple[Fingerprint, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        server.registry.push(published[1], f"acme/{name}", base=server.base, tags=["letters"])
    server.market.refresh()
    monkeypatch.setattr("swapmeet.gateway.hub_api.listing.LOOKED_AT", 2)
    assert server.run(LIST) == [
        ["acme/a", "acme/b", "acme/c", "acme/legal"],
        ["acme/a", "acme/b"],
        ["acme/a", "acme/b", "acme/c"],
    ]
    many = "+".join(map(str, range(1500)))
    for query in (
        f"search={many}",
        f"filter={many.replace('+', ',')}",
        "limit=0",
        "limit=-1",
        "limit=x",
        "num_parameters=1B",
        "gated=true",
    ):
        assert server.ask(f"/api/models?{query}").status_code == 400


def test_what_the_index_answers_is_read_only_where_it_matches(
    server: Server, published: tuple[Fingerprint, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.registry.push(published[1], "acme/free", base=server.base, license="MIT")
    server.registry.push(
        published[1], "acme/own", base=server.base, license="Our Own", tags=["license:mit", "task:law"]
    )
    server.market.refresh()
    looked_at, described = [], listing._described
    monkeypatch.setattr(listing, "_described", lambda *given: looked_at.append(given[2]) or described(*given))
    base = f"base:{server.base.weights}"
    for asked, wanted in {
        "license:mit": ["acme/free", "acme/own"],
        "license:apache-2.0": [],
        "task:law": ["acme/own"],
        base: ["acme/free", "acme/legal", "acme/own"],
        f"{base},license:mit,peft": ["acme/free", "acme/own"],
        "base:sha256:" + "0" * 64: [],
    }.items():
        looked_at.clear()
        answer = server.ask("/api/models", params={"filter": asked})
        assert [each["id"] for each in answer.json()] == sorted(looked_at) == wanted, asked
        assert "link" not in answer.headers
    own = server.ask("/api/models", params={"filter": "license:other"}).json()
    assert [each["id"] for each in own] == ["acme/own"]


def test_a_page_takes_a_short_time_and_the_next_goes_on(
    server: Server, published: tuple[Fingerprint, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a slow store names are looked at beside each other, and no page takes long; together they are complete."""
    for number in range(5):
        server.registry.push(published[1], f"acme/n{number}", base=server.base)
    server.market.refresh()
    described, at_once, most = listing._described, 0, 0

    def slow(*given: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        at_once -= 1
        return described(*given)

    monkeypatch.setattr(listing, "_described", slow)
    monkeypatch.setattr(listing, "AT_ONCE", 2)
    monkeypatch.setattr(listing, "SECONDS", 0.0)
    for asked, wanted in {
        "base_model:nowhere/none": [],
        "peft": [*(f"acme/n{n}" for n in range(5)), "acme/legal"],
    }.items():
        path, found, pages = f"/api/models?filter={asked}", [], 0
        while path:
            answer = server.ask(path)
            found += [each["id"] for each in answer.json()]
            path, pages = answer.links.get("next", {}).get("url", "").removeprefix(server.url), pages + 1
        assert (sorted(found), most) == (sorted(wanted), 2)
        assert pages == 4, "two names each, and behind the last it is not known that nothing follows"


def test_paths_info_takes_forms_and_json(server: Server) -> None:
    place = "/api/models/acme/legal/paths-info/main"
    for more in ({"data": {"paths": [CARD, "x"], "expand": "false"}}, {"json": {"paths": [CARD, "x"]}}):
        (entry,) = server.ask(place, method="POST", **more).json()
        assert (entry["path"], len(entry["oid"]), len(entry["lfs"]["oid"])) == (CARD, 40, 64)
    broken = {"content": b"{", "headers": {"content-type": "application/json"}}
    many, long = {"data": {"paths": ["x"] * 20_000}}, {"json": {"paths": ["x" * (1 << 20)]}}
    for wrong in ({"json": {"paths": [1]}}, {"json": [1]}, {"json": {}}, broken, many, long, {"data": {"x": "1"}}):
        assert server.ask(place, method="POST", **wrong).status_code == 400
