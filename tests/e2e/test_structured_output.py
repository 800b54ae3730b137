"""Structured output and tools of the real base, through the official client."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris? Answer in JSON."}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city",
                "parameters": PARAMETERS}}  # fmt: skip
NOON: Any = {"type": "function", "function": {"name": "is_noon", "parameters": {"type": "object", "properties": {},
             "additionalProperties": False}}}  # fmt: skip


class Report(BaseModel):
    city: str = Field(max_length=30)
    sky: Literal["clear", "cloudy"]
    degrees: int = Field(ge=-50, le=60)


@pytest.fixture(scope="module")
def client(smollm2: Path, running: Callable[..., Any]) -> Iterator[Any]:
    with running(smollm2).openai() as client:
        yield client


@pytest.fixture(scope="module")
def options(client: Any) -> dict[str, Any]:
    return {"model": client.models.list().data[0].id, "messages": QUESTION, "max_tokens": 120, "temperature": 0}


@pytest.mark.slow
def test_structured_output(client: Any, options: dict[str, Any]) -> None:
    import openai

    parsed = client.chat.completions.parse(response_format=Report, **options)
    assert isinstance(parsed.choices[0].message.parsed, Report)

    schema = {"name": "weather", "schema": PARAMETERS, "strict": True}
    answer = client.chat.completions.create(
        response_format={"type": "json_schema", "json_schema": schema}, **options | {"temperature": 1.5}
    )
    jsonschema.validate(json.loads(answer.choices[0].message.content), PARAMETERS)
    assert answer.choices[0].finish_reason == "stop"

    answer = client.chat.completions.create(extra_body={"structured_outputs": {"regex": r"[A-Z]{3}-\d{4}"}}, **options)
    assert re.fullmatch(r"[A-Z]{3}-\d{4}", answer.choices[0].message.content)

    with pytest.raises(openai.BadRequestError, match=r"JSON schema can not be enforced: Unimplemented keys.*not"):
        client.chat.completions.create(extra_body={"guided_json": {"not": {"type": "string"}}}, **options)


@pytest.mark.slow
def test_tools(client: Any, options: dict[str, Any]) -> None:
    answer = client.chat.completions.create(
        tools=[WEATHER, NOON], tool_choice="required", parallel_tool_calls=False, **options
    )
    choice = answer.choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    if call.function.name == "get_weather":
        jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)
    else:
        assert (call.function.name, json.loads(call.function.arguments)) == ("is_noon", {})

    named = {"type": "function", "function": {"name": "get_weather"}}
    pieces = list(client.chat.completions.create(tools=[WEATHER, NOON], tool_choice=named, stream=True, **options))
    (made,) = [each for piece in pieces for each in piece.choices[0].delta.tool_calls or ()]
    assert (made.index, made.type, made.function.name) == (0, "function", "get_weather")
    jsonschema.validate(json.loads(made.function.arguments), PARAMETERS)
    assert pieces[-1].choices[0].finish_reason == "tool_calls"

    result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, cloudy"}
    conversation = [*QUESTION, choice.message.model_dump(exclude_none=True), result]
    last = client.chat.completions.create(
        tools=[WEATHER, NOON], **options | {"messages": conversation, "max_tokens": 16}
    )
    assert last.choices[0].message.content or last.choices[0].message.tool_calls

    import openai

    strict = openai.pydantic_function_tool(Report)
    parsed = client.chat.completions.parse(tools=[strict], tool_choice="required", parallel_tool_calls=False, **options)
    assert all(isinstance(each.function.parsed_arguments, Report) for each in parsed.choices[0].message.tool_calls)
