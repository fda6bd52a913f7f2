"""Tables of the choice for people: what notebook 07 and the reports show of it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from edge_eval_lib.economics import prediction_errors
from edge_eval_lib.economics.advise import choice as advise_choice
from edge_eval_lib.economics.advise.choice import Choice
from edge_eval_lib.economics.advise.options import API
from edge_eval_lib.economics.form import QUANTITIES
from edge_eval_lib.economics.prices import ApiPrice, PriceBook, api_usd_per_request
from edge_eval_lib.results.columns import configuration_name
from edge_eval_lib.results.decision import in_words, option_name, question, short_name
from edge_eval_lib.results.readable import Prose, format_number, plain_name, readable

SHOWN = ["option", "deployment", "rank", "at_once", "usd_per_1000_requests", "ttft_ms",
         "energy_per_request_j", "carbon_g_per_request", "score", "best_in_pct", "fits_in_pct",
         "regret_pct", "binding"]  # fmt: skip
HEADINGS = {
    "usd_per_1000_requests": "USD per 1,000 requests",
    "carbon_g_per_request": "g CO2e a request",
    "deployment": "where",
    "at_once": "at once",
    "best_in_pct": "best in [%]",
    "fits_in_pct": "fits in [%]",
    "regret_pct": "mean regret [%]",
    "energy_per_request_j": "J a request",
    "ttft_ms": "first token [ms]",
}


def table(choice: Choice, machine: str) -> pd.DataFrame:
    """Return advice.csv: every option, ranked, with all its figures and what was asked."""
    return choice.table.assign(question=question(choice, machine))


def for_people(advice: pd.DataFrame, most: int = 20) -> Prose:
    """Show an advice table: its first rows, and the best of each deployment.

    Options that share a rank have an `=`.
    """
    first_of_each = ~advice["deployment"].duplicated()
    rows = advice[(np.arange(len(advice)) < most) | first_of_each].copy()
    marks = np.where(rows["doubtful"], " †", "")
    rows["option"] = [short_name(row) for _, row in rows.iterrows()] + marks
    rows["at_once"] = rows["concurrency"]
    for end in ("", "_least", "_most"):
        rows[f"usd_per_1000_requests{end}"] = 1e3 * rows[f"usd_per_request{end}"]
    rows["best_in_pct"], rows["fits_in_pct"] = 100 * rows["p_best"], 100 * rows["p_fits"]
    several = advice["rank"].value_counts() > 1
    rows["rank"] = ["–" if pd.isna(r) else f"{r:.0f}{'=' * bool(several[r])}" for r in rows["rank"]]
    broken = [f"breaks: {name}" for name in rows["binding"]]
    rows["binding"] = np.where(rows["fits"], rows["binding"], broken)
    columns = [c for c in SHOWN if c in rows and not (rows[c].isna() | (rows[c] == "")).all()]
    only = rows[[*columns, "usd_per_1000_requests_least", "usd_per_1000_requests_most"]]
    text = readable(only, columns, digits=2)
    text.columns = [HEADINGS.get(c, h) for c, h in zip(columns, text.columns, strict=True)]
    numeric = [pd.api.types.is_numeric_dtype(rows[c]) for c in columns]
    align = ["right" if is_number else "left" for is_number in numeric]
    shown = text.to_markdown(index=False, colalign=align, disable_numparse=True)
    left = len(advice) - len(rows)
    if rows["doubtful"].any():
        shown += "\n\n† A validity check of its measurement is not ok."
    return Prose(shown + (f"\n\nAnd {left} more in `tables/advice.csv`." if left > 0 else ""))


def inputs_for_people(flips: pd.DataFrame) -> pd.DataFrame:
    """The inputs with their ranges and sources, as a notebook shows them."""
    rows = flips[flips["value"].notna()].sort_index()
    return pd.DataFrame(
        {
            "input": [in_words(name) for name in rows["input"]],
            "value": rows["value"],
            "least": rows["least"],
            "most": rows["most"],
            "unit": rows["unit"],
            "source": rows["source"],
        }
    )


def flips_for_people(flips: pd.DataFrame) -> pd.DataFrame:
    """Where each input flips the choice; only those that do or have a part in it."""
    at = ["flips_below", "flips_above"]
    rows = flips[flips[at].notna().any(axis=1) | (flips["total_order"] > 0.005)]
    return pd.DataFrame(
        {
            "input": [in_words(name) for name in rows["input"]],
            "part in the flip [%]": 100 * rows["total_order"],
            "value": rows["value"],
            "flips below": rows["flips_below"],
            "to": rows["then_below"].map(_plain_option),
            "flips above": rows["flips_above"],
            "to ": rows["then_above"].map(_plain_option),
        }
    )


def _plain_option(name) -> str | None:
    """`llama-1B_rag_lora_int4, cloud` as people call it."""
    if not isinstance(name, str) or name == "none":
        return name if isinstance(name, str) else None
    variant, deployment, *rest = name.split(", ")
    parts = variant.split("_")
    if deployment == API or len(parts) != 4:
        return "the API" if deployment == API else name
    return ", ".join([f"{parts[0]} {configuration_name(*parts[2:])}", deployment, *rest])


def against_listed(choice: Choice, book: PriceBook) -> pd.DataFrame:
    """Return what each listed API asks per 1,000 requests, and whether the choice stands there."""
    value = choice.inputs.value
    nominal = advise_choice.api_usd_per_request(choice) / max(value("api_price_factor"), 1e-12)
    tokens = value("input_tokens"), value("output_tokens")

    def asks(api: ApiPrice, cached_share: float = 0.0, discount: float = 0.0) -> float:
        listed = api.input_usd_per_mtok, api.output_usd_per_mtok
        cached = api.cached_input_usd_per_mtok
        if cached is None and cached_share > 0:
            return np.nan
        return api_usd_per_request(*tokens, *listed, cached_share, cached or 0.0, discount)

    usd = [asks(api) for api in book.api_prices]
    factors = np.array(usd) / nominal
    best = advise_choice.best_at(choice, "api_price_factor", factors)
    stands = ["stands" if b == choice.best else f"then {_option(choice, b)}" for b in best]
    return pd.DataFrame(
        {
            "API": [f"{api.provider} {api.model}" for api in book.api_prices],
            "in force from": [f"{api.valid_from:%Y-%m}" for api in book.api_prices],
            "USD per 1,000 requests": 1e3 * np.array(usd),
            "all input cached": [1e3 * asks(api, cached_share=1.0) for api in book.api_prices],
            "in a batch overnight": [
                1e3 * asks(api, discount=api.batch_discount) if api.batch_discount else np.nan
                for api in book.api_prices
            ],
            "the choice": stands,
        }
    ).sort_values("USD per 1,000 requests", ascending=False, ignore_index=True)


def _option(choice: Choice, index: int) -> str:
    return "none fits" if index < 0 else option_name(choice.options.loc[index])


def cards_needed(requirements: pd.DataFrame) -> pd.DataFrame:
    """A row a model and step, a column a hardware: the cards that it takes, empty where none do.

    Steps that one card takes everywhere are left out.
    """
    rows = requirements.dropna(subset=["verdict"]).assign(cards=lambda t: t["cards"].astype(str))
    rows.loc[rows["verdict"] == "offload", "cards"] += " (offloading)"
    rows.loc[rows["verdict"] == "does not fit", "cards"] = "–"
    wide = rows.pivot_table(
        index=["model", "step"], columns="hardware", values="cards", aggfunc="first", sort=False
    )
    wide = wide[(wide != "1").any(axis=1)]
    return wide.reindex(columns=list(dict.fromkeys(rows["hardware"]))).reset_index()


def errors_for_people(errors: pd.DataFrame) -> pd.DataFrame:
    """A row a predictor and direction, a column a quantity of speed or power: mean (worst), %."""
    rows = errors[errors["quantity"].isin(QUANTITIES)]
    cells = [
        f"{format_number(mean, 2)} ({format_number(worst, 2)})"
        for mean, worst in zip(rows["mean_ape_pct"], rows["worst_ape_pct"], strict=True)
    ]
    wide = rows.assign(cell=cells).pivot_table(
        index=["predictor", "direction"], columns="quantity", values="cell", aggfunc="first",
        sort=False,
    )  # fmt: skip
    quantities = [name for name in QUANTITIES if name in wide]
    wide = wide[quantities].rename(columns={name: plain_name(name) for name in quantities})
    return wide.reset_index()


def memory_errors_for_people(errors: pd.DataFrame) -> pd.DataFrame:
    """A row a figure of memory: mean and worst error, and the share of rows within the target."""
    of_memory = errors["predictor"].eq(prediction_errors.MEMORY) | errors["target_pct"].notna()
    rows = errors[of_memory]
    return pd.DataFrame(
        {
            "predicted": [
                quantity.replace("_gb", "").replace("_", " ")
                + ("" if by == prediction_errors.MEMORY else ", by its twin")
                for quantity, by in zip(rows["quantity"], rows["predictor"], strict=True)
            ],
            "against": rows["direction"],
            "rows": rows["rows"],
            "mean error [%]": rows["mean_ape_pct"],
            "worst [%]": rows["worst_ape_pct"],
            "target [%]": rows["target_pct"],
            "rows within it [%]": rows["within_target_pct"],
        }
    )
