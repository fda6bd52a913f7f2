"""Charts that answer the pointer: what a page puts in the place of a picture where it has script.

    static = figures.finish(fig, path, stamp, rows)
    charts.beside(static, charts.points(rows, alt.X("ipw:Q").title("IPW [1/J]"), alt.Y(...), ...))

Hovering a mark shows its variant with values and intervals; a name of the legend hides its marks or
shows them again. Colour, marker, hollow and pale mean what they mean in the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pandas as pd

from edge_eval_lib.economics.published import MODEL, VARIANT
from edge_eval_lib.results import figures, page
from edge_eval_lib.results.chart_parts import (
    GREY,
    Look,
    again,
    column_of,
    doubtful,
    panels,
    with_bounds,
)
from edge_eval_lib.results.columns import configuration_name, mixed, named, sort_variants
from edge_eval_lib.results.readable import readable

if TYPE_CHECKING:
    import altair as alt

_HEIGHT, _ROW = 300, 22  # of a panel of points, and of a row, pixels
WAITS = {"ttft_ms": "first token, TTFT [ms]", "tpot_ms": "each further, TPOT [ms]"}


class Shown(Protocol):
    """A picture as a notebook shows it."""

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Both:
    """A picture, and the chart that takes its place in a page with script."""

    static: Shown
    chart: dict[str, Any]

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return self.static._repr_mimebundle_() | {page.CHART: self.chart}

    def __repr__(self) -> str:
        return repr(self.static)


def beside(static: Shown, chart: alt.FacetChart | None) -> Shown:
    """Show a picture, and in a page with script its chart; None where nothing was to be drawn."""
    return static if chart is None else Both(static, chart.to_dict())


def points(
    rows: pd.DataFrame,
    x: alt.X,
    y: alt.Y,
    title: str,
    reading: str,
    told: pd.DataFrame | None = None,
    also: Sequence[str] = (),
    lines: Sequence[str] = (),
    stamp: str | None = None,
    digits: int = 3,
    panel: str = "task",
    own_x: bool = False,
) -> alt.FacetChart | None:
    """Chart two columns, a panel for each task and a mark a variant, with intervals and ranges.

    Args:
        rows: A row a variant.
        x: The column to the right, as altair says it: `alt.X("ipw:Q").title("IPW [1/J]")`.
        y: The column upwards, likewise.
        title: The question that it answers.
        reading: How to read it, in a line.
        told: What a mark tells under the pointer, by the index of `rows`; by default `rows`. An
            axis whose column it lacks is not told.
        also: Columns that it tells beside those of both axes.
        lines: Columns whose median is a line across all panels; or `front`, a column that says
            which rows a line of steps goes through.
        stamp: The host and where its energy comes from.
        digits: Significant digits of what is told.
        panel: The column whose values have a panel each.
        own_x: Whether each panel has its own scale to the right.

    Returns:
        The chart; None where no row has both columns.
    """
    import altair as alt

    columns = [column_of(x), column_of(y)]
    known = sort_variants(named(rows.assign(at=rows.index).dropna(subset=columns)))
    if known.empty:
        return None
    told = rows if told is None else told
    tells = list(dict.fromkeys([*(column for column in columns if column in told), *also]))
    texts = readable(told.loc[known["at"]], tells, digits)
    tips = {f"t{number}": name for number, name in enumerate(texts)}
    texts = texts.set_axis(list(tips), axis=1).set_axis(known.index)
    marks = _identified(known, known["configuration"]).assign(panel=known[panel])
    marks = marks.join([texts, *(with_bounds(known, column) for column in columns)])
    below = []
    for axis, column in zip((x, y), columns, strict=True):
        if column in lines:
            marks[f"{column}_middle"] = known[column].median()
            middle = again(axis, f"{column}_middle", aggregate="max")  # once, not once a mark
            below.append(alt.Chart().mark_rule(color=GREY).encode(middle))
    if "front" in lines:
        marks["joined"] = known["front"].map({True: "front"})
        marks["place"] = marks[columns[0]]
    else:  # through the configurations of each model
        marks["joined"] = known["model"].where(known["method"] == "lora")
        marks["place"] = range(len(marks))
    if "front" in lines or known["model"].nunique() > 1:
        line = alt.Chart().transform_filter("isValid(datum.joined)")
        steps: Literal["step-after", "linear"] = "step-after" if "front" in lines else "linear"
        line = line.mark_line(color=GREY, strokeWidth=1, interpolate=steps)
        below.append(line.encode(x, y, detail="joined:N", order="place:Q"))
    pairs = sort_variants(known[["method", "precision"]].drop_duplicates())
    looks = {
        configuration_name(*pair): figures.look(*pair) for pair in pairs.itertuples(index=False)
    }
    words = [reading, *_foot(known, stamp)]
    return panels(marks, x, y, looks, tips, title, words, _HEIGHT, below, own_x)


def strips(
    rows: pd.DataFrame,
    series: Mapping[str, tuple[str, str, str]],
    x: alt.X,
    title: str,
    reading: str,
    stamp: str | None = None,
    digits: int = 3,
) -> alt.FacetChart | None:
    """Chart a row a variant, a panel for each task, along the row a mark for each column.

    Args:
        rows: A row a variant.
        series: Columns, each with what it is called, its colour and its marker.
        x: The axis to the right, of `value:Q`.
        title: The question that it answers.
        reading: How to read it, in a line.
        stamp: The host and where its energy comes from.
        digits: Significant digits of what is told.

    Returns:
        The chart; None where nothing is known.
    """
    known = sort_variants(named(rows.dropna(subset=list(series), how="all")))
    if known.empty:
        return None
    several = known["model"].nunique() > 1
    parts = []
    for column, (name, _, _) in series.items():
        text = readable(known, [column], digits).iloc[:, 0]
        part = _identified(known, name).join(with_bounds(known, column, "value"))
        parts.append(part.assign(row=_row_names(known, several), told=text))
    looks = {name: (colour, marker) for name, colour, marker in series.values()}
    marks = pd.concat(parts).dropna(subset="value")
    words = [reading, *_foot(known, stamp)]
    return _in_rows(marks, x, looks, "value", title, words)


def waits(requests: pd.DataFrame, title: str, stamp: str | None = None) -> alt.FacetChart | None:
    """Chart how long single requests waited, a row a variant: the median, and how they scatter.

    Args:
        requests: A row a request, with its variant, `ttft_ms` and `tpot_ms`.
        title: The question that it answers.
        stamp: The host.

    Returns:
        The chart; None where there is no request.
    """
    import altair as alt

    if requests.empty:
        return None
    several = requests.groupby(MODEL).ngroups > 1
    parts = []
    for column, panel in WAITS.items():
        for _, part in requests.dropna(subset=[column]).groupby(VARIANT, sort=False):
            first = named(part.head(1))
            mark = _identified(first, first["configuration"])
            row = first["task"] + "  " + _row_names(first, several)
            parts.append(mark.assign(panel=panel, row=row, **_wait(part[column])))
    if not parts:
        return None
    marks = pd.concat(parts)
    pairs = requests[["method", "precision"]].drop_duplicates().itertuples(index=False)
    looks = {configuration_name(*pair): figures.look(*pair) for pair in pairs}
    reading = (
        "A mark is a variant's median; thick, the middle half of its requests, thin, 5 to 95 % of "
        f"them; of fewer than {figures.BOX_REQUESTS} requests, from the first to the last"
    )
    words = [reading, *_foot(requests.drop_duplicates("run"), stamp)]
    x = alt.X("value:Q").title(None).scale(zero=True)
    return _in_rows(marks, x, looks, "median [ms]", title, words, own_x=True)


def _wait(times: pd.Series) -> dict[str, Any]:
    """The median with the middle half and 5 to 95 %; of a few requests, from least to most."""
    many = len(times) >= figures.BOX_REQUESTS
    names = ["value", "value_lo", "value_hi"] + ["value_least", "value_most"] * many
    ends = [0.5, 0.05, 0.95, 0.25, 0.75] if many else [0.5, 0, 1]
    wait = dict(zip(names, times.quantile(ends).tolist(), strict=True))
    of = "5-95 %" if many else "all"
    low, high = figures.number(wait["value_lo"]), figures.number(wait["value_hi"])
    told = f"{figures.number(wait['value'])} ({of}: {low} to {high}; {len(times)} requests)"
    return wait | {"told": told}


def _in_rows(
    marks: pd.DataFrame,
    x: alt.X,
    looks: Mapping[str, Look],
    tip: str,
    title: str,
    words: Sequence[str],
    own_x: bool = False,
) -> alt.FacetChart:
    """Put a chart together whose marks stand in rows, `row`, and tell one text, `told`."""
    import altair as alt

    order = list(dict.fromkeys(marks["row"]))
    y = alt.Y("row:N", title=None, sort=order, axis=alt.Axis(grid=True, ticks=False, domain=False))
    return panels(marks, x, y, looks, {"told": tip}, title, words, _ROW * len(order), own_x=own_x)


def _identified(rows: pd.DataFrame, series: pd.Series | str) -> pd.DataFrame:
    """What every mark says of its row."""
    variant = rows["model"] + "  " + rows["task"] + "  " + rows["configuration"]
    return pd.DataFrame(
        {"panel": rows["task"], "series": series, "variant": variant, "doubtful": doubtful(rows)}
    )


def _row_names(rows: pd.DataFrame, several: bool) -> pd.Series:
    return rows["model"] + "  " + rows["configuration"] if several else rows["configuration"]


def _foot(rows: pd.DataFrame, stamp: str | None) -> list[str]:
    """What the rows do not share, what their marks mean, and whose they are."""
    lines = mixed(rows)
    if doubtful(rows).any():
        lines.append("Hollow markers: a validity check of the row is not ok.")
    return [*lines, *([stamp] if stamp else [])]
