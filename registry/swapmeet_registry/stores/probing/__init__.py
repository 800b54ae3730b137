"""Certify a store before it is trusted."""

from swapmeet_registry.stores.probing.probe import Certificate, Check, probe

__all__ = ["Certificate", "Check", "probe"]
