"""The marketplace over HTTP: who finds what, honest counts, cards, and an index that is never behind for long."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from swapmeet import adapter_access
from swapmeet.client import Client
from swapmeet.database import Database
from swapmeet.database.tables import DownloadRow
from swapmeet.marketplace import Market, counters
from swapmeet_registry import AdapterName, Fingerprint, Registry
from swapmeet_registry.index import Query
from swapmeet_registry.store_backend import StoreBackend

LEGAL = AdapterName("acme", "legal")
CARD = "---\npurpose: Answers questions about law\n---\nText <script>alert(1)</script>here.\n"


@pytest.fixture
def market(database: Database, tmp_path: Path) -> Market:
    return Market(database, Registry((tmp_path / "registry").as_uri()))


@pytest.fixture
def shop(platform: Any, published: tuple[Fingerprint, Path], tmp_path: Path) -> Any:
    """The API with the tenants acme, beta and carol; acme has a private, a shared and a public adapter."""
    for tenant in ("acme", "beta", "carol"):
        platform.add(tenant)
    for name in ("private", "shared", "public"):
        platform.registry.push(platform.adapter, f"acme/{name}", base=platform.base, license="MIT", tags=["law"])
    access = platform.client.app.state.services.access
    access.share(AdapterName("acme", "shared"), "shared", ["beta"])
    access.share(AdapterName("acme", "public"), "public")
    platform.client.app.state.market.refresh()
    return platform


def found(platform: Any, who: str, path: str) -> list[str]:
    return sorted({hit["name"].partition("/")[2] for hit in platform.do(who, "GET", path)["data"]})


def test_withdrawn_adapters_are_not_read_at_each_list_of_models(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        version = shop.registry.push(shop.adapter, f"acme/gone-{number}", base=shop.base)
        shop.registry.withdraw(version.pinned, "deleted" if number % 2 else "yanked", "wrong")
    shop.client.app.state.market.refresh()
    reads: list[str] = []
    head = StoreBackend.head
    monkeypatch.setattr(StoreBackend, "head", lambda self, name: reads.append(str(name)) or head(self, name))

    def models() -> list[str]:
        reads.clear()
        told = shop.ask("acme", "GET", "/v1/models").json()["data"]
        return [model["id"] for model in told if "gone" in model["id"]]

    assert models() == []
    assert sum("gone" in name for name in reads) == 5
    assert models() == []
    assert reads == []
    shop.registry.push(shop.adapter, "acme/gone-0", base=shop.base)
    shop.client.app.state.market.note("acme/gone-0")
    assert models() == ["acme/gone-0"]
    shop.registry.push(shop.adapter, "acme/gone-1", base=shop.base)  # past the server
    monkeypatch.setattr(adapter_access, "monotonic", lambda: time.monotonic() + adapter_access.REMEMBERED)
    assert models() == ["acme/gone-0", "acme/gone-1"]


def test_everybody_finds_own_shared_and_public_ones(shop: Any) -> None:
    manifest = shop.registry.manifest(shop.registry.resolve("acme/private"))
    weights = next(file.sha256 for file in manifest.files if file.path == "adapter_model.safetensors")
    for path in (
        "search", "search?query=acme", "search?tag=law&license=mit&sort=date", f"files-by-hash/{weights}",
        f"search?base={shop.base.weights}&versions=true", "search?owner=acme&rank_min=1&size_max=99999999",
    ):  # fmt: skip
        assert found(shop, "acme", path) == found(shop, "admin", path) == ["private", "public", "shared"]
        assert found(shop, "beta", path) == ["public", "shared"]
        assert found(shop, "carol", path) == ["public"]
    assert found(shop, "acme", "search?query=nothing") == []
    page = shop.do("acme", "GET", "search?limit=2")
    assert page["has_more"]
    rest = shop.do("acme", "GET", f"search?limit=2&cursor={page['next_cursor']}")
    assert (len(rest["data"]), rest["has_more"], rest["next_cursor"]) == (1, False, None)


def test_all_mistakes_are_told(shop: Any) -> None:
    for query in ("sort=name", "cursor=x", "metric=loss", "rank_min=-1", "limit=0", "query=%00"):
        answer = shop.ask("acme", "GET", f"/v1/search?{query}")
        assert answer.status_code == 400, query
        assert answer.json()["error"]["message"]
    message = shop.ask("acme", "GET", "/v1/search?metric=a&metric=b<c&cursor=x").json()["error"]["message"]
    assert all(part in message for part in ("'a'", "'b<c'", "after"))
    assert shop.ask("acme", "GET", "/v1/files-by-hash/nothing").status_code == 400


def test_what_is_private_does_not_exist_for_others(shop: Any) -> None:
    for method, what in (("GET", "card"), ("GET", "likes"), ("PUT", "likes"), ("DELETE", "likes")):
        private = shop.ask("beta", method, f"/v1/adapters/acme/private/{what}")
        nothing = shop.ask("beta", method, f"/v1/adapters/acme/nothing/{what}")
        assert private.status_code == nothing.status_code == 404
        assert private.text.replace("private", "nothing") == nothing.text
    assert shop.do("acme", "GET", "adapters/acme/private/likes")["likes"] == 0


def test_likes_are_one_for_each_tenant(shop: Any) -> None:
    path = "adapters/acme/public/likes"
    for who in ("beta", "beta", "carol"):
        liked = shop.do(who, "PUT", path)
    assert (liked["likes"], liked["liked"], "days" in liked) == (2, True, False)
    (first, *_) = shop.do("acme", "GET", "search?sort=likes")["data"]
    assert (first["name"], first["likes"]) == ("acme/public", 2)
    for _ in range(2):
        shop.do("beta", "DELETE", path)
    received = shop.do("acme", "GET", path)
    assert (received["likes"], received["liked"], received["days"]) == (1, False, [])
    shop.client.app.state.market.index.rebuild(shop.registry)
    shop.client.app.state.market.counters.recount()
    assert shop.do("acme", "GET", "search?sort=likes")["data"][0]["likes"] == 1


def test_a_card_over_http(shop: Any, tmp_path: Path) -> None:
    folder = tmp_path / "carded"
    folder.mkdir()
    for file in shop.adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "README.md").write_text(CARD)
    shop.registry.push(folder, "acme/public", base=shop.base, license="MIT")
    shop.client.app.state.market.note("acme/public")
    card = shop.do("carol", "GET", "adapters/acme/public/card")
    assert (card["version"], card["purpose"], card["text"]) == (2, "Answers questions about law", "Text alert(1)here.")
    assert (card["likes"], card["downloads"], card["newer"]) == (0, 0, None)
    assert shop.do("carol", "GET", "adapters/acme/public/card?version=1")["newer"] == 2
    told = shop.do("carol", "GET", "adapters/acme/public/newer?version=1")["newer"]
    assert (told["version"], told["digest"]) == (2, card["digest"])
    assert shop.do("carol", "GET", "adapters/acme/public/newer?version=2")["newer"] is None
    text = shop.ask("carol", "GET", "/v1/adapters/acme/public/card?format=markdown&version=latest")
    assert text.headers["content-type"].startswith("text/markdown")
    assert "| licence | MIT |" in text.text
    assert "<script" not in text.text
    assert shop.ask("carol", "GET", "/v1/adapters/acme/public/card?version=9").status_code == 404
    assert found(shop, "carol", "search?query=question+law") == ["public"]


def test_deleting_a_model_is_known_at_once(shop: Any) -> None:
    assert shop.ask("acme", "DELETE", "/v1/models/acme/public").status_code == 200
    assert found(shop, "carol", "search") == []


def push(market: Market, published: tuple[Fingerprint, Path], name: str = "acme/legal") -> Any:
    return market._registry.push(published[1], name, base=published[0])


def test_downloads_are_one_for_each_tenant_version_and_day(
    market: Market, database: Database, published: tuple[Fingerprint, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    version, second = push(market, published), push(market, published)
    market.counters.downloaded(version, "acme")  # before the index knows of it
    market.refresh()
    failed: list[Exception] = []

    def fetch(tenant: str) -> None:
        try:
            for _ in range(3):
                market.counters.downloaded(version, tenant)
            market.counters.like(LEGAL, tenant)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=fetch, args=(f"tenant-{place % 4}",)) for place in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    market.counters.downloaded(second, "acme")
    received = market.counters.popularity(LEGAL, "tenant-1", days=True)
    assert (received.likes, received.liked, received.downloads) == (4, True, 6)
    (hit,) = market.index.search(Query(sort="downloads")).hits
    assert (hit.likes, hit.downloads) == (4, 6)  # though nobody recounted
    today = counters._today()
    monkeypatch.setattr(counters, "_today", lambda: today.replace(year=today.year + 1))
    market.counters.downloaded(version, "acme")
    assert market.counters.popularity(LEGAL, "acme", days=True).days[0][1] == 1
    assert market.counters.popularity(LEGAL, "acme", days=False) == counters.Popularity(4, False, 7)
    assert len(database.read(lambda session: list(session.scalars(select(DownloadRow.day))))) == 7


def test_a_hundred_clients_lose_and_double_no_count(market: Market, published: tuple[Fingerprint, Path]) -> None:
    """Of 25 tenants with 4 clients each, beside others who publish and rebuild the index."""
    versions = [push(market, published), push(market, published)]
    market.refresh()
    failed: list[Exception] = []
    ready, done = threading.Barrier(100), threading.Event()

    def use(place: int) -> None:
        tenant, takes_back = f"tenant-{place % 25}", place % 25 >= 20
        ready.wait()
        try:
            for version in versions:
                market.counters.downloaded(version, tenant)
            market.counters.like(LEGAL, tenant)
            if takes_back:
                market.counters.unlike(LEGAL, tenant)
        except Exception as error:
            failed.append(error)

    def rebuild() -> None:
        while not done.is_set():
            market.index.rebuild(market._registry)

    clients = [threading.Thread(target=use, args=(place,)) for place in range(100)]
    beside = threading.Thread(target=rebuild)
    for thread in (beside, *clients):
        thread.start()
    for thread in clients:
        thread.join()
    done.set()
    beside.join()
    assert failed == []
    assert market.counters.popularity(LEGAL, "tenant-1", days=False) == counters.Popularity(20, True, 50)
    for hit in market.index.search(Query(versions=True)).hits:
        assert (hit.likes, hit.downloads) == (20, 50)  # the copies, though nobody recounted


def test_an_index_that_was_lost_is_made_again(
    market: Market, database: Database, published: tuple[Fingerprint, Path]
) -> None:
    push(market, published)
    market.refresh()
    with database.engine.execution_options(swapmeet_writes=True).begin() as connection:
        connection.exec_driver_sql("DROP TABLE index_words")
        connection.exec_driver_sql("DROP TABLE index_state")
    market.refresh()
    assert [hit.name for hit in market.index.search(Query("legal")).hits] == ["acme/legal"]


def test_counts_outlive_the_index(market: Market, published: tuple[Fingerprint, Path]) -> None:
    push(market, published)
    market.refresh()
    market.counters.like(LEGAL, "beta")
    market.index.rebuild(market._registry)
    assert market.index.search(Query()).hits[0].likes == 1
    market.index.prepare(anew=True)
    market.index.refresh(market._registry)
    assert market.index.search(Query()).hits[0].likes == 0
    market.refresh()
    assert market.index.search(Query()).hits[0].likes == 1
    push(market, published)
    market.note("acme/legal")
    (hit,) = market.index.search(Query()).hits
    assert (hit.version, hit.likes) == (2, 1)


def test_what_others_publish_is_found_by_itself(
    market: Market, published: tuple[Fingerprint, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swapmeet.marketplace.market.PAUSE", 0.05)
    monkeypatch.setattr("swapmeet.marketplace.market.SHARE", 0)
    stop = threading.Event()
    thread = threading.Thread(target=market.serve, args=(stop,))
    thread.start()
    try:
        push(market, published)
        until = threading.Event()
        for _ in range(600):
            if market.index.search(Query("legal")).hits:
                break
            until.wait(0.05)
        assert market.index.search(Query("legal")).hits
    finally:
        stop.set()
        thread.join()


def test_the_command_line_with_a_server(
    shop: Any, command_line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Connected(Client):
        """Asks the app under test, with carol's key."""

        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.http.close()
            self.http = shop.client
            shop.client.headers["authorization"] = f"Bearer {shop.keys['carol']}"

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setenv("SWAPMEET_URL", "http://testserver")
    monkeypatch.setenv("SWAPMEET_API_KEY", shop.keys["carol"])
    monkeypatch.setattr("swapmeet.client.Client", Connected)
    done = command_line("search", "law", "--license", "MIT", "--tag", "law", "--versions", "--size-max", "1G")
    assert (done.code, done.out.split("\t")[:2]) == (0, ["acme/public", "1"]), done.err
    liked = command_line("like", "acme/public")
    assert (liked.code, liked.out.split()[:2]) == (0, ["likes", "1"]), liked.err
    assert '"likes": 1' in command_line("search", "--sort", "likes", "--json").out
    assert command_line("unlike", "acme/public").out.split()[:2] == ["likes", "0"]
    assert "# acme/public" in command_line("card", "acme/public:1").out
    assert '"visibility": "public"' in command_line("card", "acme/public", "--json").out
    weights = shop.adapter / "adapter_model.safetensors"
    assert command_line("find-file", weights).out.startswith("acme/public:1 sha256:")
    private = command_line("like", "acme/private")
    assert (private.code, "There is no adapter acme/private" in private.err) == (1, True)
    assert command_line("search", "--metric", "loss").code == 1


def test_the_command_line_without_a_server(
    command_line: Callable[..., Any],
    published: tuple[Fingerprint, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    registry = Registry((tmp_path / "registry").as_uri())
    registry.push(published[1], "acme/legal", base=published[0], tags=["law"])
    where = ("--registry", registry.backend.url)
    done = command_line("search", "law", "--base", "tiny", "--rank-min", 1, "--size-max", "1G", *where)
    assert (done.code, done.out.split("\t")[:2]) == (0, ["acme/legal", "1"])
    assert '"name": "acme/legal"' in command_line("search", "--json", "--sort", "date", *where).out
    assert command_line("search", "nothing", *where).out == "Nothing fits. Try fewer words or filters.\n"
    assert "# acme/legal" in command_line("card", "acme/legal:1", *where).out
    assert '"digest"' in command_line("card", "acme/legal", "--json", *where).out
    weights = published[1] / "adapter_model.safetensors"
    assert command_line("find-file", weights, *where).out.startswith("acme/legal:1 sha256:")
    wrong = command_line("search", "--metric", "loss", "--limit", 0, *where)
    assert (wrong.code, "'loss' is no range" in wrong.err, "limit must" in wrong.err) == (1, True, True)
    assert command_line("search", "--size-max", "many", *where).code == 2
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    broken = command_line("search", *where)
    assert (broken.code, "XDG_CACHE_HOME" in broken.err) == (1, True)
