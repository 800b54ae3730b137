"""From a conversation to a prompt, with the adapter's own chat template if it has one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from swapmeet_serving.calls import Message
from swapmeet_serving.errors import InvalidRequest, NoChatTemplate

TEMPLATE_FILE = "chat_template.jinja"
MOST_KEPT = 4096


class ChatTemplates:
    """The templates of adapters seen before, and how to find the others.

    An adapter's identity stands for its content, so what was found once stays true.
    """

    def __init__(self, tokenizer: Any, fetch: Callable[[str], Path]) -> None:
        self._tokenizer = tokenizer
        self._fetch = fetch
        self._found: dict[str | None, str | None] = {None: tokenizer.chat_template}
        self._lock = Lock()

    def knows(self, adapter: str | None) -> bool:
        """Whether `render` can answer at once, without fetching the adapter."""
        return adapter in self._found

    def render(self, messages: Sequence[Message], adapter: str | None) -> tuple[int, ...]:
        """The prompt that asks for the next assistant's turn.

        Raises:
            NoChatTemplate: neither the adapter nor the base has a template.
            InvalidRequest: the template refuses these messages.
        """
        template = self._template(adapter)
        if not template:
            raise NoChatTemplate("This base has no chat template. Use completions with a prompt instead.")
        try:
            tokens = self._tokenizer.apply_chat_template(
                list(messages), chat_template=template, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # a template is a program and may raise anything
            raise InvalidRequest(f"The chat template refuses these messages: {error}") from error
        return tuple(tokens)

    def _template(self, adapter: str | None) -> str | None:
        with self._lock:
            if adapter in self._found:
                return self._found[adapter]
        assert adapter is not None
        path = self._fetch(adapter) / TEMPLATE_FILE
        template = path.read_text() if path.is_file() else self._tokenizer.chat_template
        with self._lock:
            if len(self._found) >= MOST_KEPT:
                self._found = {None: self._tokenizer.chat_template}
            self._found[adapter] = template
        return template
