"""What an answer to a call with tools must look like, if anything is to be enforced."""

from collections.abc import Callable

from swapmeet_registry.conversations import Function
from swapmeet_serving.calls import ToolUse
from swapmeet_serving.constraints import Constraint
from swapmeet_serving.errors import InvalidRequest
from swapmeet_serving.grammars import Grammar
from swapmeet_serving.tools.format import ToolFormat, arguments_of


def enforced(use: ToolUse, form: ToolFormat, marker: str, answer: Constraint | None) -> Constraint | None:
    """The constraint on an answer that may or must call tools.

    Arguments are enforced where a call is required, and otherwise for functions that are `strict`.

    Args:
        use: the tools, and whether one must be called.
        form: how the model writes calls.
        marker: how Lark writes the form's marker.
        answer: what an answer must be that calls nothing.
    """
    many = use.parallel
    if use.function is not None:
        wanted = [each for each in use.functions if each["name"] == use.function]
        return Constraint.lark(form.grammar(wanted, marker, None, free=False, many=False))
    if use.required:
        return Constraint.lark(form.grammar(use.functions, marker, None, free=False, many=many))
    functions = [each if each.get("strict") else {"name": each["name"]} for each in use.functions]
    if answer:
        return Constraint.lark(form.grammar(functions, marker, answer.rule, free=False, many=many))
    if any(each.get("strict") for each in functions):
        return Constraint.lark(form.grammar(functions, marker, None, free=True, many=many))
    return None


def compile_tools(
    constraint: Constraint, use: ToolUse, answer: Constraint | None, compiler: Callable[[Constraint], Grammar]
) -> Grammar:
    """Compile a constraint made by `enforced`.

    Raises:
        InvalidRequest: it can not be enforced; the message names the function whose parameters are the reason.
    """
    try:
        return compiler(constraint)
    except InvalidRequest:
        if answer:
            compiler(answer)
        for number, function in enumerate(use.functions):
            _blame(number, function, compiler)
        raise


def _blame(number: int, function: Function, compiler: Callable[[Constraint], Grammar]) -> None:
    try:
        compiler(arguments_of(function))
    except InvalidRequest as error:
        raise InvalidRequest(f"tools.{number}.function.parameters: {error}") from error
