"""What adapters change beside low-rank products: DoRA, embeddings, and layers or tokens trained in full.

A part gives a layer's result as if its adapter were the only one, in PEFT's order of arithmetic. In a mix, each
part's difference from the base's result is added, times the adapter's weight. This is torch on any device, and runs
on the rows of such adapters only; a step without them knows nothing of it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from swapmeet_serving.step_plan import Segment, Span, kept_rows, segments_of

if TYPE_CHECKING:
    from swapmeet_serving.lora_weights import LoraPair


@dataclass(frozen=True, slots=True, eq=False)
class Other:
    """A layer of the base that no `LoraLinear` wraps, and the axis of its input (1, …) that tokens stand in."""

    module: nn.Module
    axis: int

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view of its input or result with tokens first."""
        return tensor[0].movedim(self.axis - 1, 0)


class Part(Protocol):
    """One adapter's part on one layer.

    Attributes:
        layer: the base's layer, where no `LoraLinear` wraps it.
        whole: the layer with weights of the adapter's own.
    """

    @property
    def layer(self) -> Other | None:  # noqa: D102
        ...

    @property
    def whole(self) -> nn.Module | None:  # noqa: D102
        ...

    def __call__(self, x: torch.Tensor, y: torch.Tensor, rows: int) -> torch.Tensor:
        """What becomes of the base's result.

        Args:
            x: (n, in) the layer's input, or (n,) token ids.
            y: (n, out) the base's result, which stays as it is.
            rows: how many of the n rows belong to one sequence.
        """
        ...


Parts = dict[str, Part]
"""An adapter's parts by the names of the base's modules."""


@dataclass(frozen=True, slots=True, eq=False)
class Dora:
    """DoRA scales each output, but for the bias (arXiv 2402.09353).

    Attributes:
        gain: (out,) magnitude by the adapted weight's norm.
        excess: gain - 1.
        bias: the base's.
    """

    gain: torch.Tensor
    excess: torch.Tensor
    bias: torch.Tensor | None

    def stretch(self, y: torch.Tensor) -> torch.Tensor:
        """What the gain adds to the base's result."""
        return self.excess * (y if self.bias is None else y - self.bias)

    def to(self, target: torch.device | torch.dtype) -> "Dora":
        """On a device or in a dtype; the bias is the base's and stays."""
        return Dora(self.gain.to(target), self.excess.to(target), self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows:
    """Rows of an embedding's weight that were trained: (n,) sorted token ids, and (n, width)."""

    ids: torch.Tensor
    rows: torch.Tensor

    def embed(self, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        """The rows of these tokens instead of the base's."""
        places = torch.searchsorted(self.ids, x).clamp_(max=len(self.ids) - 1)
        rows = self.rows[places] if scale is None else self.rows[places] * scale.to(self.rows.dtype)
        return torch.where((self.ids[places] == x)[:, None], rows, y)

    def score(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Logits of these tokens instead of the base's, where the output head is tied to the embedding."""
        return y.index_copy(1, self.ids, functional.linear(x, self.rows))


@dataclass(frozen=True, slots=True, eq=False)
class LinearPart:
    """On a linear layer.

    Attributes:
        whole: the layer with weights of the adapter's own.
        tokens: on a tied output head.
        dora: with the pair, or alone where the pair is computed elsewhere with the gain in its B.
        shift: a bias that is added, scaling included.
    """

    whole: nn.Module | None = None
    tokens: TokenRows | None = None
    dora: Dora | None = None
    pair: "LoraPair | None" = None
    shift: torch.Tensor | None = None
    layer: None = None

    def __call__(self, x: torch.Tensor, y: torch.Tensor, rows: int) -> torch.Tensor:
        """As PEFT's `Linear` and `DoraLinearLayer`."""
        if self.whole is not None:
            y = self.whole(x)
        if self.tokens is not None:
            y = self.tokens.score(x, y)
        if self.dora is not None:
            added = self.dora.stretch(y)
            if self.pair is not None:
                added = added + self.dora.gain * product(x.float(), self.pair, rows) * self.pair.scaling
            y = y + added
        return y if self.shift is None else y + self.shift


def linear_part(parts: Parts, module: str) -> LinearPart:
    """What an adapter has on a linear layer so far."""
    part = parts.get(module, LinearPart())
    assert isinstance(part, LinearPart)
    return part


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingPart:
    """On the embedding; `pair` has a row of `down` for each token."""

    layer: Other
    whole: nn.Module | None = None
    tokens: TokenRows | None = None
    dora: Dora | None = None
    pair: "LoraPair | None" = None

    def __call__(self, x: torch.Tensor, y: torch.Tensor, rows: int) -> torch.Tensor:
        """As PEFT's `Embedding` and `DoraEmbeddingLayer`; embeddings that scale do so here, too."""
        scale = getattr(self.layer.module, "embed_scale", None)
        if self.whole is not None:
            y = self.whole(x)
        if self.tokens is not None:
            y = self.tokens.embed(x, y, scale)
        if self.pair is None:
            return y
        inner = functional.embedding(x.view(-1, rows), self.pair.down)
        added = torch.bmm(inner, self.pair.up.expand(len(inner), -1, -1)).flatten(0, 1)
        if self.dora is not None:
            y, added = self.dora.gain * y, self.dora.gain * added
        added = added * self.pair.scaling
        return y + (added if scale is None else added * scale.to(added.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class NormPart:
    """A norm with weights of the adapter's own."""

    layer: Other
    whole: nn.Module

    def __call__(self, x: torch.Tensor, y: torch.Tensor, rows: int) -> torch.Tensor:  # noqa: ARG002 - as all parts
        """The norm itself."""
        result: torch.Tensor = self.whole(x)
        return result


class PartsStep:
    """The parts of one step's adapters, by rows.

    Layers that are not wrapped get a hook, for this step only.
    """

    def __init__(self, spans: tuple[Span, ...]) -> None:
        self._segments = _with_parts(spans, [(span.start, span.stop) for span in spans])
        self._last_segments = _with_parts(spans, kept_rows(spans))
        layers = {
            name: part.layer
            for segment in self._segments
            for held, _ in segment.terms
            for name, part in held.parts.items()
            if part.layer is not None
        }
        self._hooks = [layer.module.register_forward_hook(self._hook(name, layer)) for name, layer in layers.items()]

    @classmethod
    def of(cls, spans: tuple[Span, ...]) -> "PartsStep | None":
        """Nothing, if no adapter of the step has parts."""
        return cls(spans) if any(held.parts for span in spans for held, _ in span.terms) else None

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def change(self, name: str, x: torch.Tensor, result: torch.Tensor, *, last: bool) -> None:
        """Put every adapter's parts on a layer into the base's result, in place; both have a row for each token."""
        for segment in self._last_segments if last else self._segments:
            parts = [(held.parts[name], weight) for held, weight in segment.terms if name in held.parts]
            if parts:
                y = result[segment.start : segment.stop]
                y.copy_(_mixed(parts, len(segment.terms), x[segment.start : segment.stop], y, segment.rows))

    def _hook(self, name: str, layer: Other) -> Any:
        def change(module: nn.Module, inputs: Any, result: torch.Tensor) -> None:  # noqa: ARG001 - as hooks are called
            self.change(name, layer.rows(inputs[0]), layer.rows(result), last=False)

        return change


def product(x: torch.Tensor, pair: "LoraPair", rows: int) -> torch.Tensor:
    """x Aᵀ Bᵀ, unscaled: (n, in) to (n, out), as a batch of equal products of `rows` each."""
    batch = x.view(-1, rows, x.shape[-1])
    inner = torch.bmm(batch, pair.down.expand(len(batch), -1, -1))
    up = pair.up.expand(len(batch), -1, -1)
    return (torch.bmm(inner, up) if pair.shift is None else torch.baddbmm(pair.shift, inner, up)).flatten(0, 1)


def _with_parts(spans: tuple[Span, ...], rows: list[tuple[int, int]]) -> tuple[Segment, ...]:
    return tuple(each for each in segments_of(spans, rows) if any(held.parts for held, _ in each.terms))


def _mixed(parts: list[tuple[Part, float]], terms: int, x: torch.Tensor, y: torch.Tensor, rows: int) -> torch.Tensor:
    if terms == 1 and parts[0][1] == 1.0:
        return parts[0][0](x, y, rows)
    total = y.float()
    for part, weight in parts:
        total = total + weight * (part(x, y, rows) - y)
    return total
