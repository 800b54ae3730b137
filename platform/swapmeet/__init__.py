"""Swapmeet: fine-tune, keep and serve LoRA adapters on one shared NF4 base.

from swapmeet import Client

with Client("http://127.0.0.1:8000", api_key) as client:
    client.chat("acme/dates", "3 May 2024")
"""

from swapmeet.client import Client
from swapmeet.errors import ApiError, NotConfigured, PlatformError, PortInUse, ServerFailed, SettingsError

__all__ = ["ApiError", "Client", "NotConfigured", "PlatformError", "PortInUse", "ServerFailed", "SettingsError"]
