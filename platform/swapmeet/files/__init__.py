"""Files that tenants upload, whole or in parts: kept, checked, and swept up when they are over.

The rules of what may be uploaded are read without a database, so what needs one is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swapmeet.files.files import Files
    from swapmeet.files.sweeping import Sweeper
    from swapmeet.files.uploads import Uploads
    from swapmeet.files.validator import Validator

__all__ = ["Files", "Sweeper", "Uploads", "Validator"]
_LATER = {"Files": "files", "Sweeper": "sweeping", "Uploads": "uploads", "Validator": "validator"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
