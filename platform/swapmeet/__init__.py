"""Swapmeet: fine-tune, keep and serve LoRA adapters on one shared NF4 base.

from swapmeet import Client

with Client("http://127.0.0.1:8000", api_key) as client:
client.chat("acme/dates", "3 May 2024")
"""

from typing import TYPE_CHECKING, Any

from swapmeet.errors import ApiError, NotConfigured, PlatformError, PortInUse, ServerFailed, SettingsError

if TYPE_CHECKING:
    from swapmeet.client import Client

__all__ = ["ApiError", "Client", "NotConfigured", "PlatformError", "PortInUse", "ServerFailed", "SettingsError"]


def __getattr__(name: str) -> Any:
    if name == "Client":  # the HTTP library takes longer to import than most commands take to run
        from swapmeet.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
