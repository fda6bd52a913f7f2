"""The choice that was made for a study, as its reports show it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from edge_eval_lib.results.readable import Prose


def shown(outputs: Path, variants: pd.DataFrame | None = None) -> Prose:
    """Show the choice that was made for these outputs, or how to make one.

    Args:
        outputs: A study's, with `tables/advice.csv` if a choice was made.
        variants: The study's variants as they are now: an older choice is said to be one.
    """
    file = outputs / "tables" / "advice.csv"
    if not file.is_file():
        return Prose("Nothing was chosen yet: `make advise` does, for a load and needs of yours.")
    # Late: what chooses is compiled when it is imported.
    from edge_eval_lib.economics.advise.options import API
    from edge_eval_lib.results.advice import for_people

    advice = pd.read_csv(file)
    parts = [f"{advice['question'].iloc[0]}.", for_people(advice, 10)]
    own = advice[advice["deployment"] != API]
    if variants is not None and _is_older(own, variants):
        parts.append("**The figures have changed since**: `make advise` chooses anew.")
    parts.append("What it stands on, how sure it is and what would change it: `planner.html`.")
    return Prose("\n\n".join(parts))


def _is_older(options: pd.DataFrame, variants: pd.DataFrame) -> bool:
    """Whether a variant's figures are others than the choice among the options was made from."""
    at = ["family", "size", "task", "method", "precision", "concurrency"]
    both = options.merge(variants, on=at, suffixes=("_then", ""))
    figures = {"score_then": "score", "measured_tpot_ms": "tpot_ms"}
    return not all(np.allclose(both[then], both[now]) for then, now in figures.items())
