"""The paper's analysis, redone from its published figures and taken further.

    from edge_eval_lib import paper
    study = paper.build()
    paper.write_tables("outputs/paper", study)

Every table is a function of `Paper` in `TABLES` and every figure one in `paper_figures.FIGURES`,
so that each can be rebuilt alone. The `*_text` functions state findings in prose that is made of
the numbers (Markdown).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from edge_eval_lib import claims, published, tables
from edge_eval_lib.economics.prices import JOULES_PER_KWH, PriceBook, Prices, load_price_book
from edge_eval_lib.errors import UserError
from edge_eval_lib.frontier import hypervolume, non_dominated
from edge_eval_lib.metrics import system_density
from edge_eval_lib.published import MODEL, VARIANT, Published
from edge_eval_lib.study import project_root
from edge_eval_lib.uncertainty import ratio_interval

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


@dataclass(frozen=True)
class Paper:
    """What everything here is computed from. `prices` is the set named `paper`."""

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
    def claims(self) -> pd.DataFrame:
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
    observations = published.observations(figures)
    scenarios = book.scenario_prices(prices)
    variants = tables.variants_table(observations, None, prices, scenarios)
    variants["latency_ms"] = latency_ms(variants)
    variants["usd_per_request"] = local_usd(variants, prices)
    default = project_root() / "outputs" / "embedded" / "tables" / "adaptation.csv"
    path = Path(embedded) if embedded else default
    measured = pd.read_csv(path) if path.is_file() else None
    return Paper(figures, observations, variants, prices, book, measured)


def latency_ms(variants: pd.DataFrame) -> pd.Series:
    """TTFT + TPOT (N - 1): from a request's first scheduling to its last token."""
    return variants["ttft_ms"] + variants["tpot_ms"] * (variants["output_tokens_per_request"] - 1)


def local_usd(variants: pd.DataFrame, prices: Prices) -> pd.Series:
    """One request here: electricity times PUE, and its share of the machine's time."""
    seconds = variants["output_tokens_per_request"] / variants["throughput_tok_s"]
    return prices.machine_usd(variants["energy_per_request_j"], seconds)


def api_usd(variants: pd.DataFrame, prices: Prices) -> pd.Series:
    """The same request at the API, input and output tokens at their own prices."""
    return prices.api_request_usd(
        prices.api_input_tokens_per_request, variants["output_tokens_per_request"]
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
    return paper.claims


def headline(paper: Paper) -> pd.DataFrame:
    """The 30 cells of the headline table beside ours, by every statistic."""
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
    judged = paper.claims
    return judged[judged["source"] == "QLoRA energy table"].reset_index(drop=True)


# --- accountings ------------------------------------------------------------------------------


def break_even(paper: Paper) -> pd.DataFrame:
    """Requests to break even by both accountings, a row a variant.

    n_break is the paper's; n_break_full_<hours>h the full one with so many hours of set-up.
    electricity_share_pct is a request's electricity (times PUE) in what the API asks for it.
    alone_usd_per_request is a request that has the machine to itself for its published latency.
    """
    table = paper.variants[[*VARIANT, "score", "n_break"]].copy()
    for hours in SETUP_HOURS:
        prices = paper.prices.model_copy(update={"setup_hours": hours})
        table[f"n_break_full_{hours:g}h"] = tables.full_break_even(paper.variants, prices)
    energy = paper.variants["energy_per_request_j"]
    api = api_usd(paper.variants, paper.prices)
    electricity = paper.prices.electricity_usd(energy) * paper.prices.pue
    table["api_usd_per_request"] = api
    table["local_usd_per_request"] = paper.variants["usd_per_request"]
    table["electricity_usd_per_request"] = electricity
    table["hardware_usd_per_request"] = paper.variants["usd_per_request"] - electricity
    table["electricity_share_pct"] = 100 * electricity / api
    table["alone_usd_per_request"] = paper.prices.machine_usd(energy, table_latency_s(paper))
    return table


def table_latency_s(paper: Paper) -> pd.Series:
    """Latency of a request in seconds, a row a variant."""
    return paper.variants["latency_ms"] / 1e3


def setup_shares(paper: Paper) -> pd.DataFrame:
    """What must be earned back: labour, hardware time and electricity before the first request."""
    v, prices = paper.variants, paper.prices
    energy = v["adapt_energy_j"] + v["compress_energy_j"] + v["load_energy_j"]
    seconds = v["adapt_s"] + v["compress_s"] + v["load_s"]
    table = v[VARIANT].copy()
    table["electricity_usd"] = prices.electricity_usd(energy) * prices.pue
    table["hardware_usd"] = prices.hardware_usd_per_hour * seconds / 3600
    table["labour_usd"] = prices.setup_usd
    return table


def api_break_points(paper: Paper) -> pd.DataFrame:
    """Each published API price against each LoRA-INT4 variant: what it takes, where it never pays.

    n_break_full is at the headline set-up hours. Below least_utilisation the machine's hours cost
    more than the API for ever (1 or more: at no utilisation does it pay). pays_alone says whether
    it pays when every request has the machine to itself.
    """
    v = _lora_int4(paper)
    rows = []
    for price in paper.book.api_prices:
        prices = _at(paper.prices, price)
        api = api_usd(v, prices)
        electricity = prices.electricity_usd(v["energy_per_request_j"]) * prices.pue
        hardware = v["usd_per_request"] - electricity
        spare = api - electricity
        # Hardware by the hour of use falls as 1 / utilisation.
        least = (hardware * prices.utilisation / spare).where(spare > 0, np.inf)
        alone = prices.machine_usd(v["energy_per_request_j"], v["latency_ms"] / 1e3)
        rows.append(
            v[VARIANT].assign(
                provider=price.provider,
                api=price.model,
                valid_from=price.valid_from,
                api_usd_per_request=api,
                local_usd_per_request=v["usd_per_request"],
                n_break_full=tables.full_break_even(v, prices),
                least_utilisation=least,
                pays=api > v["usd_per_request"],
                pays_alone=api > alone,
            )
        )
    return pd.concat(rows, ignore_index=True)


def _at(prices: Prices, api) -> Prices:
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
        _of_model(v, models, "parameters") * v["precision"].map(published.BYTES_PER_WEIGHT) / 1e9
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


def _of_model(table: pd.DataFrame, models: pd.DataFrame, column: str) -> pd.Series:
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


def training_rate(paper: Paper) -> pd.DataFrame:
    """What arithmetic each training run can have used, a row a run.

    tokens_at_fp32_peak: mean tokens an example at which the run would have needed the whole fp32
    peak of its cards. With longer examples it must have run on tensor cores (fp16); bf16 on a T4
    is emulated in fp32 and cannot pass that peak.
    """
    runs = paper.figures.adaptation
    parameters = _of_model(runs, paper.models, "parameters")
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


# --- code against figures ---------------------------------------------------------------------


def code_against_figures(paper: Paper) -> pd.DataFrame:
    """What the released code would have produced beside what the figures show; a row a point."""
    f, models = paper.figures, paper.models
    s = f.serving
    in_flight = published.requests_in_flight(s)
    per_request = s["output_tokens"] / s["requests"]
    latency_s = (s["ttft_mean_ms"] + s["tpot_mean_ms"] * (per_request - 1)) / 1e3
    window_s = s["serve_energy_j"] / s["power_mean_w"]
    large = _of_model(s, models, "parameters") >= claims.LARGE_PARAMETERS
    one_card_ms = (
        1e3
        * _of_model(s, models, "parameters")
        * s["precision"].map(published.BYTES_PER_WEIGHT)
        / published.T4_BANDWIDTH_BYTES_S
    )
    inputs = paper.prices.api_input_tokens_per_request
    prefill_ms = (
        1e3
        * 2
        * _of_model(s, models, "decode_parameters")
        * inputs
        / (published.CARDS * T4_FP16_FLOPS)
    )
    bound = published.decode_bound_tok_s(s, models, inputs)
    a = f.adaptation
    large_lora = a[
        (_of_model(a, models, "parameters") >= claims.LARGE_PARAMETERS) & (a["method"] == "lora")
    ]
    large_qlora = a[
        (_of_model(a, models, "parameters") >= claims.LARGE_PARAMETERS) & (a["method"] == "qlora")
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
    share = s["throughput_tok_s"] / bound
    deviation = (window_s / s["serve_s"] - 1).abs().max()

    def point(topic: str, code: str, shown: str, agrees: bool) -> dict[str, object]:
        return {"topic": topic, "code_or_paper": code, "figures": shown, "agrees": bool(agrees)}

    return pd.DataFrame(
        [
            point(
                "energy window",
                "the meter starts before the model loads: energy / mean power = load + serving "
                "seconds",
                f"energy / mean power is the serving seconds within {deviation:.1%}",
                (window_s / (s["load_s"] + s["serve_s"]) - 1).abs().max() < 0.02,
            ),
            point(
                "cards in the meter",
                f"the serving meter reads one card, limited to {published.T4_POWER_LIMIT_W:g} W",
                f"{(s['power_mean_w'] > published.T4_POWER_LIMIT_W).sum()} of {len(s)} rows "
                f"average above {published.T4_POWER_LIMIT_W:g} W, peaks reach "
                f"{s['power_peak_w'].max():.0f} W",
                (s["power_mean_w"] <= published.T4_POWER_LIMIT_W).all(),
            ),
            point(
                "batch size",
                "the paper: batch size 1",
                f"{in_flight.min():.0f} to {in_flight.max():.0f} requests in flight, mean "
                f"{in_flight.mean():.0f}",
                (in_flight <= 1.5).all(),
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
                "LoRA of the largest models",
                "the two-card script trains QLoRA only",
                f"{len(large_lora)} LoRA runs of 7B and 8B models, on "
                f"{'/'.join(map(str, sorted(set(large_lora['gpus']))))} cards at "
                f"{large_lora['adapt_power_w'].mean():.0f} W",
                len(large_lora) == 0,
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
                f"{(s['tpot_mean_ms'] < one_card_ms).sum()} rows are faster than one card can be",
                not (s["tpot_mean_ms"] < one_card_ms).any(),
            ),
            point(
                "prompt length",
                f"the paper prices {inputs:g} input tokens a request",
                f"in {(s['ttft_mean_ms'] < prefill_ms).sum()} of {len(s)} rows the first token "
                "comes sooner than two T4 at full fp16 speed can read so long a prompt",
                not (s["ttft_mean_ms"] < prefill_ms).any(),
            ),
            point(
                "speed against bandwidth",
                f"with {inputs:g} input tokens no row is above what two T4 can decode",
                f"{(share > 1).sum()} rows are; the fastest of the others reach "
                f"{share[share <= 1].max():.0%} of it",
                (share <= 1).all(),
            ),
            point(
                "one LoRA run unlike the others",
                "LoRA runs draw less a card than QLoRA runs",
                "; ".join(
                    f"{r['family']}-{r['size']} {r['task']} draws {r['lora_watts_per_card']:.0f} W"
                    for _, r in odd.iterrows()
                )
                or "every LoRA run does",
                odd.empty,
            ),
        ]
    )


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
                    "variants": ", ".join(_short(row) for _, row in front.iterrows()),
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


def _short(row: pd.Series) -> str:
    method = {"lora": "LoRA", "qlora": "QLoRA"}[row["method"]]
    return f"{row['family']}-{row['size']} {method}-{row['precision'].upper()}"


def measurement_spread(paper: Paper) -> pd.Series:
    """Relative standard deviation of one serving run, from pairs that should be alike.

    LoRA-INT4 and QLoRA-INT4 of one model and task serve weights of the same shape; half the
    variance of the logarithm of their ratio is a run's. The only replication there is: 18 pairs.
    """
    int4 = paper.variants[paper.variants["precision"] == "int4"].set_index([*MODEL, "task"])
    lora, qlora = (int4[int4["method"] == m] for m in ("lora", "qlora"))
    columns = ["energy_per_request_j", "throughput_tok_s", "ttft_ms", "tpot_ms"]
    logs = np.log(qlora[columns] / lora[columns])
    return (logs.std() / np.sqrt(2)).rename("relative_sd")


def robustness(paper: Paper, draws: int = 500, seed: int = 2604) -> pd.DataFrame:
    """How often each model is on the front of its task, over prices and measurement spread.

    Each draw takes an API price of params/prices.yaml, electricity uniform in its scenario range,
    and a new serving run and score of every INT4 and FP16, INT8 variant (lognormal with
    `measurement_spread`; normal with the standard error over passes). technical: score, energy,
    latency. economic: score and requests to break even, full accounting.
    """
    rng = np.random.default_rng(seed)
    v, spread = paper.variants, measurement_spread(paper)
    quality = paper.figures.quality.set_index(VARIANT)
    # Standard error over three passes; published with n in the denominator.
    error = quality["score_std"] / quality["score_maximum"] / np.sqrt(3 - 1)
    least, most = paper.book.scenarios.electricity_usd_per_kwh
    drawn = pd.concat([v] * draws, keys=range(draws), names=["draw"]).reset_index(level="draw")
    for name, sd in spread.items():
        drawn[name] *= np.exp(rng.normal(0, sd, len(drawn)))
    at = pd.MultiIndex.from_frame(drawn[VARIANT])
    drawn["score"] += rng.normal(0, 1, len(drawn)) * error.reindex(at).to_numpy()
    drawn["latency_ms"] = latency_ms(drawn)
    electricity = rng.uniform(least, most, draws)[drawn["draw"]]
    api = rng.integers(len(paper.book.api_prices), size=draws)[drawn["draw"]]
    before, request, _ = _linear_in_electricity(drawn, paper.prices, "full")
    asked = np.select(
        [api == i for i in range(len(paper.book.api_prices))],
        [api_usd(drawn, _at(paper.prices, price)) for price in paper.book.api_prices],
    )
    saved = asked - (request[0] + request[1] * electricity)
    spent = before[0] + before[1] * electricity
    drawn["n_break_full"] = np.where(saved > 0, spent / saved, np.inf)
    table = v[VARIANT].copy()
    groups = list(drawn.reset_index().groupby(["draw", "task"], sort=False))
    for name, objectives in {
        "technical": {"score": "max", "energy_per_request_j": "min", "latency_ms": "min"},
        "economic": {"score": "max", "n_break_full": "min"},
    }.items():
        hits = np.zeros(len(v))
        for _, part in groups:
            hits[part["index"]] += non_dominated(part, objectives)
        table[f"{name}_share"] = hits / draws
    return table


def order_flips(paper: Paper) -> pd.DataFrame:
    """At which API price, and which electricity price, two models change places in N_break.

    A row a pair of LoRA-INT4 variants of one task and accounting. N = B / (p - c) orders two
    models alike for every p unless p = (B_1 c_2 - B_2 c_1) / (B_1 - B_2) lies above both c;
    B and c are linear in the electricity price, so its break-points are roots of a quadratic.
    Empty where there is none (for electricity: none in the scenario's range).
    """
    v = _lora_int4(paper)
    low, high = paper.book.scenarios.electricity_usd_per_kwh
    rows = []
    for task, part in v.groupby("task", sort=False):
        for accounting in ("paper", "full"):
            fixed, per_request, api = _linear_in_electricity(part, paper.prices, accounting)
            now = paper.prices.electricity_usd_per_kwh
            before, local = fixed[0] + now * fixed[1], per_request[0] + now * per_request[1]
            requests = before / (api - local)
            for i, j in combinations(range(len(part)), 2):
                first, second = sorted((i, j), key=lambda k: requests.iloc[k])
                b1, b2 = before.iloc[first], before.iloc[second]
                c1, c2 = local.iloc[first], local.iloc[second]
                price = (b1 * c2 - b2 * c1) / (b1 - b2) if b1 != b2 else np.nan
                k1, k2 = ([x.iloc[k] for x in fixed] for k in (first, second))
                e1, e2 = ([x.iloc[k] for x in per_request] for k in (first, second))
                gain1, gain2 = (np.poly1d([-e[1], api.iloc[0] - e[0]]) for e in (e1, e2))
                difference = np.poly1d(k1[::-1]) * gain2 - np.poly1d(k2[::-1]) * gain1
                roots = [
                    root.real
                    for root in np.atleast_1d(difference.roots)
                    if abs(root.imag) < 1e-12 and low <= root.real <= high
                ]
                rows.append(
                    {
                        "task": task,
                        "accounting": accounting,
                        "sooner": _model_name(part.iloc[first]),
                        "later": _model_name(part.iloc[second]),
                        "n_break_sooner": requests.iloc[first],
                        "n_break_later": requests.iloc[second],
                        "api_usd_per_request": api.iloc[0],
                        "api_price_flip_usd_per_request": price if price > max(c1, c2) else np.nan,
                        "electricity_flip_usd_per_kwh": min(roots) if roots else np.nan,
                    }
                )
    return pd.DataFrame(rows)


def _model_name(row: pd.Series) -> str:
    return f"{row['family']}-{row['size']}"


def _linear_in_electricity(
    table: pd.DataFrame, prices: Prices, accounting: str
) -> tuple[tuple[pd.Series, pd.Series], tuple[pd.Series, pd.Series], pd.Series]:
    """(fixed, slope) of what is spent before, (fixed, slope) of a request, and the API's price.

    Slopes are USD for 1 USD/kWh.
    """
    zero = pd.Series(0.0, index=table.index)
    if accounting == "paper":
        before = (zero, table["adapt_energy_j"] / JOULES_PER_KWH)
        request = (zero, table["energy_per_request_j"] / JOULES_PER_KWH)
        return before, request, zero + prices.api_usd_per_request
    seconds = table["adapt_s"] + table["compress_s"] + table["load_s"]
    energy = table["adapt_energy_j"] + table["compress_energy_j"] + table["load_energy_j"]
    request_s = table["output_tokens_per_request"] / table["throughput_tok_s"]
    hourly = prices.hardware_usd_per_hour / 3600
    before = (hourly * seconds + prices.setup_usd, energy / JOULES_PER_KWH * prices.pue)
    request = (
        hourly * request_s,
        table["energy_per_request_j"] / JOULES_PER_KWH * prices.pue,
    )
    return before, request, api_usd(table, prices)


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
                    "winner": _short(best),
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


# --- prose ------------------------------------------------------------------------------------


def verdicts_text(paper: Paper) -> str:
    """How many claims stand, and which do not."""
    judged = paper.claims
    counts = judged["verdict"].value_counts().reindex(claims.VERDICTS, fill_value=0)
    failed = judged[judged["verdict"] == "not reproduced"]
    lines = [
        f"Of **{len(judged)} claims**, {counts['reproduced']} are reproduced as stated, "
        f"{counts['other statistic']} by another statistic than the one stated, "
        f"{counts['not reproduced']} are not reproduced and {counts['not checkable']} cannot be "
        "checked from what was published.",
        "",
        "Not reproduced:",
        "",
        *(
            f"- {row['statement']}: ours is {_plain(row['ours'])} ({row['rule']})"
            for _, row in failed.iterrows()
        ),
    ]
    return "\n".join(lines)


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def headline_text(paper: Paper) -> str:
    """What statistic each column is, and what the mixture of LoRA and QLoRA hides."""
    cells = headline(paper)
    met = sum(claims.agrees(p, v) for p, v in zip(cells["printed"], cells["ours"], strict=True))
    medians = sum(
        claims.agrees(p, v) for p, v in zip(cells["printed"], cells["median"], strict=True)
    )
    by_metric = cells.groupby("metric", sort=False)["statistic"].first()
    n_break = cells[cells["metric"] == "n_break"].set_index(MODEL)
    lora, qlora = n_break["mean, LoRA-INT4 alone"], n_break["mean, QLoRA-INT4 alone"]
    ratio = qlora / lora
    first = n_break.index[0]
    return (
        f"{met} of {len(cells)} cells come out as printed, but by different statistics: "
        + ", ".join(f"{metric} {statistic}" for metric, statistic in by_metric.items())
        + f". As the medians that the caption announces, {medians} do.\n\n"
        f"Each mean mixes two ways of adapting. {'-'.join(first)} pays back after "
        f"{n_break.loc[first, 'mean']:.1f} requests on average: {lora[first]:.1f} if adapted by "
        f"LoRA, {qlora[first]:.1f} by QLoRA. Over the models QLoRA takes {ratio.min():.1f} to "
        f"{ratio.max():.1f} times as long."
    )


def qlora_energy_text(paper: Paper) -> str:
    """The energy table's verdicts, and whose figures its failing rows resemble."""
    judged = qlora_energy(paper)
    kwh = claims.adaptation_kwh(paper.evidence)
    ok = (judged["verdict"] == "reproduced").sum()
    failing = judged[judged["verdict"] != "reproduced"]
    parts = [f"{ok} of {len(judged)} figures of the table follow from the released energies."]
    named = failing["claim_id"].str.replace(r"^(lora_kwh|qlora_kwh|qlora_energy)_", "", regex=True)
    for name in dict.fromkeys(named):
        rows = paper.figures.claims.set_index("claim_id")
        lora, qlora = (float(rows.loc[f"{m}_kwh_{name}", "value"]) for m in ("lora", "qlora"))
        own = rows.loc[f"lora_kwh_{name}"]
        ours = kwh.loc[(own["family"], own["size"])]
        distance = np.log(kwh["lora_with_merge"] / lora) ** 2
        distance += np.log(kwh["qlora_with_merge"] / qlora) ** 2
        nearest = distance.idxmin()
        parts.append(
            f"{'-'.join((own['family'], own['size']))}: printed {lora:.3f} and {qlora:.3f} kWh, "
            f"released {ours['lora_with_merge']:.3f} and {ours['qlora_with_merge']:.3f}; the "
            f"nearest model in the released figures is {'-'.join(nearest)} "
            f"({kwh.loc[nearest, 'lora_with_merge']:.3f} and "
            f"{kwh.loc[nearest, 'qlora_with_merge']:.3f}), and it is not equal either."
        )
    return "\n\n".join(parts)


def accounting_text(paper: Paper) -> str:
    """How many requests by either accounting, and why electricity does not decide."""
    table = break_even(paper)
    lora = table[(table["method"] == "lora") & (table["precision"] == "int4")]
    shares = setup_shares(paper)
    shares = shares[(shares["method"] == "lora") & (shares["precision"] == "int4")]
    total = shares[["electricity_usd", "hardware_usd", "labour_usd"]].sum(axis=1)
    labour = 100 * shares["labour_usd"] / total
    electricity = 100 * shares["electricity_usd"] / total
    meter = 100 * table["electricity_usd_per_request"] / paper.prices.pue
    meter = meter / table["api_usd_per_request"]
    int4 = meter[table["precision"] == "int4"]
    hardware = table["hardware_usd_per_request"] / table["electricity_usd_per_request"]
    full = {h: lora[f"n_break_full_{h:g}h"] for h in SETUP_HOURS}
    points = api_break_points(paper)
    alone = points[~points["pays_alone"]]
    never = points[~points["pays"]]
    cheapest = points.loc[points["api_usd_per_request"].idxmin()]
    steepest = points.loc[points["least_utilisation"].idxmax()]
    text = (
        f"By the paper's accounting LoRA-INT4 pays back after {lora['n_break'].min():.0f} to "
        f"{lora['n_break'].max():.0f} requests. With everything counted and "
        f"{paper.prices.setup_hours:g} hours of set-up it takes {full[8.0].min():,.0f} to "
        f"{full[8.0].max():,.0f}; without set-up {full[0.0].min():,.0f} to "
        f"{full[0.0].max():,.0f}, with 80 hours {full[80.0].min():,.0f} to "
        f"{full[80.0].max():,.0f}.\n\n"
        f"Electricity hardly counts. A request's electricity is {int4.median():.4f} % of the API's "
        f"price at the median over INT4 variants (largest {int4.max():.3f} %, over all variants "
        f"{meter.max():.3f} %), and the machine's time costs {hardware.min():.0f} to "
        f"{hardware.max():.0f} times as much as the electricity. Of what must be earned back, "
        f"{labour.min():.1f} to {labour.max():.1f} % is labour and at most "
        f"{electricity.max():.2f} % electricity.\n\n"
    )
    kinds = len(paper.book.api_prices)
    in_flight = paper.variants["concurrency"].median()
    text += (
        f"Where does it never pay? With about {in_flight:.0f} requests in flight, "
        f"{'nowhere' if never.empty else f'in {len(never)} of {len(points)} cases'} "
        f"among {kinds} published API prices. With one request at a time it never pays in "
        f"{len(alone)} of {len(points)} pairs of variant and price, all of them against "
        f"{', '.join(dict.fromkeys(alone['api'])) or 'none'}. The cheapest request is "
        f"{cheapest['api']}'s for {cheapest['task']} ({cheapest['api_usd_per_request']:.6f} USD); "
        f"the machine must be busy the most for {_model_name(steepest)} {steepest['task']} against "
        f"{steepest['api']}: {steepest['least_utilisation']:.1%} of its hours."
    )
    return text


def density_text(paper: Paper) -> str:
    """What weights + KV cache do to the density, and what batch 1 does to the cold-start tax."""
    table = density(paper)
    int4 = table[table["precision"] == "int4"]
    means = int4.groupby(MODEL, sort=False)[["rho_sys_nominal", "rho_sys_modelled"]].mean()
    first = means.index[0]
    large = _of_model(int4, paper.models, "parameters") >= claims.LARGE_PARAMETERS
    ratios = {
        c: int4[(int4["family"] == "llama") & (int4["size"] == "1B")][c].mean()
        / int4[large][c].mean()
        for c in ("rho_sys_nominal", "rho_sys_modelled")
    }
    tax = cold_start(paper)
    tax = tax[tax["precision"] == "int4"].groupby(MODEL, sort=False)
    tax = tax[["c_tax", "c_tax_batch_1"]].mean()
    largest = tax.loc[("llama", "8B")] if ("llama", "8B") in tax.index else tax.iloc[-1]
    return (
        f"Divided by weights and cache instead of a nominal size, {'-'.join(first)} falls from "
        f"{means.loc[first, 'rho_sys_nominal']:,.0f} to "
        f"{means.loc[first, 'rho_sys_modelled']:,.0f} tok/s/GB, and its lead over the 7B and 8B "
        f"models from {ratios['rho_sys_nominal']:.1f} to {ratios['rho_sys_modelled']:.1f} "
        "times.\n\n"
        f"The cold-start tax is a figure of the batch: with one request at a time and the same "
        f"power, {'-'.join(first)} goes from {tax.loc[first, 'c_tax']:.0f} to "
        f"{tax.loc[first, 'c_tax_batch_1']:.0f} requests, the 8B model from "
        f"{largest['c_tax']:.0f} to {largest['c_tax_batch_1']:.0f}."
    )


def fidelity_text(paper: Paper) -> str:
    """What the three passes and the sample can resolve."""
    table = fidelity(paper)
    int4 = table[(table["method"] == "lora") & (table["precision"] == "int4")]
    known = int4["sampling_points"].dropna()
    samples = claims.samples_per_pass(paper.figures.quality)
    by_passes, by_sample = int4["resolved_by_passes"].sum(), int4["resolved_by_sample"].sum()
    return (
        "The published means, medians and deviations give back the three passes behind them: every "
        f"pass is a mean of {samples} samples. Over those passes {by_passes} of {len(int4)} "
        "LoRA-INT4 variants differ from FP16 beyond the noise of decoding. Over prompts, "
        f"{samples} yes-or-no scores a side leave up to {known.min():.0f} to {known.max():.0f} "
        f"points of uncertainty in Q_ret, and {by_sample} of {len(known)} differences are larger "
        "than that. Intervals over the 20 runs cannot be had: one row a variant was published."
    )


def paradox_text(paper: Paper) -> str:
    """What time and power explain, and what cannot be told apart."""
    table = decomposition(paper)
    one, two = table[table["lora_gpus"] == 1], table[table["lora_gpus"] == 2]
    normal = one[~one["looks_like_qlora"]]
    odd = one[one["looks_like_qlora"]]
    predicted = T4_FP16_FLOPS / T4_FP32_FLOPS
    rate = training_rate(paper)
    lora = rate[(rate["method"] == "lora")]
    qlora = rate[(rate["method"] == "qlora")]
    text = (
        f"Energy is power times seconds, so the ratio of energies splits exactly. Where both "
        f"methods ran on one card, QLoRA took {normal['energy_ratio'].min():.1f} to "
        f"{normal['energy_ratio'].max():.1f} times LoRA's energy; **time explains "
        f"{normal['time_share_pct'].min():.0f} to {normal['time_share_pct'].max():.0f} %** of it "
        f"(on a log scale), power the rest: {normal['lora_watts_per_card'].min():.0f} to "
        f"{normal['lora_watts_per_card'].max():.0f} W against "
        f"{normal['qlora_watts_per_card'].min():.0f} to "
        f"{normal['qlora_watts_per_card'].max():.0f} W.\n\n"
    )
    if len(two):
        text += (
            f"For the 7B and 8B models LoRA drew from two cards. QLoRA took "
            f"{two['seconds_ratio'].min():.1f} to {two['seconds_ratio'].max():.1f} times as long "
            f"but half the cards, so that energy rose {two['energy_ratio'].min():.1f} to "
            f"{two['energy_ratio'].max():.1f} times only: the paradox eases with size partly "
            "because the number of cards changes.\n\n"
        )
    for _, row in odd.iterrows():
        others = table[
            (table["family"] == row["family"])
            & (table["size"] == row["size"])
            & (table["task"] != row["task"])
        ]
        text += (
            f"One LoRA run, {row['family']}-{row['size']} {row['task']}, draws "
            f"{row['lora_watts_per_card']:.0f} W like a QLoRA run. Its ratio is "
            f"{row['energy_ratio']:.1f}; on the model's other tasks it is "
            f"{_pooled_ratio(paper, others):.1f}.\n\n"
        )
    text += (
        f"The released scripts train LoRA of the smaller models in fp16 and QLoRA in bf16, which "
        f"a T4 emulates in fp32. That alone predicts up to {T4_FP16_FLOPS / 1e12:g} / "
        f"{T4_FP32_FLOPS / 1e12:g} = {predicted:.1f} times the time if training were nothing but "
        f"matrix products; the figures show {normal['seconds_ratio'].min():.1f} to "
        f"{normal['seconds_ratio'].max():.1f} (median {normal['seconds_ratio'].median():.1f}). "
        f"At the fp32 peak the LoRA runs could have read no more than "
        f"{lora['tokens_at_fp32_peak'].median():.0f} tokens an example (median), the QLoRA runs "
        f"{qlora['tokens_at_fp32_peak'].median():.0f}.\n\n"
        "**What these figures cannot tell apart:** 4-bit weights (dequantised in every pass), "
        "bf16 emulation, the casts to fp32 that preparing a quantised model makes, and, for the "
        "largest models, the number of cards. All change together between the two methods."
    )
    return text


def _pooled_ratio(paper: Paper, rows: pd.DataFrame) -> float:
    table = adaptation(paper).merge(rows[[*MODEL, "task"]])
    return table["qlora_energy_j"].sum() / table["lora_energy_j"].sum()


def embedded_text(paper: Paper) -> str:
    """The embedded study's LoRA/QLoRA pair, or that it is missing."""
    if paper.embedded_adaptation is None:
        return (
            "The embedded study's own pair is **missing here**: outputs/embedded/tables/"
            "adaptation.csv does not exist yet. `make all` measures it, with the same dtype and "
            "batch for both methods."
        )
    own = paper.embedded_adaptation.dropna(subset=["seconds_ratio"])
    if own.empty:
        return "The embedded study's table has no pair of LoRA and QLoRA yet."
    energy = own["energy_ratio"].dropna()
    told = (
        f" and {energy.min():.2f} to {energy.max():.2f} times the (estimated) energy"
        if len(energy)
        else "; its energy was not measured"
    )
    return (
        f"The embedded study trains both methods in the same dtype at the same batch. There QLoRA "
        f"takes {own['seconds_ratio'].min():.2f} to {own['seconds_ratio'].max():.2f} times LoRA's "
        f"time{told}, on another machine: it shows what the method alone can cost, not what a T4 "
        "would show."
    )


def code_text(paper: Paper) -> str:
    """How many points of the released code the figures agree with."""
    table = code_against_figures(paper)
    agreeing = table[table["agrees"]]
    return (
        f"On {len(agreeing)} of {len(table)} points the figures are what the released code or the "
        f"paper's text would have given ({', '.join(agreeing['topic'])}). On the other "
        f"{len(table) - len(agreeing)} they are not. The figures may well be right; the code that "
        "was released is not the code, or not the settings, that made them."
    )


def front_text(paper: Paper) -> str:
    """Who is on the front of each task, and what models below 2B reach alone."""
    table = fronts(paper)
    pair = table[table["objectives"] == "score, energy_per_request_j"]
    every = table[table["objectives"] == ", ".join(OBJECTIVES)]
    lines = [
        f"- **{row['task']}**: {row['on_front']} variants are on the front of score against "
        f"energy, {row['small_on_front']} of them below 2B ({row['variants']}). Models below 2B "
        f"alone cover {row['hypervolume_small'] / row['hypervolume']:.0%} of its hypervolume."
        for _, row in pair.iterrows()
    ]
    lines.append(
        f"\nWith all {len(OBJECTIVES)} objectives "
        + ", ".join(f"{row['on_front']} ({row['task']})" for _, row in every.iterrows())
        + " variants are on the front."
    )
    return "\n".join(lines)


def robustness_text(paper: Paper, table: pd.DataFrame) -> str:
    """Which models stay on the front, and where the order of break-even flips."""
    best = table.groupby(["task", *MODEL], sort=False)[["technical_share", "economic_share"]].max()
    steady = best[best["economic_share"] >= 0.9].reset_index()
    flips = order_flips(paper)
    parts = []
    for task, group in steady.groupby("task", sort=False):
        parts.append(f"{task}: {', '.join(_model_name(r) for _, r in group.iterrows())}")
    text = (
        "Over API prices, electricity and measurement spread, these models keep a variant on the "
        "economic front in at least 90 % of the draws: " + ("; ".join(parts) or "none") + ".\n\n"
    )
    for accounting, part in flips.groupby("accounting", sort=False):
        by_api = part.dropna(subset=["api_price_flip_usd_per_request"])
        by_electricity = part.dropna(subset=["electricity_flip_usd_per_kwh"])
        text += (
            f"In the {accounting} accounting {len(by_api)} of {len(part)} pairs of models change "
            f"places at some API price"
        )
        if len(by_api):
            flip = by_api["api_price_flip_usd_per_request"]
            text += f", at {flip.min():.2g} to {flip.max():.2g} USD a request"
        text += f"; {len(by_electricity)} do so within the range of electricity prices. "
    return text.strip()


def small_models_text(paper: Paper) -> str:
    """Does "below 2B wins" survive? Per task, at equal score, under the full accounting."""
    table = small_models(paper)
    v = paper.variants.assign(small=paper.is_small(paper.variants))
    lines, first_everywhere = [], True
    for task, part in v.groupby("task", sort=False):
        small, large = part[part["small"]], part[~part["small"]]
        best_small = small.loc[small["score"].idxmax()]
        best = part.loc[part["score"].idxmax()]
        shared = table[table["task"] == task].dropna(
            subset=["n_break_full_small", "n_break_full_large"]
        )
        wins = int(shared["winner_is_small"].sum())
        first_everywhere &= wins == len(shared)
        apart = (shared["n_break_full_large"] / shared["n_break_full_small"] - 1).abs().max()
        cost = shared["usd_per_request_large"] / shared["usd_per_request_small"]
        beyond = int((large["score"] > best_small["score"]).sum())
        text = (
            f"- **{task}**: models below 2B reach a score of {best_small['score']:.3f} "
            f"({_short(best_small)}). At {wins} of {len(shared)} scores that both sides reach a "
            f"small one breaks even first, and its request costs 1/{cost.min():.1f} to "
            f"1/{cost.max():.1f} of the larger one's; yet the requests to break even differ by "
            f"{100 * apart:.2f} % at most. "
        )
        if beyond:
            later = 100 * (best["n_break_full"] / small["n_break_full"].min() - 1)
            text += (
                f"{beyond} larger variants score higher; the best, {_short(best)} with "
                f"{best['score']:.3f}, breaks even {later:.2f} % later than the first small one."
            )
        else:
            text += "No larger variant scores higher."
        lines.append(text)
    verdict = (
        "**It survives at equal score, but decides little.** "
        if first_everywhere
        else "**It survives at most equal scores, not at all of them, and decides little.** "
    )
    return (
        verdict + "A request of a model below 2B is cheaper, but under the full accounting set-up "
        f"labour ({paper.prices.setup_hours:g} hours) is the same for every model and outweighs "
        "the difference. Where a task asks for more than small models score, they are not on "
        "offer:\n\n" + "\n".join(lines)
    )


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
    "order_flips": order_flips,
    "small_models": small_models,
}


def output_directory(directory: str | Path | None = None) -> Path:
    """Where the paper's tables and figures go: outputs/paper of the project unless told."""
    return Path(directory) if directory else project_root() / "outputs" / "paper"


def chosen(names: Iterable[str] | None, known: Sequence[str], what: str) -> list[str]:
    """The names asked for, all of them by default; UserError for one that does not exist."""
    names = list(known) if names is None else list(names)
    for name in names:
        if name not in known:
            raise UserError(f"There is no {what} {name!r}; there is: {', '.join(known)}.")
    return names


def write_tables(
    directory: str | Path | None = None,
    paper: Paper | None = None,
    names: Iterable[str] | None = None,
) -> list[Path]:
    """Write tables/<name>.csv under `directory`; `names` picks some of TABLES."""
    paper = paper or build()
    folder = output_directory(directory) / "tables"
    return [
        tables.write_table(TABLES[name](paper), folder / f"{name}.csv")
        for name in chosen(names, list(TABLES), "table")
    ]
