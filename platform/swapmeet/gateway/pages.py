"""Lists as OpenAI's client pages through them."""

from collections.abc import Sequence
from typing import Any


def page(data: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page of objects, oldest or newest first; the client asks for what comes after its last, where they have ids."""
    first, last = (data[0].get("id"), data[-1].get("id")) if data else (None, None)
    return {"object": "list", "data": list(data), "has_more": has_more, "first_id": first, "last_id": last}
