"""Carbon: g CO2e of the energy used and of making the hardware.

Every argument may be a number or an array. A negative, NaN or impossible argument raises
ValueError that names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator

from edge_eval_lib.bounds import (
    Finite,
    NonNegative,
    NonNegativeSequence,
    Positive,
    PositiveShare,
    Share,
    ShareSequence,
    at_least,
    checked,
)
from edge_eval_lib.errors import pick
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import Strict, read_yaml, validate
from edge_eval_lib.units import HOURS_PER_YEAR, JOULES_PER_KWH

# Power usage effectiveness: a site's energy over that of its computers.
Pue = Annotated[Finite, at_least(1)]


@checked
def operational_g(energy_kwh: NonNegative, intensity_g_per_kwh: NonNegative, pue: Pue = 1.0):
    """Compute the g CO2e of using energy: kWh x PUE x intensity.

    Args:
        energy_kwh: Energy at the meter.
        intensity_g_per_kwh: g CO2e per kWh of the grid.
        pue: Power usage effectiveness of the site, at least 1.

    Returns:
        g CO2e.
    """
    return energy_kwh * pue * intensity_g_per_kwh


@checked
def embodied_g(total_embodied_g: NonNegative, time_share: Share, resource_share: Share = 1.0):
    """Compute one use's part of making the hardware: TE x time share x resource share.

    Figures of making stand in params/carbon.yaml.

    Args:
        total_embodied_g: g CO2e of making the hardware.
        time_share: Time of use over the hardware's life (Green Software Foundation).
        resource_share: Part of the hardware that was used.

    Returns:
        g CO2e.
    """
    return total_embodied_g * time_share * resource_share


@checked
def software_carbon_intensity_g(
    energy_kwh: NonNegative,
    intensity_g_per_kwh: NonNegative,
    embodied_g: NonNegative,
    functional_units: Positive,
):
    """Compute the SCI of the Green Software Foundation: (E I + M) / R.

    Args:
        energy_kwh: E, times PUE if the site's part is to count.
        intensity_g_per_kwh: I.
        embodied_g: M, of `embodied_g`.
        functional_units: R, how many requests or tokens that energy served.

    Returns:
        g CO2e a functional unit.
    """
    return (operational_g(energy_kwh, intensity_g_per_kwh) + embodied_g) / functional_units


@checked
def mix_intensity_g_per_kwh(
    shares: ShareSequence, intensities_g_per_kwh: NonNegativeSequence
) -> float:
    """Return the g CO2e per kWh of a mix of sources, whose shares add up to 1."""
    if len(shares) != len(intensities_g_per_kwh):
        raise ValueError("shares must be a sequence as long as intensities_g_per_kwh")
    if not np.isclose(shares.sum(), 1, atol=1e-6):
        raise ValueError(f"shares must add up to 1, not {shares.sum():g}")
    return float(shares @ intensities_g_per_kwh)


# --- by request, by year, by boundary -----------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """g CO2e of using energy and of making what used it."""

    operational_g: Any
    embodied_g: Any

    @property
    def total_g(self):
        """Both."""
        return self.operational_g + self.embodied_g


@checked
def embodied_g_per_hour(
    total_embodied_g: NonNegative, years: Positive, utilisation: PositiveShare = 1.0
):
    """Compute the g CO2e of making hardware by its hour of use: TE / (8760 years x utilisation).

    Args:
        total_embodied_g: g CO2e of making it.
        years: Of life.
        utilisation: Share of the life in which it is in use; idle hours are the users' too.
    """
    return total_embodied_g / (HOURS_PER_YEAR * years * utilisation)


@checked
def serving_footprint(
    energy_per_request_j: NonNegative,
    seconds_per_request: NonNegative,
    intensity_g_per_kwh: NonNegative,
    pue: Pue,
    total_embodied_g: NonNegative,
    years: Positive,
    utilisation: PositiveShare = 1.0,
) -> Footprint:
    """Compute the g CO2e of a request, operational and embodied: the SCI's E I + M with R = 1.

    kWh x PUE x I, and TE x seconds / (life x utilisation).

    Args:
        energy_per_request_j: At the machine's meter, idle power included.
        seconds_per_request: Its share of the machine's time: 1 / requests a second.
        intensity_g_per_kwh: Of the grid.
        pue: Of the site.
        total_embodied_g: Of making the machine.
        years: Of its life.
        utilisation: Share of the life in which it serves.
    """
    operational = operational_g(energy_per_request_j / JOULES_PER_KWH, intensity_g_per_kwh, pue)
    hourly = embodied_g_per_hour(total_embodied_g, years, utilisation)
    return Footprint(operational, hourly * seconds_per_request / 3600)


@checked
def yearly_g(g_per_request: NonNegative, requests_per_day: NonNegative):
    """Compute the g CO2e of a year of 365 days."""
    return g_per_request * requests_per_day * 365


@checked
def consumer_sci_g(serving_g: NonNegative, tokens: Positive, per_tokens: Positive = 1e6):
    """Compute the SCI for AI of the consumer: g CO2e of serving per million tokens.

    The Green Software Foundation's draft of January 2026: what running a model emits is the
    consumer's, by token or workflow; what making it emits, the adaptation among it, the provider's.
    Its example, 6,500 kg over 50e9 tokens, is 130 g per million tokens; it prints 0.13.
    """
    return serving_g / tokens * per_tokens


@checked
def provider_sci_g(adaptation_g: NonNegative, flop: Positive, per_flop: Positive = 1e15):
    """Compute the SCI for AI of the provider: g CO2e of making a model per 1e15 FLOP of training.

    Also per training token or parameter: what is counted instead of FLOP, and `per_flop` of it.
    """
    return adaptation_g / flop * per_flop


# --- training ---------------------------------------------------------------------------------


@checked
def training_hours(
    parameters: Positive,
    tokens: Positive,
    peak_flop_s: Positive,
    utilisation: PositiveShare,
    flop_per_parameter_token: Positive = 6.0,
):
    """Compute the device hours of training: 6 P D / (peak x utilisation), as LLMCarbon does.

    Args:
        parameters: P; of a mixture of experts those that a token meets.
        tokens: D.
        peak_flop_s: Of one device.
        utilisation: Share of the peak that training reaches (MFU).
        flop_per_parameter_token: 6; 8 with gradient checkpointing.
    """
    return flop_per_parameter_token * parameters * tokens / (peak_flop_s * utilisation) / 3600


@checked
def training_footprint(
    device_hours: NonNegative,
    power_kw: NonNegative,
    intensity_g_per_kwh: NonNegative,
    pue: Pue = 1.0,
    embodied_g_per_device_hour: NonNegative = 0.0,
) -> Footprint:
    """Compute the g CO2e of training: hours x kW x PUE x I, as mlco2 does, and hours x embodied.

    Args:
        device_hours: Devices x hours.
        power_kw: Mean power of a device, or its limit.
        intensity_g_per_kwh: Of the grid.
        pue: Of the site.
        embodied_g_per_device_hour: Of `embodied_g_per_hour`, with the server's part.
    """
    operational = operational_g(device_hours * power_kw, intensity_g_per_kwh, pue)
    return Footprint(operational, device_hours * embodied_g_per_device_hour)


# --- params/carbon.yaml -------------------------------------------------------------------------


class Intensities(Strict):
    """Yearly means of grids, by country."""

    year: int
    source: str
    g_per_kwh: dict[str, Annotated[float, Field(ge=0)]]


class Embodied(Strict):
    """kg CO2e of making a device: [least, typical, most]."""

    range: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=3, max_length=3)]
    source: str

    @field_validator("range")
    @classmethod
    def _ordered(cls, value: list[float]) -> list[float]:
        if value != sorted(value):
            raise ValueError("must be [least, typical, most]")
        return value


class CarbonBook(Strict):
    """The whole of a carbon.yaml."""

    intensities: Intensities
    embodied_kg: dict[str, Embodied]

    def intensity_g_per_kwh(self, region: str) -> float:
        """Return a country's grid intensity; UserError with the nearest that there is."""
        return pick(self.intensities.g_per_kwh, region, "region", "params/carbon.yaml")

    def embodied_g(self, device: str) -> tuple[float, float, float]:
        """Return the least, typical and most g CO2e of making a device."""
        least, typical, most = pick(self.embodied_kg, device, "device", "params/carbon.yaml").range
        return least * 1000, typical * 1000, most * 1000


def load_carbon_book(path: str | Path | None = None) -> CarbonBook:
    """Read a carbon.yaml (by default the one in params/); UserError naming a wrong field."""
    path = Path(path) if path else project_root() / "params" / "carbon.yaml"
    return validate(CarbonBook, read_yaml(path), path)
