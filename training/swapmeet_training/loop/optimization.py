"""The optimizers that a run may name, the learning rate of each step, and what of an optimizer is kept."""

import math
from typing import Any

import torch

from swapmeet_training.errors import CheckpointError
from swapmeet_training.spec import FineTune

BETAS, EPSILON = (0.9, 0.999), 1e-8


def learning_rate(spec: FineTune, step: int, total: int) -> float:
    """The learning rate of a step (from 0) of `total`.

    It rises over the first `warmup_ratio` of the steps, and is never zero: no step is made for nothing.
    """
    rising = int(spec.warmup_ratio * total)
    if step < rising:
        return spec.learning_rate * (step + 1) / (rising + 1)
    done = (step - rising) / (total - rising)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return spec.learning_rate * left[spec.schedule]


class Optimizer:
    """An AdamW over a model's trainable weights. Vectors (DoRA's magnitudes) are not decayed."""

    def __init__(self, spec: FineTune, model: Any) -> None:
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._max_norm = spec.max_grad_norm
        matrices = [weight for weight in self.weights.values() if weight.ndim > 1]
        vectors = [weight for weight in self.weights.values() if weight.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": spec.weight_decay}]
        groups += [{"params": vectors, "weight_decay": 0.0}] if vectors else []
        self._inner = _adamw(spec, groups)

    def clip(self) -> float:
        """Scale the gradients down to `max_grad_norm`; the norm they had."""
        return float(torch.nn.utils.clip_grad_norm_(self.weights.values(), self._max_norm))

    def step(self, rate: float) -> None:
        """Update the weights by their gradients, and forget these."""
        for group in self._inner.param_groups:
            group["lr"] = rate
        self._inner.step()
        self.forget()

    def forget(self) -> None:
        """Leave out what was accumulated."""
        self._inner.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """All that it remembers, by weight and entry, on the CPU."""
        state = {}
        for name, weight in self.weights.items():
            for entry, value in self._inner.state[weight].items():
                tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
                state[f"{name}:{entry}"] = tensor.detach().to("cpu", copy=True).contiguous()
        return state

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Remember what another one of the same settings did.

        Raises:
            CheckpointError: it is of other weights.
        """
        restored: dict[str, dict[str, Any]] = {}
        for key, tensor in state.items():
            name, _, entry = key.rpartition(":")
            if name not in self.weights:
                raise CheckpointError(f"The optimizer's state knows {name!r}, which this run does not. Start afresh.")
            restored.setdefault(name, {})[entry] = self._placed(tensor, self.weights[name])
        for name, weight in self.weights.items():
            if restored:
                if name not in restored:
                    raise CheckpointError(f"The optimizer's state lacks {name!r}. Name another checkpoint.")
                self._inner.state[weight] = restored[name]

    def _placed(self, tensor: torch.Tensor, weight: torch.Tensor) -> Any:
        if tensor.ndim == 0:  # torch counts steps in a float tensor on the CPU, bitsandbytes in an int
            return tensor if tensor.is_floating_point() else int(tensor)
        paged = getattr(self._inner, "is_paged", False) and weight.is_cuda and tensor.shape == weight.shape
        if not paged:
            return tensor.to(weight.device)
        buffer = self._inner.get_state_buffer(weight, dtype=tensor.dtype)
        return buffer.copy_(tensor)


def _adamw(spec: FineTune, groups: list[dict[str, Any]]) -> Any:
    settings: dict[str, Any] = {"lr": spec.learning_rate, "betas": BETAS, "eps": EPSILON}
    if spec.optimizer == "adamw_torch":
        return torch.optim.AdamW(groups, **settings)
    import bitsandbytes as bnb

    return bnb.optim.PagedAdamW(groups, **settings, optim_bits=8 if spec.optimizer == "paged_adamw_8bit" else 32)
