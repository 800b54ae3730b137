"""The shapes of a base's weights by module name, from its files' headers: to check adapters against, without torch."""

import json
from pathlib import Path

from swapmeet_registry.admission.lora_parts import ENDS
from swapmeet_registry.fingerprint import weight_files
from swapmeet_registry.safetensors_file import read_header


def module_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a transformers folder.

    An output head that is tied to the embedding is not among the files' tensors, and added.

    Raises:
        Refused: a file is not sound.
    """
    shapes = {
        entry.name.removesuffix(".weight"): entry.shape
        for path in weight_files(folder)
        for entry in read_header(path).tensors
        if entry.name.endswith(".weight")
    }
    if not any(name.startswith("model.") for name in shapes):  # saved without its head, as transformers allows
        shapes |= {f"model.{name}": shape for name, shape in shapes.items() if name not in ENDS}
    embedding, head = ENDS
    inputs = next((shape for name, shape in shapes.items() if name.endswith(f".{embedding}")), None)
    if inputs and json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", True):
        shapes.setdefault(head, inputs)
    return shapes
