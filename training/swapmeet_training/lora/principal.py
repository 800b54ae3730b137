"""PiSSA and OLoRA on a quantized base: adapters that start from the principal part of each weight.

Both take that part out of the base and train it: y = (W - s·B0·A0)·x + s·B·A·x. Quantized again, the rest would be
another base, whose error no adapter could undo. So the base stays as it is, and the part is taken away by a second,
frozen adapter, of which nothing is dropped out:

    y = W·x + s·B·A·x - s·B0·A0·x

What is published is a plain LoRA of twice the rank for the untouched base, equal to the difference. Its factors come
from an SVD of the product, so that nothing large is left in them to cancel out in lower precision.
"""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from swapmeet_training.errors import SpecError
from swapmeet_training.spec import FineTune

if TYPE_CHECKING:
    import torch

TRAINED = "default"
INITIAL = "initial"
OVERSAMPLED, ITERATIONS = 16, 16
"""How much more than the rank the randomised SVD looks for, and how often it refines it."""


def used(model: Any) -> bool:
    """Whether the model's adapter starts from principal parts."""
    return INITIAL in model.peft_config


def initialise(model: Any, spec: FineTune) -> None:
    """Set the trained adapter to the principal parts, and add the one that takes them away.

    Raises:
        SpecError: a weight has no part of that rank.
    """
    import torch

    config = copy.copy(model.peft_config[TRAINED])
    config.lora_dropout = 0.0
    model.add_adapter(INITIAL, config)
    with torch.no_grad():
        for name, layer in _layers(model):
            weight = _weight(layer)
            if spec.rank > min(weight.shape):
                raise SpecError(
                    f"rank is {spec.rank}, but init {spec.init} takes it from the weights themselves, and {name} is of "
                    f"{' x '.join(map(str, weight.shape))}. Lower rank, or set init to default."
                )
            a, b = _parts(weight, spec, layer.scaling[TRAINED])
            for adapter, sign in ((TRAINED, 1), (INITIAL, -1)):
                layer.lora_A[adapter].weight.copy_(a)
                layer.lora_B[adapter].weight.copy_(sign * b)
    model.base_model.set_adapter([TRAINED, INITIAL])
    freeze(model)


def freeze(model: Any) -> None:
    """Keep the part that is taken away from being trained."""
    if used(model):
        model.set_requires_grad(INITIAL, requires_grad=False)


def as_plain(
    trained: dict[str, "torch.Tensor"], initial: dict[str, "torch.Tensor"], config: Any
) -> dict[str, "torch.Tensor"]:
    """The trained adapter minus the initial one as one plain LoRA of twice the rank; sets `config` accordingly."""
    import torch

    scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    config.r, config.lora_alpha = 2 * config.r, 2 * config.r
    config.use_rslora, config.init_lora_weights = False, True
    plain = {}
    for key in (key for key in trained if ".lora_A." in key):
        other = key.replace(".lora_A.", ".lora_B.")
        right = torch.cat([trained[key], initial[key]]).double()
        left = torch.cat([trained[other], initial[other]], dim=1).double() * scale
        plain[key], plain[other] = _factors(left, right)
    return plain


def _factors(left: "torch.Tensor", right: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """A (rank, inputs) and B (outputs, rank) whose product is left·right, in fp32, of equal norms."""
    import torch

    outer, core_left = torch.linalg.qr(left)
    inner, core_right = torch.linalg.qr(right.T)
    u, s, v = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
    root = s.sqrt()
    a, b = (root[:, None] * v) @ inner.T, (outer @ u) * root
    missing = right.shape[0] - len(s)  # where twice the rank is more than the weight has
    a, b = torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))
    return a.float().contiguous(), b.float().contiguous()


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and TRAINED in module.lora_A:
            yield name.removeprefix("base_model.model."), module


def _weight(layer: Any) -> "torch.Tensor":
    from bitsandbytes.functional import dequantize_4bit

    weight = layer.get_base_layer().weight
    dequantized: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return dequantized.float()


def _parts(weight: "torch.Tensor", spec: FineTune, scale: float) -> tuple["torch.Tensor", "torch.Tensor"]:
    """A and B that scaled give the principal part; for OLoRA, as PEFT has it, they give it unscaled."""
    import torch

    if spec.init == "olora":
        q, r = torch.linalg.qr(weight)
        return r[: spec.rank], q[:, : spec.rank]
    u, s, v = torch.svd_lowrank(weight, q=min(spec.rank + OVERSAMPLED, *weight.shape), niter=ITERATIONS)
    root = (s[: spec.rank] / scale).sqrt()
    return root[:, None] * v[:, : spec.rank].T, u[:, : spec.rank] * root
