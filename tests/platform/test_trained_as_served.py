"""What a model is trained on are the tokens that it is served with, tools among them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet.gateway.message_wire import Message as WireMessage
from swapmeet_serving.chat import ChatTemplates
from swapmeet_serving.template_renderer import TemplateRenderer
from swapmeet_serving.tools import format_for
from swapmeet_training.data.findings import Notes
from swapmeet_training.data.masking import IGNORED, Masker
from swapmeet_training.data.parsing import parse_example

transformers = pytest.importorskip("transformers")

HERMES = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}"
    "{%- endif %}{{- '\n\n# Tools\n<tools>' }}{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}"
    "{{- '\n</tools><|im_end|>\n' }}{%- elif messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{%- endif %}{%- for message in messages %}"
    "{%- if message.role == 'user' or (message.role == 'system' and not loop.first) or "
    "(message.role == 'assistant' and not message.tool_calls) %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant' }}"
    "{%- if message.content %}{{- '\n' + message.content }}{%- endif %}{%- for tool_call in message.tool_calls %}"
    '{{- \'\n<tool_call>\n{"name": "\' + tool_call.function.name + \'", "arguments": \' }}'
    "{{- tool_call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'tool' %}{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
    "{{- '<|im_start|>user' }}{%- endif %}{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA = (
    "{% if tools %}<|im_start|>Environment: ipython<|python_tag|>{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>ipython\n{{ m.content | tojson }}<|im_end|>"
    "{% elif m.tool_calls %}<|im_start|>assistant\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "<|im_end|>{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{% set user = namespace(last=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set user.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if loop.index0 == user.last and tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}"
    "{% endif %}[INST]{{ m.content }}[/INST]{% elif m.role == 'tool' %}"
    "[TOOL_RESULTS]{{ m.content }} {{ m.tool_call_id }}"
    "{% elif m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{{ c.function | tojson }}, {{ c.id }}{% endfor %}]"
    "<|im_end|>{% elif m.role == 'assistant' %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['name'] }}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL, None: PLAIN}

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {
        "type": "function",
        "function": {"description": "How warm it is.", "name": "weather", "parameters": CITY, "strict": True},
    },
    {"type": "function", "function": {"name": "time"}},
]


def call(number: int, **arguments: Any) -> dict[str, Any]:
    written = json.dumps(arguments, ensure_ascii=bool(number % 2))
    return {"id": f"call0000{number}", "type": "function", "function": {"name": "weather", "arguments": written}}


def conversations() -> list[list[dict[str, Any]]]:
    """Chats of every shape that serving takes, made at random."""
    rng, made = random.Random(0), []
    for _ in range(30):
        turns: list[dict[str, Any]] = []
        if rng.random() < 0.5:
            turns.append({"role": rng.choice(["system", "developer"]), "content": "Be brief.\n"})
        for number in range(rng.randint(1, 3)):
            turns.append({"role": "user", "content": f" Is it warm in Rõme? {number}", "name": "Ann"})
            if rng.random() < 0.6:
                calls = [call(2 * number + each, city="Rõme", days=[1, None]) for each in range(rng.randint(1, 2))]
                turns.append({"role": "assistant", "content": rng.choice([None, "Let me see."]), "tool_calls": calls})
                turns += [{"role": "tool", "tool_call_id": each["id"], "content": '{"degrees": 30}'} for each in calls]
            turns.append(
                {"role": "assistant", "content": [{"type": "text", "text": "Yes"}, {"type": "text", "text": "."}]}
            )
        made.append(turns)
    return made


@pytest.mark.parametrize("own", [False, True], ids=["the-base-s", "an-adapter-s-own"])
@pytest.mark.parametrize("form", TEMPLATES, ids=str)
def test_every_trained_turn_follows_the_prompt_that_serving_makes(
    tiny_llama: Path, tmp_path: Path, form: str | None, own: bool
) -> None:
    template = TEMPLATES[form]
    found = format_for(template)
    assert (found.name if found else None) == form
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    if own:
        (tmp_path / "chat_template.jinja").write_text(template)
    else:
        tokenizer.chat_template = template
    served = ChatTemplates(tokenizer, lambda _: tmp_path, renderer=TemplateRenderer())
    masker = Masker.of(tiny_llama, tokenizer, None, template if own else None)
    adapter = "acme/x@sha256:0" if own else None
    for turns in conversations():
        for tools in ([], TOOLS):
            check(turns, tools, masker, lambda *given: served.render(*given, "acme"), adapter)


def check(
    turns: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    masker: Masker,
    render: Callable[..., tuple[int, ...]],
    adapter: str | None,
) -> None:
    """Train each of the assistant's turns alone, all before it being of weight 0."""
    wire = [WireMessage.model_validate(turn).as_template_input() for turn in turns]
    functions = [tool["function"] for tool in tools]
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        weighted = [each | {"weight": 0} if each["role"] == "assistant" else each for each in turns[:index]]
        notes = Notes(1)
        example = parse_example({"messages": [*weighted, turn], "tools": tools}, notes)
        assert example is not None, notes.mistakes
        assert [message.as_turn() for message in example.messages] == wire[: index + 1]  # type: ignore[union-attr]
        sequence = masker.sequence(example)  # type: ignore[arg-type]
        prompt = render(wire[:index], adapter, functions)
        assert sequence.tokens[: len(prompt)] == prompt
        assert set(sequence.labels[: len(prompt)]) == {IGNORED}
        assert IGNORED not in sequence.labels[len(prompt) :]
        assert sequence.tokens[-1] == 2
