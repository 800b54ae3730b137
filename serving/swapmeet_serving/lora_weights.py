"""Read a PEFT LoRA folder: checked as at its publication and against the base, then into the kernels' form."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from swapmeet_registry.admission import lora_config, lora_parts, lora_weights
from swapmeet_registry.admission.lora_config import LoraConfig
from swapmeet_registry.admission.lora_parts import LoraWeights, Pair, TrainedTokens, Whole
from swapmeet_registry.errors import Refused
from swapmeet_registry.safetensors_file import TensorEntry
from swapmeet_serving.adapter_parts import Dora, EmbeddingPart, LinearPart, NormPart, Other, Part, Parts, TokenRows
from swapmeet_serving.dora import embedding_gain, linear_gain, served_weight
from swapmeet_serving.errors import AdapterUnsupported
from swapmeet_serving.tensor_file import TensorFile

Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layers:
    """A base's layers that adapters can be served on, by name.

    Attributes:
        linears: linear layers, the output head among them.
        others: the embedding, and norms.
        head: the output head's name, if it is tied to the embedding.
    """

    linears: Mapping[str, nn.Linear]
    others: Mapping[str, Other]
    head: str | None = None

    def __getitem__(self, name: str) -> nn.Module:
        return self.linears[name] if name in self.linears else self.others[name].module

    def tied(self, name: str) -> list[str]:
        """The names of the layers that have their weight from the same tensor."""
        ends = {self.head, *(end for end, layer in self.others.items() if isinstance(layer.module, nn.Embedding))}
        return [end for end in ends if end and end != name] if self.head and name in ends else []

    def part(self, name: str, whole: nn.Module | None = None) -> Any:
        """A part on a layer that changes nothing yet, but perhaps the whole."""
        if name in self.linears:
            return LinearPart(whole)
        layer = self.others[name]
        if isinstance(layer.module, nn.Embedding):
            return EmbeddingPart(layer, whole)
        assert whole is not None, "norms have nothing but parameters"
        return NormPart(layer, whole)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Their weights' shapes."""
        shapes = {name: tuple(_parameter(layer.module).shape) for name, layer in self.others.items()}
        return shapes | {name: (layer.out_features, layer.in_features) for name, layer in self.linears.items()}


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One layer's low-rank product: x ↦ x · down · up · scaling, with `down` (in, rank) and `up` (rank, out).

    Both are transposed views of PEFT's row-major A and B, and may be views of the file, in its dtype.

    Attributes:
        dora: its gain on the layer, to which the product counts.
        shift: B's bias, added before scaling.
    """

    down: torch.Tensor
    up: torch.Tensor
    scaling: float
    dora: Dora | None = None
    shift: torch.Tensor | None = None

    def to(self, device: str | torch.device) -> "LoraPair":
        """On a device, in float32, in memory of its own."""

        def own(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, torch.float32, copy=True)

        dora, shift = self.dora and self.dora.to(torch.device(device)), self.shift
        return LoraPair(own(self.down), own(self.up), self.scaling, dora, None if shift is None else own(shift))


LoraPairs = Iterator[tuple[str, LoraPair]]
"""An adapter's pairs by the names of the base's linear layers, read as they are asked for."""


class Holder(Protocol):
    """What takes an adapter's weights into memory: the engine's kernels."""

    weight_bytes: int

    def hold(self, pairs: LoraPairs, ranks: Mapping[str, int], parts: Parts) -> Any:
        """An adapter in the form that it is computed from."""
        ...


@dataclass(frozen=True, slots=True)
class LoraFile:
    """An adapter folder whose every tensor belongs to a layer of the base.

    `wholes` are the layers with weights of the adapter's own.
    """

    path: Path
    config: LoraConfig
    weights: LoraWeights
    wholes: tuple[Whole, ...]
    layers: Layers
    holder: Holder

    @property
    def size(self) -> int:
        """Bytes it takes in memory."""
        own = sum(
            _parameter(self.layers[whole.module]).element_size() * _numbers(whole.entries) for whole in self.wholes
        )
        others = [entry for pair in self.weights.pairs if pair.embedding for entry in pair.entries]
        others += [entry for pair in self._linear for entry in (pair.magnitude, pair.bias) if entry]
        others += [tokens.rows for tokens in self.weights.tokens]
        return self._paired * self.holder.weight_bytes + own + _numbers(others) * torch.float32.itemsize

    @property
    def portable(self) -> bool:
        """Whether it has nothing but products of linear layers, which are packed in host memory."""
        more = any(pair.magnitude or pair.bias for pair in self._linear)
        return not (more or self.wholes or self.weights.tokens or len(self._linear) < len(self.weights.pairs))

    @property
    def _linear(self) -> list[Pair]:
        return [pair for pair in self.weights.pairs if not pair.embedding]

    @property
    def _paired(self) -> int:
        return sum(_numbers((pair.a, pair.b)) for pair in self._linear)

    def read(self) -> Any:
        """Read the weights into memory, in the holder's form."""
        read = TensorFile(self.path, self.weights.entries, self.weights.data_start)
        with torch.no_grad():  # norms are of the base's parameters
            parts = self._parts(read)
            pairs = ((pair.module, self._pair(read, pair, parts.get(pair.module))) for pair in self._linear)
            ranks = {pair.module: pair.a.shape[0] for pair in self._linear}
            return self.holder.hold(pairs, ranks, parts)

    def _parts(self, read: Read) -> Parts:
        """All but the linear layers' pairs."""
        parts: Parts = {}
        for whole in self.wholes:
            own = with_parameters(self.layers[whole.module], read, whole)
            parts[whole.module] = self.layers.part(whole.module, own)
        for tokens in self.weights.tokens:
            rows = _token_rows(read, tokens, _parameter(self.layers[tokens.module]))
            parts[tokens.module] = replace(self.layers.part(tokens.module), tokens=rows)
            if tokens.module in self.layers.others and self.layers.head:
                parts.setdefault(self.layers.head, LinearPart(tokens=rows))
        for pair in self.weights.pairs:
            if pair.embedding:
                part: Any = parts.get(pair.module) or self.layers.part(pair.module)
                loaded = self._pair(read, pair, part).to(_parameter(self.layers[pair.module]).device)
                parts[pair.module] = replace(part, pair=loaded, dora=loaded.dora)
        return parts

    def _pair(self, read: Read, pair: Pair, part: Part | None) -> LoraPair:
        a, b = read(pair.a.name), read(pair.b.name)
        down, up, scaling = a.t(), b.t(), self.config.scale(pair.module)
        dora, shift = None, None if pair.bias is None else read(pair.bias.name).float()
        if pair.magnitude is not None:
            layer = (part and part.whole) or self.layers[pair.module]
            weight, gain_of = served_weight(layer), embedding_gain if pair.embedding else linear_gain
            low, high, magnitude = (each.to(weight.device).float() for each in (down, up, read(pair.magnitude.name)))
            gain = gain_of(weight, low, high, scaling, magnitude)
            dora = Dora(gain, gain - 1, getattr(layer, "bias", None))
        return LoraPair(down, up, scaling, dora, shift)


def open_lora(folder: Path, identity: str, layers: Layers, holder: Holder) -> LoraFile:
    """Check an adapter folder against the base's layers; of the tensors, only copies of the base's are read.

    Raises:
        AdapterUnsupported: the adapter is unsound, or can not be served on this base; the message names the part.
    """
    try:
        config = lora_config.parse(_bytes(folder / lora_config.FILE))
        path = folder / lora_weights.FILE
        if not path.is_file():
            raise Refused(f"It has no {path.name}. Save it with PEFT as safetensors.")
        weights = lora_weights.read_weights(path, config)
        lora_parts.require_shapes(weights, layers.shapes, "this base")
        for pair in weights.pairs:
            if pair.embedding is not isinstance(layers[pair.module], nn.Embedding):
                raise Refused(f"The adapter's {pair.module} is of another kind than in this base.")
    except Refused as error:
        raise AdapterUnsupported(f"{identity} can not be served. {error}") from error
    return LoraFile(path, config, weights, (*weights.saved, *_trained(path, weights, layers)), layers, holder)


def with_parameters(layer: nn.Module, read: Read, whole: Whole) -> nn.Module:
    """A layer like the base's, with other parameters; it shares all else."""
    own, like = copy.copy(layer), _parameter(layer)
    own._parameters = {  # torch has no public way to share all else
        **layer._parameters,
        **{part: nn.Parameter(read(entry.name).to(like, copy=True), False) for part, entry in whole.parameters.items()},
    }
    own._forward_hooks = OrderedDict()  # it must not take part in what is hooked to the base's
    return own


def _trained(path: Path, weights: LoraWeights, layers: Layers) -> list[Whole]:
    """Those copies of the base's ends that differ from the base; where these are tied, PEFT loads one into both."""
    found: dict[str, Whole] = {}
    read = TensorFile(path, weights.entries, weights.data_start)
    for whole in weights.copies:
        base = layers[whole.module]
        pairs = [(read(entry.name), getattr(base, part)) for part, entry in whole.parameters.items()]
        if all(torch.equal(own.to(weight), weight) for own, weight in pairs):
            continue
        found[whole.module] = whole
        for other in layers.tied(whole.module):
            found.setdefault(other, Whole(other, whole.parameters))
    return list(found.values())


def _token_rows(read: Read, tokens: TrainedTokens, weight: torch.Tensor) -> TokenRows:
    ids, order = torch.tensor(tokens.ids, device=weight.device).sort()
    return TokenRows(ids, read(tokens.rows.name).to(weight)[order])


def _parameter(layer: nn.Module) -> torch.Tensor:
    weight: Any = layer.weight
    return cast(torch.Tensor, weight)


def _numbers(entries: Iterable[TensorEntry]) -> int:
    return sum(prod(entry.shape) for entry in entries)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"It has no readable {path.name} ({error}). Save it with PEFT's save_pretrained().") from error
