"""Markdown of strangers, without what a browser would run.

Raw HTML is taken out, any other `<` is written as `&lt;`, and links keep only addresses that are harmless. Only fenced
code that begins at a line's start stays as it is, up to the first line that could end any fence: where it is not sure
that every renderer takes a text for code, it is none here. All of it takes time in proportion to the text.
"""

import re

_FENCE = re.compile(r"^(?:```+|~~~+)[\w+#.-]*[ \t]*\n(?:(?![ \t]*(?:```|~~~)).*\n)*[ \t]*(?:```+|~~~+)[ \t]*$", re.M)
_HTML = re.compile(r"<!--.*?(?:-->|\Z)|<[!?/a-zA-Z][^<>]*>", re.DOTALL)
_AUTOLINK = re.compile(r"<((?:https?://|mailto:)[^\s<>\"']+)>")
_LINK = re.compile(r"(\]\(|\]:)(\s*)([^\s)]+)")
_HARMLESS = re.compile(r"https?://|mailto:[^:&\\]*\Z|[^:&\\]*\Z", re.IGNORECASE)


def without_html(text: str) -> str:
    """The text without HTML, but for what stands in fenced code, and without links that run something."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parts, at = [], 0
    for found in _FENCE.finditer(text):
        parts += [_cleaned(text[at : found.start()]), found[0]]
        at = found.end()
    return "".join([*parts, _cleaned(text[at:])])


def _cleaned(text: str) -> str:
    text = _HTML.sub("", _AUTOLINK.sub(r"\1", text))  # a bare address is a link as well
    return _LINK.sub(_harmless, text.replace("<", "&lt;"))


def _harmless(found: re.Match[str]) -> str:
    return found[0] if _HARMLESS.match(found[3]) else f"{found[1]}{found[2]}#"
