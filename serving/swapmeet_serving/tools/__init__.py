"""Calling tools: how models of different families are told of functions, and how they write calls of them.

One small module per form. `format_for` tells from a chat template which one it uses.
"""

from collections.abc import Mapping

from swapmeet_registry.conversations import tool_form as _tool_form
from swapmeet_serving.tools.format import ToolFormat
from swapmeet_serving.tools.hermes import HERMES
from swapmeet_serving.tools.llama import LLAMA
from swapmeet_serving.tools.mistral import MISTRAL

__all__ = ["HERMES", "LLAMA", "MISTRAL", "ToolFormat", "format_for"]

FORMATS: Mapping[str, ToolFormat] = {each.name: each for each in (HERMES, LLAMA, MISTRAL)}


def format_for(template: str, wanted: str = "auto") -> ToolFormat | None:
    """The form in which a chat template shows calls: the one wanted, or what the template's text tells.

    None where the template knows nothing of tools, or has them in a form of its own.
    """
    if "tools" not in template:
        return None
    name = _tool_form(template) if wanted == "auto" else wanted
    return FORMATS[name] if name else None
