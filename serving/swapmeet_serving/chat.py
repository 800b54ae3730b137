"""From a conversation to a prompt, with the adapter's own chat template if it has one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from swapmeet_serving.calls import Message
from swapmeet_serving.errors import InvalidRequest, NoChatTemplate
from swapmeet_serving.tools import HERMES, ToolFormat, format_for
from swapmeet_serving.tools.format import Function
from swapmeet_serving.tools.prompt import as_plain_text

TEMPLATE_FILE = "chat_template.jinja"
MOST_KEPT = 4096


class ChatTemplates:
    """The templates of adapters seen before, and how to find the others.

    An adapter's identity stands for its content, so what was found once stays true.

    Args:
        tokenizer: of transformers; its template is the base's.
        fetch: gives the folder of an adapter's files.
        tool_format: the name of the form in which templates that know tools have them; "auto" looks at each.
    """

    def __init__(self, tokenizer: Any, fetch: Callable[[str], Path], tool_format: str = "auto") -> None:
        self._tokenizer = tokenizer
        self._tool_format = tool_format
        self._fetch = fetch
        self._found: dict[str | None, str | None] = {None: tokenizer.chat_template}
        self._lock = Lock()

    def knows(self, adapter: str | None) -> bool:
        """Whether `render` can answer at once, without fetching the adapter."""
        return adapter in self._found

    def tool_format(self, adapter: str | None) -> ToolFormat:
        """How tools are called: as the template shows it, or in the form in which `render` says it."""
        return format_for(self._template(adapter) or "", self._tool_format) or HERMES

    def render(
        self, messages: Sequence[Message], adapter: str | None, functions: Sequence[Function] = ()
    ) -> tuple[int, ...]:
        """The prompt that asks for the next assistant's turn, which may call these functions.

        Raises:
            NoChatTemplate: neither the adapter nor the base has a template.
            InvalidRequest: the template refuses these messages.
        """
        template = self._template(adapter)
        if not template:
            raise NoChatTemplate("This base has no chat template. Use completions with a prompt instead.")
        tools = [_as_tool(function) for function in functions]
        turns = [dict(message) for message in messages]
        if not format_for(template, self._tool_format):
            turns, tools = as_plain_text(turns, tools), []
        try:
            tokens = self._tokenizer.apply_chat_template(
                turns, tools=tools or None, chat_template=template, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # a template is a program and may raise anything
            raise InvalidRequest(f"The chat template refuses these messages: {error}") from error
        return tuple(tokens)

    def _template(self, adapter: str | None) -> str | None:
        with self._lock:
            if adapter in self._found:
                return self._found[adapter]
        assert adapter is not None
        own = self._own(adapter)
        template = self._tokenizer.chat_template if own is None else own
        with self._lock:
            if len(self._found) >= MOST_KEPT:
                self._found = {None: self._tokenizer.chat_template}
            self._found[adapter] = template
        return template

    def _own(self, adapter: str, *, again: bool = True) -> str | None:
        folder = self._fetch(adapter)
        try:
            return (folder / TEMPLATE_FILE).read_text()
        except FileNotFoundError:
            if folder.exists():
                return None
            if not again:
                raise
        return self._own(adapter, again=False)  # the folder had to make room on disk in between


def _as_tool(function: Function) -> dict[str, Any]:
    shown = {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}
    return {"type": "function", "function": {"parameters": {"type": "object", "properties": {}}} | shown}
