"""Early errors: what every pure function refuses, in one sentence that names the argument."""

from __future__ import annotations

import numpy as np
import pandas as pd


def require_finite(**arguments) -> None:
    """ValueError naming the first argument that is not a number or holds NaN or infinity.

    Arguments are numbers, sequences, NumPy arrays or pandas Series. Series must share one index:
    pandas would otherwise align them and fill the gaps with NaN.
    """
    first_name, first_index = None, None
    for name, value in arguments.items():
        if not np.isfinite(_numbers(name, value)).all():
            raise ValueError(f"{name} must be finite, not {_first(value, np.isfinite)}")
        if isinstance(value, pd.Series):
            if first_index is None:
                first_name, first_index = name, value.index
            elif not first_index.equals(value.index):
                raise ValueError(f"{name} must have the same index as {first_name}")


def require_non_negative(**arguments) -> None:
    """As `require_finite`, and ValueError naming the first argument below zero."""
    require_finite(**arguments)
    for name, value in arguments.items():
        if not (_numbers(name, value) >= 0).all():
            raise ValueError(
                f"{name} must not be negative, but is {_first(value, lambda x: x >= 0)}"
            )


def require_positive(**arguments) -> None:
    """As `require_finite`, and ValueError naming the first argument that is not above zero."""
    require_finite(**arguments)
    for name, value in arguments.items():
        if not (_numbers(name, value) > 0).all():
            raise ValueError(f"{name} must be above 0, but is {_first(value, lambda x: x > 0)}")


def require_at_least(least: float, **arguments) -> None:
    """As `require_finite`, and ValueError naming the first argument below `least`."""
    require_finite(**arguments)
    for name, value in arguments.items():
        if not (_numbers(name, value) >= least).all():
            raise ValueError(
                f"{name} must be at least {least}, but is {_first(value, lambda x: x >= least)}"
            )


def require_whole(least: int, **arguments) -> None:
    """ValueError naming the first argument that is not a whole number of at least `least`."""
    require_finite(**arguments)
    for name, value in arguments.items():
        numbers = _numbers(name, value)
        if not ((numbers >= least) & (numbers == np.floor(numbers))).all():
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value}")


def require_share(**arguments) -> None:
    """As `require_non_negative`, and ValueError naming the first argument above one.

    Rounding of up to 1e-6 above one passes: a cosine in single precision ends there.
    """
    require_non_negative(**arguments)
    for name, value in arguments.items():
        if not (_numbers(name, value) <= 1 + 1e-6).all():
            raise ValueError(
                f"{name} must lie between 0 and 1, but is {_first(value, lambda x: x <= 1)}"
            )


def _numbers(name: str, value) -> np.ndarray:
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


def _first(value, holds) -> float:
    numbers = np.atleast_1d(_numbers("value", value))
    return float(numbers[~holds(numbers)][0])
