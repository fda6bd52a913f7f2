"""The rules by which claims are judged: `RULES`, functions of a claim and the evidence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd

from edge_eval_lib import metrics
from edge_eval_lib.economics.published import MODEL, VARIANT, requests_in_flight
from edge_eval_lib.frontier import non_dominated
from edge_eval_lib.paper import headline_rules as headline
from edge_eval_lib.paper.evidence import (
    MOST_SAMPLES,
    SMALL_PARAMETERS,
    Evidence,
    adaptation_kwh,
    agrees,
    by,
    eases_with_size,
    mean_of,
    modelled_training_memory,
    printed_ratio,
    samples_per_pass,
    training_compute_spread,
)
from edge_eval_lib.paper.finding import (
    ABOUT_POINTS,
    EQUAL_COMPUTE,
    EQUAL_QUALITY_POINTS,
    GENERALLY,
    Finding,
    by_statistic,
)
from edge_eval_lib.results.columns import METRICS, variant_name
from edge_eval_lib.results.headline import frontier_table

# --- adaptation -------------------------------------------------------------------------------


def _kwh(claim: pd.Series, proof: Evidence, method: str) -> Finding:
    kwh = adaptation_kwh(proof).loc[tuple(claim[MODEL])]
    ours, alone = kwh[f"{method}_with_merge"], kwh[method]
    return Finding(
        agrees(claim["value"], ours),
        ours,
        "adaptation and merge, mean over tasks, to the digits printed",
        f"the released energies give {ours:.4f} kWh",
        {f"adaptation alone {alone:.4f} kWh": agrees(claim["value"], alone)},
    )


def _qlora_ratio(claim: pd.Series, proof: Evidence) -> Finding:
    kwh = adaptation_kwh(proof).loc[tuple(claim[MODEL])]
    alone = kwh["qlora"] / kwh["lora"]
    return Finding(
        agrees(claim["value"], kwh["ratio"]),
        kwh["ratio"],
        "QLoRA over LoRA, adaptation and merge, means over tasks",
        f"the released energies give {kwh['qlora_with_merge']:.3f} over "
        f"{kwh['lora_with_merge']:.3f} kWh, {kwh['ratio']:.2f} times as much",
        {f"adaptation alone {alone:.2f}": agrees(claim["value"], alone)},
    )


def _qlora_ratio_max(claim: pd.Series, proof: Evidence) -> Finding:
    ratios = adaptation_kwh(proof)["ratio"]
    single = proof.adaptation.loc[proof.adaptation["energy_ratio"].idxmax()]
    printed = printed_ratio(proof, ratios.idxmax())
    choices = {
        f"largest of a single task {single['energy_ratio']:.1f} "
        f"({single['family']}-{single['size']} {single['task']})": agrees(
            claim["value"], single["energy_ratio"]
        )
    }
    if printed:
        reading = f"the row of that model in the paper's own energy table {printed}"
        choices[reading] = float(printed) == float(claim["value"])
    return Finding(
        agrees(claim["value"], ratios.max()),
        ratios.max(),
        "the largest ratio of a model, adaptation and merge, means over tasks",
        f"it is {'-'.join(ratios.idxmax())}'s, {ratios.max():.2f}",
        choices,
    )


def _qlora_memory(claim: pd.Series, proof: Evidence) -> Finding:
    runs = proof.figures.adaptation
    rule = f"peak memory of QLoRA against LoRA, mean over models, within {ABOUT_POINTS:g} points"

    def close(saved_pct: float) -> bool:
        return abs(saved_pct - float(claim["value"])) <= ABOUT_POINTS

    if runs["adapt_peak_memory_gb"].notna().all():
        means = runs.groupby("method")["adapt_peak_memory_gb"].mean()
        saved = 100 * (1 - means["qlora"] / means["lora"])
        return Finding(close(saved), saved, rule)
    modelled = modelled_training_memory()["saved_pct"]
    reading = (
        "by this kit's own model of training memory (not the paper's figures) QLoRA "
        f"saves {modelled.min():.0f} to {modelled.max():.0f} %"
    )
    note = "no memory of adaptation was published"
    return Finding(None, None, rule, note, {reading: close(modelled.mean())})


def _qlora_eases(claim: pd.Series, proof: Evidence) -> Finding:
    series = eases_with_size(proof)
    energy = by(series, quantity="energy")
    seconds = by(series, quantity="seconds", series="means")
    means, tasks = by(energy, series="means"), energy[energy["series"] != "means"]
    spans = ", ".join(f"{r['family']} {r['ratios']}" for _, r in seconds.iterrows())
    return Finding(
        means["falls"].all(),
        "; ".join(f"{r['family']} {r['ratios']}" for _, r in means.iterrows()),
        "QLoRA over LoRA energy, ratio of means over tasks, falls at each step of size in a family",
        "LoRA of the 7B and 8B models drew from two cards, QLoRA from one",
        {
            f"task by task it falls in {tasks['falls'].sum()} of {len(tasks)} series": tasks[
                "falls"
            ].all(),
            f"in seconds {spans}": seconds["falls"].all(),
        },
    )


def _equal_compute(claim: pd.Series, proof: Evidence) -> Finding:
    spread = training_compute_spread(proof)
    by_task = spread.groupby("task", sort=False).agg(["min", "max"])
    spans = ", ".join(f"{r['min']:.1f} to {r['max']:.1f} in {t}" for t, r in by_task.iterrows())
    kwh = adaptation_kwh(proof)["lora"].groupby("family")
    most = (kwh.max() / kwh.min()).max()
    return Finding(
        (spread <= EQUAL_COMPUTE).all(),
        spread.max(),
        "parameters × training examples of a family's sizes within a factor of "
        f"{EQUAL_COMPUTE:g}, task by task",
        f"parameters × examples of a family's sizes differ by a factor of {spans}",
        {f"training energy of a family's sizes, up to {most:.1f} times": most <= EQUAL_COMPUTE},
    )


# --- quality ----------------------------------------------------------------------------------


def _fidelity_generally(claim: pd.Series, proof: Evidence) -> Finding:
    above = proof.int4["q_ret_pct"] > float(claim["value"])
    lora, qlora = (above[proof.int4["method"] == method] for method in ("lora", "qlora"))
    worst = proof.lora_int4.loc[proof.lora_int4["q_ret_pct"].idxmin()]
    return Finding(
        lora.mean() >= GENERALLY,
        f"{lora.sum()} of {len(lora)}",
        f"at least {GENERALLY:.0%} of the LoRA-INT4 variants are above the printed value",
        f"the lowest is {worst['q_ret_pct']:.1f} % ({variant_name(worst)})",
        {
            f"{name} {part.sum()} of {len(part)}": part.mean() >= GENERALLY
            for name, part in {"QLoRA-INT4 alone": qlora, "both together": above}.items()
        },
    )


def _fidelity_rag_summarization(claim: pd.Series, proof: Evidence) -> Finding:
    bound = float(claim["value"])
    kept = proof.lora_int4[proof.lora_int4["task"].isin(["rag", "summarization"])]["q_ret_pct"]
    return by_statistic(
        {"lowest": kept.min(), "mean": kept.mean()},
        lambda value: value > bound,
        "every LoRA-INT4 variant of the two tasks is above the printed value",
        f"{(kept > bound).sum()} of {len(kept)} variants are above it",
    )


def _int4_free(claim: pd.Series, proof: Evidence) -> Finding:
    speed = by(proof.variants, method="lora").set_index([*MODEL, "task", "precision"])
    speed = speed["throughput_tok_s"].unstack()
    speedup, kept = speed["int4"] / speed["fp16"], proof.lora_int4["q_ret_pct"]
    faster, equal = (speedup > 1).all(), abs(kept.mean() - 100) <= EQUAL_QUALITY_POINTS
    lost = kept < 100 - EQUAL_QUALITY_POINTS
    return Finding(
        faster and equal,
        f"{speedup.min():.2f} to {speedup.max():.2f} times as fast, mean Q_ret {kept.mean():.1f} %",
        "LoRA-INT4 faster than LoRA-FP16 in every pair, mean Q_ret within "
        f"{EQUAL_QUALITY_POINTS:g} point of 100",
        f"the mean holds values from {kept.min():.1f} to {kept.max():.1f} %",
        {
            f"no variant loses more than {EQUAL_QUALITY_POINTS:g} point: {lost.sum()} of "
            f"{len(lost)} do, the worst keeps {kept.min():.1f} %": faster and not lost.any()
        },
    )


def _evaluation_samples(claim: pd.Series, proof: Evidence) -> Finding:
    quality, samples = proof.figures.quality, samples_per_pass(proof.figures.quality)
    rule = "the smallest number of samples of which every published median can be a mean"
    if samples is None:
        return Finding(None, None, rule, f"none up to {MOST_SAMPLES}")
    fits = mean_of(quality["score_median"], int(claim["value"]))
    served = ", ".join(map(str, sorted(set(proof.figures.serving["requests"]))))
    return Finding(
        samples == int(claim["value"]),
        float(samples),
        rule,
        f"every published median is a mean of {samples} samples, and only {fits.sum()} of "
        f"{len(fits)} can be one of {claim['value']}; {served} requests were served",
    )


def _judge_model(claim: pd.Series, proof: Evidence) -> Finding:
    judges = by(proof.figures.quality, task="dialogue")["judge_model"]
    rule = "the judge named beside the published dialogue scores"
    if judges.isna().any():
        note = "no judge is named beside the scores; the released scoring code calls another one"
        return Finding(None, None, rule, note)
    return Finding(set(judges) == {claim["value"]}, ", ".join(sorted(set(judges))), rule)


# --- method -----------------------------------------------------------------------------------


def _batch_size(claim: pd.Series, proof: Evidence) -> Finding:
    in_flight = requests_in_flight(proof.figures.serving)
    return Finding(
        ((in_flight - float(claim["value"])).abs() <= 0.5).all(),
        in_flight.mean(),
        "tokens per second x seconds per token = requests in flight, in every row",
        f"throughput times time per token gives {in_flight.min():.0f} to {in_flight.max():.0f} "
        f"requests in flight over {len(in_flight)} rows, {in_flight.mean():.0f} on average",
    )


def _runs(claim: pd.Series, proof: Evidence) -> Finding:
    serving, rule = proof.figures.serving, "serving rows of each variant"
    if serving["repetition"].isna().all():
        note = "one row a variant was published and no repetition is told: no interval over runs"
        return Finding(None, None, rule, note)
    fewest = serving.groupby(VARIANT).size().min()
    return Finding(fewest == int(claim["value"]), float(fewest), rule)


def _variants(claim: pd.Series, proof: Evidence) -> Finding:
    count = len(proof.variants)
    rule = "variants with figures of serving and of quality"
    return Finding(count == int(claim["value"]), float(count), rule)


def _small_frontier(claim: pd.Series, proof: Evidence) -> Finding:
    models = frontier_table(proof.variants)
    better = {metric.name: metric.better for metric in metrics.METRICS.values()}
    front = models[non_dominated(models, better)]
    places, larger = [], 0
    for task, part in proof.variants.groupby("task", sort=False):
        on_front = part[non_dominated(part, {"score": "max", "energy_per_request_j": "min"})]
        count = int((proof.parameters(on_front) >= SMALL_PARAMETERS).sum())
        places.append(f"{task} {count} of {len(on_front)}")
        larger += count
    return Finding(
        len(front) > 0 and (proof.parameters(front) < SMALL_PARAMETERS).all(),
        ", ".join(front["model"]),
        "models that no other beats in the five headline columns are all below 2B parameters",
        "none of the five columns is the score",
        {
            "front of score against energy per request, places of larger models: "
            + ", ".join(places): larger == 0
        },
    )


Rule = Callable[[pd.Series, Evidence], Finding]
RULES: dict[str, Rule] = {
    **dict.fromkeys(METRICS, headline.cell),
    "headline_statistic": headline.headline_statistic,
    "ipw_ranking": headline.ipw_ranking,
    "density_ratio": partial(headline.llama_1b_over_large, metric="rho_sys"),
    "ipw_ratio": partial(headline.llama_1b_over_large, metric="ipw"),
    "density_exceeds": headline.density_exceeds,
    "cold_start_range": headline.cold_start_range,
    "cold_start_large": headline.cold_start_large,
    "n_break_often_below": headline.n_break_often_below,
    "api_price": headline.api_price,
    "lora_kwh": partial(_kwh, method="lora"),
    "qlora_kwh": partial(_kwh, method="qlora"),
    "qlora_ratio": _qlora_ratio,
    "qlora_ratio_max": _qlora_ratio_max,
    "qlora_memory": _qlora_memory,
    "qlora_eases": _qlora_eases,
    "equal_compute": _equal_compute,
    "fidelity_generally": _fidelity_generally,
    "fidelity_rag_summarization": _fidelity_rag_summarization,
    "int4_free": _int4_free,
    "evaluation_samples": _evaluation_samples,
    "judge_model": _judge_model,
    "batch_size": _batch_size,
    "runs": _runs,
    "variants": _variants,
    "small_frontier": _small_frontier,
}
