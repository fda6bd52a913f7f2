"""The published T4 figures, checked.

    from edge_eval_lib.paper import published
    figures = published.load()

A row that breaks the schema or is a unit mistake is refused with the row and the reason. A row
that only physics doubts stays, and its column `implausible` says what and why.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from edge_eval_lib.economics.published import (
    ADAPTER,
    CARDS,
    MODEL,
    VARIANT,
    Published,
    folder,
)
from edge_eval_lib.errors import UserError
from edge_eval_lib.paper.plausible import refuse_impossible_passes, row_name, with_doubts

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")
    family: Text
    size: Text


class _AdapterRow(_Row):
    task: Literal["rag", "summarization", "dialogue"]
    method: Literal["lora", "qlora"]


class _VariantRow(_AdapterRow):
    precision: Literal["fp16", "int8", "int4"]


class AdaptationRow(_AdapterRow):
    """One fine-tuning."""

    train_examples: Count
    gpus: Annotated[int, Field(ge=1, le=CARDS)]
    adapt_energy_j: Positive
    adapt_power_w: Positive
    adapt_s: Positive
    adapt_peak_memory_gb: Positive | None = None


class CompressionRow(_VariantRow):
    """One merge or one quantisation."""

    operation: Literal["merge", "quantize"]
    compress_energy_j: Positive
    compress_power_w: Positive
    compress_s: Positive


class ServingRow(_VariantRow):
    """One variant that served `requests` prompts."""

    requests: Count
    output_tokens: Count
    load_s: Positive
    serve_s: Positive
    throughput_tok_s: Positive
    ttft_mean_ms: Positive
    ttft_median_ms: Positive
    tpot_mean_ms: Positive
    tpot_median_ms: Positive
    serve_energy_j: Positive
    power_mean_w: Positive
    power_peak_w: Positive
    repetition: Count | None = None


class QualityRow(_VariantRow):
    """One variant's scores over three passes."""

    score_metric: Text
    score_maximum: Positive
    score_mean: NotNegative
    score_median: NotNegative
    score_std: NotNegative
    secondary_metric: Text
    secondary_mean: NotNegative
    secondary_median: NotNegative
    secondary_std: NotNegative
    judge_model: Text | None = None


class ModelRow(_Row):
    """Facts of a model card, and the paper's nominal sizes."""

    paper_name: Text
    parameters: Count
    decode_parameters: Count
    layers: Count
    kv_heads: Count
    head_dim: Count
    nominal_fp16_gb: Positive
    nominal_int8_gb: Positive
    nominal_int4_gb: Positive


class ClaimRow(BaseModel):
    """One statement. `value` is kept as printed: its digits say how exact it is.

    `kind` is `cell` for a number in a table of the paper, `claim` for what is said in words.
    """

    model_config = ConfigDict(extra="forbid")
    claim_id: Text
    source: Text
    statement: Text
    value: Text
    unit: str = ""
    rule: Text
    kind: Literal["cell", "claim"]
    family: str = ""
    size: str = ""


_SCHEMAS: dict[str, tuple[type[BaseModel], list[str]]] = {
    "models": (ModelRow, MODEL),
    "adaptation": (AdaptationRow, ADAPTER),
    "compression": (CompressionRow, [*VARIANT, "operation"]),
    "serving": (ServingRow, [*VARIANT, "repetition"]),
    "quality": (QualityRow, VARIANT),
    "claims": (ClaimRow, ["claim_id"]),
}


def load(directory: str | Path | None = None) -> Published:
    """Read and check the published tables.

    Args:
        directory: Where they lie; by default params/published.

    Returns:
        The tables; adaptation, compression and serving have a column `implausible`.

    Raises:
        UserError: Names file, row and reason, for a missing or unknown column, a value of the
            wrong type or sign, a repeated row, a row without its counterpart, a unit mistake, and
            scores that no three passes have.
    """
    at = Path(directory) if directory else folder()
    return check(**{name: _read(at / f"{name}.csv") for name in _SCHEMAS})


def check(**tables: pd.DataFrame) -> Published:
    """Check the tables (one argument a field of `Published`) as `load` does."""
    checked = {name: _validate(name, tables[name]) for name in _SCHEMAS}
    for name in ("adaptation", "compression", "serving", "quality"):
        _refuse_unknown(checked, name, MODEL, "models")
    _refuse_unknown(checked, "serving", ADAPTER, "adaptation")
    _refuse_unknown(checked, "serving", VARIANT, "quality")
    _refuse_unknown(checked, "quality", VARIANT, "serving")
    beyond = checked["quality"]["score_mean"] > checked["quality"]["score_maximum"]
    for index in checked["quality"].index[beyond]:
        row = checked["quality"].loc[index]
        raise UserError(
            f"{row_name('quality', row, index)}: score_mean {row['score_mean']:g} is above "
            f"score_maximum {row['score_maximum']:g}; give the score on the scale it names."
        )
    refuse_impossible_passes(checked["quality"])
    models = checked["models"].set_index(MODEL)
    for name in ("adaptation", "compression", "serving"):
        checked[name] = with_doubts(name, checked[name], models)
    return Published(**checked)


def tables_of(figures: Published) -> dict[str, pd.DataFrame]:
    """Return the tables as `check` takes them, for an experiment with other figures."""
    return {
        field.name: getattr(figures, field.name).drop(columns="implausible", errors="ignore").copy()
        for field in fields(figures)
    }


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"There is no published table {path}; it is part of the project.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as CSV: {str(error).strip()}.") from error


def _validate(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """The table with checked types; optional columns are there (empty) even when not given."""
    schema, key = _SCHEMAS[name]
    known = schema.model_fields
    missing = [c for c, field in known.items() if field.is_required() and c not in table]
    if missing:
        raise UserError(f"{name}.csv has no column {missing[0]!r}; it needs {', '.join(known)}.")
    unknown = [c for c in table if c not in known]
    if unknown:
        raise UserError(f"{name}.csv has an unknown column {unknown[0]!r}; remove or rename it.")
    optional = {c for c, field in known.items() if not field.is_required()}
    given = [
        {c: v for c, v in row.items() if c not in optional or not (pd.isna(v) or v == "")}
        for row in table.to_dict("records")
    ]
    try:
        rows: list[BaseModel] = TypeAdapter(list[schema]).validate_python(given)  # type: ignore[valid-type]
    except ValidationError as error:
        problem = error.errors()[0]
        index, column = int(problem["loc"][0]), problem["loc"][1]
        reason = problem["msg"].replace("Input should", "it should")
        raise UserError(
            f"{row_name(name, table.iloc[index], index)}: {column} is {problem['input']!r}, "
            f"but {reason[0].lower()}{reason[1:]}."
        ) from None
    checked = pd.DataFrame([row.model_dump() for row in rows], columns=list(known))
    repeated = checked.duplicated(key)
    if repeated.any():
        index = repeated.idxmax()
        raise UserError(
            f"{row_name(name, checked.loc[index], index)}: it appears twice; "
            "each row must appear once."
        )
    return checked


def _refuse_unknown(tables: dict[str, pd.DataFrame], name: str, key: list[str], where: str) -> None:
    """Refuse a row of `name` without its counterpart in the table `where`."""
    known = set(_keys(tables[where], key))
    for index, row in enumerate(_keys(tables[name], key)):
        if row not in known:
            raise UserError(
                f"{row_name(name, tables[name].loc[index], index)}: {where}.csv has no row for "
                f"{' '.join(row)}; add it there or remove it here."
            )


def _keys(table: pd.DataFrame, key: list[str]) -> list[tuple[str, ...]]:
    return [*zip(*(table[column].tolist() for column in key), strict=True)]
