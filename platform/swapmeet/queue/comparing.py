"""A plan held against what the run took."""

from collections.abc import Mapping
from typing import Any

from swapmeet_training.attempts.telling import Finished


def compared(plan: Mapping[str, Any], finished: Finished) -> tuple[str, dict[str, Any] | None]:
    """In words, to be put behind a sentence, and in figures; nothing where there is no plan, or nothing was measured.

    Speed is in tokens a second without padding, memory in bytes of tensors: what CUDA itself takes is left aside.

    Args:
        plan: as `Plan.as_dict` gives it.
        finished: what the last attempt measured.
    """
    if not finished.tokens_per_second or "tokens_per_second" not in plan:
        return "", None
    planned = {"tokens_per_second": plan["tokens_per_second"]}
    measured: dict[str, Any] = {"tokens_per_second": round(finished.tokens_per_second, 1)}
    words = [f"{finished.tokens_per_second:.0f} tokens/s, where {plan['tokens_per_second']:.0f} were planned"]
    if finished.peak_memory is not None:
        planned["memory"] = plan["memory"]["peak"] - plan["memory"]["parts"].get("overhead", 0)
        measured["memory"] = finished.peak_memory
        words.append(f"{finished.peak_memory / 1e9:.2f} GB of tensors, where {planned['memory'] / 1e9:.2f} were")
    return ": " + "; ".join(words), {"planned": planned, "measured": measured}
