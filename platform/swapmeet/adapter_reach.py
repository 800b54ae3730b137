"""Which servers a recall reached, as far as they leave word of it."""

from swapmeet.errors import RequestRefused
from swapmeet_registry import Registry, Version
from swapmeet_registry.recalls import Reached


def reach(registry: Registry, ref: str) -> tuple[Version, tuple[Reached, ...]]:
    """A version, withdrawn or not, and what each server did about it.

    Raises:
        NotFound: there is no such version.
        RequestRefused: the registry is on a Hub.
    """
    require_words(registry)
    version = registry.find(ref)
    return version, registry.recalls.reach(version)


def require_words(registry: Registry) -> None:
    """Refuse a registry where nobody says what he did."""
    if not registry.recalls.kept:
        raise RequestRefused(
            "On a Hub servers leave no word of what they did: each looks at the heads of what it holds every few "
            "seconds, and logs what it drops. Recall without --wait."
        )
