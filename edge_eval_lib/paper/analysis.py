"""The paper's figures recomputed: its tables, two accountings, density, fidelity, the paradox."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from edge_eval_lib.economics.cost import BreakEvenCosts, full_costs
from edge_eval_lib.economics.latency import latency_s
from edge_eval_lib.economics.prices import ApiPrice, PriceBook, Prices, load_price_book
from edge_eval_lib.economics.published import (
    ADAPTER,
    MODEL,
    VARIANT,
    Published,
    for_rows,
    observations,
)
from edge_eval_lib.metrics import system_density
from edge_eval_lib.paper import claims, evidence, published
from edge_eval_lib.paper.evidence import SMALL_PARAMETERS, by, samples_per_pass
from edge_eval_lib.paper.plausible import (
    kv_bytes_per_token,
    pass_scores,
    weight_bytes,
)
from edge_eval_lib.paths import outputs_root
from edge_eval_lib.results.columns import METRICS
from edge_eval_lib.results.headline import frontier_table
from edge_eval_lib.results.observations import adaptations
from edge_eval_lib.results.tables import adaptation_table
from edge_eval_lib.results.variants import full_break_even, variants_table
from edge_eval_lib.uncertainty import ratio_interval

SETUP_HOURS = (0.0, 8.0, 80.0)


@dataclass(frozen=True, eq=False)
class Paper:
    """What everything is computed from. `prices` is the set named `paper`.

    One `Paper` is equal to itself alone, so that what is made of it can be kept.
    """

    figures: Published
    observations: pd.DataFrame
    variants: pd.DataFrame
    prices: Prices
    book: PriceBook
    embedded_adaptation: pd.DataFrame | None = None

    @cached_property
    def evidence(self) -> evidence.Evidence:
        """What the claims are judged by: the paper's own prices."""
        return evidence.evidence(self.figures)

    @cached_property
    def judged(self) -> pd.DataFrame:
        """Every claim with its verdict."""
        return claims.judge(self.evidence)

    @property
    def adaptation(self) -> pd.DataFrame:
        """LoRA beside QLoRA per model and task."""
        return self.evidence.adaptation

    @property
    def models(self) -> pd.DataFrame:
        """Models by (family, size)."""
        return self.figures.models.set_index(MODEL)

    def is_small(self, table: pd.DataFrame) -> pd.Series:
        """Return which rows are of a model below two thousand million parameters."""
        return for_rows(self.models["parameters"], table) < SMALL_PARAMETERS

    @property
    def lora_int4(self) -> pd.DataFrame:
        """The variants that the headline accounting is about."""
        return by(self.variants, method="lora", precision="int4")


def build(
    figures: Published | None = None,
    input_tokens: float | None = None,
    embedded: str | Path | None = None,
) -> Paper:
    """Gather what the analysis needs, from the published figures and params/prices.yaml.

    Args:
        figures: Checked figures; by default those of params/published.
        input_tokens: Input of an API request, instead of the 500 tokens that the paper assumes.
        embedded: Adaptation table of the embedded study, to be set beside the paper's pair where
            the file exists; by default made of that study's own adaptations, where there are some.
    """
    figures = figures or published.load()
    book = load_price_book()
    prices = book.prices("paper")
    if input_tokens is not None:
        prices = prices.model_copy(update={"api_input_tokens_per_request": float(input_tokens)})
    rows = observations(figures)
    scenarios = book.scenario_prices(prices)
    variants = variants_table(rows, None, prices, scenarios, price_set="paper")
    variants["latency_ms"] = 1e3 * latency_s(
        variants["ttft_ms"] / 1e3, variants["tpot_ms"] / 1e3, variants["output_tokens_per_request"]
    )
    variants["usd_per_request"] = costs(variants, prices).local_usd_per_request
    return Paper(figures, rows, variants, prices, book, _embedded_adaptation(embedded))


def _embedded_adaptation(file: str | Path | None) -> pd.DataFrame | None:
    """Read or make the embedded study's adaptation table; None where there is none."""
    if file is not None:
        return pd.read_csv(file) if Path(file).is_file() else None
    trained = adaptations(outputs_root() / "embedded")  # not its tables, which are made meanwhile
    return adaptation_table(trained) if len(trained) else None


def costs(variants: pd.DataFrame, prices: Prices) -> BreakEvenCosts:
    """Return what stands behind the full accounting of each variant, USD.

    A request takes its share of the machine's time: output tokens over throughput. Its input is
    the prices' assumption, because the prompts' lengths were not published.
    """
    return full_costs(
        prices,
        adapt_energy_j=variants["adapt_energy_j"],
        compress_energy_j=variants["compress_energy_j"],
        load_energy_j=variants["load_energy_j"],
        seconds_before=variants["adapt_s"] + variants["compress_s"] + variants["load_s"],
        energy_per_request_j=variants["energy_per_request_j"],
        seconds_per_request=variants["output_tokens_per_request"] / variants["throughput_tok_s"],
        input_tokens_per_request=prices.api_input_tokens_per_request,
        output_tokens_per_request=variants["output_tokens_per_request"],
    )


def consistent_headline(paper: Paper) -> pd.DataFrame:
    """Make the headline table by one statistic for every column, LoRA and QLoRA also apart."""
    parts = []
    for statistic in ("median", "mean"):
        for name, methods in {
            "LoRA-INT4 and QLoRA-INT4": ("lora", "qlora"),
            "LoRA-INT4": ("lora",),
            "QLoRA-INT4": ("qlora",),
        }.items():
            table = frontier_table(paper.variants, statistic, methods)
            parts.append(table[["model", *METRICS]].assign(statistic=statistic, over=name))
    columns = ["statistic", "over", "model", *METRICS]
    return pd.concat(parts, ignore_index=True)[columns]


def model_name(row: pd.Series) -> str:
    """Return `llama-1B`."""
    return f"{row['family']}-{row['size']}"


def short_name(row: pd.Series) -> str:
    """Return `llama-1B LoRA-INT4`."""
    method = {"lora": "LoRA", "qlora": "QLoRA"}[row["method"]]
    return f"{row['family']}-{row['size']} {method}-{row['precision'].upper()}"


# --- accountings ------------------------------------------------------------------------------


def break_even(paper: Paper) -> pd.DataFrame:
    """Return requests to break even by both accountings, a row a variant.

    n_break is the paper's, n_break_per_1000_examples the same for training sets of one size;
    n_break_full_<hours>h is the full one with so many hours of set-up.
    electricity_share_pct is a request's electricity (times PUE) in what the API asks for it.
    alone_usd_per_request is a request that has the machine to itself for its published latency.
    """
    table = paper.variants[[*VARIANT, "score", "n_break"]].copy()
    examples = for_rows(paper.figures.adaptation.set_index(ADAPTER)["train_examples"], table)
    table["n_break_per_1000_examples"] = 1000 * table["n_break"] / examples
    for hours in SETUP_HOURS:
        prices = paper.prices.model_copy(update={"setup_hours": hours})
        table[f"n_break_full_{hours:g}h"] = full_break_even(paper.variants, prices)
    spent = costs(paper.variants, paper.prices)
    for column in ("api", "local", "electricity", "hardware"):
        table[f"{column}_usd_per_request"] = getattr(spent, f"{column}_usd_per_request")
    share = spent.electricity_usd_per_request / spent.api_usd_per_request
    table["electricity_share_pct"] = 100 * share
    table["alone_usd_per_request"] = alone_usd(paper.variants, paper.prices)
    return table


def alone_usd(variants: pd.DataFrame, prices: Prices) -> pd.Series:
    """Return what a request costs that has the machine to itself, USD (modelled).

    It takes its published latency, at the mean serving power.
    """
    seconds = variants["latency_ms"] / 1e3
    return prices.machine_usd(variants["power_w"] * seconds, seconds)


def setup_shares(paper: Paper) -> pd.DataFrame:
    """Return what must be earned back: labour, hardware time and electricity, USD."""
    spent = costs(paper.variants, paper.prices)
    return paper.variants[VARIANT].assign(
        electricity_usd=spent.adapt_usd + spent.compress_usd + spent.load_usd,
        hardware_usd=spent.hardware_usd,
        labour_usd=spent.setup_usd,
    )


def api_break_points(paper: Paper) -> pd.DataFrame:
    """Set each published API price against each LoRA-INT4 variant: when, and whether, it pays.

    n_break_full is at the headline set-up hours. Below least_utilisation the machine's hours cost
    more than the API for ever (1 or more: at no utilisation does it pay). pays_alone says whether
    it pays when every request has the machine to itself.
    """
    v = paper.lora_int4
    rows = []
    for price in paper.book.api_prices:
        prices = at_api_price(paper.prices, price)
        spent = costs(v, prices)
        spare = spent.api_usd_per_request - spent.electricity_usd_per_request
        # Hardware by the hour of use falls as 1 / utilisation.
        least = spent.hardware_usd_per_request * prices.utilisation / spare
        rows.append(
            v[VARIANT].assign(
                provider=price.provider,
                api=price.model,
                valid_from=price.valid_from,
                api_usd_per_request=spent.api_usd_per_request,
                local_usd_per_request=spent.local_usd_per_request,
                alone_usd_per_request=alone_usd(v, prices),
                n_break_full=spent.requests,
                least_utilisation=least.where(spare > 0, np.inf),
                pays=spent.api_usd_per_request > spent.local_usd_per_request,
                pays_alone=spent.api_usd_per_request > alone_usd(v, prices),
            )
        )
    return pd.concat(rows, ignore_index=True)


def at_api_price(prices: Prices, api: ApiPrice) -> Prices:
    """Return `prices` with the token prices of another API."""
    return prices.model_copy(
        update={
            "api_input_usd_per_mtok": api.input_usd_per_mtok,
            "api_output_usd_per_mtok": api.output_usd_per_mtok,
        }
    )


# --- density and cold start -------------------------------------------------------------------


def density(paper: Paper) -> pd.DataFrame:
    """Return rho_sys on nominal sizes (the paper's) and on weights + KV cache in use (modelled).

    The cache holds the requests in flight, each with the assumed input and half of its output.
    """
    v = paper.variants
    models = paper.models
    weights = weight_bytes(v, models, "parameters") / 1e9
    tokens = paper.prices.api_input_tokens_per_request + v["output_tokens_per_request"] / 2
    cache = kv_bytes_per_token(v, models) * v["concurrency"] * tokens / 1e9
    table = v[[*VARIANT, "throughput_tok_s", "concurrency"]].assign(
        nominal_gb=v["memory_nominal_gb"],
        weights_gb=weights,
        cache_gb=cache,
        modelled_gb=weights + cache,
        rho_sys_nominal=v["rho_sys_nominal"],
        rho_sys_modelled=system_density(v["throughput_tok_s"], weights + cache),
    )
    table["notes"] = "modelled: parameters x bytes a weight + cache of the requests in flight"
    return table


def cold_start(paper: Paper) -> pd.DataFrame:
    """Return C_tax as published (estimated: load seconds x mean serving power) and at batch 1.

    c_tax_batch_1 is modelled: one request at a time at the published latency and the same power,
    so that the ratio is load seconds over latency.
    """
    v = paper.variants
    return v[[*VARIANT, "load_s", "load_energy_j", "energy_per_request_j", "c_tax"]].assign(
        c_tax_batch_1=v["load_s"] / (v["latency_ms"] / 1e3),
        notes="load_energy_j: estimated, load seconds x mean serving power",
    )


# --- quality ----------------------------------------------------------------------------------


def fidelity(paper: Paper) -> pd.DataFrame:
    """Return Q_ret of every variant with what its three passes, and its sample, can resolve.

    lo and hi: Fieller over the three reconstructed passes of each side. They hold the noise of
    decoding, not that of the prompts, which are the same in every pass. sampling_points is the
    half-width of a 95 % interval of Q_ret from the sample's size if the pairs were independent
    (scores of 0 or 1 on so many prompts); pairing makes it smaller by an amount not published.
    visible_by_passes is the smallest difference, in points, that three passes with this spread
    show: the interval's larger half. A true difference of that size is missed every second time.
    """
    passes = pass_scores(paper.figures.quality).set_index(VARIANT)
    samples = samples_per_pass(paper.figures.quality)
    rows = []
    for key, own in passes.iterrows():
        base_key = (*key[:3], "lora", "fp16")
        if key == base_key:
            continue
        base = passes.loc[base_key]
        value, low, high = ratio_interval(own.to_numpy(), base.to_numpy())
        p, q = own.mean(), base.mean()
        binary = key[2] != "dialogue"
        spread = (
            1.96 * value * np.sqrt((1 - p) / (p * samples) + (1 - q) / (q * samples))
            if binary and samples
            else np.nan
        )
        rows.append([*key, 100 * value, 100 * low, 100 * high, 100 * spread])
    columns = [*VARIANT, "q_ret_pct", "passes_lo", "passes_hi", "sampling_points"]
    table = pd.DataFrame(rows, columns=columns)
    table["visible_by_passes"] = np.maximum(
        table["passes_hi"] - table["q_ret_pct"], table["q_ret_pct"] - table["passes_lo"]
    )
    table["resolved_by_passes"] = (table["passes_lo"] > 100) | (table["passes_hi"] < 100)
    table["resolved_by_sample"] = (table["q_ret_pct"] - 100).abs() > table["sampling_points"]
    unknown = "sampling_points: a 1-10 score's spread over prompts was not published"
    table["notes"] = table["sampling_points"].isna().map({True: unknown, False: None})
    return table
