"""Keep a model loaded, or unload it and pay for a cold start?"""

from __future__ import annotations

from edge_eval_lib import metrics
from edge_eval_lib.bounds import require_non_negative


def keep_warm_s(load_energy_j, loaded_idle_power_w, bare_idle_power_w):
    """T*, s: idle for longer than this, and unloading and loading again takes less energy.

    E_load / (P_idle_loaded - P_idle_bare); J and W, numbers, arrays or Series. `inf` where being
    loaded draws no more than being bare. Published for data-centre GPUs: the context alone adds
    26-66 W, break-even after 1-5 minutes (arXiv 2605.23918). ValueError for negative or NaN.
    """
    require_non_negative(
        load_energy_j=load_energy_j,
        loaded_idle_power_w=loaded_idle_power_w,
        bare_idle_power_w=bare_idle_power_w,
    )
    # Joules and watts break even as dollars and dollars a request do.
    return metrics.break_even(load_energy_j, 0.0, loaded_idle_power_w, bare_idle_power_w)
