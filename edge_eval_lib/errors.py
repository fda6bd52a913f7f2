"""The exception whose message is written for a person, and the hint that ends such a message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

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
