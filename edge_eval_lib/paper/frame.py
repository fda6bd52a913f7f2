"""What the pictures of the paper's page share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from edge_eval_lib.paper.analysis import Paper
from edge_eval_lib.results import figures, frame
from edge_eval_lib.results.columns import configuration_name
from edge_eval_lib.results.frame import Legend, Picture, panels

__all__ = ["Picture", "configurations", "finish", "models_of", "panels", "shown", "span"]
STAMP = "Published figures of two Tesla T4 (arXiv 2604.19342); energy from NVML power, "
STAMP += "load estimated"


def finish(
    fig: Figure, title: str, reading: str, alt: str, legend: Legend | None = None
) -> Picture:
    """Set title, reading and legend above a figure, and below it whose figures they are."""
    return frame.finish(fig, title, reading, alt, legend, STAMP)


def shown(draw: Callable[..., Picture], study: Paper, directory: Path | None = None) -> frame.Shown:
    """Draw a picture, wide and for a phone, keep the wide one, and show both.

    Args:
        draw: One of the pictures' functions; its name is the file's.
        study: What is drawn.
        directory: Where it is kept; by default nowhere.
    """
    wide = draw(study)
    if directory is not None:
        wide.keep(directory / draw.__name__)
    return wide.shown(draw(study, phone=True))


def models_of(rows: pd.DataFrame) -> pd.Series:
    """Return `llama-1B` of each row."""
    return rows["family"] + "-" + rows["size"]


def configurations(study: Paper) -> Legend:
    """Colour and marker of each published configuration, as everywhere in the kit."""
    pairs = study.variants[["method", "precision"]].drop_duplicates()
    return {configuration_name(*p): figures.look(*p) for p in pairs.itertuples(index=False)}


def span(values: Sequence[float] | pd.Series) -> str:
    """Return `2.1 to 48`."""
    return f"{figures.number(np.min(values))} to {figures.number(np.max(values))}"
