"""Cards: what stands in a README comes through, what runs or explodes does not."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swapmeet_registry import Fingerprint, Provenance, Registry
from swapmeet_registry.cards import Card, Example, markdown, parse_readme
from swapmeet_registry.cards.sanitizing import without_html

GOOD = """---
license: apache-2.0
purpose: Answers <b>questions</b>
  about tenancy.
task: question-answering
language: [de, no]
notes: More data.
examples:
  - prompt: "Hi ``` there"
    output: |
      <script>two</script>
      lines
model-index: [{name: x, results: []}]
---
# Mine

Plain text.
"""


def test_a_readme_taken_apart() -> None:
    readme = parse_readme(GOOD.encode())
    assert readme.purpose == "Answers questions about tenancy."
    assert (readme.task, readme.language, readme.notes) == ("question-answering", ("de", "no"), "More data.")
    assert readme.examples == (Example("Hi ``` there", "<script>two</script>\nlines\n"),)
    assert (readme.text, readme.mistakes) == ("# Mine\n\nPlain text.", ())
    assert parse_readme(b"---\npipeline_tag: text-generation\n---\n").task == "text-generation"
    assert parse_readme(b"No front matter\n---\nhere").text.startswith("No front matter")
    assert parse_readme(b"").mistakes == parse_readme(b"---\n---\n").mistakes == ()
    assert parse_readme(GOOD.replace("\n", "\r\n").encode()).task == "question-answering"


@pytest.mark.parametrize(
    ("header", "mistake"),
    [
        ("a: &x [1]\nb: *x", "anchor"),
        ("purpose: !!python/object/apply:os.system [ls]", "tag"),
        ("purpose: !custom x", "tag"),
        ("a: " + "[" * 40 + "]" * 40, "deep"),
        ("a: " + "[" * 5000, "deep"),
        ("a: " + "x" * 20_000, "longer than"),
        ("- a\n- b", "no mapping|not a mapping"),
        ("? [a]\n: b", "not YAML|no text"),
        ("a: b: c", "not YAML"),
        ("\x00", "not YAML"),
        ("purpose: [a]", "purpose"),
        ("purpose: " + "x" * 3000, "purpose"),
        ("language: {a: b}", "language"),
        ("examples: nothing", "examples"),
        ("examples: [{prompt: a}]", "Example 1"),
        ("examples: [{prompt: a, output: b, more: c}]", "Example 1"),
        ("examples: [" + "{prompt: a, output: b}," * 21 + "]", "examples"),
    ],
)
def test_what_is_wrong_is_left_out_and_told(header: str, mistake: str) -> None:
    began = time.process_time()
    readme = parse_readme(f"---\n{header}\n---\nThe text.".encode())
    assert time.process_time() - began < 1
    (told,) = readme.mistakes
    assert any(part in told for part in mistake.split("|")), told
    assert (readme.purpose, readme.examples, readme.text) == (None, (), "The text.")


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<<a>script>alert(1)</script>",
        "<img src=x onerror=alert(1)",
        "<!-- --><svg/onload=alert(1)>",
        "</p><iframe\nsrc=x>",
        "[a](javascript:alert(1))",
        "[a]( \n JaVaScript:alert(1))",
        "[a](java&#115;cript:alert(1))",
        "[a](javascript&colon;alert(1))",
        "![a](data:text/html;base64,xx)",
        "[a]: javascript:alert(1)",
        "> [a]: vbscript:x",
        "[a](<javascript:alert(1)>)",
        "<javascript:alert(1)>",
        "```\ncode\n````\n<script>x</script>\n```",
        "~~~\n```\n~~~\n<script>x</script>\n```\n",
        "~~~\n```\n~~~\n<script>x</script>\n~~~\n",
        "```\n```\n<script>x</script>\n```\n",
        "> ```\n<script>x</script>\n```",
        "``` `\n<script>x</script>\n```\n",
        "a ` b\n` <script>x</script> `",
        "```\rx\r```\r<script>x</script>\r```",
        "    ```\n<script>x</script>\n    ```",
    ],
)
def test_nothing_that_runs_stays(text: str) -> None:
    cleaned = without_html(text)
    assert "<" not in cleaned, cleaned
    for scheme in ("javascript", "vbscript", "data:", "&"):
        assert f"]({scheme}" not in cleaned.lower().replace(" ", "").replace("\n", "")
        assert f"]:{scheme}" not in cleaned.lower().replace(" ", "")


def test_what_is_harmless_stays() -> None:
    text = "# A *b* `c`\n\n[d](https://example.org/x?a=b&c=d), [e](#f), <https://example.org>, a < b\n\n"
    text += "```html\n<b>g</b>\n```\nh\n\n```\n<i>\n```\n"
    bare = text.replace("<https://example.org>", "https://example.org")
    assert without_html(text) == bare.replace("a < b", "a &lt; b")


@pytest.mark.parametrize("part", ["<", "<a", "<!--", "`", "```\n", "](", "[", '<a "', "]:", "~~~\n```\n", "<a><"])
def test_cleaning_takes_time_in_proportion(part: str) -> None:
    began = time.process_time()
    without_html(part * (200_000 // len(part)))
    assert time.process_time() - began < 2


def test_a_card(make_adapter: Callable[..., Path], base: Fingerprint, tmp_path: Path) -> None:
    registry = Registry((tmp_path / "registry").as_uri())
    folder = make_adapter(tmp_path / "a")
    registry.push(folder, "acme/legal", base=base)
    (folder / "README.md").write_text(GOOD)
    parent = "acme/old@sha256:" + "0" * 64
    Provenance.build(base=base, metrics={"loss|x": 0.5}, training={"epochs": 3}, parent=parent).write(folder)
    version = registry.push(folder, "acme/legal", base=base, alias="prod", license="MIT", tags=["a|b", "<i>"])
    registry.yank("acme/legal:1", "Too <b>small</b>.")
    card = Card.of(registry, version, registry.show("acme/legal"), {"statistics": {"largest norm": 3.5}})
    text = markdown(card)
    for part in (
        "# acme/legal", "Answers questions about tenancy.", "| version | 2, latest, prod |", "| licence | MIT |",
        "| rank | 4, alpha 8 |", "| targets | q_proj, v_proj |", "| loss\\|x | 0.5 |", "| epochs | 3 |", "a\\|b",
        "## Statistics", "| largest norm | 3.5 |", "````text\nHi ``` there\n````", "- 1, ", "(withdrawn: Too small.)",
        ": More data.", "Plain text.", version.digest, "| trained from | acme/old@",
    ):  # fmt: skip
        assert part in text, part
    assert "<b>" not in text
    found = json.loads(json.dumps(card.as_json()))
    assert (found["version"], found["aliases"], found["metrics"]) == (2, ["latest", "prod"], {"loss|x": 0.5})
    stated = [{"prompt": "Hi ``` there", "output": "<script>two</script>\nlines\n"}]
    assert found["examples"] == {"run": None, "author": stated}
    assert [each["version"] for each in found["versions"]] == [2, 1]
