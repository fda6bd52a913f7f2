"""Carbon: g CO2e of the energy used and of making the hardware.

Every argument may be a number or an array. A negative, NaN or impossible argument raises
ValueError that names it.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from edge_eval_lib.bounds import (
    Finite,
    NonNegative,
    NonNegativeSequence,
    Positive,
    Share,
    ShareSequence,
    at_least,
    checked,
)

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

    One GPU's making: H100 164 kg, A100 181 kg; none is published for a T4, so that only a range
    can be put in.

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
