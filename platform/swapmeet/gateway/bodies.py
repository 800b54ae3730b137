"""What the OpenAPI document says of bodies that a route reads itself; and answers that are sent in pieces."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from pydantic import BaseModel


def form_body(schema: dict[str, Any]) -> dict[str, Any]:
    """A multipart form."""
    return _body("multipart/form-data", schema)


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """A JSON object."""
    schema = model.model_json_schema()
    return _body("application/json", _inlined(schema, schema.pop("$defs", {})))


def begun(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces, of which the first is there already: what fails before it is answered with its status."""
    first = next(chunks, b"")
    return chain([first], chunks)


def _body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema without references, which FastAPI would not find outside of its own components."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        named = definitions[schema["$ref"].rpartition("/")[2]]
        return _inlined({**named, **{name: each for name, each in schema.items() if name != "$ref"}}, definitions)
    return {name: _inlined(each, definitions) for name, each in schema.items()}
