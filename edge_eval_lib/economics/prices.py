"""Prices: params/prices.yaml -> sets of prices that studies name, and scenarios around them.

cost.py makes two accountings of them. `paper`: electricity at the meter against one API price a
request. `full`: electricity times PUE, hardware by the hour of use and set-up labour against the
API's prices for the tokens in and out.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, field_validator, model_validator

from edge_eval_lib import bounds
from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import Strict, read_yaml, validate
from edge_eval_lib.units import HOURS_PER_YEAR, JOULES_PER_KWH

NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Range = Annotated[list[NotNegative], Field(min_length=2, max_length=2)]


@bounds.checked
def capital_recovery_factor(discount_rate: bounds.NonNegative, years: bounds.Positive):
    """Return the share of a price to be paid back each year: r (1+r)^n / ((1+r)^n - 1), or 1/n."""
    rate, n = np.asarray(discount_rate, float), np.asarray(years, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        # -expm1(-n log1p(r)) is 1 - (1+r)^-n without loss at tiny rates; below 1e-15 no digit
        # differs from r = 0, and smaller products underflow.
        factor = np.where(rate < 1e-15, 1 / n, rate / -np.expm1(-n * np.log1p(rate)))
    return factor if factor.ndim else float(factor)


@bounds.checked
def api_usd_per_request(
    input_tokens: bounds.NonNegative,
    output_tokens: bounds.NonNegative,
    input_usd_per_mtok: bounds.NonNegative,
    output_usd_per_mtok: bounds.NonNegative,
    cached_share: bounds.Share = 0.0,
    cached_input_usd_per_mtok: bounds.NonNegative = 0.0,
    batch_discount: bounds.Share = 0.0,
):
    """Compute the USD that an API asks for a request, its tokens at their prices per million.

    (in ((1 - cached) price_in + cached price_cached) + out price_out) (1 - discount) / 1e6

    Args:
        input_tokens: Prompt, with whatever retrieval adds.
        output_tokens: Answer.
        input_usd_per_mtok: Price of a million input tokens.
        output_usd_per_mtok: Price of a million output tokens.
        cached_share: bounds.Share of the input that the provider has in its cache.
        cached_input_usd_per_mtok: Price of a million of those.
        batch_discount: bounds.Share off for requests that may wait, as for a batch overnight.
    """
    uncached = (1 - np.asarray(cached_share)) * input_usd_per_mtok
    read = input_tokens * (uncached + cached_share * cached_input_usd_per_mtok)
    usd = (read + output_tokens * output_usd_per_mtok) * (1 - np.asarray(batch_discount)) / 1e6
    return usd if np.ndim(usd) else float(usd)


class Prices(Strict):
    """One set of prices and assumptions; USD. params/prices.yaml says what each means."""

    electricity_usd_per_kwh: NotNegative
    api_usd_per_request: NotNegative
    api_input_usd_per_mtok: NotNegative
    api_output_usd_per_mtok: NotNegative
    api_input_tokens_per_request: NotNegative
    pue: Annotated[float, Field(ge=1)]
    hardware_usd: NotNegative
    hardware_lifetime_years: Positive
    discount_rate: NotNegative
    utilisation: Annotated[float, Field(gt=0, le=1)]
    setup_hours: NotNegative
    labour_usd_per_hour: NotNegative

    @property
    def setup_usd(self) -> float:
        """Return the cost of labour before the first request."""
        return self.setup_hours * self.labour_usd_per_hour

    @property
    def hardware_usd_per_hour(self) -> float:
        """Return the machine's price an hour of use: price x recovery factor / used hours."""
        recovery = capital_recovery_factor(self.discount_rate, self.hardware_lifetime_years)
        return self.hardware_usd * recovery / (HOURS_PER_YEAR * self.utilisation)

    def electricity_usd(self, energy_j):
        """Price energy at the meter, without PUE; joules, a number or a Series."""
        return energy_j / JOULES_PER_KWH * self.electricity_usd_per_kwh

    def machine_usd(self, energy_j, seconds):
        """Price `seconds` of use that took `energy_j`: electricity with PUE, and hardware."""
        hardware = self.hardware_usd_per_hour * (seconds / 3600)
        return self.electricity_usd(energy_j) * self.pue + hardware


def _day(value: Any) -> Any:
    return date.fromisoformat(value) if isinstance(value, str) else value


class ApiPrice(Strict):
    """A published list price; `valid_from` is when the provider put it in force."""

    provider: str
    model: str
    input_usd_per_mtok: NotNegative
    output_usd_per_mtok: NotNegative
    valid_from: Annotated[date, BeforeValidator(_day)]
    source: str
    cached_input_usd_per_mtok: NotNegative | None = None  # None: none is published here
    batch_discount: Annotated[float, Field(ge=0, le=1)] = 0.0


class CloudGpu(Strict):
    """What an hour of one GPU costs, with its share of the machine, on demand."""

    provider: str
    device: str  # of hardware.yaml, where it stands there
    usd_per_hour: Range  # [least, most]: one price twice, or a range
    as_of: Annotated[date, BeforeValidator(_day)]
    source: str

    @field_validator("usd_per_hour")
    @classmethod
    def _ordered(cls, value: list[float]) -> list[float]:
        if value[0] > value[1]:
            raise ValueError("must be [least, most]")
        return value


class Scenarios(Strict):
    """[least, most] of what the full accounting is varied over, beside the API prices."""

    electricity_usd_per_kwh: Range
    setup_hours: Range

    @model_validator(mode="after")
    def _ordered(self) -> Scenarios:
        for name, (least, most) in self:
            if least > most:
                raise ValueError(f"scenarios.{name} must be [least, most]")
        return self


class PriceBook(Strict):
    """The whole of a prices.yaml."""

    sets: dict[str, Prices]
    scenarios: Scenarios
    api_prices: Annotated[list[ApiPrice], Field(min_length=1)]
    cloud_gpus: list[CloudGpu] = Field(default=[])

    def prices(self, name: str) -> Prices:
        """Return the set called `name`; UserError naming the others if there is none."""
        if name not in self.sets:
            known = ", ".join(self.sets)
            raise UserError(f"There is no set of prices {name!r}; there is: {known}.")
        return self.sets[name]

    def cloud_usd_per_hour(self, device: str) -> tuple[float, float] | None:
        """Return the least and the most that an hour of a GPU costs; None where none is listed."""
        ends = [gpu.usd_per_hour for gpu in self.cloud_gpus if gpu.device == device]
        return (min(e[0] for e in ends), max(e[1] for e in ends)) if ends else None

    def scenario_prices(self, prices: Prices) -> list[Prices]:
        """Return `prices` at every published API price, at the least and at the most of the ranges.

        Requests to break even rise with electricity and with set-up hours, so that these bound
        everything between.
        """
        ranges = dict(self.scenarios)
        return [
            prices.model_copy(
                update={
                    "api_input_usd_per_mtok": api.input_usd_per_mtok,
                    "api_output_usd_per_mtok": api.output_usd_per_mtok,
                    **{name: ends[end] for name, ends in ranges.items()},
                }
            )
            for api in self.api_prices
            for end in (0, 1)
        ]


def load_price_book(path: str | Path | None = None) -> PriceBook:
    """Read a prices.yaml (by default the one in params/); UserError naming a wrong field."""
    path = Path(path) if path else project_root() / "params" / "prices.yaml"
    return validate(PriceBook, read_yaml(path), path)
