"""Conversions and sizes that several rooms need, once each."""

JOULES_PER_KWH = 3.6e6
HOURS_PER_YEAR = 8760.0
SECONDS_PER_DAY = 86_400.0
