"""Raise problems inside a pydantic model, and describe in words the problems that pydantic itself finds."""

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

Place = tuple[str | int, ...]
"""The path of keys to a value: ("training", "seed") or ("data", "train", 0, "weight")."""

FOUND_HERE = "found_here"
"""The type of the errors of this package, which contain their message. `EXPECTED` has messages for pydantic's types."""

WRONG_VALUE = "wrong_value"
"""The type of an error of this package that contains only the expected kind of value."""

EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a number",
    "string_type": "text (put it in quotes)",
    "string_pattern_mismatch": "text (put it in quotes)",
    "none_required": "null",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "names with values",
    "model_type": "a section with fields",
    "model_attributes_type": "a section with fields",
}

BOUNDS = {
    "greater_than_equal": ("of at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("of at most", "le"),
    "less_than": ("below", "lt"),
}
"""The types of pydantic's errors about a bound: its words, and its name in the context of the error."""


def expect(what: str) -> PydanticCustomError:
    """Build the error that a validator raises for a value of the wrong kind."""
    return PydanticCustomError(WRONG_VALUE, "write {expected}", {"expected": what})


def raise_problems(title: str, problems: Iterable[tuple[Place, str, str]]) -> None:
    """Raise all problems as one ValidationError, if there are any.

    Args:
        title: name of the model.
        problems: of each, the place, the problem (without a full stop) and the remedy (a sentence).
    """
    errors = [
        InitErrorDetails(
            type=PydanticCustomError(
                FOUND_HERE, "{what}. {what_to_do}", {"what": what, "what_to_do": remedy}
            ),
            loc=place,
            input=None,
        )
        for place, what, remedy in problems
    ]
    if errors:
        raise ValidationError.from_exception_data(title, errors)


def expected_by(error: ErrorDetails) -> str | None:
    """Return the expected kind of value in words, or None if the error is about something else."""
    if error["type"] in ("literal_error", WRONG_VALUE):
        return str(error["ctx"]["expected"])
    return EXPECTED.get(error["type"])


def describe_wrong_value(value: Any, errors: Iterable[ErrorDetails]) -> tuple[str, str]:
    """Return (problem, remedy) for one value, from all of pydantic's errors about it.

    For a value that may have several types, pydantic reports an error for each type.
    """
    errors = list(errors)
    for error in errors:
        context = error.get("ctx", {})
        if error["type"] == FOUND_HERE:
            return context["what"], context["what_to_do"]
        if error["type"] == "missing":
            return "is missing", "Add it: it has no default."
        if error["type"] in BOUNDS:
            words, name = BOUNDS[error["type"]]
            return f"is {show(value)}", f"Write a number {words} {_show_bound(context[name])}."
    expected = dict.fromkeys(expected_by(error) or error["msg"] for error in errors)
    if "a number" in expected:
        expected.pop("a whole number", None)
    return f"is {show(value)}", f"Write {' or '.join(expected)}."


def _show_bound(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def show(value: Any) -> str:
    """Return a value as it looks in YAML, shortened to 80 characters."""
    known = {None: "null", True: "true", False: "false"}
    text = known[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
