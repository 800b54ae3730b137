"""`python -m swapmeet_registry.schemas`: write the JSON Schemas anew."""

from pathlib import Path

from swapmeet_registry.schemas import DOCUMENTS, text

for name in DOCUMENTS:
    Path(__file__).with_name(f"{name}.json").write_text(text(name), encoding="utf-8")
