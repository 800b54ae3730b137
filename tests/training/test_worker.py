"""The worker's side of an attempt, in this process: files, checkpoints and results through a real storage."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Corrupt, Provenance
from swapmeet_registry.bases import BaseLibrary
from swapmeet_registry.origin.provenance import Examples
from swapmeet_registry.stores import Store, open_store
from swapmeet_training import FineTune, Resources
from swapmeet_training.attempts import log as logs
from swapmeet_training.attempts.log import LINES, AttemptLog, add_last_words, log_length, log_lines
from swapmeet_training.attempts.run_storage import RunStorage, step_of
from swapmeet_training.attempts.scratch import scratch_folder
from swapmeet_training.attempts.telling import (
    Began,
    DataFile,
    Failed,
    Finished,
    Noted,
    Order,
    Ready,
    Saved,
    Stepped,
    Stopped,
    Telling,
)
from swapmeet_training.attempts.worker import work

JOB = "ftjob-1"
MakeOrder = Callable[..., Order]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/storage")


@pytest.fixture
def make_order(make_spec: Callable[..., FineTune], store: Store, tmp_path: Path) -> MakeOrder:
    spec = make_spec()
    BaseLibrary(tmp_path / "home").add(str(spec.base))

    def upload(path: Path) -> DataFile:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        store.put(f"files/{path.stem}", path, digest)
        return DataFile(f"files/{path.stem}", path.name, digest)

    assert spec.validation is not None
    order = Order(
        job=JOB,
        attempt=1,
        adapter="acme/dates",
        base="tiny-llama",
        settings={"batch_size": 4, "rank": 4, "epochs": 2, "save_every": 2, "dropout": 0.1},
        data=upload(spec.data),
        validation=upload(spec.validation),
        parent=None,
        resources=Resources(),
        memory=0,
        node="here",
        home=tmp_path / "home",
        storage=store.url,
        registry=f"file://{tmp_path}/registry",
        patience=20,
    )
    return lambda **changes: replace(order, **changes)


def attempt(order: Order, stop: Callable[[list[Telling]], bool] = lambda _: False) -> list[Telling]:
    told: list[Telling] = []
    work(order, told.append, lambda: stop(told))
    assert list((order.home / "scratch").iterdir()) == []
    return told


def steps(told: list[Telling]) -> list[int]:
    return [each.progress.step for each in told if isinstance(each, Stepped) and not each.progress.evaluation]


def weights(store: Store, finished: Telling, folder: Path) -> bytes:
    assert isinstance(finished, Finished)
    RunStorage(store, JOB).fetch(finished.adapter, folder)
    assert Provenance.read(folder) is not None
    return (folder / "adapter_model.safetensors").read_bytes()


def test_an_attempt_that_was_stopped_goes_on_elsewhere_as_if_it_never_had(
    make_order: MakeOrder, store: Store, tmp_path: Path
) -> None:
    told = attempt(make_order(job=JOB))
    assert told[0] == Began(None)
    (ready,) = [each for each in told if isinstance(each, Ready)]
    assert list(ready.moments) == ["process", "files", "data", "base", "adapter", "step"]
    assert sorted(ready.moments.values()) == list(ready.moments.values())
    assert steps(told) == [1, 2, 3, 4, 5, 6]
    assert [step_of(each.checkpoint) for each in told if isinstance(each, Saved)] == [2, 4, 6]
    calm = weights(store, told[-1], tmp_path / "calm")
    examples = store.get(f"runs/{JOB}/1/examples.json")
    assert examples is not None
    assert len(Examples.model_validate_json(examples.data).answers) == 3
    for key in list(store.list("runs/")):
        store.delete(key)

    first = attempt(make_order(), lambda told: len(steps(told)) == 3)
    assert isinstance(first[-1], Stopped)
    at = step_of(first[-1].checkpoint)
    assert at in (3, 4), "at the next boundary"
    shutil.rmtree(tmp_path / "home" / "scratch")  # another machine
    second = attempt(make_order(attempt=2, checkpoint=first[-1].checkpoint, step=at))
    assert second[0] == Began(first[-1].checkpoint)
    assert steps(second) == [*range(at + 1, 7)]
    assert weights(store, second[-1], tmp_path / "stopped") == calm
    log = list(log_lines(store, JOB, 2))
    assert any("step 6/6" in line for line in log)


def test_what_a_dead_attempt_did_not_tell_the_next_one_does(make_order: MakeOrder, store: Store) -> None:
    """It saved after a later step and died; the platform had heard of step 1 only."""
    first = attempt(make_order(), lambda told: len(steps(told)) == 3)
    second = attempt(make_order(attempt=2, checkpoint=None, step=1))
    assert isinstance(first[-1], Stopped)
    assert second[0] == Began(first[-1].checkpoint)
    assert steps(second) == [2, 3, 4, 5, 6]
    saved = [each for each in second if isinstance(each, Saved)]
    assert [each.checkpoint for each in saved[:2]] == [each.checkpoint for each in first if isinstance(each, Saved)]
    assert saved[1].metrics["step"] == step_of(saved[1].checkpoint)
    third = attempt(make_order(attempt=3, checkpoint=saved[-1].checkpoint, step=6))
    assert (steps(third), type(third[-1])) == ([], Finished), "the run was done, and only nobody had heard"


def test_of_a_run_that_finished_unheard_the_next_attempt_tells_everything(make_order: MakeOrder, store: Store) -> None:
    first = attempt(make_order())
    second = attempt(make_order(attempt=2, checkpoint=None, step=3))
    assert isinstance(second[0], Began)
    assert second[0].checkpoint == [each for each in first if isinstance(each, Saved)][-1].checkpoint
    assert steps(second) == [4, 5, 6]
    for kind in (Saved, Noted, Finished):
        assert [each for each in second if isinstance(each, kind)] == [each for each in first if isinstance(each, kind)]
    evaluated = [each for each in first if isinstance(each, Stepped) and each.progress.evaluation]
    assert [each for each in second if each in evaluated] == [each for each in evaluated if each.progress.step >= 3]


def test_an_attempt_goes_on_from_no_zombies_checkpoint(make_order: MakeOrder, store: Store, tmp_path: Path) -> None:
    runs, folder = RunStorage(store, JOB), tmp_path / "checkpoint"
    folder.mkdir()
    for number, step in ((1, 10), (1, 50), (2, 20), (3, 30), (4, 40)):
        runs.keep(runs.key(number, f"checkpoint-{step}"), folder, {})
    store.delete(runs.key(3, "checkpoint-30.json"))
    assert runs.newest(5, runs.key(2, "checkpoint-20")) == runs.key(4, "checkpoint-40")
    assert runs.newest(4, runs.key(2, "checkpoint-20")) == runs.key(2, "checkpoint-20"), "30 is not whole"
    assert runs.newest(1, None) is None


def test_the_storage_may_be_away_for_a_while(make_order: MakeOrder, store: Store, tmp_path: Path) -> None:
    storage, aside = tmp_path / "storage", tmp_path / "aside"
    back = threading.Event()

    def break_storage(told: list[Telling]) -> bool:
        if len(steps(told)) == 3 and not aside.exists() and not back.is_set():
            storage.rename(aside)
            storage.write_text("in the way")
            threading.Thread(target=mend).start()
        return False

    def mend() -> None:
        time.sleep(1)
        back.set()
        storage.unlink()
        aside.rename(storage)

    told = attempt(make_order(), break_storage)
    notes = [each for each in told if isinstance(each, Noted) and each.name.startswith("storage")]
    assert [(note.name, note.level) for note in notes] == [("storage-away-1-1", "warn"), ("storage-back-1-1", "info")]
    assert isinstance(told[-1], Finished)


def test_a_storage_that_stays_away_ends_the_attempt_and_not_the_job(make_order: MakeOrder, tmp_path: Path) -> None:
    (tmp_path / "storage").rename(tmp_path / "aside")
    (tmp_path / "storage").write_text("in the way")
    told = attempt(make_order(patience=0.1))
    assert isinstance(told[-1], Failed)
    assert (told[-1].code, told[-1].own) == ("store_unavailable", False)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"settings": {"rank": 0}}, "invalid_hyperparameters", "rank"),
        ({"settings": {"unknown": 1}}, "invalid_hyperparameters", "unknown is not a setting"),
        ({"base": "no-such-base"}, "base_not_found", "no base 'no-such-base'"),
        ({"data": DataFile("files/gone", "gone.jsonl", "0" * 64)}, "corrupt", "files/gone"),
    ],
)
def test_what_is_the_jobs_own_fault_is_said_so(
    make_order: MakeOrder, changes: dict[str, Any], code: str, words: str
) -> None:
    told = attempt(make_order(**changes))
    assert isinstance(told[-1], Failed)
    assert (told[-1].code, told[-1].own) == (code, True)
    assert words in told[-1].message


def test_a_checkpoint_that_was_damaged_is_not_gone_on_from(make_order: MakeOrder, store: Store) -> None:
    first = attempt(make_order(), lambda told: len(steps(told)) == 2)
    assert isinstance(first[-1], Stopped)
    runs = RunStorage(store, JOB)
    contents = runs.contents(first[-1].checkpoint)
    assert contents is not None
    victim = max(contents.files, key=lambda entry: entry.size)
    path = Path(store.url.removeprefix("file://")) / first[-1].checkpoint / victim.sha256
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(Corrupt, match="other bytes"):
        runs.fetch(first[-1].checkpoint, path.parent / "copy")
    told = attempt(make_order(attempt=2, checkpoint=first[-1].checkpoint))
    assert isinstance(told[-1], Failed)
    assert told[-1].code == "corrupt"


def test_what_killed_attempts_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = "import sys, os, pathlib; from swapmeet_training.attempts.scratch import scratch_folder\n"
    code += (
        "with scratch_folder(pathlib.Path(sys.argv[1]), 'killed-1') as folder: (folder / 'x').touch(); os.kill(0, 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], start_new_session=True, check=False)
    assert killed.returncode == -9
    assert (tmp_path / "killed-1" / "x").exists()
    with scratch_folder(tmp_path, "alive-1") as alive:
        assert not (tmp_path / "killed-1").exists()
        with scratch_folder(tmp_path, "alive-2"):
            assert alive.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_was_cut_is_told(store: Store) -> None:
    runs = RunStorage(store, JOB)
    runs.put(runs.key(1, "checkpoint-1.json"), json.dumps({"files": [{"path": "x"}]}).encode())
    with pytest.raises(Corrupt, match="damaged"):
        runs.contents(runs.key(1, "checkpoint-1"))


def test_the_log_of_an_attempt_says_what_it_is_and_how_it_ended(
    make_order: MakeOrder, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in mid-run, as far as it has come; and secrets of the environment are in none of it."""
    monkeypatch.setattr(logs, "KEEP_SECONDS", 0.01)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush-hush")
    order = make_order(settings={"rank": 4, "target_modules": ["hush-hush-hush"], "epochs": 1})
    told = attempt(order)
    assert isinstance(told[-1], Failed)
    log = list(log_lines(store, JOB, 1))
    whole = "\n".join(log)
    assert f"attempt 1 of {JOB}: acme/dates on tiny-llama" in log[0]
    assert '"rank": 4' in log[1]
    assert "peft 0." in log[3]
    assert "Traceback (most recent call last):" in whole
    assert "failed (invalid_hyperparameters, for good)" in log[-1]
    assert "hush" not in whole
    assert "[AWS_SECRET_ACCESS_KEY]" in whole

    seen: list[int] = []

    def watch(told: list[Telling]) -> bool:
        if len(steps(told)) == 3:
            time.sleep(0.2)
            seen.append(sum("step " in line for line in log_lines(store, JOB, 2)))
        return False

    attempt(make_order(attempt=2), watch)
    assert seen[0] >= 3, "and it still ran"


def test_long_logs_are_kept_in_pieces_and_gone_on_with(make_order: MakeOrder, store: Store) -> None:
    order = make_order()
    log = AttemptLog(order)
    for number in range(LINES + 10):
        log.write(f"line {number}")
        if number in (5, LINES - 1):
            log.keep()
    log.write("a\nb\x1b[2J\u2028c" + "x" * 10_000)
    log.keep()
    log.keep()
    assert log_length(store, JOB, 1) == LINES + 12
    assert len(list(store.list(f"runs/{JOB}/1/log/"))) == 2
    found = [line.partition(" ")[2] for line in log_lines(store, JOB, 1)]
    assert found[: LINES + 10] == [f"line {number}" for number in range(LINES + 10)]
    assert found[-2] == "a"
    assert found[-1].startswith("b [2J cxxx")
    assert len(found[-1]) < 5000
    assert [line.partition(" ")[2] for line in log_lines(store, JOB, 1, skip=LINES + 9)][:2] == [
        f"line {LINES + 9}",
        "a",
    ]
    assert list(log_lines(store, JOB, 1, skip=10 * LINES)) == []
    add_last_words(order, "it died\nof something", "failed")
    assert [line.partition(" ")[2] for line in log_lines(store, JOB, 1)][-3:] == ["it died", "of something", "failed"]
    assert log_length(store, JOB, 1) == LINES + 15
    assert (log_length(store, JOB, 2), list(log_lines(store, JOB, 2))) == (0, [])


def test_a_log_waits_for_the_storage(make_order: MakeOrder, store: Store, tmp_path: Path) -> None:
    log = AttemptLog(make_order())
    log.write("one")
    folder = tmp_path / "storage"
    folder.rename(tmp_path / "away")
    folder.write_text("no folder")
    log.keep()
    log.write("two")
    folder.unlink()
    (tmp_path / "away").rename(folder)
    log.keep()
    assert [line.partition(" ")[2] for line in log_lines(store, JOB, 1)] == ["one", "two"]
