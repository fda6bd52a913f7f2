"""What a study will take: its grid, what is done, time and disk of the rest, what is missing.

Estimates come from the study's own finished runs where there are any, else from the model below,
whose assumptions are printed with them. It starts nothing and needs no network.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import orjson

from edge_eval_lib import runner, scraps
from edge_eval_lib.study import STAGES, Run, Study

if TYPE_CHECKING:
    from edge_eval_lib.hardware import Hardware

# Assumptions of the time model, used until runs of the same stage and model are finished.
COMPUTE_SHARE = 0.3  # of the peak arithmetic that training and prompts reach
BANDWIDTH_SHARE = 0.5  # of the peak memory bandwidth that generating reaches
CPU_TFLOPS = 0.1  # where the hardware does not say: a processor of a few cores
CPU_BANDWIDTH_GB_S = 20.0
DISK_GB_S = 0.5
START_S = 10.0  # a process, its imports, its kernel
BYTES = {"fp16": 2.0, "int8": 1.0, "int4": 0.56}  # a parameter, constants included
ADAPTER_SHARE = 0.01  # of the parameters; four bytes each


@dataclass(frozen=True)
class Finished:
    """A published run: seconds its notebook took, and the settings it was made with."""

    seconds: float
    own_seconds: float  # in its cells alone: what the stage itself did, imports and loads included
    settings_hash: str | None


@dataclass(frozen=True)
class Estimate:
    """What is left of a study: runs, seconds of each, and how many of the seconds are measured."""

    runs: list[Run]
    seconds: dict[tuple[str, str], float]
    from_measured: int

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


def read_finished(notebook: Path) -> Finished | None:
    """What a published notebook tells of its run; None if it is not a complete run."""
    try:
        recorded = scraps.read_scraps(notebook)
        metadata = orjson.loads(notebook.read_bytes())
        cells = [cell["metadata"].get("papermill", {}) for cell in metadata["cells"]]
        seconds = metadata["metadata"]["papermill"]["duration"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if recorded.get(scraps.RUN_COMPLETE) is not True:
        return None
    own = sum(cell.get("duration") or 0.0 for cell in cells)
    return Finished(seconds or own, own, recorded.get("settings_hash"))


def finished_runs(study: Study, runs: Iterable[Run]) -> dict[tuple[str, str], Finished]:
    """Those of `runs` that are published, complete, and made with their present settings."""
    found = {}
    for run in runs:
        at = runner.place(study, run.stage, run.name)
        if not at.notebook.is_file() or not _is_current(at, run):
            continue
        finished = read_finished(at.notebook)
        if finished is not None:
            found[run.stage, run.name] = finished
    return found


def _is_current(at: runner.Place, run: Run) -> bool:
    """As Snakemake sees it: the settings are these, and no newer than the notebook."""
    try:
        same = at.settings.read_bytes() == run.settings_json
        return same and at.settings.stat().st_mtime <= at.notebook.stat().st_mtime
    except OSError:
        return False


def estimate(study: Study, runs: list[Run], finished: dict[tuple[str, str], Finished]) -> Estimate:
    """Seconds of every run that is left."""
    known: dict[tuple[Any, ...], list[float]] = {}
    for run in runs:
        if (run.stage, run.name) in finished:
            seconds = finished[run.stage, run.name].seconds
            for kind in _kinds(run):
                known.setdefault(kind, []).append(seconds)
    left = [run for run in runs if (run.stage, run.name) not in finished]
    hardware = _hardware(study)
    seconds, from_measured = {}, 0
    for run in left:
        measured = next((known[kind] for kind in _kinds(run) if kind in known), None)
        from_measured += measured is not None
        seconds[run.stage, run.name] = mean(measured) if measured else model_s(study, run, hardware)
    return Estimate(left, seconds, from_measured)


def _kinds(run: Run) -> list[tuple[Any, ...]]:
    """What a run's time may be read off, the nearest first."""
    p = run.parameters
    exact = (run.stage, p.get("model"), p.get("task"), p.get("method"), p.get("precision"))
    return [exact, (run.stage, p.get("model"), p.get("precision")), (run.stage, p.get("model"))]


def model_s(study: Study, run: Run, hardware: Hardware) -> float:
    """Seconds that a run should take by its arithmetic and memory traffic.

    Training: 4 operations a parameter and token (forward, and backward through frozen weights),
    6 with gradient checkpointing. Generating: the weights are read once a step. Prompts: 2
    operations a parameter and token. Prompts are taken to be half of training.max_tokens long.
    """
    if "model" not in run.parameters:
        return START_S
    parameters = study.model(run.parameters["model"]).parameters
    training, workload, data = study.training, study.workload, study.data
    operations_per_s = (hardware.fp16_tflops or CPU_TFLOPS) * 1e12 * COMPUTE_SHARE
    bytes_per_s = (hardware.bandwidth_gb_s or CPU_BANDWIDTH_GB_S) * 1e9 * BANDWIDTH_SHARE
    tokens = training.max_tokens / 2
    load_s = parameters * BYTES["fp16"] / (DISK_GB_S * 1e9)
    if run.stage == "adapt":
        seen = data.train_examples * training.epochs * tokens
        operations = (6 if training.gradient_checkpointing else 4) * parameters * seen
        return START_S + load_s + operations / operations_per_s
    if run.stage == "compress":
        written = parameters * sum(BYTES[p] for p in run.settings["precisions"])
        return START_S + 2 * load_s + written / (DISK_GB_S * 1e9)
    weights = parameters * (BYTES[run.parameters["precision"]] if hardware.gpus else 4.0)
    seconds = START_S + parameters * BYTES[run.parameters["precision"]] / (DISK_GB_S * 1e9)
    for concurrency in workload.concurrency:
        headline = concurrency == workload.headline_concurrency
        prompts = data.evaluation_examples if headline else workload.latency_prompts
        steps = math.ceil(prompts / concurrency) * workload.output_tokens
        generated = prompts * workload.output_tokens
        traffic_s = steps * weights / bytes_per_s
        arithmetic_s = 2 * parameters * (generated + prompts * tokens) / operations_per_s
        seconds += traffic_s + arithmetic_s
    return seconds


def disk_gb(study: Study, runs: Iterable[Run]) -> float:
    """GB that runs will leave: adapters and compressed models (notebooks are small beside them)."""
    total = 0.0
    for run in runs:
        if run.stage in ("adapt", "compress"):
            parameters = study.model(run.parameters["model"]).parameters
            each = 4 * ADAPTER_SHARE
            if run.stage == "compress":
                each = BYTES["fp16"] + sum(
                    BYTES[p] for p in run.settings["precisions"] if p != "fp16"
                )
            total += parameters * each / 1e9
    return total


def lacks(study: Study, hardware: Hardware) -> list[str]:
    """What the declared hardware (or access from here) lacks for the study, a sentence each."""
    found = []
    device_gb, all_gb = hardware.memory_gb, hardware.total_memory_gb
    for model in study.models:
        for method in dict.fromkeys(c.method for c in study.configurations if c.method != "none"):
            what = f"{method} on {model.name}"
            weights_gb = model.parameters * (BYTES["int4" if method == "qlora" else "fp16"]) / 1e9
            found += _memory(f"adapting by {what}", weights_gb, device_gb, all_gb)
        for precision in dict.fromkeys(c.precision for c in study.configurations):
            weights_gb = model.parameters * BYTES[precision] / 1e9
            found += _memory(f"serving {model.name} {precision}", weights_gb, device_gb, all_gb)
    if study.training.compute_dtype == "bfloat16" and not hardware.bf16:
        found.append("training.compute_dtype is bfloat16, which this hardware does not compute.")
    gated = [model.name for model in study.models if model.gated]
    if gated and not os.environ.get("HF_TOKEN"):
        found.append(f"HF_TOKEN is not set here, and {_listed(gated)} are gated.")
    return found


def _memory(what: str, weights_gb: float, device_gb: float, all_gb: float) -> list[str]:
    if weights_gb <= device_gb:
        return []
    need = (
        f"{what} takes {weights_gb:.1f} GB for the weights alone, a device has {device_gb:.1f} GB"
    )
    if weights_gb <= all_gb:
        return [f"{need}: they must be split over devices ({all_gb:.1f} GB together)."]
    return [f"{need} ({all_gb:.1f} GB together)."]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _hardware(study: Study) -> Hardware:
    from edge_eval_lib.hardware import load_hardware

    return load_hardware(study.hardware)


def describe(study: Study) -> str:
    """The plan as text for a terminal."""
    runs = study.runs()
    finished = finished_runs(study, runs)
    left = estimate(study, runs, finished)
    hardware = _hardware(study)
    variants, references = study.variants(), study.reference_variants()
    lines = [
        f"{study.name}: {study.description}",
        "",
        f"{len(variants)} variants = {_counted(study.models, 'model')} x "
        f"{_counted(study.tasks, 'task')} x {_counted(study.configurations, 'configuration')}"
        f"; {len(set(references) - set(variants))} references (the unadapted base of each model on "
        "each task)",
        f"{_counted(range(study.repetitions), 'repetition')} of each serving run",
        "",
        f"{'stage':<10} {'runs':>6} {'done':>6} {'left':>6}   time left",
    ]
    total, done = Counter(r.stage for r in runs), Counter(stage for stage, _ in finished)
    for stage in STAGES:
        seconds = sum(s for (of, _), s in left.seconds.items() if of == stage)
        rest = total[stage] - done[stage]
        time = duration(seconds) if rest else "-"
        lines.append(f"{stage:<10} {total[stage]:>6} {done[stage]:>6} {rest:>6}   {time}")
    time = duration(left.total_s) if left.runs else "-"
    lines.append(f"{'together':<10} {len(runs):>6} {len(finished):>6} {len(left.runs):>6}   {time}")
    serving = [r for r in runs if r.stage == "serve"]
    of_references = sum(r.parameters["method"] == "none" for r in serving)
    if of_references:
        of_variants = len(serving) - of_references
        lines += ["", f"serve: {of_variants} runs of variants, {of_references} of references"]
    if left.runs:
        lines += ["", *_assumptions(left, hardware)]
    need_gb, free_gb = disk_gb(study, left.runs), _free_gb(study)
    if left.runs:
        lines.append(f"Disk: about {need_gb:.2g} GB to come, {free_gb:.0f} GB free here.")
    missing = lacks(study, hardware)
    if left.runs and need_gb > free_gb:
        missing.append(f"The disk lacks {need_gb - free_gb:.0f} GB.")
    lines += ["", f"Declared hardware: {study.hardware} ({_hardware_text(hardware)})."]
    lines += [f"  - {text}" for text in missing] or ["  Nothing is known to be missing."]
    return "\n".join(lines)


def _assumptions(left: Estimate, hardware: Hardware) -> list[str]:
    guessed = len(left.runs) - left.from_measured
    lines = []
    if left.from_measured:
        lines.append(
            f"Time of {left.from_measured} runs: as finished runs of stage and model took."
        )
    if guessed:
        compute = f"{hardware.fp16_tflops:g}" if hardware.fp16_tflops else f"{CPU_TFLOPS} (assumed)"
        bandwidth = (
            f"{hardware.bandwidth_gb_s:g}"
            if hardware.bandwidth_gb_s
            else f"{CPU_BANDWIDTH_GB_S:g} (assumed)"
        )
        lines.append(
            f"Time of {guessed} runs: a rough model, {COMPUTE_SHARE:.0%} of {compute} TFLOP/s and "
            f"{BANDWIDTH_SHARE:.0%} of {bandwidth} GB/s of one device, disk {DISK_GB_S} GB/s, "
            f"{START_S:.0f} s a start; one run after another, downloads not counted."
        )
    return lines


def _hardware_text(hardware: Hardware) -> str:
    if not hardware.gpus:
        return f"no GPU, {hardware.memory_gb:.1f} GB"
    return f"{_counted(range(hardware.gpus), 'GPU')}, {hardware.memory_gb:g} GB each"


def _counted(items: Any, word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"


def _free_gb(study: Study) -> float:
    directory = study.directory
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free / 1e9


def duration(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `7 min`, `3.5 h`, `12 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def status(study: Study) -> str:
    """What is done, running, failed (with the reason) and left, as text for a terminal."""
    runs = study.runs()
    finished = finished_runs(study, runs)
    lines = [f"{study.name}: {len(finished)} of {len(runs)} runs are done."]
    running, failed = [], []
    for run in runs:
        at = runner.place(study, run.stage, run.name)
        if at.running.is_dir():
            running.append(f"running  {run.stage}  {run.name}")
        failure = runner.read_failure(at)
        if failure and (run.stage, run.name) not in finished:
            failed.append(f"failed   {run.stage}  {run.name}: {failure['reason']}")
    report = study.directory / "report.html"
    if report.is_file():
        lines.append(f"Report: {report}")
    return "\n".join([*lines, *running, *failed])
