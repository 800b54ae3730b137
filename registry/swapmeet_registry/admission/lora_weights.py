"""`adapter_model.safetensors`: the parts of an adapter by the base's modules, and nothing else. Works without torch.

    MODULE.lora_A.weight, …lora_B.weight [, …lora_B.bias]   a pair on a linear layer
    MODULE.lora_embedding_A, …lora_embedding_B              a pair on an embedding
    MODULE.lora_magnitude_vector                            beside either, with DoRA
    MODULE.weight, MODULE.bias                              a norm, the embedding or the output head, trained in full
    MODULE.token_adapter.trainable_tokens_delta             rows of the embedding, trained one by one
    MODULE.base_layer.weight                                the base's own, which PEFT saves beside a pair on either end

each after `base_model.model.`.
"""

import re
from pathlib import Path

from swapmeet_registry.admission.lora_config import FILE as CONFIG
from swapmeet_registry.admission.lora_config import MAX_MATCHES, LoraConfig, is_within
from swapmeet_registry.admission.lora_parts import ENDS, LoraWeights, Pair, TrainedTokens, Whole
from swapmeet_registry.errors import Refused
from swapmeet_registry.safetensors_file import SafetensorsFile, TensorEntry, read_header

FILE = "adapter_model.safetensors"
MAX_HEADER = 4 << 20
MAX_TENSORS = 20_000
MAX_NAME = 500

_DIMENSIONS = {
    "lora_A.weight": 2,
    "lora_B.weight": 2,
    "lora_B.bias": 1,
    "lora_embedding_A": 2,
    "lora_embedding_B": 2,
    "lora_magnitude_vector": 1,
    "token_adapter.trainable_tokens_delta": 2,
    "base_layer.weight": 2,
    "base_layer.bias": 1,
    "bias": 1,
}
_MODULE = r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*?"
_KEY = re.compile(rf"base_model\.model\.({_MODULE})\.({'|'.join(map(re.escape, _DIMENSIONS))}|weight)")
DTYPES = ("F32", "F16", "BF16")


def read_weights(path: Path, config: LoraConfig) -> LoraWeights:
    """The parts of an adapter's weights, as the configuration says; reads no tensor data.

    Raises:
        Refused: the file is unsound, or a tensor is unknown, incomplete or of a wrong shape.
    """
    return parts(read_header(path, max_header=MAX_HEADER, max_tensors=MAX_TENSORS), config)


def parts(header: SafetensorsFile, config: LoraConfig) -> LoraWeights:
    """As `read_weights`, from a header that was read already."""
    modules: dict[str, dict[str, TensorEntry]] = {}
    for entry in header.tensors:
        module, part = _place(entry)
        modules.setdefault(module, {})[part] = entry
    if len(modules) * (len(config.rank_pattern) + len(config.alpha_pattern)) > MAX_MATCHES:
        raise Refused(f"{CONFIG} has too many patterns for {len(modules)} modules. Give most one rank and alpha.")
    pairs, saved, copies, tokens = [], [], [], []
    for module, found in sorted(modules.items()):
        own = {part: entry for part, entry in found.items() if part in ("weight", "bias")}
        below = {part: entry for part, entry in found.items() if part.startswith("base_layer.")}
        delta = found.get("token_adapter.trainable_tokens_delta")
        rest = {part: entry for part, entry in found.items() if part not in {*own, *below} and entry is not delta}
        if rest:
            pairs.append(_pair(module, rest, config))
        if below or (own and not config.saves(module)):
            copies.append(_copy(module, own, below, pair=bool(rest)))
        elif own:
            saved.append(_saved(module, own))
        if delta is not None:
            tokens.append(_tokens(module, delta, config, alone=len(found) == 1))
    if not pairs:  # PEFT makes some for whatever target_modules names, and loads nothing where that is nothing
        raise Refused(f"{FILE} holds no LoRA weights. Save a trained adapter.")
    weights = LoraWeights(tuple(pairs), tuple(saved), tuple(copies), tuple(tokens), header.tensors, header.data_start)
    _require_all(config, weights)
    return weights


def _place(entry: TensorEntry) -> tuple[str, str]:
    found = _KEY.fullmatch(entry.name) if len(entry.name) <= MAX_NAME else None
    if not found:
        raise Refused(
            f"{FILE} holds {entry.name[:200]!r}, which is no part of a LoRA adapter that Swapmeet knows. Only LoRA "
            "on linear layers and embeddings, DoRA, and modules and tokens trained in full are supported."
        )
    if entry.dtype not in DTYPES:
        raise Refused(f"{FILE}: {entry.name} has the dtype {entry.dtype}. Save the adapter as {', '.join(DTYPES)}.")
    wanted = _DIMENSIONS.get(found[2])
    if 0 in entry.shape or len(entry.shape) not in ((wanted,) if wanted else (1, 2)):
        kind = "a vector" if wanted == 1 else "a matrix" if wanted == 2 else "a vector or a matrix"
        raise Refused(f"{FILE}: {entry.name} has the shape {list(entry.shape)}; it should be {kind}.")
    return found[1], found[2]


def _pair(module: str, parts: dict[str, TensorEntry], config: LoraConfig) -> Pair:
    embedding = any(part.startswith("lora_embedding") for part in parts)
    if module.endswith(ENDS) and embedding is not module.endswith(ENDS[0]):
        raise Refused(f"{FILE}: {module} has LoRA of another kind of layer. Save the adapter again.")
    a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    magnitude, bias = "lora_magnitude_vector", "lora_B.bias"
    needed = {a, b, *([magnitude] if config.use_dora else []), *([bias] if config.lora_bias else [])}
    if missing := sorted(needed - parts.keys()):
        raise Refused(f"{FILE}: {module} lacks its {missing[0].removesuffix('.weight')}. Save the adapter again.")
    if extra := sorted(parts.keys() - needed):
        raise Refused(f"{FILE} holds {parts[extra[0]].name}, which {CONFIG} does not account for.")
    pair = Pair(module, parts[a], parts[b], embedding, parts.get(magnitude), parts.get(bias))
    _require_sound(pair, config)
    return pair


def _require_sound(pair: Pair, config: LoraConfig) -> None:
    module, configured = pair.module, config.rank(pair.module)
    if pair.b.shape[1] != pair.rank:
        raise Refused(
            f"{FILE}: {module} has A of rank {pair.rank} and B of rank {pair.b.shape[1]}; they must be equal."
        )
    if pair.rank != configured:
        raise Refused(f"{FILE}: {module} has rank {pair.rank}, but {CONFIG} gives it rank {configured}.")
    for entry in (pair.magnitude, pair.bias):
        if entry is not None and entry.shape != pair.b.shape[:1]:
            raise Refused(f"{FILE}: {entry.name} has {entry.shape[0]} numbers, and B has {pair.b.shape[0]} outputs.")
    if not config.targets(module):
        raise Refused(f"{FILE} holds weights for {module}, which {CONFIG}'s target_modules does not name.")
    if config.saves(module):
        raise Refused(
            f"{CONFIG}'s modules_to_save names {module}, which has LoRA weights. A module has one or the other."
        )


def _copy(module: str, own: dict[str, TensorEntry], below: dict[str, TensorEntry], *, pair: bool) -> Whole:
    """PEFT saves the ends of the model beside their pairs, and without pairs where a vocabulary was resized."""
    given = below if pair else own
    if not module.endswith(ENDS) or (own and below) or not given:
        name = next(iter((own or below).values())).name
        raise Refused(f"{FILE} holds {name}, which {CONFIG} does not account for. Name the module in modules_to_save.")
    return Whole(module, {part.removeprefix("base_layer."): entry for part, entry in given.items()})


def _saved(module: str, own: dict[str, TensorEntry]) -> Whole:
    if "weight" in own and len(own["weight"].shape) == 2 and not module.endswith(ENDS):
        raise Refused(
            f"{FILE} holds {module} trained in full (modules_to_save), which Swapmeet supports for norms, "
            f"{' and '.join(ENDS)} only. Adapt it with LoRA instead."
        )
    if "weight" not in own or len({entry.shape[0] for entry in own.values()}) > 1:
        raise Refused(f"{FILE}: {module} should have a weight, and a bias as long or none. Save the adapter again.")
    return Whole(module, own)


def _tokens(module: str, rows: TensorEntry, config: LoraConfig, *, alone: bool) -> TrainedTokens:
    ids = config.tokens(module)
    if not ids or not alone or not module.endswith(ENDS):
        raise Refused(f"{FILE} holds {rows.name}, which {CONFIG} does not account for.")
    if len(ids) != rows.shape[0] or len(set(ids)) != len(ids):
        raise Refused(
            f"{FILE}: {rows.name} has {rows.shape[0]} rows, and {CONFIG}'s trainable_token_indices names "
            f"{len(set(ids))} different tokens; it must name each row's token once."
        )
    return TrainedTokens(module, rows, tuple(ids))


def _require_all(config: LoraConfig, weights: LoraWeights) -> None:
    """What the configuration names must be there: PEFT would not load it, and nothing may be left out in silence."""
    for name in config.modules_to_save or ():
        if not any(is_within(name, whole.module) for whole in weights.saved):
            raise Refused(f"{CONFIG}'s modules_to_save names {name}, of which {FILE} holds no weights.")
    if config.trainable_token_indices and not weights.tokens:
        raise Refused(f"{CONFIG} has trainable_token_indices, of which {FILE} holds no weights.")
    if weights.tokens and sum(module.endswith(ENDS) for module in weights.modules) > len(weights.tokens):
        raise Refused(f"{FILE}: trained tokens beside another change of {' or '.join(ENDS)} are not supported.")
