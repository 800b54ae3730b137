"""The worker's side of an attempt: files from the storage, the run, checkpoints into the storage. No Ray in here."""

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from swapmeet_registry import Registry
from swapmeet_registry.bases import BaseLibrary
from swapmeet_registry.errors import RegistryError, StoreError
from swapmeet_registry.stores import Store, open_store
from swapmeet_training.attempts.log import AttemptLog, beginning, said
from swapmeet_training.attempts.run_storage import Contents, RunStorage, fetch_object, step_of
from swapmeet_training.attempts.scratch import SCRATCH, scratch_folder
from swapmeet_training.attempts.telling import (
    Began,
    DataFile,
    Failed,
    Finished,
    Last,
    Noted,
    Order,
    Ready,
    Saved,
    Stepped,
    Stopped,
    Telling,
)
from swapmeet_training.errors import DeviceMissing, RunFailed, StorageFull, TrainingError, WorkerLost
from swapmeet_training.foreign import as_ours
from swapmeet_training.progress import EXAMPLES, Parked, Progress
from swapmeet_training.qlora import run
from swapmeet_training.spec import FineTune, fine_tune

HISTORY = "history.jsonl"
"""Beside each checkpoint: all progress until then, so that nothing is missing where a process died before telling."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
PASSING = (StoreError, StorageFull, DeviceMissing, RunFailed, WorkerLost)
"""Errors that another attempt may not meet."""

T = TypeVar("T")
Say = Callable[[Telling], None]


def work(order: Order, say: Say, stop: Callable[[], bool]) -> None:
    """One attempt, from files to its last word, which is always said.

    Args:
        order: what to do.
        say: told everything, in order, from this thread.
        stop: asked at every step's boundary whether to save a checkpoint and end.
    """
    with AttemptLog(order) as log:

        def note_and_say(telling: Telling) -> None:
            log.write(said(telling))
            if isinstance(telling, Last):
                log.keep()  # whoever hears of the end finds all of it
            say(telling)

        log.write(beginning(order))
        try:
            with scratch_folder(order.home / SCRATCH, f"{order.job}-{order.attempt}") as scratch:
                _Attempt(order, scratch, note_and_say).train(stop)
        except Exception as error:
            ours = as_ours(order.adapter, error)
            log.write(traceback.format_exc())
            note_and_say(Failed(ours.code, str(ours), own=own_fault(ours)))


class _Attempt:
    """One attempt's files and what it remembers between checkpoints."""

    def __init__(self, order: Order, scratch: Path, say: Say) -> None:
        self._order, self._scratch, self._say = order, scratch, say
        self._store: Store = open_store(order.storage, used=True)
        self._runs = RunStorage(self._store, order.job)
        self._history = scratch / HISTORY
        self._history.touch()
        self._latest: dict[str, float] = {}
        self._best: str | None = None
        self._best_loss: float | None = None
        self._outages = 0
        self._speed = 0.0
        self._moments = {"process": time.time()}

    def train(self, stop: Callable[[], bool]) -> None:
        order, folder = self._order, self._scratch / "run"
        folder.mkdir()
        if self._done_before():
            return
        checkpoint = self._resume(folder)
        spec = self._spec()
        self._reached("files")
        ended = run(
            spec,
            folder,
            device=order.resources.device,
            report=self._report,
            checkpointed=self._checkpointed,
            resume_from=checkpoint,
            reached=self._reached,
            stop=stop,
        )
        if isinstance(ended, Parked):
            self._say(Stopped(self._runs.key(order.attempt, ended.checkpoint.name)))
            return
        self._keep_beside(folder / "losses.jsonl", folder / EXAMPLES)
        if ended.unanswered:
            self._say(Noted("unanswered", ended.unanswered, "warn"))
        key = self._runs.key(order.attempt, "adapter")
        peak = peak_memory(order.resources.device)
        finished = Finished(key, dict(ended.metrics), ended.steps, ended.trained_tokens, self._speed, peak)
        worst = ", ".join(f"{row.line} ({row.loss:.3g})" for row in ended.worst)
        facts: dict[str, Any] = {"finished": asdict(finished), "worst": worst}
        self._patiently(lambda: self._runs.keep(key, ended.adapter, facts, self._history))
        self._finish(finished, worst)

    def _keep_beside(self, *paths: Path) -> None:
        for path in filter(Path.is_file, paths):
            key, data = self._runs.key(self._order.attempt, path.name), path.read_bytes()
            self._patiently(lambda key=key, data=data: self._runs.put(key, data))  # type: ignore[misc]

    def _done_before(self) -> bool:
        """Whether the attempt before had finished, and only nobody heard of it."""
        key = self._runs.key(self._order.attempt - 1, "adapter")
        found = self._patiently(lambda: self._runs.contents(key))
        if found is None:
            return False
        facts: Mapping[str, Any] = found.facts
        self._say(Began(self._patiently(self._newest)))
        self._catch_up(key, found)
        self._finish(Finished(**facts["finished"]), facts["worst"])
        return True

    def _finish(self, finished: Finished, worst: str) -> None:
        if worst:
            self._say(Noted("worst", f"Lines of the training file with the highest losses, often mistakes: {worst}"))
        self._say(finished)

    def _spec(self) -> FineTune:
        order = self._order
        base = self._patiently(lambda: BaseLibrary(order.home).find(order.base))
        settings = {**order.settings, "name": order.adapter, "base": base.path, "base_fingerprint": base.fingerprint}
        settings["data"] = self._fetch("data", order.data)
        if order.validation is not None:
            settings["validation"] = self._fetch("validation", order.validation)
        if order.parent is not None:
            settings["parent"] = self._parent(order.parent)
        return fine_tune(settings)

    def _parent(self, parent: str) -> Path:
        folder = self._scratch / "parent"
        self._patiently(lambda: Registry(self._order.registry, self._order.trust).pull(parent, folder))
        return folder

    def _fetch(self, name: str, file: DataFile) -> Path:
        path = self._scratch / (name + Path(file.filename).suffix.lower())
        self._patiently(lambda: fetch_object(self._store, file.key, path, file.sha256))
        return path

    def _resume(self, folder: Path) -> Path | None:
        """Fetch the checkpoint to go on from; tell what was not told until then."""
        key = self._patiently(self._newest)
        self._say(Began(key))
        if key is None:
            return None
        checkpoint = folder / key.rpartition("/")[2]
        kept = self._patiently(lambda: self._runs.fetch(key, checkpoint))
        facts: Mapping[str, Any] = kept.facts
        self._latest, self._best, self._best_loss = dict(facts["metrics"]), facts["best"], facts["best_loss"]
        self._catch_up(key, kept)
        return checkpoint

    def _newest(self) -> str | None:
        return self._runs.newest(self._order.attempt, self._order.checkpoint)

    def _catch_up(self, key: str, kept: Contents) -> None:
        """Tell what the attempts before did until they kept this folder, as far as nobody heard of it."""
        order, history = self._order, kept.history
        assert history is not None, key
        self._patiently(lambda: self._runs.fetch_entry(key, history, self._history))
        for line in self._history.read_text().splitlines():
            progress = Progress(**json.loads(line))
            if progress.step > order.step or (progress.step == order.step and progress.evaluation):
                self._tell(progress)
        known = step_of(order.checkpoint) if order.checkpoint else 0
        saved = self._patiently(lambda: list(self._runs.checkpoints(order.attempt - 1)))
        for each in sorted((each for each in saved if step_of(each) > known), key=step_of):
            found = self._patiently(lambda each=each: self._runs.contents(each))  # type: ignore[misc]
            assert found is not None, each
            facts: Mapping[str, Any] = found.facts
            self._say(Saved(each, facts["metrics"], facts["best"]))

    def _reached(self, part: str) -> None:
        self._moments[part] = time.time()

    def _report(self, progress: Progress) -> None:
        if "step" not in self._moments:
            self._reached("step")
            self._say(Ready(dict(self._moments)))
        progress = replace(progress, evaluation=dict(progress.evaluation), metrics=dict(progress.metrics))
        with self._history.open("a") as history:
            history.write(json.dumps(asdict(progress)) + "\n")
        if not self._latest or self._latest["step"] < progress.step:
            self._latest = {"step": progress.step}
        self._latest |= {"loss": progress.loss, **progress.metrics, **progress.evaluation}
        self._speed = progress.tokens_per_second
        self._tell(progress)

    def _tell(self, progress: Progress) -> None:
        self._say(Stepped(progress))
        if progress.note:
            self._say(Noted(f"note-{progress.step}", progress.note, "warn"))

    def _checkpointed(self, folder: Path) -> None:
        key = self._runs.key(self._order.attempt, folder.name)
        loss = self._latest.get("eval_loss")
        if loss is not None and (self._best_loss is None or loss < self._best_loss):
            self._best, self._best_loss = key, loss
        facts: dict[str, Any] = {"metrics": dict(self._latest), "best": self._best, "best_loss": self._best_loss}
        self._patiently(lambda: self._runs.keep(key, folder, facts, self._history))
        self._say(Saved(key, dict(self._latest), self._best))

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do what needs the storage; while that is away, try again, and tell so once.

        Raises:
            StoreError: it was away for longer than the order's patience.
        """
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                done = work()
            except StoreError as error:
                if time.monotonic() - began > self._order.patience:
                    raise
                if pause == FIRST_PAUSE:
                    self._outages += 1
                    self._note("storage-away", f"The run waits for the storage: {error}", "warn")
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                if pause > FIRST_PAUSE:
                    self._note("storage-back", "The storage answers again, and the run goes on.")
                return done

    def _note(self, name: str, message: str, level: str = "info") -> None:
        self._say(Noted(f"{name}-{self._order.attempt}-{self._outages}", message, level))


def peak_memory(device: str) -> int | None:
    """Bytes that tensors of this process took at most on a GPU; None for the CPU, where torch does not count them."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None


def own_fault(error: TrainingError | RegistryError) -> bool:
    """Whether another attempt would end by the same error."""
    return not isinstance(error, PASSING)
