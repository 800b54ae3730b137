"""What can go wrong between a Hub and here: lost answers, refusals, other writers, and what they leave."""

import base64
import hashlib
import logging
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Answer, LoopbackHub, User
from huggingface_hub import HfApi

from swapmeet_registry import (
    AdapterName,
    Conflict,
    Corrupt,
    Fingerprint,
    NotFound,
    Provenance,
    Registry,
    StoreDenied,
    StoreError,
    StoreFull,
)

Forward = Callable[[], Answer]
NAME, REPOSITORY, TOKEN = "acme/legal", "Lab-1/acme.legal", "hf_loopbackToken0123456789"
WEIGHTS = "adapter_model.safetensors"
COMMIT = ("POST", r"/commit/main$")


def lose(forward: Forward) -> None:
    """The write takes place, and its answer never arrives."""
    forward()


def fail(forward: Forward) -> Answer:
    """The write takes place, and the answer says that it did not."""
    forward()
    return Answer(500, b"Internal Error")


def drop(forward: Forward) -> None:
    """The write never arrives."""


def busy(forward: Forward) -> Answer:
    return Answer(503, b'{"error": "Service Unavailable"}')


def repeated(forward: Forward) -> Answer:
    """Something on the way sends the write twice, and passes on the second answer."""
    forward()
    return forward()


def limited(forward: Forward) -> Answer:
    return Answer(429, b"", {"RateLimit": '"api";r=0;t=0', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swapmeet_registry.stores.hub_errors.PAUSES", (0.01,) * 6)


@pytest.fixture
def registry(hub: LoopbackHub) -> Registry:
    return Registry("hf://Lab-1")


@pytest.fixture
def folder(make_adapter: Callable[..., Path], tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")


def of(hub: LoopbackHub, name: str = REPOSITORY) -> Any:
    return hub.repositories[name.lower()]


def files_at(hub: LoopbackHub, revision: str) -> dict[str, bytes]:
    repository = of(hub)
    return {path: repository.content(file) for path, file in repository.tree(revision).items()}


# --- lost answers

WRITES = [
    (("POST", r"/api/repos/create"), [lose, drop]),
    (("POST", r"/preupload/"), [drop]),
    (("POST", r"/objects/batch"), [drop]),
    (("PUT", r"/storage/"), [lose, drop]),
    (("POST", r"/objects/verify"), [drop]),
    (("POST", r"/validate-yaml"), [drop, busy, fail]),
    (COMMIT, [lose, fail, drop, busy, repeated, limited]),
    (("POST", r"/tag/"), [lose, fail, drop, busy, limited]),
]


@pytest.mark.parametrize(("write", "fault"), [(write, fault) for write, faults in WRITES for fault in faults])
def test_a_publish_happens_once_whatever_becomes_of_an_answer(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint, write: Any, fault: Any
) -> None:
    hub.inject(*write, fault)
    version = registry.push(folder, NAME, base=base, alias="prod")
    assert hub.pending == 0
    assert registry.verify(f"{NAME}:prod") == version
    assert [known.version for known in registry.show(NAME).versions] == [1]
    assert [commit.title for commit in of(hub).history("main")] == ["Version 1 of acme/legal", "initial commit"]
    assert of(hub).tags == {"v1": of(hub).branches["main"]}


@pytest.mark.parametrize("fault", [lose, fail, drop, busy, repeated, limited])
def test_an_alias_moves_once_whatever_becomes_of_the_answer(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint, fault: Any
) -> None:
    registry.push(folder, NAME, base=base)
    hub.inject(*COMMIT, fault, fault)
    registry.tag(NAME, "prod", "1", expect=0)
    assert len(registry.show(NAME).history) == 1
    assert len(of(hub).history("main")) == 3


def test_a_commit_that_takes_place_after_its_answer(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint
) -> None:
    late: list[threading.Timer] = []

    def postpone(forward: Forward) -> Answer:
        late.append(threading.Timer(0.3, forward))
        late[0].start()
        return Answer(504, b"Gateway Time-out")

    hub.inject(*COMMIT, postpone)
    version = registry.push(folder, NAME, base=base)
    late[0].join()
    assert registry.verify(NAME) == version
    assert len(of(hub).history("main")) == 2


def test_a_publish_whose_answer_is_lost_and_that_is_built_upon_happens_once(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint
) -> None:
    def lose_and_build_upon(forward: Forward) -> None:
        forward()
        registry.push(folder, NAME, base=base)

    hub.inject(*COMMIT, lose_and_build_upon)
    version = registry.push(folder, NAME, base=base, alias="prod")
    assert version.version == 1
    listing = registry.show(NAME)
    assert [known.version for known in listing.versions] == [1, 2]
    assert listing.aliases == {"prod": 1, "latest": 2}
    assert sorted(of(hub).tags) == ["v1", "v2"]


def test_an_overtaken_publish_is_the_next_version_with_its_own_files(
    registry: Registry, hub: LoopbackHub, make_adapter: Any, base: Fingerprint, tmp_path: Path, monkeypatch: Any
) -> None:
    """A file that was on the branch when it was uploaded, and is not any more, goes up again."""
    mine, theirs = make_adapter(tmp_path / "mine", 1), make_adapter(tmp_path / "theirs", 2, lora_alpha=16)
    (theirs / "extra.json").write_text("{}")
    registry.push(mine, NAME, base=base)
    overtaken = False

    def overtake(step: str) -> None:
        nonlocal overtaken
        if step in ("push.before_head", "hub.before_commit") and not overtaken:
            overtaken = True
            registry.push(theirs, NAME, base=base)

    for number, step in enumerate(("push.before_head", "hub.before_commit")):
        overtaken = False
        monkeypatch.setattr("swapmeet_registry.fault.hook", lambda at, step=step: overtake(at) if at == step else None)
        version = registry.push(mine, NAME, base=base)
        assert (overtaken, version.version) == (True, 3 + 2 * number)
        assert registry.verify(str(version)) == version
        (weights,) = [file for file in registry.manifest(version).files if file.path == WEIGHTS]
        assert hashlib.sha256(files_at(hub, f"v{version.version}")[WEIGHTS]).hexdigest() == weights.sha256
        assert "extra.json" not in files_at(hub, f"v{version.version}")
        assert "extra.json" in files_at(hub, f"v{version.version - 1}")


def test_a_hub_that_never_takes_a_commit_is_an_error(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint
) -> None:
    hub.inject(*COMMIT, *[busy] * 6)
    with pytest.raises(StoreError, match=r"keeps failing to take a commit to Lab-1/acme\.legal\. Try again later"):
        registry.push(folder, NAME, base=base)
    assert registry.names() == []


def test_a_hub_that_asks_for_a_long_pause_is_an_error_that_says_how_long(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint
) -> None:
    registry.push(folder, NAME, base=base)
    for request in (COMMIT, ("GET", r"/resolve/")):
        hub.inject(*request, lambda _: Answer(429, b"", {"Retry-After": "3600"}))
        with pytest.raises(StoreError, match=r"no more requests for Lab-1/acme\.legal now \(429\)\. Wait 3600 sec"):
            registry.tag(NAME, "prod", "1")


def test_a_tag_that_can_not_be_set_is_set_by_the_next_publish(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint, caplog: pytest.LogCaptureFixture
) -> None:
    hub.inject("POST", r"/tag/", *[busy] * 7)
    first = registry.push(folder, NAME, base=base)
    assert "has no tag yet: the next push sets it." in caplog.text
    assert of(hub).tags == {}
    registry.tag(NAME, "prod", "1")
    assert registry.verify(NAME) == first
    second = registry.push(folder, NAME, base=base)
    titles = {tag: of(hub).commits[commit].title for tag, commit in of(hub).tags.items()}
    assert titles == {"v1": "Version 1 of acme/legal", "v2": "Version 2 of acme/legal"}
    assert (registry.verify(f"{NAME}:1"), registry.verify(NAME)) == (first, second)


def test_a_run_that_is_published_again_sets_the_tag(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint
) -> None:
    first = registry.push(folder, NAME, base=base, run="ftjob-1")
    of(hub).tags.clear()
    assert registry.push(folder, NAME, base=base, run="ftjob-1") == first
    assert list(of(hub).tags) == ["v1"]


# --- who may what


def test_without_a_token(registry: Registry, folder: Path, base: Fingerprint, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.push(folder, NAME, base=base)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(NotFound, match=r"no adapter acme/legal .* HF_TOKEN to one that may read Lab-1/acme\.legal at"):
        registry.resolve(NAME)
    for name in (NAME, "acme/new"):
        with pytest.raises(StoreDenied, match=r"set HF_TOKEN or run `hf auth login`|refuses this token"):
            registry.push(folder, name, base=base)
    assert registry.names() == []


def test_a_wrong_token(registry: Registry, folder: Path, base: Fingerprint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    calls: list[Callable[[], object]] = [
        lambda: registry.resolve(NAME),
        registry.names,
        lambda: registry.push(folder, NAME, base=base),
    ]
    for call in calls:
        with pytest.raises(StoreDenied, match=r"refuses this token .*Invalid credentials.* Check HF_TOKEN"):
            call()


def test_a_token_that_may_only_read(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint, tmp_path: Path, monkeypatch: Any
) -> None:
    version = registry.push(folder, NAME, base=base)
    hub.users["hf_reader"] = User("bob", {"lab-1": "read"})
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert registry.pull(NAME, tmp_path / "pulled") == version
    for attempt in (
        lambda: registry.push(folder, NAME, base=base),
        lambda: registry.push(folder, "acme/new", base=base),
        lambda: registry.tag(NAME, "prod", "1"),
    ):
        with pytest.raises(StoreDenied, match=r"does not allow this for .*Use a token with write access to it"):
            attempt()


def test_a_token_from_a_file(
    registry: Registry, folder: Path, base: Fingerprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "no-token").write_text(TOKEN)  # where `hf auth login` would have put it
    assert registry.push(folder, NAME, base=base).version == 1


@pytest.mark.parametrize("visibility", ["private", "public", "gated"])
def test_who_sees_what_is_published(
    hub: LoopbackHub, folder: Path, base: Fingerprint, tmp_path: Path, monkeypatch: Any, visibility: str
) -> None:
    registry = Registry(f"hf://Lab-1?visibility={visibility}")
    registry.push(folder, NAME, base=base)
    hub.users["hf_stranger"] = User("eve")
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    if visibility == "private":
        with pytest.raises(NotFound, match=r"what is private looks as if it were missing"):
            registry.pull(NAME, tmp_path / "pulled")
    elif visibility == "gated":
        with pytest.raises(StoreDenied, match=r"acme\.legal is gated. Accept its terms at http.*/Lab-1/acme\.legal"):
            registry.pull(NAME, tmp_path / "pulled")
        of(hub).granted.add("eve")
    if visibility != "private":
        assert registry.names() == [NAME]
        registry.pull(NAME, tmp_path / "pulled")
        assert (tmp_path / "pulled" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_no_token_in_errors_and_logs(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Even where a server repeats what it was sent."""
    caplog.set_level(logging.DEBUG)
    said = {"X-Error-Message": f"token {TOKEN} may not do this", "X-Error-Code": "Odd"}
    hub.inject("GET", r"/resolve/", *[lambda _: Answer(status, b"", said)] * 7)
    with pytest.raises(StoreError, match=r"token … may not") as caught:
        registry.resolve(NAME)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    assert not [line for line in caplog.records if TOKEN in line.getMessage() and "httpcore" not in line.name]


def test_a_full_plan(registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint) -> None:
    said = {"X-Error-Message": "Private repository storage limit reached"}
    hub.inject(*COMMIT, lambda _: Answer(403, b"", said))
    with pytest.raises(StoreFull, match=r"has no space for Lab-1/acme\.legal \(403: Private repository storage limit"):
        registry.push(folder, NAME, base=base)


def test_a_hub_that_is_away(registry: Registry, folder: Path, base: Fingerprint, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"Can not reach the Hub at http://127.0.0.1:9 for .* Check HF_ENDPOINT"):
        registry.resolve(NAME)


def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("http://[bad", "http://127.0.0.1:99999"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(StoreError, match=r"HF_ENDPOINT is .*, which is no address"):
            Registry("hf://acme")


# --- others who write


def test_what_another_tool_wrote_is_said_so_and_can_be_taken_over(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint
) -> None:
    api = HfApi(endpoint=hub.address)
    api.create_repo(REPOSITORY)
    api.upload_file(path_or_fileobj=b"pickle", path_in_repo="adapter_model.bin", repo_id=REPOSITORY)
    api.create_tag(REPOSITORY, tag="released")
    with pytest.raises(NotFound, match=r"acme\.legal at http.* is there, but .* Push to it to take it over, or"):
        registry.resolve(NAME)
    assert registry.names() == []
    version = registry.push(folder, NAME, base=base)
    assert registry.verify(NAME) == version
    assert "adapter_model.bin" not in files_at(hub, "v1")
    assert "adapter_model.bin" in files_at(hub, "released")
    assert of(hub).private is False, "whoever takes over does not change who sees it"


def test_edits_on_the_branch_disturb_nobody(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint
) -> None:
    first = registry.push(folder, NAME, base=base)
    api = HfApi(endpoint=hub.address)
    api.upload_file(path_or_fileobj=b"# Mine", path_in_repo="README.md", repo_id=REPOSITORY)
    api.upload_file(path_or_fileobj=b"*.json\n.swapmeet\n*.safetensors", path_in_repo=".gitignore", repo_id=REPOSITORY)
    assert registry.verify(NAME) == first
    registry.tag(NAME, "prod", "1")
    second = registry.push(folder, NAME, base=base)
    assert registry.verify(NAME) == second
    assert {"README.md", ".gitignore", "adapter_config.json", ".swapmeet/head.json"} <= files_at(hub, "v2").keys()


def test_an_edit_between_reading_and_writing_is_not_overwritten(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint
) -> None:
    registry.push(folder, NAME, base=base)
    backend = registry.backend
    stored = backend.head(AdapterName.parse(NAME))
    assert stored is not None
    HfApi(endpoint=hub.address).upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=REPOSITORY)
    with pytest.raises(Conflict, match=r"Somebody else committed to Lab-1/acme\.legal first"):
        backend.swap(AdapterName.parse(NAME), registry._heads.get(AdapterName.parse(NAME)), stored.etag)


def test_a_branch_that_was_moved_back_is_noticed(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint
) -> None:
    for _ in range(2):
        registry.push(folder, NAME, base=base)
    newest = of(hub).branches["main"]
    of(hub).branches["main"] = of(hub).tags["v1"]
    with pytest.raises(Corrupt, match=r"has the tag v2, and its branch main knows of 1 versions only: somebody moved"):
        registry.push(folder, NAME, base=base)
    of(hub).branches["main"] = newest
    assert registry.push(folder, NAME, base=base).version == 3


def test_a_tag_that_was_moved_or_removed_is_noticed(
    registry: Registry, hub: LoopbackHub, make_adapter: Any, base: Fingerprint, tmp_path: Path
) -> None:
    for seed in range(2):
        registry.push(make_adapter(tmp_path / f"adapter-{seed}", seed), NAME, base=base)
    right = of(hub).tags["v1"]
    for tags in ({"v1": of(hub).tags["v2"]}, {}):
        of(hub).tags.pop("v1")
        of(hub).tags |= tags
        with pytest.raises(Corrupt, match=r"manifest of acme/legal:1 .* the tag v1 of Lab-1/acme\.legal at .* holds"):
            registry.pull(f"{NAME}:1", tmp_path / "pulled")
    registry.push(tmp_path / "adapter-0", NAME, base=base)
    assert of(hub).tags["v1"] == right
    registry.verify(f"{NAME}:1")


# --- bytes


def test_large_files_go_in_parts_and_come_with_ranges(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("swapmeet_registry.stores.hub.SMALL", 100)
    hub.part_size = 700
    version = registry.push(folder, NAME, base=base)
    data = (folder / WEIGHTS).read_bytes()
    parts = {path for method, path in hub.requests if method == "PUT" and path.startswith("/storage/")}
    assert len(parts) == -(-len(data) // 700)

    def cut(forward: Forward) -> Answer:
        answer = forward()
        return Answer(answer.status, answer.body[:1000], answer.headers | {"X-Cut": "1"})

    hub.requests.clear()
    hub.inject("GET", r"/storage/", cut, busy)
    assert registry.pull(NAME, tmp_path / "pulled") == version
    assert (tmp_path / "pulled" / WEIGHTS).read_bytes() == data
    assert len([path for method, path in hub.requests if path.startswith("/storage/")]) == 3


def test_what_the_hub_lists_with_another_digest_is_not_fetched(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint, monkeypatch: Any
) -> None:
    monkeypatch.setattr("swapmeet_registry.stores.hub.SMALL", 100)
    registry.push(folder, NAME, base=base)
    of(hub).tamper("v1", WEIGHTS, b"other")
    hub.requests.clear()
    with pytest.raises(Corrupt, match=rf"{WEIGHTS} of acme/legal:1 .* holds 5 bytes with sha256:"):
        registry.verify(NAME)
    assert not any(path.startswith("/storage/") for _, path in hub.requests)


def test_identity_is_verified_without_fetching_weights(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint
) -> None:
    version = registry.push(folder, NAME, base=base)
    hub.requests.clear()
    assert registry.verify(NAME, read=False) == version
    of(hub).tamper("v1", WEIGHTS, b"other")
    with pytest.raises(Corrupt, match=rf"{WEIGHTS} of acme/legal:1 .* holds 5 bytes with sha256:"):
        registry.verify(NAME, read=False)
    assert not any(path.startswith("/storage/") for _, path in hub.requests)


def test_a_large_file_that_changes_after_its_upload_is_refused(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint, monkeypatch: Any
) -> None:
    monkeypatch.setattr("swapmeet_registry.stores.hub.SMALL", 100)

    def change(forward: Forward) -> Answer:
        answer = forward()
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1] + b"\0")
        return answer

    hub.inject("PUT", r"/storage/", change)
    with pytest.raises(ValueError, match=rf"{WEIGHTS} changed while it was published"):
        registry.push(folder, NAME, base=base)
    assert registry.names() == []


def test_a_repository_is_what_peft_wants_and_says_what_it_is(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint
) -> None:
    (folder / "README.md").write_text("---\nbase_model: /tmp/base\n---\nIt knows the law.\n")
    Provenance(base=base, metrics={"eval_loss": 0.125}, license="LLaMA Community 9", tags=("law",)).write(folder)
    version = registry.push(folder, NAME, base=base)
    files = files_at(hub, "v1")
    assert sorted(files) == [
        ".gitattributes", ".swapmeet/README.md", ".swapmeet/head.json", ".swapmeet/manifest.json", ".swapmeet/nonce",
        "README.md",
        "adapter_config.json", WEIGHTS, "swapmeet.json",
    ]  # fmt: skip
    for file in registry.manifest(version).files:
        if file.path != "README.md":
            assert hashlib.sha256(files[file.path]).hexdigest() == file.sha256
    assert files[".swapmeet/README.md"] == (folder / "README.md").read_bytes()
    card = HfApi(endpoint=hub.address).model_info(REPOSITORY, revision="v1").card_data
    assert card is not None
    assert (card.base_model, card.license, card.license_name) == ("somewhere/base", "other", "llama-community-9")
    assert (card.library_name, card.tags) == ("peft", ["swapmeet", "lora", "law"])
    assert [(result.metric_type, result.metric_value) for result in card.eval_results or ()] == [("eval_loss", 0.125)]
    text = files["README.md"].decode()
    assert version.digest in text
    assert 'PeftModel.from_pretrained(base, "Lab-1/acme.legal", revision="v1")' in text
    assert text.endswith("It knows the law.\n")
    assert "/tmp/base" not in text


def test_names_of_all_forms_in_pages(registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint) -> None:
    names = sorted(["lab-1/own", "lab-1/own-1.5", "acme/legal", "a.b/c--d", f"{'t' * 63}/{'n' * 63}"])
    for name in names:
        registry.push(folder, name, base=base)
    HfApi(endpoint=hub.address).create_repo("Lab-1/something-else")
    hub.page = 2
    assert registry.names() == names
    assert of(hub, "Lab-1/own").tags.keys() == {"v1"}


def test_a_head_in_a_repository_of_no_adapter_is_no_name(
    registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint
) -> None:
    registry.push(folder, NAME, base=base)
    stored = registry.backend.head(AdapterName.parse(NAME))
    assert stored is not None
    api = HfApi(endpoint=hub.address)
    for name in ("adapter-" + "0" * 40, "Upper"):
        api.create_repo(f"Lab-1/{name}")
        api.upload_file(path_or_fileobj=stored.data, path_in_repo=".swapmeet/head.json", repo_id=f"Lab-1/{name}")
    assert registry.names() == [NAME]


def test_how_many_requests_things_take(registry: Registry, hub: LoopbackHub, folder: Path, base: Fingerprint) -> None:
    registry.push(folder, NAME, base=base)
    counts = {}
    for what, call in {
        "resolve": lambda: registry.resolve(NAME),
        "tag": lambda: registry.tag(NAME, f"at-{time.time_ns()}", "1"),
        "push": lambda: registry.push(folder, NAME, base=base),
    }.items():
        hub.requests.clear()
        call()
        counts[what] = len([path for _, path in hub.requests if "resolve-cache" not in path])
    assert counts["resolve"] == 1
    assert counts["tag"] <= 3
    assert counts["push"] <= 13


def test_the_server_compares_parents_and_digests(hub: LoopbackHub) -> None:
    """The tool itself: what it must refuse, it refuses."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=hub.address)
    api.create_repo(REPOSITORY)
    parent = api.model_info(REPOSITORY).sha
    for expected in (200, 412):
        operation = CommitOperationAdd("x.txt", f"{expected}".encode())
        if expected == 200:
            api.create_commit(REPOSITORY, [operation], commit_message="x", parent_commit=parent)
        else:
            with pytest.raises(HfHubHTTPError, match="412"):
                api.create_commit(REPOSITORY, [operation], commit_message="x", parent_commit=parent)
    wrong = CommitOperationAdd("y.bin", b"y")
    wrong.upload_info.sha256 = bytes(32)
    with pytest.raises(RuntimeError, match="Error while uploading"):
        api.create_commit(REPOSITORY, [wrong], commit_message="y")
    never = [
        {"key": "header", "value": {"summary": "z"}},
        {"key": "lfsFile", "value": {"path": "z.bin", "algo": "sha256", "oid": "0" * 64}},
    ]
    with pytest.raises(Exception, match="does not exist"):
        of(hub).commit("main", never, "alice")
    assert base64.b64encode(files_at(hub, "main")["x.txt"]) == base64.b64encode(b"200")
