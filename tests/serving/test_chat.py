"""Chat templates: the adapter's own before the base's, found once."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_serving import chat
from swapmeet_serving.chat import ChatTemplates
from swapmeet_serving.errors import InvalidRequest, NoChatTemplate
from swapmeet_serving.template_renderer import TemplateRenderer, TookTooMuch

MESSAGES = ({"role": "user", "content": "Hello"},)


class Tokenizer:
    """Writes a template and its messages as one character code each, or refuses."""

    special_tokens_map: dict[str, str] = {}  # noqa: RUF012 (as transformers has it)

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        assert not add_special_tokens
        return type("Encoding", (), {"input_ids": list(map(ord, text))})

    def apply_chat_template(self, messages: list[dict[str, str]], chat_template: str, **_: Any) -> list[int]:
        if chat_template == "refuses":
            raise ValueError("roles must alternate")
        return [ord(letter) for letter in chat_template + messages[0]["content"]]


class Apart(TemplateRenderer):
    """Notes what it renders, in this process."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Hashable]] = []

    def render(self, template: str, messages: Any, tools: Any = None, special: Any = None, who: Any = None) -> str:
        self.asked.append((template, who))
        if template == "loops":
            raise TookTooMuch("takes more than 1 s to render")
        return template + str(messages[0]["content"])


def test_templates_are_found_once(tmp_path: Path) -> None:
    fetched = []

    def fetch(adapter: str) -> Path:
        fetched.append(adapter)
        return tmp_path / adapter

    (tmp_path / "own").mkdir()
    (tmp_path / "own" / chat.TEMPLATE_FILE).write_text("own:")
    (tmp_path / "plain").mkdir()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / chat.TEMPLATE_FILE).write_text("base:")
    templates = ChatTemplates(Tokenizer("base:"), fetch, renderer=(apart := Apart()))
    for _ in range(2):
        for adapter, text in ((None, "base:"), ("own", "own:"), ("plain", "base:"), ("copy", "base:")):
            assert "".join(map(chr, templates.render(MESSAGES, adapter, tenant="acme"))) == text + "Hello"
            assert templates.knows(adapter)
    assert fetched == ["own", "plain", "copy"]
    assert apart.asked == [("own:", ("acme", "own"))] * 2, "only a stranger's is rendered apart"


def test_a_template_that_takes_too_much_is_named(tmp_path: Path) -> None:
    (tmp_path / chat.TEMPLATE_FILE).write_text("loops")
    templates = ChatTemplates(Tokenizer("base:"), lambda _: tmp_path, renderer=Apart())
    with pytest.raises(
        InvalidRequest, match=r"^The chat template of acme/a@sha256:12 takes more than 1 s to render\.$"
    ):
        templates.render(MESSAGES, "acme/a@sha256:12")


@pytest.mark.parametrize(
    ("template", "reason"),
    [(b"\xff", "is not UTF-8"), (b"a" * (chat.LONGEST_TEMPLATE + 1), "has more than 262144 bytes")],
)
def test_a_template_that_is_none_is_refused(tmp_path: Path, template: bytes, reason: str) -> None:
    (tmp_path / chat.TEMPLATE_FILE).write_bytes(template)
    templates = ChatTemplates(Tokenizer("base:"), lambda _: tmp_path, renderer=Apart())
    with pytest.raises(InvalidRequest, match=f"The chat template of acme/a {reason}"):
        templates.render(MESSAGES, "acme/a")
    assert not templates.knows("acme/a")


def test_a_folder_that_made_room_is_fetched_again(tmp_path: Path) -> None:
    gone = [tmp_path / "gone"]

    def fetch(_: str) -> Path:
        return gone.pop() if gone else tmp_path

    (tmp_path / chat.TEMPLATE_FILE).write_text("own:")
    templates = ChatTemplates(Tokenizer("base:"), fetch, renderer=Apart())
    assert "".join(map(chr, templates.render(MESSAGES, "own"))) == "own:Hello"
    gone += [tmp_path / "gone", tmp_path / "gone"]
    with pytest.raises(FileNotFoundError):
        templates.render(MESSAGES, "other")


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MOST_KEPT", chat.ENTRY)
    templates = ChatTemplates(Tokenizer("base:"), lambda _: tmp_path)
    for adapter in ("a", "b"):
        templates.render(MESSAGES, adapter)
    assert [templates.knows(each) for each in (None, "a", "b")] == [True, False, True]


def test_a_failed_fetch_is_not_remembered(tmp_path: Path) -> None:
    def fetch(adapter: str) -> Path:
        raise OSError("the store is away")

    templates = ChatTemplates(Tokenizer("base:"), fetch)
    with pytest.raises(OSError, match="the store is away"):
        templates.render(MESSAGES, "a")
    assert not templates.knows("a")


def test_no_template_or_one_that_refuses() -> None:
    with pytest.raises(NoChatTemplate, match="no chat template"):
        ChatTemplates(Tokenizer(None), Path).render(MESSAGES, None)
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        ChatTemplates(Tokenizer("refuses"), Path).render(MESSAGES, None)
