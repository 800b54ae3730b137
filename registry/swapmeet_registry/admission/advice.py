"""What is said to people about an adapter's statistics. Advice, never a verdict: none of it refuses anything.

Trained adapters differ widely, and a layer that stands out may be what the training was for. What stands out is named
with its figures, so that somebody who knows the adapter can judge.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import log10

from swapmeet_registry.admission.statistics import Layer, Report, magnitude, robust_deviations

DEVIATIONS = 6.0
"""Robust standard deviations from which on a layer stands out."""
COMPARABLE = 8
"""Layers, or other adapters, below which nothing is compared."""
NAMED = 5


def lines(report: Report, others: Sequence[Report] = ()) -> list[str]:
    """Sentences for people.

    Args:
        report: of the adapter at hand.
        others: of the same owner's other adapters on the same base.
    """
    if not report.layers:
        return ["No layer has low-rank weights to look at."]
    norms = sorted(layer.frobenius for layer in report.layers)
    ranks = sorted(layer.stable_rank for layer in report.layers)
    middle = len(norms) // 2
    said = [
        f"{len(norms)} layers are changed, by a norm of {norms[middle]:.3g} in the middle ({norms[0]:.3g} to "
        f"{norms[-1]:.3g}), in {ranks[middle]:.1f} directions of the rank {max(layer.rank for layer in report.layers)}."
    ]
    if report.left_out:
        said.append(f"{len(report.left_out)} layers are too large to be looked at in the time there is.")
    said += [*_unchanged(report), *_outstanding(report), *_unlike(report, others)]
    return said


def _unchanged(report: Report) -> Iterator[str]:
    same = [layer.module for layer in report.layers if layer.frobenius == 0]
    if same:
        yield f"{len(same)} layers are not changed at all: {_listed(same)}."


def _outstanding(report: Report) -> Iterator[str]:
    """Layers unlike those of their kind, such as all `q_proj`."""
    kinds: dict[str, list[Layer]] = defaultdict(list)
    for layer in report.layers:
        if layer.frobenius > 0:
            kinds[layer.module.rpartition(".")[2]].append(layer)
    for kind, layers in sorted(kinds.items()):
        if len(layers) < COMPARABLE:
            continue
        away = robust_deviations([log10(layer.frobenius) for layer in layers])
        found = sorted(zip(away, layers, strict=True), key=lambda each: -abs(each[0]))
        odd = [f"{layer.module} ({layer.frobenius:.3g})" for far, layer in found if abs(far) > DEVIATIONS]
        if odd:
            yield f"Among the {len(layers)} layers called {kind} these are changed much more or less: {_listed(odd)}."


def _unlike(report: Report, others: Sequence[Report]) -> Iterator[str]:
    sizes = [magnitude(other) for other in others]
    own, known = magnitude(report), [size for size in sizes if size > 0]
    if len(known) < COMPARABLE or own <= 0:
        return
    far = robust_deviations([*map(log10, known), log10(own)])[-1]
    if abs(far) > DEVIATIONS:
        less = "less" if far < 0 else "more"
        yield (
            f"It changes the base much {less} than your other {len(known)} adapters on it: a norm of {own:.3g}, and "
            f"theirs is {sorted(known)[len(known) // 2]:.3g} in the middle."
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
