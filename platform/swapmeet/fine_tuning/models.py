"""What a job trains: a base by its name, or a published version of an adapter to go on from."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from swapmeet.errors import RequestRefused
from swapmeet.files.rules import shortened
from swapmeet_registry import NotFound, Registry
from swapmeet_registry.manifest import Lora
from swapmeet_registry.names import MAX_PART

RETIRED = "ft:"
"""How names of models at OpenAI begin, which no server but theirs has."""
TAIL = 6


@dataclass(frozen=True, slots=True)
class Origin:
    """A base, the version of an adapter on it that training goes on from, if any, and that version's own options."""

    base: str
    parent: str | None = None
    inherited: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Models:
    """Finds what a caller names.

    Args:
        registry: has the adapters.
        bases: gives the names of the bases that runs may be made on, which never fetches or reads one.
    """

    registry: Registry
    bases: Callable[[], Collection[str]]

    def find(self, model: str, visible: Callable[[str], bool]) -> Origin:
        """What a model's name means now: an adapter's version is fixed by its digest.

        Args:
            model: its name.
            visible: whether the caller may know of an adapter; those it may not do not exist for it.

        Raises:
            NotFound: there is no such model.
            RequestRefused: it can not be trained.
        """
        if model.startswith(RETIRED):
            raise NotFound(
                f"The model {shortened(model)} belongs to OpenAI and can not be had here. Train its data again on "
                f"{_listed(self.bases())}, and use the name that the job gives."
            )
        if "*" in model or "+" in model:
            raise RequestRefused(f"model is {shortened(model)}, a mix. Go on from one adapter, or a base.", "model")
        if "/" not in model:
            return Origin(self._base(model))
        if not visible(model):
            raise NotFound(f"There is no model {shortened(model)}. `client.models.list()` shows what there is.")
        version = self.registry.resolve(model)
        manifest = self.registry.manifest(version)
        return Origin(self._base(manifest.base.name, of=model), version.pinned, _options(manifest.lora))

    def _base(self, name: str, of: str = "") -> str:
        known = self.bases()
        if name not in known:
            whose = f", the base of {of}," if of else ""
            raise NotFound(f"The base {shortened(name)}{whose} is not known here. Known are {_listed(known)}.")
        return name


def inherit(lora: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """Own options, where what a parent fixes comes from the parent.

    Raises:
        RequestRefused: others were asked for.
    """
    found, merged = [], dict(lora)
    for name, value in origin.inherited.items():
        if lora[name] is not None and not _equal(lora[name], value):
            found.append(f"lora.{name} is {shortened(lora[name])}, and {origin.parent} has {shortened(value)}.")
        merged[name] = value
    if lora["init"] != "default" and origin.parent:
        found.append(f"lora.init is {lora['init']!r}, and the weights come from {origin.parent}.")
    if found:
        raise RequestRefused(" ".join([*found, "Leave these out to go on from it."]), "lora")
    return merged


def adapter_name(tenant: str, base: str, job: str, suffix: str | None, name: str | None) -> str:
    """`TENANT/NAME` to publish as: as asked for, or cleaned from the suffix, or the base and the job's last letters.

    Raises:
        RequestRefused: the name is another tenant's, or nothing of the suffix can stand in a name.
    """
    if name is not None:
        owner, slash, own = name.rpartition("/")
        if slash and owner != tenant:
            raise RequestRefused(f"lora.name is {name}, which is not {tenant}'s. Write {tenant}/{own}.", "lora.name")
        return f"{tenant}/{own}"
    if suffix is None:
        return f"{tenant}/{_cleaned(base)[: MAX_PART - TAIL - 1].rstrip('._-') or 'adapter'}-{job[-TAIL:]}"
    cleaned = _cleaned(suffix)[:MAX_PART].rstrip("._-")
    if not cleaned:
        raise RequestRefused(
            f"suffix is {shortened(suffix)}, of which no letter can stand in a name. Use a-z and 0-9.", "suffix"
        )
    return f"{tenant}/{cleaned}"


def _cleaned(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).lstrip("._-")


def _options(lora: Lora) -> dict[str, Any]:
    """What can not change when training goes on; a pattern of modules is left to the run, which has the model."""
    modules = lora.target_modules
    targets = {} if isinstance(modules, str) else {"target_modules": sorted(modules)}
    return {"rank": lora.rank, "alpha": lora.alpha, "rslora": lora.rslora, "dora": lora.dora} | targets


def _equal(asked: Any, fixed: Any) -> bool:
    if isinstance(fixed, list):
        return asked == "all-linear" or sorted(asked) == fixed
    return bool(asked == fixed)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none yet"
