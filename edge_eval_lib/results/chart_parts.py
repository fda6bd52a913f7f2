"""Parts of charts: marks with intervals, what they tell, panels, series that a page hides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from edge_eval_lib.results.columns import DOUBTFUL, verdict

if TYPE_CHECKING:
    import altair as alt

Look = tuple[str, str]  # colour and matplotlib's marker

_SHAPES = {  # in a square from -1 to 1
    "o": "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",
    "s": "M-1,-1L1,-1L1,1L-1,1Z",
    "D": "M0,-1L1,0L0,1L-1,0Z",
    "^": "M0,-.87L1,.87L-1,.87Z",
    "v": "M0,.87L-1,-.87L1,-.87Z",
    "<": "M-.87,0L.87,-1L.87,1Z",
    ">": "M.87,0L-.87,-1L-.87,1Z",
    "P": "M-1,-.4L-.4,-.4L-.4,-1L.4,-1L.4,-.4L1,-.4L1,.4L.4,.4L.4,1L-.4,1L-.4,.4L-1,.4Z",
    "X": "M-1,-.5L-.5,-1L0,-.5L.5,-1L1,-.5L.5,0L1,.5L.5,1L0,.5L-.5,1L-1,.5L-.5,0Z",
    "h": "M0,-1L.87,-.5L.87,.5L0,1L-.87,.5L-.87,-.5Z",
    "*": "M0,-1L.25,-.3L1,-.3L.4,.12L.6,.85L0,.42L-.6,.85L-.4,.12L-1,-.3L-.25,-.3Z",
}  # fmt: skip
HIDDEN = "hidden"  # the signal that names the series that a reader took away
_PALE = 0.03  # their opacity: their place stays
SIZE = 75  # of a mark, square pixels
GREY = "#aaaaaa"


def with_bounds(rows: pd.DataFrame, column: str, name: str | None = None) -> pd.DataFrame:
    """A column with its interval, `_lo`, `_hi`, and the range of an estimate, `_least`, `_most`.

    `name` stands for the column in what is returned.
    """
    stem = column.removesuffix("_j")
    ranges = (
        (f"{stem}_lo_j", f"{stem}_hi_j")
        if stem != column
        else (f"{column}_estimate_lo", f"{column}_estimate_hi")
    )
    ends = {"_lo": f"{column}_lo", "_hi": f"{column}_hi", "_least": ranges[0], "_most": ranges[1]}
    found = {end: rows[source] for end, source in ends.items() if source in rows}
    name = name or column
    return pd.DataFrame({name: rows[column]} | {f"{name}{end}": v for end, v in found.items()})


def doubtful(rows: pd.DataFrame) -> pd.Series:
    """Whether the validity of a row is doubtful; its mark is then hollow."""
    if "validity" not in rows:
        return pd.Series(False, index=rows.index)
    return rows["validity"].map(verdict).isin(DOUBTFUL)


def again(axis: Any, field: str, /, **said: Any) -> Any:
    """The same axis of another field."""
    import altair as alt

    kept = {k: v for k, v in axis._kwds.items() if v is not alt.Undefined and k != "shorthand"}
    return type(axis)(f"{field}:Q", **(kept | said))


def column_of(axis: Any) -> str:
    """`alt.X("ipw:Q")` -> `ipw`."""
    return str(axis.shorthand).partition(":")[0]


def panels(
    marks: pd.DataFrame,
    x: alt.X,
    y: alt.Y,
    looks: Mapping[str, Look],
    tips: Mapping[str, str],
    title: str,
    words: Sequence[str],
    height: int,
    below: Sequence[alt.Chart] = (),
    own_x: bool = False,
    joined: bool = False,
    columns: int | None = None,
    told_as: str = "variant",
) -> alt.FacetChart:
    """Put a chart together.

    Args:
        marks: A row a mark: `panel`, `series`, `variant`, `doubtful`, the columns of both axes
            with their bounds, and of `tips`; `size` where marks differ by it.
        x: The axis to the right.
        y: The axis upwards.
        looks: Each series with its colour and marker.
        tips: Columns of text that a mark tells, with their names.
        title: The question that it answers.
        words: How to read it, and sentences for below it.
        height: Of a panel, pixels.
        below: Layers that stand below the marks.
        own_x: Whether each panel has its own scale to the right.
        joined: Whether a line goes through the marks of a series, in the order of `place`.
        columns: Of panels beside each other; by default all of them.
        told_as: What the `variant` of a mark is called.
    """
    import altair as alt

    x, y = _plain_log(x, marks, own_x), _plain_log(y, marks)
    colours = alt.Scale(domain=list(looks), range=[colour for colour, _ in looks.values()])
    shapes = alt.Scale(domain=list(looks), range=[_SHAPES[marker] for _, marker in looks.values()])
    stroke = alt.Stroke("series:N", title=None, scale=colours)
    told = [alt.Tooltip("variant:N", title=told_as), alt.Tooltip("series:N", title="mark")]
    if marks["variant"].dropna().str.endswith(tuple(looks)).all():  # which says the series too
        del told[1]
    told += [alt.Tooltip(f"{column}:N", title=name) for column, name in tips.items()]

    hidden = alt.param(name=HIDDEN, value=[])
    seen = f"indexof({HIDDEN}, datum.series) < 0"
    visible = alt.condition(seen, alt.value(1), alt.value(_PALE))
    layers = list(below)
    if joined:
        line = alt.Chart().transform_filter("isValid(datum.series)").mark_line(strokeWidth=1.6)
        layers.append(line.encode(x, y, order="place:Q", stroke=stroke, opacity=visible))
    for low, high, width, share in (("_least", "_most", 4, 0.22), ("_lo", "_hi", 1.4, 0.9)):
        for axis, other, second in ((x, y, alt.X2), (y, x, alt.Y2)):
            ends = [f"{column_of(axis)}{end}" for end in (low, high)]
            if set(ends) <= set(marks) and marks[ends].notna().all(axis=1).any():
                layers.append(
                    alt.Chart()
                    .transform_filter(f"isValid(datum['{ends[0]}']) && isValid(datum['{ends[1]}'])")
                    .mark_rule(strokeWidth=width, strokeOpacity=share)
                    .encode(
                        again(axis, ends[0]),
                        second(ends[1]),
                        other,
                        stroke=stroke,
                        opacity=visible,
                        tooltip=told,
                    )
                )
    hollow = alt.condition("datum.doubtful", alt.value(0), alt.value(1))
    sized = {"size": alt.Size("size:Q").scale(None).legend(None)} if "size" in marks else {}
    layers.append(
        alt.Chart()
        .mark_point(size=SIZE, strokeWidth=1.5)
        .encode(
            x,
            y,
            tooltip=told,
            stroke=stroke,
            opacity=visible,
            fillOpacity=hollow,
            fill=alt.Fill("series:N", title=None, scale=colours),
            shape=alt.Shape("series:N", title=None, scale=shapes),
            **sized,
        )
    )
    order = list(dict.fromkeys(marks["panel"]))
    chart = (
        alt.layer(*layers, data=alt.Data(values=_records(marks)))
        .add_params(hidden)
        .properties(height=height)
        .facet(alt.Facet("panel:N", title=None, sort=order), columns=columns or len(order))
        .properties(
            title=alt.Title(title, subtitle=list(words), anchor="start"),
            background="white",
            usermeta={
                "panels": len(order),
                "series": [[name, colour, _SHAPES[mark]] for name, (colour, mark) in looks.items()],
            },
        )
    )
    return chart.resolve_scale(x="independent") if own_x else chart


def _plain_log(axis: Any, marks: pd.DataFrame, own: bool = False) -> Any:
    """A logarithmic axis as wide as its marks, its ticks plain numbers; another as it is.

    Each panel finds its `own` width from its marks.
    """
    import altair as alt

    said = axis.to_dict()
    if said.get("scale", {}).get("type") != "log":
        return axis
    if own:
        scale = alt.Scale(**(said["scale"] | {"nice": False, "padding": 12}))
        plain = alt.Axis(**({"format": ",.6~r", "tickCount": 4} | said.get("axis", {})))
        return again(axis, column_of(axis), axis=plain, scale=scale)
    ends = [f"{column_of(axis)}{end}" for end in ("", "_lo", "_hi", "_least", "_most")]
    known = marks[[c for c in ends if c in marks]].to_numpy(dtype=float)
    known = known[np.isfinite(known) & (known > 0)]
    low, high = said["scale"].get("domain", [known.min() / 1.3, known.max() * 1.3])
    steps = (1, 2, 5) if high / low < 100 else (1,)
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    kept = {"format": ",.6~r"} | ({"values": ticks} if len(ticks) > 1 else {"tickCount": 4})
    scale = alt.Scale(**(said["scale"] | {"domain": [low, high], "nice": False}))
    return again(axis, column_of(axis), axis=alt.Axis(**(kept | said.get("axis", {}))), scale=scale)


def _records(marks: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows without what is unknown; numbers as exact as a screen shows."""
    records = []
    for row in marks.to_dict("records"):
        kept = {}
        for name, value in row.items():
            if isinstance(value, (float, np.floating)):
                if np.isfinite(value):
                    kept[name] = float(f"{value:.6g}")
            elif value is not None and value is not False:
                kept[name] = value
        records.append(kept)
    return records
