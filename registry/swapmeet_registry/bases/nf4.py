"""Load a base model as NF4: the one function that training and serving share. torch is imported when called."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapmeet_registry.bases.quiet import quiet
from swapmeet_registry.errors import BaseInvalid
from swapmeet_registry.fingerprint import Quantization

if TYPE_CHECKING:
    import torch

EXPECTED_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits per parameter with double quantization: 4 + 0.127 (QLoRA, arXiv 2305.14314, section 3)."""


def load_nf4(folder: Path, *, device: str = "cpu", quantization: Quantization | None = None) -> Any:
    """A causal language model whose linear layers (but the output head) are bitsandbytes NF4.

    Everything else is kept in the compute dtype. The same call serves CPU and CUDA (`device="cuda:0"`).

    Raises:
        BaseInvalid: transformers can not load the folder.
    """
    import torch

    quantization = quantization or Quantization()
    dtype: torch.dtype = getattr(torch, quantization.compute_dtype)
    with quiet():
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.method,
            bnb_4bit_use_double_quant=quantization.double,
            bnb_4bit_compute_dtype=dtype,
        )
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                quantization_config=config,
                dtype=dtype,
                device_map={"": device},
                local_files_only=True,
                use_safetensors=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise BaseInvalid(f"transformers can not load the base in {folder}: {error}") from error
    if dtype != torch.bfloat16:
        keep_unpacked(model)
    return model.eval()


def keep_unpacked(model: Any, only: Callable[[Any], object] = lambda _: True) -> None:
    """Stop bitsandbytes from repacking (some of) a model's NF4 layers for inference on the CPU.

    On CPUs with AVX512-BF16, `Linear4bit.forward` (bitsandbytes 0.50.2, nn/modules.py) repacks its weight in
    place as soon as it runs in eval mode on an input that needs no gradient. The packed product computes in
    bfloat16 whatever is asked, and has no backward. The module's own switch is read before each repacking.
    """
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit) and only(module):
            module.support_avx512bf16_for_cpu = False


def allow_packing(model: Any) -> None:
    """Undo `keep_unpacked` where the base computes in bfloat16 anyway. What has answered then can not be trained on."""
    import bitsandbytes as bnb
    import torch
    from bitsandbytes.functional import has_avx512bf16

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit) and module.compute_dtype == torch.bfloat16:
            module.support_avx512bf16_for_cpu = has_avx512bf16()


def bits_per_parameter(model: Any) -> float:
    """Bits that each parameter of the NF4 linear layers takes in memory, block constants included."""
    import bitsandbytes as bnb

    bits = parameters = 0
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            parameters += module.in_features * module.out_features
            bits += 8 * sum(_bytes(tensor) for tensor in _constants(module.weight.quant_state))
            bits += 8 * _bytes(module.weight)
    return bits / parameters


def _constants(state: Any) -> "list[torch.Tensor]":
    """The block constants; the two 16-entry code books are shared by design and not counted."""
    nested = [state.state2.absmax, state.offset] if state.nested else []
    return [state.absmax, *nested]


def _bytes(tensor: "torch.Tensor") -> int:
    return tensor.numel() * tensor.element_size()
