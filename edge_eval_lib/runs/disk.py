"""The disk that a study takes."""

from __future__ import annotations

from edge_eval_lib.economics import fit
from edge_eval_lib.economics.shape import LORA_MODULES
from edge_eval_lib.runs import model_time
from edge_eval_lib.study import Run, Study


def left_by_gb(study: Study, run: Run) -> float:
    """Return GB that a run leaves: an adapter, or compressed models (notebooks are small)."""
    if run.stage not in ("adapt", "compress"):
        return 0.0
    model = study.model(run.parameters["model"])
    if run.stage == "compress":
        return sum(model_time.weights_gb(model, precision) for precision in run.precisions)
    wanted = study.training.target_modules
    modules = LORA_MODULES if isinstance(wanted, str) else wanted
    adapter = fit.shape_or_like(model).lora_parameters(study.training.lora_rank, modules)
    return 4 * study.training.adapted_share * adapter / 1e9


def bases_gb(study: Study) -> float:
    """Return GB of the base models, which every study keeps once."""
    return sum(model_time.weights_gb(m, "fp16") for m in study.models if m.source != "local")
