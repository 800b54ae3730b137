"""What is published and deleted while the registry is counted: every version is counted once, in whatever order."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swapmeet.adapter_withdrawals import withdraw
from swapmeet.database import Database
from swapmeet.database.tables import ChangeRow, TenantRow
from swapmeet.database.tables.base import now
from swapmeet.tenancy.stocktaking import Stocktaking, files_of, note_deleted, note_published
from swapmeet_registry import AdapterName, Fingerprint, Registry, Version
from swapmeet_registry.head import Head
from swapmeet_registry.heads import Heads

Steps = list[Callable[[], None]]
STOPS = 5
"""A count of two names asks for them, reads each, and writes; something may happen before each, and after all."""


class World:
    """Some versions without a file in common, which come and go under names of `acme`, and their count."""

    def __init__(self, database: Database, folder: Path, versions: list[Version]) -> None:
        self.database, self.folder, self.versions = database, folder, versions
        self.registry = registry = Registry(f"file://{folder}")
        self.sizes = {each.digest: registry.manifest(each).size for each in versions}
        self.names = ["acme/a", "acme/b"]
        self._heads = Heads(registry.backend)
        self.count = Stocktaking(database, registry).count

    def begin(self) -> None:
        """Nothing is counted, and nothing under two names."""
        shutil.rmtree(self.folder / "heads" / "acme", ignore_errors=True)

        def work(session: Any) -> None:
            session.query(ChangeRow).delete()
            session.query(TenantRow).update({"adapter_bytes": 0, "adapter_versions": 0})

        self.database.write(work)
        for name in self.names:
            self.change(name, lambda head: head.share("public"))

    def change(self, name: str, change: Callable[[Head], Head]) -> Head:
        return self._heads.change(AdapterName.parse(name), change, Head(adapter=name))

    def life(self, which: int, end: int, age: timedelta = timedelta()) -> Steps:
        """The steps of a version's life up to one: published, noted, deleted, noted; notes may come twice."""
        name, digest = self.names[which % 2], self.versions[which].digest
        created = f"{now() - age:%Y-%m-%dT%H:%M:%S.%fZ}"

        def version() -> Version:
            return self.registry.find(f"{name}@{digest}")

        def publish() -> None:
            self.change(name, lambda head: head.publish(digest, created, digest))

        def published() -> None:
            for _ in range(2):
                self.database.write(lambda session: note_published(session, version(), self.sizes[digest]))

        def delete() -> None:
            assert self.registry.withdraw(f"{name}@{digest}", "deleted", "gone").first

        def deleted() -> None:
            files = files_of(self.registry.manifest(self.versions[which]))
            for _ in range(2):
                self.database.write(lambda session: note_deleted(session, version(), files))

        return [publish, published, delete, deleted][:end]

    def right(self) -> tuple[int, int]:
        living = [each for name in self.names for each in self.registry.show(name).versions if each.deleted is None]
        return sum(self.sizes[each.digest] for each in living), len(living)

    def counted(self) -> tuple[int, int]:
        row = self.database.read(lambda session: session.get_one(TenantRow, "acme"))
        return row.adapter_bytes, row.adapter_versions

    def count_between(self, steps: Iterator[Steps]) -> None:
        """Count, with some steps before each of what a count does."""
        world = self

        def go_on() -> None:
            for step in next(steps):
                step()

        class Between:
            def names(self) -> list[str]:
                go_on()
                return list(world.names)

            def head(self, name: str) -> Head:
                go_on()
                return world.registry.head(name)

            def manifest(self, version: Version) -> Any:
                return world.registry.manifest(version)

            def write(self, work: Any) -> None:
                go_on()
                world.database.write(work)

        between: Any = Between()
        Stocktaking(between, between).count()
        go_on()


@pytest.fixture(scope="module")
def made(
    random_lora: Callable[..., Path],
    tiny_llama: Path,
    published: tuple[Fingerprint, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[Version]]:
    """A registry's folder, and versions in it that have no file in common."""
    folder = tmp_path_factory.mktemp("made")
    registry = Registry(f"file://{folder}/registry")
    adapters = [random_lora(tiny_llama, folder / f"adapter-{rank}", rank=rank) for rank in (1, 2, 3)]
    for adapter in adapters:
        (adapter / "README.md").unlink(missing_ok=True)
    return folder / "registry", [registry.push(adapter, "others/made", base=published[0]) for adapter in adapters]


@pytest.fixture
def world(database: Database, made: tuple[Path, list[Version]], tmp_path: Path) -> World:
    shutil.copytree(made[0], tmp_path / "registry")
    database.write(lambda session: session.add(TenantRow(name="acme")))
    return World(database, tmp_path / "registry", made[1])


def test_whatever_happens_during_a_count_is_counted_once(world: World) -> None:
    """All of it is right once the last note is written, without another count."""

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        world.begin()
        stops: list[Steps] = [[] for _ in range(STOPS)]
        for which in range(len(world.versions)):
            life = world.life(which, data.draw(st.sampled_from([2, 4])))
            places = sorted(data.draw(st.lists(st.integers(0, STOPS - 1), min_size=len(life), max_size=len(life))))
            for place, step in zip(places, life, strict=True):
                stops[place].append(step)
        for place in data.draw(st.lists(st.integers(0, STOPS - 1), max_size=2)):
            at = data.draw(st.integers(0, len(stops[place])))
            stops[place].insert(at, world.count)  # by another server
        world.count_between(iter(stops))
        assert world.counted() == world.right()
        world.count()
        assert world.counted() == world.right()

    run()


def test_a_version_that_comes_or_goes_beside_a_count(world: World) -> None:
    """The head is changed at one place of a count, and that is noted there or later."""
    for stop, noted in itertools.combinations_with_replacement(range(STOPS), 2):
        world.begin()
        for step in (*world.life(0, 2), *world.life(1, 2)):
            step()
        stops: list[Steps] = [[] for _ in range(STOPS)]
        publish, published = world.life(2, 2)
        *_, delete, deleted = world.life(1, 4)
        stops[stop] += [publish, delete]
        stops[noted] += [published, deleted]
        world.count_between(iter(stops))
        assert world.counted() == world.right(), (stop, noted)


def test_counts_of_several_servers_beside_those_who_publish_and_delete(world: World) -> None:
    """For real: nobody waits for another who waits for him, and in the end the count is right."""

    def live(which: int) -> None:
        for step in world.life(which, 4 if which else 2):
            step()

    for _ in range(5):
        world.begin()
        works = [partial(live, which) for which in range(3)]
        works += [Stocktaking(world.database, world.registry).count for _ in range(4)]
        with ThreadPoolExecutor(len(works)) as pool:
            for done in [pool.submit(work) for work in works]:
                done.result()
        assert world.counted() == world.right() == (world.sizes[world.versions[0].digest], 1)


def test_old_versions_go_once(world: World) -> None:
    """Of what is older than the rows are kept nothing is noted, and it was counted long ago."""
    world.begin()
    publish, published, delete, deleted = world.life(0, 4, age=timedelta(days=30))
    publish()
    world.count()
    assert world.database.read(lambda session: session.query(ChangeRow).count()) == 0
    published()
    assert world.counted() == world.right(), "a publish that was done long ago is repeated"
    delete()
    deleted()
    assert world.counted() == (0, 0)
    world.count()


@pytest.mark.parametrize(("age", "stays"), [(timedelta(days=1), True), (timedelta(days=3), False)])
def test_what_was_noted_is_forgotten_in_the_end(world: World, age: timedelta, stays: bool) -> None:
    world.begin()
    row = ChangeRow(name="acme/gone", digest="sha256:" + "0" * 64, bytes=7, deleted=False, at=now() - age)
    world.database.write(lambda session: session.add(row))
    world.count()
    assert world.counted() == ((7, 1) if stays else (0, 0))


def test_a_yank_and_a_recall_free_nothing_and_a_deletion_once(world: World) -> None:
    world.begin()
    for step in (*world.life(0, 2), *world.life(1, 2)):
        step()
    ref = f"{world.names[0]}:1"
    full = world.counted()
    for how in ("yanked", "recalled", "yanked"):
        withdraw(world.registry, world.database, ref, how, "wrong")  # type: ignore[arg-type]
        assert world.counted() == full
        world.count()
        assert world.counted() == full
    for _ in range(2):
        withdraw(world.registry, world.database, ref, "deleted", "wrong")
        assert world.counted() == world.right() == (world.sizes[world.versions[1].digest], 1)
    withdraw(world.registry, world.database, ref, "recalled", "wrong")
    assert world.counted() == world.right()
