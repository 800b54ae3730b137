"""Markdown of strangers, without what a browser would run.

Raw HTML is taken out, any other `<` is written as `&lt;`, and links keep only addresses that are harmless. Fenced code
stays as it is where every renderer must take it for code: where all fences of the text are three backticks at a line's
start, opening and closing in turn. Otherwise nothing is taken for code. All of it takes time in proportion to the text.
"""

import re

_OPENING, _CLOSING = re.compile(r"```[\w+#.-]*[ \t]*"), re.compile(r"```[ \t]*")
_HTML = re.compile(r"<!--.*?(?:-->|\Z)|<[!?/a-zA-Z][^<>]*>", re.DOTALL)
_AUTOLINK = re.compile(r"<((?:https?://|mailto:)[^\s<>\"']+)>")
_LINK = re.compile(r"(\]\(|\]:)(\s*)([^\s)]+)")
_HARMLESS = re.compile(r"https?://|mailto:[^:&\\]*\Z|[^:&\\]*\Z", re.IGNORECASE)


def without_html(text: str) -> str:
    """The text without HTML, but for what stands in fenced code, and without links that run something."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line or "~~~" in line]
    if not all((_CLOSING if place % 2 else _OPENING).fullmatch(lines[at]) for place, at in enumerate(fences)):
        fences = []
    parts, end = [], 0
    for opening, closing in zip(fences[::2], fences[1::2], strict=False):
        parts += [_cleaned("\n".join(lines[end:opening])), "\n".join(lines[opening : closing + 1])]
        end = closing + 1
    parts.append(_cleaned("\n".join(lines[end:])))
    return "\n".join(parts if end else parts[-1:])


def _cleaned(text: str) -> str:
    text = _HTML.sub("", _AUTOLINK.sub(r"\1", text))  # a bare address is a link as well
    return _LINK.sub(_harmless, text.replace("<", "&lt;"))


def _harmless(found: re.Match[str]) -> str:
    return found[0] if _HARMLESS.match(found[3]) else f"{found[1]}{found[2]}#"
