"""The documents that outlive a version of Swapmeet, as JSON Schemas: for readers in other languages.

`NAME-NUMBER.json` beside this file describes documents whose `schema` is `swapmeet.NAME/NUMBER`. It is what the models
say, written by `python -m swapmeet_registry.schemas`, and a test holds both to each other.

How documents change:

* Everything that was ever released stays readable, with the same digest: `tests/registry/samples` holds documents that
  must load for ever, and none of them is ever edited or removed.
* A field may be added under the same number if it can be left out, is left out where it says nothing
  (`exclude_if`), and means no harm to those who do not know it. A reader from before refuses documents that have it,
  by its name: it can not tell what it would miss. With the field comes a sample that has it.
* Anything else (a field that must be there, that goes, or that means something else) takes a new number, and a class of
  its own beside the old one, which stays and is still read.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from swapmeet_registry.head import Head
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.origin.provenance import Document, Provenance

DOCUMENTS: Mapping[str, type[Document]] = {"head-1": Head, "manifest-1": Manifest, "provenance-1": Provenance}


def generated(name: str) -> dict[str, Any]:
    """The JSON Schema that a document's model gives."""
    model = DOCUMENTS[name]
    schema = model.model_json_schema(by_alias=True)
    schema["required"] = sorted({*schema.get("required", ()), "schema"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": model.model_fields["schema_"].default,
        **{key: value for key, value in schema.items() if key != "title"},
    }


def text(name: str) -> str:
    """A JSON Schema as its file has it."""
    return json.dumps(generated(name), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def load(name: str) -> dict[str, Any]:
    """A JSON Schema as it is installed, such as `manifest-1`."""
    schema: dict[str, Any] = json.loads(files(__name__).joinpath(f"{name}.json").read_text("utf-8"))
    return schema
