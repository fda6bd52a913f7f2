"""The published T4 figures: read, checked, and turned into observations.

    from edge_eval_lib import published
    figures = published.load()

`observations(figures)` has the shape of a live study's, so that the same tables are made of both.
A row that breaks the schema or is a unit mistake is refused with the row and the reason. A row
that only physics doubts stays, and its column `implausible` says what and why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_eval_lib.economics.memory import kv_cache_bytes_per_token
from edge_eval_lib.economics.published import (
    ADAPTER,
    CARDS,
    MODEL,
    VARIANT,
    Published,
    folder,
    requests_in_flight,
)
from edge_eval_lib.errors import UserError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]

# NVIDIA Tesla T4 datasheet: board limit, memory bandwidth, fp16 tensor cores.
T4_POWER_LIMIT_W = 70.0
T4_BANDWIDTH_BYTES_S = 320e9
T4_FP16_FLOPS = 65e12
# A card may exceed its limit between two control steps; beyond this the reading is doubted.
POWER_TOLERANCE = 1.18
# Least power of a T4 that does anything, slowest credible storage, shortest start of a process
# that uses a GPU: they catch wrong units.
T4_IDLE_W = 10.0
SLOWEST_LOAD_BYTES_S = 50e6
SHORTEST_LOAD_S = 1.0
# An error of unit is a factor of 1,000; anything beyond this factor is one, anything less a doubt.
UNIT_FACTOR = 30.0
ENERGY_TOLERANCE = 0.20
# A median of positive times is at most twice their mean (half of them are no smaller). The lower
# bound is for a long tail of slow requests.
MEDIAN_OVER_MEAN = (0.1, 2.0)
# Figures are printed with six digits. A deviation that is not 0 but smaller than this is what no
# three passes of whole scores over up to 1,000 answers have (sqrt(2) / 3 of a point in 1,000).
PRINTED_DIGITS = 1e-6
LEAST_SCORE_STD = 1e-4
BYTES_PER_WEIGHT = {"fp16": 2.0, "int8": 1.0, "int4": 0.5}


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
    """Read and check the published tables, by default those in params/published.

    Raises UserError, naming file, row and reason, for a missing or unknown column, a value of the
    wrong type or sign, a repeated row, a row without its counterpart, a unit mistake, and scores
    that no three passes have.
    """
    at = Path(directory) if directory else folder()
    return check(**{name: _read(at / f"{name}.csv") for name in _SCHEMAS})


def check(**tables: pd.DataFrame) -> Published:
    """The tables (one argument a field of `Published`), checked as `load` does."""
    checked = {name: _validate(name, tables[name]) for name in _SCHEMAS}
    models = checked["models"].set_index(MODEL)
    for name in ("adaptation", "compression", "serving", "quality"):
        _refuse_unknown(name, checked[name], MODEL, models.index, "models.csv")
    adapters = pd.MultiIndex.from_frame(checked["adaptation"][ADAPTER])
    served = pd.MultiIndex.from_frame(checked["serving"][VARIANT])
    scored = pd.MultiIndex.from_frame(checked["quality"][VARIANT])
    _refuse_unknown("serving", checked["serving"], ADAPTER, adapters, "adaptation.csv")
    _refuse_unknown("serving", checked["serving"], VARIANT, scored, "quality.csv")
    _refuse_unknown("quality", checked["quality"], VARIANT, served, "serving.csv")
    beyond = checked["quality"]["score_mean"] > checked["quality"]["score_maximum"]
    for index in checked["quality"].index[beyond]:
        row = checked["quality"].loc[index]
        raise UserError(
            f"{_where('quality', row, index)}: score_mean {row['score_mean']:g} is above "
            f"score_maximum {row['score_maximum']:g}; give the score on the scale it names."
        )
    _refuse_impossible_passes(checked["quality"])
    for name, doubts in _PHYSICS.items():
        checked[name] = _judge_physics(name, checked[name], doubts(checked[name], models))
    return Published(**checked)


def tables_of(figures: Published) -> dict[str, pd.DataFrame]:
    """The tables as they can be given to `check` again, for an experiment with other figures."""
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
    rows = []
    for index, row in table.iterrows():
        given = {
            c: v
            for c, v in row.items()
            if known[c].is_required() or not (v == "" or v is None or v != v)
        }
        try:
            rows.append(schema.model_validate(given).model_dump())
        except ValidationError as error:
            problem = error.errors()[0]
            reason = problem["msg"].replace("Input should", "it should")
            raise UserError(
                f"{_where(name, row, index)}: {problem['loc'][0]} is {problem['input']!r}, "
                f"but {reason[0].lower()}{reason[1:]}."
            ) from None
    checked = pd.DataFrame(rows, columns=list(known))
    repeated = checked.duplicated(key)
    if repeated.any():
        index = repeated.idxmax()
        raise UserError(
            f"{_where(name, checked.loc[index], index)}: it stands there twice; "
            "each row must appear once."
        )
    return checked


def _where(name: str, row: pd.Series, index: int) -> str:
    """File, line (the header is line 1) and the row's name."""
    parts = [
        str(row[c]) for c in (*VARIANT, "operation", "claim_id") if c in row and row[c] is not None
    ]
    return f"{name}.csv line {int(index) + 2} ({' '.join(parts)})"


def _refuse_unknown(
    name: str, table: pd.DataFrame, key: list[str], known: pd.MultiIndex, where: str
) -> None:
    present = pd.MultiIndex.from_frame(table[key]).isin(known)
    if not present.all():
        index = int(np.argmin(present))
        raise UserError(
            f"{_where(name, table.loc[index], index)}: {where} has no row for "
            f"{' '.join(table.loc[index, key])}; add it there or remove it here."
        )


def _refuse_impossible_passes(quality: pd.DataFrame) -> None:
    """UserError where no three passes within the scale have such a mean, median and deviation."""
    for prefix in ("score", "secondary"):
        passes = _passes(quality, prefix)
        middle = quality[f"{prefix}_median"].to_numpy()
        maximum = quality["score_maximum"].to_numpy()
        std = quality[f"{prefix}_std"].to_numpy()
        # A deviation's last digit moves a pass by up to a thousandth where mean and median agree.
        slack = 1e-3 * maximum
        possible = (
            (passes[:, 0] >= -slack)
            & (passes[:, 2] <= maximum + slack)
            & (np.abs(passes[:, 1] - middle) <= slack)
            & (std**2 - passes.var(axis=1) >= -4 * PRINTED_DIGITS * np.maximum(std, PRINTED_DIGITS))
            & ((std == 0) | (std >= LEAST_SCORE_STD))
        )
        for index in np.flatnonzero(~possible):
            row = quality.loc[index]
            raise UserError(
                f"{_where('quality', row, index)}: no three passes from 0 to "
                f"{row['score_maximum']:g} have {prefix}_mean {row[f'{prefix}_mean']:g}, "
                f"{prefix}_median {row[f'{prefix}_median']:g} and {prefix}_std "
                f"{row[f'{prefix}_std']:g}; check them and their unit."
            )


# --- physics ----------------------------------------------------------------------------------
#
# What the bounds test: mistakes in figures that are brought here, of unit (a factor of 1,000) or of
# a column. They allow all that two T4 could do with any prompts, so that the shipped figures, which
# are possible, raise none of them. Whether the figures are what the paper says they are is another
# question: `claims` and `paper.analysis.code_against_figures` ask it.


@dataclass(frozen=True)
class _Doubt:
    """`ratio` is a figure over its bound; beyond [low, high] it is doubted.

    Beyond `UNIT_FACTOR` in a direction in which it is bounded it is a unit mistake. `explain`
    turns a row into the reason.
    """

    column: str
    ratio: pd.Series
    explain: Callable[[pd.Series], str]
    low: float = 0.0
    high: float = np.inf


def _judge_physics(name: str, table: pd.DataFrame, doubts: list[_Doubt]) -> pd.DataFrame:
    reasons: list[list[str]] = [[] for _ in range(len(table))]
    for doubt in doubts:
        for index in table.index[(doubt.ratio < doubt.low) | (doubt.ratio > doubt.high)]:
            row, ratio = table.loc[index], doubt.ratio[index]
            too_high = ratio > doubt.high * UNIT_FACTOR
            too_low = ratio < doubt.low / UNIT_FACTOR
            if too_high or too_low:
                factor = ratio / (doubt.high if too_high else doubt.low)
                raise UserError(
                    f"{_where(name, row, index)}: {doubt.column} is {row[doubt.column]:g}, "
                    f"{factor:.2g} times what is possible; check its unit."
                )
            reasons[index].append(f"{doubt.column}: {doubt.explain(row)}")
    return table.assign(implausible=["; ".join(r) or None for r in reasons])


def _energy_is_power_times_seconds(
    table: pd.DataFrame, energy: str, power: str, seconds: str
) -> _Doubt:
    return _Doubt(
        energy,
        table[energy] / (table[power] * table[seconds]),
        lambda row: (
            f"{row[energy]:.0f} J, but {row[power]:g} W over {row[seconds]:g} s are "
            f"{row[power] * row[seconds]:.0f} J"
        ),
        low=1 - ENERGY_TOLERANCE,
        high=1 + ENERGY_TOLERANCE,
    )


def _power_within(table: pd.DataFrame, power: str, cards: pd.Series | int) -> _Doubt:
    limit = cards * T4_POWER_LIMIT_W * POWER_TOLERANCE
    # One doubt for both bounds: idle power below, the cards' limit above.
    low = T4_IDLE_W / (CARDS * T4_POWER_LIMIT_W * POWER_TOLERANCE)
    return _Doubt(
        power,
        table[power] / limit,
        lambda row: (
            f"{row[power]:g} W is outside what {int(row.get('gpus', CARDS))} T4 can draw "
            f"({T4_IDLE_W:g} W idle, {T4_POWER_LIMIT_W:g} W each at the limit)"
        ),
        low=low,
        high=1.0,
    )


def _adaptation_doubts(table: pd.DataFrame, models: pd.DataFrame) -> list[_Doubt]:
    return [
        _energy_is_power_times_seconds(table, "adapt_energy_j", "adapt_power_w", "adapt_s"),
        _power_within(table, "adapt_power_w", table["gpus"]),
    ]


def _compression_doubts(table: pd.DataFrame, models: pd.DataFrame) -> list[_Doubt]:
    return [
        _energy_is_power_times_seconds(
            table, "compress_energy_j", "compress_power_w", "compress_s"
        ),
        _power_within(table, "compress_power_w", CARDS),
    ]


def _serving_doubts(table: pd.DataFrame, models: pd.DataFrame) -> list[_Doubt]:
    bound = decode_bound_tok_s(table, models)
    in_flight = requests_in_flight(table)
    weights = _weight_bytes(table, models, "parameters")
    return [
        _energy_is_power_times_seconds(table, "serve_energy_j", "power_mean_w", "serve_s"),
        _power_within(table, "power_mean_w", CARDS),
        _power_within(table, "power_peak_w", CARDS),
        _Doubt(
            "power_mean_w",
            table["power_mean_w"] / table["power_peak_w"],
            lambda row: f"mean {row['power_mean_w']:g} W above peak {row['power_peak_w']:g} W",
            high=1.0,
        ),
        _Doubt(
            "throughput_tok_s",
            table["throughput_tok_s"] * table["serve_s"] / table["output_tokens"],
            lambda row: (
                f"{row['throughput_tok_s']:g} tok/s over {row['serve_s']:g} s are not "
                f"{row['output_tokens']} tokens"
            ),
            low=0.95,
            high=1.05,
        ),
        _Doubt(
            "tpot_mean_ms",
            in_flight / table["requests"],
            lambda row: (
                f"{row['throughput_tok_s']:g} tok/s at {row['tpot_mean_ms']:g} ms a token need "
                f"{row['throughput_tok_s'] * row['tpot_mean_ms'] / 1e3:.2g} requests in flight "
                f"of {row['requests']}"
            ),
            low=1 / float(table["requests"].max()),
            high=1.0,
        ),
        _Doubt(
            "throughput_tok_s",
            table["throughput_tok_s"] / bound,
            lambda row: (
                f"{row['throughput_tok_s']:g} tok/s is above the {bound[row.name]:.0f} tok/s that "
                f"two T4 can reach with {in_flight[row.name]:.0f} requests in flight"
            ),
            high=1.0,
        ),
        _Doubt(
            "ttft_mean_ms",
            table["ttft_mean_ms"] / (table["serve_s"] * 1e3),
            lambda row: (
                f"{row['ttft_mean_ms']:g} ms to the first token in a window of {row['serve_s']:g} s"
            ),
            high=1 / UNIT_FACTOR,
        ),
        _Doubt(
            "ttft_mean_ms",
            table["ttft_mean_ms"]
            / (1e3 * _weight_bytes(table, models) / (CARDS * T4_BANDWIDTH_BYTES_S)),
            lambda row: (
                f"{row['ttft_mean_ms']:g} ms is less than two T4 need to read the weights once"
            ),
            low=1.0,
        ),
        *(
            _Doubt(
                f"{time}_median_ms",
                table[f"{time}_median_ms"] / table[f"{time}_mean_ms"],
                lambda row, time=time: (
                    f"median {row[f'{time}_median_ms']:g} ms beside a mean of "
                    f"{row[f'{time}_mean_ms']:g} ms"
                ),
                *MEDIAN_OVER_MEAN,
            )
            for time in ("ttft", "tpot")
        ),
        _Doubt(
            "load_s",
            table["load_s"] / (weights / SLOWEST_LOAD_BYTES_S),
            lambda row: f"{row['load_s']:g} s to load {weights[row.name] / 1e9:.1f} GB of weights",
            high=1.0,
        ),
        _Doubt(
            "load_s",
            table["load_s"] / SHORTEST_LOAD_S,
            lambda row: f"{row['load_s']:g} s is less than a process needs to start on a GPU",
            low=1.0,
        ),
    ]


_PHYSICS: dict[str, Callable[[pd.DataFrame, pd.DataFrame], list[_Doubt]]] = {
    "adaptation": _adaptation_doubts,
    "compression": _compression_doubts,
    "serving": _serving_doubts,
}


def _of_models(table: pd.DataFrame, models: pd.DataFrame, column: str) -> pd.Series:
    return pd.Series(
        models[column].reindex(pd.MultiIndex.from_frame(table[MODEL])).to_numpy(),
        index=table.index,
    )


def _weight_bytes(
    table: pd.DataFrame, models: pd.DataFrame, parameters: str = "decode_parameters"
) -> pd.Series:
    return _of_models(table, models, parameters) * table["precision"].map(BYTES_PER_WEIGHT)


def kv_bytes_per_token(table: pd.DataFrame, models: pd.DataFrame) -> pd.Series:
    """Key-value cache a token of each row's model, bytes, at fp16."""
    return kv_cache_bytes_per_token(
        *(_of_models(table, models, column) for column in ("layers", "kv_heads", "head_dim"))
    )


def decode_bound_tok_s(
    serving: pd.DataFrame, models: pd.DataFrame, input_tokens: float = 0.0
) -> pd.Series:
    """The most tokens per second that two T4 decode with the row's requests in flight.

    A decode step reads the weights and every request's cache once (two cards' bandwidth) and
    computes two operations a weight and request (two cards' fp16 tensor cores). The cache holds
    `input_tokens` and, on average, half of the output; 0 input tokens make it a bound that
    holds whatever the prompts were.
    """
    batch = requests_in_flight(serving)
    context = input_tokens + serving["output_tokens"] / serving["requests"] / 2
    read = _weight_bytes(serving, models) + batch * context * kv_bytes_per_token(serving, models)
    compute = 2 * _of_models(serving, models, "decode_parameters") * batch
    step_s = np.maximum(read / (CARDS * T4_BANDWIDTH_BYTES_S), compute / (CARDS * T4_FP16_FLOPS))
    return batch / step_s


# --- scores -----------------------------------------------------------------------------------


def pass_scores(quality: pd.DataFrame) -> pd.DataFrame:
    """The three passes behind each mean, median and standard deviation, 0..1; a row a variant.

    Three numbers determine three: with median m, mean a and population variance v, the other two
    have the sum 3a - m and the sum of squares 3(v + a^2) - m^2. Columns pass_1 <= ... <= pass_3.
    """
    scaled = _passes(quality, "score") / quality[["score_maximum"]].to_numpy()
    return quality[VARIANT].join(
        pd.DataFrame(scaled, columns=["pass_1", "pass_2", "pass_3"], index=quality.index)
    )


def _passes(quality: pd.DataFrame, prefix: str) -> np.ndarray:
    """Three sorted passes a row, in the score's own unit; `pass_scores` says how."""
    mean, median = quality[f"{prefix}_mean"], quality[f"{prefix}_median"]
    total = 3 * mean - median
    squares = 3 * (quality[f"{prefix}_std"] ** 2 + mean**2) - median**2
    # Printed with six digits, equal passes may give a difference just below zero.
    half = np.sqrt(np.maximum(2 * squares - total**2, 0.0)) / 2
    return np.sort(np.column_stack([total / 2 - half, median, total / 2 + half]), axis=1)
