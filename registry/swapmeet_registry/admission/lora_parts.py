"""The parts of a LoRA adapter by the base's modules, and whether they fit a base. Works without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from swapmeet_registry.errors import Refused
from swapmeet_registry.safetensors_file import TensorEntry

ENDS = ("embed_tokens", "lm_head")
"""Input and output embeddings, by the names that PEFT knows them under."""

Modules = Mapping[str, tuple[int, ...]]
"""The shapes of a base's weights by module name: outputs and inputs, tokens and width, or a norm's width."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The two factors of one layer: A is rank by inputs, B is outputs by rank.

    Attributes:
        embedding: the inputs are tokens.
        magnitude: DoRA's, one number for each output.
        bias: B's, one number for each output.
    """

    module: str
    a: TensorEntry
    b: TensorEntry
    embedding: bool = False
    magnitude: TensorEntry | None = None
    bias: TensorEntry | None = None

    @property
    def rank(self) -> int:
        """The rank of the product."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the layer's weight."""
        outputs, inputs = self.b.shape[0], self.a.shape[1]
        return (inputs, outputs) if self.embedding else (outputs, inputs)

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """Its tensors."""
        return tuple(entry for entry in (self.a, self.b, self.magnitude, self.bias) if entry is not None)


@dataclass(frozen=True, slots=True)
class Whole:
    """A module's own parameters by name, instead of the base's."""

    module: str
    parameters: dict[str, TensorEntry]

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """Its tensors."""
        return tuple(self.parameters.values())


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """Rows of an embedding's weight, instead of the base's."""

    module: str
    rows: TensorEntry
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """All parts of an adapter, each sorted by module name.

    Attributes:
        pairs: low-rank products.
        saved: modules trained in full.
        copies: what PEFT saved of the base beside a pair; equal to the base's, unless that was trained, too.
        tokens: single rows of embeddings.
        entries: the tensors in the order of their bytes, which begin at `data_start` of the file.
    """

    pairs: tuple[Pair, ...]
    saved: tuple[Whole, ...]
    copies: tuple[Whole, ...]
    tokens: tuple[TrainedTokens, ...]
    entries: tuple[TensorEntry, ...]
    data_start: int

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        trained = [part.entries for part in self.pairs] + [part.entries for part in self.saved]
        trained.append(tuple(part.rows for part in self.tokens))
        return sum(prod(entry.shape) for entries in trained for entry in entries)

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules that it changes, some perhaps twice."""
        names = [part.module for part in self.pairs] + [part.module for part in (*self.saved, *self.copies)]
        return (*names, *(part.module for part in self.tokens))


def require_shapes(weights: LoraWeights, modules: Modules, base: str) -> None:
    """Check that each part fits the module of its name.

    Args:
        weights: what `read_weights` gives.
        modules: the shapes of the base's weights.
        base: the base's name, for the message.

    Raises:
        Refused: the base has no such module, or one of another shape.
    """
    for pair in weights.pairs:
        _require_shape(pair.module, pair.shape, modules, base, "embedding" if pair.embedding else "linear layer")
    for whole in (*weights.saved, *weights.copies):
        for name, entry in whole.parameters.items():
            shape = modules.get(whole.module, ())[: 1 if name == "bias" else None]
            _require_shape(whole.module, entry.shape, {whole.module: shape} if shape else {}, base, "module")
    for part in weights.tokens:
        _require_shape(part.module, (max(part.ids) + 1, *part.rows.shape[1:]), modules, base, "embedding", rows=True)


def _require_shape(
    module: str, found: tuple[int, ...], modules: Modules, base: str, kind: str, *, rows: bool = False
) -> None:
    shape = modules.get(module)
    if shape is None:
        raise Refused(f"The adapter changes {module}, and {base} has no such {kind}.")
    if tuple(shape) == found or (rows and len(shape) == 2 and found[0] <= shape[0] and found[1] == shape[1]):
        return
    if module.endswith(ENDS) and len(shape) == 2 and found[0] != shape[0] and found[1:] == tuple(shape[1:]):
        raise Refused(
            f"The adapter's {module} has {found[0]} tokens, and {base} has {shape[0]}. An adapter whose vocabulary "
            "grew or shrank does not fit; train it with the base's own tokenizer and without resizing embeddings."
        )
    raise Refused(f"The adapter's {module} is {_by(found)}, but in {base} it is {_by(shape)}.")


def _by(shape: tuple[int, ...]) -> str:
    return " by ".join(map(str, shape))
