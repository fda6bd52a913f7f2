"""Energy: one file a source, one interface (meter.py), windows over them (monitor.py)."""

from edge_eval_lib.energy.meter import Check, Source
from edge_eval_lib.energy.monitor import IdleBaseline, Monitor, Window

__all__ = ["Check", "IdleBaseline", "Monitor", "Source", "Window"]
