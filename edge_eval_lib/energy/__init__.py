"""Energy: one file a source in meters/, one interface (meter.py), windows over all (monitor.py)."""

from edge_eval_lib.energy.measurement import IdleBaseline, Measurement
from edge_eval_lib.energy.meter import Check, Source
from edge_eval_lib.energy.monitor import Monitor, Window

__all__ = ["Check", "IdleBaseline", "Measurement", "Monitor", "Source", "Window"]
