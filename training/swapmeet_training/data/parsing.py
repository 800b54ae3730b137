"""From a line's JSON value, or a table's row, to an example: a chat, a completion or a preference.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}], "tools": [{…}]}
    {"prompt": "…", "completion": "…"}
    {"input": {"messages": [{…}]}, "preferred_output": [{…}], "non_preferred_output": [{…}]}

All that is wrong with an example is noted, each mistake with the path of its field.
"""

from typing import Any

from swapmeet_training.data.examples import Chat, Completion, Example, Function, Message, Preference
from swapmeet_training.data.fields import no_others, present, quoted, required_text
from swapmeet_training.data.findings import Notes
from swapmeet_training.data.message_parsing import parse_message, parse_messages
from swapmeet_training.data.tool_parsing import parse_tools

PAIRS = (("preferred_output", "non_preferred_output"), ("preferred_completion", "non_preferred_completion"))
TOOL_KEYS = {"tools", "functions", "parallel_tool_calls"}


def parse_example(value: Any, notes: Notes) -> Example | None:
    """The example that a value is, or None with what is wrong noted."""
    if not isinstance(value, dict):
        notes.mistake("", "data_type", "is not an object", "Write {…} on every line.")
        return None
    given = present(value)
    example: Example | None
    if "messages" in given:
        example = _chat(given, notes)
    elif "prompt" in given or "completion" in given:
        example = _completion(given, notes)
    elif given.keys() & {"input", *PAIRS[0], *PAIRS[1]}:
        example = _preference(given, notes)
    else:
        message = "has neither 'messages' nor 'prompt' and 'completion', nor 'input' with a preferred output"
        notes.mistake("", "unrecognized_form", message, "Write one of the three forms.")
        return None
    return None if notes.mistakes else example


def _chat(given: dict[str, Any], notes: Notes) -> Chat:
    no_others(given, {"messages", *TOOL_KEYS}, "", "unrecognized_key", notes)
    tools = parse_tools(given, "", notes)
    messages = parse_messages(given["messages"], "messages", notes, weights=True)
    if not notes.mistakes:
        _check_learnt(messages, notes)
        _check_calls(messages, tools, given, "", notes)
    return Chat(notes.line or 0, messages, tools)


def _completion(given: dict[str, Any], notes: Notes) -> Completion:
    no_others(given, {"prompt", "completion"}, "", "unrecognized_key", notes)
    prompt = required_text(given, "prompt", "", notes)
    completion = required_text(given, "completion", "", notes)
    return Completion(notes.line or 0, prompt or "", completion or "")


def _preference(given: dict[str, Any], notes: Notes) -> Preference | None:
    keys = next((keys for keys in PAIRS if given.keys() & set(keys)), PAIRS[0])
    no_others(given, {"input", *keys}, "", "unrecognized_key", notes)
    chosen, rejected = (_output(given, key, notes) for key in keys)
    entered = given.get("input")
    if not isinstance(entered, dict):
        notes.mistake("input", "missing_key", "must be an object with messages", 'Write {"messages": […]}.')
        return None
    entered = present(entered)
    no_others(entered, {"messages", *TOOL_KEYS}, "input.", "unrecognized_key", notes)
    tools = parse_tools(entered, "input.", notes)
    messages = parse_messages(entered.get("messages"), "input.messages", notes, weights=False)
    if notes.mistakes or chosen is None or rejected is None:
        return None
    if messages[-1].role == "assistant":
        note = "must not end with the assistant's turn, which the two outputs are"
        notes.mistake("input.messages", "last_message_is_assistant", note, "Move that turn into the outputs.")
    if (chosen.content, _calls(chosen)) == (rejected.content, _calls(rejected)):
        note = f"is the same as {keys[0]}, so there is nothing to prefer"
        notes.mistake(keys[1], "identical_outputs", note, "Write another answer, or leave the example out.")
    _check_calls((*messages, chosen, rejected), tools, entered, "input.", notes)
    return Preference(notes.line or 0, messages, chosen, rejected, tools, keys)


def _output(given: dict[str, Any], key: str, notes: Notes) -> Message | None:
    """One of a preference's answers: a list of one message of the assistant's."""
    value = given.get(key)
    if not isinstance(value, list) or len(value) != 1:
        notes.mistake(key, "missing_output", "must be a list of one message of the assistant's", "Write [{…}].")
        return None
    message = parse_message(value[0], f"{key}[0]", notes)
    if message and message.role != "assistant":
        note = f"is '{message.role}', but an output is the assistant's"
        notes.mistake(f"{key}[0].role", "example_missing_assistant_message", note, "Write 'assistant'.")
    return message


def _check_learnt(messages: tuple[Message, ...], notes: Notes) -> None:
    said = [message for message in messages if message.role == "assistant"]
    if not said:
        note = "has no message of the role 'assistant', so there is nothing to learn"
        notes.mistake("messages", "example_missing_assistant_message", note, "Add the answer that is wanted.")
    elif messages[-1].role != "assistant":
        note = f"must end with the assistant's turn, not with the role '{messages[-1].role}'"
        notes.mistake("messages", "last_message_not_assistant", note, "Add its answer, or leave the last message out.")
    elif not any(message.trained for message in said):
        note = "gives every assistant's turn weight 0, so there is nothing to learn"
        notes.mistake("messages", "nothing_trained", note, "Give at least one of them weight 1.")


def _check_calls(
    messages: tuple[Message, ...], tools: tuple[Function, ...], given: dict[str, Any], where: str, notes: Notes
) -> None:
    """Calls must be of functions that are defined, and one at a time where that is asked for."""
    parallel = given.get("parallel_tool_calls", True)
    if not isinstance(parallel, bool):
        note = "must be true or false"
        notes.mistake(f"{where}parallel_tool_calls", "data_type", note, "Write one of them.")
    callers = [message for message in messages if message.tool_calls]
    if not parallel and any(len(message.tool_calls) > 1 for message in callers):
        note = "is false, but the assistant makes several calls in one turn"
        notes.warn(f"{where}parallel_tool_calls", "parallel_calls", note, "Leave it out, or make one call a turn.")
    if not tools and callers:
        note = "is missing, although the assistant calls functions: it would learn to call what it is not told of"
        notes.warn(f"{where}tools", "calls_without_tools", note, "Define the functions as they will be served.")
        return
    names = {function["name"] for function in tools}
    unknown = sorted({call.name for message in callers for call in message.tool_calls} - names)
    if unknown:
        note = f"has no function {', '.join(map(quoted, unknown))}, which the assistant calls"
        known = ", ".join(sorted(names))
        notes.mistake(f"{where}tools", "unknown_function", note, f"Define it, or call one of {known}.")


def _calls(message: Message) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in message.tool_calls]
