"""The adapter within the model in training: its weights, its files, and the model without it."""

import contextlib
import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapmeet_training.errors import CheckpointError, SpecError
from swapmeet_training.lora import principal
from swapmeet_training.lora.parent import TEMPLATE, WEIGHTS
from swapmeet_training.lora.principal import TRAINED
from swapmeet_training.spec import FineTune

if TYPE_CHECKING:
    import torch

REFERENCE = "reference"

Weights = dict[str, "torch.Tensor"]
"""An adapter's tensors under the names that PEFT saves them by."""


def weights(model: Any, name: str = TRAINED) -> Weights:
    """An adapter's weights, as they are now, on the CPU."""
    import peft

    state = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in state.items()}


def set_weights(model: Any, state: Weights, name: str = TRAINED) -> None:
    """Give an adapter these weights.

    Raises:
        CheckpointError: they are of another adapter.
    """
    import peft

    own = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if {key: tensor.shape for key, tensor in own.items()} != {key: tensor.shape for key, tensor in state.items()}:
        wrong = ", ".join(sorted(own.keys() ^ state.keys())[:3]) or "a shape"
        raise CheckpointError(f"These weights are not of this adapter ({wrong}). Take its own, or start afresh.")
    peft.set_peft_model_state_dict(model, state, adapter_name=name)


def go_on_from(model: Any, spec: FineTune) -> None:
    """Give the adapter its parent's weights, and, for DPO, keep them a second time as the reference.

    Raises:
        SpecError: the parent is of other modules, as `all-linear` may be on another base.
        CheckpointError: its weights are not those that its configuration says.
    """
    from safetensors.torch import load_file

    assert spec.parent is not None
    parent = {key: tensor.float() for key, tensor in load_file(spec.parent / WEIGHTS).items()}
    if unknown := parent.keys() ^ weights(model).keys():
        raise SpecError(
            f"target_modules chooses other modules than the parent has ({min(unknown)}). Leave target_modules out."
        )
    set_weights(model, parent)
    if spec.method == "dpo":
        model.add_adapter(REFERENCE, model.peft_config[TRAINED])
        set_weights(model, parent, REFERENCE)
        model.set_adapter(TRAINED)


@contextlib.contextmanager
def reference(model: Any) -> Iterator[None]:
    """Within it, the model is the one that the run started from."""
    if REFERENCE in model.peft_config:
        model.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            model.set_adapter(TRAINED)
        return
    with model.disable_adapter():
        yield
    principal.freeze(model)  # PEFT unfreezes all that it switches on again


def save(model: Any, spec: FineTune, folder: Path, state: Weights) -> None:
    """Write the adapter with these weights into an empty folder, as PEFT loads and the registry admits it."""
    from safetensors.torch import save_file

    config = copy.copy(model.peft_config[TRAINED])
    config.base_model_name_or_path = spec.base_fingerprint.name
    config.target_modules = sorted(config.target_modules)
    config.inference_mode = True
    if principal.used(model):
        state = principal.as_plain(state, weights(model, principal.INITIAL), config)
    config.save_pretrained(folder)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    if spec.own_template is not None:
        (folder / TEMPLATE).write_bytes(spec.own_template.encode())


def publish(model: Any, spec: FineTune, folder: Path, state: Weights, seal: Callable[[Path], object]) -> Path:
    """Leave the adapter in `folder`/adapter, which appears whole or not at all; `seal` adds its provenance."""
    partial, whole = folder / "adapter.partial", folder / "adapter"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save(model, spec, partial, state)
        seal(partial)
        shutil.rmtree(whole, ignore_errors=True)
        partial.rename(whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return whole
