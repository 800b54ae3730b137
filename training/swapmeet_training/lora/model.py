"""The model in training: an NF4 base that stays frozen, and LoRA weights in fp32 on its linear layers."""

from typing import TYPE_CHECKING, Any

from swapmeet_registry.bases.nf4 import keep_unpacked, load_nf4
from swapmeet_registry.fingerprint import Quantization
from swapmeet_training.errors import DeviceMissing, SpecError
from swapmeet_training.lora import adapter, principal
from swapmeet_training.spec import FineTune

if TYPE_CHECKING:
    from pathlib import Path

SHORT = 256
"""Tokens up to which plain matrix products beat torch's fused attention on the CPU."""


def load_base(folder: "Path", device: str = "cpu", quantization: Quantization | None = None) -> Any:
    """The NF4 base, frozen, whose gradients are right also after an evaluation.

    Raises:
        BaseInvalid: transformers can not load the folder.
        DeviceMissing: `device` is a GPU and torch has none.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceMissing("The run asks for a GPU, and torch finds none here. Set gpus to 0, or install CUDA.")
    model = load_nf4(folder, device=device, quantization=quantization)
    model.requires_grad_(False)
    model.config.use_cache = False
    keep_differentiable(model)
    return model


def keep_differentiable(model: Any) -> None:
    """Keep bitsandbytes from repacking NF4 weights: the packed product has no backward.

    Every training step after an evaluation would lose the gradient through the base, silently.
    """
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            packed = getattr(module.weight.quant_state, "packing_format_for_cpu", False)
            assert not packed, "this base has been used for inference already; load it again to train on it"
    keep_unpacked(model)


def choose_attention(model: Any, longest: int) -> None:
    """On the CPU, compute attention over short sequences with plain matrix products.

    torch's fused kernel with a mask takes 3 times as long at 64 tokens, as long at 256, and half at 512
    (forward and backward of 8 rows and 9 heads of width 64 in bf16, two cores).
    """
    if model.device.type == "cpu" and longest <= SHORT:
        model.set_attn_implementation("eager")


def require_apart(model: Any) -> None:
    """Check that packed examples see nothing of each other, by changing one and looking at the next one's logits.

    Raises:
        SpecError: they do, as where an architecture carries a state from token to token.
    """
    import inspect

    import torch

    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise SpecError("packing needs a base that takes position_ids, which this one does not. Set packing to false.")
    positions = torch.arange(8, device=model.device).repeat(2)[None]
    tokens = torch.arange(16, device=model.device)[None]
    changed = torch.cat([tokens[:, :8] + 1, tokens[:, 8:]], dim=1)
    with torch.no_grad():
        one, other = (model(input_ids=ids, position_ids=positions).logits[:, 8:].float() for ids in (tokens, changed))
    # What goes through separate rows of one product may differ in its last bits where experts group their tokens.
    if (one - other).norm() > 0.01 * one.norm():
        raise SpecError("packing lets examples see each other on this base's architecture. Set packing to false.")


def attach_lora(model: Any, spec: FineTune) -> Any:
    """The PEFT model to train: LoRA on the spec's modules, initialised from its seed or with its parent's weights.

    Raises:
        SpecError: the base has no linear layer of a name in `target_modules`, the parent's are others, or the rank
            is too high for `init`.
        CheckpointError: the parent's weights are not those that its configuration says.
    """
    import peft
    import torch

    _check_targets(model, spec)
    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=spec.target_modules if spec.target_modules == "all-linear" else list(spec.target_modules),
        use_rslora=spec.rslora,
        use_dora=spec.dora,
        init_lora_weights="gaussian" if spec.init == "gaussian" else True,
        task_type=peft.TaskType.CAUSAL_LM,
    )
    torch.manual_seed(spec.seed)
    wrapped = peft.get_peft_model(model, config)
    if spec.parent:
        adapter.go_on_from(wrapped, spec)
    if spec.init in ("pissa", "olora"):
        principal.initialise(wrapped, spec)
    # AdamW's late, small updates vanish in bf16: 8 bits of mantissa against a step of 1e-3 of the weight.
    assert all(weight.dtype == torch.float32 for weight in wrapped.parameters() if weight.requires_grad)
    if spec.gradient_checkpointing:
        wrapped.activation_checkpointing_enable({"use_reentrant": False})
    return wrapped


def _check_targets(model: Any, spec: FineTune) -> None:
    """PEFT itself overlooks a name that matches nothing as long as another one matches."""
    import bitsandbytes as bnb

    if spec.target_modules == "all-linear":
        return
    linear = [name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)]
    for target in spec.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise SpecError(f"target_modules names {target!r}, which the base lacks; its linear layers are {known}.")
