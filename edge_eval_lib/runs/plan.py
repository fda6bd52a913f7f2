"""What a study will take: its grid, what is done, what the rest costs, what fits, what is missing.

It starts nothing and needs no network.
"""

from __future__ import annotations

import shutil
from collections import Counter
from statistics import median
from typing import Any

import pandas as pd

from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import Key
from edge_eval_lib.artefacts.source import kept_warnings
from edge_eval_lib.economics import fit, roofline
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.machine.declared import Hardware, load_hardware
from edge_eval_lib.runs import disk, estimate, model_time, outdated
from edge_eval_lib.runs.finished import Finished, finished_runs
from edge_eval_lib.runs.problems import (
    listed,
    missing_rows,
    missing_software,
    power_sweep_refusal,
    problems,
    variant_of,
)
from edge_eval_lib.study import STAGES, Run, Study, find_beside
from edge_eval_lib.study.files import THIS_MACHINE
from edge_eval_lib.tasks import find as find_task
from edge_eval_lib.units import duration, energy

SHORT_NAMES = {
    estimate.FINISHED: "finished",
    estimate.PUBLISHED: "published",
    estimate.SCALED: "scaled",
    estimate.MODEL: "model",
    estimate.START: "start",
}


def plan_table(
    study: Study, runs: list[Run] | None = None, finished: dict[Key, Finished] | None = None
) -> pd.DataFrame:
    """Return what every run of a study takes, a row a run.

    Args:
        study: The study.
        runs: Its runs, where they are known.
        finished: Those that are done, where they are known.

    Returns:
        Columns: stage, name, done; of a run that is left also seconds, gpus, device_s (seconds x
        gpus), energy_j, usd, disk_gb and basis, what the estimate stands on. Empty is not known.
    """
    runs = study.runs() if runs is None else runs
    finished = finished_runs(study, runs) if finished is None else finished
    costs = estimate.costs(study, runs, finished)
    rows = []
    for run in runs:
        cost = costs.get((run.stage, run.name))
        row: dict[str, Any] = {"stage": run.stage, "name": run.name, "done": cost is None}
        if cost is not None:
            row |= {"seconds": cost.seconds, "gpus": cost.gpus, "energy_j": cost.energy_j}
            row |= {"basis": cost.basis, "disk_gb": disk.left_by_gb(study, run)}
        rows.append(row)
    columns = ["stage", "name", "done", "seconds", "gpus", "energy_j", "basis", "disk_gb"]
    table = pd.DataFrame(rows, columns=columns).astype(
        dict.fromkeys(["seconds", "gpus", "energy_j", "disk_gb"], float)
    )
    table["device_s"] = table["seconds"] * table["gpus"]
    prices = load_price_book(find_beside(study.path, "prices.yaml")).prices(study.prices)
    # The price is of all the devices together.
    machine_s = table["device_s"] / max(1, load_hardware(study.hardware).gpus)
    table["usd"] = prices.machine_usd(table["energy_j"], machine_s)
    return table


def describe(study: Study) -> str:
    """Return the plan as text for a terminal."""
    runs = study.runs()
    undone = completion.survey(study, runs)
    finished = finished_runs(study, runs, undone)
    table = plan_table(study, runs, finished)
    left = table[~table["done"]]
    hardware = load_hardware(study.hardware)
    missing = [*problems(study, hardware), *missing_rows(study), *missing_software(study)]
    if refused := power_sweep_refusal(study):
        missing.append(f"make all would be refused here: {refused}")
    need_gb, free_gb = left["disk_gb"].sum() + disk.bases_gb(study), _free_gb(study)
    if len(left) and need_gb > free_gb:
        missing.append(
            f"The disk lacks {need_gb - free_gb:.0f} GB for all of it; point EDGE_EVAL_OUTPUTS "
            "elsewhere."
        )
    changed = [*outdated.reasons(study, runs, undone), *kept_warnings(study)]
    if stop := outdated.unconfirmed(study, runs, undone, set()):
        changed.append(stop)
    blocks = [
        [f"{study.name}: {study.description}"],
        _grid_lines(study, runs, finished),
        changed,
        [_stage_table(table, hardware)],
        _left_lines(study, left, hardware),
        _assumptions(study, left, hardware) if len(left) else [],
        _hardware_lines(study, hardware),
        _fit_lines(study, hardware),
        [f"  - {sentence}" for sentence in missing] or ["Nothing is missing."],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


# --- the parts of the plan --------------------------------------------------------------------


def _grid_lines(study: Study, runs: list[Run], finished: dict[Key, Finished]) -> list[str]:
    if study.power_sweep is not None:
        sweep = study.power_sweep
        points = ", ".join(f"{point:g}" for point in sweep.points)
        return [
            f"One run: {study.models[0].name}, unadapted at FP16, served by "
            f"{study.workload.engine} at {len(sweep.points)} settings of {sweep.knob} ({points}), "
            f"{_counted(range(study.repetitions), 'repetition')} of each, the first of every "
            "repetition twice"
        ]
    variants, references = study.variants(), study.reference_variants()
    serving = [run for run in runs if run.stage == "serve"]
    of_variants = sum(variant_of(study, run) in set(variants) for run in serving)
    extra = len(serving) - of_variants
    lines = [
        f"{len(variants)} variants = {_counted(study.models, 'model')} x "
        f"{_counted(study.tasks, 'task')} x {_counted(study.configurations, 'configuration')}"
        f"; {len(set(references) - set(variants))} references (the unadapted base of each model on "
        "each task)",
        f"{of_variants:,} serving runs ({_repetitions(study)} of each "
        f"variant) by {study.workload.engine}" + (f"; {extra:,} of references" if extra else ""),
    ]
    if study.harness is not None:
        lines.append(
            f"{_counted(study.harness_variants(), 'run')} of lm-evaluation-harness, "
            f"{study.harness.prompts:,} prompts a task: {', '.join(study.harness.tasks)}"
        )
    adapted = [run for run in runs if run.stage == "adapt"]
    counts: dict[str, set[int]] = {}
    for run in adapted:  # how many rows are too long is known with the model's tokenizer alone
        done = finished.get((run.stage, run.name))
        if done is not None and done.rows_passed_over is not None:
            counts.setdefault(run.parameters["task"], set()).add(done.rows_passed_over)
    passed_over = [
        f"{task} {min(rows):,}" + (f" to {max(rows):,}, by model" if len(rows) > 1 else "")
        for task, rows in counts.items()
    ]
    if unknown := [task for task in study.tasks if task not in counts]:
        passed_over.append(f"counted when an adapter is trained: {listed(unknown)}")
    if adapted:
        lines.append(
            f"Training rows of more than {study.training.max_tokens:,} tokens are passed over, the "
            f"next ones taken: {'; '.join(passed_over)}"
        )
    return lines


def _repetitions(study: Study) -> str:
    """`1 repetition`, or `1 to 5 repetitions` where a configuration has more than others."""
    counts = {study.repetitions_of(variant) for variant in study.variants()}
    if len(counts) == 1:
        return _counted(range(*counts), "repetition")
    return f"{min(counts)} to {max(counts)} repetitions"


def _stage_table(table: pd.DataFrame, hardware: Hardware) -> str:
    rows = [_row(stage, table[table["stage"] == stage]) for stage in STAGES]
    shown = pd.DataFrame([row for row in [*rows, _row("together", table)] if row["runs"] != "0"])
    shown = shown.rename(columns={"time": "GPU time" if hardware.gpus else "time"})
    return _text(shown)


def _row(stage: str, runs: pd.DataFrame) -> dict[str, str]:
    """Sum what a stage's runs that are left take; unknown as soon as that of one is."""
    left = runs[~runs["done"]]
    row = {"stage": stage, "runs": f"{len(runs):,}", "done": f"{len(runs) - len(left):,}"}
    row |= {"left": f"{len(left):,}"} | dict.fromkeys(["time", "energy", "USD", "disk GB"], "-")
    if left.empty:
        return row | {"basis": "-"}
    energy_j, usd, disk_gb = (left[c].sum(skipna=False) for c in ("energy_j", "usd", "disk_gb"))
    row["time"] = duration(left["device_s"].sum(), longest="h")
    row["energy"] = "unknown" if pd.isna(energy_j) else energy(energy_j)
    row["USD"] = "unknown" if pd.isna(usd) else "<0.01" if 0 < usd < 0.005 else f"{usd:,.2f}"
    row["disk GB"] = f"{disk_gb:,.0f}" if disk_gb >= 100 else f"{disk_gb:.2g}"
    bases = set(left["basis"])
    return row | {"basis": " + ".join(name for b, name in SHORT_NAMES.items() if b in bases)}


def _left_lines(study: Study, left: pd.DataFrame, hardware: Hardware) -> list[str]:
    if left.empty:
        return []
    at_once = max(1, hardware.gpus)
    where = f"{at_once} runs at once" if at_once > 1 else "one run after another"
    return [
        f"Time left: about {duration(left['device_s'].sum() / at_once)} with {where}.",
        f"Disk: besides, {disk.bases_gb(study):.3g} GB of base models; {_free_gb(study):.0f} "
        "GB are free here. Merged weights may be deleted (artefacts/models): they are built again "
        "when a run needs them.",
    ]


def _assumptions(study: Study, left: pd.DataFrame, hardware: Hardware) -> list[str]:
    """Say where the estimates come from, a line a basis."""
    counts = Counter(zip(left["basis"], left["stage"], strict=True))
    lines = ["Where the estimates come from:"]
    for basis, how in (
        (estimate.FINISHED, "as finished runs of the same stage and model took"),
        (
            estimate.PUBLISHED,
            "published T4 figures (params/published), in proportion to examples or tokens; how "
            "long the published examples were is not known",
        ),
        (estimate.SCALED, f"{estimate.SCALED}, in proportion to parameters too; "),
        (estimate.MODEL, f"{_model_text(study, hardware)}; downloads not counted; "),
        (estimate.START, f"{model_time.START_S:.0f} s to start, and no more"),
    ):
        stages = [stage for stage in STAGES if counts[basis, stage]]
        if stages and basis == estimate.MODEL and not hardware.gpus:
            known = [f"{s} {estimate.CPU_TIMES[s]:g}" for s in stages if s in estimate.CPU_TIMES]
            if known:
                how += f"times {listed(known)}, as five studies took on two idle cores: "
            how += "how far that is off on another CPU is not known before a run is finished"
        elif stages and basis in (estimate.SCALED, estimate.MODEL):
            how += _error_text(basis, stages)
        if stages:
            many = ", ".join(f"{counts[basis, stage]:,} {stage}" for stage in stages)
            lines.append(f"  - {many}: {how}")
    if "harness" in set(left["stage"]):
        lines.append(
            f"  - lm-evaluation-harness: {model_time.HARNESS_REQUESTS} requests of "
            f"{model_time.HARNESS_TOKENS} tokens a prompt (assumed); a group counts as one task, "
            "though each of its tasks has as many"
        )
    if "serve" in set(left["stage"]) and study.workload.uncut_tokens:
        lines.append(
            f"  - answers that go on beyond the limit: {model_time.UNCUT_SHARE:.0%} of an adapted "
            f"model's and all of an unadapted one's, up to {study.workload.uncut_tokens:,} tokens "
            "each"
        )
    power = (
        f"{estimate.BUSY_SHARE:.0%} of the power limit of {hardware.power_limit_w:g} W busy, "
        f"{estimate.WAITING_SHARE:.0%} waiting"
        if hardware.power_limit_w
        else f"{estimate.cpu_w():.0f} W, by the watts a logical CPU in params/hardware.yaml"
    )
    lines.append(f"  - energy where it was not published: {power}")
    lines.append(f"  - USD: the machine by the hour and electricity, prices {study.prices!r}")
    return lines


def _model_text(study: Study, hardware: Hardware) -> str:
    """State the model's figures."""
    engine = study.workload.engine_kind
    rates = roofline.rates_of(bool(hardware.gpus), engine.launches_every_step)
    compute, bandwidth = hardware.fp16_tflops, hardware.bandwidth_gb_s
    serving = ""
    if hardware.gpus and rates.launch_s_a_layer:
        steps = ", ".join(f"{p} {1e3 * s:g} ms" for p, s in rates.launch_s_a_layer.items())
        serving = f", a step by {study.workload.engine} on a T4 {steps} a layer"
    elif hardware.gpus:
        serving = ", serving as the published T4 figures by the ratio of both devices' rooflines"
    return (
        f"{rates.compute_share:.0%} of "
        f"{f'{compute:g}' if compute else f'{roofline.CPU_TFLOPS} (assumed)'} TFLOP/s, "
        f"{rates.bandwidth_share:.0%} of "
        f"{f'{bandwidth:g}' if bandwidth else f'{roofline.CPU_BANDWIDTH_GB_S:g} (assumed)'} GB/s, "
        f"disk {roofline.DISK_GB_S} GB/s, {model_time.START_S:.0f} s a start{serving}"
    )


def _error_text(basis: str, stages: list[str]) -> str:
    """Say what a basis gives for the published T4 runs, of stages that were published."""
    errors = {stage: off for stage, off in estimate.basis_errors(basis).items() if stage in stages}
    ranges = [
        f"{'serve by vLLM' if stage == 'serve' else stage} {median(off):.2g} times "
        f"({min(off):.2g} to {max(off):.2g})"
        for stage, off in errors.items()
    ]
    if not ranges:
        return "its error is not known: nothing like it was published"
    return f"of the published T4 runs' time it gives, as the median (range): {', '.join(ranges)}"


def _fit_lines(study: Study, hardware: Hardware) -> list[str]:
    table = fit.fit_table(study, hardware)
    shown = pd.DataFrame({"model": table["model"], "step": table["step"]})
    for column, heading in (
        ("weights_gb", "weights"),
        ("adapter_gb", "adapter"),
        ("activations_gb", "activ."),
        ("kv_cache_gb", "KV"),
        ("workspace_gb", "engine"),
        ("need_gb", "needs"),
    ):
        shown[heading] = [f"{gb:.2f}" if pd.notna(gb) else "" for gb in table[column]]
    shown["verdict"] = [_verdict(row) for row in table.itertuples()]
    counts = ", ".join(f"{verdict} {n}" for verdict, n in _verdicts(study, hardware).items())
    return [
        "Memory, estimated, GB (a dialogue's longest reply is taken to be "
        f"{find_task('dialogue').longest_answer_share:.0%} of training.max_tokens):",
        _text(shown),
        f"Variants, trained and served, by the worse of both: {counts}.",
    ]


def _verdict(row: Any) -> str:
    """Say whether a step of a model fits, and in what."""
    if isinstance(row.reason, str):
        return row.reason
    if row.verdict == "offload":
        over_gb = row.need_gb - row.devices * (row.device_gb - fit.RESERVE_GB)
        return f"offload {over_gb:.1f} GB to the host's memory"
    devices = f" ({row.devices} devices)" if row.verdict == "fits" and row.devices > 1 else ""
    return f"{row.verdict} {row.devices * row.device_gb:.3g} GB{devices}"


def _verdicts(study: Study, hardware: Hardware) -> Counter[str]:
    """Count the variants of each verdict: the worse of training and serving."""
    fits = fit.fits(study, hardware)
    order = ["fits", "offload", "does not fit"]
    counts: Counter[str] = Counter()
    for variant in study.variants():
        steps = [fit.step_of(variant), fit.adapt_step(variant.method, variant.task)]
        verdicts = [fits[variant.model, s].verdict for s in steps if (variant.model, s) in fits]
        known = [verdict for verdict in verdicts if verdict]
        counts[max(known, key=order.index) if known else "not known"] += 1
    return counts


def _text(table: pd.DataFrame) -> str:
    """Print a table for a terminal: what is named on the left, numbers on the right."""
    named = ("stage", "model", "step", "basis", "verdict")
    align = ["left" if column in named else "right" for column in table]
    return table.to_markdown(index=False, tablefmt="simple", colalign=align, disable_numparse=True)


def _hardware_lines(study: Study, hardware: Hardware) -> list[str]:
    """Say what the plan is judged by, and whether this machine is another kind of it."""
    lines = [f"Declared hardware: {study.hardware} ({_hardware_text(hardware)})."]
    if hardware.gpus and not load_hardware(THIS_MACHINE).gpus:
        lines.append(
            "This machine has no GPU: unless a profile takes runs to one that has, they compute on "
            "the processor, and take far longer."
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
