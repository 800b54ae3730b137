"""Many fine-tunes at once on Ray: each is one Ray Train run of one worker.

    with ThreadPoolExecutor:  TorchTrainer.fit() per spec       (ray 2.60: fit() may run in any thread; only in
                                                                 the main one does it take over SIGINT)
    worker process:           swapmeet_training.run, checkpoints and metrics by ray.train.report
    storage/RUN/              adapter/  checkpoint-STEP/  progress.jsonl  and Ray Train's own snapshot

Progress travels through `progress.jsonl`: `ray.train.report` waits until Ray's controller has polled the
report before it, and reaches the controller, not the caller. Ray Train asks that every node sees `storage`.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from swapmeet_registry.errors import RegistryError
from swapmeet_training.data.dataset import check_files
from swapmeet_training.errors import RunFailed, SpecError, TrainingError, WorkerLost
from swapmeet_training.foreign import as_ours
from swapmeet_training.progress import Error, Outcome, Progress, Report, Result, ignore
from swapmeet_training.qlora import run
from swapmeet_training.spec import FineTune, Resources

__all__ = ["Outcome", "train_on_ray"]

EVENTS = "progress.jsonl"
POLL_SECONDS = 0.5
RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # 2 s by default, paid at every start, report and end
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less per run
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
"""What Ray Train's controllers and workers read from their environment."""


def train_on_ray(
    specs: Sequence[FineTune],
    storage: Path,
    *,
    resources: Resources | None = None,
    max_failures: int = 3,
    wait_for_nodes: bool = False,
    on_progress: Report = ignore,
) -> list[Outcome]:
    """Train every spec, as many at once as the cluster has resources for; one outcome each, in their order.

    A worker that dies is started again from its last checkpoint, up to `max_failures` times; what is wrong
    with a spec or its data is never tried twice. Whatever happens to a run leaves the others alone. Calling
    this again with the same specs, data and storage goes on from the checkpoints found there.

    Args:
        specs: the runs, each of another name or other settings.
        storage: a folder that the driver and all nodes see.
        resources: what each run gets; one CPU where not given.
        max_failures: how often a run's worker may be lost.
        wait_for_nodes: the cluster grows on demand, so a run that does not fit now waits instead of failing.
        on_progress: called in this thread, within a second of each step.

    Raises:
        SpecError: two specs are the same, or one run needs more than the cluster has.
        RunFailed: Ray was not initialised.
    """
    if not ray.is_initialized():
        raise RunFailed("Ray is not running. Call ray.init() first.")
    resources = resources or Resources()
    at_once = len(specs) if wait_for_nodes else _at_once(resources)
    runs = [_Run(spec, storage.resolve(), resources, max_failures) for spec in specs]
    if len({each.folder for each in runs}) < len(runs):
        raise SpecError("Two of the fine-tunes are the same. Give them different names or settings.")
    with _environment(RAY_TRAIN), _pool(at_once) as pool:
        futures = [pool.submit(each.fit) for each in runs]
        pending: set[Future[Outcome]] = set(futures)
        while pending:
            pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED).not_done
            for each in runs:
                each.tell(on_progress)
    return [future.result() for future in futures]


@contextmanager
def _pool(size: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are not waited for when the caller is interrupted; `ray.shutdown` ends what they run."""
    pool = ThreadPoolExecutor(size, thread_name_prefix="fine-tune")
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _at_once(resources: Resources) -> int:
    """How many runs fit into the whole cluster."""
    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fit = [cluster.get("CPU", 0.0) / resources.cpus]
    if resources.gpus:
        fit.append(cluster.get("GPU", 0.0) / resources.gpus)
    if min(fit) < 1:
        raise SpecError(
            f"Each run needs {resources.cpus:g} CPUs and {resources.gpus:g} GPUs, and the cluster has "
            f"{cluster.get('CPU', 0):g} and {cluster.get('GPU', 0):g}. Lower its resources, or add nodes."
        )
    return int(min(fit) + 1e-9)


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set what the caller left unset: `TorchTrainer.fit` passes these variables on to its processes."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


class _Run:
    """The driver's side of one run: starts it, follows it, and says how it ended."""

    def __init__(self, spec: FineTune, storage: Path, resources: Resources, max_failures: int) -> None:
        identity = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:12]
        self.folder = storage / f"{spec.name.replace('/', '--')}-{identity}"
        self._spec = spec
        self._resources = resources
        self._max_failures = max_failures
        self._events = self.folder / EVENTS
        self._told = self._events.stat().st_size if self._events.exists() else 0

    def fit(self) -> Outcome:
        """Run to the end, whatever it is: no error leaves this function."""
        began = time.monotonic()
        try:
            check_files(self._spec)
            ended: Result | Error = self._trainer().fit().return_value  # type: ignore[attr-defined]  # typed as v1
        except Exception as error:
            ended = _error(self._spec.name, error)
        seconds = time.monotonic() - began
        if not isinstance(ended, Result):
            return Outcome(self._spec.name, seconds=seconds, error=ended)
        return Outcome(
            name=ended.name,
            adapter=ended.adapter,
            metrics=ended.metrics,
            seconds=seconds,
            trained_tokens=ended.trained_tokens,
            resumed_from=ended.resumed_from,
        )

    def tell(self, report: Report) -> None:
        """Report what the worker has written since the last call."""
        if not self._events.exists():
            return
        with self._events.open("rb") as stream:
            stream.seek(self._told)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._told += len(line)
                report(Progress(**json.loads(line)["progress"]))

    def _trainer(self) -> TorchTrainer:
        share = {"CPU": self._resources.cpus} | ({"GPU": self._resources.gpus} if self._resources.gpus else {})
        return TorchTrainer(
            _work,  # type: ignore[arg-type]  # v2 hands on what it returns
            train_loop_config={"spec": self._spec, "folder": self.folder, "resources": self._resources},
            torch_config=_Alone(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=1, use_gpu=self._resources.gpus > 0, resources_per_worker=share
            ),
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]
                name=self.folder.name,
                storage_path=str(self.folder.parent),
                failure_config=ray.train.FailureConfig(max_failures=self._max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )


class _Alone(TorchConfig):
    """One worker needs no process group; with one, accelerate would wrap the model for distributed training."""

    @property
    def backend_cls(self) -> type[Backend]:
        return Backend


def _work(config: dict[str, Any]) -> Result | Error:
    """The worker's side of one run. An error that a restart can not mend is returned, every other one raised."""
    import torch

    spec, folder, resources = config["spec"], config["folder"], config["resources"]
    torch.set_num_threads(resources.threads)
    checkpoint = ray.train.get_checkpoint()
    latest: dict[str, float] = {}
    with (folder / EVENTS).open("ab", buffering=0) as events:

        def report(progress: Progress) -> None:
            latest.update({"step": progress.step, "loss": progress.loss, **progress.evaluation})
            record = {"time": time.time(), "pid": os.getpid(), "progress": asdict(progress)}
            events.write(json.dumps(record).encode() + b"\n")  # unbuffered, so a kill leaves whole lines only

        def checkpointed(path: Path) -> None:
            ray.train.report(
                dict(latest),
                checkpoint=ray.train.Checkpoint.from_directory(path),
                checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,  # it stands in storage already
            )

        try:
            ended = run(
                spec,
                folder,
                device=resources.device,
                report=report,
                checkpointed=checkpointed,
                resume_from=Path(checkpoint.path) if checkpoint else None,
                keep=None,  # Ray deletes older checkpoints once it knows of a newer one
            )
            assert isinstance(ended, Result), "nobody asked it to stop"
            return ended
        except RunFailed:
            raise
        except (TrainingError, RegistryError) as error:
            return error


def _error(name: str, error: Exception) -> Error:
    """What Ray raises, as one of our errors: what the worker raised, or else that it was lost."""
    if not isinstance(error, ray.train.WorkerGroupError):
        return as_ours(name, error)
    for failure in error.worker_failures.values():
        if isinstance(failure, RunFailed):
            return failure
    return WorkerLost(
        f"{name}: its worker died more often than it may be started again. Was it out of memory? "
        "Start it again to go on from its last checkpoint."
    )
