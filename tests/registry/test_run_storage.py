"""What runs leave in a storage, on each kind of store; it stands here because the S3 server does."""

from pathlib import Path

import pytest

from swapmeet_registry import Corrupt
from swapmeet_registry.stores import open_store
from swapmeet_training.attempts.run_storage import RunStorage


@pytest.fixture
def runs(store_url: str) -> RunStorage:
    return RunStorage(open_store(store_url), "ftjob-1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    for name, data in ((".state/optimizer", b"o" * 3_000_000), ("adapter_config.json", b"{}"), ("same.json", b"{}")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_comes_back_as_it_was_kept(runs: RunStorage, folder: Path, tmp_path: Path) -> None:
    key, history = runs.key(1, "checkpoint-20"), tmp_path / "history.jsonl"
    history.write_text("step 1")
    runs.keep(key, folder, {"best": None}, history)
    kept = runs.fetch(key, tmp_path / "all")
    assert kept.facts == {"best": None}
    assert files(tmp_path / "all") == files(folder)
    runs.fetch(key, tmp_path / "some", frozenset({"adapter_config.json"}))
    assert files(tmp_path / "some") == {"adapter_config.json": b"{}"}
    assert kept.history is not None
    runs.fetch_entry(key, kept.history, tmp_path / "told")
    assert (tmp_path / "told").read_text() == "step 1"


def test_only_whole_folders_count(runs: RunStorage, folder: Path, tmp_path: Path) -> None:
    for attempt, step in ((1, 8), (1, 10), (2, 9)):
        runs.keep(runs.key(attempt, f"checkpoint-{step}"), folder, {})
    assert list(runs.checkpoints()) == [
        f"runs/ftjob-1/{end}" for end in ("1/checkpoint-10", "1/checkpoint-8", "2/checkpoint-9")
    ]
    assert runs.newest(2, None) == "runs/ftjob-1/1/checkpoint-10"
    runs.store.delete("runs/ftjob-1/1/checkpoint-10.json")
    assert runs.newest(2, None) == "runs/ftjob-1/1/checkpoint-8"
    assert runs.newest(3, "runs/ftjob-1/1/checkpoint-8") == "runs/ftjob-1/2/checkpoint-9"
    runs.drop("runs/ftjob-1/1/checkpoint-8")
    assert [key for key in runs.store.list("runs/") if "checkpoint-8" in key] == []
    with pytest.raises(Corrupt, match="has lost runs/ftjob-1/1/checkpoint-8"):
        runs.fetch("runs/ftjob-1/1/checkpoint-8", tmp_path / "gone")
