"""Train on Ray, publish to the registry: what `swapmeet train` and the demo do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from swapmeet.settings import Settings
from swapmeet_registry import AdapterName, Registry, Version
from swapmeet_registry.bases import Base, BaseLibrary
from swapmeet_training import Resources, fine_tune

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Published:
    """A fine-tune's end: the version it became, how long it trained, and what it measured."""

    version: Version
    seconds: float
    metrics: dict[str, float]


def train_and_publish(
    settings: Settings,
    base: str,
    options: Mapping[str, Any],
    resources: Resources,
    alias: str | None = None,
    tell: Tell | None = None,
) -> Published:
    """One fine-tune from settings that somebody typed to a published version.

    Everything that can be wrong is looked at before anything is written or started.

    Raises:
        TrainingError, RegistryError: each says what to do.
    """
    AdapterName.parse(str(options["name"]))
    registry = Registry(settings.registry_url)
    registry.names()
    found = BaseLibrary(settings.folder, tell or (lambda _: None)).find(base)
    spec = fine_tune({**options, **of_base(found)})
    outcome = run_all(settings, [spec], resources, tell)[0]
    if outcome.error:
        raise outcome.error
    version = publish(registry, spec, outcome, alias)
    return Published(version, outcome.seconds, outcome.metrics)


def of_base(base: Base) -> dict[str, Any]:
    """The settings of a fine-tune that follow from its base."""
    return {"base": base.path, "base_fingerprint": base.fingerprint}
