"""Names of a package that are imported when they are asked for: a command that wants one waits for no more."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def on_demand(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` (PEP 562).

    Args:
        package: the package's name.
        places: for each of its modules the names that are there, with spaces between.
    """

    def find(name: str) -> Any:
        for module, names in places.items():
            if name in names.split():
                found = getattr(import_module(f"{package}.{module}"), name)
                setattr(sys.modules[package], name, found)  # from now on without this
                return found
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
