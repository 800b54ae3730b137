"""Train on Ray, publish to the registry: what `swapmeet train` and the demo do."""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swapmeet.cluster import ray_running
from swapmeet.errors import AlreadyRunning
from swapmeet.settings import Settings
from swapmeet_registry import AdapterName, Provenance, Registry, RegistryError, Version
from swapmeet_registry.bases import Base, BaseLibrary, module_shapes
from swapmeet_registry.names import require_settable_alias
from swapmeet_registry.origin.provenance import Examples
from swapmeet_training import FineTune, Resources, fine_tune, load_dataset
from swapmeet_training.attempts.ray_driver import Outcome, train_on_ray
from swapmeet_training.progress import EXAMPLES

Tell = Callable[[str], None]


def _say_nothing(_: str) -> None:
    """For callers who follow nothing."""


@dataclass(frozen=True, slots=True)
class Published:
    """A fine-tune's end: the version it became, how long it trained, and what it measured."""

    version: Version
    seconds: float
    metrics: Mapping[str, float]


def train_and_publish(
    settings: Settings,
    base: str,
    options: Mapping[str, Any],
    resources: Resources,
    alias: str | None = None,
    tell: Tell = _say_nothing,
    parent: str | None = None,
) -> Published:
    """One fine-tune, from settings that somebody typed to a published version.

    Names, settings and data are checked before anything is written or started.

    Args:
        settings: where bases, runs and the registry are.
        base: a name, a folder or a Hub id.
        options: of `FineTune`, but those that follow from the base and the parent.
        resources: what the run may use.
        alias: to move to the new version.
        tell: is told of progress.
        parent: `TENANT/NAME@sha256:HEX` of the adapter in the registry to go on from.

    Raises:
        TrainingError, RegistryError: each says what to do.
    """
    name = AdapterName.parse(str(options["name"]))
    if alias is not None:
        require_settable_alias(alias)
    registry = Registry(settings.registry_url, settings.trust)
    registry.names()
    signer = settings.signer
    found = BaseLibrary(settings.folder, tell).find(base)
    own = {"parent": _pulled(settings, registry, parent)} if parent else {}
    spec = fine_tune({**options, **of_base(found), **own})
    load_dataset(spec)
    with _only_run(settings.folder / "runs", name) as storage:
        outcome = run_all(settings, [spec], storage, resources, tell)[0]
        folder = adapter_folder(outcome)
        _tell_examples(folder.parent / EXAMPLES, tell)
        if parent:
            _note_parent(folder, parent)
        try:
            version = publish(registry, spec, outcome, alias, found.license)
            if signer is not None:
                registry.sign(version.pinned, signer)
        except RegistryError as error:
            retry = f"swapmeet push {folder} {name} --base {base}"
            raise type(error)(f"{error} The run is done; its adapter is kept: {retry}") from error
        shutil.rmtree(folder.parent)
    return Published(version, outcome.seconds, outcome.metrics)


def _pulled(settings: Settings, registry: Registry, parent: str) -> Path:
    """The folder of an adapter to go on from, at a place that is its own: a run that is begun again finds it there."""
    folder = settings.folder / "cache" / "parents" / parent.rpartition(":")[2]
    folder.parent.mkdir(parents=True, exist_ok=True)
    registry.pull(parent, folder)
    return folder


def _tell_examples(path: Path, tell: Tell) -> None:
    """What the adapter answered, for whoever trained it: beside the adapter, and gone with the run."""
    if path.is_file():
        for each in Examples.model_validate_json(path.read_bytes()).answers:
            tell(f"Asked {each.prompt!r}, it answers {each.output!r}")


def _note_parent(folder: Path, parent: str) -> None:
    provenance = Provenance.read(folder)
    assert provenance is not None, "the run writes it"
    provenance.model_copy(update={"parent": parent}).write(folder)


@contextmanager
def _only_run(folder: Path, name: AdapterName) -> Iterator[Path]:
    """Where a name's runs are kept until they are published; the same command again goes on from there.

    Raises:
        AlreadyRunning: another process trains under that name.
    """
    storage = folder / str(name).replace("/", "--")
    storage.mkdir(parents=True, exist_ok=True)
    with (storage / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(f"{name} is being trained by another process. Wait for it.") from error
        try:
            yield storage
        finally:
            if not any(storage.glob("*/checkpoint-*")) and not any(storage.glob("*/adapter")):
                shutil.rmtree(storage)


def run_all(
    settings: Settings, specs: Sequence[FineTune], storage: Path, resources: Resources, tell: Tell = _say_nothing
) -> list[Outcome]:
    """Train every spec, as many at once as fit; one outcome each, in order."""
    with ray_running(settings):
        return train_on_ray(
            specs,
            storage,
            resources=resources,
            wait_for_nodes=bool(settings.ray_address),
            on_progress=lambda progress: tell(str(progress)),
        )


def publish(
    registry: Registry, spec: FineTune, outcome: Outcome, alias: str | None = None, base_license: str | None = None
) -> Version:
    """Push a finished run's adapter under its spec's name.

    Raises:
        TrainingError: the run failed.
        Refused: its weights do not fit the base's.
    """
    shapes = module_shapes(spec.base)
    return registry.push(
        adapter_folder(outcome),
        spec.name,
        base=spec.base_fingerprint,
        alias=alias,
        modules=shapes,
        base_license=base_license,
    )


def adapter_folder(outcome: Outcome) -> Path:
    """Where a finished run left its adapter.

    Raises:
        TrainingError: the run failed.
    """
    if outcome.error:
        raise outcome.error
    assert outcome.adapter is not None
    return outcome.adapter


def of_base(base: Base) -> dict[str, Any]:
    """The settings of a fine-tune that follow from its base."""
    return {"base": base.path, "base_fingerprint": base.fingerprint}
