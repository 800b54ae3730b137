"""Templates of strangers: rendered as transformers does, in another process, which they can not keep or break."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from swapmeet_serving import template_renderer
from swapmeet_serving.template_renderer import WORKERS, Limits, TemplateFailed, TemplateRenderer, TookTooMuch

HELLO = [{"role": "user", "content": "Hello"}]
GOOD = "{{ messages[0]['content'] }}!"
LOOPS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(9) %}{% endfor %}{% endfor %}{% endfor %}"
)
GROWS = (
    "{% set ns = namespace(x='a' * 4096) %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
)
TALKS = "{% for i in range(1000) %}{{ 'a' * 1000 }}{% endfor %}"
TEMPLATES = [
    GOOD,
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}{{ eos_token }}",
    "{% for m in messages %}{{ m | tojson }}\r\n{% endfor %}{% if add_generation_prompt %}\U0001f916\u2028{% endif %}",
    "{% for t in tools or [] %}{{ t | tojson(indent=2) }}{% endfor %}{{ messages | length }}",
    "{% if messages[1].tool_calls is defined %}called{% endif %}{{ messages[0].content | upper }}",
]
CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": " Wie geht\u2019s?\n", "name": None},
    {"role": "assistant", "content": "", "tool_calls": None},
    {"role": "user", "content": "\x00\u2029\U0001f642"},
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture
def renderer() -> TemplateRenderer:
    return TemplateRenderer(Limits(seconds=0.3))


def processes(renderer: TemplateRenderer) -> list[int]:
    """Of a renderer at rest, the ids of those that were started."""
    return [each._process.pid for each in renderer._workers.queue if each._process]


def gone(pid: int) -> bool:
    """Whether a process has ended, taken note of or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_prompts_are_those_of_transformers(renderer: TemplateRenderer, tiny_llama: Path, tools: Any) -> None:
    from transformers import AutoTokenizer

    from swapmeet_serving.chat import ChatTemplates

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    templates = ChatTemplates(tokenizer, Path, renderer=renderer)
    for template in TEMPLATES:
        expected = tokenizer.apply_chat_template(
            CONVERSATION, tools=tools, chat_template=template, add_generation_prompt=True, return_dict=False
        )
        found = templates._render_apart(template, CONVERSATION, tools or [], ("", None))
        assert list(found) == expected, template
    assert len(processes(renderer)) == 1


def test_what_loops_is_ended_and_nobody_else_waits(renderer: TemplateRenderer) -> None:
    assert renderer.render(GOOD, HELLO) == "Hello!"
    (first,) = processes(renderer)
    with ThreadPoolExecutor(1) as pool:
        hostile = pool.submit(renderer.render, LOOPS, HELLO, who="hostile")
        for _ in range(20):
            assert renderer.render(GOOD, HELLO, who="good") == "Hello!"
        with pytest.raises(TookTooMuch, match=r"takes more than 0\.3 s to render"):
            hostile.result(60)
    assert renderer.render(GOOD, HELLO, who="good") == "Hello!"
    assert gone(first) or first in processes(renderer)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (LOOPS, "takes more than 0.3 s to render"),
        ("{{ 10 ** 30_000_000 % 7 }}", "takes more than 0.3 s to render"),  # all in one C function
        (GROWS, "takes more "),  # memory or time, whichever ends first
        ("{{ 'a' * 10 ** 12 }}", "takes more memory to render than there is for it"),
        ("{{ '%0999999999d' % 1 }}", "takes more memory to render than there is for it"),
        (TALKS, "gives more than"),
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ raise_exception('a' * 100000) }}", "refuses these messages: aaa"),
        (r"{{ '\ud800' }}", "refuses these messages: 'utf-8' codec can't encode"),
        ("{% if %}", "refuses these messages: "),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages: "),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "refuses these messages: maximum recursion"),
        ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", ""),
    ],
)
def test_what_is_hostile_gets_a_reason_and_the_next_is_served(
    renderer: TemplateRenderer, template: str, reason: str
) -> None:
    for _ in range(2):
        with pytest.raises(TemplateFailed) as caught:
            renderer.render(template, HELLO, who=object())
        assert str(caught.value).startswith(reason), str(caught.value)
        assert len(str(caught.value)) < 600
        assert renderer.render(GOOD, HELLO) == "Hello!"


def test_a_flood_takes_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    renderer = TemplateRenderer(Limits(seconds=0.2), clock=lambda: now[0])
    with pytest.raises(TookTooMuch):
        renderer.render(LOOPS, HELLO, who="flood")
    began = processes(renderer)
    for template in (LOOPS, GOOD):
        with pytest.raises(TemplateFailed, match="took too much a moment ago"):
            renderer.render(template, HELLO, who="flood")
    assert processes(renderer) == began, "none was asked"
    assert renderer.render(GOOD, HELLO, who="other") == "Hello!"
    now[0] += template_renderer.HELD_OFF_SECONDS
    assert renderer.render(GOOD, HELLO, who="flood") == "Hello!"
    monkeypatch.setattr(template_renderer, "MOST_HELD_OFF", 2)
    for who in range(5):
        renderer._hold_off(who)
    assert list(renderer._held_off) == [3, 4]


def test_many_at_once_are_all_answered(renderer: TemplateRenderer) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(
            pool.map(lambda n: renderer.render("{{ messages[0].content }}", [{"content": str(n)}]), range(200))
        )
    assert texts == [str(n) for n in range(200)]
    assert len(processes(renderer)) <= WORKERS


def test_large_conversations_pass(renderer: TemplateRenderer) -> None:
    large = "\u20ac\n" * 200_000
    assert renderer.render(GOOD, [{"role": "user", "content": large}]) == large + "!"


def test_one_that_was_killed_is_replaced(renderer: TemplateRenderer) -> None:
    assert renderer.render(GOOD, HELLO) == "Hello!"
    (pid,) = processes(renderer)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gone(pid))
    assert renderer.render(GOOD, HELLO, who="unlucky") == "Hello!"
    assert processes(renderer) != [pid]


def test_one_that_does_not_even_compute_is_ended() -> None:
    renderer = TemplateRenderer(Limits(patience=0.5))
    assert renderer.render(GOOD, HELLO) == "Hello!"
    (pid,) = processes(renderer)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(TookTooMuch, match=r"takes more than 0\.5 s"):
        renderer.render(GOOD, HELLO, who="unlucky")
    assert gone(pid)
    assert renderer.render(GOOD, HELLO) == "Hello!"


def test_processes_know_neither_torch_nor_ray_nor_secrets(
    renderer: TemplateRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    renderer.render(GOOD, HELLO)
    (pid,) = processes(renderer)
    assert "hush" not in Path(f"/proc/{pid}/environ").read_text()
    loaded = {Path(line.split()[-1]).name for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
    assert not [name for name in loaded if "torch" in name or "_raylet" in name]


def test_processes_end_with_their_owner() -> None:
    renderer = TemplateRenderer()
    renderer.render(GOOD, HELLO)
    (pid,) = processes(renderer)
    del renderer
    gc.collect()
    assert gone(pid)


@pytest.mark.parametrize("template", [GOOD, LOOPS])
def test_no_process_outlives_a_killed_parent(template: str) -> None:
    code = """
import sys, threading, time
from swapmeet_serving.template_renderer import TemplateRenderer
renderer = TemplateRenderer()
renderer.render("{{ 1 }}", [{}])
print(*[each._process.pid for each in renderer._workers.queue if each._process], flush=True)
renderer.render(sys.argv[1], [{"content": "x"}])
time.sleep(100)
"""
    parent = subprocess.Popen([sys.executable, "-c", code, template], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: gone(pid))
