"""What this machine is and what it can measure, as tables for people."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from edge_eval_lib.energy import Source
from edge_eval_lib.machine.host import Host


def host_table(host: Host) -> pd.DataFrame:
    """The machine as rows of name and value; one row a GPU."""
    rows = {
        "processor": host.cpu,
        "cores": f"{host.cores} ({host.logical_cpus} logical)",
        "instruction sets": ", ".join(host.cpu_flags) or "none that matters here",
        "memory": f"{host.memory_gb:.1f} GB",
        "system": f"{host.os}, Python {host.python}",
    }
    for gpu in host.gpus:
        rows[f"GPU {gpu.index}"] = (
            f"{gpu.name}, {gpu.memory_gb} GB, compute capability {gpu.compute_capability}, "
            f"power limit {gpu.power_limit_w} W, driver {gpu.driver}"
        )
    if not host.gpus:
        rows["GPU"] = f"none: {host.gpu_reason}"
    return pd.DataFrame({"what": list(rows), "this machine": list(rows.values())})


def source_table(sources: Iterable[Source]) -> pd.DataFrame:
    """Each energy source, whether it can be read here, and of what or why not."""
    return pd.DataFrame(
        [
            {
                "source": source.name,
                "available": source.available,
                "of": ", ".join(source.devices) if source.available else source.reason,
            }
            for source in sources
        ]
    )
