"""Copies of versions: in folders, in other registries, in files that travel without a network."""
