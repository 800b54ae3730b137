"""Conversations as the text that a base reads, by its own chat template or another."""

from collections.abc import Sequence as Several
from typing import Any

from swapmeet_registry.conversations import template_input, tool_form
from swapmeet_training.data.examples import Function, Message
from swapmeet_training.data.fields import shown
from swapmeet_training.data.findings import Finding, Flawed

TEMPLATE_KINDS = {"no_chat_template", "template_without_prompt", "template_without_end"}
"""What is wrong with the chat template, and not with the example."""


class Renderer:
    """Renders chats for one base; what it can not do raises `Flawed` with the finding.

    Args:
        tokenizer: the base's transformers tokenizer.
        ends: the texts of the tokens at which serving stops; empty where the base has none.
        template: a chat template instead of the tokenizer's, in Jinja.
    """

    def __init__(self, tokenizer: Any, ends: Several[str], template: str | None) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._template = template or tokenizer.chat_template
        self._named = "The chat template" if template else "The base's chat template"
        self._knows_tools = bool(self._template) and tool_form(self._template) is not None

    def turn(self, messages: Several[Message], tools: Several[Function], line: int) -> tuple[str, str]:
        """The prompt that serving would ask for the last message with, and that message up to its end.

        Args:
            messages: the chat up to a turn of the assistant's.
            tools: the functions it may call.
            line: where the example stands.
        """
        prompt = self._render(messages[:-1], tools, line, generation_prompt=True)
        answered = self._render(messages, tools, line, generation_prompt=False)
        if not answered.startswith(prompt):
            message = "can not mark the assistant's turn, because what asks for it does not stand before it"
            fix = "Give another chat template, or train with 'prompt' and 'completion' instead."
            raise Flawed(Finding(line, "", "template_without_prompt", f"{self._named} {message}", fix))
        return prompt, self._until_end(answered[len(prompt) :], line)

    def _until_end(self, text: str, line: int) -> str:
        """The assistant's turn up to its end token: templates often write a line break after it."""
        if not self._ends:
            return text
        cuts = [text.index(end) + len(end) for end in self._ends if end in text]
        if not cuts:
            stops = " or ".join(self._ends)
            message = f"{self._named} does not end the assistant's turn with {stops}, at which serving stops"
            fix = "Name the right eos_token_id in the base's generation_config.json."
            raise Flawed(Finding(line, "", "template_without_end", message, fix))
        return text[: min(cuts)]

    def _render(
        self, messages: Several[Message], functions: Several[Function], line: int, *, generation_prompt: bool
    ) -> str:
        if not self._template:
            fix = "Train with 'prompt' and 'completion' instead, or give a chat template."
            raise Flawed(Finding(line, "", "no_chat_template", "The base has no chat template", fix))
        turns = [message.as_turn() for message in messages]
        turns, tools = template_input(turns, functions, knows_tools=self._knows_tools)
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    turns,
                    tools=tools,
                    chat_template=self._template,
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                )
            )
        except Exception as error:  # a template is a program and may raise anything
            reason = shown(str(error).rstrip(".") or type(error).__name__, 200)
            message = f"is refused by {self._named[0].lower()}{self._named[1:]}: {reason}"
            fix = "Write the messages as it wants them, or give another chat template."
            raise Flawed(Finding(line, "", "template_refuses", message, fix)) from error
