"""What a run should take: seconds, joules, GPUs, disk, and what the estimate stands on.

A run's time and energy are those of the study's own finished runs where there are any, else those
that the published T4 figures imply (of the nearest size, where the model's own were not published),
else a stated model's: one basis for all runs of a stage.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import cache
from statistics import mean
from typing import TYPE_CHECKING, Any

from edge_eval_lib.artefacts.place import Key, place
from edge_eval_lib.economics import fit
from edge_eval_lib.lifecycle import ablation
from edge_eval_lib.machine.declared import Hardware, load_hardware, load_hardware_file
from edge_eval_lib.runs import model_time
from edge_eval_lib.runs.finished import Finished, read_finished
from edge_eval_lib.study import Model, Run, Study, load_study

if TYPE_CHECKING:
    import pandas as pd

# How often the model's seconds a CPU takes: the median of five studies' runs, two idle cores.
CPU_TIMES = {"adapt": 0.9, "compress": 1.35, "serve": 0.6}
BUSY_SHARE = 0.85  # of the power limit: published T4s drew 0.75-0.95 while they trained
WAITING_SHARE = 0.4  # of the power limit: a T4 with a context that starts, reads or idles
PUBLISHED = "published T4 figures"
SCALED = "published T4 figures of the nearest size"
FINISHED = "finished runs"
MODEL = "the stated model"
START = "a process's start"


@dataclass(frozen=True)
class RunCost:
    """What one run should take; `energy_j` is None where nothing tells it."""

    seconds: float
    energy_j: float | None
    basis: str
    gpus: int = 1


def costs(study: Study, runs: list[Run], finished: dict[Key, Finished]) -> dict[Key, RunCost]:
    """Estimate what every run that is left should take.

    Args:
        study: The study.
        runs: All of its runs.
        finished: Those that are done.

    Returns:
        The cost of each run that is not in `finished`.
    """
    known: dict[tuple[Any, ...], list[float]] = {}
    for run in runs:
        took = finished.get((run.stage, run.name)) or _took_before(study, run)
        if took:
            for kind in _kinds(run):
                known.setdefault(kind, []).append(took.seconds)
    hardware = load_hardware(study.hardware)
    fits = fit.fits(study, hardware)
    estimated = {}
    for run in runs:
        key = (run.stage, run.name)
        if key in finished:
            continue
        gpus = fit.devices_needed(fits, run)
        cost = None
        measured = next((known[kind] for kind in _kinds(run) if kind in known), None)
        if measured:
            seconds = mean(measured)
            cost = RunCost(seconds, joules(hardware, seconds, 0.0), FINISHED)
        elif "model" in run.parameters:
            nearest = nearest_published(study.model(run.parameters["model"]))
            cost = _published_cost(study, run, hardware, *nearest)
        elif run.stage == "power_sweep":
            cost = _sweep_cost(study, hardware, gpus)
        elif run.stage == "ablation":
            cost = _ablation_cost(study, hardware)
        else:
            cost = RunCost(model_time.START_S, joules(hardware, 0.0, model_time.START_S), START)
        if cost is None:
            cost = _model_cost(study, run, hardware, gpus)
        estimated[key] = replace(cost, gpus=max(cost.gpus, gpus))  # as this study's batches need
    return estimated


def _took_before(study: Study, run: Run) -> Finished | None:
    """Read what a run took that is made again with its settings: its notebook is still there."""
    earlier = read_finished(place(study, run.stage, run.name).notebook)
    return earlier if earlier and earlier.settings_hash == run.settings_hash else None


def _model_cost(
    study: Study, run: Run, hardware: Hardware, gpus: int, without: str | None = None
) -> RunCost:
    times = 1.0 if hardware.gpus else CPU_TIMES.get(run.stage, 1.0)
    busy_s, waiting_s = (times * s for s in model_time.model_s(study, run, hardware, gpus, without))
    energy_j = joules(hardware, busy_s, waiting_s, gpus)
    return RunCost(busy_s + waiting_s, energy_j, MODEL, gpus)


def _sweep_cost(study: Study, hardware: Hardware, gpus: int) -> RunCost:
    """Estimate a power sweep: its serving windows at every visit, as at the highest clock.

    What lower clocks take longer is what it finds out. It loads its model once.
    """
    sweep = study.power_sweep
    assert sweep is not None
    parameters = {"model": study.models[0].name, "task": study.tasks[0]}
    parameters |= {"method": "none", "precision": "fp16"}
    busy_s, waiting_s = model_time.model_s(study, Run("serve", "", parameters, {}), hardware, gpus)
    visits = (len(sweep.points) + 1) * study.repetitions
    busy_s, waiting_s = busy_s * visits, waiting_s + sweep.settle_seconds * visits
    return RunCost(busy_s + waiting_s, joules(hardware, busy_s, waiting_s, gpus), MODEL, gpus)


def _ablation_cost(study: Study, hardware: Hardware) -> RunCost:
    """Estimate an ablation: each cell once to warm up and once a repetition, loading the base anew.

    A cell trains as an adaptation of so few steps does, with gradient checkpointing. A CPU has no
    autocast for a factor.
    """
    steps = study.ablation
    assert steps is not None
    examples = (steps.steps + steps.warmup_steps) * study.training.batch_size
    data = {"train_examples": examples, "heldout_examples": 0}
    training = {"epochs": 1, "gradient_checkpointing": True}
    of_cell = study.model_copy(
        update={
            "data": study.data.model_copy(update=data),
            "training": study.training.model_copy(update=training),
        }
    )
    factors = ("autocast", "casts") if hardware.gpus else ("casts",)  # beside the base's precision
    cells = math.prod(len(ablation.FACTORS[factor]) for factor in factors)
    times = cells * (study.repetitions + 1)
    once_s = model_time.START_S + model_time.idle_s(study, hardware, 1)
    busy_s = waiting_s = 0.0
    for method in ("lora", "qlora"):  # whose bases these are
        parameters = {"model": study.models[0].name, "task": study.tasks[0], "method": method}
        busy, waiting = model_time.model_s(of_cell, Run("adapt", "", parameters, {}), hardware)
        busy_s += times * busy
        waiting_s += times * (waiting - once_s)
    waiting_s += once_s
    return RunCost(busy_s + waiting_s, joules(hardware, busy_s, waiting_s), MODEL)


def _kinds(run: Run) -> list[tuple[Any, ...]]:
    """List the kinds of runs that a run's time may be read off, the nearest first."""
    p = run.parameters
    exact = (run.stage, p.get("model"), p.get("task"), p.get("method"), p.get("precision"))
    return [exact, (run.stage, p.get("model"), p.get("precision")), (run.stage, p.get("model"))]


def joules(hardware: Hardware, busy_s: float, waiting_s: float, gpus: int = 1) -> float | None:
    """Estimate joules by shares of the power limit; without a GPU, by watts a logical CPU."""
    if hardware.power_limit_w:
        return gpus * hardware.power_limit_w * (BUSY_SHARE * busy_s + WAITING_SHARE * waiting_s)
    if hardware.gpus:
        return None
    return cpu_w() * (busy_s + waiting_s)


@cache
def cpu_w() -> float:
    """Return the watts of all CPUs at work, as params/hardware.yaml takes them to be."""
    return load_hardware_file().cpu_model.typical_w * (os.cpu_count() or 1)


# --- from the published figures ---------------------------------------------------------------


def nearest_published(model: Model, but_itself: bool = False) -> tuple[tuple[str, str], float]:
    """Return the published (family, size) next to a model, and its parameters as times of those.

    Its own family comes first. `but_itself` leaves out the model's own figures.
    """
    sizes = _published()["models"]
    own = (model.family, model.size)
    if own in sizes and not but_itself:
        return own, 1.0

    def distance(key: tuple[str, str]) -> tuple[bool, float]:
        return key[0] != model.family, abs(math.log(model.parameters / sizes[key]["parameters"]))

    nearest = min((key for key in sizes if key != own), key=distance)
    return nearest, model.parameters / sizes[nearest]["parameters"]


def _published_cost(
    study: Study, run: Run, hardware: Hardware, row_of: tuple[str, str], times: float = 1.0
) -> RunCost | None:
    """Price a run as that of the published model `row_of`, `times` over.

    In proportion to examples or tokens; the unadapted base as LoRA's FP16, of the same shape.

    None if the hardware is no T4, the figure was not published, or (for serving) the engine is
    another than the published one, vLLM. How long published examples were is not known.
    """
    if "Tesla T4" not in hardware.gpu_names:
        return None
    p = run.parameters
    method = "lora" if p["method"] == "none" else p["method"]
    adapter = (*row_of, p["task"], method)
    basis = PUBLISHED if times == 1.0 else SCALED
    table = _published()
    if run.stage == "adapt" and adapter in table["adaptation"]:
        row = table["adaptation"][adapter]
        share = study.data.train_examples * study.training.epochs / row["train_examples"]
        seconds, energy_j = row["adapt_s"] * share, row["adapt_energy_j"] * share
        cost = RunCost(times * seconds, times * energy_j, basis, int(row["gpus"]))
        return _with_waiting(study, hardware, cost, idles=1)
    if run.stage == "compress":
        merge: tuple[Any, ...] = (*adapter, "merge", None)
        published = table["compression"]
        if merge not in published:
            return None
        names = [merge, *((*adapter, "quantize", q) for q in run.precisions if q != "fp16")]
        rows = [published[name] for name in names if name in published]
        seconds = sum(row["compress_s"] for row in rows)
        energy_j = sum(row["compress_energy_j"] for row in rows)
        return _with_waiting(study, hardware, RunCost(times * seconds, times * energy_j, basis))
    variant = (*adapter, p.get("precision"))
    if run.stage == "serve" and study.workload.engine == "vllm" and variant in table["serving"]:
        row = table["serving"][variant]
        tokens_s = 0.0
        for concurrency, prompts, length in model_time.batches(study, p["task"], method):
            at_most = 1e3 * concurrency / row["tpot_ms"]
            tokens_s += prompts * length / min(row["throughput_tok_s"], at_most)
        seconds = times * (tokens_s + row["load_s"])
        cost = RunCost(seconds, seconds * row["power_w"], basis, int(row["gpus"]))
        return _with_waiting(study, hardware, cost, idles=2)
    return None


def _with_waiting(study: Study, hardware: Hardware, cost: RunCost, idles: int = 0) -> RunCost:
    """Add to published work this project's own start and idle baselines."""
    waiting_s = model_time.START_S + model_time.idle_s(study, hardware, idles)
    waiting_j = joules(hardware, 0.0, waiting_s, cost.gpus) or 0.0
    energy_j = None if cost.energy_j is None else cost.energy_j + waiting_j
    return replace(cost, seconds=cost.seconds + waiting_s, energy_j=energy_j)


@cache
def basis_errors(basis: str) -> dict[str, list[float]]:
    """Compute how far a basis is off: by stage, its seconds over the published ones.

    For every adapter and variant of the published study, were its own model's figures not known.
    """
    study = load_study("paper_t4", repetitions=1)
    hardware = load_hardware(study.hardware)
    ratios: dict[str, list[float]] = {}
    for run in study.runs():
        if "model" not in run.parameters or run.parameters["method"] == "none":
            continue
        model = study.model(run.parameters["model"])
        published = _published_cost(study, run, hardware, (model.family, model.size))
        if basis == SCALED:
            row_of = nearest_published(model, but_itself=True)
            estimated = _published_cost(study, run, hardware, *row_of)
        else:
            estimated = _model_cost(study, run, hardware, hardware.gpus, without=model.name)
        if published is not None and estimated is not None:
            ratios.setdefault(run.stage, []).append(estimated.seconds / published.seconds)
    return ratios


@cache
def _published() -> dict[str, dict[tuple[Any, ...], dict[str, Any]]]:
    """Read the published rows: adaptation by adapter, compression by what was done, serving."""
    from edge_eval_lib.economics import published

    figures = published.read()
    compression = {
        (*(row[c] for c in published.ADAPTER), row["operation"], row["precision"]): row
        for row in figures.compression.to_dict("records")
    }
    # A merge's precision says what came out, not what was asked for; what a QLoRA adapter's
    # quantisation took was not published: as LoRA's.
    merges = {(*key[:5], None): row for key, row in compression.items() if key[4] == "merge"}
    lora = {k: row for k, row in compression.items() if k[3:5] == ("lora", "quantize")}
    as_lora = {(*key[:3], "qlora", *key[4:]): row for key, row in lora.items()}
    return {
        "adaptation": _by(figures.adaptation, published.ADAPTER),
        "compression": as_lora | compression | merges,
        "models": _by(figures.models, ["family", "size"]),
        "serving": _by(published.observations(figures), published.VARIANT),
    }


def _by(table: pd.DataFrame, columns: list[str]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(row[c] for c in columns): row for row in table.to_dict("records")}
