"""The index finds what the registry has, for whom it is, whatever happened, on either database."""

import json
import pickle
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from swapmeet_registry import AdapterName, Fingerprint, InvalidQuery, Provenance, Registry
from swapmeet_registry.index import Index, Page, Query, engines, finding, open_index, writing
from swapmeet_registry.index import index as module
from swapmeet_registry.index.tables import VERSIONS
from swapmeet_registry.index.words import words

CARD = """---
purpose: Answers questions about German tenancy law
task: question-answering
---
Ask about *Kündigungsfristen*, rent and deposits. 東京の賃貸
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
    """An empty index, in either database."""
    kept = f"sqlite:///{tmp_path}/index.db"
    made = Index(kept if request.param == "sqlite" else request.getfixturevalue("postgres_url"))
    made.prepare()
    yield made
    made.close()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry((tmp_path / "registry").as_uri())


@pytest.fixture
def push(
    registry: Registry, make_adapter: Callable[..., Path], base: Fingerprint, tmp_path: Path
) -> Callable[..., Any]:
    """`push(name, card=None, base=…, license=…, tags=…, **metrics)`."""
    count = iter(range(1000))

    def make(name: str, card: str | None = None, on: Fingerprint = base, **given: Any) -> Any:
        seed = next(count)
        folder = make_adapter(tmp_path / f"adapter-{seed}", seed)
        if card is not None:
            (folder / "README.md").write_text(card)
        named = {key: given.pop(key) for key in ("license", "tags") if key in given}
        Provenance.build(base=on, metrics=given).write(folder)
        return registry.push(folder, name, base=on, **named)

    return make


def names(page: Page) -> list[str]:
    return [hit.name for hit in page.hits]


def everything(index: Index) -> list[Any]:
    """All that is found, without what only a platform counts."""
    found = index.search(Query(versions=True, sort="date", limit=200))
    assert found.next is None
    return [*found.hits]


def test_adapters_are_found_by_words_and_filters(
    index: Index, registry: Registry, push: Callable[..., Any], other_base: Fingerprint
) -> None:
    push("acme/tenancy", CARD, license="Apache-2.0", tags=["law", "German"], eval_loss=0.5, accuracy=0.9)
    push("acme/tenancy-old", license="MIT", tags=["law"], eval_loss=0.9)
    push("beta/french", "Speaks French.", on=other_base, tags=["task:translation"])
    assert index.refresh(registry) == 3

    def found(*words: str, **filters: Any) -> set[str]:
        return set(names(index.search(Query(*words, **filters))))

    both = {"acme/tenancy", "acme/tenancy-old"}
    assert found() == both | {"beta/french"}
    assert found("tenancy") == found("TENAN law") == both
    assert found("german question") == found("kundigungs") == found("東 賃") == {"acme/tenancy"}
    assert found("tenancy french") == found("nothing") == found("!!!") == set()
    assert found(base="tiny") == found(base="sha256:" + "a" * 64) == both
    assert found(base="Other") == {"beta/french"}
    assert found(task="question-answering") == {"acme/tenancy"}
    assert found(task="Translation") == found("translation") == {"beta/french"}
    assert found(tags=("law",)) == both
    assert found(tags=("law", "german")) == found(license="apache-2.0") == {"acme/tenancy"}
    assert found(owner="beta") == {"beta/french"}
    assert found(rank_min=4, rank_max=4) == both | {"beta/french"}
    assert found(rank_min=5) == found(rank_max=3) == found(size_max=10) == set()
    assert found(metrics=("eval_loss<=0.5",)) == found(metrics=("eval_loss<0.9", "accuracy>0.8")) == {"acme/tenancy"}
    assert found(metrics=("eval_loss=0.9",)) == {"acme/tenancy-old"}
    assert found("law", base="tiny", license="mit", metrics=("eval_loss>0",)) == {"acme/tenancy-old"}
    (hit,) = index.search(Query("deposits")).hits
    assert (hit.purpose, hit.task) == ("Answers questions about German tenancy law", "question-answering")
    assert (hit.license, hit.tags, hit.metrics) == (
        "Apache-2.0",
        ("law", "German"),
        {"eval_loss": 0.5, "accuracy": 0.9},
    )
    assert (hit.rank, hit.targets, hit.base, hit.visibility) == (4, ("q_proj", "v_proj"), "tiny", "private")


def test_readers_find_their_own_shared_and_public_ones(
    index: Index, registry: Registry, push: Callable[..., Any]
) -> None:
    for name in ("acme/private", "acme/shared", "acme/public"):
        push(name, tags=["x"])
    registry.share("acme/shared", "shared", ["beta", "carol"])
    registry.share("acme/public", "public")
    index.refresh(registry)
    sha = registry.manifest(registry.resolve("acme/private")).files[0].sha256
    for reader, seen in {
        "acme": {"acme/private", "acme/shared", "acme/public"},
        "beta": {"acme/shared", "acme/public"},
        "dave": {"acme/public"},
    }.items():
        for query in (Query(), Query("acme"), Query(tags=("x",)), Query("x", sort="date"), Query(versions=True)):
            assert set(names(index.search(query, reader))) == seen
        assert {hit.name for hit in index.by_file(sha, reader)} == seen  # all have one configuration
        assert set(names(index.on_base("sha256:" + "a" * 64, reader))) == seen
    registry.share("acme/shared", "private")
    registry.share("acme/public", "private")
    index.update(registry, "acme/shared")
    index.update(registry, "acme/public")
    assert names(index.search(Query(), "beta")) == names(index.search(Query("acme"), "dave")) == []


def test_versions_come_and_go(index: Index, registry: Registry, push: Callable[..., Any]) -> None:
    for _ in range(4):
        push("acme/legal")
    index.update(registry, "acme/legal")
    newest = lambda: [(hit.name, hit.version) for hit in index.search(Query()).hits]  # noqa: E731
    all_ = lambda: [hit.version for hit in index.search(Query(versions=True, sort="date")).hits]  # noqa: E731
    assert (newest(), all_()) == ([("acme/legal", 4)], [4, 3, 2, 1])
    assert index.newer("acme/legal", 4) is None
    assert index.newer("acme/legal", 2).version == 4  # type: ignore[union-attr]
    registry.yank("acme/legal:4", "Wrong data.")
    registry.recall("acme/legal:2", "Leaks.")
    index.update(registry, "acme/legal")
    assert (newest(), all_()) == ([("acme/legal", 3)], [3, 1])
    weights = [f.sha256 for f in registry.manifest(registry.show("acme/legal").versions[1]).files if "model" in f.path]
    assert [(hit.version, hit.withdrawn) for hit in index.by_file(weights[0])] == [(2, "recalled")]
    registry.delete("acme/legal:2", "Gone.")
    index.update(registry, "acme/legal")
    assert index.by_file(weights[0]) == ()
    for number in (1, 3, 4):
        registry.delete(f"acme/legal:{number}", "Gone.")
    index.refresh(registry)
    assert (newest(), index.newer("acme/legal", 1)) == ([], None)
    push("acme/legal")
    index.refresh(registry)
    assert newest() == [("acme/legal", 5)]


def test_refreshing_reads_only_what_changed_and_gives_what_rebuilding_gives(
    index: Index, registry: Registry, push: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("acme/a", "acme/a-b", "acme/a.b", "beta/a"):
        push(name, CARD, tags=["law"], loss=0.1)
    assert index.refresh(registry) == 4
    monkeypatch.setattr(module, "YOUNG_SECONDS", 0.0)
    index.refresh(registry)
    assert index.refresh(registry) == 0
    push("acme/a", tags=["new"])
    registry.share("beta/a", "public")
    assert index.refresh(registry) == 2
    incremental = everything(index)
    assert index.rebuild(registry) == 4
    assert everything(index) == incremental
    assert len(incremental) == 5
    registry.backend.store.delete("heads/acme/a.b.json")  # type: ignore[attr-defined]
    assert index.refresh(registry) == 1
    assert "acme/a.b" not in names(index.search(Query()))


@pytest.mark.parametrize("few", [0, 3, finding.FEW])
def test_pages_hold_each_result_once(
    index: Index, registry: Registry, push: Callable[..., Any], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "FEW", few)
    for number in range(7):
        push(f"acme/legal-{number}", f"law {'law ' * number}")
    index.refresh(registry)
    for query in (
        {"sort": "date"},
        {"sort": "likes"},
        {"sort": "downloads"},
        {},
        {"words": "law"},
        {"words": "legal law", "sort": "date"},
    ):
        after, seen = None, []
        while True:
            page = index.search(Query(**query, after=after, limit=3))  # type: ignore[arg-type]
            seen += names(page)
            after = page.next
            if after is None:
                break
        assert sorted(seen) == [f"acme/legal-{number}" for number in range(7)], query
    assert names(index.search(Query(sort="date", limit=1))) == ["acme/legal-6"]


def test_pages_stay_apart_where_results_become_many(
    index: Index, registry: Registry, push: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words of few results are weighed, of many not: a page goes on as the one before it began."""
    for number in range(5):
        push(f"acme/legal-{number}", f"law {'law ' * number}")
    index.refresh(registry)
    for first, then in ((3, finding.FEW), (finding.FEW, 3)):
        monkeypatch.setattr(finding, "FEW", first)
        page = index.search(Query("law", limit=2))
        monkeypatch.setattr(finding, "FEW", then)
        rest = index.search(Query("law", limit=3, after=page.next))
        assert sorted(names(page) + names(rest)) == [f"acme/legal-{number}" for number in range(5)]
        assert rest.next is None


def test_a_rebuild_shows_all_meanwhile_and_if_it_ends_half_way(
    index: Index, registry: Registry, push: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        push(f"acme/a{number}", CARD, tags=["law"], loss=0.1)
    index.refresh(registry)
    before = everything(index)
    monkeypatch.setattr(module, "AT_ONCE", 1)
    write, seen = writing.write, []

    def killed(*arguments: Any) -> Any:
        seen.append(everything(index) == before)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(writing, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        index.rebuild(registry)
    assert seen == [True] * 3
    monkeypatch.setattr(writing, "write", write)
    assert everything(index) == before
    assert len(index.search(Query("law")).hits) == len(index.search(Query(metrics=("loss<1",))).hits) == 4
    assert index.rebuild(registry) == 4
    assert everything(index) == before


def test_an_index_of_another_version_is_made_anew(
    index: Index, registry: Registry, push: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    push("acme/a")
    index.refresh(registry)
    monkeypatch.setattr("swapmeet_registry.index.tables.SCHEMA", 1000)
    index.prepare()
    assert index.search(Query()).hits == ()
    assert index.refresh(registry) == 1
    assert names(index.search(Query())) == ["acme/a"]


def test_a_word_in_the_name_counts_more_than_one_in_the_text(
    index: Index, registry: Registry, push: Callable[..., Any]
) -> None:
    push("acme/tax", "Knows taxes.")
    push("acme/other", "It also knows about tax, among many other things that are told here at some length.")
    index.refresh(registry)
    assert names(index.search(Query("tax"))) == ["acme/tax", "acme/other"]


def test_an_older_state_never_replaces_a_newer_one(
    index: Index, registry: Registry, push: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    push("acme/legal")
    looked, go_on = threading.Event(), threading.Event()
    look = module.look

    def slow(*arguments: Any) -> Any:
        found = look(*arguments)
        if threading.current_thread().name == "slow" and not looked.is_set():
            looked.set()
            assert go_on.wait(30)
        return found

    monkeypatch.setattr(module, "look", slow)
    registry.share("acme/legal", "public")
    late = threading.Thread(target=index.update, args=(registry, "acme/legal"), name="slow")
    late.start()
    assert looked.wait(30)
    registry.share("acme/legal", "private")
    index.update(registry, "acme/legal")
    go_on.set()
    late.join()
    assert names(index.search(Query(), "beta")) == []
    assert names(index.search(Query(), "acme")) == ["acme/legal"]


def test_a_rebuild_makes_anew_what_others_write_meanwhile_too(
    index: Index, registry: Registry, push: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    push("acme/legal", tags=["law"])
    index.refresh(registry)
    before = everything(index)
    with engines.writing(index._engine) as connection:
        connection.execute(VERSIONS.update().values(rank=999))
    look, begun = module.look, []

    def overtaken(*arguments: Any) -> Any:
        found = look(*arguments)
        if not begun:
            begun.append(True)
            index.update(registry, "acme/legal")
        return found

    monkeypatch.setattr(module, "look", overtaken)
    assert index.rebuild(registry) == 1
    assert everything(index) == before


def test_a_head_that_was_restored_may_number_versions_anew(
    index: Index, registry: Registry, push: Callable[..., Any]
) -> None:
    versions = [push("acme/legal") for _ in range(3)]
    index.refresh(registry)
    name, head = AdapterName.parse("acme/legal"), registry.head("acme/legal")
    kept = (head.versions[0], head.versions[2].model_copy(update={"version": 2}))
    stored = registry.backend.head(name)
    assert stored is not None
    registry.backend.swap(name, head.model_copy(update={"versions": kept}), stored.etag)
    index.refresh(registry)
    found = [(hit.version, hit.digest) for hit in everything(index)]
    assert found == [(2, versions[2].digest), (1, versions[0].digest)]


def test_a_name_with_more_versions_than_a_statement_takes(
    registry: Registry, push: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any tenant may have one; the databases' limits, of tens of thousands, are made small here."""
    monkeypatch.setattr(writing, "AT_ONCE", 20)
    for _ in range(30):
        push("acme/legal")
    index = Index(f"sqlite:///{tmp_path}/index.db")
    limit = sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER
    event.listen(index._engine, "connect", lambda connection, _: connection.setlimit(limit, 28))
    index.prepare()
    index.refresh(registry)
    before = everything(index)
    assert len(before) == 30
    assert index.rebuild(registry) == 1
    assert everything(index) == before
    index.close()


def test_many_may_write_it_at_once(index: Index, registry: Registry, push: Callable[..., Any]) -> None:
    for number in range(12):
        push(f"acme/a{number % 4}")
    failed: list[Exception] = []

    def work(place: int) -> None:
        own: Index = pickle.loads(pickle.dumps(index))
        try:
            own.rebuild(registry) if place % 2 else own.refresh(registry)
            own.update(registry, f"acme/a{place}")
        except Exception as error:
            failed.append(error)
        finally:
            own.close()

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    incremental = everything(index)
    index.rebuild(registry)
    assert everything(index) == incremental
    assert len(incremental) == 12


def test_damage_of_one_keeps_no_other_from_being_found(
    index: Index, registry: Registry, push: Callable[..., Any]
) -> None:
    damaged, headless = push("acme/damaged"), push("acme/headless")
    push("acme/good")
    store: Any = registry.backend.store  # type: ignore[attr-defined]
    store.delete(f"manifests/{damaged.digest.replace(':', '/')}")
    store.swap("heads/acme/headless.json", b"{}", store.get("heads/acme/headless.json").etag)
    store.swap("heads/nonsense.json", b"{}", None)
    index.refresh(registry)
    assert names(index.search(Query())) == ["acme/good"]
    assert headless.version == 1


def test_damage_that_is_found_between_two_looks_keeps_no_other_from_being_found(
    index: Index,
    registry: Registry,
    push: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another writes the adapter between the first look and its row; when it is looked at again its head is damaged."""
    push("acme/first")
    push("acme/good")
    store, write = registry.backend.store, module.writing.write  # type: ignore[attr-defined]

    def late(connection: Any, changes: list[Any]) -> list[str]:
        lost = [each.name for each in changes if each.name == "acme/first"]
        key = "heads/acme/first.json"
        if lost:
            store.swap(key, b"{%d}" % len(store.get(key).data), store.get(key).etag)
        return [*write(connection, [each for each in changes if each.name not in lost]), *lost]

    monkeypatch.setattr(module.writing, "write", late)
    index.refresh(registry)
    assert names(index.search(Query())) == ["acme/good"]
    assert "acme/first stays as it is in the index" in caplog.text


@pytest.mark.parametrize(
    "words_", ["'; DROP TABLE index_state --", '" OR "', "a:b* NEAR(x)", "\\' & | !", "%", "-- <->", "x" * 900]
)
@pytest.mark.usefixtures("anything_said")
def test_words_are_never_commands(index: Index, registry: Registry, push: Callable[..., Any], words_: str) -> None:
    push("acme/legal", tags=["it's", 'a"b', "\\", "nul\0nul", "ß" * 64])
    index.refresh(registry)
    assert index.search(Query(words_)).hits == ()
    assert names(index.search(Query(tags=("it's", "\\", "nulnul", "ß" * 64)))) == ["acme/legal"]


def test_all_mistakes_are_told_at_once() -> None:
    wrong: dict[str, Any] = {"sort": "name", "limit": 0, "rank_min": -1, "owner": "a\0", "metrics": ("x<<1", "y<nan")}
    with pytest.raises(InvalidQuery) as raised:
        Query("x" * 2000, **wrong)
    for part in ("words", "owner", "rank_min", "sort must", "limit", "'x<<1'", "'y<nan'"):
        assert part in str(raised.value)
    for after in ("", "!", "e30", "W10", Query().cursor(1.0, "2026", 1), Query(sort="date").cursor(2**70, "x", 1)):
        with pytest.raises(InvalidQuery, match="after must be"):
            Query(sort="date", after=after)
    with pytest.raises(InvalidQuery, match="must be a text"):
        Query("\ud800")


def test_words_are_folded() -> None:
    assert words("Ünïcode_snake-case v1.5 ÉCOLE straße") == ["unicode", "snake", "case", "v1", "5", "ecole", "strasse"]
    assert words("東京タワーabc") == [*"東京タワー", "abc"]
    assert words("") == words("!?* \0") == []


def test_searching_without_a_server(
    url: str, make_adapter: Callable[..., Path], base: Fingerprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every kind of place; the index may be lost, damaged or another version's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    registry = Registry(url)
    assert registry.search().hits == ()
    registry.push(make_adapter(tmp_path / "a"), "acme/legal", base=base, tags=["law"])
    assert names(registry.search("law", rank_min=2)) == ["acme/legal"]
    (file,) = (tmp_path / "cache").rglob("*.db")
    for damage in (b"", b"no database at all, and longer than a header " * 10):
        file.write_bytes(damage)
        assert names(registry.search("law")) == ["acme/legal"]
    for part in file.parent.iterdir():
        part.unlink()
    registry.push(make_adapter(tmp_path / "b", 1), "acme/new", base=base)
    assert sorted(names(registry.search())) == ["acme/legal", "acme/new"]
    assert open_index(registry, lambda index: index.newer("acme/legal", 0)) is not None
    assert names(registry.search(reader="beta")) == []


def test_results_can_be_told_as_json(index: Index, registry: Registry, push: Callable[..., Any]) -> None:
    push("acme/legal", CARD)
    index.refresh(registry)
    from dataclasses import asdict

    (hit,) = index.search(Query()).hits
    assert json.loads(json.dumps(asdict(hit)))["name"] == "acme/legal"
