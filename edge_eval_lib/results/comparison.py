"""Results of several machines or engines side by side: a table, a picture, a text.

python -m edge_eval_lib compare mine.json theirs.json published
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from edge_eval_lib.artefacts.place import read_json
from edge_eval_lib.economics import published
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.errors import UserError
from edge_eval_lib.results import columns, figures
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.results.exchange import ResultRow, make, read, rows_of
from edge_eval_lib.results.readable import format_number, write_table
from edge_eval_lib.results.variants import variants_table
from edge_eval_lib.study import load_study

COMPARED = {
    "throughput_tok_s": "throughput (tok/s)",
    "energy_per_request_j": "energy per request (J)",
    "load_s": "cold start (s)",
    "memory_gb": "memory (GB)",
    "score": "score (0..1)",
}


def open_rows(source: str) -> list[ResultRow]:
    """The rows of a results file, of a study's outputs (by study or directory), or `published`."""
    if source == "published":
        prices = load_price_book().prices("paper")
        variants = variants_table(published.observations(), None, prices, price_set="paper")
        return rows_of(variants.drop(columns="score"))  # by a judge and an NLI model, not ours
    path = Path(source)
    if path.suffix == ".json":
        return read(path).variants
    if (path / "study.json").is_file():
        made_by = read_json(path / "study.json").get("path")
        if made_by is None:
            raise UserError(f"{path}/study.json does not say which study made it.")
        return make(load_study(made_by), path).variants
    return make(load_study(source)).variants


def side_by_side(sources: dict[str, list[ResultRow]]) -> pd.DataFrame:
    """One row a variant and source, with each compared figure and its `_lo` and `_hi`.

    Variants that only one source has are left out where another is shared. `notes` says what the
    rows of one variant do not share.
    """
    own = [*VARIANT, "engine", "host", "gpus", "concurrency", "repetitions", "energy_source",
           "executed_dtype", "instruction_set", "validity"]  # fmt: skip
    rows = []
    for source, given in sources.items():
        for row in given:
            record = {"source": source} | {c: getattr(row, c) for c in own}
            for name in COMPARED:
                lo, hi = row.intervals.get(name, (math.nan, math.nan))
                record[name] = float(row.figures.get(name, math.nan))
                record |= {f"{name}_lo": float(lo), f"{name}_hi": float(hi)}
            rows.append(record)
    table = pd.DataFrame(rows)
    shared = table.groupby(VARIANT)["source"].transform("nunique") > 1
    table = table[shared] if shared.any() else table
    notes = {key: " ".join(columns.mixed(rows)) for key, rows in table.groupby(VARIANT)}
    keys = table[VARIANT].itertuples(index=False, name=None)
    table = table.assign(notes=[notes[key] or None for key in keys])
    first = [*VARIANT, "source"]
    return columns.sort_variants(table[[*first, *(c for c in table if c not in first)]])


def compare(sources: list[str], target: Path) -> str:
    """Check every source, write comparison.csv, .png and .svg to `target`; a text to read.

    One source alone is checked and shown.
    """
    opened = {Path(source).stem: open_rows(source) for source in sources}
    if len(opened) < len(sources):
        raise UserError("Two of the results have one name; rename a file.")
    table = side_by_side(opened)
    write_table(table, target / "comparison.csv")
    draw(table, target / "comparison")
    return f"{_as_text(table)}\n\nWritten to {target}/comparison.csv, .png and .svg."


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the sources side by side: a row a variant, a panel a figure."""
    drawn = {c: label for c, label in COMPARED.items() if table[c].notna().any()}
    table = table.assign(variant=[columns.variant_name(row) for _, row in table.iterrows()])
    variants, sources = (list(dict.fromkeys(table[c])) for c in ("variant", "source"))
    size = (2.6 + 2.3 * len(drawn), 2.0 + 0.3 * len(variants))
    with plt.rc_context(figures.STYLE):
        fig, (axes,) = plt.subplots(1, len(drawn), figsize=size, sharey=True, squeeze=False,
                                    layout="constrained")  # fmt: skip
    legend = {}
    for n, (source, part) in enumerate(table.groupby("source", sort=False)):
        look = (
            figures.COLOURS[n % len(figures.COLOURS)],
            figures.MARKERS[n % len(figures.MARKERS)],
        )
        first = part.iloc[0]
        legend[f"{source}: {first['engine']}, {first['host']}"] = look
        shift = 0.5 * ((n + 0.5) / len(sources) - 0.5)
        part = part.assign(y=part["variant"].map(variants.index) + shift)
        for axis, column in zip(axes, drawn, strict=True):
            figures.mark(axis, part[part[column] > 0], column, "y", look)
    for axis, (column, label) in zip(axes, drawn.items(), strict=True):
        if column != "score":
            figures.plain_log(axis.xaxis)
        axis.set_xlabel(label if column == "score" else f"{label} [log]")
        axis.tick_params(axis="y", length=0)
        axis.margins(x=0.12)
    axes[0].set_yticks(range(len(variants)), variants)
    axes[0].set_ylim(len(variants) - 0.4, -0.6)
    reading = "A marker is a source; bars are its 95 % intervals."
    figures.headline(fig, "Side by side", reading, legend)
    figures.finish(fig, path, rows=table)


def _as_text(table: pd.DataFrame) -> str:
    lines = []
    for source, part in table.groupby("source", sort=False):
        engine, host, energy = (
            ", ".join(sorted(part[c].dropna().unique())) or "not measured"
            for c in ("engine", "host", "energy_source")
        )
        lines.append(
            f"{source}: {engine} on {host}, concurrency {_range(part['concurrency'])}, repetitions "
            f"{_range(part['repetitions'])}, energy by {energy}"
        )
    if table["concurrency"].nunique() > 1 or table["engine"].nunique() > 1:
        lines.append("Engine or concurrency differ: throughput and energy compare set-ups too.")
    lines += columns.mixed(table)
    doubtful = table["validity"].map(columns.verdict).isin(columns.DOUBTFUL)
    for source, count in doubtful.groupby(table["source"], sort=False).sum().items():
        if count:
            lines.append(
                f"{source}: {count} of its rows are doubtful by their validity checks (*)."
            )
    variant = [columns.variant_name(row) for _, row in table.iterrows()]
    for name, heading in COMPARED.items():
        if table[name].isna().all():
            lines += ["", f"{heading}: not measured"]
            continue
        cells = [_cell(row, name) for _, row in table.iterrows()]
        rows = table.assign(variant=variant, cell=cells).dropna(subset=[name])
        wide = rows.pivot_table("cell", "variant", "source", aggfunc="first", sort=False)
        wide.index.name = wide.columns.name = None
        lines += ["", heading, wide.fillna("-").to_string()]
    return "\n".join(lines)


def _range(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _cell(row: pd.Series, name: str) -> str:
    digits = 3 if row["repetitions"] > 1 else 2  # no more than one run's scatter leaves
    value, lo, hi = (format_number(row[f"{name}{end}"], digits) for end in ("", "_lo", "_hi"))
    if columns.verdict(row["validity"]) in columns.DOUBTFUL:
        value = f"{value}*"
    return value if np.isnan(row[f"{name}_lo"]) else f"{value} [{lo}, {hi}]"
