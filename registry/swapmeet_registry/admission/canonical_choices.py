"""Which modules an adapter has, with which ranks and alphas: said in one way, whichever way it was said before."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from swapmeet_registry.admission.lora_config import MAX_MATCHES, MAX_PATTERNS, LoraConfig, Number


def common_and_others(values: Mapping[str, Number], default: Number) -> tuple[Number, dict[str, Number]]:
    """The value that most modules have, the larger of two that as many have, and a pattern for each of the others.

    A pattern is the last part of the name where all modules that end so have one value, and else a module's full name.

    Args:
        values: by the modules' full names.
        default: where there are no modules.
    """
    if not values:
        return default, {}
    counts = Counter(values.values())
    common = max(counts, key=lambda value: (counts[value], value))
    by_end: dict[str, dict[str, Number]] = {}
    for name, value in sorted(values.items()):
        by_end.setdefault(_last(name), {})[name] = value
    inner = {name[place:] for name in values for place in _places(name) if place}
    patterns: dict[str, Number] = {}
    for end, same in by_end.items():
        one = len(set(same.values())) == 1
        for name, value in same.items():
            if value != common:  # a name with which another ends is said from its beginning on
                patterns[end if one else f"^{name}" if name in inner else name] = value
    return common, patterns


def sayable(ranks: Mapping[str, int], alphas: Mapping[str, float], modules: int) -> bool:
    """Whether there are no more patterns than a configuration may have, for an adapter of so many modules."""
    matches = modules * (len(ranks) + len(alphas))
    return max(len(ranks), len(alphas)) <= MAX_PATTERNS and matches <= MAX_MATCHES


def target_modules(config: LoraConfig, pairs: Collection[str], base: Collection[str] | None) -> list[str]:
    """The names that PEFT finds just the modules with weights by.

    They are the last parts of the modules' names, if that is known to mean no other module of the base. Else they are
    those of the configuration's own list that mean some module with weights; or, where it narrows its choice in another
    way, the modules' full names: no loader is to run an expression.

    Args:
        config: what was read.
        pairs: the full names of the modules that have LoRA weights.
        base: those of all of the base's modules that have weights, where known.
    """
    ends = sorted({_last(name) for name in pairs})
    if base is not None and pairs and _means_only(frozenset(ends), frozenset(pairs), base):
        return ends
    if config.narrowed or isinstance(config.target_modules, str):
        return sorted(pairs)
    known = {name[place:] for name in pairs for place in _places(name)}
    return sorted(known.intersection(config.target_modules) or set(config.target_modules))


def _means_only(ends: frozenset[str], pairs: frozenset[str], base: Iterable[str]) -> bool:
    """Whether modules of the base that end so are all among the pairs, and none is inside of one that is called so."""
    for module in base:
        *around, last = module.split(".")
        if not ends.isdisjoint(around):
            return False
        if last in ends and pairs.isdisjoint(
            (module, f"model.{module}")
        ):  # a base saved without its head has no model.
            return False
    return True


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _places(name: str) -> Iterable[int]:
    return (0, *(place + 1 for place, letter in enumerate(name) if letter == "."))
