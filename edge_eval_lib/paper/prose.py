"""Findings in prose (Markdown) that is made of the numbers: other figures, other sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd

from edge_eval_lib import claims
from edge_eval_lib.paper import analysis
from edge_eval_lib.paper.analysis import (
    OBJECTIVES,
    SETUP_HOURS,
    T4_FP16_FLOPS,
    T4_FP32_FLOPS,
    Paper,
    model_name,
    of_model,
    short_name,
)
from edge_eval_lib.published import MODEL


def verdicts_text(paper: Paper) -> str:
    """How many claims stand, and which do not."""
    judged = paper.judged
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
    cells = analysis.headline(paper)
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
    judged = analysis.qlora_energy(paper)
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
    table = analysis.break_even(paper)
    lora = table[(table["method"] == "lora") & (table["precision"] == "int4")]
    shares = analysis.setup_shares(paper)
    shares = shares[(shares["method"] == "lora") & (shares["precision"] == "int4")]
    total = shares[["electricity_usd", "hardware_usd", "labour_usd"]].sum(axis=1)
    labour = 100 * shares["labour_usd"] / total
    electricity = 100 * shares["electricity_usd"] / total
    meter = 100 * table["electricity_usd_per_request"] / paper.prices.pue
    meter = meter / table["api_usd_per_request"]
    int4 = meter[table["precision"] == "int4"]
    hardware = table["hardware_usd_per_request"] / table["electricity_usd_per_request"]
    full = {h: lora[f"n_break_full_{h:g}h"] for h in SETUP_HOURS}
    points = analysis.api_break_points(paper)
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
        f"{full[80.0].max():,.0f}. Training sets differ by size and task: for 1,000 examples each "
        f"the paper's accounting gives {lora['n_break_per_1000_examples'].min():.1f} to "
        f"{lora['n_break_per_1000_examples'].max():.1f}.\n\n"
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
        f"the machine must be busy the most for {model_name(steepest)} {steepest['task']} "
        f"against {steepest['api']}: {steepest['least_utilisation']:.1%} of its hours."
    )
    return text


def density_text(paper: Paper) -> str:
    """What weights + KV cache do to the density, and what batch 1 does to the cold-start tax."""
    table = analysis.density(paper)
    int4 = table[table["precision"] == "int4"]
    means = int4.groupby(MODEL, sort=False)[["rho_sys_nominal", "rho_sys_modelled"]].mean()
    first = means.index[0]
    large = of_model(int4, paper.models, "parameters") >= claims.LARGE_PARAMETERS
    ratios = {
        c: int4[(int4["family"] == "llama") & (int4["size"] == "1B")][c].mean()
        / int4[large][c].mean()
        for c in ("rho_sys_nominal", "rho_sys_modelled")
    }
    tax = analysis.cold_start(paper)
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
    table = analysis.fidelity(paper)
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
    table = analysis.decomposition(paper)
    one, two = table[table["lora_gpus"] == 1], table[table["lora_gpus"] == 2]
    normal = one[~one["looks_like_qlora"]]
    odd = one[one["looks_like_qlora"]]
    predicted = T4_FP16_FLOPS / T4_FP32_FLOPS
    rate = analysis.training_rate(paper)
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
    series = analysis.qlora_by_size(paper)
    tasks = series[series["series"] != "means"]
    falls = tasks.groupby("quantity")["falls"].agg(["sum", "size"])
    text += (
        f"Along a family's sizes the ratio of energies falls in {falls.loc['energy', 'sum']} of "
        f"{falls.loc['energy', 'size']} families and tasks, the ratio of seconds in "
        f"{falls.loc['seconds', 'sum']} of {falls.loc['seconds', 'size']}.\n\n"
    )
    text += (
        f"The released scripts train LoRA of the smaller models in fp16 and QLoRA in bf16, which "
        f"a T4 emulates in fp32. That alone predicts up to {T4_FP16_FLOPS / 1e12:g} / "
        f"{T4_FP32_FLOPS / 1e12:g} = {predicted:.1f} times the time if training were nothing "
        f"but matrix products; the figures show {normal['seconds_ratio'].min():.1f} to "
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
    table = analysis.adaptation(paper).merge(rows[[*MODEL, "task"]])
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
    table = analysis.code_against_figures(paper)
    agreeing = table[table["agrees"]]
    return (
        f"On {len(agreeing)} of {len(table)} points the figures are what the released code or the "
        f"paper's text would have given ({', '.join(agreeing['topic'])}). On the other "
        f"{len(table) - len(agreeing)} they are not. The figures may well be right; the code that "
        "was released is not the code, or not the settings, that made them."
    )


def front_text(paper: Paper) -> str:
    """Who is on the front of each task, and what models below 2B reach alone."""
    table = analysis.fronts(paper)
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
    flips = analysis.order_flips(paper)
    parts = []
    for task, group in steady.groupby("task", sort=False):
        parts.append(f"{task}: {', '.join(model_name(r) for _, r in group.iterrows())}")
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
    table = analysis.small_models(paper)
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
            f"({short_name(best_small)}). At {wins} of {len(shared)} scores that both sides "
            f"reach a small one breaks even first, and its request costs 1/{cost.min():.1f} to "
            f"1/{cost.max():.1f} of the larger one's; yet the requests to break even differ by "
            f"{100 * apart:.2f} % at most. "
        )
        if beyond:
            later = 100 * (best["n_break_full"] / small["n_break_full"].min() - 1)
            text += (
                f"{beyond} larger variants score higher; the best, {short_name(best)} with "
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
