"""What an adapter's weights say of it: how much each layer is changed, and in how many directions.

A layer's change is s·B·A, with s its scale. Its singular values are those of an r by r matrix made of BᵀB and AAᵀ, so
the change itself, which is as large as the layer, is never computed: with BᵀB = LLᵀ they are the roots of the
eigenvalues of Lᵀ(AAᵀ)L. Numbers are doubles; values below about 1e-6 of the largest are noise, and given as 0.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product
from math import prod, sqrt
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field

from swapmeet_registry.admission.lora_config import LoraConfig
from swapmeet_registry.admission.lora_parts import LoraWeights, Pair
from swapmeet_registry.origin.provenance import Document
from swapmeet_registry.safetensors_file import TensorEntry

if TYPE_CHECKING:
    import numpy as np

    Matrix = np.ndarray[Any, np.dtype[np.float64]]

SPECTRUM = 8
"""How many singular values are kept of each layer."""
MAX_WORK = 60e9
"""Multiplications after which the remaining layers are left out; some seconds of one core."""
MAX_TENSOR = 128 << 20
"""Bytes of a factor that is held in memory; larger ones are left out."""
COLUMNS = 1 << 14
LIFT = 1e-14
"""What is added to the diagonal, in parts of its sum, so that a B without full rank has a root: far below the noise."""
TILE = 64
"""Products of this size, at most, OpenBLAS does in the calling thread: more of them cost a busy machine more than they
give, as they wait for each other without sleeping."""
NOISE = 1e-6


class Layer(BaseModel):
    """The change of one layer.

    Attributes:
        module: the layer.
        rank: of its factors.
        frobenius: the root of the sum of the squares of all numbers of the change.
        spectral: its largest singular value: how much longer it makes a vector at most.
        stable_rank: (frobenius / spectral)², between 1 and the rank; 0 where nothing is changed.
        spectrum: the largest singular values, falling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    module: str
    rank: int = Field(ge=1)
    frobenius: float
    spectral: float
    stable_rank: float
    spectrum: tuple[float, ...]


class Report(Document):
    """The changes of all layers. It is advice for people; nothing is ever refused because of it.

    Attributes:
        layers: sorted by module.
        left_out: layers that were too large to look at.
    """

    schema_: Literal["swapmeet.report/1"] = Field("swapmeet.report/1", alias="schema")
    layers: tuple[Layer, ...] = ()
    left_out: tuple[str, ...] = ()


def statistics(path: Path, config: LoraConfig, weights: LoraWeights) -> Report:
    """The statistics of checked weights.

    Args:
        path: the weights' file.
        config: its configuration.
        weights: its parts, as `lora_weights.read_weights` gives them.
    """
    layers, left_out, work = [], [], 0.0
    with path.open("rb") as stream:
        for pair in weights.pairs:
            work += pair.rank * sum(prod(entry.shape) for entry in (pair.a, pair.b))
            if work > MAX_WORK or max(pair.a.size, pair.b.size) > MAX_TENSOR:
                left_out.append(pair.module)
            else:
                read = partial(_read, stream, weights.data_start)
                layers.append(_layer(pair, config.scale(pair.module), read(pair.a), read(pair.b)))
    return Report(layers=tuple(layers), left_out=tuple(left_out))


def _layer(pair: Pair, scale: float, a: "Matrix", b: "Matrix") -> Layer:
    import numpy as np

    inner_a, size_a = _inner(a)
    inner_b, size_b = _inner(b.T)
    trace = float(np.trace(inner_b))
    lifted = inner_b + np.eye(pair.rank) * (trace * LIFT)
    root = np.linalg.cholesky(lifted) if trace else lifted  # which is 0 where B is
    squares = np.maximum(np.linalg.eigvalsh(root.T @ inner_a @ root)[::-1], 0)
    found = np.sqrt(squares)
    found[found < NOISE * found[0]] = 0
    # Scaled last and by parts, so that neither very small nor very large factors leave the range of doubles.
    singular = found * scale * size_a * size_b
    total = float(np.linalg.norm(found))
    return Layer(
        module=pair.module,
        rank=pair.rank,
        frobenius=_rounded(total * scale * size_a * size_b),
        spectral=_rounded(float(singular[0])),
        stable_rank=_rounded((total / float(found[0])) ** 2) if found[0] else 0.0,
        spectrum=tuple(_rounded(float(value)) for value in singular[:SPECTRUM]),
    )


def _inner(a: "Matrix") -> tuple["Matrix", float]:
    """AAᵀ of A divided by its largest number, and that number."""
    import numpy as np

    size = float(max(a.max(), -a.min())) or 1.0
    rank = a.shape[0]
    total = np.zeros((rank, rank))
    for part in _columns(a, COLUMNS):
        for block in _columns(part.astype(np.float64) / size, max(TILE, TILE**3 // rank**2)):
            for i, j in product(range(0, rank, TILE), repeat=2):
                if i <= j:
                    total[i : i + TILE, j : j + TILE] += block[i : i + TILE] @ block[j : j + TILE].T
    for i, j in product(range(0, rank, TILE), repeat=2):
        if i > j:
            total[i : i + TILE, j : j + TILE] = total[j : j + TILE, i : i + TILE].T
    return total, size


def _columns(a: "Matrix", width: int) -> Iterator["Matrix"]:
    return (a[:, at : at + width] for at in range(0, a.shape[1], width))


def _read(stream: BinaryIO, start: int, entry: TensorEntry) -> "Matrix":
    import numpy as np

    stream.seek(start + entry.start)
    data = stream.read(entry.size)
    if entry.dtype == "BF16":
        values: Any = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[entry.dtype])
    return values.reshape(entry.shape)  # type: ignore[no-any-return]


def _rounded(value: float) -> float:
    """Six digits: what is stored does not depend on the machine's arithmetic."""
    return float(f"{value:.6g}")


def robust_deviations(values: list[float]) -> list[float]:
    """How far each value lies from the median, in units that are standard deviations for normal ones (0.6745·x/MAD)."""
    if not values:
        return []
    middle = median(values)
    spread = median([abs(value - middle) for value in values])
    return [0.6745 * (value - middle) / spread if spread else 0.0 for value in values]


def magnitude(report: Report) -> float:
    """The root of the sum of the squares of all layers' changes."""
    return sqrt(sum(layer.frobenius**2 for layer in report.layers))
