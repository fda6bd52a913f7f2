"""Two results side by side: ratios with their intervals, and what keeps them from being compared.

    python -m edge_eval_lib compare outputs/one outputs/two

A side is a study that was run here (by name), a directory of outputs, a results file, or
`published`. What both have is set against each other; another model each is, where each has one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from edge_eval_lib.artefacts.completion import read_raw
from edge_eval_lib.artefacts.place import read_json
from edge_eval_lib.economics import published
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.errors import UserError
from edge_eval_lib.results import columns, figures
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.results.differences import Difference, of_rows, of_settings
from edge_eval_lib.results.drawn import Drawn
from edge_eval_lib.results.exchange import ResultRow, read, rows_of
from edge_eval_lib.results.readable import bounded, format_number, write_table
from edge_eval_lib.results.variants import variants_table
from edge_eval_lib.study import PUBLISHED, load_study
from edge_eval_lib.uncertainty import (
    Interval,
    Summary,
    paired_ratio_interval,
    ratio_interval,
    ratio_of_means,
)

COMPARED = {
    "throughput_tok_s": "throughput (tok/s)",
    "energy_per_request_j": "energy per request (J)",
    "load_s": "cold start (s)",
    "memory_gb": "memory (GB)",
    "score": "score (0..1)",
}
MODEL = ["family", "size"]
PAIRED, OVER_PROMPTS, OVER_RUNS = "prompts, paired", "prompts", "runs"


@dataclass(frozen=True)
class Side:
    """One of two results: its rows, its study's settings, and each prompt's score where known."""

    name: str
    rows: list[ResultRow]
    settings: dict[str, Any] | None = None
    scores: pd.DataFrame | None = None


def open_side(source: str) -> Side:
    """Open a results file, a study's outputs (by study or directory), or `published`."""
    if source == PUBLISHED:
        prices = load_price_book().prices("paper")
        variants = variants_table(published.observations(), None, prices, price_set="paper")
        # Its scores are by a judge and an NLI model, not ours.
        return Side(source, rows_of(variants.drop(columns="score")))
    path = Path(source)
    if path.suffix == ".json":
        file = read(path)
        return Side(path.stem, file.variants, file.settings)
    if (path / "study.json").is_file():
        made_by = read_json(path / "study.json")
        return _of_outputs(path, path.resolve().name, made_by.get("path"), made_by)
    study = load_study(source)
    return _of_outputs(study.directory, study.name, str(study.path), {})


def _of_outputs(directory: Path, name: str, made_by: str | None, recorded: dict[str, Any]) -> Side:
    table = directory / "tables" / "variants.csv"
    if not table.is_file():
        raise UserError(f"There is no {table}; run `make report` of that study first.")
    settings = None
    if made_by and Path(made_by).is_file():  # outputs may come from another machine
        study = load_study(made_by)
        if recorded.get("measured_hash") in (None, study.with_repetitions(1).measured_hash):
            settings = study.model_dump()
    notebook = directory / "runs" / "score" / "score.ipynb"
    kept = notebook.with_suffix(".answers.parquet").is_file()
    scores = read_raw(notebook, "answers") if kept else None
    return Side(name, rows_of(pd.read_csv(table, float_precision="round_trip")), settings, scores)


# --- the table ----------------------------------------------------------------------------------


def side_by_side(a: Side, b: Side, everything: bool = False) -> pd.DataFrame:
    """Set two results against each other: a row a variant and figure.

    Args:
        a: One.
        b: The other.
        everything: Whether variants and figures that one alone has are there too.

    Returns:
        Columns: those of a variant, figure, a and b with `_lo` and `_hi`, ratio (b / a) with both,
        observed (what the ratio's interval stands on), not_comparable (why it is no ratio of like
        with like; empty where nothing is known to differ).

    Raises:
        UserError: They share no variant, and `everything` is not asked for.
    """
    by = _shared_by(a, b)
    of_a, of_b = ({_key(row, by): row for row in side.rows} for side in (a, b))
    shared = [key for key in of_a if key in of_b]
    if not shared and not everything:
        raise UserError(
            f"{a.name} and {b.name} share no variant: {_has(a)}; {_has(b)}. ALL=1 (--all) lists "
            "both."
        )
    keys = [*of_a, *(key for key in of_b if key not in of_a)] if everything else shared
    settings = of_settings(a.settings, b.settings)
    rows = []
    for key in keys:
        one, other = of_a.get(key), of_b.get(key)
        differences = [*settings, *(of_rows(one, other) if one and other else [])]
        for figure in COMPARED:
            known = [row is not None and figure in row.figures for row in (one, other)]
            if all(known) or (everything and any(known)):
                rows.append(_row(one, other, figure, differences, (a, b)))
    table = pd.DataFrame(rows)
    return columns.sort_variants(table) if len(table) else table


def _shared_by(a: Side, b: Side) -> list[str]:
    """Return what variants are matched by: all of it, or but the model where each has one."""
    models = [{(row.family, row.size) for row in side.rows} for side in (a, b)]
    if models[0].isdisjoint(models[1]) and len(models[0]) == len(models[1]) == 1:
        return [c for c in VARIANT if c not in MODEL]
    return VARIANT


def _key(row: ResultRow, by: list[str]) -> tuple[str, ...]:
    return tuple(getattr(row, name) for name in by)


def _has(side: Side) -> str:
    """Say which models and tasks a side has."""
    models = dict.fromkeys(f"{row.family}-{row.size}" for row in side.rows)
    tasks = dict.fromkeys(row.task for row in side.rows)
    return f"{side.name} has {', '.join(models)} on {', '.join(tasks)}"


def _row(
    one: ResultRow | None,
    other: ResultRow | None,
    figure: str,
    differences: list[Difference],
    sides: tuple[Side, Side],
) -> dict[str, Any]:
    named = one or other
    assert named is not None
    row: dict[str, Any] = {name: getattr(named, name) for name in VARIANT} | {"figure": figure}
    for letter, given in (("a", one), ("b", other)):
        value, lo, hi = _figure(given, figure)
        row |= {letter: value, f"{letter}_lo": lo, f"{letter}_hi": hi}
    ratio, observed = (math.nan, math.nan, math.nan), None
    if one and other:
        ratio, observed = _ratio(one, other, figure, sides)
    row |= dict(zip(("ratio", "ratio_lo", "ratio_hi"), ratio, strict=True))
    reasons = [d.sentence for d in differences if figure in d.figures] if one and other else []
    return row | {"observed": observed, "not_comparable": "; ".join(dict.fromkeys(reasons)) or None}


def _figure(row: ResultRow | None, figure: str) -> Interval:
    if row is None or figure not in row.figures:
        return math.nan, math.nan, math.nan
    lo, hi = row.intervals.get(figure, (math.nan, math.nan))
    return float(row.figures[figure]), float(lo), float(hi)


def _ratio(
    one: ResultRow, other: ResultRow, figure: str, sides: tuple[Side, Side]
) -> tuple[Interval, str | None]:
    """Return b / a with its interval, and what that stands on: runs, or prompts."""
    if figure == "score":
        scores = [_of_prompts(side, row) for side, row in zip(sides, (one, other), strict=True)]
        if scores[0] is not None and scores[1] is not None:
            return _score_ratio(scores[0], scores[1])
    a, b = _figure(one, figure), _figure(other, figure)
    if not a[0] or math.isnan(a[0] + b[0]):
        return (math.nan, math.nan, math.nan), None
    if figure == "score":
        counts = [int(float(row.figures.get("scored_prompts", 1))) for row in (one, other)]
    else:
        counts = [one.repetitions, other.repetitions]
    of_a, of_b = (Summary.of_interval(*of, count) for of, count in zip((a, b), counts, strict=True))
    ratio = ratio_of_means(of_b, of_a)
    observed = OVER_PROMPTS if figure == "score" else OVER_RUNS
    return ratio, None if math.isnan(ratio[1]) else observed


def _of_prompts(side: Side, row: ResultRow) -> pd.DataFrame | None:
    """Return each prompt's score, the mean over repetitions, and its gold answer."""
    if side.scores is None:
        return None
    its = side.scores[(side.scores[VARIANT] == [getattr(row, c) for c in VARIANT]).all(axis=1)]
    its = its.reindex(columns=["prompt_id", "score", "reference"]).dropna(subset=["score"])
    scores = its.groupby("prompt_id").agg({"score": "mean", "reference": "first"})
    return scores if len(scores) else None


def _score_ratio(a: pd.DataFrame, b: pd.DataFrame) -> tuple[Interval, str | None]:
    if not a["score"].mean():
        return (math.nan, math.nan, math.nan), None
    same = a.index.equals(b.index) and (a["reference"] == b["reference"]).all()  # None is not
    interval = paired_ratio_interval if same else ratio_interval
    ratio = interval(b["score"].to_numpy(), a["score"].to_numpy())
    return ratio, (PAIRED if same else OVER_PROMPTS) if not math.isnan(ratio[1]) else None


# --- to read --------------------------------------------------------------------------------------


def compare(one: str, other: str, target: Path, everything: bool = False) -> str:
    """Compare two results; writes comparison.csv, .png and .svg to `target`.

    Args:
        one: A, that b is divided by: as `open_side` takes it.
        other: B.
        target: The directory.
        everything: Whether what one alone has is listed too.

    Returns:
        The comparison as text for a terminal.

    Raises:
        UserError: One is missing or damaged, both are one, or they share no variant.
    """
    if not (one and other):
        raise UserError(
            "Say which two: make compare A=outputs/one B=outputs/two (studies by name or "
            "directory, results files, or published)."
        )
    if one == other or Path(one).resolve() == Path(other).resolve():
        raise UserError(f"A and B are the same, {one}: there is nothing to compare.")
    a, b = open_side(one), open_side(other)
    table = side_by_side(a, b, everything)
    write_table(table, target / "comparison.csv")
    drawn = table[(table["ratio"] > 0) & np.isfinite(table["ratio"])]
    files = "comparison.csv"
    if len(drawn):
        draw(drawn, a.name, b.name, target / "comparison")
        files += ", .png and .svg"
    return f"{_as_text(table, a, b)}\n\nWritten to {target}/{files}."


def draw(table: pd.DataFrame, a: str, b: str, path: Path) -> Drawn:
    """Draw the ratios: a row a variant, a panel a figure, a line where both are alike."""
    drawn = [figure for figure in COMPARED if (table["figure"] == figure).any()]
    names = [columns.variant_name(row) for _, row in table.iterrows()]
    table = table.assign(variant=figures.short_names(names))
    variants = list(dict.fromkeys(table["variant"]))
    size = (2.6 + 2.2 * len(drawn), 2.2 + 0.3 * len(variants))
    with plt.rc_context(figures.STYLE):
        fig, (axes,) = plt.subplots(
            1, len(drawn), figsize=size, sharey=True, squeeze=False, layout="constrained"
        )
        for axis, figure in zip(axes, drawn, strict=True):
            part = table[table["figure"] == figure]
            part = part.assign(y=part["variant"].map(variants.index))
            axis.axvline(1.0, color="#888888", lw=1, zorder=1)
            for hollow, rows in part.groupby(part["not_comparable"].notna()):
                rows = rows.assign(validity="warning: not alike" if hollow else "ok")
                figures.mark(axis, rows, "ratio", "y", (figures.COLOURS[0], "o"))
            _ratio_scale(axis, part)
            axis.set_xlabel(f"{COMPARED[figure].partition(' (')[0]} [ratio, log]")
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(variants)), variants)
        axes[0].set_ylim(len(variants) - 0.4, -0.6)
        reading = (
            "B divided by A. Bars are 95 % intervals, where there is more than one observation."
        )
        title = f"B, {b}, against A, {a}" if a != b else f"B against A, both {a}"
        figures.headline(fig, title, reading)
        cautions = _cautions(table)
        if cautions:
            cautions = ["Hollow markers are not of like with like:", *cautions]
        alt = f"{title}, B divided by A: {_in_words(table)}."
        return figures.finish(fig, path, cautions=cautions, alt=alt)


def _in_words(table: pd.DataFrame) -> str:
    """Say the ratios of each figure by their median and their ends."""
    each = table.groupby("figure")["ratio"]
    return "; ".join(
        f"{heading.partition(' (')[0]} {_spread(each.get_group(figure))}"
        for figure, heading in COMPARED.items()
        if figure in each.groups
    )


def _ratio_scale(axis: Axes, rows: pd.DataFrame) -> None:
    """Set a logarithmic scale on which ratios of one another's inverse lie equally far from 1."""
    ends = rows[["ratio", "ratio_lo", "ratio_hi"]].to_numpy(float)
    ends = ends[np.isfinite(ends) & (ends > 0)]
    low, high = min(0.75, ends.min() / 1.15), max(1.33, ends.max() * 1.15)
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    fine = (0.2, 0.5, 1.0, 2.0, 5.0) if high / low > 4 else (0.5, 0.8, 1.0, 1.25, 2.0)
    steps = (0.01, 0.1, 1.0, 10.0, 100.0) if high / low > 40 else fine
    axis.set_xticks([step for step in steps if low <= step <= high], minor=False)
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter(lambda value, _: figures.number(value))


def _cautions(table: pd.DataFrame) -> list[str]:
    """Say what differs, once each, and which figures it touches."""
    reasons = table.assign(reason=table["not_comparable"].str.split("; ")).explode("reason")
    touched = reasons.dropna(subset=["reason"]).groupby("reason", sort=False)["figure"]
    return [
        f"{reason}: {', '.join(COMPARED[f].partition(' (')[0] for f in COMPARED if f in set(of))}"
        for reason, of in touched
    ]


def _as_text(table: pd.DataFrame, a: Side, b: Side) -> str:
    lines = [f"A: {_described(a)}", f"B: {_described(b)}"]
    if cautions := _cautions(table):
        lines += ["", "Not like with like (*):", *(f"  - {text}" for text in cautions)]
    variants = [columns.variant_name(row) for _, row in table.iterrows()]
    for figure, heading in COMPARED.items():
        own = table["figure"] == figure
        rows = table[own].assign(
            variant=[v for v, is_own in zip(variants, own, strict=True) if is_own]
        )
        if rows.empty:
            lines += ["", f"{heading}: not in both"]
            continue
        shown = pd.DataFrame(
            {
                "variant": rows["variant"],
                "A": [_cell(row, "a") for _, row in rows.iterrows()],
                "B": [_cell(row, "b") for _, row in rows.iterrows()],
                "B / A": [
                    _cell(row, "ratio") + ("*" if row["not_comparable"] else "")
                    for _, row in rows.iterrows()
                ],
            }
        )
        align = ["left", "right", "right", "right"]
        text = shown.to_markdown(
            index=False, tablefmt="simple", colalign=align, disable_numparse=True
        )
        stands = " and ".join(dict.fromkeys(rows["observed"].dropna()))
        basis = f"; intervals of the ratio over {stands}" if stands else "; one observation each"
        ratios = rows["ratio"].dropna()
        if len(ratios):
            heading += f": B / A {_spread(ratios)}{basis}"
        lines += ["", heading, text]
    return "\n".join(lines)


def _spread(ratios: pd.Series) -> str:
    middle, least, most = (format_number(v, 2) for v in ratios.quantile([0.5, 0, 1]))
    return f"{middle} as the median of {len(ratios)}, {least} to {most}"


def _described(side: Side) -> str:
    """Say what a side is: engine, host, concurrency, repetitions, where its energy comes from."""
    rows = pd.DataFrame([{c: getattr(row, c) for c in _DESCRIBED} for row in side.rows])
    engine, host, energy = (
        ", ".join(sorted(rows[c].dropna().unique())) or "not known"
        for c in ("engine", "host", "energy_source")
    )
    counts = [f"{c} {_range(rows[c])}" for c in ("concurrency", "repetitions")]
    doubtful = rows["validity"].map(columns.verdict).isin(columns.DOUBTFUL).sum()
    doubts = (
        f"; {doubtful} of its {len(rows)} rows doubtful by a validity check" if doubtful else ""
    )
    return f"{side.name}: {engine} on {host}, {', '.join(counts)}, energy by {energy}{doubts}"


_DESCRIBED = ("engine", "host", "energy_source", "concurrency", "repetitions", "validity")


def _range(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _cell(row: pd.Series, name: str) -> str:
    known = not math.isnan(row[f"{name}_lo"])
    return bounded(row, name, 3 if known else 2)  # no more than one run's scatter leaves
