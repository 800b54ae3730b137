"""Characters that nobody sees and that do something, written so that they are seen and do nothing.

Those that steer a terminal, turn the direction of what follows them, break lines where no line is meant to end, or hide
text in tags: in a card they could only lie about what stands there.
"""

import re
from typing import Any

_STEERING = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""The text with such characters as `\u{1b}`; line ends and tabulators stay."""
    return _STEERING.sub(lambda found: f"\\u{{{ord(found[0]):x}}}", text.replace("\r\n", "\n"))


def all_visible(value: Any) -> Any:
    """The same of every text in a JSON value."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(str(name)): all_visible(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [all_visible(each) for each in value]
    return value


def line(text: str, most: int = 500) -> str:
    """A text in one line, and no longer than that."""
    joined = visible(" ".join(text[: 4 * most].split()))
    return joined if len(joined) <= most and len(text) <= 4 * most else f"{joined[: most - 1]}…"
