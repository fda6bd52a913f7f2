"""Bounds of a pure function's arguments, written as annotations and checked before it runs.

@checked
def system_density(throughput_tok_s: NonNegative, memory_gb: Positive): ...

Arguments are numbers, sequences, NumPy arrays or pandas Series. One that does not hold its bound
raises ValueError in one sentence that begins with the argument's name. Write `Share[float]` where
the type matters, and the bare name where any of these will do.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

import numpy as np
import pandas as pd

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Bound:
    """A condition on every number of an argument, and the words that refuse the first wrong one."""

    holds: Callable[[np.ndarray], np.ndarray]
    refusal: str


def whole(least: int) -> Bound:
    """Bound to whole numbers of at least `least`."""
    return Bound(
        lambda x: (x >= least) & (x == np.floor(x)),
        f"must be a whole number of at least {least}, not {{value}}",
    )


def at_least(least: float) -> Bound:
    """Bound to numbers of at least `least`."""
    return Bound(lambda x: x >= least, f"must be at least {least}, but is {{number}}")


_BETWEEN = "must lie between 0 and 1, but is {number}"
# Rounding above one passes: a cosine in single precision ends there.
_AT_MOST_ONE = Bound(lambda x: x <= 1 + 1e-6, _BETWEEN)
_ONE_DIMENSION = "one dimension, at least one number"

Finite = Annotated[T, Bound(np.isfinite, "must be finite, not {number}")]
NonNegative = Annotated[Finite[T], Bound(lambda x: x >= 0, "must not be negative, but is {number}")]
Positive = Annotated[Finite[T], Bound(lambda x: x > 0, "must be above 0, but is {number}")]
Share = Annotated[NonNegative[T], _AT_MOST_ONE]
PositiveShare = Annotated[Positive[T], _AT_MOST_ONE]
OpenShare = Annotated[T, Bound(lambda x: (x > 0) & (x < 1), _BETWEEN)]
Whole = Annotated[Finite[T], whole(1)]
# A function's argument of such a kind reaches it as a NumPy array of floats.
FiniteSequence = Annotated[Finite[T], _ONE_DIMENSION]
NonNegativeSequence = Annotated[NonNegative[T], _ONE_DIMENSION]
PositiveSequence = Annotated[Positive[T], _ONE_DIMENSION]
ShareSequence = Annotated[Share[T], _ONE_DIMENSION]


def checked(function: Function) -> Function:
    """Check the bounds in a function's annotations, or in a dataclass's fields, at every call.

    Series among the arguments must share one index: pandas would otherwise align them and fill the
    gaps with NaN.
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)  # type: ignore[misc]
        return cast(Function, function)
    signature = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)
    bounds = {name: found for name, hint in hints.items() if (found := _bounds(hint))}

    @functools.wraps(function)
    def with_checked_arguments(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        values = {
            name: value
            for name, value in call.arguments.items()
            if name in bounds and not (value is None and signature.parameters[name].default is None)
        }
        for name, value in values.items():
            numbers = _check(name, value, bounds[name])
            if _ONE_DIMENSION in bounds[name]:
                call.arguments[name] = values[name] = numbers
        _require_one_index(values)
        return function(*call.args, **call.kwargs)

    return cast(Function, with_checked_arguments)


def require(bound: Any, **arguments: Any) -> None:
    """Raise ValueError naming the first argument that does not hold `bound`, such as `Positive`."""
    for name, value in arguments.items():
        _check(name, value, _bounds(bound))
    _require_one_index(arguments)


def _bounds(hint: Any) -> tuple[Any, ...]:
    """The bounds in an annotation, also in one of the kind `Whole | None`."""
    alternatives = (hint, *get_args(hint))
    return next((a.__metadata__ for a in alternatives if hasattr(a, "__metadata__")), ())


def _check(name: str, value: Any, bounds: tuple[Any, ...]) -> np.ndarray:
    numbers = _numbers(name, value)
    for bound in bounds:
        if bound is _ONE_DIMENSION:
            if numbers.ndim != 1 or not len(numbers):
                raise ValueError(f"{name} must be a sequence of at least one number")
        elif not (held := bound.holds(numbers)).all():
            wrong = float(np.atleast_1d(numbers)[~np.atleast_1d(held)][0])
            raise ValueError(f"{name} {bound.refusal.format(number=wrong, value=value)}")
    return numbers


def _require_one_index(arguments: dict[str, Any]) -> None:
    series = {name: v for name, v in arguments.items() if isinstance(v, pd.Series)}
    for name, value in series.items():
        first = next(iter(series))
        if not series[first].index.equals(value.index):
            raise ValueError(f"{name} must have the same index as {first}")


def _numbers(name: str, value: Any) -> np.ndarray:
    try:
        numbers = np.asarray(value)
        if numbers.dtype.kind in "OUSMmcb":
            # None becomes NaN and is refused as such; text, dates and truth values are no numbers.
            if numbers.dtype.kind != "O":
                raise TypeError
            numbers = pd.to_numeric(pd.Series(numbers.ravel())).to_numpy(float, na_value=np.nan)
        return numbers.astype(float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number or numbers, not {value!r}") from None
