"""The stated model of time: what a run should compute and wait, by the roofline.

`economics.roofline` is the model; for vLLM on a GPU `economics.speed` carries the published T4
figures by it. Here stands what is a run's own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from statistics import mean

import numpy as np

from edge_eval_lib import compressions, tasks
from edge_eval_lib.economics import fit, flops, latency, published_speed, roofline, speed
from edge_eval_lib.economics.shape import ModelShape, compressed
from edge_eval_lib.machine.declared import Hardware
from edge_eval_lib.study import Model, Run, Study

# An example's tokens, where its text is at hand: with its answer those of nine tasks within an
# eighth; a short prompt alone is taken to be up to a third too long.
TEMPLATE_TOKENS = 20  # of a chat template, with its system prompt
TOKEN_CHARACTERS = 4
HARNESS_REQUESTS = 4  # a prompt of lm-evaluation-harness: most tasks are of four choices
HARNESS_TOKENS = 100  # a request: ASSUMED
UNCUT_SHARE = 0.1  # of an adapted model's answers: the median of 41 serving runs of our own
START_S = 8.0  # a process, its imports, its kernel, its record: measured on two cores


def batches(study: Study, task: str, method: str) -> list[tuple[int, int, int]]:
    """List (concurrency, prompts, tokens each) of every window of a serving run and its warm-up.

    And of its unmeasured pass for uncut answers: those of `UNCUT_SHARE`, all of an unadapted model.
    An open loop is taken to be as one at the headline concurrency, a sweep to go on to its end.
    Where a task converses, every call is a prompt.
    """
    workload, prompts, asked_in = study.workload, study.data.evaluation_examples, tasks.find(task)
    swept = (1 << power for power in range((workload.largest_concurrency or 0).bit_length()))
    concurrencies = dict.fromkeys([*workload.concurrency, *swept])
    again = len(workload.arrival_rates_per_s) + workload.prefix_caching
    windows = [(c, workload.prompts_at(c, prompts)) for c in concurrencies]
    windows += [(workload.headline_concurrency, prompts)] * again
    timed = [(c, asked * asked_in.usual_calls, workload.output_tokens) for c, asked in windows]
    # The warm-up's batches are an eighth of the tokens long; three of them are its least.
    at_once = workload.headline_concurrency
    timed.append((at_once, 3 * at_once, max(1, workload.output_tokens // 8)))
    if workload.uncut_tokens is None or asked_in.converse is not None:
        return timed
    more_tokens = workload.uncut_tokens - workload.output_tokens  # what was answered goes on
    going_on = prompts if method == "none" else math.ceil(UNCUT_SHARE * prompts)
    return [*timed, (workload.headline_concurrency, going_on, more_tokens)]


def model_s(
    study: Study, run: Run, hardware: Hardware, gpus: int = 1, without: str | None = None
) -> tuple[float, float]:
    """Return seconds that a run should compute, and wait (start, reading, idle baselines).

    By the roofline of one device: those that a model is spread over take turns, but for vLLM, whose
    GPUs share every layer.

    Args:
        study: The study.
        run: Adapt, compress, serve or harness.
        hardware: What the study declares.
        gpus: How many a vLLM server shares.
        without: A published model that the published figures are taken without.

    Returns:
        Seconds of both.
    """
    model = study.model(run.parameters["model"])
    shape, training, workload = fit.shape_or_like(model), study.training, study.workload
    rates_by = bool(hardware.gpus), workload.engine_kind.launches_every_step
    device, rates = replace(roofline.device_of(hardware), cards=1), roofline.rates_of(*rates_by)
    prompt_tokens, tokens = example_tokens(study, run.parameters.get("task"))

    def computing_s(many: float) -> float:
        operations = flops.prefill_flop(shape.matrix_parameters, many)
        return operations / (device.flop_s * rates.compute_share)

    load_s = weights_gb(model, "fp16") / roofline.DISK_GB_S
    if run.stage == "adapt":
        trained = study.data.train_examples * training.epochs * tokens
        method, again = run.parameters["method"], training.gradient_checkpointing
        busy_s = roofline.training_s(
            shape.matrix_parameters, trained, method, device, again, rates
        ) + computing_s(2 * study.data.heldout_measured * tokens)
        busy_s -= (1 - training.adapted_share) * computing_s(trained)  # no backward pass through it
        return busy_s, START_S + load_s + idle_s(study, hardware, 1)
    if run.stage == "compress":
        made = {p for chain in ("fp16", *run.precisions) for p in compressions.path(chain)}
        written_gb = sum(weights_gb(model, p) for p in made)
        busy_s = (load_s * 2 + written_gb) / roofline.DISK_GB_S / 2
        distilled = study.data.train_examples * training.epochs * tokens
        for student in filter(compressions.distils, made):  # its teacher reads along
            parameters = compressed(shape, student).matrix_parameters
            busy_s += computing_s(distilled) + roofline.training_s(
                parameters, distilled, "lora", device, False, rates
            )
        return busy_s, START_S + load_s
    shape = compressed(shape, run.parameters["precision"])
    precision = compressions.estimated_as(run.parameters["precision"])
    waiting_s = START_S + shape.weight_bytes(precision) / 1e9 / roofline.DISK_GB_S
    if run.stage == "harness" and study.harness is not None:
        asked = len(study.harness.tasks) * study.harness.prompts * HARNESS_REQUESTS
        return computing_s(asked * HARNESS_TOKENS), waiting_s
    if hardware.gpus and not workload.engine_kind.launches_every_step:
        device = replace(device, cards=gpus)
    windows = tuple(batches(study, run.parameters["task"], run.parameters["method"]))
    busy_s = _serving_s(shape, precision, device, rates_by, prompt_tokens, windows, without)
    busy_s += computing_s(study.data.evaluation_examples * tokens)  # the gold answers' likelihoods
    return busy_s, waiting_s + idle_s(study, hardware, 2)


def example_tokens(study: Study, task: str | None) -> tuple[float, float]:
    """Estimate the tokens of a task's usual prompt, and of it with its answer.

    From the shipped texts' characters; both are taken to be half of training.max_tokens where the
    examples are still to be fetched.
    """
    if task is None or study.data.source != "embedded":
        return (study.training.max_tokens / 2,) * 2
    return _shipped_tokens(task)


@cache
def _shipped_tokens(task: str) -> tuple[float, float]:
    examples = tasks.load_task(task, train_examples=1, evaluation_examples=8, seed=0).evaluation
    asked = [sum(len(message["content"]) for message in e.messages) for e in examples]
    prompt = TEMPLATE_TOKENS + mean(asked) / TOKEN_CHARACTERS
    return prompt, prompt + mean(len(e.answer) for e in examples) / TOKEN_CHARACTERS


@cache
def _serving_s(
    shape: ModelShape,
    precision: str,
    device: roofline.Device,
    rates_by: tuple[bool, bool],
    prompt_tokens: float,
    batches: tuple[tuple[int, int, int], ...],
    without: str | None,
) -> float:
    """Compute seconds of a serving run's batches: (concurrency, prompts, tokens each)."""
    at_once, prompts, length = (np.array(column) for column in zip(*batches, strict=True))
    if rates_by == (True, False):
        calibration = published_speed.calibration(without)
        served = speed.predict(
            shape, precision, device, at_once, prompt_tokens, length, calibration
        )
        return float((prompts * length / served.throughput_tok_s).sum())
    rates = roofline.rates_of(*rates_by)
    context = prompt_tokens + length / 2
    step_s = roofline.step_s(shape, precision, device, at_once, context, rates)
    batch_s = roofline.prompt_s(shape, precision, device, at_once * prompt_tokens, rates)
    waves = np.ceil(prompts / at_once)
    return float((waves * latency.latency_s(batch_s, step_s, length)).sum())


def idle_s(study: Study, hardware: Hardware, times: int) -> float:
    """Compute seconds of idle baselines: an estimate from CPU time, as on most CPUs, takes none."""
    return times * study.workload.idle_seconds if hardware.gpus else 0.0


def weights_gb(model: Model, precision: str) -> float:
    """Return the GB of a model's weights at a precision."""
    shape = compressed(fit.shape_or_like(model), precision)
    return shape.weight_bytes(compressions.estimated_as(precision)) / 1e9
