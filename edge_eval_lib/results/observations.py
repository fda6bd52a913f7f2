"""Observations: what a study's runs recorded -> a row a serving run and concurrency.

    results = load_results(load_study("embedded"))

What a stage notebook records stands in records.py. Raw data lie beside the notebook:
`<run>.requests.parquet` (serve), `<run>.power.parquet` (every power sample) and
`<run>.answers.parquet` (score; the answers of every serving run at the headline concurrency). The
serving figures are computed from these, not taken from the notebook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from edge_eval_lib import compressions, scraps, tasks
from edge_eval_lib.artefacts.completion import read_raw
from edge_eval_lib.artefacts.place import Place, read_failure
from edge_eval_lib.economics.prices import PriceBook, Prices, load_price_book
from edge_eval_lib.economics.published import ADAPTER
from edge_eval_lib.errors import UserError
from edge_eval_lib.results import columns
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.results.serving import per_request, recomputed
from edge_eval_lib.study import Study, find_beside

# What was measured before serving, by the names of its windows; those of other precisions follow.
IN_ORDER = ("imports", "base_load", "load", "adapt", "fp16", "int8", "int4")
ADAPT_WINDOWS = ("base_load", "adapt")
CHECK_COLUMNS = ["run", "stage", "window", "check", "verdict", "detail"]
REQUEST_COLUMNS = [
    "window",
    "input_tokens",
    "output_tokens",
    "natural_tokens",
    "ttft_ms",
    "tpot_ms",
]
CALL_COLUMNS = ["prompt_id", "call", "submitted_s"]  # of tasks that ask several times
NO_POWER = pd.DataFrame({"monotonic_s": [], "device": [], "power_w": [], "window": []})


@dataclass(frozen=True)
class Results:
    """What a study has so far.

    `runs` has a row a completed run, with its `stage` and `run` name; `failures` one a failed run;
    `missing` names planned runs that are neither, as STAGE/NAME.
    `study.repetitions` counts those that were made, where they are more than the file says.
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
    unreadable: list[str]

    @property
    def closed_loop(self) -> pd.DataFrame:
        """Observations at every concurrency, without prefix caching."""
        rows = self.observations
        return rows[rows["rate_per_s"].isna() & ~rows["prefix_caching"].eq(True)]

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
    """Collect what lies under the study's outputs.

    A run made with other settings than the study's is out of date and counts as missing.
    `directory` is by default the study's own. UserError if no serving run is complete.
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
    study = study.covering(int(collected["repetition"].max()))
    planned = {(run.stage, run.name): run.settings_hash for run in study.runs()}
    # The score run covers however many repetitions there were: its hash does not decide.
    current = [
        key in planned and (key[0] == "score" or planned[key] == made_with)
        for key, made_with in zip(_keys(collected), collected["settings_hash"], strict=True)
    ]
    runs = collected[current].reset_index(drop=True)
    if not (runs["stage"] == "serve").any():
        raise UserError(
            f"Every serving run under {directory} was made with other settings than {study.path} "
            f"has now; run `make all STUDY={study.argument}`."
        )
    completed = set(_keys(runs))
    failures = _failures(directory / "failed", completed)
    known = completed | set(_keys(failures))
    missing = ["/".join(key) for key in planned if key not in known]
    return results_of(study, runs, failures, missing, unreadable)


def results_of(
    study: Study,
    runs: pd.DataFrame,
    failures: pd.DataFrame,
    missing: list[str],
    unreadable: list[str],
) -> Results:
    """The results of collected runs: a row a run, a column a scrap."""
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
        missing=missing,
        unreadable=[Path(path).name for path in unreadable],
    )


def _keys(table: pd.DataFrame) -> zip[tuple[str, str]]:
    return zip(table["stage"], table["run"], strict=True)


def _failures(directory: Path, completed: set[tuple[str, str]]) -> pd.DataFrame:
    """Failed runs that have not completed since: stage, run, reason."""
    rows = []
    for path in sorted(directory.glob("*/*.json")):
        key = (path.parent.name, path.stem)
        failure = read_failure(Place(directory.parent, *key))
        if key not in completed and failure is not None:
            rows.append({"stage": key[0], "run": key[1], "reason": failure["reason"]})
    return pd.DataFrame(rows, columns=["stage", "run", "reason"])


def prices_of(study: Study) -> tuple[PriceBook, Prices]:
    """The price book beside the study's file or in params/, and the set that the study names."""
    book = load_price_book(find_beside(study.path, "prices.yaml"))
    return book, book.prices(study.prices)


# --- a row a serving run and concurrency ------------------------------------------------------


def observations_of(runs: pd.DataFrame, requests: pd.DataFrame) -> pd.DataFrame:
    """One row a serving run and concurrency, with its adapter's adaptation and compression.

    The serving figures are computed again from `requests` (`requests_of`), the windows' records
    and the power samples.
    """
    adapters, merges = (_by_adapter(runs[runs["stage"] == s]) for s in ("adapt", "compress"))
    requests_by_run = dict(list(requests.groupby("run")))
    kept = {*columns.OBSERVATION_COLUMNS, *columns.CALLS}
    rows = []
    for run in runs[runs["stage"] == "serve"].to_dict("records"):
        key = tuple((run | {"task": tasks.trained_as(run["task"])})[c] for c in ADAPTER)
        row, notes, checks = _before_serving(run, adapters.get(key, {}), merges.get(key, {}))
        windows = run["serving_windows"]
        power = read_raw(run["notebook"], "power") if _continuous(windows) else NO_POWER
        figures_of = recomputed(windows, requests_by_run[run["run"]], power)
        for window, serving in zip(windows, figures_of, strict=True):
            texts = [*notes, serving["notes"]]
            judged = checks + _checks({window["window"]: serving["checks"]})
            rows.append(
                row
                | {c: v for c, v in serving.items() if c in kept}
                | {"notes": "; ".join(filter(None, texts)) or None, "validity": _validity(judged)}
            )
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*columns.OBSERVATION_COLUMNS, *columns.calls_in(table)])


def adaptations(directory: Path) -> pd.DataFrame:
    """One row an adapter trained below a study's outputs, as observations are; none was served."""
    done = {file.stem for file in (directory / "settings" / "adapt").glob("*.json")}
    runs = scraps.collect(directory / "runs" / "adapt").to_dict("records")
    current = [run for run in runs if Path(run["notebook"]).stem in done]
    rows = [{c: run[c] for c in ADAPTER} | _adaptation(run)[0] for run in current]
    return pd.DataFrame(rows).reindex(columns=list(columns.OBSERVATION_COLUMNS))


def _before_serving(run: dict, adapt: dict, compress: dict) -> tuple[dict, list, list[dict]]:
    """What a serving run and its adapter's runs recorded before the first request.

    Its columns, why some are empty, and its checks.
    """
    ranges = [c for c in columns.RANGES if c.startswith("load_energy")]
    own = [*VARIANT, "repetition", "engine", "gpus", "run", "settings_hash", "memory_nominal_gb",
           "batch_agreement", "executed_dtype", "instruction_set", *columns.LOAD, *ranges,
           *columns.IDLE]  # fmt: skip
    adaptation, reason = _adaptation(adapt)
    load_model, load_reason = _load_of_model(run)
    row = {c: run.get(c) for c in own} | adaptation | load_model
    row |= {"host": _host(run), "merge_base": compress.get("merge_base")}
    row |= {"rows_passed_over": adapt.get("rows_passed_over")}
    notes = [reason, _reason(run, "load_energy_j", ["load"]), load_reason]
    idle_reason = run.get("idle_reason")
    notes += [f"keep_warm_s: {idle_reason}" if isinstance(idle_reason, str) else None]
    if pd.isna(row["batch_agreement"]):
        notes.append("batch_agreement: no answer was compared with the same prompt's alone")
    elif row["executed_dtype"] == "int8":
        notes.append("batch_agreement: an estimate, from answers read in one pass")
    merged = compressions.path(run["precision"])
    checks = _checks({w: adapt.get(f"{w}_checks") for w in ADAPT_WINDOWS})
    checks += _checks({"load": run.get("load_checks")})
    checks += _checks({w: compress.get(f"{w}_checks") for w in merged})
    if run["method"] != "none":
        row |= _totals(compress, merged, "compress")
        notes.append(_reason(compress, "compress_energy_j", merged))
    return row, notes, checks


def _host(run: Mapping[str, Any]) -> str:
    """The machine that served; an endpoint's is not known."""
    host = run["provenance"]["host"]
    return f"an endpoint, asked from {host}" if run["engine"] == "openai" else host


def _by_adapter(runs: pd.DataFrame) -> dict[tuple, dict]:
    return {tuple(run[c] for c in ADAPTER): run for run in runs.to_dict("records")}


def _reason(run: Mapping[str, Any], column: str, windows: Sequence[str]) -> str | None:
    """Why the energy of the first of the windows that lacks it is not known, as a note."""
    reasons = [run.get(f"{window}_energy_reason") for window in windows]
    return next((f"{column}: {r}" for r in reasons if isinstance(r, str) and r), None)


def _checks(windows: Mapping[str, list[dict] | None]) -> list[dict]:
    """The checks of some windows, each with its `window`."""
    return [
        check | {"window": window}
        for window, judged in windows.items()
        for check in (judged if isinstance(judged, list) else [])
    ]


def _validity(checks: Sequence[dict]) -> str:
    """`ok`, or the checks of a row's windows that are not, the worst first."""
    doubtful = [
        f"{verdict}: {check['name']} ({check['window']})"
        for verdict in columns.DOUBTFUL
        for check in checks
        if check["verdict"] == verdict
    ]
    return "; ".join(doubtful) or ("ok" if checks else "not checked")


def _continuous(windows: Sequence[dict]) -> bool:
    return any(window["continuous_batching"] for window in windows)


def _totals(run: Mapping[str, Any], windows: Sequence[str], name: str) -> dict[str, float | None]:
    """Energy with its range, and seconds, of several windows together; None if one is unknown."""
    figures = ("energy_j", "energy_lo_j", "energy_hi_j", "s")
    return {f"{name}_{f}": _sum([run.get(f"{window}_{f}") for window in windows]) for f in figures}


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not pd.isna(value)]
    return float(sum(known)) if len(known) == len(values) else None


def _adaptation(run: dict) -> tuple[dict, str | None]:
    """Loading the base and training, together and the training alone; and why it is missing."""
    if not run:
        return {}, None
    row = _totals(run, ADAPT_WINDOWS, "adapt")
    row |= {f"adapt_train_{f}": run.get(f"adapt_{f}") for f in ("energy_j", "s", "peak_memory_gb")}
    peaks = pd.Series([run.get(f"{w}_peak_memory_gb") for w in ADAPT_WINDOWS], dtype=float)
    energy, seconds = row["adapt_energy_j"], row["adapt_s"]
    row["adapt_peak_memory_gb"] = peaks.max()
    row["adapt_power_w"] = None if energy is None or not seconds else energy / seconds
    row |= {f"adapt_{c}": run.get(c) for c in ("executed_dtype", "instruction_set")}
    row["adapt_host"] = run["provenance"]["host"]
    reason = _reason(run, "adapt_energy_j", ADAPT_WINDOWS)
    if reason is None and pd.isna(run.get("base_load_s")):
        reason = "adapt_energy_j: this run did not record the loading of the base"
    return row, reason


def _load_of_model(run: Mapping[str, Any]) -> tuple[dict, str | None]:
    """The load's energy without the libraries' import; and why it is missing."""
    row = {}
    for figure in ("energy_j", "energy_lo_j", "energy_hi_j"):
        whole, libraries = run.get(f"load_{figure}"), run.get(f"load_import_{figure}")
        known = not pd.isna(whole) and not pd.isna(libraries)
        row[f"load_model_{figure}"] = float(run[f"load_{figure}"] - libraries) if known else None
    energy = row["load_model_energy_j"]
    if energy is not None and energy >= 0:
        return row, None
    why = "this run did not record the libraries' part of the load"
    if energy is not None:
        why = "less than the noise of the libraries' part"
    return dict.fromkeys(row), f"load_model_energy_j: {why}"


# --- raw data and checks ----------------------------------------------------------------------


def answers_of(runs: pd.DataFrame) -> pd.DataFrame:
    """The scored answers of the score run; without one, no rows."""
    parts = [read_raw(path, "answers") for path in runs.loc[runs["stage"] == "score", "notebook"]]
    if parts:
        return pd.concat(parts, ignore_index=True)
    names = [*VARIANT, "repetition", "prompt_id", "score_reason"]
    return pd.DataFrame(columns=names).assign(score=pd.Series(dtype=float))


def no_model_of(runs: pd.DataFrame) -> pd.DataFrame:
    """What rules answered without a model, scored; no rows where the score run kept none."""
    notebooks = runs.loc[runs["stage"] == "score", "notebook"]
    kept = [path for path in notebooks if Path(path).with_suffix(".no_model.parquet").exists()]
    parts = [read_raw(path, "no_model") for path in kept]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def requests_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Every request of every serving run, with its `variant` and repetition.

    A conversation's calls are one request (`serving.per_request`).
    """
    parts = []
    for run in runs[runs["stage"] == "serve"].to_dict("records"):
        # Every token's time is read only where a figure needs it: there are very many of them.
        times = ["token_times_s"] if _continuous(run["serving_windows"]) else []
        calls = CALL_COLUMNS if "failed_calls" in run["serving_windows"][0] else []
        part = read_raw(run["notebook"], "requests", [*REQUEST_COLUMNS, *times, *calls])
        part = per_request(part)
        named = part.assign(variant=columns.variant_name(run), repetition=run["repetition"])
        parts.append(named.assign(run=run["run"], **{c: run[c] for c in VARIANT}))
    return pd.concat(parts, ignore_index=True)


def checks_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Every validity check of every window: run, stage, window, check, verdict, detail."""
    rows = [
        {"run": run["run"], "stage": run["stage"], "window": check["window"]}
        | {"check": check["name"], "verdict": check["verdict"], "detail": check["detail"]}
        for run in runs.to_dict("records")
        for check in checks_of_run(run)
    ]
    return pd.DataFrame(rows, columns=CHECK_COLUMNS)


def checks_of_run(run: Mapping[Any, Any]) -> list[dict]:
    """Every validity check that a run recorded, each with its `window`, in the windows' order."""
    named = {name.removesuffix("_checks") for name in run if name.endswith("_checks")}
    order = [*(w for w in IN_ORDER if w in named), *sorted(named - set(IN_ORDER))]
    windows = {name: run[f"{name}_checks"] for name in order}
    served = run.get("serving_windows")
    for serving in served if isinstance(served, list) else []:
        windows[serving["window"]] = serving["checks"]
    return _checks(windows)
