"""One exercise: it checks an answer, names the mistake behind a wrong one, and gives a hint."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from edge_eval_lib.results.readable import format_number

# What a student may write behind a number, and how much of the base unit it is.
UNITS = {
    "J": {"mJ": 1e-3, "J": 1.0, "kJ": 1e3, "Wh": 3600.0, "kWh": 3.6e6},
    "s": {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
    "GB": {"MB": 1e-3, "GB": 1.0},
    "W": {"mW": 1e-3, "W": 1.0, "kW": 1e3},
}
QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S*)\s*")


def _say(text: str) -> None:
    """Print, with lines that fit the output of a cell."""
    print(textwrap.fill(text, 88))


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that can be recognised, and what to say to whoever gives it."""

    answer: Any
    message: str


@dataclass(frozen=True)
class Exercise:
    """A question with its answer.

    Args:
        answer: A number, a word, or a function that says whether an answer is right.
        hint_text: What an unanswered exercise prints.
        solution_text: Why the answer is what it is.
        unit: The unit of a number; answers such as "0.5 kJ" are converted to it.
        tolerance: How far a number may be off, as a share of the answer.
        mistakes: Wrong answers that have a message of their own.
    """

    answer: float | str | Callable[[Any], bool]
    hint_text: str
    solution_text: str
    unit: str = ""
    tolerance: float = 0.02
    mistakes: tuple[Mistake, ...] = ()

    def check(self, given: Any = ...) -> bool:
        """Print what can be said of an answer, and return whether it is right."""
        if given is None or given is ...:
            _say(f"Not answered yet. Hint: {self.hint_text}")
            return False
        try:
            value = self._value(given)
        except ValueError as error:
            _say(f"Not readable: {error}")
            return False
        right = self._is(value, self.answer)
        _say("Right." if right else self._why_wrong(value))
        return right

    def hint(self) -> None:
        """Print the hint."""
        _say(self.hint_text)

    def solution(self) -> None:
        """Print the answer and its reason."""
        answer = format_number(self.answer) if isinstance(self.answer, float) else self.answer
        shown = "" if callable(answer) else f"{answer} {self.unit}".strip() + ": "
        _say(shown + self.solution_text)

    def _value(self, given: Any) -> Any:
        if isinstance(self.answer, str) or callable(self.answer):
            return given.strip().lower() if isinstance(given, str) else given
        if isinstance(given, str):
            found = QUANTITY.fullmatch(given)
            units = UNITS.get(self.unit, {self.unit: 1.0})
            if not found or (found[2] and found[2] not in units):
                with_unit = f", with one of the units {', '.join(units)}" if self.unit else ""
                raise ValueError(f"write a number{with_unit}.")
            given = float(found[1]) * units.get(found[2], 1.0)
        if isinstance(given, bool) or not isinstance(given, Real) or math.isnan(given):
            raise ValueError("write a number.")
        return float(given)

    def _is(self, value: Any, wanted: Any) -> bool:
        if callable(wanted):
            try:
                return bool(wanted(value))
            except TypeError:  # a word where a number was asked for, or a number for a list
                return False
        if isinstance(wanted, str):
            return bool(value == wanted.lower())
        return abs(value - wanted) <= max(self.tolerance, 1e-9) * abs(wanted)

    def _why_wrong(self, value: Any) -> str:
        for mistake in self.mistakes:
            if self._is(value, mistake.answer):
                return mistake.message
        if isinstance(value, float) and isinstance(self.answer, Real):
            for unit, factor in UNITS.get(self.unit, {}).items():
                if factor != 1 and self._is(value * factor, self.answer):
                    return (
                        f"The digits are right, but they are {unit}; the answer is in {self.unit}."
                    )
            direction = "high" if value > self.answer else "low"
            return f"Too {direction}. Hint: {self.hint_text}"
        return f"No. Hint: {self.hint_text}"
