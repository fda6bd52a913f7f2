"""A study's figures in the formats of other tools.

    python -m edge_eval_lib export embedded --to model-card

All are made of a results file (`results.exchange`), which names no host and no path. What is not
known is left out, and the reason stands in its place.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from edge_eval_lib import redaction
from edge_eval_lib.errors import UserError, nearest
from edge_eval_lib.results import exchange
from edge_eval_lib.results.exports import benchmark_report, lm_eval, model_card
from edge_eval_lib.study import Study

FORMATS = ("lm-eval", "model-card", "report")


def export(
    study: Study, to: str, region: str | None = None, directory: Path | None = None
) -> list[Path]:
    """Write a study's figures in another tool's format, a file a variant.

    Args:
        study: A study whose tables were made.
        to: `lm-eval` (lm-evaluation-harness's results), `model-card` (a section and metadata for
            the hub), or `report` (llm-d's Benchmark Report 0.2.1).
        region: Whose electricity a model card's carbon is of, a code of params/carbon.yaml.
        directory: Where to, by default `export/FORMAT` in the study's outputs.

    Raises:
        UserError: For a format or region that there is not, tables that are missing, and where
            there is nothing to export.
    """
    if to not in FORMATS:
        raise UserError(f"There is no format {to!r} to export to; {nearest(to, FORMATS)}")
    if region is not None and to != "model-card":
        raise UserError(f"A region is of model-card's carbon; {to} has none.")
    results = exchange.make(study)
    if to == "lm-eval":
        harness = study.directory / "tables" / "harness.csv"
        files = lm_eval.files(results, pd.read_csv(harness) if harness.is_file() else None)
    elif to == "model-card":
        files = model_card.files(results, region)
    else:
        files = benchmark_report.files(results)
    directory = directory or study.directory / "export" / to
    paths = []
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(redaction.redact(text), encoding="utf-8")
        paths.append(path)
    return paths
