"""Conversions and sizes that several rooms need, once each, and amounts as people say them."""

JOULES_PER_KWH = 3.6e6
HOURS_PER_YEAR = 8760.0
SECONDS_PER_DAY = 86_400.0


def duration(seconds: float, longest: str = "days") -> str:
    """Say seconds as people do: `45 s`, `7 min`, `3.5 h`, `12 days`; up to the unit `longest`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600 or longest == "h":
        return f"{seconds / 3600:,.{1 if seconds < 100 * 3600 else 0}f} h"
    return f"{seconds / 86400:.0f} days"


def energy(joules: float) -> str:
    """Say energy in the unit that fits it: `350 J`, `12 Wh`, `7.8 kWh`."""
    if joules < 10:
        return f"{joules:.2g} J"
    if joules < 3600:
        return f"{joules:,.0f} J"
    kwh = joules / JOULES_PER_KWH
    value, unit = (kwh * 1e3, "Wh") if kwh < 1 else (kwh, "kWh")
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
