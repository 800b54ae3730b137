"""What the check of a training file says."""

from dataclasses import asdict, dataclass
from typing import Any

from swapmeet_training.data.examples import Form
from swapmeet_training.data.findings import Finding, Unit, told


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Tokens of a file's sequences, of which a preference has two: all, those trained, and how long they are."""

    total: int
    trained: int
    longest: int
    percentiles: dict[int, int]


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in a file.

    Attributes:
        name: the file's.
        form: of its examples; None if none could be read.
        unit: what examples stand on, `line` or `row`.
        examples: how many there are, those with mistakes among them.
        bytes: the file's size.
        tokens: of the examples that are whole, those too long among them, if a base was given.
        mistakes: what must be mended before a run; the first twenty of each kind.
        warnings: what is probably not meant, as far.
        mistake_counts: how many mistakes there are of each kind, listed or not.
        warning_counts: how many warnings.
    """

    name: str
    form: Form | None
    unit: Unit
    examples: int
    bytes: int
    tokens: TokenStatistics | None
    mistakes: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    mistake_counts: dict[str, int]
    warning_counts: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether a run would take the file."""
        return not self.mistakes

    @property
    def problem(self) -> str | None:
        """The mistakes as an error tells them, a sentence each; None without any."""
        if self.ok:
            return None
        more = sum(self.mistake_counts.values()) > len(self.mistakes)
        return self.name + told(list(self.mistakes), self.unit, more)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "name": self.name,
            "form": self.form,
            "unit": self.unit,
            "examples": self.examples,
            "bytes": self.bytes,
            "tokens": _for_json(self.tokens) if self.tokens else None,
            "mistakes": [finding.as_dict() for finding in self.mistakes],
            "warnings": [finding.as_dict() for finding in self.warnings],
            "mistake_counts": self.mistake_counts,
            "warning_counts": self.warning_counts,
        }


def _for_json(tokens: TokenStatistics) -> dict[str, Any]:
    return asdict(tokens) | {"percentiles": {str(share): value for share, value in tokens.percentiles.items()}}
