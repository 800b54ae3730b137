"""What of a fine-tune's settings decides its cost."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from swapmeet_training.errors import SpecError
from swapmeet_training.plan.shape import BaseShape


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings of `swapmeet_training.FineTune` that decide memory and time; see there what each means."""

    method: Literal["supervised", "dpo"] = "supervised"
    rank: int = 16
    dropout: float = 0.0
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    dora: bool = False
    init: Literal["default", "gaussian", "pissa", "olora"] = "default"
    parent: Path | None = None
    epochs: float = 3
    max_steps: int | None = None
    batch_size: int = 8
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = True
    optimizer: Literal["paged_adamw_32bit", "paged_adamw_8bit", "adamw_torch"] = "paged_adamw_32bit"
    max_length: int = 1024
    packing: bool = False
    eval_every: int | None = None
    keep_best: bool = True
    seed: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "RunSettings":
        """Those of a whole specification, as `FineTune.model_dump()` gives it."""
        return cls(**{field.name: settings[field.name] for field in fields(cls) if field.name in settings})

    @property
    def frozen_adapters(self) -> int:
        """Adapters beside the trained one: what PiSSA and OLoRA take away, or DPO's reference where it has a parent."""
        return int(self.init in ("pissa", "olora") or (self.method == "dpo" and self.parent is not None))

    @property
    def per_step(self) -> int:
        """Examples (rows with packing, pairs with DPO) of an optimizer step."""
        return self.batch_size * self.gradient_accumulation


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter's size: the modules it is on, and the elements of each of its tensors."""

    targets: Mapping[str, tuple[int, int]]
    tensors: tuple[int, ...]

    @classmethod
    def of(cls, shape: BaseShape, settings: RunSettings) -> "Adapter":
        """The adapter that a run would train.

        Raises:
            SpecError: the base has no linear layer of a name in `target_modules`.
        """
        targets = shape.linears if settings.target_modules == "all-linear" else _named(shape, settings.target_modules)
        tensors: list[int] = []
        for out, into in targets.values():
            tensors += [settings.rank * into, settings.rank * out] + ([out] if settings.dora else [])
        return cls(targets, tuple(tensors))

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(self.tensors)

    def within(self, layer: Iterable[str]) -> list[tuple[int, int]]:
        """(out, in) of the modules it is on, of one layer's weights."""
        modules = (name.removesuffix(".weight") for name in layer)
        return [self.targets[module] for module in modules if module in self.targets]


def _named(shape: BaseShape, names: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    missing = []
    for wanted in names:
        matching = {name: size for name, size in shape.linears.items() if name == wanted or name.endswith(f".{wanted}")}
        found |= matching
        if not matching:
            missing.append(repr(wanted))
    if missing:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in shape.linears}))
        raise SpecError(
            f"target_modules names {', '.join(missing)}, which the base lacks; its linear layers are {known}."
        )
    return found
