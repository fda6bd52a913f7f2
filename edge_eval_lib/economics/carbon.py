"""Carbon: g CO2e of the energy used and of the hardware's making.

Every argument may be a number or an array. A negative, NaN or impossible argument raises
ValueError that names it.
"""

from __future__ import annotations

import numpy as np

from edge_eval_lib.bounds import (
    require_at_least,
    require_finite,
    require_non_negative,
    require_positive,
    require_share,
)


def operational_g(energy_kwh, intensity_g_per_kwh, pue=1.0):
    """g CO2e of using energy: kWh x PUE x intensity (g CO2e per kWh); PUE is at least 1."""
    require_finite(energy_kwh=energy_kwh, intensity_g_per_kwh=intensity_g_per_kwh, pue=pue)
    require_non_negative(energy_kwh=energy_kwh, intensity_g_per_kwh=intensity_g_per_kwh)
    require_at_least(1, pue=pue)
    return energy_kwh * pue * intensity_g_per_kwh


def embodied_g(total_embodied_g, time_share, resource_share=1.0):
    """g CO2e of making the hardware that fall to one use: M = TE x time share x resource share.

    `time_share` is the time of use over the hardware's life, `resource_share` the part of the
    hardware that was used, both 0..1 (Green Software Foundation). One GPU's making: H100 164 kg,
    A100 181 kg; for a T4 none is published, so that only a range can be put in.
    """
    require_non_negative(total_embodied_g=total_embodied_g)
    require_share(time_share=time_share, resource_share=resource_share)
    return total_embodied_g * time_share * resource_share


def software_carbon_intensity_g(energy_kwh, intensity_g_per_kwh, embodied_g, functional_units):
    """SCI, g CO2e a functional unit (a request, a token): (E I + M) / R.

    Green Software Foundation; E in kWh (times PUE, if the site's part is to count), I in g/kWh,
    M = `embodied_g`, R = how many units that energy served.
    """
    require_non_negative(embodied_g=embodied_g)
    require_positive(functional_units=functional_units)
    return (operational_g(energy_kwh, intensity_g_per_kwh) + embodied_g) / functional_units


def mix_intensity_g_per_kwh(shares, intensities_g_per_kwh) -> float:
    """g CO2e per kWh of a mix of sources: the sum of share x intensity; the shares add up to 1."""
    require_share(shares=shares)
    require_non_negative(intensities_g_per_kwh=intensities_g_per_kwh)
    shares = np.asarray(shares, dtype=float)
    intensities = np.asarray(intensities_g_per_kwh, dtype=float)
    if shares.shape != intensities.shape or shares.ndim != 1:
        raise ValueError("shares must be a sequence as long as intensities_g_per_kwh")
    if not np.isclose(shares.sum(), 1, atol=1e-6):
        raise ValueError(f"shares must add up to 1, not {shares.sum():g}")
    return float(shares @ intensities)
