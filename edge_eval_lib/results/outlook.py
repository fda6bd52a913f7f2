"""What the best option saves, costs over years and emits, and how its tokens came: for notebook 07.

Each function makes a table of a `Choice`, or of a study's raw token times, by the formulas of
economics. Percentages, ms and USD are for people; figures that are not known leave a table empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from edge_eval_lib.economics import carbon, cost, latency
from edge_eval_lib.economics.advise.choice import Choice
from edge_eval_lib.economics.advise.options import API, VARIANT
from edge_eval_lib.results.decision import option_name
from edge_eval_lib.results.readable import Prose, format_number, heading, readable
from edge_eval_lib.units import HOURS_PER_YEAR, JOULES_PER_KWH, SECONDS_PER_DAY

# A reader at leisure, where nothing is asked for: the first token after a second, then five a
# second (Andes, arXiv 2404.16283).
READER_TTFT_S, READER_TOK_S = 1.0, 5.0
# What training reaches of the peak where nobody measured it. ASSUMED: 30 to 50 % is what large runs
# report (LLMCarbon, arXiv 2309.14393); one small card reaches less.
ASSUMED_UTILISATION = 0.3
ENDS = ("", "_lo", "_hi")


WORDS = {
    "concurrency": "at once",
    "USD per mtok before": "USD per million tokens, before",
    "USD per mtok after": "after ",
    "operational g": "operational [g CO2e]",
    "embodied g": "embodied [g CO2e]",
    "total g": "together [g CO2e]",
    "missed [%]": "deadlines missed [%]",
    "experience": "experience [0–1]",
}


def for_people(table: pd.DataFrame, else_say: str, digits: int = 3) -> Prose:
    """Show one of these tables in a notebook, or a sentence where it is empty."""
    if table.empty:
        return Prose(else_say)
    text = readable(table, digits=digits)
    numeric = [pd.api.types.is_numeric_dtype(table[c]) for c in table if heading(c) in text]
    align = ["right" if is_number else "left" for is_number in numeric]
    text = text.map(lambda cell: cell.replace(", never]", ", unbounded]"))
    shown = text.rename(columns=WORDS)
    return Prose(shown.to_markdown(index=False, colalign=align, disable_numparse=True))


def years_for_people(table: pd.DataFrame) -> Prose:
    """Show `over_years`, a row an option and a column a number of years."""
    ends = [table[f"tco_usd{end}"].map(lambda usd: format_number(usd, 2)) for end in ENDS]
    cells = [f"{usd} ({lo} to {hi})" for usd, lo, hi in zip(*ends, strict=True)]
    years = table["years"].map(lambda n: f"{n} year{'s' * (n > 1)} [USD]")
    months = table["pays_after_months"].map(lambda n: format_number(n, 2))
    wide = table.assign(cell=cells, years=years, months=months).pivot_table(
        index=["option", "months"], columns="years", values="cell", aggfunc="first", sort=False
    )
    wide = wide.reset_index().rename(columns={"months": "pays after [months]"})
    wide = wide[[c for c in wide if c != "pays after [months]"] + ["pays after [months]"]]
    align = ["left", *["right"] * (len(wide.columns) - 1)]
    return Prose(wide.to_markdown(index=False, colalign=align, disable_numparse=True))


def token_traces(
    requests: pd.DataFrame,
    ttft_limit_s: float = READER_TTFT_S,
    tpot_limit_s: float = 1 / READER_TOK_S,
) -> pd.DataFrame:
    """Tabulate what readers of measured answers waited for, a row a number of requests at once.

    Args:
        requests: Of `read_requests`.
        ttft_limit_s: When the first token is due.
        tpot_limit_s: When each later one is due after the one before, and a reader's pace.

    Returns:
        concurrency, requests; TTFT's median and 95th percentile with its 95 % interval (unbounded
        where requests are too few); TPOT's median; jitter_ms (standard deviation of an answer's
        intervals, median); worst_interval_ms; in_time_pct (both limits kept in the mean),
        missed_pct (of the deadlines, token by token) and experience (QoE).
    """
    rows = []
    for concurrency, some in requests.groupby("concurrency"):
        times = [np.asarray(tokens, float) for tokens in some["token_times_s"]]
        submitted = some["submitted_s"].to_numpy(float)
        waited = latency.trace_latencies(submitted, times)
        since = [tokens - start for tokens, start in zip(times, submitted, strict=True)]
        limits = (ttft_limit_s, tpot_limit_s)
        missed = [latency.deadline_miss_rate(np.diff(t, prepend=0.0), *limits) for t in since]
        read = [latency.quality_of_experience(t, ttft_limit_s, 1 / tpot_limit_s) for t in since]
        late, lo, hi = latency.quantile_interval(1e3 * waited["ttft_s"], 0.95)
        in_time = latency.attainment(
            1e3 * waited["ttft_s"], 1e3 * waited["tpot_s"].fillna(0), *np.multiply(limits, 1e3)
        )
        rows.append(
            {
                "concurrency": concurrency,
                "requests": len(some),
                "ttft_ms": 1e3 * waited["ttft_s"].median(),
                "ttft_p95_ms": late,
                "ttft_p95_ms_lo": lo,
                "ttft_p95_ms_hi": hi,
                "tpot_ms": 1e3 * waited["tpot_s"].median(),
                "jitter_ms": 1e3 * waited["jitter_s"].median(),
                "worst_interval_ms": 1e3 * waited["worst_interval_s"].max(),
                "in_time_pct": 100 * in_time,
                "missed_pct": 100 * float(np.mean(missed)),
                "experience": float(np.mean(read)),
            }
        )
    return pd.DataFrame(rows)


def read_requests(outputs: Path, variant: str) -> pd.DataFrame:
    """Read the raw token times of a variant's serving runs; empty where there are none."""
    files = sorted((outputs / "runs" / "serve").glob(f"{variant}_r*.requests.parquet"))
    columns = ["concurrency", "submitted_s", "token_times_s"]
    tables = [pd.read_parquet(file, columns=columns) for file in files]
    requests = pd.concat(tables) if tables else pd.DataFrame(columns=columns)
    return requests[requests["token_times_s"].str.len() > 0]  # a failed request has none


def over_years(choice: Choice, years: Sequence[int] = (1, 3, 5)) -> pd.DataFrame:
    """Set the total cost over years side by side, of the best option of each deployment.

    USD of today: what is spent before the first request, and each year's cost discounted. The range
    is of 90 % of the draws: the year's cost, what is spent before and the discount rate vary.

    Returns:
        option, years, tco_usd, tco_usd_lo, tco_usd_hi; pays_after_months against the API, empty
        where that is not an option.
    """
    best = choice.table[~choice.table["deployment"].duplicated()]
    per_year = 365 * choice.inputs.value("requests_per_day")
    rate = choice.inputs.ranges["discount_rate"]
    api = choice.table[choice.table["deployment"] == API]
    rows = []
    for index, option in best.iterrows():
        running = {end: option[f"running_usd_per_request{end}"] for end in ("", "_least", "_most")}
        ranges = {
            "usd_per_year": (per_year * running["_least"], per_year * running["_most"]),
            "fixed_usd": (option["fixed_usd_least"], option["fixed_usd_most"]),
            "discount_rate": (rate.least, rate.most),
        }
        months = np.nan
        if len(api) and option["deployment"] != API:
            months = cost.break_even_months(
                option["fixed_usd"],
                api["running_usd_per_request"].iloc[0],
                running[""],
                per_year / 12,
            )
        for many in years:
            _, lo, hi = cost.over_ranges(cost.tco_usd, ranges, years=many)
            usd = cost.tco_usd(option["fixed_usd"], per_year * running[""], rate.value, many)
            row = {"option_index": index, "option": option_name(option), "years": many}
            row |= {"tco_usd": usd, "tco_usd_lo": min(lo, usd), "tco_usd_hi": max(hi, usd)}
            rows.append(row | {"pays_after_months": months})
    return pd.DataFrame(rows)


def savings(choice: Choice, index: int) -> pd.DataFrame:
    """Say what using, batching and quantising save of a million tokens' price, one at a time.

    The machine at work: capital recovery, its measured power and the people who look after it.
    Everything but what a row changes stays; a row is missing where a study did not measure it.

    Args:
        choice: The choice.
        index: Of an option on a machine of one's own.

    Returns:
        change, before, after (what is set beside each other), usd_per_mtok_before,
        usd_per_mtok_after, saving_pct.
    """
    options, x = choice.options, choice.inputs.value
    row = options.loc[index]
    alike = options[options["deployment"] == row["deployment"]]
    asked = float(choice.table["utilisation"][index])
    people_usd_per_hour = 12 * x("people_hours_per_month") * x("labour_usd_per_hour")
    people_usd_per_hour /= HOURS_PER_YEAR
    capex_usd = 0.0 if choice.inputs.need.at_hand else x("hardware_usd") * x("hardware_factor")

    def usd_per_mtok(option: pd.Series, utilisation: float) -> float:
        around_w = x("host_power_w") if "nvml" in str(option["energy_source"]) else 0.0
        hour = cost.usd_per_hour(
            capex_usd,
            x("discount_rate"),
            x("lifetime_years"),
            (option["power_w"] + around_w) / 1e3,
            x("electricity_usd_per_kwh"),
            x("pue"),
            people_usd_per_hour,
        )
        return cost.usd_per_million_tokens(hour, option["throughput_tok_s"], utilisation)

    full = choice.inputs.need.utilisation
    same = alike[(alike[VARIANT] == row[VARIANT]).all(axis=1)].sort_values("concurrency")
    # The unquantised one that was served at most as many at once as this one.
    whole = alike[(alike[VARIANT[:3]] == row[VARIANT[:3]]).all(axis=1)]
    whole = whole[whole["precision"].eq("fp16") & whole["method"].ne("none")]
    whole = whole.iloc[(whole["concurrency"] - row["concurrency"]).abs().argsort()[:1]]
    changes = [
        ("utilisation", f"{100 * asked:.2g} % of the day", f"{100 * full:.0f} %",
         usd_per_mtok(row, max(asked, 1e-9)), usd_per_mtok(row, full)),
    ]  # fmt: skip
    if len(same) > 1:
        few, many = same.iloc[0], same.iloc[-1]
        changes.append(
            ("batching", f"{few['concurrency']:.0f} at once", f"{many['concurrency']:.0f}",
             usd_per_mtok(few, full), usd_per_mtok(many, full))
        )  # fmt: skip
    if len(whole) and row["precision"] != "fp16":
        changes.append(
            ("quantisation", "FP16", str(row["precision"]).upper(),
             usd_per_mtok(whole.iloc[0], full), usd_per_mtok(row, full))
        )  # fmt: skip
    names = ["change", "before", "after", "usd_per_mtok_before", "usd_per_mtok_after"]
    table = pd.DataFrame(changes, columns=names)
    saved = cost.saving_share(table["usd_per_mtok_before"], table["usd_per_mtok_after"])
    return table.assign(saving_pct=100 * saved)


def carbon_of(
    choice: Choice,
    index: int,
    training_flop: float | None = None,
    peak_flop_s: float | None = None,
    power_limit_w: float | None = None,
) -> pd.DataFrame:
    """Divide an option's carbon by whose it is, as SCI for AI does, and estimate the adaptation.

    Serving is the consumer's, by request, million output tokens and year; adapting and compressing
    the provider's, by 1e15 FLOP of training. Beside the measured adaptation stands what LLMCarbon
    and mlco2 would say of it beforehand: FLOP / (peak x share reached), at the power limit.

    Args:
        choice: The choice.
        index: Of an option on a machine of one's own.
        training_flop: Of the adaptation; without it nothing is said by FLOP, nor beforehand.
        peak_flop_s: Of the cards that adapted together; None where it is not known.
        power_limit_w: Of these cards together.

    Returns:
        boundary, per, operational_g, embodied_g, total_g.
    """
    x, found, row = choice.inputs.value, choice.table.loc[index], choice.options.loc[index]
    intensity, years = x("intensity_g_per_kwh"), x("lifetime_years")
    making_g = 1e3 * (x("embodied_machine_kg") + x("embodied_cards_kg"))
    machine_s = found["machines"] * found["held"] * SECONDS_PER_DAY / x("requests_per_day")
    # The choice's energy is the whole site's already.
    request = carbon.serving_footprint(
        found["energy_per_request_j"], machine_s, intensity, 1.0, making_g, years
    )
    rows = [("consumer: serving", "request", request)]
    rows += [
        ("consumer: serving", per, carbon.Footprint(scale(request.operational_g),
                                                    scale(request.embodied_g)))
        for per, scale in (
            ("million output tokens", lambda g: carbon.consumer_sci_g(g, x("output_tokens"))),
            ("year", lambda g: carbon.yearly_g(g, x("requests_per_day"))),
        )
    ]  # fmt: skip
    spent_j = np.nansum([row["adapt_energy_j"], row["compress_energy_j"]])
    if spent_j > 0 and np.isfinite(row["adapt_s"]):
        hourly_g = carbon.embodied_g_per_hour(making_g, years)
        adapted = carbon.Footprint(
            carbon.operational_g(spent_j / JOULES_PER_KWH, intensity, x("pue")),
            hourly_g * row["adapt_s"] / 3600,
        )
        rows.append(("provider: adaptation", "adaptation", adapted))
        if training_flop:
            rows.append(
                ("provider: adaptation", "1e15 FLOP of training",
                 carbon.Footprint(carbon.provider_sci_g(adapted.operational_g, training_flop),
                                  carbon.provider_sci_g(adapted.embodied_g, training_flop)))
            )  # fmt: skip
            if peak_flop_s and power_limit_w:
                # P x D x 6 is what `training_flop` counts more closely.
                hours = carbon.training_hours(
                    training_flop, 1.0, peak_flop_s, ASSUMED_UTILISATION, 1.0
                )
                estimated = carbon.training_footprint(
                    hours, power_limit_w / 1e3, intensity, x("pue"), hourly_g
                )
                rows.append(("provider: estimated beforehand", "adaptation", estimated))
    return pd.DataFrame(
        [
            {"boundary": boundary, "per": per, **vars(footprint), "total_g": footprint.total_g}
            for boundary, per, footprint in rows
        ]
    )
