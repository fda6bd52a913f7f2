"""The paper's figures recomputed and taken further; a function a table, listed in `TABLES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from edge_eval_lib.economics.cost import (
    BreakEvenCosts,
    full_costs,
    order_flip_api_price,
    paper_costs,
)
from edge_eval_lib.economics.latency import latency_s
from edge_eval_lib.economics.prices import ApiPrice, PriceBook, Prices, load_price_book
from edge_eval_lib.economics.published import observations, requests_in_flight
from edge_eval_lib.errors import UserError
from edge_eval_lib.frontier import front_draws, hypervolume, non_dominated
from edge_eval_lib.metrics import system_density
from edge_eval_lib.paper import claims, published
from edge_eval_lib.paper.published import MODEL, VARIANT, Published
from edge_eval_lib.paths import outputs_root
from edge_eval_lib.results import tables
from edge_eval_lib.uncertainty import ratio_interval, single_run_spread

SETUP_HOURS = (0.0, 8.0, 80.0)
OBJECTIVES: dict[str, Literal["min", "max"]] = {
    "score": "max",
    "energy_per_request_j": "min",
    "usd_per_request": "min",
    "latency_ms": "min",
    "memory_gb": "min",
}
# NVIDIA Tesla T4 datasheet: fp16 on tensor cores, and fp32, in which bf16 is emulated.
T4_FP16_FLOPS = published.T4_FP16_FLOPS
T4_FP32_FLOPS = 8.1e12
# Training with frozen weights and gradient checkpointing: forward, forward again, and the gradient
# with respect to activations, two operations a parameter each.
FLOPS_PER_PARAMETER_AND_TOKEN = 6.0
# What the released scripts set (github.com/Abdullah4152/EDGE-EVAL, src/): samples served, the
# output limit by task, samples scored a pass, slots of the engine when none are named.
CODE_SERVED_SAMPLES = 40
CODE_OUTPUT_LIMIT = {"rag": 256, "summarization": 128, "dialogue": 256}
CODE_SCORED_SAMPLES = 200
CODE_ENGINE_SLOTS = 256
CODE_TRAIN_EXAMPLES = {
    "1B": {"rag": 15000, "summarization": 5000, "dialogue": 10000},
    "3B": {"rag": 10000, "summarization": 5000, "dialogue": 10000},
    "7B": {"rag": 5000, "summarization": 5000, "dialogue": 10000},
}
CODE_SIZE_CLASS = {"1B": "1B", "1.5B": "1B", "3B": "3B", "7B": "7B", "8B": "7B"}


@dataclass(frozen=True, eq=False)
class Paper:
    """What everything here is computed from. `prices` is the set named `paper`.

    One `Paper` is equal to itself alone, so that what is made of it can be kept.
    """

    figures: Published
    observations: pd.DataFrame
    variants: pd.DataFrame
    prices: Prices
    book: PriceBook
    embedded_adaptation: pd.DataFrame | None = None

    @cached_property
    def evidence(self) -> claims.Evidence:
        """What the claims are judged by: the paper's own prices, whatever is assumed here."""
        return claims.evidence(self.figures)

    @cached_property
    def judged(self) -> pd.DataFrame:
        """Every claim with its verdict."""
        return claims.judge(self.evidence)

    @property
    def models(self) -> pd.DataFrame:
        """Models by (family, size)."""
        return self.figures.models.set_index(MODEL)

    def is_small(self, table: pd.DataFrame) -> pd.Series:
        """Which rows are of a model below two thousand million parameters."""
        parameters = self.models["parameters"].reindex(pd.MultiIndex.from_frame(table[MODEL]))
        return pd.Series(parameters.to_numpy() < claims.SMALL_PARAMETERS, index=table.index)


def build(
    figures: Published | None = None,
    input_tokens: float | None = None,
    embedded: str | Path | None = None,
) -> Paper:
    """Everything the analysis needs, from the published figures and params/prices.yaml.

    `input_tokens` replaces the 500 a request that the paper assumes at the API. `embedded` is the
    adaptation table of the embedded study, by default outputs/embedded/tables/adaptation.csv; it
    is set beside the paper's pair where the file exists.
    """
    figures = figures or published.load()
    book = load_price_book()
    prices = book.prices("paper")
    if input_tokens is not None:
        prices = prices.model_copy(update={"api_input_tokens_per_request": float(input_tokens)})
    rows = observations(figures)
    scenarios = book.scenario_prices(prices)
    variants = tables.variants_table(rows, None, prices, scenarios, price_set="paper")
    variants["latency_ms"] = 1e3 * latency_s(
        variants["ttft_ms"] / 1e3, variants["tpot_ms"] / 1e3, variants["output_tokens_per_request"]
    )
    variants["usd_per_request"] = costs(variants, prices).local_usd_per_request
    default = outputs_root() / "embedded" / "tables" / "adaptation.csv"
    path = Path(embedded) if embedded else default
    measured = pd.read_csv(path) if path.is_file() else None
    return Paper(figures, rows, variants, prices, book, measured)


def costs(variants: pd.DataFrame, prices: Prices) -> BreakEvenCosts:
    """What stands behind the full accounting of each variant, USD.

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


# --- the paper's own tables -------------------------------------------------------------------


def variants(paper: Paper) -> pd.DataFrame:
    """A row a variant, by the code that makes a live study's table."""
    return paper.variants


def frontier(paper: Paper) -> pd.DataFrame:
    """A row a model, each column by the statistic that the paper's table follows."""
    return tables.frontier_table(paper.variants)


def adaptation(paper: Paper) -> pd.DataFrame:
    """LoRA beside QLoRA per model and task."""
    return tables.adaptation_table(paper.observations)


def judged_claims(paper: Paper) -> pd.DataFrame:
    """Every claim with its verdict."""
    return paper.judged


def headline(paper: Paper) -> pd.DataFrame:
    """The 30 cells of the headline table as printed, and recomputed by every statistic."""
    return paper.evidence.headline


def consistent_headline(paper: Paper) -> pd.DataFrame:
    """The headline table with one statistic for every column, LoRA and QLoRA together and apart."""
    parts = []
    for statistic in ("median", "mean"):
        for name, methods in {
            "LoRA-INT4 and QLoRA-INT4": ("lora", "qlora"),
            "LoRA-INT4": ("lora",),
            "QLoRA-INT4": ("qlora",),
        }.items():
            table = tables.frontier_table(paper.variants, statistic, methods)
            parts.append(table[["model", *tables.METRICS]].assign(statistic=statistic, over=name))
    columns = ["statistic", "over", "model", *tables.METRICS]
    return pd.concat(parts, ignore_index=True)[columns]


def qlora_energy(paper: Paper) -> pd.DataFrame:
    """The eight energies and four ratios of the QLoRA energy table, judged one by one."""
    judged = paper.judged
    return judged[judged["source"] == "QLoRA energy table"].reset_index(drop=True)


# --- accountings ------------------------------------------------------------------------------


def break_even(paper: Paper) -> pd.DataFrame:
    """Requests to break even by both accountings, a row a variant.

    n_break is the paper's, n_break_per_1000_examples the same for training sets of one size;
    n_break_full_<hours>h is the full one with so many hours of set-up.
    electricity_share_pct is a request's electricity (times PUE) in what the API asks for it.
    alone_usd_per_request is a request that has the machine to itself for its published latency.
    """
    table = paper.variants[[*VARIANT, "score", "n_break"]].copy()
    examples = paper.figures.adaptation.set_index(published.ADAPTER)["train_examples"]
    examples = examples.reindex(pd.MultiIndex.from_frame(table[published.ADAPTER])).to_numpy()
    table["n_break_per_1000_examples"] = 1000 * table["n_break"] / examples
    for hours in SETUP_HOURS:
        prices = paper.prices.model_copy(update={"setup_hours": hours})
        table[f"n_break_full_{hours:g}h"] = tables.full_break_even(paper.variants, prices)
    spent = costs(paper.variants, paper.prices)
    table["api_usd_per_request"] = spent.api_usd_per_request
    table["local_usd_per_request"] = spent.local_usd_per_request
    table["electricity_usd_per_request"] = spent.electricity_usd_per_request
    table["hardware_usd_per_request"] = spent.hardware_usd_per_request
    share = spent.electricity_usd_per_request / spent.api_usd_per_request
    table["electricity_share_pct"] = 100 * share
    table["alone_usd_per_request"] = alone_usd(paper.variants, paper.prices)
    return table


def alone_usd(variants: pd.DataFrame, prices: Prices) -> pd.Series:
    """A request that has the machine to itself for its published latency, USD (modelled).

    Its energy is the mean serving power over that time.
    """
    seconds = variants["latency_ms"] / 1e3
    return prices.machine_usd(variants["power_w"] * seconds, seconds)


def setup_shares(paper: Paper) -> pd.DataFrame:
    """What must be earned back: labour, hardware time and electricity before the first request."""
    spent = costs(paper.variants, paper.prices)
    return paper.variants[VARIANT].assign(
        electricity_usd=spent.adapt_usd + spent.compress_usd + spent.load_usd,
        hardware_usd=spent.hardware_usd,
        labour_usd=spent.setup_usd,
    )


def api_break_points(paper: Paper) -> pd.DataFrame:
    """Each published API price against each LoRA-INT4 variant: what it takes, where it never pays.

    n_break_full is at the headline set-up hours. Below least_utilisation the machine's hours cost
    more than the API for ever (1 or more: at no utilisation does it pay). pays_alone says whether
    it pays when every request has the machine to itself.
    """
    v = _lora_int4(paper)
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
    """`prices` with the token prices of another API."""
    return prices.model_copy(
        update={
            "api_input_usd_per_mtok": api.input_usd_per_mtok,
            "api_output_usd_per_mtok": api.output_usd_per_mtok,
        }
    )


def _lora_int4(paper: Paper) -> pd.DataFrame:
    v = paper.variants
    return v[(v["method"] == "lora") & (v["precision"] == "int4")]


# --- density and cold start -------------------------------------------------------------------


def density(paper: Paper) -> pd.DataFrame:
    """rho_sys on nominal sizes (the paper's) and on weights + KV cache in use (modelled).

    The cache holds the requests in flight, each with the assumed input and half of its output.
    """
    v = paper.variants
    models = paper.models
    weights = (
        of_model(v, models, "parameters") * v["precision"].map(published.BYTES_PER_WEIGHT) / 1e9
    )
    tokens = paper.prices.api_input_tokens_per_request + v["output_tokens_per_request"] / 2
    cache = published.kv_bytes_per_token(v, models) * v["concurrency"] * tokens / 1e9
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


def of_model(table: pd.DataFrame, models: pd.DataFrame, column: str) -> pd.Series:
    """Return a column of `models` for each row of a table."""
    at = pd.MultiIndex.from_frame(table[MODEL])
    return pd.Series(models[column].reindex(at).to_numpy(), index=table.index)


def cold_start(paper: Paper) -> pd.DataFrame:
    """C_tax as published (estimated: load seconds x mean serving power) and at batch 1.

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
    """Q_ret of every variant with what its three passes, and its sample, can resolve.

    lo and hi: Fieller over the three reconstructed passes of each side. They hold the noise of
    decoding, not that of the prompts, which are the same in every pass. sampling_points is the
    half-width of a 95 % interval of Q_ret from the sample's size if the pairs were independent
    (scores of 0 or 1 on so many prompts); pairing makes it smaller by an amount not published.
    visible_by_passes is the smallest difference, in points, that three passes with this spread
    show: the interval's larger half. A true difference of that size is missed every second time.
    """
    passes = published.pass_scores(paper.figures.quality).set_index(VARIANT)
    samples = claims.samples_per_pass(paper.figures.quality)
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
    table["notes"] = np.where(
        table["sampling_points"].isna(),
        "sampling_points: a 1-10 score's spread over prompts was not published",
        None,
    )
    return table


# --- the QLoRA paradox ------------------------------------------------------------------------


def decomposition(paper: Paper) -> pd.DataFrame:
    """QLoRA over LoRA energy as time x power, a row a model and task.

    ln(energy ratio) = ln(seconds ratio) + ln(power ratio); the shares are these terms over their
    sum (time above 100 % where power falls). card_seconds_ratio counts both cards of a two-card
    run. A `looks_like_qlora` LoRA run draws per card what QLoRA runs draw.
    """
    runs = paper.figures.adaptation.assign(
        watts_per_card=lambda t: t["adapt_power_w"] / t["gpus"],
        seconds_per_example=lambda t: t["adapt_s"] / t["train_examples"],
    ).set_index([*MODEL, "task", "method"])
    table = adaptation(paper).set_index([*MODEL, "task"])
    wide = runs[["gpus", "watts_per_card", "seconds_per_example", "train_examples"]].unstack()
    log_energy, log_seconds = np.log(table["energy_ratio"]), np.log(table["seconds_ratio"])
    result = table[["energy_ratio", "seconds_ratio", "power_ratio"]].assign(
        time_share_pct=100 * log_seconds / log_energy,
        power_share_pct=100 * np.log(table["power_ratio"]) / log_energy,
        card_seconds_ratio=table["seconds_ratio"]
        * wide[("gpus", "qlora")]
        / wide[("gpus", "lora")],
        watts_per_card_ratio=wide[("watts_per_card", "qlora")] / wide[("watts_per_card", "lora")],
        lora_gpus=wide[("gpus", "lora")],
        lora_watts_per_card=wide[("watts_per_card", "lora")],
        qlora_watts_per_card=wide[("watts_per_card", "qlora")],
        train_examples=wide[("train_examples", "lora")],
    )
    result["looks_like_qlora"] = (
        result["lora_watts_per_card"] >= result["qlora_watts_per_card"].min()
    )
    return tables.sort_variants(result.reset_index())


def qlora_by_size(paper: Paper) -> pd.DataFrame:
    """QLoRA over LoRA along a family's sizes, in energy and seconds, task by task."""
    return claims.eases_with_size(paper.evidence)


def training_rate(paper: Paper) -> pd.DataFrame:
    """What arithmetic each training run can have used, a row a run.

    tokens_at_fp32_peak: mean tokens an example at which the run would have needed the whole fp32
    peak of its cards. With longer examples it must have run on tensor cores (fp16); bf16 on a T4
    is emulated in fp32 and cannot pass that peak.
    """
    runs = paper.figures.adaptation
    parameters = of_model(runs, paper.models, "parameters")
    operations = FLOPS_PER_PARAMETER_AND_TOKEN * parameters * runs["train_examples"]
    table = runs[[*MODEL, "task", "method", "gpus", "train_examples", "adapt_s"]].assign(
        tokens_at_fp32_peak=T4_FP32_FLOPS * runs["gpus"] * runs["adapt_s"] / operations,
        tokens_at_fp16_peak=T4_FP16_FLOPS * runs["gpus"] * runs["adapt_s"] / operations,
    )
    return tables.sort_variants(table)


def qlora_beside_embedded(paper: Paper) -> pd.DataFrame:
    """QLoRA over LoRA: the paper's models and, where measured here, the embedded study's."""
    columns = [*MODEL, "task", "energy_ratio", "seconds_ratio", "power_ratio"]
    published_rows = adaptation(paper)[columns].assign(study="paper (fp16 against bf16)")
    if paper.embedded_adaptation is None:
        return published_rows
    measured = paper.embedded_adaptation.reindex(columns=columns)
    return pd.concat(
        [measured.assign(study="embedded (same dtype)"), published_rows], ignore_index=True
    )


def qlora_memory(paper: Paper) -> pd.DataFrame:
    """Memory to train by LoRA and by QLoRA, GB: modelled for the paper's models, and measured.

    The paper published none. saved_pct is what QLoRA saves; basis says where a row comes from.
    """
    modelled = claims.modelled_training_memory().assign(
        basis="modelled by this kit: longest examples, batch 4, as in params/paper_t4.yaml"
    )
    if paper.embedded_adaptation is None:
        return modelled
    renamed = {"lora_peak_memory_gb": "lora_gb", "qlora_peak_memory_gb": "qlora_gb"}
    runs = paper.embedded_adaptation.rename(columns=renamed)
    runs = runs.reindex(columns=[*MODEL, "task", "lora_gb", "qlora_gb"])
    runs = runs.dropna(subset=["lora_gb", "qlora_gb"])
    runs = runs.assign(
        saved_pct=100 * (1 - runs["qlora_gb"] / runs["lora_gb"]),
        basis="measured by the embedded study",
    )
    return pd.concat([modelled, runs], ignore_index=True) if len(runs) else modelled


# --- code against figures ---------------------------------------------------------------------


def code_against_figures(paper: Paper) -> pd.DataFrame:
    """What the released code would have produced beside what the figures show; a row a point.

    bears_on names the headline figures that mean something else where a point does not agree; it
    is empty for a detail, such as one window of many, and for what another point already says.
    """
    f, models = paper.figures, paper.models
    s = f.serving
    in_flight = requests_in_flight(s)
    per_request = s["output_tokens"] / s["requests"]
    latency_s = (s["ttft_mean_ms"] + s["tpot_mean_ms"] * (per_request - 1)) / 1e3
    window_s = s["serve_energy_j"] / s["power_mean_w"]
    large = of_model(s, models, "parameters") >= claims.LARGE_PARAMETERS
    one_card_ms = (
        1e3
        * of_model(s, models, "parameters")
        * s["precision"].map(published.BYTES_PER_WEIGHT)
        / published.T4_BANDWIDTH_BYTES_S
    )
    inputs = paper.prices.api_input_tokens_per_request
    prefill_ms = (
        1e3
        * 2
        * of_model(s, models, "decode_parameters")
        * inputs
        / (published.CARDS * T4_FP16_FLOPS)
    )
    bound = published.decode_bound_tok_s(s, models, inputs)
    a = f.adaptation
    large_lora = a[
        (of_model(a, models, "parameters") >= claims.LARGE_PARAMETERS) & (a["method"] == "lora")
    ]
    large_qlora = a[
        (of_model(a, models, "parameters") >= claims.LARGE_PARAMETERS) & (a["method"] == "qlora")
    ]
    expected_rows = [
        CODE_TRAIN_EXAMPLES[CODE_SIZE_CLASS[size]][task]
        for size, task in zip(a["size"], a["task"], strict=True)
    ]
    c = f.compression.set_index([*MODEL, "task", "method"])
    merge = c[c["operation"] == "merge"]["compress_s"]
    quantise = c[c["operation"] == "quantize"]["compress_s"]
    shorter = quantise < merge.reindex(quantise.index).to_numpy()
    limits = s["task"].map(CODE_OUTPUT_LIMIT)
    speed = _against(s, "throughput_tok_s")
    load = _against(s, "load_s")
    medians = f.quality["score_median"] * CODE_SCORED_SAMPLES
    fits = (medians - medians.round()).abs() < 1e-3
    looks = decomposition(paper)
    odd = looks[looks["looks_like_qlora"]]
    usual = a[(a["method"] == "lora") & (a["gpus"] == 1)]
    usual = usual.merge(odd[[*MODEL, "task"]], how="left", indicator=True)
    usual = usual[usual["_merge"] == "left_only"]
    products = _energy_over_power_and_time(f)
    unequal = products[(products["ratio"] - 1).abs() > 0.01]
    qlora_steps = f.compression[f.compression["method"] == "qlora"]
    share = s["throughput_tok_s"] / bound
    deviation = (window_s / s["serve_s"] - 1).abs().max()

    def point(
        topic: str, code: str, shown: str, agrees: bool, bears_on: str | None = None
    ) -> dict[str, object]:
        told = {"code_or_paper": code, "figures": shown, "agrees": bool(agrees)}
        return {"topic": topic, **told, "bears_on": bears_on}

    return pd.DataFrame(
        [
            point(
                "energy window",
                "the meter starts before the model loads: energy / mean power = load + serving "
                "seconds",
                f"energy / mean power is the serving seconds within {deviation:.1%}",
                (window_s / (s["load_s"] + s["serve_s"]) - 1).abs().max() < 0.02,
                "energy per request, C_tax",
            ),
            point(
                "cards in the meter",
                f"the serving meter reads one card, limited to {published.T4_POWER_LIMIT_W:g} W",
                f"{(s['power_mean_w'] > published.T4_POWER_LIMIT_W).sum()} of {len(s)} rows "
                f"average above {published.T4_POWER_LIMIT_W:g} W, peaks reach "
                f"{s['power_peak_w'].max():.0f} W",
                (s["power_mean_w"] <= published.T4_POWER_LIMIT_W).all(),
                "energy per request, IPW, N_break",
            ),
            point(
                "batch size",
                "the paper: batch size 1",
                f"{in_flight.min():.0f} to {in_flight.max():.0f} requests in flight, mean "
                f"{in_flight.mean():.0f}",
                (in_flight <= 1.5).all(),
                "energy per request, IPW, rho_sys, C_tax",
            ),
            point(
                "length of the window",
                f"all prompts at once into {CODE_ENGINE_SLOTS} slots, equal outputs: the window "
                "is one request long",
                f"the window is {(s['serve_s'] / latency_s).min():.1f} to "
                f"{(s['serve_s'] / latency_s).max():.1f} requests long",
                (s["serve_s"] / latency_s < 1.5).all(),
            ),
            point(
                "samples served",
                f"{CODE_SERVED_SAMPLES} a task",
                f"{', '.join(map(str, sorted(set(s['requests']))))} a task",
                (s["requests"] == CODE_SERVED_SAMPLES).all(),
            ),
            point(
                "output tokens",
                "up to "
                + ", ".join(f"{n} ({task})" for task, n in CODE_OUTPUT_LIMIT.items())
                + ", fewer where an answer ends",
                "exactly "
                + ", ".join(
                    f"{v:g} ({task})" for task, v in per_request.groupby(s["task"]).first().items()
                )
                + f"; {(per_request > limits).sum()} rows above the limit",
                per_request.groupby(s["task"]).nunique().gt(1).all()
                and not (per_request > limits).any(),
                "energy per request, IPW",
            ),
            point(
                "samples scored",
                f"{CODE_SCORED_SAMPLES} a pass in the scoring script (40 in the readme)",
                f"{fits.sum()} of {len(fits)} medians are means of {CODE_SCORED_SAMPLES} samples",
                fits.all(),
            ),
            point(
                "QLoRA as served: speed",
                "merged to FP16: as fast as LoRA-FP16",
                f"{speed['fp16']:.2f} times LoRA-FP16, {speed['int4']:.2f} times LoRA-INT4",
                abs(speed["fp16"] - 1) < abs(speed["int4"] - 1),
                "every mean over INT4: half of its variants",
            ),
            point(
                "QLoRA as served: load",
                "merged to FP16: loads as long as LoRA-FP16",
                f"{load['fp16']:.2f} times LoRA-FP16, {load['int4']:.2f} times LoRA-INT4",
                abs(load["fp16"] - 1) < abs(load["int4"] - 1),
            ),
            point(
                "quantisation window",
                "each quantisation merges again inside its window: longer than the merge alone",
                f"{shorter.sum()} of {len(shorter)} quantisations are shorter than their merge",
                not shorter.any(),
            ),
            point(
                "QLoRA as compressed",
                "merged, never quantised (the paper: served at INT4)",
                f"{(qlora_steps['operation'] == 'merge').sum()} merges and "
                f"{(qlora_steps['operation'] == 'quantize').sum()} quantisations",
                not (qlora_steps["operation"] == "quantize").any(),
            ),
            point(
                "energy and power",
                "energy is mean power times seconds, in every window",
                f"{len(unequal)} of {len(products)} windows differ by more than 1 %"
                + "".join(
                    f": {r['name']}, power times seconds is {1 - 1 / r['ratio']:.0%} below energy"
                    for _, r in unequal.iterrows()
                ),
                unequal.empty,
            ),
            point(
                "LoRA of the largest models",
                "the two-card script trains QLoRA only",
                f"{len(large_lora)} LoRA runs of 7B and 8B models, on "
                f"{'/'.join(map(str, sorted(set(large_lora['gpus']))))} cards at "
                f"{large_lora['adapt_power_w'].mean():.0f} W",
                len(large_lora) == 0,
                "QLoRA over LoRA at 7B and 8B",
            ),
            point(
                "QLoRA of the largest models",
                "the two-card script's meter sums both cards",
                f"{(large_qlora['gpus'] == 1).sum()} of {len(large_qlora)} runs name one card, at "
                f"{large_qlora['adapt_power_w'].mean():.0f} W",
                (large_qlora["gpus"] == 2).all(),
            ),
            point(
                "training examples",
                "15,000 to 5,000 by size and task",
                f"{(a['train_examples'] == expected_rows).sum()} of {len(a)} runs as in the script",
                (a["train_examples"] == expected_rows).all(),
            ),
            point(
                "weights from one card",
                "one T4 reads FP16 weights of 8B no faster than "
                f"{one_card_ms[large & (s['precision'] == 'fp16')].max():.1f} ms a token",
                f"{(s['tpot_mean_ms'] < one_card_ms).sum()} of {len(s)} rows are faster than one "
                "card can be",
                not (s["tpot_mean_ms"] < one_card_ms).any(),
            ),
            point(
                "prompt length",
                f"the paper prices {inputs:g} input tokens a request",
                f"in {(s['ttft_mean_ms'] < prefill_ms).sum()} of {len(s)} rows the first token "
                "comes sooner than two T4 at full fp16 speed can read so long a prompt",
                not (s["ttft_mean_ms"] < prefill_ms).any(),
                "N_break: the API is priced for the prompt",
            ),
            point(
                "speed against bandwidth",
                f"with {inputs:g} input tokens no row is above what two T4 can decode",
                f"{(share > 1).sum()} of {len(s)} rows are above it; the fastest of the others "
                f"reaches {share[share <= 1].max():.0%} of it",
                (share <= 1).all(),
            ),
            point(
                "one LoRA run unlike the others",
                "LoRA runs draw less a card than QLoRA runs",
                "; ".join(
                    f"{r['family']}-{r['size']} {r['task']} draws {r['lora_watts_per_card']:.0f} W"
                    for _, r in odd.iterrows()
                )
                + f"; the other one-card runs draw {usual['adapt_power_w'].min():.0f} to "
                f"{usual['adapt_power_w'].max():.0f} W",
                odd.empty,
                "QLoRA over LoRA of LLaMA-3B",
            ),
        ]
    )


def _energy_over_power_and_time(figures: Published) -> pd.DataFrame:
    """Energy over mean power x seconds of every published window, with its name."""
    parts = []
    for table, prefix in ((figures.adaptation, "adapt"), (figures.compression, "compress")):
        product = table[f"{prefix}_power_w"] * table[f"{prefix}_s"]
        parts.append(table.assign(ratio=table[f"{prefix}_energy_j"] / product, window=prefix))
    serving = figures.serving
    product = serving["power_mean_w"] * serving["serve_s"]
    parts.append(serving.assign(ratio=serving["serve_energy_j"] / product, window="serve"))
    every = pd.concat(parts, ignore_index=True)
    words = ["window", *MODEL, "task", "method", "precision"]
    names = [" ".join(str(v) for v in row if pd.notna(v)) for row in every[words].to_numpy()]
    return pd.DataFrame({"name": names, "ratio": every["ratio"]})


def _against(serving: pd.DataFrame, column: str) -> dict[str, float]:
    """Geometric mean of QLoRA-INT4 over LoRA-FP16 and over LoRA-INT4."""
    by = serving.groupby([*MODEL, "task", "method", "precision"])[column].mean().unstack([3, 4])
    return {
        precision: float(np.exp(np.log(by[("qlora", "int4")] / by[("lora", precision)]).mean()))
        for precision in ("fp16", "int4")
    }


# --- the frontier, beyond the paper -----------------------------------------------------------


def pareto(paper: Paper, objectives: Mapping[str, str] | None = None) -> pd.DataFrame:
    """All variants, with `on_front` among those of their task for any subset of OBJECTIVES."""
    objectives = _checked_objectives(objectives)
    table = paper.variants[[*VARIANT, *OBJECTIVES]].copy()
    table["on_front"] = False
    for _, part in table.groupby("task", sort=False):
        table.loc[part.index, "on_front"] = non_dominated(part, objectives)
    table["small"] = paper.is_small(table)
    return table


def _checked_objectives(objectives: Mapping[str, str] | None) -> dict[str, str]:
    chosen = dict(OBJECTIVES if objectives is None else objectives)
    unknown = [name for name in chosen if name not in OBJECTIVES]
    if unknown:
        raise UserError(f"There is no objective {unknown[0]!r}; there is: {', '.join(OBJECTIVES)}.")
    return chosen


def fronts(paper: Paper) -> pd.DataFrame:
    """Every pair of objectives with the score, and all together, per task.

    hypervolume is the share of the box between the best and worst value of the task that the front
    dominates; hypervolume_small that of models below 2B alone.
    """
    sets = [("score", other) for other in OBJECTIVES if other != "score"]
    sets.append(tuple(OBJECTIVES))
    rows = []
    for names in sets:
        chosen = {name: OBJECTIVES[name] for name in names}
        table = pareto(paper, chosen)
        for task, part in table.groupby("task", sort=False):
            points = _unit_box(part, chosen)
            front = part[part["on_front"]]
            rows.append(
                {
                    "task": task,
                    "objectives": ", ".join(names),
                    "on_front": len(front),
                    "small_on_front": int(front["small"].sum()),
                    "hypervolume": hypervolume(points, np.ones(len(names))),
                    "hypervolume_small": hypervolume(
                        points[part["small"].to_numpy()], np.ones(len(names))
                    ),
                    "variants": ", ".join(short_name(row) for _, row in front.iterrows()),
                }
            )
    return pd.DataFrame(rows)


def _unit_box(part: pd.DataFrame, objectives: Mapping[str, str]) -> np.ndarray:
    """0 is the best value in the part and 1 the worst; costs on a log scale."""
    columns = []
    for name, direction in objectives.items():
        values = part[name].to_numpy(float)
        values = -values if direction == "max" else np.log(values)
        columns.append((values - values.min()) / (values.max() - values.min()))
    return np.column_stack(columns)


def short_name(row: pd.Series) -> str:
    """Return a variant's name without its task: `llama-1B LoRA-INT4`."""
    method = {"lora": "LoRA", "qlora": "QLoRA"}[row["method"]]
    return f"{row['family']}-{row['size']} {method}-{row['precision'].upper()}"


def measurement_spread(paper: Paper) -> pd.Series:
    """Relative standard deviation of one serving run, from pairs that should be alike.

    LoRA-INT4 and QLoRA-INT4 are the only replication there is: 18 pairs (`single_run_spread`).
    """
    columns = ["energy_per_request_j", "throughput_tok_s", "ttft_ms", "tpot_ms"]
    return single_run_spread(paper.variants, columns)["relative_sd"]


SPREADS = ("passes", "prompts")


def score_spread(paper: Paper) -> pd.DataFrame:
    """Relative standard error of each score; index variant, columns SPREADS.

    passes: over the three passes alone, which answer the same prompts. It is the whole error of a
    comparison only if the variants are perfectly paired, so that other prompts would move all of
    them alike: the best case. prompts: other prompts drawn for each variant on its own, too: the
    worst case. The pairing was not published; the truth lies between. A share of 0 or 1 on n
    prompts has the variance p (1 - p) / n; of a judge's score from 1 to 10, whose spread over
    prompts was not published, the largest variance that its mean allows is taken.
    """
    quality = paper.figures.quality.set_index(VARIANT)
    samples = claims.samples_per_pass(paper.figures.quality)
    mean, maximum = quality["score_mean"], quality["score_maximum"]
    # Standard error over three passes; published with n in the denominator.
    passes = quality["score_std"] / np.sqrt(3 - 1)
    least = (maximum > 1).astype(float)  # a judge's lowest score is 1
    # Bhatia and Davis (2000): the variance of scores from a to b with mean m is at most
    # (b - m) (m - a), and is exactly that for shares.
    sampling = (maximum - mean) * (mean - least) / samples if samples else np.nan
    spread = {"passes": passes / mean, "prompts": np.sqrt(passes**2 + sampling) / mean}
    return pd.DataFrame(spread)[list(SPREADS)].reindex(paper.variants.set_index(VARIANT).index)


def robustness(paper: Paper, draws: int = 200, seed: int = 2604) -> pd.DataFrame:
    """How often each variant is on the front of its task, over prices and measurement spread.

    technical: score, energy and latency scatter as `measurement_spread` and `score_spread` say.
    economic: score and requests to break even (full accounting), averaged over every API price of
    params/prices.yaml and five electricity prices over the scenario's range; there N_break
    scatters with the throughput, as far as a request's cost counts in it. `_passes` and `_prompts`
    are the best and the worst case of the scores' error (`score_spread`).
    """
    drawn = _front_draws(paper, draws, seed)
    shares = {name: on_front.mean() for name, on_front in drawn.items()}
    return pd.DataFrame(shares).rename_axis(VARIANT).reset_index()


def model_robustness(paper: Paper, draws: int = 200, seed: int = 2604) -> pd.DataFrame:
    """How often any variant of a model is on the front of its task; columns as `robustness`."""
    at = ["task", *MODEL]
    shares = {
        name: on_front.T.groupby(level=at, sort=False).any().T.mean()
        for name, on_front in _front_draws(paper, draws, seed).items()
    }
    return pd.DataFrame(shares).rename_axis(at).reset_index()


@lru_cache(maxsize=4)
def _front_draws(paper: Paper, draws: int, seed: int) -> dict[str, pd.DataFrame]:
    """Which variants are on the front of their task: a row a draw, a column a variant."""
    v = paper.variants.set_index(VARIANT)
    run = measurement_spread(paper)
    low, high = paper.book.scenarios.electricity_usd_per_kwh
    technical = {"score": "max", "energy_per_request_j": "min", "latency_ms": "min"}
    economic = {"score": "max", "n_break_full": "min"}
    found: dict[str, list[pd.DataFrame]] = {}
    for case, score in score_spread(paper).items():
        spread = {
            "score": score,
            "energy_per_request_j": run["energy_per_request_j"],
            "latency_ms": run["tpot_ms"],
        }
        found[f"technical_{case}"] = [_by_task(v, technical, spread, draws, seed)]
        found[f"economic_{case}"] = []
        for number, price in enumerate(paper.book.api_prices):
            for electricity in np.linspace(low, high, 5):
                prices = at_api_price(paper.prices, price).model_copy(
                    update={"electricity_usd_per_kwh": float(electricity)}
                )
                spent = costs(v, prices)
                counts = spent.local_usd_per_request / (
                    spent.api_usd_per_request - spent.local_usd_per_request
                )
                known = v.assign(n_break_full=spent.requests)
                spread = {
                    "score": score,
                    "n_break_full": (run["throughput_tok_s"] * counts).clip(lower=0),
                }
                some = max(draws // 10, 1)
                found[f"economic_{case}"].append(
                    _by_task(known, economic, spread, some, seed + number)
                )
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def _by_task(
    table: pd.DataFrame,
    objectives: Mapping[str, Literal["min", "max"]],
    spread: Mapping[str, float | pd.Series],
    draws: int,
    seed: int,
) -> pd.DataFrame:
    parts = []
    for _, part in table.groupby(level="task", sort=False):
        own = {
            name: sd.reindex(part.index) if isinstance(sd, pd.Series) else sd
            for name, sd in spread.items()
        }
        parts.append(front_draws(part, objectives, own, draws, seed))
    return pd.concat(parts, axis="columns")[table.index]


def order_flips(paper: Paper) -> pd.DataFrame:
    """At which API price, and which electricity price, two models change places in N_break.

    A row a pair of LoRA-INT4 variants of one task and accounting. N = F / (p - c): the API price
    is computed by `cost.order_flip_api_price`. F and c are linear in the electricity price, so
    that its break-points are roots of a quadratic. Empty where there is none (for electricity:
    none within the scenario's range).
    """
    v = _lora_int4(paper)
    rows = []
    for task, part in v.groupby("task", sort=False):
        for accounting in ("paper", "full"):
            now = _accounting(accounting, part, paper.prices)
            free, dear = (
                _accounting(
                    accounting,
                    part,
                    paper.prices.model_copy(update={"electricity_usd_per_kwh": price}),
                )
                for price in (0.0, 1.0)
            )
            table = part[MODEL].assign(
                requests=now.requests,
                api=now.api_usd_per_request,
                fixed=now.fixed_usd,
                local=now.local_usd_per_request,
                fixed_free=free.fixed_usd,
                fixed_slope=dear.fixed_usd - free.fixed_usd,
                local_free=free.local_usd_per_request,
                local_slope=dear.local_usd_per_request - free.local_usd_per_request,
            )
            ordered = [row for _, row in table.sort_values("requests").iterrows()]
            for first, second in combinations(ordered, 2):
                rows.append(
                    {
                        "task": task,
                        "accounting": accounting,
                        "sooner": model_name(first),
                        "later": model_name(second),
                        "n_break_sooner": first["requests"],
                        "n_break_later": second["requests"],
                        "api_usd_per_request": first["api"],
                        "api_price_flip_usd_per_request": order_flip_api_price(
                            first["fixed"], first["local"], second["fixed"], second["local"]
                        ),
                        "electricity_flip_usd_per_kwh": _electricity_flip(
                            first, second, paper.book.scenarios.electricity_usd_per_kwh
                        ),
                    }
                )
    return pd.DataFrame(rows)


def _accounting(name: str, variants: pd.DataFrame, prices: Prices) -> BreakEvenCosts:
    if name == "full":
        return costs(variants, prices)
    return paper_costs(prices, variants["adapt_energy_j"], variants["energy_per_request_j"])


def _electricity_flip(first: pd.Series, second: pd.Series, within: Sequence[float]) -> float:
    """Electricity price at which two models' N_break are equal: F (p - d) = G (p - c)."""

    def fixed(row: pd.Series) -> np.poly1d:
        return np.poly1d([row["fixed_slope"], row["fixed_free"]])

    def saved(row: pd.Series) -> np.poly1d:
        return np.poly1d([-row["local_slope"], row["api"] - row["local_free"]])

    roots = np.atleast_1d((fixed(first) * saved(second) - fixed(second) * saved(first)).roots)
    real = [r.real for r in roots if abs(r.imag) < 1e-12 and within[0] <= r.real <= within[1]]
    return min(real) if real else np.nan


def model_name(row: pd.Series) -> str:
    """Return `family-size`."""
    return f"{row['family']}-{row['size']}"


def small_models(paper: Paper) -> pd.DataFrame:
    """Does "below 2B wins" survive: the cheapest variant at every score threshold, per task.

    A row a task and attained score: among variants that score at least that, the one with the
    fewest requests to break even (full accounting, headline set-up), whether it is below 2B, and
    what the best variant below 2B needs beside the best above where both reach the score.
    """
    v = paper.variants.assign(small=paper.is_small(paper.variants))
    rows = []
    for task, part in v.groupby("task", sort=False):
        for threshold in sorted(part["score"].unique()):
            good = part[part["score"] >= threshold]
            best = good.loc[good["n_break_full"].idxmin()]
            small, large = good[good["small"]], good[~good["small"]]
            rows.append(
                {
                    "task": task,
                    "score_at_least": threshold,
                    "winner": short_name(best),
                    "winner_is_small": bool(best["small"]),
                    "n_break_full": best["n_break_full"],
                    "usd_per_request": best["usd_per_request"],
                    "n_break_full_small": small["n_break_full"].min(),
                    "n_break_full_large": large["n_break_full"].min(),
                    "usd_per_request_small": small["usd_per_request"].min(),
                    "usd_per_request_large": large["usd_per_request"].min(),
                }
            )
    return pd.DataFrame(rows)


def best_scores(paper: Paper, draws: int = 2000, seed: int = 2604) -> pd.DataFrame:
    """The best variant below 2B beside the best larger one, a row a task, and what stands.

    difference is larger minus small. error_passes and error_prompts are the half-widths of its
    95 % interval in the best and the worst case (`score_spread`). larger_beyond_<case> counts, of
    larger_above, the larger variants whose lead over the best small one is larger than its error;
    small_first_<case> is the share, over draws of the scores, of scores reached by both sides at
    which a model below 2B breaks even first (full accounting).
    """
    v = paper.variants.assign(small=paper.is_small(paper.variants)).set_index(VARIANT)
    spread = score_spread(paper).mul(v["score"], axis=0)
    rows = []
    for task, part in v.groupby(level="task", sort=False):
        error = spread.loc[part.index]
        small, large = part[part["small"]], part[~part["small"]]
        first, second = small["score"].idxmax(), large["score"].idxmax()
        lead = large["score"] - part.loc[first, "score"]
        row = {
            "task": task,
            "best_small": short_name(pd.Series(first, VARIANT)),
            "score_small": part.loc[first, "score"],
            "best_larger": short_name(pd.Series(second, VARIANT)),
            "score_larger": part.loc[second, "score"],
            "difference": lead.max(),
            "larger_above": int((lead > 0).sum()),
        }
        for case in SPREADS:
            beyond = Z_95 * np.hypot(error.loc[large.index, case], error.loc[first, case])
            row[f"error_{case}"] = beyond[second]
            row[f"larger_beyond_{case}"] = int((lead > beyond).sum())
            scores = part["score"].to_numpy() + error[case].to_numpy() * np.random.default_rng(
                seed
            ).standard_normal((draws, len(part)))
            row[f"small_first_{case}"] = _small_first(scores, part)
        rows.append(row)
    return pd.DataFrame(rows)


# Of a normal distribution; of the three passes' t the quantile is larger still.
Z_95 = 1.96


def _small_first(scores: np.ndarray, part: pd.DataFrame) -> float:
    """Share of the scores that both sides reach at which a small model breaks even first.

    `scores` has a row a draw and a column a variant of `part`; thresholds are each draw's scores.
    """
    small = part["small"].to_numpy()
    n_break = part["n_break_full"].to_numpy()
    # reached[draw, threshold, variant]
    reached = scores[:, None, :] >= scores[:, :, None]
    needs = np.where(reached, n_break, np.inf)
    least_small, least_large = needs[..., small].min(-1), needs[..., ~small].min(-1)
    shared = np.isfinite(least_small) & np.isfinite(least_large)
    return float((least_small < least_large)[shared].mean())


# --- writing ----------------------------------------------------------------------------------

TABLES: dict[str, Callable[[Paper], pd.DataFrame]] = {
    "variants": variants,
    "frontier": frontier,
    "adaptation": adaptation,
    "claims": judged_claims,
    "headline": headline,
    "headline_consistent": consistent_headline,
    "qlora_energy": qlora_energy,
    "qlora_decomposition": decomposition,
    "qlora_beside_embedded": qlora_beside_embedded,
    "qlora_by_size": qlora_by_size,
    "qlora_memory": qlora_memory,
    "training_rate": training_rate,
    "break_even": break_even,
    "setup": setup_shares,
    "api_prices": api_break_points,
    "density": density,
    "cold_start": cold_start,
    "fidelity": fidelity,
    "code_against_figures": code_against_figures,
    "pareto": pareto,
    "fronts": fronts,
    "robustness": robustness,
    "model_robustness": model_robustness,
    "order_flips": order_flips,
    "small_models": small_models,
    "best_scores": best_scores,
}
