"""The paper's analysis, redone from its published figures and taken further.

    from edge_eval_lib import paper
    study = paper.build()
    paper.TABLES["claims"](study)

notebooks/06_paper.ipynb holds the argument. Each table is a function of `Paper` in `TABLES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from edge_eval_lib.errors import UserError
from edge_eval_lib.paper import analysis, claims, evidence, fronts, qlora, small_models
from edge_eval_lib.paper.analysis import Paper, build, model_name, short_name
from edge_eval_lib.paper.claims import tally
from edge_eval_lib.paper.code_points import code_against_figures
from edge_eval_lib.paper.evidence import LARGE_PARAMETERS, adaptation_kwh, met, samples_per_pass
from edge_eval_lib.paper.finding import VERDICT_LOOKS, VERDICTS
from edge_eval_lib.paper.frame import shown
from edge_eval_lib.paper.summary import (
    METRIC_NAMES,
    earned_back_pct,
    findings,
    statistics_of_columns,
)
from edge_eval_lib.paths import outputs_root
from edge_eval_lib.results import page
from edge_eval_lib.results.headline import frontier_table
from edge_eval_lib.results.readable import heading, readable, write_table

if TYPE_CHECKING:
    from IPython.display import HTML

__all__ = [
    "AXES",
    "CLAIM_COLUMNS",
    "LARGE_PARAMETERS",
    "METRIC_NAMES",
    "TABLES",
    "VERDICTS",
    "Paper",
    "adaptation_kwh",
    "analysis",
    "build",
    "claims",
    "earned_back_pct",
    "findings",
    "fronts",
    "met",
    "model_name",
    "output_directory",
    "samples_per_pass",
    "short_name",
    "show",
    "shown",
    "statistics_of_columns",
    "table",
    "tally",
    "write_tables",
]

TABLES: dict[str, Callable[[Paper], pd.DataFrame]] = {
    "variants": lambda paper: paper.variants,
    "frontier": lambda paper: frontier_table(paper.variants),
    "adaptation": lambda paper: paper.adaptation,
    "claims": lambda paper: paper.judged,
    "headline": lambda paper: paper.evidence.headline,
    "headline_consistent": analysis.consistent_headline,
    "qlora_energy": lambda paper: evidence.by(paper.judged, source="QLoRA energy table"),
    "qlora_decomposition": qlora.decomposition,
    "qlora_beside_embedded": qlora.qlora_beside_embedded,
    "qlora_by_size": lambda paper: evidence.eases_with_size(paper.evidence),
    "qlora_memory": qlora.qlora_memory,
    "training_rate": qlora.training_rate,
    "break_even": analysis.break_even,
    "setup": analysis.setup_shares,
    "api_prices": analysis.api_break_points,
    "density": analysis.density,
    "cold_start": analysis.cold_start,
    "fidelity": analysis.fidelity,
    "code_against_figures": code_against_figures,
    "pareto": fronts.pareto,
    "fronts": fronts.fronts,
    "robustness": fronts.robustness,
    "model_robustness": fronts.model_robustness,
    "order_flips": small_models.order_flips,
    "small_models": small_models.small_models,
    "best_scores": small_models.best_scores,
}


# A claim with its argument below it, and short columns beside: all of it fits a screen and paper.
CLAIM_COLUMNS = ("claim", "paper_value", "recomputed", "verdict")
AXES = {metric: heading(metric) for metric in METRIC_NAMES}


def output_directory(directory: str | Path | None = None) -> Path:
    """Return where the paper's tables and figures go: by default outputs/paper."""
    return Path(directory) if directory else outputs_root() / "paper"


def table(study: Paper, name: str) -> pd.DataFrame:
    """Return a table of TABLES, computed once for each `study`.

    Args:
        study: What to compute from.
        name: Which of TABLES.

    Raises:
        UserError: There is no table of that name.
    """
    if name not in TABLES:
        raise UserError(f"There is no table {name!r}; there is: {', '.join(TABLES)}.")
    return _computed(study, name).copy()


@cache
def _computed(study: Paper, name: str) -> pd.DataFrame:
    return TABLES[name](study).reset_index(drop=True)


def write_tables(
    directory: str | Path | None = None,
    study: Paper | None = None,
    names: Iterable[str] | None = None,
) -> list[Path]:
    """Write tables/<name>.csv under `directory`.

    Args:
        directory: Where; by default outputs/paper.
        study: What to compute from; by default the published figures.
        names: Some of TABLES; by default all.

    Returns:
        The files.

    Raises:
        UserError: There is no table of one of the names.
    """
    study = study or build()
    folder = output_directory(directory) / "tables"
    computed = {name: table(study, name) for name in (TABLES if names is None else names)}
    return [write_table(rows, folder / f"{name}.csv") for name, rows in computed.items()]


def show(rows: pd.DataFrame, columns: Sequence[str] | None = None, fold: str | None = None) -> HTML:
    """Show a table in a notebook: rounded, in words, a claim's argument below it.

    Args:
        rows: A table of TABLES, or a part of one.
        columns: Which to show; by default all.
        fold: What it holds, in a line that opens it on a click; by default it stands open.
    """
    from IPython.display import HTML

    widths = kind = ""
    if "verdict" in rows:
        rows = claims.for_people(rows)
        kind = "claims" if columns == CLAIM_COLUMNS else ""
        widths = '<colgroup><col style="width: 60%"></colgroup>'
    elif "printed" in rows and "metric" in rows:
        rows = claims.cells_for_people(rows)
    truths = rows.select_dtypes(bool)
    rows = rows.assign(**{c: truths[c].map({True: "yes", False: "no"}) for c in truths})
    with pd.option_context("display.max_colwidth", None):
        text = readable(rows, columns).to_html(index=False, border=0, classes=kind or None)
    text = re.sub(r"<td>(.*?)\\n(.*?)</td>", r"<td>\1<br><small>\2</small></td>", text)
    text = text.replace("\\n", "<br>").replace("<thead>", f"{widths}<thead>", 1)
    for colour, sign in VERDICT_LOOKS.values():
        look = f"background: {colour}; color: #fff; border-radius: 3px; padding: 0 .35em"
        text = text.replace(f"<td>{sign} ", f'<td><span style="{look}">{sign}</span> ')
    return HTML(page.fold(fold, text) if fold else text)
