"""Calls' prompts as tokens."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from swapmeet_serving.calls import Call, Message
from swapmeet_serving.chat import ChatTemplates
from swapmeet_serving.errors import InvalidRequest
from swapmeet_serving.template_renderer import WORKERS
from swapmeet_serving.text_limit import TextLimit, characters_of

FETCHERS = 8
LONG_TEXT = 100_000
"""Characters that take a tenth of a second to tokenize; longer texts must not hold up the others' tokens."""


class Prompts:
    """Renders and tokenizes; what waits for a registry or another process waits on threads of its own."""

    def __init__(self, tokenizer: Any, templates: ChatTemplates, limit: TextLimit) -> None:
        self._tokenizer = tokenizer
        self._templates = templates
        self._limit = limit
        self._fetchers = ThreadPoolExecutor(FETCHERS, "template-fetcher")
        self._renderers = ThreadPoolExecutor(WORKERS, "template-renderer")

    async def of(self, call: Call) -> tuple[int, ...]:
        """What a call asks.

        Raises:
            InvalidRequest: it asks nothing, or its template refuses the messages.
            ContextTooLong: more characters than tokens can hold.
            RegistryError: the template's adapter can not be had.
        """
        if call.messages is not None:
            return await self._rendered(call, call.messages)
        if call.prompt is None:
            raise InvalidRequest("Give messages or a prompt.")
        if isinstance(call.prompt, tuple):
            return call.prompt
        self._limit.check(len(call.prompt))
        if len(call.prompt) <= LONG_TEXT:
            return self._tokens(call.prompt)
        return await asyncio.get_running_loop().run_in_executor(self._fetchers, self._tokens, call.prompt)

    async def _rendered(self, call: Call, messages: tuple[Message, ...]) -> tuple[int, ...]:
        functions = call.tools.functions if call.tools else ()
        characters = characters_of((messages, functions))
        self._limit.check(characters)
        adapter, elsewhere = call.template_from, asyncio.get_running_loop().run_in_executor
        if self._templates.knows(adapter):
            template = self._templates.find(adapter)
        else:
            template = await elsewhere(self._fetchers, self._templates.find, adapter)
        asked = messages, adapter, functions, call.tenant
        if template.own:
            return await elsewhere(self._renderers, self._templates.render, *asked)
        if characters > LONG_TEXT:
            return await elsewhere(self._fetchers, self._templates.render, *asked)
        return self._templates.render(*asked)

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text).input_ids)
