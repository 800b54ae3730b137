"""Train on Ray, publish to the registry: what `swapmeet train` and the demo do."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from swapmeet.cluster import ray_running
from swapmeet.settings import Settings
from swapmeet_registry import AdapterName, Registry, Version
from swapmeet_registry.bases import Base, BaseLibrary
from swapmeet_training import FineTune, Resources, fine_tune, load_dataset
from swapmeet_training.ray_driver import Outcome, train_on_ray

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
) -> Published:
    """One fine-tune, from settings that somebody typed to a published version.

    Everything that can be wrong is looked at before anything is written or started.

    Raises:
        TrainingError, RegistryError: each says what to do.
    """
    AdapterName.parse(str(options["name"]))
    registry = Registry(settings.registry_url)
    registry.names()
    found = BaseLibrary(settings.folder, tell).find(base)
    spec = fine_tune({**options, **of_base(found)})
    load_dataset(spec)
    storage = settings.folder / "runs" / uuid4().hex
    outcome = run_all(settings, [spec], storage, resources, tell)[0]
    if outcome.error is None:
        version = publish(registry, spec, outcome, alias)
        shutil.rmtree(storage)
        return Published(version, outcome.seconds, outcome.metrics)
    if not any(storage.rglob("checkpoint*")):
        shutil.rmtree(storage, ignore_errors=True)
    raise outcome.error


def run_all(
    settings: Settings, specs: Sequence[FineTune], storage: Path, resources: Resources, tell: Tell = _say_nothing
) -> list[Outcome]:
    """Train every spec, as many at once as fit; one outcome each, in order."""
    with ray_running(settings):
        return train_on_ray(specs, storage, resources=resources, on_progress=lambda progress: tell(str(progress)))


def publish(registry: Registry, spec: FineTune, outcome: Outcome, alias: str | None = None) -> Version:
    """Push a finished run's adapter under its spec's name.

    Raises:
        TrainingError: the run failed.
    """
    return registry.push(adapter_folder(outcome), spec.name, base=spec.base_fingerprint, alias=alias)


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
