"""Fine-tuning jobs as they are asked for: one schema, and the way from a request to a job's row and back.

The command line reads requests without a database, so what needs one is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from swapmeet.fine_tuning.request import JobRequest, parse_request

if TYPE_CHECKING:
    from swapmeet.fine_tuning.models import Models
    from swapmeet.fine_tuning.rows import JobRequests
    from swapmeet.fine_tuning.settling import settle

__all__ = ["JobRequest", "JobRequests", "Models", "parse_request", "settle"]
_LATER = {"JobRequests": "rows", "Models": "models", "settle": "settling"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
