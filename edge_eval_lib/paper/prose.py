"""Findings in prose (Markdown) that is made of the numbers: other figures, other sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd

from edge_eval_lib.economics.published import requests_in_flight
from edge_eval_lib.paper import analysis, claims
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
from edge_eval_lib.paper.published import MODEL

METRIC_NAMES = {
    "n_break": "N_break",
    "ipw": "IPW",
    "rho_sys": "density",
    "q_ret_pct": "Q_ret",
    "c_tax": "C_tax",
}


def findings(paper: Paper) -> list[str]:
    """The five findings, a sentence or two each: what a reader should take away."""
    return [
        _arithmetic_finding(paper),
        _caption_finding(paper),
        _energy_finding(paper),
        _batch_finding(paper),
        _labour_finding(paper),
    ]


def findings_text(paper: Paper) -> str:
    """The five findings as a numbered list."""
    return "\n".join(f"{n}. {text}" for n, text in enumerate(findings(paper), start=1))


def _met(cells: pd.DataFrame, column: str) -> int:
    """How many cells of the headline table `column` meets as printed."""
    return sum(claims.agrees(p, v) for p, v in zip(cells["printed"], cells[column], strict=True))


def _arithmetic_finding(paper: Paper) -> str:
    cells = analysis.headline(paper)
    met = _met(cells, "recomputed")
    lead = "The arithmetic follows" if met == len(cells) else "Not all of the arithmetic follows"
    return (
        f"**{lead}**: {met} of {len(cells)} cells of the headline table come out as printed from "
        f"the figures of {len(paper.variants)} variants that were released."
    )


def _caption_finding(paper: Paper) -> str:
    cells = analysis.headline(paper)
    medians = _met(cells, "median")
    if medians == len(cells):
        return "**The caption holds**: every cell is the median over the model's INT4 variants."
    by_metric = cells.groupby("metric", sort=False)["statistic"].first().fillna("of no one kind")
    columns = by_metric.groupby(by_metric, sort=False).groups
    told = "; ".join(
        f"{', '.join(METRIC_NAMES[m] for m in metrics)}: {name}"
        for name, metrics in columns.items()
    )
    judged = paper.judged
    chance = int(judged["coincidence"].sum())
    return (
        f"**The caption says median, and the cells are something else** ({told}). {medians} of "
        f"{len(cells)} cells equal their median, {chance} of them by coincidence. The caption may "
        "mean that each run's figure was first a median over the 20 runs; one row a variant was "
        "published, so that this cannot be checked."
    )


def _energy_finding(paper: Paper) -> str:
    judged = analysis.qlora_energy(paper)
    failing = int((judged["verdict"] != "reproduced").sum())
    energies = claims.adaptation_kwh(paper.evidence)
    ratios = energies["qlora_with_merge"] / energies["lora_with_merge"]
    largest = ratios.idxmax()
    text = (
        f"**{failing} of {len(judged)} printed adaptation energies and ratios do not follow** from "
        "the released energies."
    )
    ledger = paper.figures.claims.set_index("claim_id")["value"]
    own = claims.printed_row(paper.evidence, largest)
    stated = ledger.get("qlora_energy_max")
    if own and stated and own != stated:
        text += (
            f' The abstract\'s "up to {stated} times" is {"-".join(largest)} '
            f"({ratios[largest]:.2f} recomputed), for which the paper's own table prints {own}."
        )
    return text


def _batch_finding(paper: Paper) -> str:
    in_flight = requests_in_flight(paper.figures.serving)
    one = (in_flight <= 1.5).all()
    lead = f"About {in_flight.mean():.0f} requests were in flight, not 1"
    lead = "One request was in flight" if one else lead
    return (
        f"**{lead}**: throughput times time per token gives {in_flight.min():.0f} to "
        f"{in_flight.max():.0f}. Energy per request, density and "
        "cold-start tax are figures of that load."
    )


def _labour_finding(paper: Paper) -> str:
    table = analysis.break_even(paper)
    lora = table[(table["method"] == "lora") & (table["precision"] == "int4")]
    labour, electricity = _shares_to_earn_back(paper)
    hours = paper.prices.setup_hours
    full = paper.variants.loc[lora.index, "n_break_full"]
    lead = "Labour decides" if labour.min() > 50 else "Labour alone does not decide"
    return (
        f"**{lead} when it pays**: LoRA-INT4 breaks even after {lora['n_break'].min():.0f} to "
        f"{lora['n_break'].max():.0f} requests if electricity alone counts, and after about "
        f"{_about(full.min())} to {_about(full.max())} with {hours:g} hours of set-up. Of what "
        f"must be earned back at least {_floor(labour.min())} % is labour and at most "
        f"{electricity.max():.2f} % electricity."
    )


def _about(value: float) -> str:
    """Two significant digits, without an exponent."""
    return f"{float(f'{value:.2g}'):,.0f}"


def _floor(percent: float) -> str:
    return f"{np.floor(10 * percent) / 10:.1f}"


def _shares_to_earn_back(paper: Paper) -> tuple[pd.Series, pd.Series]:
    """Labour and electricity, % of what LoRA-INT4 must earn back."""
    shares = analysis.setup_shares(paper)
    shares = shares[(shares["method"] == "lora") & (shares["precision"] == "int4")]
    total = shares[["electricity_usd", "hardware_usd", "labour_usd"]].sum(axis=1)
    return 100 * shares["labour_usd"] / total, 100 * shares["electricity_usd"] / total


def verdicts_text(paper: Paper) -> str:
    """How many cells and how many claims stand, which hinge on a choice, and which do not stand."""
    judged = paper.judged
    cells, words = (judged[judged["kind"] == kind] for kind in ("cell", "claim"))
    other = judged[judged["verdict"] == "other statistic"]
    hinging = judged[judged["hinges"]]
    failed = judged[judged["verdict"] == "not reproduced"]
    lines = [
        f"The ledger has **{len(cells)} cells** of the paper's tables and **{len(words)} claims** "
        "in words.",
        "",
        f"- Cells: {_tally(cells)}.",
        f"- Claims: {_tally(words)}.",
        f"- The {len(other)} rows that come out by another statistic say one thing, finding 2: "
        f"{(other['kind'] == 'cell').sum()} are cells, and {(other['kind'] == 'claim').sum()} the "
        "caption and claims that quote such cells.",
        f"- {len(hinging)} verdicts hinge on a choice: another reading gives another verdict. The "
        'line "By another choice" of the table says which. Among the claims in words they are: '
        + "; ".join(hinging.loc[hinging["kind"] == "claim", "statement"])
        + ".",
        "",
        "Not reproduced; after the dash is what the released figures give:",
        "",
        *(f"- {row['statement']} – {row['note']}" for _, row in failed.iterrows()),
    ]
    return "\n".join(lines)


def _tally(judged: pd.DataFrame) -> str:
    counts = judged["verdict"].value_counts().reindex(claims.VERDICTS, fill_value=0)
    chance = int(judged["coincidence"].sum())
    text = f"{counts['reproduced']} reproduced as stated"
    text += f" ({chance} of them by coincidence)" if chance else ""
    text += (
        f", {counts['other statistic']} by another statistic, {counts['not reproduced']} not "
        "reproduced"
    )
    if counts["not checkable"]:
        text += f", {counts['not checkable']} cannot be checked from what was published"
    return text


def headline_text(paper: Paper) -> str:
    """What statistic each column is, and what the mixture of LoRA and QLoRA hides."""
    cells = analysis.headline(paper)
    met, medians = _met(cells, "recomputed"), _met(cells, "median")
    by_metric = cells.groupby("metric", sort=False)["statistic"].first()
    n_break = cells[cells["metric"] == "n_break"].set_index(MODEL)
    lora, qlora = n_break["mean, LoRA-INT4 alone"], n_break["mean, QLoRA-INT4 alone"]
    ratio = qlora / lora
    first = n_break.index[0]
    return (
        f"{met} of {len(cells)} cells come out as printed, but by different statistics: "
        + "; ".join(f"{METRIC_NAMES[m]} {statistic}" for m, statistic in by_metric.items())
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
    labour, electricity = _shares_to_earn_back(paper)
    share = table["electricity_share_pct"]
    int4 = share[table["precision"] == "int4"]
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
        f"{paper.prices.setup_hours:g} hours of set-up it takes about {_about(full[8.0].min())} to "
        f"{_about(full[8.0].max())}; without set-up {_about(full[0.0].min())} to "
        f"{_about(full[0.0].max())}, with 80 hours {_about(full[80.0].min())} to "
        f"{_about(full[80.0].max())}. Training sets differ by size and task: for 1,000 examples "
        f"each the paper's accounting gives {lora['n_break_per_1000_examples'].min():.1f} to "
        f"{lora['n_break_per_1000_examples'].max():.1f}.\n\n"
        f"Electricity hardly counts. A request's electricity, times the PUE of "
        f"{paper.prices.pue:g}, is {int4.median():.4f} % of the API's price at the median over "
        f"INT4 variants (largest {int4.max():.3f} %, over all variants {share.max():.3f} %), and "
        f"the machine's time costs {hardware.min():.0f} to "
        f"{hardware.max():.0f} times as much as the electricity. Of what must be earned back, "
        f"{_floor(labour.min())} to {labour.max():.1f} % is labour and at most "
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
    """What the three passes and the sample can resolve, for every configuration."""
    table = analysis.fidelity(paper)
    samples = claims.samples_per_pass(paper.figures.quality)
    known = table["sampling_points"].dropna()
    visible = table["visible_by_passes"]
    hidden = table[~table["resolved_by_passes"]]
    worst = hidden.loc[hidden["q_ret_pct"].idxmin()]
    by_sample = int(table["resolved_by_sample"].sum())
    kinds = [("lora", "int8"), ("lora", "int4"), ("qlora", "int4")]
    lines = [
        f"- {_resolved(table[(table['method'] == m) & (table['precision'] == p)])}"
        for m, p in kinds
    ]
    return (
        "The published means, medians and deviations give back the three passes behind them: every "
        f"pass is a mean of {samples} samples. Beyond the noise of decoding (95 %, over those "
        "passes) these differ from LoRA-FP16:\n\n"
        + "\n".join(lines)
        + "\n\n"
        + _odd_gain(table)
        + f"**Three passes have little power.** The smallest difference that they show is "
        f"{visible.median():.1f} points at the median over variants and {visible.max():.1f} at "
        f"worst, and even that is missed every second time. {short_name(worst)} {worst['task']} "
        f"at {worst['q_ret_pct']:.1f} % [{worst['passes_lo']:.1f}, {worst['passes_hi']:.2f}] "
        f"counts as not different. And of {len(table)} comparisons about "
        f"{0.05 * len(table):.0f} differ by chance.\n\n"
        f"Over prompts, {samples} yes-or-no scores a side leave up to {known.min():.0f} to "
        f"{known.max():.0f} points of uncertainty in Q_ret, and {by_sample} of {len(known)} "
        "differences are larger than that. The spread of a judge's scores over prompts was not "
        "published. Intervals over the 20 runs cannot be had: one row a variant was published."
    )


def _odd_gain(table: pd.DataFrame) -> str:
    """The largest gain that the passes show: coarser weights know nothing more."""
    gains = table[table["passes_lo"] > 100]
    if gains.empty:
        return ""
    row = gains.loc[gains["q_ret_pct"].idxmax()]
    return (
        f"Coarser weights know nothing more: the largest gain, {row['q_ret_pct'] - 100:.1f} points "
        f"({short_name(row)} {row['task']}), is odd, and the figures do not explain it.\n\n"
    )


def _resolved(table: pd.DataFrame) -> str:
    """How many of the variants differ from FP16 by their passes, which way, and which."""
    first = table.iloc[0]
    name = short_name(first).partition(" ")[2]
    found = table[table["resolved_by_passes"]]
    text = f"{name}: {len(found)} of {len(table)}"
    if found.empty:
        return text
    lower = int((found["q_ret_pct"] < 100).sum())
    named = ", ".join(
        f"{model_name(row)} {row['task']} {row['q_ret_pct'] - 100:+.1f}"
        for _, row in found.iterrows()
    )
    return f"{text}, {lower} lower and {len(found) - lower} higher (points: {named})"


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
        + _beyond_emulation(normal, predicted)
        + f"At the fp32 peak the LoRA runs could have read no more than "
        f"{lora['tokens_at_fp32_peak'].median():.0f} tokens an example (median), the QLoRA runs "
        f"{qlora['tokens_at_fp32_peak'].median():.0f}.\n\n"
        "**What these figures cannot tell apart:** 4-bit weights (dequantised in every pass), "
        "bf16 emulation, the casts to fp32 that preparing a quantised model makes, and, for the "
        "largest models, the number of cards. All change together between the two methods."
    )
    return text


def _beyond_emulation(pairs: pd.DataFrame, predicted: float) -> str:
    """Which pairs took longer than the emulation of bf16 can explain."""
    beyond = pairs[pairs["seconds_ratio"] > predicted].sort_values("seconds_ratio")
    if beyond.empty:
        return ""
    named = ", ".join(
        f"{model_name(r)} {r['task']} {r['seconds_ratio']:.1f}" for _, r in beyond.iterrows()
    )
    return (
        f"In {len(beyond)} of {len(pairs)} pairs it took longer than that ({named}): emulation "
        "alone cannot be the cause there. "
    )


def memory_text(paper: Paper) -> str:
    """What QLoRA saves in memory: not in the figures, so by the kit's model and its own runs."""
    table = analysis.qlora_memory(paper)
    claim = paper.figures.claims.set_index("claim_id")["value"].get("qlora_memory")
    modelled = table[table["basis"].str.startswith("modelled")]
    measured = table[table["basis"].str.startswith("measured")]
    stated = f'The paper\'s "about {claim} %" ' if claim else "What QLoRA saves "
    text = (
        f"{stated}cannot be checked: no memory of adaptation was published. This kit's own model "
        "of training memory gives less: "
        + ", ".join(
            f"{row['saved_pct']:.0f} % ({model_name(row)})" for _, row in modelled.iterrows()
        )
        + ". QLoRA shrinks the base model's weights; adapter, activations and logits stay."
    )
    if len(measured):
        low, high = measured["saved_pct"].min(), measured["saved_pct"].max()
        text += (
            f" The embedded study measured {low:.0f} to {high:.0f} % of the process's peak memory, "
            "on a much smaller model."
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
    """On how many points the figures agree with the code, and which of the others matter."""
    table = analysis.code_against_figures(paper)
    agreeing, apart = table[table["agrees"]], table[~table["agrees"]]
    weighty = apart[apart["bears_on"].notna()]
    details = apart[apart["bears_on"].isna()]
    return (
        f"On {len(agreeing)} of {len(table)} points the figures are what the released code or the "
        f"paper's text would have given ({', '.join(agreeing['topic'])}). On {len(apart)} they are "
        f"not, and these do not weigh alike.\n\n"
        f"{len(weighty)} change what a headline figure means:\n\n"
        + "\n".join(f"- {row['topic']}: {row['bears_on']}" for _, row in weighty.iterrows())
        + f"\n\nThe other {len(details)} are details, or follow from one of these "
        f"({', '.join(details['topic'])}). The figures may well be right; the code that was "
        "released is not the code, or not the settings, that made them."
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
        "\nThese are the fronts of the scores as published; how firm they are comes below. "
        f"With all {len(OBJECTIVES)} objectives "
        + ", ".join(f"{row['on_front']} ({row['task']})" for _, row in every.iterrows())
        + " variants are on the front."
    )
    return "\n".join(lines)


def robustness_text(paper: Paper) -> str:
    """Which models stay on the front in the best and the worst case; where the order flips."""
    table = analysis.model_robustness(paper)
    flips = analysis.order_flips(paper)
    samples = claims.samples_per_pass(paper.figures.quality)
    text = (
        "How far a score is known depends on what is drawn again. The three passes alone answer "
        "the same prompts: that is the whole error only if other prompts would move all variants "
        f"alike (perfectly paired, the best case). {samples} other prompts for every variant on "
        "its own are the worst case (unpaired; for a judge's scores the largest spread that their "
        "mean allows). The pairing was not published, and the truth lies between. A model keeps a "
        "variant on the front in at least 90 % of the draws:\n\n"
    )
    for name, what in {
        "technical": "score, energy and latency",
        "economic": "score and requests to break even, over API prices and electricity",
    }.items():
        best, worst = (_steady(table, f"{name}_{case}") for case in analysis.SPREADS)
        text += f"- {what}, passes alone: {best}\n- {what}, other prompts too: {worst}\n"
    both = table[(table["technical_prompts"] >= STEADY) & (table["economic_prompts"] >= STEADY)]
    named = "; ".join(f"{model_name(r)} in {r['task']}" for _, r in both.iterrows())
    text += f"\n**What stands in every case:** {named or 'no model'}.\n\n"
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


# A model is called steady when it keeps a variant on the front in this share of the draws.
STEADY = 0.9


def _steady(table: pd.DataFrame, column: str) -> str:
    steady = table[table[column] >= STEADY]
    parts = [
        f"{task} {', '.join(model_name(r) for _, r in group.iterrows())}"
        for task, group in steady.groupby("task", sort=False)
    ]
    return "; ".join(parts) or "none"


def small_models_text(paper: Paper) -> str:
    """Does "below 2B wins" survive? Per task, at equal score, and what sampling error leaves."""
    table = analysis.small_models(paper)
    best = analysis.best_scores(paper).set_index("task")
    lines, first_everywhere, stands = [], True, []
    for task, row in best.iterrows():
        shared = table[table["task"] == task].dropna(
            subset=["n_break_full_small", "n_break_full_large"]
        )
        wins = int(shared["winner_is_small"].sum())
        first_everywhere &= wins == len(shared)
        apart = (shared["n_break_full_large"] / shared["n_break_full_small"] - 1).abs().max()
        cost = shared["usd_per_request_large"] / shared["usd_per_request_small"]
        text = (
            f"- **{task}**: at {wins} of {len(shared)} scores that both sides reach a model below "
            f"2B breaks even first ({row['small_first_passes']:.0%} over draws of the passes "
            f"alone, {row['small_first_prompts']:.0%} with other prompts), and its request costs "
            f"1/{cost.min():.1f} to 1/{cost.max():.1f} of the larger one's; yet the requests to "
            f"break even differ by {100 * apart:.2f} % at most. "
        )
        if row["larger_above"]:
            text += (
                f"Small models reach {row['score_small']:.3f} ({row['best_small']}); "
                f"{row['larger_above']} larger variants score higher, the best "
                f"{row['score_larger']:.3f} ({row['best_larger']}): a difference of "
                f"{row['difference']:.3f} ± {row['error_prompts']:.3f} with other prompts, "
                f"± {row['error_passes']:.3f} by the passes alone. {row['larger_beyond_prompts']} "
                f"of them lead by more than that error in the worst case, "
                f"{row['larger_beyond_passes']} in the best."
            )
        else:
            text += "No larger variant scores higher."
        if row["larger_beyond_prompts"]:
            stands.append(task)
        lines.append(text)
    verdict = (
        "**It survives at equal score, but decides little.** "
        if first_everywhere
        else "**It survives at most equal scores, not at all of them, and decides little.** "
    )
    return (
        verdict + "A request of a model below 2B is cheaper, but under the full accounting set-up "
        f"labour ({paper.prices.setup_hours:g} hours) is the same for every model and outweighs "
        "the difference. **That larger models answer better is shown beyond sampling error for "
        f"{' and '.join(stands) or 'no task'}**; elsewhere the lead is within what "
        "other prompts could change (95 %, unpaired, the worst case).\n\n" + "\n".join(lines)
    )
