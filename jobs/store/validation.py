"""Texts of validation errors, in place of pydantic's, which are written for programmers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pydantic_core import ErrorDetails, ValidationError

_Context = dict[str, Any]
_TEXTS: Final[dict[str, str]] = {
    "missing": "missing",
    "extra_forbidden": "unknown field",
    "string_type": "not a string",
    "bool_type": "neither true nor false",
    "bool_parsing": "neither true nor false",
    "int_type": "not a whole number",
    "int_parsing": "not a whole number",
    "int_from_float": "not a whole number",
    "float_type": "not a number",
    "float_parsing": "not a number",
    "list_type": "not a list",
    "tuple_type": "not a list",
    "dict_type": "not an object with fields",
    "model_type": "not an object with fields",
    "model_attributes_type": "not an object with fields",
    "path_type": "not a path",
}
_WITH_VALUES: Final[dict[str, Callable[[_Context], str]]] = {
    "literal_error": lambda context: f"not one of {context['expected']}",
    "enum": lambda context: f"not one of {context['expected']}",
    "union_tag_invalid": lambda context: f"not one of {context['expected_tags']}",
    "union_tag_not_found": lambda context: f"{context['discriminator']} is missing",
    "greater_than": lambda context: f"not above {context['gt']}",
    "greater_than_equal": lambda context: f"below {context['ge']}",
    "less_than": lambda context: f"not below {context['lt']}",
    "less_than_equal": lambda context: f"above {context['le']}",
    "string_pattern_mismatch": lambda context: f"does not match {context['pattern']}",
    "string_too_short": lambda context: f"shorter than {context['min_length']} characters",
    "string_too_long": lambda context: f"longer than {context['max_length']} characters",
    "too_short": lambda context: f"has fewer than {context['min_length']} items",
    "too_long": lambda context: f"has more than {context['max_length']} items",
    "value_error": lambda context: str(context["error"]),
}


def fault(error: ErrorDetails) -> str:
    """Return what is wrong with a value, without its name; pydantic's own text for rare kinds of errors."""
    text = _TEXTS.get(error["type"])
    if text is not None:
        return text
    with_values = _WITH_VALUES.get(error["type"])
    return with_values(error["ctx"]) if with_values is not None else error["msg"]


def first_error(error: ValidationError, whole: str = "") -> str:
    """Return the first error, as ``field: message``; ``whole`` names the document itself, which else has no name."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or whole
    return f"{field}: {fault(first)}" if field else fault(first)
