"""What a better answer costs and how long it is waited for, among the options that fit.

A row a variant and figure, at the variant's best option: where it runs, and how many at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from edge_eval_lib.economics.advise.choice import Choice
from edge_eval_lib.economics.advise.options import API, VARIANT
from edge_eval_lib.frontier import non_dominated
from edge_eval_lib.results import charts, figures
from edge_eval_lib.results.drawn import Drawn

if TYPE_CHECKING:
    import altair as alt

USD = "usd_per_1000_requests"
PANELS = {  # in the order in which a picture sorts them
    USD: "USD per 1,000 requests [log]",
    "energy_per_request_j": "energy per request [J, log]",
    "ttft_ms": "first token [ms, log]",
}
TITLE = "What does a better answer cost, and who waits for it?"
_READING = "left: less; up: better answers; the line: what nothing beats"
_SCORE = "score, 0 to 1 [share]"
_TOLD = ["deployment", "concurrency", *PANELS, "tpot_ms", "best_in_pct"]
_RANGE = {"_estimate_lo": "_least", "_estimate_hi": "_most"}


def rows_of(choice: Choice) -> pd.DataFrame:
    """Set each variant's best option of those that fit (of all, where none does) a row a figure.

    The API is none of them: its answers were not scored.

    Returns:
        A row a variant and figure: `panel` says it, `value` is it, with the range that 90 % of the
        draws leave, and `front` says whether nothing is less and scores better.
    """
    best = choice.table[choice.table["deployment"] != API]
    if choice.best is not None:
        best = best[best["fits"]]
    best = best.drop_duplicates(VARIANT).assign(best_in_pct=100 * best["p_best"])
    for end in ("", "_least", "_most"):
        best[f"{USD}{end}"] = 1e3 * best[f"usd_per_request{end}"]
    parts = []
    for column, panel in PANELS.items():
        ends = {f"value{end}": best[f"{column}{source}"] for end, source in _RANGE.items()}
        part = best.assign(panel=panel, value=best[column], **ends)
        parts.append(part.assign(front=non_dominated(part, {"value": "min", "score": "max"})))
    return pd.concat(parts, ignore_index=True)


def draw(rows: pd.DataFrame, path: Path, stamp: str) -> Drawn:
    """Draw score over price, wait and energy, a line through what nothing beats in either."""
    shown = rows.assign(task=rows["panel"])
    fig, panels = figures.panels(shown, ["value", "score"], TITLE, _READING, height=4.0)
    for axis, part in panels:
        best = part[part["front"]].sort_values("value")
        axis.step(best["value"], best["score"], where="post", color="#aaaaaa", lw=1, zorder=1)
        figures.mark(axis, part, "value", "score")
        figures.plain_log(axis.xaxis)
    if panels:
        panels[0][0].set_ylabel(_SCORE)
    cautions = [_of(rows)] if len(rows) else []
    return figures.finish(fig, path, stamp, rows[["validity"]], cautions, alt=words(rows))


def chart(rows: pd.DataFrame, stamp: str) -> alt.FacetChart | None:
    """Chart what `draw` draws; each mark says where it runs, and all that it takes."""
    import altair as alt

    return charts.points(
        rows,
        x=alt.X("value:Q").title(None).scale(type="log"),
        y=alt.Y("score:Q").title(_SCORE).scale(zero=False, padding=10),
        title=TITLE,
        reading=_READING,
        told=rows.drop(columns="value"),
        also=_TOLD,
        lines=["front"],
        stamp=f"{_of(rows)} {stamp}",
        digits=2,
        panel="panel",
        own_x=True,
    )


def words(rows: pd.DataFrame) -> str:
    """Say what is on each front, from the least to the best answer."""
    said = []
    for panel, part in rows[rows["front"]].sort_values("value").groupby("panel", sort=False):
        each = [
            f"{row.family}-{row.size} {row.score:.2f} at {figures.number(row.value, 2)}"
            for row in part.itertuples()
        ]
        said.append(f"{str(panel).partition(' [')[0]}: {', '.join(each)}")
    return f"Score over {'; '.join(said)}." if said else "Nothing to draw."


def _of(rows: pd.DataFrame) -> str:
    of = "Of the options that hold what must hold" if rows["fits"].all() else "None fits: of all"
    return f"{of}, each variant's best. Pale lines: 90 % of what the inputs may be."
