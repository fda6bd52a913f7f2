"""What is wrong with a file's content, in one sentence that names the field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from edge_eval_lib.errors import UserError, nearest, shown
from edge_eval_lib.study.yaml_file import shown_field

Schema = TypeVar("Schema", bound=BaseModel)

# pydantic's words, and what people say.
_WORDS = (
    (r"^Value error, ", ""),
    (r"^Input should be a valid string", "it should be text (in quotes)"),
    (r"^Input should be a valid integer.*", "it should be a whole number, such as 16"),
    (r"^Input should be a valid number.*", "it should be a number, such as 0.5"),
    (r"^Input should be a valid boolean", "it should be true or false"),
    (r"^Input should be a valid list", "it should be a list, such as [a, b]"),
    (r"^Input should be a valid dictionary.*", "it should be a mapping of fields"),
    (r"^Input should be greater than or equal to", "it should be at least"),
    (r"^Input should be less than or equal to", "it should be at most"),
    (r"^(Input|List|Dictionary|Keys|String) should", "it should"),
)


def validate(schema: type[Schema], content: Any, path: Path) -> Schema:
    """Return a file's content as a `schema`; UserError names the wrong field and what is right."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(schema, error.errors())}") from None


def _explain(schema: type[BaseModel], problems: list[Any]) -> str:
    """Return the first problem; of a field that may be one of several things, all it may be."""
    problem = problems[0]
    name = _field_name(problem["loc"])
    if problem["type"] == "extra_forbidden":
        hint = nearest(str(problem["loc"][-1]), _fields_at(schema, problem["loc"][:-1]))
        return f"unknown {shown_field(name).removeprefix('the ')}; {hint}"
    if problem["type"] == "missing":
        return f"{shown_field(name)} is missing."
    if problem["type"] == "value_error" and isinstance(problem["input"], (dict, BaseModel)):
        return f"{problem['msg'].removeprefix('Value error, ')}."  # it names its fields itself
    wanted = dict.fromkeys(_in_words(p["msg"]) for p in problems if _field_name(p["loc"]) == name)
    return f"{shown_field(name)} is {shown(problem['input'])}, but {' or '.join(wanted)}."


def _in_words(message: str) -> str:
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    return message


def _field_name(location: tuple[Any, ...]) -> str:
    """Return where a problem lies, without pydantic's names of a field's alternatives."""
    alternatives = {"float", "int", "str"}
    return ".".join(str(p) for p in location if p not in alternatives and "[" not in str(p))


def _fields_at(schema: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Return the names of the fields that the schema has where `location` points."""
    current: Any = schema
    for part in location:
        if part not in current.model_fields:  # a place in a list, or a key that a person chose
            continue
        annotation = current.model_fields[part].annotation
        kinds = (annotation, *get_args(annotation))
        inside = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not inside:
            return []
        current = inside[0]
    return list(current.model_fields)
