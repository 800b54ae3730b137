"""Licences: names as SPDX has them, and what one restricts that another does not say.

This compares what licences are known to say; it is no legal advice, and refuses nothing. Manifests keep a licence as it
was given; whatever compares, shows or exports one asks here for its name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from swapmeet_registry.origin.provenance import Facts

Restriction = Literal["commercial use", "derivatives", "other terms", "some uses"]

FORBIDS: dict[Restriction, str] = {
    "commercial use": "forbids commercial use",
    "derivatives": "forbids derivatives to be shared",
    "other terms": "asks for derivatives to be under the same terms",
    "some uses": "forbids some uses, and asks for that to be passed on",
}

_PERMISSIVE = """
    0BSD AFL-3.0 Apache-1.1 Apache-2.0 Artistic-1.0 Artistic-2.0 BSD-1-Clause BSD-2-Clause BSD-2-Clause-Patent
    BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSL-1.0 CC-BY-1.0 CC-BY-2.0 CC-BY-2.5 CC-BY-3.0 CC-BY-4.0 CC-PDM-1.0
    CC0-1.0 CDLA-Permissive-1.0 CDLA-Permissive-2.0 ECL-2.0 etalab-2.0 ISC LPPL-1.3c MIT MIT-0 MS-PL NCSA ODC-By-1.0
    OFL-1.1 OpenMDW-1.0 PDDL-1.0 PostgreSQL Python-2.0 Unlicense UPL-1.0 W3C WTFPL Zlib
""".split()  # noqa: SIM905 - a list of strings is no easier to read
_SAME_TERMS = """
    AGPL-3.0-only AGPL-3.0-or-later CC-BY-SA-2.0 CC-BY-SA-2.5 CC-BY-SA-3.0 CC-BY-SA-4.0 CDLA-Sharing-1.0 EPL-1.0 EPL-2.0
    EUPL-1.1 EUPL-1.2 GFDL-1.3-only GFDL-1.3-or-later GPL-2.0-only GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later
    LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later MPL-2.0 ODbL-1.0 OSL-3.0
""".split()  # noqa: SIM905
_CREATIVE_COMMONS = {
    "CC-BY-NC": ("commercial use",),
    "CC-BY-ND": ("derivatives",),
    "CC-BY-NC-SA": ("commercial use", "other terms"),
    "CC-BY-NC-ND": ("commercial use", "derivatives"),
}
_OF_MODELS = """
    bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m creativeml-openrail-m deepfloyd-if-license gemma
    grok2-community llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 openrail openrail++
""".split()  # noqa: SIM905
"""Licences of models that SPDX does not list, by the names that Hubs have for them."""

RESTRICTIONS: dict[str, frozenset[Restriction]] = {
    **{name: frozenset[Restriction]() for name in _PERMISSIVE},
    **{name: frozenset[Restriction](["other terms"]) for name in _SAME_TERMS},
    **{
        f"{name}-{number}": frozenset[Restriction](restrictions)  # type: ignore[arg-type] # the table's are these
        for name, restrictions in _CREATIVE_COMMONS.items()
        for number in ("2.0", "2.5", "3.0", "4.0")
    },
    **{name: frozenset[Restriction](["some uses"]) for name in _OF_MODELS},
    "fair-noncommercial-research-license": frozenset[Restriction](["commercial use"]),
}
"""What every known licence restricts, by its SPDX identifier or, for those of models, its Hub name."""

_SHORT = {
    **{
        f"{name.lower()}{sign}": f"{name}-{more}"
        for name in ("GPL-2.0", "GPL-3.0", "AGPL-3.0", "LGPL-2.1", "LGPL-3.0")
        for sign, more in (("", "only"), ("+", "or-later"))
    },
    **{
        f"llama-{number}{end}": f"llama{number}"
        for number in ("2", "3", "3.1", "3.2", "3.3", "4")
        for end in ("", "-community")
    },
    "apache": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "apache2": "Apache-2.0",
    "apache-license-2.0": "Apache-2.0",
    "bsd-2": "BSD-2-Clause",
    "bsd-3": "BSD-3-Clause",
    "cc0": "CC0-1.0",
    "mit-license": "MIT",
    "odbl": "ODbL-1.0",
    "odc-by": "ODC-By-1.0",
    "pddl": "PDDL-1.0",
}
"""What else licences are called, in lower case and with dashes for spaces."""
_KNOWN = {name.lower(): name for name in RESTRICTIONS} | _SHORT


def normalized(name: str) -> str:
    """A licence's SPDX identifier, or Hub name; what is not known comes back as it is, without space around it.

    >>> normalized(" apache 2.0"), normalized("GPL-3.0"), normalized("Llama 3.1"), normalized("Ours")
    ('Apache-2.0', 'GPL-3.0-only', 'llama3.1', 'Ours')
    """
    return _KNOWN.get(re.sub(r"[\s_]+", "-", name.strip().lower()), name.strip())


def spdx(name: str) -> str | None:
    """A licence's SPDX identifier, or None where it has none that is known here."""
    known = normalized(name)
    return known if known in RESTRICTIONS and known not in _OF_MODELS and not known.startswith("fair-") else None


def concerns_of(facts: Facts, parent: Facts | None = None) -> tuple[str, ...]:
    """Where base, data or parent restrict more than the licence in a manifest or provenance says, a sentence each."""
    return Licences(
        facts.license, facts.base_license, facts.dataset_license, parent.license if parent else None
    ).concerns()


@dataclass(frozen=True, slots=True)
class Licences:
    """What is said of the licences of an adapter, its base, its training data and the adapter before; None: nothing."""

    own: str | None = None
    base: str | None = None
    dataset: str | None = None
    parent: str | None = None

    @property
    def inherited(self) -> str | None:
        """The adapter's own licence, or its base's where it has none."""
        return self.own or (normalized(self.base) if self.base else None)

    def concerns(self) -> tuple[str, ...]:
        """Where base, data or parent restrict more than the adapter's licence says: one sentence each."""
        return tuple(self._concerns())

    def _concerns(self) -> Iterator[str]:
        own = normalized(self.inherited) if self.inherited else None
        others = (("base", self.base), ("training data", self.dataset), ("adapter that it goes on from", self.parent))
        for what, other in others:
            name = normalized(other) if other else None
            if name is None or name == own:
                continue
            if name not in RESTRICTIONS:
                yield f"The {what} is under {name}, which is not known here. Read it before you share the adapter."
            elif more := sorted(RESTRICTIONS[name] - RESTRICTIONS.get(own or "", frozenset())):
                says = ", ".join(FORBIDS[each] for each in more)
                claimed = f"the adapter's {own} does not say so" if own else "the adapter states no licence"
                yield f"The {what} is under {name}, which {says}; {claimed}. State a licence that fits both."
