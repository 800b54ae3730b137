"""Calls out of an answer as it comes: content goes on at once, what may be a call is held until it is one."""

from collections.abc import Collection

from swapmeet_serving.calls import ToolCall
from swapmeet_serving.tools.format import ToolFormat


class ToolStream:
    """Splits one answer's text into content and calls; the same ones however the text is cut.

    What looks like a call and is none, or calls a function that there is not, stays content. Where calls were
    made, white space around them is dropped.

    Args:
        form: how the model writes calls.
        names: the functions there are.
        many: whether more than one call may be made; further ones are dropped.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], *, many: bool = True) -> None:
        self._format = form
        self._names = names
        self._many = many
        self._held = ""
        self._fresh = True
        self.calls = 0

    def add(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """The content and the calls that became certain."""
        self._held += text
        content = ""
        calls: list[ToolCall] = []
        while True:
            content += self._take(self._format.call_begins(self._held, self._names, self._fresh))
            size = self._first_call()
            if not size:
                return content, tuple(calls)
            more, made = self._read(self._held[:size])
            self._held, self._fresh = self._held[size:], False
            content += more
            calls += made

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """What was held back, now that nothing follows."""
        content, calls = self._read(self._held)
        self._held = ""
        return content, tuple(calls)

    def _take(self, size: int) -> str:
        taken, self._held = self._held[:size], self._held[size:]
        if taken:
            self._fresh = False
        return taken

    def _first_call(self) -> int:
        """Length of the held text up to the end of its first call; 0 while there is none."""
        form = self._format
        if not form.end or form.end not in self._held or form.marker not in self._held:
            return 0
        begin = self._held.index(form.marker) + len(form.marker)
        return _end_outside_strings(self._held, form.end, begin)

    def _read(self, text: str) -> tuple[str, list[ToolCall]]:
        """A held text as calls, or as content if it is none."""
        try:
            parsed = self._format.read(text)
            if any(name not in self._names for name, _ in parsed):
                raise ValueError("there is no such function")
        except (ValueError, RecursionError):
            return ("" if self.calls and not text.strip() else text), []
        calls = []
        for name, arguments in parsed:
            if self._many or not self.calls:
                calls.append(ToolCall(self.calls, self._format.new_id(), name, arguments))
                self.calls += 1
        return "", calls


def _end_outside_strings(text: str, end: str, begin: int) -> int:
    """Where the first `end` that is in no JSON string ends; 0 if there is none."""
    place, quoted = begin, False
    while place < len(text):
        if quoted and text[place] == "\\":
            place += 1
        elif text[place] == '"':
            quoted = not quoted
        elif not quoted and text.startswith(end, place):
            return place + len(end)
        place += 1
    return 0
