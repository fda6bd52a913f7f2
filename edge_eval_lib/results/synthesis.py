"""Synthesis: what a study's runs recorded -> observations, answers, and the report.

    results = open_results("embedded")
    write_results(results)

What a stage notebook records, by scrap name:

- every one: `settings_hash`, `started` (ISO 8601), `provenance` (host.provenance)
- adapt, compress, serve: `family`, `size`, `task`, `method`
- adapt: its windows under `base_load` and `adapt`, `executed_dtype`, `instruction_set`
- compress: `merge_base`; the merge's window under `fp16`, each quantisation's under its precision
- serve: `precision`, `repetition`, `engine`, `executed_dtype`, `instruction_set`, `gpus`,
  `memory_nominal_gb`, `batch_agreement`; the load's window under `load`, its parts (`COLD_START`)
  and the libraries' energy (`load_import_energy_j`, `_lo_j`, `_hi_j`); `idle_bare_power_w`,
  `idle_loaded_power_w`, `idle_reason`
  (why they are missing); `serving_windows`, a `workload.window_record` a concurrency
- harness: what identifies a variant, and `harness`, its `harness.metric_rows`

A window under a prefix is `Window.as_dict(prefix)`. Raw data lie beside the notebook:
`<run>.requests.parquet` (serve; `workload.request_table`), `<run>.power.parquet` (every power
sample) and `<run>.answers.parquet` (score; the answers of every serving run at the headline
concurrency). The serving figures are computed from these, not taken from the notebook.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from edge_eval_lib import scraps
from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import Place, lab_directory, read_failure
from edge_eval_lib.artefacts.source import kept_warnings
from edge_eval_lib.economics.cost import keep_warm_s
from edge_eval_lib.economics.prices import PriceBook, Prices, load_price_book
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import harness
from edge_eval_lib.lifecycle.score import CONTENT
from edge_eval_lib.lifecycle.serve import closed_loop_name
from edge_eval_lib.results import figures, tables
from edge_eval_lib.results.report import Report, Section, render_report
from edge_eval_lib.results.serving import recomputed
from edge_eval_lib.results.tables import Z95
from edge_eval_lib.runs import runner
from edge_eval_lib.study import Study, find_beside, load_study
from edge_eval_lib.uncertainty import (
    all_of_one_ratio,
    prompts_needed,
    resampled_coverage,
    single_run_spread,
)

ADAPTER = [*tables.MODEL, "task", "method"]
COLD_START = [
    "load_energy_j",
    "load_s",
    "load_interpreter_s",
    "load_import_energy_j",
    "load_import_s",
    "load_read_s",
    "load_place_s",
    "load_first_token_s",
]
STAMPED = ("imports", "base_load", "load", "adapt", "fp16", "int8", "int4")
# Whose scatter the report tells, and what makes the frontier's figures.
SCATTER = ["throughput_tok_s", "tpot_ms", "energy_per_request_j", "load_energy_j"]
ORDERED = ["energy_per_request_j", "rho_sys", "c_tax"]
ADAPT_WINDOWS = ("base_load", "adapt")
REQUEST_COLUMNS = [
    "window",
    "input_tokens",
    "output_tokens",
    "natural_tokens",
    "ttft_ms",
    "tpot_ms",
]


@dataclass(frozen=True)
class Results:
    """What a study has so far. `runs` has a row a completed run, with its `stage` and `run` name;
    `failures` one a failed run; `missing` names planned runs that are neither, as STAGE/NAME.

    `study.repetitions` is what was found, where more repetitions were made than the file says.
    """

    study: Study
    runs: pd.DataFrame
    observations: pd.DataFrame
    answers: pd.DataFrame
    no_model: pd.DataFrame
    requests: pd.DataFrame
    checks: pd.DataFrame
    failures: pd.DataFrame
    missing: list[str]

    @property
    def closed_loop(self) -> pd.DataFrame:
        """Observations at every concurrency, without prefix caching."""
        found = self.observations
        return found[found["rate_per_s"].isna() & ~found["prefix_caching"].eq(True)]

    @property
    def headline(self) -> pd.DataFrame:
        """Those at the study's headline concurrency."""
        at = self.study.workload.headline_concurrency
        return self.closed_loop[self.closed_loop["concurrency"] == at]

    @property
    def hosts(self) -> list[str]:
        """The machines that the serving runs were made on."""
        return sorted(self.observations["host"].dropna().unique())

    @property
    def energy_sources(self) -> list[str]:
        """Every energy source of the observations."""
        return sorted(self.observations["energy_source"].dropna().unique())

    @property
    def stamp(self) -> str:
        """Host and energy source, for the foot of a figure."""
        sources = ", ".join(self.energy_sources) or "none"
        parts = [", ".join(self.hosts), f"energy: {sources}"]
        if not self.is_t4:
            parts.append("not a T4: the order of variants may differ there")
        return " · ".join(parts)

    @property
    def is_t4(self) -> bool:
        """Whether every run was made on T4s."""
        return bool(self.hosts) and all("T4" in host for host in self.hosts)


def load_results(study: Study, directory: str | Path | None = None) -> Results:
    """Collect what lies under the study's outputs (or `directory`).

    A run made with other settings than the study's is out of date and counts as missing. UserError
    if no serving run is complete: there is nothing to tabulate.
    """
    directory = Path(directory) if directory else study.directory
    collected = scraps.collect(directory / "runs")
    unreadable = collected.attrs["unreadable"]
    if len(collected):
        paths = collected["notebook"].map(Path)
        collected["stage"] = [path.parent.name for path in paths]
        collected["run"] = [path.stem for path in paths]
    if collected.empty or not (collected["stage"] == "serve").any():
        raise UserError(
            f"There is no completed serving run under {directory}; "
            f"run `make all STUDY={study.argument}` first."
        )
    study = study.with_repetitions(int(max(study.repetitions, collected["repetition"].max())))
    planned = {(run.stage, run.name): run.settings_hash for run in study.runs()}
    # The score run covers however many repetitions there were: its hash does not tell.
    current = [
        key in planned and (key[0] == "score" or planned[key] == made_with)
        for key, made_with in zip(
            zip(collected["stage"], collected["run"], strict=True),
            collected["settings_hash"],
            strict=True,
        )
    ]
    runs = collected[current].reset_index(drop=True)
    if not (runs["stage"] == "serve").any():
        raise UserError(
            f"Every serving run under {directory} was made with other settings than {study.path} "
            f"has now; run `make all STUDY={study.argument}`."
        )
    runs.attrs["unreadable"] = unreadable
    completed = set(zip(runs["stage"], runs["run"], strict=True))
    failures = _failures(directory / "failed", completed)
    known = completed | set(zip(failures["stage"], failures["run"], strict=True))
    requests = requests_of(runs)
    return Results(
        study=study,
        runs=runs,
        observations=observations_of(runs, requests),
        answers=answers_of(runs),
        no_model=no_model_of(runs),
        requests=requests,
        checks=checks_of(runs),
        failures=failures,
        missing=["/".join(key) for key in planned if key not in known],
    )


def observations_of(runs: pd.DataFrame, requests: pd.DataFrame) -> pd.DataFrame:
    """One row a serving run and concurrency, with its adapter's adaptation and compression.

    The serving figures are computed again from `requests` (`requests_of`), the windows' records
    and the power samples.
    """
    by_stage = dict(list(runs.groupby("stage")))
    adapters = _by_adapter(by_stage.get("adapt"))
    merges = _by_adapter(by_stage.get("compress"))
    requests_by_run = dict(list(requests.groupby("run")))
    rows = []
    for run in by_stage["serve"].to_dict("records"):
        key = tuple(run[c] for c in ADAPTER)
        adapt, compress = adapters.get(key, {}), merges.get(key, {})
        adaptation, reason = _adaptation(adapt)
        load_model, load_reason = _load_of_model(run)
        reasons = [reason, _reason(run, "load"), load_reason, _idle_reason(run)]
        row = {c: run[c] for c in [*tables.VARIANT, "repetition", "engine", "gpus", "run"]}
        row |= {c: run.get(c) for c in ("settings_hash", "memory_nominal_gb", "batch_agreement")}
        row |= {c: run.get(c) for c in ("executed_dtype", "instruction_set")}
        row |= {"host": _host(run), "merge_base": compress.get("merge_base")}
        row |= adaptation | load_model | {"rows_passed_over": adapt.get("rows_passed_over")}
        ranges = [c for c in tables.RANGES if c.startswith("load_energy")]
        row |= {c: run.get(c) for c in (*tables.LOAD, *ranges, *tables.IDLE)}
        if pd.isna(row["batch_agreement"]):
            reasons.append("batch_agreement: no answer was compared with the same prompt's alone")
        before = _checks({w: adapt.get(f"{w}_checks") for w in ADAPT_WINDOWS})
        before += _checks({"load": run.get("load_checks")})
        before += _checks({w: compress.get(f"{w}_checks") for w in _merged(run["precision"])})
        if run["method"] != "none":
            compression, reason = _compression(compress, run["precision"])
            row |= compression
            reasons.append(reason)
        windows = run["serving_windows"]
        power = _power(run["notebook"]) if _continuous(windows) else NO_POWER
        figures_of = recomputed(windows, requests_by_run[run["run"]], power)
        for window, serving in zip(windows, figures_of, strict=True):
            told = [*reasons, serving["notes"]]
            found = before + _checks({window["window"]: serving["checks"]})
            rows.append(
                row
                | {c: v for c, v in serving.items() if c in tables.OBSERVATION_COLUMNS}
                | {"notes": "; ".join(filter(None, told)) or None, "validity": _validity(found)}
            )
    return pd.DataFrame(rows).reindex(columns=tables.OBSERVATION_COLUMNS)


def _host(run: dict) -> str:
    """The machine that served; an endpoint's is not known."""
    host = run["provenance"]["host"]
    return f"an endpoint, asked from {host}" if run["engine"] == "openai" else host


def _by_adapter(runs: pd.DataFrame | None) -> dict[tuple, dict]:
    if runs is None:
        return {}
    return {tuple(run[c] for c in ADAPTER): run for run in runs.to_dict("records")}


def _reason(run: dict, window: str) -> str | None:
    reason = run.get(f"{window}_energy_reason")
    return f"{window}_energy_j: {reason}" if isinstance(reason, str) and reason else None


def _idle_reason(run: dict) -> str | None:
    reason = run.get("idle_reason")
    return f"keep_warm_s: {reason}" if isinstance(reason, str) and reason else None


def _merged(precision: str) -> list[str]:
    """The compress run's windows that a precision took: the merge, and its quantisation."""
    return ["fp16"] if precision == "fp16" else ["fp16", precision]


def _checks(windows: dict[str, list[dict] | None]) -> list[dict]:
    """The checks of some windows, each with its `window`."""
    return [
        check | {"window": window}
        for window, found in windows.items()
        for check in (found if isinstance(found, list) else [])
    ]


def _validity(found: list[dict]) -> str:
    """`ok`, or the checks of a row's windows that are not, the worst first."""
    doubtful = [
        f"{verdict}: {check['name']} ({check['window']})"
        for verdict in ("invalid", "warning")
        for check in found
        if check["verdict"] == verdict
    ]
    return "; ".join(doubtful) or ("ok" if found else "not checked")


def _continuous(windows: list[dict]) -> bool:
    return any(window["continuous_batching"] for window in windows)


def _compression(run: dict, precision: str) -> tuple[dict, str | None]:
    """Energy and seconds of the merge and, below FP16, the quantisation; and why it is missing."""
    windows = _merged(precision)
    reasons = [run.get(f"{window}_energy_reason") for window in windows]
    reason = next((f"compress_energy_j: {r}" for r in reasons if isinstance(r, str) and r), None)
    return _totals(run, windows, "compress"), reason


def _totals(run: dict, windows: Sequence[str], name: str) -> dict[str, float | None]:
    """Energy with its range, and seconds, of several windows together; None if one is unknown."""
    figures = ("energy_j", "energy_lo_j", "energy_hi_j", "s")
    return {f"{name}_{f}": _sum([run.get(f"{window}_{f}") for window in windows]) for f in figures}


def _adaptation(run: dict) -> tuple[dict, str | None]:
    """Loading the base and training, together and the training alone; and why it is missing."""
    if not run:
        return {}, None
    row = _totals(run, ADAPT_WINDOWS, "adapt")
    row |= {f"adapt_train_{f}": run.get(f"adapt_{f}") for f in ("energy_j", "s")}
    peaks = pd.Series([run.get(f"{w}_peak_memory_gb") for w in ADAPT_WINDOWS], dtype=float)
    energy, seconds = row["adapt_energy_j"], row["adapt_s"]
    row["adapt_peak_memory_gb"] = peaks.max()
    row["adapt_power_w"] = None if energy is None or not seconds else energy / seconds
    row |= {f"adapt_{c}": run.get(c) for c in ("executed_dtype", "instruction_set")}
    row["adapt_host"] = run["provenance"]["host"]
    reasons = [run.get(f"{window}_energy_reason") for window in ADAPT_WINDOWS]
    reasons = [reason for reason in reasons if isinstance(reason, str) and reason]
    if pd.isna(run.get("base_load_s")):
        reasons.append("this run did not record the loading of the base")
    return row, f"adapt_energy_j: {reasons[0]}" if reasons else None


def _load_of_model(run: dict) -> tuple[dict, str | None]:
    """The load's energy without the libraries' import; and why it is missing."""
    row = {
        f"load_model_{f}": _sum([run.get(f"load_{f}"), _negative(run.get(f"load_import_{f}"))])
        for f in ("energy_j", "energy_lo_j", "energy_hi_j")
    }
    energy = row["load_model_energy_j"]
    if energy is not None and energy >= 0:
        return row, None
    why = "this run did not tell the libraries' part of the load"
    if energy is not None:
        why = "less than the noise of the libraries' part"
    return dict.fromkeys(row), f"load_model_energy_j: {why}"


def _negative(value: float | None) -> float | None:
    return None if pd.isna(value) else -value


def _sum(values: Sequence[float | None]) -> float | None:
    return None if any(pd.isna(v) for v in values) else float(sum(values))


def answers_of(runs: pd.DataFrame) -> pd.DataFrame:
    """The scored answers of the score run; without one, no rows."""
    parts = [_beside(path, "answers") for path in runs.loc[runs["stage"] == "score", "notebook"]]
    if parts:
        return pd.concat(parts, ignore_index=True)
    columns = [*tables.VARIANT, "repetition", "prompt_id", "score_reason"]
    return pd.DataFrame(columns=columns).assign(score=pd.Series(dtype=float))


def no_model_of(runs: pd.DataFrame) -> pd.DataFrame:
    """What rules answered without a model, scored; no rows where the score run kept none."""
    notebooks = runs.loc[runs["stage"] == "score", "notebook"]
    kept = [path for path in notebooks if Path(path).with_suffix(".no_model.parquet").exists()]
    parts = [_beside(path, "no_model") for path in kept]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def requests_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Every request of every serving run, with its `variant` and repetition."""
    parts = []
    for run in runs[runs["stage"] == "serve"].to_dict("records"):
        # Every token's time is read only where a figure needs it: there are very many of them.
        times = ["token_times_s"] if _continuous(run["serving_windows"]) else []
        part = _beside(run["notebook"], "requests", [*REQUEST_COLUMNS, *times])
        named = part.assign(variant=tables.variant_name(run), repetition=run["repetition"])
        parts.append(named.assign(run=run["run"], **{c: run[c] for c in tables.VARIANT}))
    return pd.concat(parts, ignore_index=True)


MOST_CUT = 0.1  # of a variant's answers; above it, a limit is said to tell on scores
NO_POWER = pd.DataFrame({"monotonic_s": [], "device": [], "power_w": [], "window": []})


def _power(notebook: str) -> pd.DataFrame:
    return _beside(notebook, "power")


def _beside(notebook: str, what: str, columns: list[str] | None = None) -> pd.DataFrame:
    return completion.read_raw(notebook, what, columns)


def checks_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Every validity check of every window: run, stage, window, check, verdict, detail."""
    rows = []
    for run in runs.to_dict("records"):
        windows = {name: run.get(f"{name}_checks") for name in STAMPED}
        served = run.get("serving_windows")
        for serving in served if isinstance(served, list) else []:
            windows[serving["window"]] = serving["checks"]
        rows += [
            {"run": run["run"], "stage": run["stage"], "window": check["window"]}
            | {"check": check["name"], "verdict": check["verdict"], "detail": check["detail"]}
            for check in _checks(windows)
        ]
    return pd.DataFrame(rows, columns=["run", "stage", "window", "check", "verdict", "detail"])


def _failures(directory: Path, completed: set[tuple[str, str]]) -> pd.DataFrame:
    """Failed runs that have not completed since: stage, run, reason."""
    rows = []
    for path in sorted(directory.glob("*/*.json")):
        key = (path.parent.name, path.stem)
        failure = read_failure(Place(directory.parent, *key))
        if key not in completed and failure is not None:
            rows.append({"stage": key[0], "run": key[1], "reason": failure["reason"]})
    return pd.DataFrame(rows, columns=["stage", "run", "reason"])


def cold_starts(results: Results) -> pd.DataFrame:
    """What a cold start is made of, and how long to stay loaded: a row a configuration.

    Means over the tasks and repetitions of a configuration: the loads are of the same size.
    `keep_warm_s` is the idle time beyond which unloading takes less energy; empty where the energy
    source knows no idle power.
    """
    runs = results.runs[results.runs["stage"] == "serve"]
    columns = [*COLD_START, "idle_bare_power_w", "idle_loaded_power_w"]
    runs = runs.reindex(columns=[*tables.MODEL, "method", "precision", *columns])
    runs[columns] = runs[columns].astype(float)
    groups = runs.groupby([*tables.MODEL, "method", "precision"], sort=False)
    table = groups.mean().assign(loads=groups.size())
    # A first token that took too little to be told apart is left out of no mean: it is empty.
    table["load_first_token_s"] = groups["load_first_token_s"].mean(skipna=False)
    known = table[["load_energy_j", "idle_bare_power_w", "idle_loaded_power_w"]].notna().all(axis=1)
    table["keep_warm_s"] = float("nan")
    if known.any():
        table.loc[known, "keep_warm_s"] = keep_warm_s(
            table.loc[known, "load_energy_j"],
            table.loc[known, "idle_loaded_power_w"],
            table.loc[known, "idle_bare_power_w"],
        )
    return tables.sort_variants(table.reset_index())


# --- tables, figures, report ------------------------------------------------------------------


def result_tables(results: Results) -> dict[str, pd.DataFrame]:
    """The study's tables by file name."""
    book, prices = prices_of(results.study)
    variants = tables.variants_table(
        results.headline,
        results.answers,
        prices,
        book.scenario_prices(prices),
        price_set=results.study.prices,
    )
    found = {
        "variants": variants,
        "frontier": tables.frontier_table(variants, spread=scatter(results, ORDERED)),
        "adaptation": tables.adaptation_table(results.headline),
        "serving": tables.serving_table(results.closed_loop),
        "reference": tables.reference_table(results.headline, results.answers, results.no_model),
        "cold_starts": cold_starts(results),
        "checks": results.checks,
    }
    observations, workload = results.observations, results.study.workload
    if workload.arrival_rates_per_s:
        open_loops = observations[observations["rate_per_s"].notna()]
        found["arrivals"] = tables.serving_table(open_loops, over="rate_per_s")
    if workload.prefix_caching:
        at_headline = observations["concurrency"] == workload.headline_concurrency
        found["prefix_caching"] = tables.prefix_caching_table(observations[at_headline])
    if results.study.harness is not None:
        found["harness"] = harness.harness_table(results.runs, results.study)
    return found


def prices_of(study: Study) -> tuple[PriceBook, Prices]:
    """The price book beside the study's file or in params/, and the set that the study names."""
    book = load_price_book(find_beside(study.path, "prices.yaml"))
    return book, book.prices(study.prices)


def scatter(results: Results, columns: Sequence[str]) -> pd.DataFrame:
    """One run's scatter at the headline concurrency (`uncertainty.single_run_spread`).

    Runs whose validity is invalid tell none, unless all are.
    """
    runs = results.headline
    valid = runs[runs["validity"].map(tables.verdict) != "invalid"]
    runs = (valid if len(valid) else runs).copy()
    figures = [*tables.OVER_RUNS, *tables.LOAD]
    runs[figures] = runs[figures].astype(float)
    texts = ["concurrency", "engine", "host", "executed_dtype", "instruction_set"]
    groups = runs.groupby(tables.VARIANT, sort=False)
    table = pd.concat([groups[texts].first(), groups[figures].mean()], axis=1)
    table["repetitions"] = groups.size()
    table["rho_sys"] = table["throughput_tok_s"] / table["memory_gb"]
    table["c_tax"] = table["load_energy_j"] / table["energy_per_request_j"]
    return single_run_spread(table.reset_index(), columns)


def latency_requests(results: Results) -> pd.DataFrame:
    """Requests at concurrency 1, where a request waits for no other; variants in order."""
    alone = results.requests[results.requests["window"] == closed_loop_name(1)]
    seen = results.observations[results.observations["concurrency"] == 1]
    facts = seen.drop_duplicates("run").set_index("run")[[*tables.MIXED, "validity"]]
    return tables.sort_variants(alone.join(facts, on="run"))


@dataclass(frozen=True)
class Picture:
    """A figure, what it is called, and a sentence on how to read it."""

    heading: str
    figure: Figure
    caption: str


def result_figures(results: Results, found: dict[str, pd.DataFrame]) -> dict[str, Picture]:
    """The study's figures by file name."""
    variants, stamp = found["variants"], results.stamp
    drawn = {
        "roi_ipw_quadrants": Picture(
            "Break-even and intelligence per watt",
            figures.roi_ipw_quadrants(variants, stamp),
            "Each marker is a variant. Further up: adaptation has paid for itself after fewer "
            "requests, electricity alone counted at the prices of the set "
            f"{results.study.prices!r}. Further right: more score for a joule. Grey lines are the "
            "medians.",
        ),
        "system_density": Picture(
            "System density",
            figures.system_density(variants, stamp),
            "Output tokens a second for each GB that serving needed, on a logarithmic axis; lines "
            "are intervals over runs, where there are several.",
        ),
        "quality_stability": Picture(
            "Quality and its stability",
            figures.quality_stability(variants, stamp),
            "Score to the right, and what is left of LoRA-FP16's score upwards; lines are 95 % "
            "intervals over prompts. Where a vertical line crosses 100, the prompts do not tell "
            "the variant from LoRA-FP16; where there is none, no answer changed and nothing bounds "
            "it.",
        ),
        "adaptation_energy": Picture(
            "Energy of adapting, LoRA and QLoRA",
            figures.adaptation_energy(found["adaptation"], stamp),
            "What one adaptation took with either method on the same data: loading the base and "
            "training. Each was made once, so that its own scatter is not known.",
        ),
        "lifecycle_energy": Picture(
            "Energy of the lifecycle, by stage",
            figures.lifecycle_energy(variants, stamp=stamp),
            "Energy by stage on a log axis: adapting and compressing happen once, loading at "
            "each cold start, serving for each request.",
        ),
        "latency_distributions": Picture(
            "Latency of single requests",
            figures.latency_distributions(latency_requests(results), stamp),
            "Requests served one at a time, so that none waits for another.",
        ),
    }
    if found["serving"]["concurrency"].nunique() > 2:
        drawn["concurrency"] = Picture(
            "Throughput and waiting, by concurrency",
            figures.load_curves(found["serving"], "concurrency", stamp),
            "A closed loop: the next request waits for a slot. The concurrency doubles until "
            "throughput gains less than 5 %.",
        )
    if "arrivals" in found:
        drawn["arrivals"] = Picture(
            "Throughput and waiting, by arrival rate",
            figures.load_curves(found["arrivals"], "rate_per_s", stamp),
            "An open loop: requests come at random times, at this rate on average, and the wait "
            "for the engine counts. Where requests come faster than they are answered, the wait "
            "grows with the length of the measurement.",
        )
    if "harness" in found:
        drawn["harness"] = Picture(
            "Scores by lm-evaluation-harness",
            figures.harness_scores(found["harness"], stamp),
            "Tasks as the study names them, by the first metric that the library tells of each. "
            "Lines are 95 % intervals by its standard errors; variants answered the same prompts, "
            "so that their differences are known better than the lines say.",
        )
    return drawn


def warnings_of(results: Results, found: dict[str, pd.DataFrame]) -> list[str]:
    """What a reader must know before the first number."""
    told = []
    if not results.is_t4:
        told.append(
            f"Not a T4. These figures were measured on {', '.join(results.hosts)}; the order of "
            "variants may differ on a T4."
        )
    told += _doubtful_text(found["variants"])
    if any("cpu-model" in source for source in results.energy_sources):
        told.append(
            "Energy is estimated from CPU time and a stated range of watts per core, not measured: "
            "it follows time, and differences of power cannot be seen in it."
            + _range_text(found["variants"])
        )
    if not results.energy_sources:
        told.append("No energy source was readable: every figure that needs energy is empty.")
    if found["variants"]["repetitions"].max() == 1:
        told.append(f"One repetition: figures over runs have no interval. {_scatter_text(results)}")
    told += [
        f"{text} Differences of speed and energy between rows are of these too."
        for text in tables.mixed(found["variants"])
    ]
    if len(results.failures) or results.missing:
        told.append(
            f"Incomplete: runs failed: {len(results.failures)}; runs not made: "
            f"{len(results.missing)}. The tables hold what is there."
        )
    told += kept_warnings(results.study)
    versions = _code_versions(results.runs)
    if len(versions) > 1:
        told.append(f"The runs were made by {len(versions)} versions of the code.")
    return told


def _doubtful_text(variants: pd.DataFrame) -> list[str]:
    """How many variants a validity check found doubtful, and which checks."""
    validity = variants["validity"].astype(str)
    doubtful = validity[validity.map(tables.verdict).isin(tables.DOUBTFUL)]
    if doubtful.empty:
        return []
    invalid = int((doubtful.map(tables.verdict) == "invalid").sum())
    counts = doubtful.str.extractall(r"(?:invalid|warning): ([^;(]+?) \(")[0]
    checks = counts.groupby(level=0).unique().explode().value_counts()
    named = ", ".join(f"{name} ({count})" for name, count in checks.items())
    where = "their rows are marked, and best figures are taken from the others"
    if len(doubtful) == len(variants):
        where = "no row is left that is not"
    return [
        f"{len(doubtful)} of {len(variants)} variants are doubtful by the validity checks "
        f"({invalid} of them invalid): {named}; {where}."
    ]


def _range_text(variants: pd.DataFrame) -> str:
    factors = [
        variants[f"energy_per_request_{end}_j"] / variants["energy_per_request_j"]
        for end in ("lo", "hi")
    ]
    if any(factor.isna().all() for factor in factors):
        return ""
    low, high = factors[0].min(), factors[1].max()
    return (
        f" Every joule here may be {low:.2g} to {high:.2g} times what is shown, the same for all "
        "rows; IPW and N_break carry that range in brackets, and in C_tax it cancels."
    )


def _scatter_text(results: Results) -> str:
    """How far one run scatters, in words."""
    found = scatter(results, SCATTER).dropna()
    if found.empty:
        return (
            "No two variants served the same arithmetic, so that one run's scatter is not known: "
            "small differences may mean nothing."
        )
    shares = ", ".join(
        f"{tables.plain_name(name)} {row['relative_sd']:.0%}".replace("%", " %")
        for name, row in found.iterrows()
    )
    least, most = found["relative_sd"].min(), found["relative_sd"].max()
    return (
        f"Variants that serve the same arithmetic (LoRA beside QLoRA at INT4, the base beside LoRA "
        f"at FP16: {int(found['pairs'].max())} pairs) are alike, and yet differ: one run scatters "
        f"by {100 * least:.0f}–{100 * most:.0f} % ({shares}; a standard deviation). Two rows must "
        f"differ {np.exp(Z95 * np.sqrt(2) * most):.2g} times to be told apart by any of these, "
        "and numbers are rounded to two digits."
    )


def _code_versions(runs: pd.DataFrame) -> list[str]:
    commits = (p.get("git_commit") for p in runs["provenance"] if isinstance(p, dict))
    return sorted({c for c in commits if c})


def facts_of(results: Results) -> dict[str, str]:
    """What ran on what, for the head of the report."""
    study, runs = results.study, results.runs
    provenance = runs.loc[runs["stage"] == "serve", "provenance"].iloc[0]
    told = [p.get("cpu_threads") for p in runs["provenance"]]
    threads = ", ".join(map(str, sorted({count for count in told if count})))
    packages = {name: v for name, v in provenance.get("packages", {}).items() if v}
    workload = study.workload
    started = runs["started"].dropna()
    return {
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


def coverage_text(scored: pd.DataFrame) -> list[str]:
    """How often the intervals of Q_ret hold the truth at this study's own answers, simulated."""
    by_prompt = scored.groupby([*tables.VARIANT, "prompt_id"])["score"].mean()
    covered, unbounded = [], []
    for key, own in by_prompt.groupby(tables.VARIANT):
        base = (*key[:3], "lora", "fp16")
        if key[3] == "none" or key == base or base not in by_prompt.index.droplevel("prompt_id"):
            continue
        pair = pd.concat([own.droplevel(tables.VARIANT), by_prompt.loc[base]], axis=1).dropna()
        a, b = pair.iloc[:, 0].to_numpy(), pair.iloc[:, 1].to_numpy()
        name = f"{figures.configuration_name(*key[3:])}, {key[2]}"
        if len(pair) < 2 or b.sum() == 0:
            continue
        if all_of_one_ratio(a, b):
            unbounded.append(name)
            continue
        shares = (a == b).mean(), (a < b).mean(), (b == 0).mean()
        covered.append((resampled_coverage(a, b), name, len(pair), shares))
    texts = []
    if covered:
        share, name, prompts, (same, worse, zero) = min(covered)
        texts.append(
            f"Simulated with this study's own answers, its nominal 95 % intervals of Q_ret hold "
            f"the truth in {share:.0%} to {max(covered)[0]:.0%} of studies. Lowest: {name} "
            f"({prompts} prompts; {same:.0%} scored the same as LoRA-FP16's, {worse:.0%} worse; "
            f"{zero:.0%} of LoRA-FP16's scored 0)."
        )
    if unbounded:
        texts.append(f"Q_ret is not bounded where no answer changed: {'; '.join(unbounded)}.")
    return texts


_CONTENT_WORDS = {
    "fact_f1": "token F1 of the fact without the note's title",
    "topic": "share of answers that open with the right topic",
    "next_step": "share of replies that tell the right next step",
}


def content_text(reference: pd.DataFrame) -> list[str]:
    """Whether adapting taught content or form: LoRA-FP16 beside the base and the rules, a sentence
    a model and task. An advantage counts where its whole interval is above 0."""
    columns = ["content_difference_lo", "content_difference_no_model_lo"]
    if not set(columns) <= set(reference):
        return []
    texts = []
    adapted = reference[reference["method"].eq("lora") & reference["precision"].eq("fp16")]
    for _, row in adapted.iterrows():
        figure = CONTENT[row["task"]]
        told = (
            _CONTENT_WORDS[figure] if pd.notna(row.get(figure)) else "the score; there is no form"
        )
        against = [
            f"{row[f'content_difference{end}']:+.2f} [{row[f'content_difference{end}_lo']:+.2f}, "
            f"{row[f'content_difference{end}_hi']:+.2f}] {words}"
            for end, words in (("", "over the base"), ("_no_model", "over no model"))
        ]
        better = [row[c] > 0 for c in columns]
        if all(better):
            verdict = "adapting taught content"
        elif better[0]:
            verdict = (
                "more than the base, but no more than rules without a model are shown to reach: "
                "adapting taught the form"
            )
        else:
            verdict = "no gain of content is shown: adapting taught the form"
        texts.append(
            f"{row['family']}-{row['size']}, {row['task']}, LoRA FP16, content alone ({told}): "
            f"{row['content']:.2f}; {'; '.join(against)}: {verdict}."
        )
    return texts


def limit_text(results: Results) -> list[str]:
    """How many answers had no end within the measured tokens, and what was scored of them."""
    answers, workload = results.answers, results.study.workload
    if "limit_reached" not in answers or answers["limit_reached"].isna().all():
        return []
    shares = answers.groupby(tables.VARIANT)["limit_reached"].mean().rename("share").reset_index()
    worst = shares.loc[shares["share"].idxmax()]
    most, share = tables.variant_name(worst), worst["share"]
    text = (
        f"{answers['limit_reached'].mean():.0%} of the answers had no end within the "
        f"{workload.output_tokens} measured tokens, {share:.0%} of {most}'s"
    )
    if "uncut" in answers and answers["uncut"].any():
        left = answers["still_cut"].mean()
        return [
            f"{text}. They were asked again until their end, unmeasured, and the uncut answers are "
            f"scored; {left:.0%} of all answers reached the {workload.uncut_tokens} tokens of that."
        ]
    if share > MOST_CUT:
        return [f"{text}. They are scored as they were cut: a limit punishes the verbose."]
    return [f"{text}."]


def quality_text(answers: pd.DataFrame) -> list[str]:
    """What the prompts can resolve: coverage of the interval, prompts that 3 points need."""
    scored = answers.dropna(subset=["score"])
    if scored.empty:
        return ["No answer was scored."]
    texts = []
    texts += coverage_text(scored)
    by_prompt = scored.groupby([*tables.VARIANT, "prompt_id"])["score"].mean()
    needed = []
    for key, own in by_prompt.groupby(tables.VARIANT):
        base = (*key[:3], "lora", "fp16")
        if key[3:] != ("lora", "int4") or base not in by_prompt.index.droplevel("prompt_id"):
            continue
        pair = pd.concat([own.droplevel(tables.VARIANT), by_prompt.loc[base]], axis=1).dropna()
        if len(pair) > 1 and pair.iloc[:, 1].mean() > 0:
            count = prompts_needed(pair.iloc[:, 0].to_numpy(), pair.iloc[:, 1].to_numpy())
            needed += [(key[2], count)] if count else []
    if needed:
        worst = max(needed, key=lambda pair: pair[1])
        texts.append(
            f"To show a difference of 3 points in Q_ret, {worst[0]} would need about "
            f"{worst[1]:,} prompts at the spread seen here."
        )
    texts.append(
        "The likelihood of the gold answers and the agreement with FP16 token by token resolve "
        "more than scores do; they stand beside them."
    )
    return texts


FORMULAS = [
    "N_break = electricity of adapting / (the API's price for a request − electricity of a "
    "request here): requests until adapting has paid, as the paper counts it.",
    "IPW = score / energy of a request, in 1/J: score per joule, in spite of its name "
    "(intelligence per watt).",
    "ρ_sys = output tokens a second / memory that serving needed at peak, in tok/s/GB.",
    "Q_ret = score / score of LoRA-FP16 on the same model, task and prompts, in %.",
    "C_tax = energy of a cold load up to the first token / energy of a request; “model alone” "
    "leaves out importing the libraries, which no choice of model changes.",
]
METHODS = pd.DataFrame(
    [
        ("score", "token F1 (rag), ROUGE-L (summarization), similarity (dialogue), 0 to 1"),
        ("intervals", "95 %: Student t over runs; paired ratios over runs (C_tax, IPW, ρ_sys) and "
         "over prompts (score, Q_ret); none from one observation"),
        ("TTFT, TPOT", "first token less submission; (last less first token) / (tokens − 1)"),
        ("output length", "a fixed number of tokens is generated; the scored answer ends at the "
         "first end-of-sequence"),
        ("order and warm-up", "every repetition serves each variant once, in a random order; it is "
         "measured once throughput has no trend (else the check 'warmed up' warns)"),
        ("window", "whole: all of it; steady-state: while every slot of a continuously batching "
         "engine is taken"),
        ("validity", "the checks of a row's windows that are not ok; every check in "
         "tables/checks.csv"),
        ("load", "a new process, weights evicted from the page cache; up to the first token"),
        ("computed in", "FP16, INT8, INT4 are how weights are stored; what the linear layers "
         "computed in was measured in each run"),
        ("answers as alone", "share of prompts whose answer in a batch is token for token the one "
         "without: the few served one at a time, and the others read in one pass"),
        ("range of an estimate", "in round brackets: the figure at the lowest and highest watts a "
         "core; in the tables <column>_lo_j, _hi_j and <metric>_estimate_lo, _hi"),
        ("95th percentile", "of 20 requests or more"),
    ],
    columns=["figure", "how it was measured"],
)  # fmt: skip


def study_report(
    results: Results, found: dict[str, pd.DataFrame], drawn: dict[str, Picture]
) -> Report:
    """The study's report of its tables and figures."""
    named = {name: _named(table) for name, table in found.items() if "family" in table}
    key = ["model", "task", "configuration"]
    concurrency = f"At concurrency {results.study.workload.headline_concurrency}."
    once = found["variants"]["repetitions"].max() == 1
    reference = [
        "score", "score_difference", "score_difference_no_model", "content", "content_difference",
        "content_difference_no_model", "gold_nll", "gold_nll_difference", "recall", "answer_tokens",
        "limit_reached_share", "top1_agreement", "notes",
    ]  # fmt: skip
    five = ["score", *tables.METRICS, "c_tax_model", "n_break_full"]
    inputs = ["adapt_energy_j", "compress_energy_j", "load_energy_j", "load_model_energy_j",
              "energy_per_request_j", "throughput_tok_s", "memory_gb"]  # fmt: skip
    sections = [
        Section(
            "The frontier",
            ["One row a model, over its INT4 variants: the mean of N_break, ρ_sys and C_tax, the "
             "largest IPW, Q_ret of LoRA-INT4. Medians stand beside each.",
             *FORMULAS, *_break_even_text(results, found["variants"]),
             *_frontier_text(found["frontier"])],
            table=found["frontier"],
            columns=["model", *[c for m in tables.METRICS for c in (m, f"{m}_median")],
                     "int4_variants", "prices", "validity"],
            csv="tables/frontier.csv",
        ),
        *(Section(p.heading, figure=p.figure, caption=p.caption) for p in drawn.values()),
        Section(
            "Every variant: the five metrics",
            [concurrency, *_notes(found["variants"], [*five, *inputs])],
            table=named["variants"],
            columns=[*key, *five, "prices"],
            csv="tables/variants.csv",
        ),
        Section(
            "Every variant: what was measured",
            [concurrency, *tables.mixed(found["variants"])],
            table=named["variants"],
            columns=[*key, "executed_dtype", "energy_per_request_j", "throughput_tok_s", "ttft_ms",
                     "tpot_ms", "memory_gb", "load_energy_j", "load_s", "adapt_energy_j",
                     "compress_energy_j", "batch_agreement", "validity"],
            csv="tables/variants.csv",
        ),
        Section(
            "Did adapting help?",
            ["No model, the unadapted base and the adapted variants, over the same prompts. NLL is "
             "the negative log-likelihood of the gold answers: lower is better. Answer tokens show "
             "whether brevity alone did it.",
             *content_text(found["reference"]), *limit_text(results),
             *quality_text(results.answers)],
            table=named["reference"],
            columns=[*key, *(c for c in reference if c in named["reference"])],
            csv="tables/reference.csv",
        ),
        Section(
            "LoRA beside QLoRA",
            ["Energy and time of loading the base and training; the ratio of the training alone "
             "stands beside. One adaptation each: how far these scatter is not known.",
             *_notes(found["adaptation"])],
            table=named["adaptation"],
            columns=["model", "task", "executed_dtype", "lora_energy_j", "qlora_energy_j",
                     "energy_ratio", "train_energy_ratio", "lora_s", "qlora_s", "seconds_ratio",
                     "lora_peak_memory_gb", "qlora_peak_memory_gb", "memory_ratio"],
            csv="tables/adaptation.csv",
        ),
        Section(
            "Serving at every concurrency",
            _notes(found["serving"], ["ttft_p95_ms", "tpot_p95_ms", "failed_requests"]),
            table=named["serving"],
            columns=[*key, "concurrency", "repetitions", "executed_dtype", "window",
                     "throughput_tok_s", "ttft_ms", "ttft_p95_ms", "tpot_ms", "tpot_p95_ms",
                     "energy_per_request_j", "power_w", "memory_gb", "batch_agreement",
                     "validity"],
            csv="tables/serving.csv",
        ),
        *_asked_for(named),
        Section(
            "Cold starts",
            ["What a load is made of, over the tasks and repetitions of a configuration. Keep "
             "warm: idle for longer than this, and unloading takes less energy.",
             *_keep_warm_text(results)],
            table=named["cold_starts"],
            columns=["model", "configuration", "loads", *COLD_START, "keep_warm_s"],
            csv="tables/cold_starts.csv",
        ),
        _failure_section(results),
        _check_section(results.checks),
        Section("How each figure was measured", table=METHODS),
    ]  # fmt: skip
    if once:  # no more digits than one run's scatter leaves
        sections = [replace(section, digits=2) for section in sections]
    return Report(
        title=f"Edge-Eval: {results.study.name}",
        summary=results.study.description,
        facts=facts_of(results),
        warnings=warnings_of(results, found),
        sections=sections,
        links=[("The paper's figures, recomputed", "../paper/report.html")],
    )


def _asked_for(named: dict[str, pd.DataFrame]) -> list[Section]:
    """The tables that only some studies ask for."""
    key = ["model", "task", "configuration"]
    sections = []
    if "arrivals" in named:
        sections.append(Section(
            "Serving at every arrival rate",
            ["An open loop: Poisson arrivals, waiting for the engine counted in the TTFT. Failed "
             "requests are counted apart, in no latency."],
            table=named["arrivals"],
            columns=[*key, "rate_per_s", "repetitions", "throughput_tok_s", "ttft_ms",
                     "ttft_p95_ms", "tpot_ms", "tpot_p95_ms", "energy_per_request_j",
                     "failed_requests", "validity"],
            csv="tables/arrivals.csv",
        ))  # fmt: skip
    if "prefix_caching" in named:
        sections.append(Section(
            "Prefix caching",
            ["The same prompts once more, what they have in common computed once. The hit rate is "
             "the share of the prompts’ tokens that were found; ratios are with over without."],
            table=named["prefix_caching"],
            columns=[*key, "repetitions", "prefix_cache_hit_rate",
                     *(f"{c}{end}" for c in ("energy_per_request_j", "throughput_tok_s", "ttft_ms")
                       for end in ("", "_with_caching", "_ratio"))],
            csv="tables/prefix_caching.csv",
        ))  # fmt: skip
    if "harness" in named:
        table = named["harness"]
        sections.append(Section(
            "Scores by lm-evaluation-harness",
            ["The library's own tasks, metrics and standard errors; intervals are 1.96 of these to "
             "either side. The base has no task: it is the same for every one. Tasks that were "
             "asked for as part of a group stand in the CSV file alone.", *_notes(table)],
            table=table[table["group"].isna()],
            columns=[*key, "harness_task", "metric", "filter", "value", "prompts", "few_shot"],
            csv="tables/harness.csv",
        ))  # fmt: skip
    return sections


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the names people use: model, and configuration where it has one."""
    table = table.assign(model=(table["family"] + "-" + table["size"]).str.removesuffix("-"))
    if "method" in table:
        pairs = zip(table["method"], table["precision"], strict=True)
        table["configuration"] = [figures.configuration_name(*pair) for pair in pairs]
    return table


def _notes(table: pd.DataFrame, columns: Sequence[str] | None = None) -> list[str]:
    """Every distinct note of a table once, with the number of rows that it stands in.

    A note begins with the column that it is of, which is said by its name for people; `columns`
    leaves out notes of others.
    """
    told = []
    notes = table["notes"].dropna().astype(str).str.split("; ").explode()
    for note, count in notes.value_counts().items():
        column, colon, reason = note.partition(": ")
        if re.fullmatch("[a-z0-9]+(_[a-z0-9]+)+|score", column):
            if columns is not None and column not in columns:
                continue
            note = f"{tables.plain_name(column)}{colon}{reason}"
        told.append(f"{note} ({count} of {len(table)} rows).")
    return told


def _break_even_text(results: Results, variants: pd.DataFrame) -> list[str]:
    """Both break-evens side by side, and what was priced."""
    _, prices = prices_of(results.study)
    paid, full = (
        tables.readable(
            pd.DataFrame({"n_break": [variants[c].min(), variants[c].max()]}), digits=2
        ).iloc[:, 0]
        for c in ("n_break", "n_break_full")
    )
    return [
        f"N_break here: {' to '.join(dict.fromkeys(paid))} requests; with full accounting: "
        f"{' to '.join(dict.fromkeys(full))}. The first counts adapting's electricity alone, the "
        f"second everything before the first request ({prices.setup_hours:g} hours of labour at "
        f"{prices.labour_usd_per_hour:g} USD, the machine by the hour, compressing, loading) "
        "against the API's price for the tokens. Labour is nearly all of it, so that the two lie "
        f"far apart. Priced by the set {results.study.prices!r}: "
        f"{prices.electricity_usd_per_kwh:g} USD/kWh, PUE {prices.pue:g}, a machine of "
        f"{prices.hardware_usd:,.0f} USD used {prices.utilisation:.0%} of the time; the API takes "
        f"{prices.api_usd_per_request:g} USD a request."
    ]


def _frontier_text(frontier: pd.DataFrame) -> list[str]:
    """What of the frontier noise cannot order, and what is empty, by model."""
    told = []
    for column in ("not_ordered", "notes"):
        for model, text in frontier.set_index("model")[column].dropna().items():
            told.append(f"{model}: {_in_words(text)}.")
    if len(frontier) > 1:
        told.append("N_break is not ordered: each adaptation was made once.")
    return told


def _in_words(notes: str) -> str:
    parts = [part.partition(": ") for part in notes.split("; ")]
    return "; ".join(
        f"{tables.plain_name(name) if name in tables.METRICS else name}{colon}{rest}"
        for name, colon, rest in parts
    )


def _keep_warm_text(results: Results) -> list[str]:
    """Why there is no keep-warm time, where there is none."""
    reasons = results.runs.reindex(columns=["idle_reason"])["idle_reason"].dropna().unique()
    return [f"Keep-warm time is empty where no idle power is known: {r}." for r in reasons]


def _failure_section(results: Results) -> Section:
    title = "What failed, and why"
    unreadable = results.runs.attrs.get("unreadable", [])
    lines = [f"Not made yet: {', '.join(results.missing)}."] if results.missing else []
    lines += [f"Not readable as a completed run: {Path(name).name}." for name in unreadable]
    if results.failures.empty:
        return Section(title, [*lines, "No run failed."])
    return Section(title, lines, table=results.failures)


def _check_section(checks: pd.DataFrame) -> Section:
    title = "Validity checks"
    if checks.empty:
        return Section(title, ["No check was recorded."])
    counts = checks.groupby("verdict").size()
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    doubtful = checks[checks["verdict"].isin(["warning", "invalid"])]
    grouped = (
        doubtful.groupby(["check", "verdict", "stage", "detail"], sort=False)
        .agg(windows=("run", "size"), first_run=("run", "first"))
        .reset_index()
    )
    table = None if grouped.empty else grouped
    text = f"{len(checks)} checks of measured windows: {summary}. Those that are not ok:"
    if table is None:
        text = f"{len(checks)} checks of measured windows: {summary}."
    return Section(title, [text], table=table, csv="tables/checks.csv")


def open_results(study: str) -> Results:
    """The results of a study by name or path.

    By hand, in JupyterLab, what the study still lacks is executed first if nothing was served yet;
    within the grid the scheduler has done what could be done.
    """
    loaded = load_study(study)
    served = (loaded.directory / "runs" / "serve").glob("*.ipynb")
    if not os.environ.get("EDGE_EVAL_RUN") and next(served, None) is None:
        runner.ensure(loaded, [r for r in loaded.runs() if r.stage in ("score", "harness")])
    return load_results(loaded)


def report_directory(study: Study) -> Path:
    """Where the notebook writes tables, figures and report: by hand, to the lab."""
    by_hand = "EDGE_EVAL_RUN" not in os.environ
    return lab_directory(study) if by_hand else study.directory


def finish() -> None:
    """The last cell of the synthesis notebook: which settings it was made with, and that it is."""
    scraps.record("settings_hash", os.environ.get("EDGE_EVAL_SETTINGS_HASH"))
    scraps.complete()


def write_results(results: Results, directory: str | Path | None = None) -> Path:
    """Write tables/*.csv, figures/*.png and .svg, and report.html; the report's path."""
    directory = Path(directory) if directory else results.study.directory
    found = result_tables(results)
    for name, table in found.items():
        tables.write_table(table, directory / "tables" / f"{name}.csv")
    drawn = result_figures(results, found)
    for name, shown in drawn.items():
        figures.save_figure(shown.figure, directory / "figures" / name)
    return render_report(directory / "report.html", study_report(results, found, drawn))
