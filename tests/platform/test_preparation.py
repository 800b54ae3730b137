"""What a server needs before it starts; a disk that is not mounted is told from a first start."""

from pathlib import Path

import pytest

from swapmeet.preparation import FOLDERS, prepare
from swapmeet.settings import Settings
from swapmeet_registry import StoreError
from swapmeet_registry.stores import local


@pytest.mark.parametrize("kind", ["registry", "storage"])
def test_a_folder_that_an_earlier_start_made_must_still_be_there(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, home = tmp_path / "disk", tmp_path / "home"
    disk.mkdir()
    settings = Settings(home=home, **{kind: f"file://{disk}/{kind}"})
    key = prepare(settings)
    assert prepare(settings) == key
    assert (home / FOLDERS).read_text().splitlines() == [f"file://{disk}/{kind}"], "once, and none of the home's own"
    disk.rename(tmp_path / "away")
    disk.mkdir()
    monkeypatch.setattr(local, "_used", set())  # as another process
    with pytest.raises(StoreError, match=r"Is its disk mounted\? .* delete its line in .*folders\.txt") as told:
        prepare(settings)
    assert f"{disk}/{kind} was in use" in str(told.value)
    disk.rmdir()
    (tmp_path / "away").rename(disk)
    assert prepare(settings) == key
    (home / FOLDERS).unlink()
    monkeypatch.setattr(local, "_used", set())
    assert prepare(Settings(home=home, **{kind: f"file://{tmp_path}/new/{kind}"})) == key
