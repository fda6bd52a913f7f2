"""`cpu-model`: an estimate for machines without any meter: CPU time x watts of a busy thread.

The watts are a whole server's at full load, shared out over its hardware threads: idle power,
memory, fans and power supply are in them. What of it the machine would have drawn without the work
is not known, so no idle can be subtracted.
"""

from __future__ import annotations

from typing import Any

from edge_eval_lib.energy.cpu_time import CpuTime, cpu_seconds
from edge_eval_lib.energy.meter import Meter, Reading, register
from edge_eval_lib.machine import declared, host


@register
class CpuModel(Meter):
    """Joules by the CPU time of this process and its descendants, orphaned ones included.

    The watts of one busy logical CPU, a range, are those of params/hardware.yaml.
    """

    name, device, estimated = "cpu-model", "cpu", True
    resolution_s = 1e-4  # what a window itself takes of this process's CPU time

    def __init__(self, *clocks: Any) -> None:
        super().__init__(*clocks)
        model = declared.load_hardware_file().cpu_model
        self._watts = (model.low_w, model.typical_w, model.high_w)
        self.devices = [host.cpu_name()]

    def reading(self, begin: CpuTime, end: CpuTime) -> Reading:
        """Return the estimate and its range, or why the CPU time is not known."""
        seconds = cpu_seconds(begin, end)
        if seconds is None:
            if not (begin.complete and end.complete):
                return Reading(None, "SIGCHLD is ignored: child processes leave no trace")
            return Reading(None, "a child process ended without being waited for")
        low, typical, high = (watts * seconds for watts in self._watts)
        return Reading(typical, lo_j=low, hi_j=high)
