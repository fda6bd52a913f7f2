"""What a reader must know first: facts, warnings, and which differences are within noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from edge_eval_lib.artefacts.source import kept_warnings
from edge_eval_lib.results import columns
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.results.headline import Z95
from edge_eval_lib.results.observations import Results
from edge_eval_lib.results.readable import plain_name
from edge_eval_lib.uncertainty import (
    all_of_one_ratio,
    prompts_needed,
    resampled_coverage,
    single_run_spread,
)

# Whose scatter is shown, and what makes the frontier's figures.
SCATTER = ["throughput_tok_s", "tpot_ms", "energy_per_request_j", "load_energy_j"]
ORDERED = ["energy_per_request_j", "rho_sys", "c_tax"]


def facts(results: Results) -> pd.DataFrame:
    """What ran on what, a row a fact."""
    study, runs = results.study, results.runs
    provenance = runs.loc[runs["stage"] == "serve", "provenance"].iloc[0]
    counts = {p.get("cpu_threads") for p in runs["provenance"]}
    threads = ", ".join(map(str, sorted(count for count in counts if count)))
    packages = {name: v for name, v in provenance.get("packages", {}).items() if v}
    workload, started = study.workload, runs["started"].dropna()
    rows = {
        "host": ", ".join(results.hosts) + (f"; threads: {threads}" if threads else ""),
        "study": f"{study.name}: {study.description}",
        "made": f"{started.min()[:16]} to {started.max()[:16]}" if len(started) else "not recorded",
        "energy source": ", ".join(results.energy_sources) or "none",
        "runs": f"{len(runs)} complete, {len(results.failures)} failed, "
        f"{len(results.missing)} not made; repetitions: {study.repetitions}, each in "
        f"a random order (seed {study.seed})",
        "workload": f"{study.data.evaluation_examples} prompts a task at concurrency "
        f"{workload.headline_concurrency}, {workload.output_tokens} output tokens each",
        "code": ", ".join(_code_versions(runs)) or "no git commit recorded",
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }
    return pd.DataFrame({"what": list(rows), "this study": list(rows.values())})


def warnings(results: Results, variants: pd.DataFrame) -> list[str]:
    """What may be wrong with the figures, a sentence each, the most important first.

    No metric is needed of the table of variants.
    """
    texts = []
    if not results.is_t4:
        texts.append(
            f"Not a T4. These figures were measured on {', '.join(results.hosts)}; the order of "
            "variants may differ on a T4."
        )
    texts += _doubtful(variants)
    if any(columns.ESTIMATED_SOURCE in source for source in results.energy_sources):
        texts.append(
            "Energy is estimated from CPU time and a stated range of watts per core, not measured: "
            "it follows time, and differences of power cannot be seen in it." + _range(variants)
        )
    if not results.energy_sources:
        texts.append("No energy source was readable: every figure that needs energy is empty.")
    if variants["repetitions"].max() == 1:
        texts.append(f"One repetition: figures over runs have no interval. {_scatter(results)}")
    texts += [
        f"{text} Differences of speed and energy between rows are of these too."
        for text in columns.mixed(variants)
    ]
    if len(results.failures) or results.missing:
        texts.append(
            f"Incomplete: runs failed: {len(results.failures)}; runs not made: "
            f"{len(results.missing)}. The tables hold what is there."
        )
    texts += kept_warnings(results.study)
    versions = _code_versions(results.runs)
    if len(versions) > 1:
        texts.append(f"The runs were made by {len(versions)} versions of the code.")
    return texts


def _doubtful(variants: pd.DataFrame) -> list[str]:
    """How many variants are doubtful, and by which validity checks."""
    verdicts = variants["validity"].map(columns.verdict)
    doubtful = variants["validity"][verdicts.isin(columns.DOUBTFUL)]
    if doubtful.empty:
        return []
    checks = columns.doubtful_checks(doubtful)
    counts = checks.groupby(level=0).unique().explode().value_counts()
    named = ", ".join(f"{name} ({count})" for name, count in counts.items())
    where = "their rows are marked, and best figures are taken from the others"
    if len(doubtful) == len(variants):
        where = "no row is left that is not"
    several = f"{len(doubtful)} of {len(variants)} variants are"
    return [
        f"{several if len(variants) > 1 else 'The one variant is'} doubtful by the validity checks "
        f"({(verdicts == 'invalid').sum()} of them invalid): {named}; {where}."
    ]


def _range(variants: pd.DataFrame) -> str:
    low, high = (
        variants[f"energy_per_request_{end}_j"] / variants["energy_per_request_j"]
        for end in ("lo", "hi")
    )
    if low.isna().all() or high.isna().all():
        return ""
    return (
        f" Every joule here may be {low.min():.2g} to {high.max():.2g} times what is shown, the "
        "same for all rows; IPW and N_break carry that range in brackets, and in C_tax it cancels."
    )


def _scatter(results: Results) -> str:
    """How far one run scatters, in words."""
    spread = scatter(results, SCATTER).dropna()
    if spread.empty:
        return (
            "No two variants served the same arithmetic, so that one run's scatter is not known: "
            "small differences may mean nothing."
        )
    shares = ", ".join(
        f"{plain_name(name)} {100 * share:.0f} %" for name, share in spread["relative_sd"].items()
    )
    least, most = spread["relative_sd"].min(), spread["relative_sd"].max()
    return (
        f"Variants that serve the same arithmetic (LoRA beside QLoRA at INT4, the base beside LoRA "
        f"at FP16: {int(spread['pairs'].max())} pairs) are alike, and yet differ: one run scatters "
        f"by {100 * least:.0f}–{100 * most:.0f} % ({shares}; a standard deviation). Two rows must "
        f"differ {np.exp(Z95 * np.sqrt(2) * most):.2g} times for any of these to show it, "
        "and numbers are rounded to two digits."
    )


def _code_versions(runs: pd.DataFrame) -> list[str]:
    commits = (p.get("git_commit") for p in runs["provenance"] if isinstance(p, dict))
    return sorted({c for c in commits if c})


def scatter(results: Results, figures: Sequence[str]) -> pd.DataFrame:
    """One run's scatter at the headline concurrency (`uncertainty.single_run_spread`).

    Runs whose validity is invalid are left out, unless all are.
    """
    runs = results.headline
    valid = runs[runs["validity"].map(columns.verdict) != "invalid"]
    runs = (valid if len(valid) else runs).copy()
    measured = [*columns.OVER_RUNS, *columns.LOAD]
    runs[measured] = runs[measured].astype(float)
    groups = runs.groupby(VARIANT, sort=False)
    table = pd.concat([groups[["concurrency", *columns.MIXED]].first(), groups[measured].mean()],
                      axis=1)  # fmt: skip
    table["repetitions"] = groups.size()
    table["rho_sys"] = table["throughput_tok_s"] / table["memory_gb"]
    table["c_tax"] = table["load_energy_j"] / table["energy_per_request_j"]
    return single_run_spread(table.reset_index(), figures)


def resolution(answers: pd.DataFrame) -> pd.DataFrame:
    """How well this study's prompts resolve Q_ret, a row a variant beside LoRA-FP16.

    `coverage`: how often nominal 95 % intervals hold the truth, simulated with these answers;
    `needed_prompts`: how many would show a difference of 3 points; the shares of answers that
    scored the `same` as LoRA-FP16's, `worse`, and for which it scored `zero`. Empty where no
    answer changed: then nothing bounds Q_ret.
    """
    scored = answers.dropna(subset=["score"])
    by_prompt = scored.groupby([*VARIANT, "prompt_id"])["score"].mean()
    rows = []
    for key, own in by_prompt.groupby(VARIANT):
        base = (*key[:3], "lora", "fp16")
        if key[3] == "none" or key == base or base not in by_prompt.index.droplevel("prompt_id"):
            continue
        pairs = pd.concat([own.droplevel(VARIANT), by_prompt.loc[base]], axis=1).dropna()
        a, b = pairs.iloc[:, 0].to_numpy(), pairs.iloc[:, 1].to_numpy()
        if len(pairs) < 2 or b.sum() == 0:
            continue
        row = dict(zip(VARIANT, key, strict=True)) | {"prompts": len(pairs)}
        row |= {"same": (a == b).mean(), "worse": (a < b).mean(), "zero": (b == 0).mean()}
        if not all_of_one_ratio(a, b):
            row |= {"coverage": resampled_coverage(a, b), "needed_prompts": prompts_needed(a, b)}
        rows.append(row)
    names = [*VARIANT, "prompts", "same", "worse", "zero", "coverage", "needed_prompts"]
    table = pd.DataFrame(rows, columns=names)
    table[names[6:]] = table[names[6:]].astype(float)
    return columns.sort_variants(table)


def requests_alone(results: Results) -> pd.DataFrame:
    """Requests at concurrency 1, where a request waits for no other; variants in order."""
    closed = results.closed_loop
    alone = closed[closed["concurrency"] == 1]
    facts = alone.drop_duplicates("run").set_index("run")[[*columns.MIXED, "validity"]]
    requests = results.requests[results.requests["window"] == "serve at 1"]
    return columns.sort_variants(requests.join(facts, on="run"))
