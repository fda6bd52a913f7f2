"""What the figures can be: the physics of two T4, and the arithmetic of three scoring passes.

The bounds test for mistakes in figures that are brought here, of unit (a factor of 1,000) or of a
column. They allow all that two T4 could do with any prompts, so that the shipped figures, which
are possible, raise none of them. Whether the figures are what the paper says they are is another
question: `claims` and `analysis.code_against_figures` ask it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from edge_eval_lib.economics.memory import kv_cache_bytes_per_token
from edge_eval_lib.economics.published import CARDS, VARIANT, for_rows, requests_in_flight
from edge_eval_lib.errors import UserError
from edge_eval_lib.study.stanzas import BYTES_PER_WEIGHT

# NVIDIA Tesla T4 datasheet: board limit, memory bandwidth, fp16 on tensor cores, and fp32, in
# which bf16 is emulated.
T4_POWER_LIMIT_W = 70.0
T4_BANDWIDTH_BYTES_S = 320e9
T4_FP16_FLOPS = 65e12
T4_FP32_FLOPS = 8.1e12
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


def row_name(table: str, row: pd.Series, index: int) -> str:
    """Return file, line (the header is line 1) and the row's name."""
    names = [*VARIANT, "operation", "claim_id"]
    parts = [str(row[c]) for c in names if c in row and row[c] is not None]
    return f"{table}.csv line {int(index) + 2} ({' '.join(parts)})"


# --- physics ----------------------------------------------------------------------------------


def weight_bytes(
    table: pd.DataFrame, models: pd.DataFrame, parameters: str = "decode_parameters"
) -> pd.Series:
    """Return the bytes of each row's weights: those a decode step reads, or all `parameters`."""
    return for_rows(models[parameters], table) * table["precision"].map(BYTES_PER_WEIGHT)


def kv_bytes_per_token(table: pd.DataFrame, models: pd.DataFrame) -> pd.Series:
    """Return the key-value cache a token of each row's model, bytes, at fp16."""
    shape = (for_rows(models[column], table) for column in ("layers", "kv_heads", "head_dim"))
    return kv_cache_bytes_per_token(*shape)


def decode_bound_tok_s(
    serving: pd.DataFrame, models: pd.DataFrame, input_tokens: float = 0.0
) -> pd.Series:
    """Return the most tokens per second that two T4 decode with the row's requests in flight.

    A decode step reads the weights and every request's cache once (two cards' bandwidth) and
    computes two operations a weight and request (two cards' fp16 tensor cores). The cache holds
    `input_tokens` and, on average, half of the output; 0 input tokens make it a bound that
    holds whatever the prompts were.
    """
    batch = requests_in_flight(serving)
    context = input_tokens + serving["output_tokens"] / serving["requests"] / 2
    read = weight_bytes(serving, models) + batch * context * kv_bytes_per_token(serving, models)
    compute = 2 * for_rows(models["decode_parameters"], serving) * batch
    step_s = np.maximum(read / (CARDS * T4_BANDWIDTH_BYTES_S), compute / (CARDS * T4_FP16_FLOPS))
    return batch / step_s


class Doubt(NamedTuple):
    """A figure over its bound: beyond [low, high] it is doubted.

    Beyond `UNIT_FACTOR` in a direction in which it is bounded it is a unit mistake. `reason` is
    formatted with the row of `facts`.
    """

    column: str
    ratio: pd.Series
    reason: str
    facts: pd.DataFrame
    low: float = 0.0
    high: float = np.inf


def with_doubts(name: str, table: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """Return adaptation, compression or serving with a column `implausible`: what, and why.

    Raises:
        UserError: A figure is so far from possible that its unit must be wrong.
    """
    facts = table if "gpus" in table else table.assign(gpus=CARDS)
    if name == "serving":
        doubts = [
            *_energy_and_power(facts, "serve_energy_j", "power_mean_w", "serve_s"),
            *_serving_doubts(facts, models),
        ]
    else:
        what = {"adaptation": "adapt", "compression": "compress"}[name]
        doubts = _energy_and_power(facts, f"{what}_energy_j", f"{what}_power_w", f"{what}_s")
    reasons: list[list[str]] = [[] for _ in range(len(table))]
    for doubt in doubts:
        for index in table.index[(doubt.ratio < doubt.low) | (doubt.ratio > doubt.high)]:
            row, ratio = table.loc[index], doubt.ratio[index]
            if ratio > doubt.high * UNIT_FACTOR or ratio < doubt.low / UNIT_FACTOR:
                factor = ratio / (doubt.high if ratio > doubt.high else doubt.low)
                raise UserError(
                    f"{row_name(name, row, index)}: {doubt.column} is {row[doubt.column]:g}, "
                    f"{factor:.2g} times what is possible; check its unit."
                )
            reasons[index].append(
                f"{doubt.column}: {doubt.reason.format_map(doubt.facts.loc[index])}"
            )
    return table.assign(implausible=["; ".join(r) or None for r in reasons])


def _doubt(
    table: pd.DataFrame,
    column: str,
    over: pd.Series | float,
    reason: str,
    low: float = 0.0,
    high: float = np.inf,
    **facts: pd.Series,
) -> Doubt:
    """Doubt `column` over its bound; `reason` is formatted with the row and its `facts`."""
    return Doubt(column, table[column] / over, reason, table.assign(**facts), low, high)


def _energy_and_power(table: pd.DataFrame, energy: str, power: str, seconds: str) -> list[Doubt]:
    """Energy is power x seconds, and power is within idle and what the row's cards can draw."""
    product = table[power] * table[seconds]
    limit = table["gpus"] * T4_POWER_LIMIT_W * POWER_TOLERANCE
    least = T4_IDLE_W / (CARDS * T4_POWER_LIMIT_W * POWER_TOLERANCE)
    return [
        _doubt(
            table, energy, product,
            f"{{{energy}:.0f}} J, but {{{power}:g}} W over {{{seconds}:g}} s are {{product:.0f}} J",
            1 - ENERGY_TOLERANCE, 1 + ENERGY_TOLERANCE, product=product,
        ),
        *(
            _doubt(
                table, column, limit,
                f"{{{column}:g}} W is outside what {{gpus}} T4 can draw ({T4_IDLE_W:g} W idle, "
                f"{T4_POWER_LIMIT_W:g} W each at the limit)",
                least, 1.0,
            )
            for column in (power, "power_peak_w") if column in table
        ),
    ]  # fmt: skip


def _serving_doubts(table: pd.DataFrame, models: pd.DataFrame) -> list[Doubt]:
    bound = decode_bound_tok_s(table, models)
    in_flight = requests_in_flight(table)
    weights = weight_bytes(table, models, "parameters")
    reading_ms = 1e3 * weight_bytes(table, models) / (CARDS * T4_BANDWIDTH_BYTES_S)
    medians = [
        _doubt(
            table, f"{time}_median_ms", table[f"{time}_mean_ms"],
            f"median {{{time}_median_ms:g}} ms beside a mean of {{{time}_mean_ms:g}} ms",
            *MEDIAN_OVER_MEAN,
        )
        for time in ("ttft", "tpot")
    ]  # fmt: skip
    return [
        _doubt(
            table, "power_mean_w", table["power_peak_w"],
            "mean {power_mean_w:g} W above peak {power_peak_w:g} W", high=1.0,
        ),
        _doubt(
            table, "throughput_tok_s", table["output_tokens"] / table["serve_s"],
            "{throughput_tok_s:g} tok/s over {serve_s:g} s are not {output_tokens} tokens",
            low=0.95, high=1.05,
        ),
        _doubt(
            table, "tpot_mean_ms", 1e3 * table["requests"] / table["throughput_tok_s"],
            "{throughput_tok_s:g} tok/s at {tpot_mean_ms:g} ms a token need {in_flight:.2g} "
            "requests in flight of {requests}",
            low=1 / float(table["requests"].max()), high=1.0, in_flight=in_flight,
        ),
        _doubt(
            table, "throughput_tok_s", bound,
            "{throughput_tok_s:g} tok/s is above the {bound:.0f} tok/s that two T4 can reach with "
            "{in_flight:.0f} requests in flight",
            high=1.0, bound=bound, in_flight=in_flight,
        ),
        _doubt(
            table, "ttft_mean_ms", 1e3 * table["serve_s"],
            "{ttft_mean_ms:g} ms to the first token in a window of {serve_s:g} s",
            high=1 / UNIT_FACTOR,
        ),
        _doubt(
            table, "ttft_mean_ms", reading_ms,
            "{ttft_mean_ms:g} ms is less than two T4 need to read the weights once", low=1.0,
        ),
        *medians,
        _doubt(
            table, "load_s", weights / SLOWEST_LOAD_BYTES_S,
            "{load_s:g} s to load {gigabytes:.1f} GB of weights", high=1.0, gigabytes=weights / 1e9,
        ),
        _doubt(
            table, "load_s", SHORTEST_LOAD_S,
            "{load_s:g} s is less than a process needs to start on a GPU", low=1.0,
        ),
    ]  # fmt: skip


# --- scores -----------------------------------------------------------------------------------


def pass_scores(quality: pd.DataFrame) -> pd.DataFrame:
    """Return the three passes behind each mean, median and deviation, 0..1; a row a variant.

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


def refuse_impossible_passes(quality: pd.DataFrame) -> None:
    """Refuse a mean, median and deviation that no three passes within the scale have.

    Raises:
        UserError: The first such row.
    """
    for prefix in ("score", "secondary"):
        passes = _passes(quality, prefix)
        maximum, std = quality["score_maximum"].to_numpy(), quality[f"{prefix}_std"].to_numpy()
        # A deviation's last digit moves a pass by up to a thousandth where mean and median agree.
        slack = 1e-3 * maximum
        possible = (
            (passes[:, 0] >= -slack)
            & (passes[:, 2] <= maximum + slack)
            & (np.abs(passes[:, 1] - quality[f"{prefix}_median"].to_numpy()) <= slack)
            & (std**2 - passes.var(axis=1) >= -4 * PRINTED_DIGITS * np.maximum(std, PRINTED_DIGITS))
            & ((std == 0) | (std >= LEAST_SCORE_STD))
        )
        for index in np.flatnonzero(~possible):
            row = quality.loc[index]
            raise UserError(
                f"{row_name('quality', row, int(index))}: no three passes from 0 to "
                f"{row['score_maximum']:g} have {prefix}_mean {row[f'{prefix}_mean']:g}, "
                f"{prefix}_median {row[f'{prefix}_median']:g} and {prefix}_std "
                f"{row[f'{prefix}_std']:g}; check them and their unit."
            )
