"""Messages of chats: roles, contents in text or parts, weights, refusals, and calls with their results."""

from typing import Any, cast, get_args

from swapmeet_training.data.examples import Message, Role, ToolCall
from swapmeet_training.data.fields import no_others, present, quoted, required_text, text
from swapmeet_training.data.findings import Notes
from swapmeet_training.data.tool_parsing import LEGACY_ID, parse_calls

ROLES = (*get_args(Role), "function")
KEYS = {
    "system": {"role", "content", "name"},
    "developer": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "refusal", "tool_calls", "function_call"},
    "tool": {"role", "content", "name", "tool_call_id"},
    "function": {"role", "content", "name"},
}
MAY_BE_EMPTY = {"system", "developer", "tool", "function"}
SHAPE = "an object with role and content"


def parse_messages(value: Any, where: str, notes: Notes, *, weights: bool) -> tuple[Message, ...]:
    """The messages of a list, those without mistakes; `weights` says whether the assistant's may have one."""
    if not isinstance(value, list) or not value:
        message = "must be a list of at least one message"
        notes.mistake(where, "missing_messages_list", message, f"Write [{{…}}], each {SHAPE}.")
        return ()
    before = len(notes.mistakes)
    parsed = [parse_message(item, f"{where}[{index}]", notes, weights=weights) for index, item in enumerate(value)]
    messages = tuple(message for message in parsed if message)
    if len(notes.mistakes) == before:
        _check_order(messages, where, notes)
        _check_results(messages, [item["role"] == "function" for item in value], where, notes)
    return messages


def parse_message(value: Any, where: str, notes: Notes, *, weights: bool = False) -> Message | None:
    """One message, or None with what is wrong noted."""
    if not isinstance(value, dict):
        notes.mistake(where, "data_type", f"is not {SHAPE}", "Write one.")
        return None
    message, before = present(value), len(notes.mistakes)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        kind = "message_missing_key" if role is None else "unrecognized_role"
        notes.mistake(f"{where}.role", kind, f"is {quoted(role)}", f"Write one of {', '.join(ROLES)}.")
        return None
    if message.get("tool_calls") == []:
        del message["tool_calls"]
    known = KEYS[role] | ({"weight"} if weights and role == "assistant" else set())
    no_others(message, known, f"{where}.", "message_unrecognized_key", notes)
    calls = parse_calls(message, where, notes) if role == "assistant" else ()
    content = _content(message, role, where, notes)
    weight = message.get("weight", 1)
    if weight not in (0, 1) or isinstance(weight, bool):
        notes.mistake(f"{where}.weight", "invalid_weight", "must be 0 (not trained) or 1", "Write one of them.")
    name = text(message["name"], f"{where}.name", notes) if "name" in message else None
    answers = LEGACY_ID if role == "function" else None
    if role == "tool":
        answers = required_text(message, "tool_call_id", f"{where}.", notes, "message_missing_key")
    elif role == "function" and name is None and "name" not in message:
        notes.mistake(f"{where}.name", "message_missing_key", "is missing", "Name the function that was called.")
    if len(notes.mistakes) > before:
        return None
    kept = "tool" if role == "function" else role
    return Message(cast(Role, kept), content, weight == 1, calls, name, answers)


def _content(message: dict[str, Any], role: str, where: str, notes: Notes) -> str:
    """The text of a message; of a refusal, its text. A call needs none."""
    field, content = f"{where}.content", message.get("content")
    if "refusal" in message:
        if content:
            fix = "Keep what the assistant should say."
            notes.mistake(f"{where}.refusal", "unsupported_content", "stands beside a content", fix)
        return text(message["refusal"], f"{where}.refusal", notes) or ""
    may_be_empty = role in MAY_BE_EMPTY or "tool_calls" in message or "function_call" in message
    if content is None:
        if role != "assistant" or not may_be_empty:
            notes.mistake(field, "missing_content", "is missing", "Add it.")
        return ""
    if isinstance(content, list):
        content = _joined(content, field, notes)
        if content is None:
            return ""
    written = text(content, field, notes, "missing_content", may_be_empty=may_be_empty)
    if written is not None and not written.strip() and role in ("system", "developer"):
        notes.warn(field, "empty_text", "is empty", "Leave the message out, or write some text.")
    return written or ""


def _joined(parts: list[Any], where: str, notes: Notes) -> str | None:
    """The text of a content in parts, joined as serving joins it."""
    texts: list[str | None] = []
    for index, part in enumerate(parts):
        field = f"{where}[{index}]"
        given = present(part) if isinstance(part, dict) else {}
        kind = given.get("type")
        if kind not in ("text", "refusal"):
            message = f"is a part of the type {quoted(kind)}"
            notes.mistake(field, "unsupported_content", message, "Only text is trained; leave the part out.")
            continue
        no_others(given, {"type", kind}, f"{field}.", "message_unrecognized_key", notes)
        texts.append(required_text(given, kind, f"{field}.", notes, "missing_content", may_be_empty=True))
    if len(texts) < len(parts) or None in texts:
        return None
    return "".join(each for each in texts if each)


def _check_order(messages: tuple[Message, ...], where: str, notes: Notes) -> None:
    """Warn of orders that many chat templates refuse or that a model is never served with."""
    for index, message in enumerate(messages):
        if index and message.role in ("system", "developer"):
            note = f"has the role '{message.role}' after other messages, which some chat templates refuse"
            notes.warn(f"{where}[{index}].role", "system_not_first", note, "Put it first, or check with the base.")
    first = next((message.role for message in messages if message.role not in ("system", "developer")), None)
    if first not in ("user", None):
        note = f"begins with the role '{first}', so the assistant speaks before the user does"
        notes.warn(where, "missing_user_message", note, "Begin with the user's turn, after optional instructions.")


def _check_results(messages: tuple[Message, ...], older: list[bool], where: str, notes: Notes) -> None:
    """Every result must answer a call of the assistant's last turn, and every call should have a result.

    Results in the older form name the function instead of the call.
    """
    waiting: dict[str, ToolCall] = {}
    for index, message in enumerate(messages):
        if message.role != "tool":
            if waiting:
                field = f"{where}[{index - 1}]"
                note = f"is not followed by the result of {quoted(next(iter(waiting)))}"
                notes.warn(field, "unanswered_tool_call", note, "Add a message of the role 'tool' for each call.")
            waiting = {call.id: call for call in message.tool_calls}
            continue
        assert message.tool_call_id is not None
        call = waiting.pop(message.tool_call_id, None)
        if call is None or (older[index] and call.name != message.name):
            what = f"the function {quoted(message.name)}" if older[index] else quoted(message.tool_call_id)
            note = f"answers {what}, which the assistant's turn before it does not call, or which is answered already"
            notes.mistake(f"{where}[{index}]", "unknown_tool_call", note, "Put it right after the turn that calls it.")
