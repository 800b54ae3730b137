"""Tools from a call to the engine and back: the grammar that enforces them, and their calls in the answer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from swapmeet_serving.calls import Call, Chunk
from swapmeet_serving.chat import ChatTemplates
from swapmeet_serving.constraints import Constraint, quote
from swapmeet_serving.detokenizer import special_ids
from swapmeet_serving.errors import InvalidRequest
from swapmeet_serving.grammars import Grammar
from swapmeet_serving.tools.enforce import compile_tools, enforced
from swapmeet_serving.tools.stream import ToolStream


class ToolCalling:
    """What a replica does for calls with tools, in the form that the adapter's or the base's template uses.

    Args:
        tokenizer: of transformers.
        templates: where the forms are known.
        compiler: `Engine.compile`.
    """

    def __init__(self, tokenizer: Any, templates: ChatTemplates, compiler: Callable[[Constraint], Grammar]) -> None:
        self._special = {tokenizer.convert_ids_to_tokens(each): each for each in special_ids(tokenizer)}
        self._templates = templates
        self._compile = compiler

    def grammar(self, call: Call) -> Grammar | None:
        """What the answer must keep to, if anything. May take a second.

        Raises:
            InvalidRequest: it can not be enforced.
        """
        if not call.tools:
            return self._compile(call.constraint) if call.constraint else None
        form = self._templates.tool_format(call.template_from)
        constraint = enforced(call.tools, form, self._marker(form.marker), call.constraint)
        return compile_tools(constraint, call.tools, call.constraint, self._compile) if constraint else None

    def shown(self, call: Call) -> frozenset[int]:
        """Special tokens that the answer's text must show, because they begin a call."""
        if not call.tools:
            return frozenset()
        marker = self._templates.tool_format(call.template_from).marker
        return frozenset({self._special[marker]} if marker in self._special else ())

    def reader(self, call: Call) -> "CallReader":
        """What finds the calls in an answer to a call with tools."""
        assert call.tools is not None
        if call.messages is None:
            raise InvalidRequest("Tools go with messages, not with a prompt.")
        names = {function["name"] for function in call.tools.functions}
        form = self._templates.tool_format(call.template_from)
        return CallReader(ToolStream(form, names, many=call.tools.parallel))

    def _marker(self, marker: str) -> str:
        return f"<[{self._special[marker]}]>" if marker in self._special else quote(marker)


class CallReader:
    """Moves calls from the chunks' text to their `tool_calls`."""

    def __init__(self, stream: ToolStream) -> None:
        self._stream = stream

    def read(self, chunk: Chunk) -> Chunk:
        """The same chunk, with its text as far as it is certain."""
        text, calls = self._stream.add(chunk.text)
        reason = chunk.finish_reason
        if reason:
            more, last = self._stream.finish()
            text, calls = text + more, calls + last
            if reason == "stop" and self._stream.calls:
                reason = "tool_calls"
        return replace(chunk, text=text, tool_calls=calls, finish_reason=reason)
