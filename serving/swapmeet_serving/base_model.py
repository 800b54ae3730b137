"""The base model, made ready: loaded as NF4, checked, and its linear layers wrapped for adapters.

Any causal language model of transformers will do whose attention goes through transformers' attention
interface and needs nothing but causal scaled dot products, with or without a sliding window. What it needs
is seen by running a few tokens through it and noting what reaches the attention function.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from swapmeet_registry.bases.nf4 import keep_unpacked, load_nf4
from swapmeet_registry.fingerprint import Quantization
from swapmeet_serving import attention
from swapmeet_serving.adapter_parts import Other
from swapmeet_serving.errors import BaseUnsupported
from swapmeet_serving.kernels import Kernels
from swapmeet_serving.lora_linear import LoraLinear, Rows, SharedInput
from swapmeet_serving.lora_weights import Layers

HARMLESS = {"dropout", "scaling", "sliding_window", "is_causal", "position_ids", "use_cache", "cache_position",
            "output_attentions", "output_hidden_states", "return_dict", "past_key_values"}  # fmt: skip
"""Attention settings that are computed, or that change nothing at inference without transformers' own cache."""

LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
"""Rotary embeddings that look at the longest sequence in the batch, so neighbours would change results."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A model ready to serve, and what the engine must know of it.

    Attributes:
        model: the transformers model, its linear layers wrapped.
        kv_layers: KV heads and their width by layer.
        layers: those that adapters can be served on.
        shared: the linear ones of these by their inputs.
        sharing: the most query heads that share a key.
    """

    model: Any
    kv_layers: dict[int, tuple[int, int]]
    layers: Layers
    shared: tuple[SharedInput, ...]
    dtype: torch.dtype
    device: str
    context_length: int
    vocabulary: int
    eos: frozenset[int]
    sharing: int

    def attach(self, kernels: Kernels) -> None:
        """Have every layer compute adapters and attention with these kernels."""
        for each in self.shared:
            each.kernels = kernels
        set_attend(self.model, kernels.attend)

    @property
    def token_bytes(self) -> int:
        """What keys and values of a token take."""
        return sum(2 * heads * width for heads, width in self.kv_layers.values()) * self.dtype.itemsize

    @property
    def groups(self) -> list[dict[str, tuple[int, ...]]]:
        """Names and shapes of the linear layers, by their inputs."""
        shapes = self.layers.shapes
        return [{layer.name: shapes[layer.name] for layer in each.layers} for each in self.shared]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """A tensor that linear layers were given, one after the other."""

    x: torch.Tensor
    rows: Rows
    names: list[str]


def load_base(folder: Path, device: str = "cpu", quantization: Quantization | None = None) -> BaseModel:
    """Load a base as NF4 and wrap its linear layers.

    Raises:
        BaseInvalid: transformers can not load the folder.
        BaseUnsupported: the model needs something the engine does not compute; the message names it.
    """
    model = load_nf4(folder, device=device, quantization=quantization)
    kind = model.config.model_type
    _check_config(model.config.get_text_config(), kind)
    # bitsandbytes' CPU kernel has no layout for odd widths
    keep_unpacked(model, lambda layer: layer.out_features % 32 or layer.in_features % 64)
    kv_layers, sharing, seen, others = _observe(model, kind)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    shared = _wrap_linears(model, seen)
    linears = {layer.name: layer.base for each in shared for layer in each.layers}
    layers = Layers(linears, others, head if tied else None)
    config = model.config.get_text_config()
    return BaseModel(
        model=model,
        kv_layers=kv_layers,
        layers=layers,
        shared=shared,
        dtype=model.dtype,
        device=device,
        context_length=config.max_position_embeddings,
        vocabulary=model.get_input_embeddings().num_embeddings,
        eos=_eos(model.generation_config.eos_token_id),
        sharing=sharing,
    )


def _eos(value: int | list[int] | None) -> frozenset[int]:
    return frozenset(() if value is None else [value] if isinstance(value, int) else value)


def _check_config(config: Any, kind: str) -> None:
    """Refuse what does not reach the attention function as a setting of its own."""
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    rope = _rope_types(getattr(config, "rope_parameters", None)) & LENGTH_DEPENDENT_ROPE
    needs = [f"layers of type {name}" for name in sorted(layers)]
    needs += [f"{name} rotary embeddings" for name in sorted(rope)]
    if getattr(config, "attention_chunk_size", None):
        needs.append("chunked attention")
    if getattr(config, "max_position_embeddings", None) is None:
        needs.append("a context of unstated length")
    if needs:
        raise BaseUnsupported(f"Models of type {kind} can not be served: this one needs {', '.join(needs)}.")


def _rope_types(parameters: Any) -> set[str]:
    """Rotary kinds in a config, which may be one set of parameters or one per layer type."""
    if not isinstance(parameters, dict):
        return set()
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(each.get("rope_type")) for each in [parameters, *nested]}


def _observe(model: Any, kind: str) -> tuple[dict[int, tuple[int, int]], int, list[_Inputs], dict[str, Other]]:
    """Run a few tokens, of which the last one's logits are wanted; refuses what attention does not support.

    On the CPU, this pass also lets bitsandbytes repack the weights for inference.

    Returns:
        Each layer's KV heads and width, and the most query heads that share a key; the linear layers by the inputs
        they share; the embedding, and norms. A layer
        that sees other rows (an expert's, say), or computes in another type, is left out: no adapter can be served on
        it.
    """
    seen: dict[int, tuple[int, int]] = {}
    sharing: set[int] = set()
    needs: set[str] = set()

    def attend(module: Any, query: Any, key: Any, value: Any, **settings: Any) -> torch.Tensor:
        needs.update(_unsupported(settings))
        if key.shape != value.shape:
            needs.add("values of another width than keys")
        if not query.dtype == key.dtype == value.dtype == model.dtype:
            needs.add("attention in another type than the weights'")
        if module.layer_idx in seen:
            needs.add("several attentions in a layer")
        seen[module.layer_idx] = (key.shape[1], key.shape[3])
        sharing.add(query.shape[1] // key.shape[1])
        output: torch.Tensor = sdpa_attention_forward(module, query, key, value, None, scaling=settings.get("scaling"))[
            0
        ]
        return output

    try:
        model.set_attn_implementation(attention.NAME)
    except ValueError as error:
        raise BaseUnsupported(
            f"Models of type {kind} can not be served: transformers gives them no attention interface."
        ) from error
    set_attend(model, attend)
    config = model.config.get_text_config()
    heads = {getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    count = next(count for count in (3, 4, 5) if count not in heads)  # tells tokens from heads in a shape
    inputs, others, hooks = _note_inputs(model, count)
    ids = torch.zeros(1, count, dtype=torch.long, device=model.device)
    places = torch.arange(count, device=model.device)
    with torch.inference_mode():
        model(input_ids=ids, position_ids=places[None], use_cache=False, logits_to_keep=places[-1:])
    for hook in hooks:
        hook.remove()
    if set(seen) != set(range(model.config.get_text_config().num_hidden_layers)):
        needs.add("layers without attention, or attention outside transformers' interface")
    if needs:
        raise BaseUnsupported(f"Models of type {kind} can not be served: they need {', '.join(sorted(needs))}.")
    return seen, max(sharing), inputs, others


def _note_inputs(model: Any, count: int) -> tuple[list[_Inputs], dict[str, Other], list[Any]]:
    """Hooks that tell which of a pass' `count` rows each layer sees, and where they tell it."""
    inputs: list[_Inputs] = []
    others: dict[str, Other] = {}

    def note_linear(name: str, module: Any, x: torch.Tensor, result: torch.Tensor) -> None:
        seen: Rows | None = {count: "all", 1: "last"}.get(x.numel() // module.in_features)  # type: ignore[assignment]
        if seen and x.dtype == result.dtype == model.dtype:
            if not inputs or inputs[-1].x is not x:
                inputs.append(_Inputs(x, seen, []))
            inputs[-1].names.append(name)

    def note_other(name: str, module: nn.Module, x: torch.Tensor, result: torch.Tensor) -> None:
        axes = [axis for axis in range(1, min(3, x.dim())) if x.shape[axis] == count]
        if len(axes) == 1 and x.shape[0] == 1 and result.dtype == model.dtype:
            others[name] = Other(module, axes[0])

    def hooked(name: str, note: Any) -> Any:
        return lambda module, inputs, result: note(name, module, inputs[0], result)

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(hooked(name, note_linear)))
        elif module is model.get_input_embeddings() or _is_norm(module):
            hooks.append(module.register_forward_hook(hooked(name, note_other)))
    return inputs, others, hooks


def _is_norm(module: nn.Module) -> bool:
    """A weight with a number for each column, perhaps a bias, and nothing below."""
    parameters = dict(module.named_parameters())
    vectors = all(parameter.dim() == 1 for parameter in parameters.values())
    return vectors and "weight" in parameters and parameters.keys() <= {"weight", "bias"}


def set_attend(model: Any, attend: attention.Attend) -> None:
    """Have every attention layer of a model call `attend`."""
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            module.attend = attend


def _unsupported(settings: dict[str, Any]) -> set[str]:
    found = {f"the attention setting {name}" for name, value in settings.items()
             if name not in HARMLESS and value is not None}  # fmt: skip
    if settings.get("is_causal") is False:
        found.add("attention that is not causal")
    return found


def _wrap_linears(model: Any, inputs: list[_Inputs]) -> tuple[SharedInput, ...]:
    """Put a `LoraLinear` in the place of each of these linear layers."""
    import bitsandbytes as bnb

    found, wrapped = [], set[str]()
    for seen in inputs:
        layers = []
        for name in [name for name in seen.names if name not in wrapped]:
            module = model.get_submodule(name)
            layers.append(LoraLinear(module, name, rounds_first=isinstance(module, bnb.nn.Linear4bit)))
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layers[-1])
            wrapped.add(name)
        if layers:
            found.append(SharedInput(layers, seen.rows))
    return tuple(found)
