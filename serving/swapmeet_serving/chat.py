"""From a conversation to a prompt, with the adapter's own chat template if it has one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from swapmeet_registry.conversations import Function, template_input
from swapmeet_serving.calls import Message
from swapmeet_serving.errors import InvalidRequest, NoChatTemplate
from swapmeet_serving.template_renderer import TemplateFailed, TemplateRenderer
from swapmeet_serving.tools import HERMES, ToolFormat, format_for

TEMPLATE_FILE = "chat_template.jinja"
LONGEST_TEMPLATE = 256 << 10
"""Bytes; the longest in use have a tenth of it."""
MOST_KEPT = 16 << 20
"""Characters of all templates that are kept, each counted as no less than ENTRY."""
ENTRY = 1024


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template's text, if there is any, and whether it is an adapter's own."""

    text: str | None
    own: bool = False


class ChatTemplates:
    """The templates of adapters seen before, and how to find the others.

    An adapter's identity stands for its content, so what was found once stays true. The base's template is the
    operator's and rendered here; an adapter's own is a stranger's program, and rendered by `TemplateRenderer`.

    Args:
        tokenizer: of transformers; its template is the base's.
        fetch: gives the folder of an adapter's files.
        tool_format: the name of the form in which templates that know tools have them; "auto" looks at each.
        renderer: renders adapters' own templates.
        limit: refuses what they gave if it has too many characters to be tokenized at all.
    """

    def __init__(
        self,
        tokenizer: Any,
        fetch: Callable[[str], Path],
        tool_format: str = "auto",
        renderer: TemplateRenderer | None = None,
        limit: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._tokenizer = tokenizer
        self._tool_format = tool_format
        self._fetch = fetch
        self._renderer = renderer or TemplateRenderer()
        self._base = ChatTemplate(tokenizer.chat_template)
        self._found: dict[str | None, ChatTemplate] = {None: self._base}
        self._kept = 0
        self._limit = limit
        self._lock = Lock()

    def knows(self, adapter: str | None) -> bool:
        """Whether `find` can answer at once, without fetching the adapter."""
        return adapter in self._found

    def find(self, adapter: str | None) -> ChatTemplate:
        """The template for an adapter, or for the bare base.

        Raises:
            InvalidRequest: the adapter's own can not be used.
        """
        with self._lock:
            if adapter in self._found:
                return self._found[adapter]
        assert adapter is not None
        own = self._own(adapter)
        # most that come with an adapter are a copy of the base's
        template = self._base if own in (None, self._base.text) else ChatTemplate(own, own=True)
        with self._lock:
            size = max(ENTRY, len(template.text or "") if template.own else 0)
            if self._kept + size > MOST_KEPT:
                self._found, self._kept = {None: self._base}, 0
            self._found[adapter] = template
            self._kept += size
        return template

    def tool_format(self, adapter: str | None) -> ToolFormat:
        """How tools are called: as the template shows it, or in the form in which `render` says it."""
        return format_for(self.find(adapter).text or "", self._tool_format) or HERMES

    def render(
        self,
        messages: Sequence[Message],
        adapter: str | None,
        functions: Sequence[Function] = (),
        tenant: str = "",
    ) -> tuple[int, ...]:
        """The prompt that asks for the next assistant's turn, which may call these functions; `tenant` is who asks.

        With an adapter's own template, this waits for another process.

        Raises:
            NoChatTemplate: neither the adapter nor the base has a template.
            InvalidRequest: the template refuses these messages, or takes too much to render.
        """
        template = self.find(adapter)
        if not template.text:
            raise NoChatTemplate("This base has no chat template. Use completions with a prompt instead.")
        knows_tools = format_for(template.text, self._tool_format) is not None
        turns, tools = template_input(messages, functions, knows_tools=knows_tools)
        if template.own:
            return self._render_apart(template.text, turns, tools, (tenant, adapter))
        try:
            tokens = self._tokenizer.apply_chat_template(
                turns, tools=tools, chat_template=template.text, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # a template is a program and may raise anything
            raise InvalidRequest(f"The chat template refuses these messages: {error}") from error
        return tuple(tokens)

    def _render_apart(
        self,
        template: str,
        turns: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        who: tuple[str, str | None],
    ) -> tuple[int, ...]:
        """As the tokenizer's `apply_chat_template` does, which leaves out what is None, and renders here."""
        given = [{key: value for key, value in turn.items() if value is not None} for turn in turns]
        try:
            text = self._renderer.render(template, given, tools, self._tokenizer.special_tokens_map, who)
        except TemplateFailed as error:
            raise InvalidRequest(f"The chat template of {who[1]} {error}.") from error
        self._limit(len(text))
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _own(self, adapter: str, *, again: bool = True) -> str | None:
        folder = self._fetch(adapter)
        try:
            with (folder / TEMPLATE_FILE).open("rb") as file:
                return _text(file.read(LONGEST_TEMPLATE + 1), adapter)
        except FileNotFoundError:
            if folder.exists():
                return None
            if not again:
                raise
        return self._own(adapter, again=False)  # the folder had to make room on disk in between


def _text(template: bytes, adapter: str) -> str:
    if len(template) > LONGEST_TEMPLATE:
        raise InvalidRequest(f"The chat template of {adapter} has more than {LONGEST_TEMPLATE} bytes.")
    try:
        return template.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The chat template of {adapter} is not UTF-8.") from error
