"""What an answer must look like: OpenAI's `response_format`, and vLLM's `structured_outputs` and `guided_*`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from swapmeet.errors import RequestRefused
from swapmeet.gateway.message_wire import Text
from swapmeet_serving.constraints import Constraint
from swapmeet_serving.errors import InvalidRequest as Unenforceable

Schema = dict[str, Any]
Choices = Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=4096)]


class JsonSchema(BaseModel):
    """A named schema. It is enforced whether `strict` or not."""

    model_config = ConfigDict(extra="forbid", serialize_by_alias=True)

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    definition: Schema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's three kinds of answers."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(BaseModel):
    """vLLM's further kinds; one of them."""

    model_config = ConfigDict(extra="forbid")

    json_: Schema | None = Field(None, alias="json")
    json_object: Literal[True] | None = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None


class StructuredOutput(BaseModel):
    """The fields of a request that constrain its answer; at most one of them may."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None

    def constraint(self) -> Constraint | None:
        """The constraint on the answer, if there is one.

        Raises:
            RequestRefused: there are several, or it can not be enforced.
        """
        asked = {name: value for name, value in self._asked().items() if value is not None}
        if len(asked) > 1:
            raise RequestRefused(f"Give one of {', '.join(asked)}.", list(asked)[1])
        for name, value in asked.items():
            try:
                return _constraint(name.rpartition(".")[2].removeprefix("guided_"), value)
            except Unenforceable as error:
                raise RequestRefused(str(error), name) from error
        return None

    def _asked(self) -> dict[str, Any]:
        form = self.response_format or ResponseFormat(type="text")
        kind, schema = form.type, form.json_schema
        if (kind == "json_schema") != (schema is not None):
            raise RequestRefused("json_schema is given with, and only with, the type json_schema.", "response_format")
        more = self.structured_outputs or StructuredOutputs()
        return {
            "response_format.json_object": True if kind == "json_object" else None,
            "response_format.json": schema.definition if schema else None,
            "structured_outputs.json": more.json_,
            "structured_outputs.json_object": more.json_object,
            "structured_outputs.regex": more.regex,
            "structured_outputs.choice": more.choice,
            "structured_outputs.grammar": more.grammar,
            "guided_json": self.guided_json,
            "guided_regex": self.guided_regex,
            "guided_choice": self.guided_choice,
            "guided_grammar": self.guided_grammar,
        }


def _constraint(kind: str, value: Any) -> Constraint:
    match kind:
        case "json":
            return Constraint.json_schema(value)
        case "json_object":
            return Constraint.json_object()
        case "regex":
            return Constraint.regex(value)
        case "choice":
            return Constraint.choice(value)
        case _:
            return Constraint.lark(value)
