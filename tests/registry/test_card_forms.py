"""A card in each of its forms: what it tells, and that strangers' words in it do nothing."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from swapmeet_registry import Fingerprint, NotFound, Provenance, Registry, Version
from swapmeet_registry.cards import Card, markdown, terminal
from swapmeet_registry.cards.visible import line, visible
from swapmeet_registry.origin.provenance import Answer, Examples

EVIL = (
    "\x1b[2J\x1b]0;x\x07\u202egnp\u2066\U000e0041\r\n\n## Made by the run\n\n| a | b |\n```\n"
    "[x](javascript:a) ![y](http://e/p.png) <img src=x onerror=a> [2]"
)
README = """---
purpose: "~~~ \\e[31m# Grand <script>x</script> ![i](http://e/i.png)"
task: "``` | x"
language: ["](http://e)", "\\u202ede"]
notes: "- [ ] x | y \\u2028 ## z"
examples: [{prompt: "````\\n## a\\e[0m", output: "~~~\\n<b>\\r\\n```\\n# Fake"}]
---
[2]: http://evil.example/
[version]: javascript:x
# Heading of mine

> quoted

```
never closed <script>alert(1)</script> \x1b[31m \u202e
"""
Make = Callable[..., Version]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry((tmp_path / "registry").as_uri())


@pytest.fixture
def push(registry: Registry, make_adapter: Callable[..., Path], base: Fingerprint, tmp_path: Path) -> Make:
    def publish(name: str = "acme/legal", readme: str = "", license: str | None = None, **facts: Any) -> Version:  # noqa: A002
        folder = make_adapter(tmp_path / "adapter")
        (folder / "README.md").write_text(readme)
        Provenance.build(base=base, **facts).write(folder)
        return registry.push(folder, name, base=base, license=license)

    return publish


def card(registry: Registry, version: Version, **how: Any) -> Card:
    return Card.of(registry, registry.find(version.pinned), registry.show(version.name), {}, **how)


def examples(*answers: tuple[str, str]) -> Examples:
    given = tuple(Answer(prompt=prompt, output=output, ended="length") for prompt, output in answers)
    return Examples(base="sha256:" + "a" * 64, data="sha256:" + "b" * 64, seed=7, max_tokens=99, answers=given)


def test_all_that_is_known_is_told_in_each_form(registry: Registry, push: Make) -> None:
    oldest = push("acme/older", base_license="llama3.1")
    facts: dict[str, Any] = {"run": "ftjob-1", "metrics": {"eval_loss": 0.25}, "training": {"rank": 4}}
    facts |= {"dataset": "sha256:" + "d" * 64, "dataset_license": "cc-by-nc-4.0", "tags": ("law",)}
    shown = examples(("Hello?", "Hi there"))
    first = push(license="MIT", parent=oldest.pinned, examples=shown, readme="---\npurpose: To ask.\n---\n", **facts)
    second = push(parent=first.pinned)
    registry.yank("acme/legal:1", "Learnt the wrong thing.")
    found = card(registry, first)
    told = found.as_json()
    for text in (markdown(found), terminal(found)):
        for part in (
            "Do not use version 1. It was yanked: Learnt the wrong thing.", "A newer version exists: acme/legal:2",
            "forbids commercial use", "To ask.", "MIT", "cc-by-nc-4.0", "law", "4, alpha 8", "q_proj, v_proj", "bytes",
            "eval_loss", "0.25", "d" * 64, "ftjob-1", "Hello?", "Hi there", "cut off at the limit", "greedy, 99 tokens",
            "from acme/older:1", "on the base tiny", "layers are changed", "no verdict", first.digest,
        ):  # fmt: skip
            assert part in text, part
        assert "Only the adapter's owner" not in text
    assert (told["newer"], told["withdrawn"]) == (2, "yanked: Learnt the wrong thing.")
    assert told["parents"] == [{"ref": oldest.pinned, "version": 1, "problem": None}]
    assert told["examples"]["run"]["answers"][0] == {"prompt": "Hello?", "output": "Hi there", "ended": "length"}
    assert (told["dataset_license"], len(told["licence_concerns"]), len(told["advice"])) == ("cc-by-nc-4.0", 2, 1)
    newest = card(registry, second, examples=shown)
    assert (newest.newer, newest.withdrawn, newest.own) == (None, None, True)
    assert [each.problem for each in newest.parents] == ["yanked: Learnt the wrong thing.", None]
    assert "Only the adapter's owner" in markdown(newest)
    assert newest.as_json()["examples"]["run"]["for_owner_only"] is True
    registry.recall("acme/legal:2", "It leaks.")
    assert "> **Do not use version 2. It was recalled: It leaks.**" in markdown(card(registry, second))
    registry.delete("acme/legal:2", "Gone for good.")
    assert card(registry, second).withdrawn == "deleted: Gone for good."


def test_a_deleted_version_whose_files_are_gone_has_no_card(registry: Registry, push: Make, tmp_path: Path) -> None:
    version = push()
    push()
    registry.delete("acme/legal:1", "Not needed.")
    (tmp_path / "registry" / "manifests" / version.digest.replace(":", "/")).unlink()
    with pytest.raises(NotFound, match=r"acme/legal:1 was deleted: Not needed\."):
        card(registry, version)


@pytest.fixture
def hostile(registry: Registry, push: Make, anything_said: None, monkeypatch: pytest.MonkeyPatch) -> Card:
    facts: dict[str, Any] = {"run": EVIL, "parent": EVIL, "tags": ("|", EVIL[:60]), "metrics": {EVIL: 1, "m" * 9000: 2}}
    facts |= {"training": {EVIL: EVIL, **{f"s{n}": "x" * 40_000 for n in range(90)}}, "packages": {EVIL: EVIL}}
    facts |= {"base_license": EVIL, "dataset_license": EVIL, "examples": examples((EVIL, EVIL), ("`" * 50, "~~~"))}
    version = push(readme=README, license=EVIL, **facts)
    with monkeypatch.context() as others:
        others.setattr("swapmeet_registry.life.readable", lambda why: why)
        registry.yank(str(version), EVIL)
    return card(registry, version)


def test_nothing_in_markdown_is_but_what_we_put_there(hostile: Card) -> None:
    text = markdown(hostile)
    assert len(text) < 100_000
    tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(text)
    flat = [each for token in tokens for each in (token, *(token.children or ()))]
    headings = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
    own = headings[headings.index("From its author") + 1 :]
    assert headings[: len(headings) - len(own)] == [
        "acme/legal", "Metrics", "Examples made by the run", "Examples stated by the author", "Training", "Lineage",
        "Weights", "Versions", "From its author",
    ]  # fmt: skip
    inside = [token for token in tokens if token.level == 0 and token.type == "heading_open"]
    assert len(inside) == len(headings) - 1, "the author's own heading stays in the quotation"
    assert not [each for each in flat if each.type in ("html_block", "html_inline", "image")]
    assert not [each for each in flat if each.type == "link_open"], "no cell becomes a link"
    assert len([each for each in tokens if each.type == "table_open"]) == 4


@pytest.mark.parametrize("form", [markdown, terminal, lambda card: json.dumps(card.as_json(), ensure_ascii=False)])
def test_nothing_steers_a_terminal_or_turns_what_follows(hostile: Card, form: Callable[[Card], str]) -> None:
    text = form(hostile)
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]", text)
    assert "\\u{1b}" in text.replace("\\\\", "\\")


def test_huge_values_are_cut_where_people_read_them(hostile: Card) -> None:
    assert len(terminal(hostile)) < 100_000
    assert max(map(len, terminal(hostile).splitlines())) < 700
    assert "… " in terminal(hostile)
    assert "and 41 more, in the manifest" in terminal(hostile)


@given(st.text(max_size=200))
def test_a_line_is_one_line(text: str) -> None:
    assert len(line(text, 50).splitlines()) <= 1
    assert len(line(text, 50)) <= 50
    assert visible(visible(text)) == visible(text)
