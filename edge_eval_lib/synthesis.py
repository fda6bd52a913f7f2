"""Synthesis: what a study's runs recorded -> observations, answers, and the report.

    results = open_results("embedded")
    write_results(results)

What a stage notebook records, by scrap name:

- every one: `settings_hash`, `started` (ISO 8601), `provenance` (hardware.provenance)
- adapt, compress, serve: `family`, `size`, `task`, `method`
- adapt: its window under `adapt`
- compress: `merge_base`; the merge's window under `fp16`, each quantisation's under its precision
- serve: `precision`, `repetition`, `engine`, `gpus`, `memory_nominal_gb`; the load's window under
  `load` and its parts (`COLD_START`); `idle_bare_power_w`, `idle_loaded_power_w`, `idle_reason`
  (why they are missing); `serving_windows`, a `workload.window_record` a concurrency
- harness: what identifies a variant, and `harness`, its `harness.metric_rows`

A window under a prefix is `Window.as_dict(prefix)`. Raw data lie beside the notebook:
`<run>.requests.parquet` (serve; `workload.request_table`), `<run>.power.parquet` (every power
sample) and `<run>.answers.parquet` (score; the answers of every serving run at the headline
concurrency). The serving figures are computed from these, not taken from the notebook.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import pandas as pd
from matplotlib.figure import Figure

from edge_eval_lib import figures, harness, runner, scraps, tables
from edge_eval_lib.economics.keep_warm import keep_warm_s
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.errors import UserError
from edge_eval_lib.report import Report, Section, render_report
from edge_eval_lib.scoring import CONTENT
from edge_eval_lib.study import Study, find_beside, load_study
from edge_eval_lib.uncertainty import prompts_needed, simulated_coverage
from edge_eval_lib.workload import closed_loop_name, recomputed

ADAPTER = [*tables.MODEL, "task", "method"]
COLD_START = [
    "load_energy_j",
    "load_s",
    "load_interpreter_s",
    "load_import_s",
    "load_read_s",
    "load_place_s",
    "load_first_token_s",
]
STAMPED = ("load", "adapt", "fp16", "int8", "int4")
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
            f"run `make all STUDY={study.name}` first."
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
            f"has now; run `make all STUDY={study.name}`."
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
        reasons = [_reason(adapt, "adapt"), _reason(run, "load"), _idle_reason(run)]
        row = {c: run[c] for c in [*tables.VARIANT, "repetition", "engine", "gpus", "run"]}
        row |= {c: run.get(c) for c in ("settings_hash", "memory_nominal_gb")}
        row |= {"host": _host(run), "merge_base": compress.get("merge_base")}
        row |= {c: adapt.get(c) for c in tables.ADAPTATION}
        row |= {c: run.get(c) for c in (*tables.LOAD, *tables.LOAD_RANGE, *tables.IDLE)}
        before = _checks({"adapt": adapt.get("adapt_checks"), "load": run.get("load_checks")})
        before += _checks({w: compress.get(f"{w}_checks") for w in _merged(run["precision"])})
        if run["method"] != "none":
            energy, seconds, reason = _compression(compress, run["precision"])
            row |= {"compress_energy_j": energy, "compress_s": seconds}
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


def _compression(run: dict, precision: str) -> tuple[float | None, float | None, str | None]:
    """Energy and seconds of the merge and, below FP16, the quantisation; and why it is missing."""
    windows = _merged(precision)
    energy = [run.get(f"{window}_energy_j") for window in windows]
    seconds = [run.get(f"{window}_s") for window in windows]
    reasons = [run.get(f"{window}_energy_reason") for window in windows]
    reason = next((f"compress_energy_j: {r}" for r in reasons if isinstance(r, str) and r), None)
    return _sum(energy), _sum(seconds), reason


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
    path = Path(notebook).with_suffix(f".{what}.parquet")
    if not path.is_file():
        raise UserError(f"{path.name} is missing beside {notebook}; run that stage again.")
    return pd.read_parquet(path, columns=columns)


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
    rows = [
        {"stage": path.parent.name, "run": path.stem}
        | {"reason": orjson.loads(path.read_bytes()).get("reason")}
        for path in sorted(directory.glob("*/*.json"))
        if (path.parent.name, path.stem) not in completed
    ]
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
    book = load_price_book(find_beside(results.study.path, "prices.yaml"))
    prices = book.prices(results.study.prices)
    variants = tables.variants_table(
        results.headline, results.answers, prices, book.scenario_prices(prices)
    )
    found = {
        "variants": variants,
        "frontier": tables.frontier_table(variants),
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


def latency_requests(results: Results) -> pd.DataFrame:
    """Requests at concurrency 1, where a request waits for no other; variants in order."""
    alone = results.requests[results.requests["window"] == closed_loop_name(1)]
    return tables.sort_variants(alone)


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
            "requests. Further right: more score for a joule. Grey lines are the medians.",
        ),
        "system_density": Picture(
            "System density",
            figures.system_density(variants, stamp),
            "Output tokens a second for each GB that serving needed; lines are intervals over "
            "runs, where there are several.",
        ),
        "quality_stability": Picture(
            "Quality and its stability",
            figures.quality_stability(variants, stamp),
            "Score to the right, and what is left of LoRA-FP16's score upwards; lines are 95 % "
            "intervals over prompts. Where a vertical line crosses 100, the prompts do not tell "
            "the variant from LoRA-FP16.",
        ),
        "adaptation_energy": Picture(
            "Energy of adapting, LoRA and QLoRA",
            figures.adaptation_energy(found["adaptation"], stamp),
            "What one adaptation took with either method, on the same data and compute dtype.",
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
    if any("cpu-model" in source for source in results.energy_sources):
        told.append(
            "Energy is estimated from CPU time and a stated range of watts per core, not measured: "
            "it follows time, and differences of power cannot be seen in it."
        )
    if not results.energy_sources:
        told.append("No energy source was readable: every figure that needs energy is empty.")
    if found["variants"]["repetitions"].max() == 1:
        told.append("One repetition: figures over runs have no interval.")
    if len(results.failures) or results.missing:
        told.append(
            f"Incomplete: runs failed: {len(results.failures)}; runs not made: "
            f"{len(results.missing)}. The tables hold what is there."
        )
    versions = _code_versions(results.runs)
    if len(versions) > 1:
        told.append(f"The runs were made by {len(versions)} versions of the code.")
    return told


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
    per_task = scored.groupby("task")["prompt_id"].nunique()
    prompts = int(per_task.min())
    texts = []
    if prompts >= 2:
        texts.append(
            f"At {prompts} prompts a task, a nominal 95 % interval of Q_ret held the truth in "
            f"{simulated_coverage(prompts):.0%} of simulated studies with F1-like scores."
        )
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


METHODS = pd.DataFrame(
    [
        ("N_break", "adaptation's electricity over the API's price less a request's electricity"),
        ("N_break, full", "adds compression, load, PUE, hardware by the hour of use, labour; API "
         "tokens at their own prices. In brackets: the range over published API prices, "
         "electricity and set-up labour"),
        ("IPW", "score over energy per request, 1/J (score per joule, in spite of the name)"),
        ("ρ_sys", "output tokens a second over the memory that serving needed, at peak"),
        ("C_tax", "energy of a cold load up to the first token over energy of a request"),
        ("Q_ret", "score over LoRA-FP16's of the same model and task, prompt by prompt"),
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
        ("FP16 on a CPU", "FP16 is how weights are stored; arithmetic is float32"),
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
    reference = [
        "score", "score_difference", "score_difference_no_model", "content", "content_difference",
        "content_difference_no_model", "gold_nll", "gold_nll_difference", "recall", "answer_tokens",
        "limit_reached_share", "top1_agreement", "notes",
    ]  # fmt: skip
    sections = [
        Section(
            "The frontier",
            ["One row a model, over its INT4 variants: the mean of N_break, ρ_sys and C_tax, the "
             "largest IPW, Q_ret of LoRA-INT4. Medians stand beside each."],
            table=found["frontier"],
            columns=["model", *[c for m in tables.METRICS for c in (m, f"{m}_median")],
                     "int4_variants", "notes"],
            csv="tables/frontier.csv",
        ),
        *(Section(p.heading, figure=p.figure, caption=p.caption) for p in drawn.values()),
        Section(
            "Every variant: the five metrics",
            [concurrency, *_notes(found["variants"])],
            table=named["variants"],
            columns=[*key, "score", *tables.METRICS, "n_break_full"],
            csv="tables/variants.csv",
        ),
        Section(
            "Every variant: what was measured",
            [concurrency],
            table=named["variants"],
            columns=[*key, "energy_per_request_j", "throughput_tok_s", "ttft_ms", "tpot_ms",
                     "memory_gb", "load_energy_j", "load_s", "adapt_energy_j",
                     "compress_energy_j", "validity"],
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
            _notes(found["adaptation"]),
            table=named["adaptation"],
            columns=["model", "task", "lora_energy_j", "qlora_energy_j", "energy_ratio",
                     "lora_s", "qlora_s", "seconds_ratio", "lora_peak_memory_gb",
                     "qlora_peak_memory_gb", "memory_ratio"],
            csv="tables/adaptation.csv",
        ),
        Section(
            "Serving at every concurrency",
            table=named["serving"],
            columns=[*key, "concurrency", "repetitions", "window", "throughput_tok_s", "ttft_ms",
                     "ttft_p95_ms", "tpot_ms", "tpot_p95_ms", "energy_per_request_j", "power_w",
                     "memory_gb", "validity"],
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


def _notes(table: pd.DataFrame) -> list[str]:
    """Every distinct note of a table once, with the number of rows that it stands in."""
    notes = table["notes"].dropna().astype(str).str.split("; ").explode()
    return [
        f"{note} ({count} of {len(table)} rows)." for note, count in notes.value_counts().items()
    ]


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
