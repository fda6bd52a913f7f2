"""What a choice depends on beside measured figures: each input's value, and what it may be.

params/advice.yaml holds what is assumed where nobody says otherwise; prices come from the study's
set, intensities and embodied carbon from params/carbon.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from edge_eval_lib.economics.capacity import ARRIVALS
from edge_eval_lib.economics.carbon import CarbonBook
from edge_eval_lib.economics.prices import PriceBook, Prices
from edge_eval_lib.errors import UserError, nearest, shown
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import Strict, read_yaml, validate

MEASUREMENT = "measurement"  # the input that draws the measured figures' own errors
OBJECTIVES = {
    "cost": "usd_per_request",
    "energy": "energy_per_request_j",
    "carbon": "carbon_g_per_request",
    "latency": "latency_s",
}
# What no price, rate or length can be below, or above.
AT_LEAST = {"pue": 1.0, "peak_to_mean": 1.0}
AT_MOST = {"idle_power_share": 1.0, "score_floor_share": 1.0}
ABOVE_ZERO = {
    "requests_per_day", "output_tokens", "lifetime_years", "horizon_years", "energy_factor",
}  # fmt: skip


class Assumed(Strict):
    """An input's value, the range of what it may be, and where they are from."""

    value: Annotated[float, Field(ge=0)]
    least: Annotated[float, Field(ge=0)]
    most: Annotated[float, Field(ge=0)]
    scale: Literal["log", "even"] = "even"
    unit: str
    source: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _in_order(self) -> Assumed:
        if not self.least <= self.value <= self.most:
            raise ValueError("least, value and most must not fall")
        if self.scale == "log" and self.least <= 0:
            raise ValueError("least must be above 0 where scale is log")
        return self


class Limits(Strict):
    """How an SLO is judged: the share of requests that meet it, and how full a machine may run."""

    percentile: Annotated[float, Field(gt=0, lt=100)]
    utilisation: Annotated[float, Field(gt=0, lt=1)]


class Assumptions(Strict):
    """The whole of params/advice.yaml."""

    inputs: dict[str, Assumed]
    limits: Limits


@dataclass(frozen=True)
class Need:
    """What must hold, None where nothing is asked: the objective is judged among what fits."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    score: float | None = None
    budget_usd_per_month: float | None = None
    machines: float | None = None
    at_hand: bool = False  # machines that are there cost no purchase
    percentile: float = 90.0
    utilisation: float = 0.9
    objective: str = "cost"
    arrivals: str = "random"

    def __post_init__(self) -> None:
        """Refuse what nothing can hold."""
        for name in ("ttft_ms", "tpot_ms", "budget_usd_per_month", "machines"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise UserError(f"{name} must be above 0, not {value:g}.")
        if self.objective not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            raise UserError(f"objective is {self.objective!r}, but it must be one of: {known}.")
        if self.arrivals not in ARRIVALS:
            known = ", ".join(ARRIVALS)
            raise UserError(f"arrivals is {self.arrivals!r}, but it must be one of: {known}.")
        if self.score is not None and not 0 <= self.score <= 1:
            raise UserError(f"score must lie between 0 and 1, not {self.score:g}.")
        if not 0 < self.utilisation <= 1:
            raise UserError(
                f"utilisation must be above 0 and at most 1, not {self.utilisation:g}: a machine "
                "cannot serve more than it can."
            )

    @property
    def variation(self) -> float:
        """Standard deviation of the gaps between requests over their mean."""
        return ARRIVALS[self.arrivals]


@dataclass(frozen=True)
class Inputs:
    """Every input of a choice, by name, and what must hold."""

    ranges: Mapping[str, Assumed]
    need: Need = field(default_factory=Need)

    def value(self, name: str) -> float:
        """Return an input's value."""
        return self.ranges[name].value

    def nominal(self) -> dict[str, np.ndarray]:
        """Return every input at its value, an array of one; measured figures without error."""
        return {name: np.array([r.value]) for name, r in self.ranges.items()}

    def varied(self) -> list[str]:
        """Return the inputs that may be something else than their value."""
        return [name for name, r in self.ranges.items() if r.least < r.most]

    def at(self, quantiles: np.ndarray, names: list[str] | None = None) -> dict[str, np.ndarray]:
        """Return inputs at quantiles, a row for each of `names`; the others at their value.

        The value is the median: half of what is drawn lies below it, half above.
        """
        names = self.varied() if names is None else names
        drawn = {name: np.full(quantiles.shape[1], r.value) for name, r in self.ranges.items()}
        for name, u in zip(names, quantiles, strict=True):
            r = self.ranges[name]
            points = np.array([r.least, r.value, r.most])
            if r.scale == "log":
                drawn[name] = np.exp(np.interp(u, [0, 0.5, 1], np.log(points)))
            else:
                drawn[name] = np.interp(u, [0, 0.5, 1], points)
        return drawn

    def table(self) -> pd.DataFrame:
        """Return the inputs as a table: value, range, unit, source."""
        rows = [{"input": name, **r.model_dump()} for name, r in self.ranges.items()]
        return pd.DataFrame([row for row in rows if row["input"] != MEASUREMENT])


def load_assumptions(path: str | Path | None = None) -> Assumptions:
    """Read params/advice.yaml, or another file like it; UserError naming a wrong field."""
    path = Path(path) if path else project_root() / "params" / "advice.yaml"
    return validate(Assumptions, read_yaml(path), path)


def parse(name: str, text: str | float, known: Assumed) -> Assumed:
    """Read `30000`, which keeps the range's width, or `20000:30000:60000`, least:value:most.

    Raises:
        UserError: It is no number, or one that the input cannot be.
    """
    try:
        numbers = [float(part) for part in str(text).split(":")]
    except ValueError:
        numbers = []
    option = name.replace("_", "-")
    if len(numbers) not in (1, 3) or not np.isfinite(numbers).all():
        raise UserError(f"{option} is {shown(text)}, but it must be a number, or least:value:most.")
    least_allowed = AT_LEAST.get(name, 0.0)
    for number in numbers:
        if number < least_allowed or (number == 0 and name in ABOVE_ZERO):
            bound = "above 0" if name in ABOVE_ZERO else f"at least {least_allowed:g}"
            raise UserError(f"{option} must be {bound}, not {number:g}.")
        if number > AT_MOST.get(name, np.inf):
            raise UserError(f"{option} must be at most {AT_MOST[name]:g}, not {number:g}.")
    source = "asked for"
    if len(numbers) == 3:
        least, value, most = numbers
        if not least <= value <= most:
            raise UserError(f"{option} is {text}, but least:value:most must not fall.")
        scale = "log" if known.scale == "log" and least > 0 else "even"
        return known.model_copy(
            update={"least": least, "value": value, "most": most, "scale": scale, "source": source}
        )
    value = numbers[0]
    factor = value / known.value if known.value else np.nan
    if not np.isfinite(factor) or factor == 0:
        least, most = value, value
    else:
        least = float(np.clip(known.least * factor, least_allowed, value))
        most = float(np.clip(known.most * factor, value, AT_MOST.get(name, np.inf)))
        source += "; range in proportion to the assumed one"
    scale = "log" if known.scale == "log" and least > 0 else "even"
    return known.model_copy(
        update={"least": least, "value": value, "most": most, "scale": scale, "source": source}
    )


def of_score(need: Need) -> dict[str, Assumed]:
    """Return the share of a score that options must reach where one was asked for: all of it."""
    asked = need.score is not None
    return {"score_floor_share": _fixed(1.0, "ratio", "a score was asked for")} if asked else {}


def gather(
    options: pd.DataFrame,
    book: PriceBook,
    prices: Prices,
    need: Need,
    asked: Mapping[str, str | float] | None = None,
    *,
    known: Mapping[str, Assumed],
    assumptions: Assumptions | None = None,
) -> Inputs:
    """Put every input of a choice together.

    Args:
        options: The options; what they recorded (tokens of a request, the range of an estimated
            energy) stands for an assumption.
        book: The price book, whose listed API prices and scenarios are the ranges.
        prices: The study's set of prices.
        need: What must hold.
        asked: Inputs that somebody gave, by name: `parse` reads them.
        known: What `of_place` knows of the region and the hardware.
        assumptions: By default params/advice.yaml.

    Raises:
        UserError: For an input that there is not, or that cannot be.
    """
    assumptions = assumptions or load_assumptions()
    ranges = dict(assumptions.inputs)
    for name in ("input_tokens", "output_tokens"):
        recorded = options[f"{name}_per_request"].median()
        if np.isfinite(recorded):
            factor = recorded / ranges[name].value
            ends = {end: getattr(ranges[name], end) * factor for end in ("least", "value", "most")}
            source = "as measured, range ASSUMED"
            ranges[name] = ranges[name].model_copy(update={**ends, "source": source})
    ranges |= _of_prices(book, prices)
    ranges |= known
    ranges["energy_factor"] = _of_estimate(options)
    ranges |= of_score(need)
    asked = {name: text for name, text in (asked or {}).items() if text is not None}
    for name, text in asked.items():
        if name not in ranges:
            raise UserError(f"There is no input {name!r}; {nearest(name, ranges)}")
        ranges[name] = parse(name, text, ranges[name])
    ranges[MEASUREMENT] = Assumed(
        value=0.0, least=0.0, most=1.0, unit="draw", source="the measured figures' own errors"
    )
    return Inputs(ranges, replace(need))


def of_place(
    book: PriceBook, carbon: CarbonBook, region: str | None, device: str | None, cards: int
) -> dict[str, Assumed]:
    """Return what is known of a region's electricity and of a machine's cards.

    Args:
        book: Its clouds' prices; without one for the device there is no `cloud_usd_per_hour`.
        carbon: Of params/carbon.yaml.
        region: Of params/carbon.yaml; by default the world's mean.
        device: One card, of params/hardware.yaml; None where there is none, or it is not known.
        cards: How many the machine has.

    Raises:
        UserError: There is no such region.
    """
    listed, source = carbon.intensities.g_per_kwh, carbon.intensities.source
    mean = carbon.intensity_g_per_kwh(region or "WORLD")
    of_year = f"{region or 'the world'} in {carbon.intensities.year}; {source.split(',')[0]}"
    # Within a region the hour, the place and the contract decide.
    anywhere = min(listed.values()), max(listed.values())
    ends = anywhere if region is None else (mean / 2, mean * 2)
    known = {"intensity_g_per_kwh": _around(mean, ends, "g/kWh", of_year)}
    if device is None or device not in carbon.embodied_kg:
        known["embodied_cards_kg"] = _fixed(0.0, "kg", "no card whose making is known")
    else:
        least, typical, most = (cards * g / 1e3 for g in carbon.embodied_g(device))
        known["embodied_cards_kg"] = _around(
            typical, (least, most), "kg", f"params/carbon.yaml, {cards} x {device}"
        )
    hour = None if device is None else book.cloud_usd_per_hour(device)
    if hour is not None:
        least, most = cards * hour[0], cards * hour[1]
        known["cloud_usd_per_hour"] = _around(
            (least * most) ** 0.5, (least, most), "USD/h", f"params/prices.yaml, {cards} x {device}"
        )
    return known


def _fixed(value: float, unit: str, source: str) -> Assumed:
    return Assumed(value=value, least=value, most=value, unit=unit, source=source)


def _around(value: float, ends: Sequence[float], unit: str, source: str) -> Assumed:
    """A range that holds the value, whatever its ends are said to be."""
    least, most = min(ends[0], value), max(ends[1], value)
    scale: Literal["log", "even"] = "log" if least > 0 else "even"
    return Assumed(value=value, least=least, most=most, scale=scale, unit=unit, source=source)


def _of_prices(book: PriceBook, prices: Prices) -> dict[str, Assumed]:
    inputs, outputs = (
        [getattr(api, f"{kind}_usd_per_mtok") for api in book.api_prices]
        for kind in ("input", "output")
    )
    electricity = book.scenarios.electricity_usd_per_kwh
    nominal = prices.api_input_usd_per_mtok, prices.api_output_usd_per_mtok
    # Input and output prices rise and fall together from provider to provider: a factor is varied.
    ratios = [(i + o) / max(sum(nominal), 1e-12) for i, o in zip(inputs, outputs, strict=True)]
    of_set = "the study's set of prices"
    return {
        "api_input_usd_per_mtok": _fixed(nominal[0], "USD/Mtok", of_set),
        "api_output_usd_per_mtok": _fixed(nominal[1], "USD/Mtok", of_set),
        "api_price_factor": _around(
            1.0, (min(ratios), max(ratios)), "ratio", "the list prices of params/prices.yaml"
        ),
        "electricity_usd_per_kwh": _around(
            prices.electricity_usd_per_kwh, electricity, "USD/kWh", f"{of_set}, its scenarios"
        ),
        "pue": _around(prices.pue, (1.0, 1.6), "ratio", f"{of_set}; range ASSUMED"),
        "hardware_usd": _fixed(prices.hardware_usd, "USD", of_set),
        "discount_rate": _around(
            prices.discount_rate, (0.02, 0.1), "1/year", f"{of_set}; range ASSUMED"
        ),
        "setup_hours": _around(
            prices.setup_hours, book.scenarios.setup_hours, "hours", f"{of_set}, its scenarios"
        ),
        "labour_usd_per_hour": _fixed(prices.labour_usd_per_hour, "USD/h", of_set),
    }


def _of_estimate(options: pd.DataFrame) -> Assumed:
    """How far an estimated energy may lie off, for all rows together; 1 where it was metered."""
    if "energy_per_request_lo_j" not in options:
        return _fixed(1.0, "ratio", "energy was metered")
    energy = options["energy_per_request_j"]
    low = (options["energy_per_request_lo_j"] / energy).median()
    high = (options["energy_per_request_hi_j"] / energy).median()
    if not (np.isfinite(low) and np.isfinite(high)):
        return _fixed(1.0, "ratio", "energy was metered")
    return _around(
        1.0, (low, high), "ratio", "the range of the energy's estimate, all rows together"
    )
