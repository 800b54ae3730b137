"""Where a registry's bytes are kept: a local folder or an S3 bucket, behind one small protocol."""

from swapmeet_registry.stores.opening import open_store
from swapmeet_registry.stores.protocol import Entry, Store, Stored

__all__ = ["Entry", "Store", "Stored", "open_store"]
