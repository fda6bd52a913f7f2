"""What keeps a study from running, said before anything starts."""

from __future__ import annotations

import os

from edge_eval_lib import compressions, models
from edge_eval_lib.economics import fit
from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import knobs
from edge_eval_lib.machine.declared import Hardware, load_hardware
from edge_eval_lib.runs.finished import finished_runs
from edge_eval_lib.study import Model, Run, Study, Variant
from edge_eval_lib.tasks import require_examples, trained_as


def require_possible(study: Study) -> None:
    """Raise UserError, before anything starts, for what keeps the runs that are left from it."""
    runs = [run for run in study.runs() if "model" in run.parameters]
    finished = finished_runs(study, runs)
    left = {r.parameters["model"] for r in runs if (r.stage, r.name) not in finished}
    if not left:
        return
    sentences = [*problems(study), *missing_rows(study), *missing_software(study)]
    if not sentences:
        ready = [r for r in runs if r.stage == "serve" and set(r.needs) <= set(finished)]
        variants = [variant_of(study, run) for run in ready]
        names = [variant.served_name for variant in variants]
        if why := study.workload.engine_kind.unreachable(names):
            sentences.append(f"{(variants or study.variants())[0]} cannot be served: {why}")
    if not sentences:
        for model in study.models:
            if model.name in left and (why := _model_problem(model)):
                first = next(v for v in study.variants() if v.model == model.name)
                sentences.append(f"{first} cannot run: {why[0].lower()}{why[1:]}")
    if sentences:
        raise UserError("\n".join(sentences))


def problems(study: Study, hardware: Hardware | None = None) -> list[str]:
    """Say what cannot work, a sentence each: which variants, why, and the way out."""
    hardware = hardware or load_hardware(study.hardware)
    sentences = []
    if study.training.compute_dtype == "bfloat16" and hardware.gpus and not hardware.bf16:
        sentences.append(
            f"training.compute_dtype is bfloat16, which {study.hardware} (compute capability "
            f"{hardware.compute_capability}) does not compute, so that no variant can run, "
            f"{study.variants()[0]} the first; set it to float16."
        )
    sentences += _lacking_precisions(study, hardware)
    for (model, step), judged in fit.fits(study, hardware).items():
        if judged.verdict != "does not fit" or judged.need is None:
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
        sentences.append(
            f"{_named(study, model, step)} does not fit: to {step} takes "
            f"{judged.need.total_gb:.1f} GB of the {device} of {study.hardware}; {way_out}, or "
            "leave it out."
        )
    sentences += models.weight_problems(study)
    gated = [model.name for model in study.models if model.gated and model.source == "hub"]
    if gated and not os.environ.get("HF_TOKEN"):
        variants = [v for v in study.variants() if v.model in gated]
        sentences.append(
            f"HF_TOKEN is not set in the environment and {listed(gated)} are gated on the hub, so "
            f"that {len(variants)} variants cannot run, {variants[0]} the first; accept the "
            "licence there and set HF_TOKEN, or take the -random models of params/models.yaml."
        )
    return sentences


def _lacking_precisions(study: Study, hardware: Hardware) -> list[str]:
    """Precisions that the engine does not serve on the declared hardware."""
    sentences = []
    for precision in dict.fromkeys(c.precision for c in study.configurations):
        storage = compressions.storage(precision)
        if why := study.workload.engine_kind.lacking(storage, hardware, study.hardware):
            variant = next(v for v in study.variants() if v.precision == precision)
            sentences.append(
                f"{variant} cannot be served: {precision} by {study.workload.engine} {why}; leave "
                f"{precision} out, or take another engine."
            )
    return sentences


def power_sweep_refusal(study: Study) -> str:
    """Say why this machine's GPU cannot be swept as a study asks; empty if it can, or asks not."""
    sweep = study.power_sweep
    return knobs.refusal(sweep.knob, sweep.points, sweep.exclusive) if sweep else ""


def missing_rows(study: Study) -> list[str]:
    """Name tasks whose data have fewer rows than the study asks for, a sentence each.

    What lies on a hub is not known before it is read.
    """
    data, sentences = study.data, []
    trained = data.train_examples + data.heldout_examples
    for task in dict.fromkeys([*study.tasks, *map(trained_as, study.tasks)]):
        asked = study.evaluation_examples_of(task)
        try:
            require_examples(task, data.source, trained, asked, study.seed)
        except UserError as error:
            first = next(v for v in study.variants() if task in (v.task, v.trained_as))
            sentences.append(
                f"{first} cannot run: {error} Lower data.train_examples ({data.train_examples}), "
                f"data.heldout_examples ({data.heldout_examples}) or data.evaluation_examples "
                f"({data.evaluation_examples})."
            )
    return sentences


def missing_software(study: Study) -> list[str]:
    """Say what the study's engine and harness need and is not installed or set here."""
    sentences = []
    if study.harness is not None:
        from edge_eval_lib.lifecycle import harness

        sentences += harness.problems(study)
    engine = study.workload.engine_kind
    sentences += engine.missing(study)
    if engine.compressor != "llm-compressor":
        return sentences
    from edge_eval_lib.lifecycle.llm_compressor import compressor_python

    stored = ((variant, compressions.storage(variant.precision)) for variant in study.variants())
    quantized = next((variant for variant, storage in stored if storage != "fp16"), None)
    if quantized is not None:
        try:
            compressor_python()
        except UserError as error:
            sentences.append(f"{quantized} cannot be compressed: {error}")
    return sentences


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
    """Name the variants that a step of a model stands in the way of."""
    hit = [
        v
        for v in dict.fromkeys([*study.variants(), *study.reference_variants()])
        if v.model == model and step in (fit.adapt_step(v.method, v.task), fit.step_of(v))
    ]
    return str(hit[0]) if len(hit) == 1 else f"{hit[0]} (and {len(hit) - 1} like it)"


def variant_of(study: Study, run: Run) -> Variant:
    """Return the variant that a run serves."""
    model, p = study.model(run.parameters["model"]), run.parameters
    return Variant(model.family, model.size, p["task"], p["method"], p["precision"])


def listed(names: list[str]) -> str:
    """Join names as a sentence does: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
