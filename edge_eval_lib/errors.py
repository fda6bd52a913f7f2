"""The exception whose message is written for a person, and what such messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST_LIST = 160  # characters


class UserError(Exception):
    """Something the user can put right; the message says what, where, and what would be right."""


def nearest(name: str, known: Iterable[object], otherwise: str | None = None) -> str:
    """Return the end of a sentence that refuses a name: the nearest known one, or all of them.

    Args:
        name: What was refused.
        known: What would have been right.
        otherwise: What to say instead of all known names where none is near.
    """
    names = [str(right) for right in known]
    near = difflib.get_close_matches(name[:200], names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    listed = ", ".join(names) or "none"
    short = listed if len(listed) <= LONGEST_LIST else f"{listed[:LONGEST_LIST]} ..."
    return otherwise or f"there is: {short}."


def pick(mapping: Mapping[str, Any], name: str, what: str, where: str) -> Any:
    """Return `mapping[name]`; UserError with the nearest name if `where` has no such `what`."""
    if name in mapping:
        return mapping[name]
    raise UserError(f"{where} has no {what} {shown(name)}; {nearest(name, mapping)}")


def shown(value: Any) -> str:
    """Return a value as a sentence about it shows it: in short, and never what it holds."""
    if value is None:
        return "empty"
    if (isinstance(value, dict) or hasattr(value, "model_fields")) and value != {}:
        return "a mapping"
    if isinstance(value, (list, tuple)) and len(value):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    text = repr(value[:100]) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def one_line(error: BaseException) -> str:
    """Return what a library's error says, on one line and in short."""
    return " ".join(str(error).split())[:300]
