"""The QLoRA paradox, taken apart: which part of QLoRA costs how much time and energy?

A full factorial of three factors, everything else equal (data, batches, tokens, adapter, gradient
checkpointing, device): the base in FP16 or in 4-bit NF4; autocast to float16 or to bfloat16; and
whether the parameters beside the linear layers (norms, embeddings, output head) are cast to
float32, as peft's `prepare_model_for_kbit_training` does for a 4-bit base. A CPU computes in
float32, so that autocast is no factor there and the casts have nothing to do: they then tell what
the measurement can resolve.
"""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from edge_eval_lib import models
from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import place, raw_file
from edge_eval_lib.economics import published
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import adapt
from edge_eval_lib.lifecycle.data import task_examples
from edge_eval_lib.machine import host
from edge_eval_lib.results import figures, tables
from edge_eval_lib.results.report import Report, Section, render_report
from edge_eval_lib.study import Study
from edge_eval_lib.uncertainty import paired_ratio_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from peft import PeftModel
    from transformers import PreTrainedModel

    from edge_eval_lib.energy import Monitor

# A factor's levels: the first is what the second is compared with.
FACTORS = {
    "base": ("fp16", "nf4"),
    "autocast": ("float16", "bfloat16"),
    "casts": ("without", "with"),
}
QUANTITIES = ["seconds", "energy_j", "peak_memory_gb"]
PLAIN_LORA = {"base": "fp16", "autocast": "float16", "casts": "without"}


@dataclass(frozen=True)
class Cell:
    """One combination of levels. `autocast` is None where nothing is cast on the way: on a CPU."""

    base: str
    autocast: str | None
    casts: str

    def __str__(self) -> str:
        dtype = self.autocast or "float32"
        return f"{self.base} base, {dtype}, {self.casts} casts"


def factorial(on_gpu: bool) -> list[Cell]:
    """Every combination that the device can tell apart: eight on a GPU, four on a CPU."""
    levels = FACTORS | ({} if on_gpu else {"autocast": (None,)})
    return [Cell(*chosen) for chosen in itertools.product(*levels.values())]


def blocks(cells: Sequence[Cell], repetitions: int, seed: int) -> list[tuple[int, Cell]]:
    """(repetition, cell) in the order in which they are measured: every repetition holds each
    cell once, in a random order of its own, so that drift falls on none more than on another."""
    order = []
    for repetition in range(1, repetitions + 1):
        shuffled = list(cells)
        random.Random(f"{seed}/{repetition}").shuffle(shuffled)
        order += [(repetition, cell) for cell in shuffled]
    return order


# --- measuring --------------------------------------------------------------------------------


def cast_all_but_layers(model: PreTrainedModel) -> None:
    """Cast to float32 what `prepare_model_for_kbit_training` casts of a 4-bit model: every
    parameter of half precision but the weights of the layers that are quantised there."""
    import torch

    head = model.get_output_embeddings()
    quantised = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    for parameter in model.parameters():
        half = parameter.dtype in (torch.float16, torch.bfloat16)
        if half and id(parameter) not in quantised:
            parameter.data = parameter.data.to(torch.float32)


def load_cell(directory: Path, cell: Cell, study: Study) -> PeftModel:
    """The base as the cell wants it with a fresh adapter, ready to train with checkpointing.

    Where there is autocast, an FP16 base is stored in float16 whatever it is cast to. What a 4-bit
    base leaves unquantised is stored in autocast's own type: 4-bit layers answer in the type that
    they are asked in, and autocast refuses to join its own type and another 16-bit one.
    """
    stored, quantization = "float16", None
    if cell.base == "nf4":
        stored = cell.autocast or "float32"
        quantization = adapt.nf4(stored)
    elif cell.autocast is None:
        stored = "float32"
    base = models.load_model(directory, stored, quantization)
    if cell.casts == "with":
        cast_all_but_layers(base)
    model = adapt.add_adapter(base, adapt.lora_config(study.training), study.seed)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    return model.train()


def measure(study: Study, monitor: Monitor, say: Callable[[str], Any] = print) -> pd.DataFrame:
    """Train every cell for a few steps in every repetition; a row each.

    Loading and the first `warmup_steps` steps lie outside the measured window. All cells see the
    same batches in the same order. Every cell is trained once beforehand and not counted: the
    first one in a process pays for what libraries prepare once (here 2.7 times the CPU time).
    """
    settings, model = study.ablation, study.models[0]
    if settings is None:
        raise UserError(f"{study.path} has no section 'ablation'; give steps and warmup_steps.")
    directory = models.model_directory(model)
    tokenizer = models.load_tokenizer(directory)
    examples = task_examples(study, study.tasks[0], tokenizer)[0]
    encoded = adapt.encode(tokenizer, examples, study.training.max_tokens)
    batches = batches_of(tokenizer, encoded, study.training.batch_size)
    steps = settings.warmup_steps + settings.steps
    batches = list(itertools.islice(itertools.cycle(batches), steps))
    cells = factorial(models.default_device() != "cpu")
    order = blocks(cells, study.repetitions, study.seed)
    for cell in cells:
        measure_cell(directory, cell, study, batches, monitor)
        _free_memory()
    rows = []
    for position, (repetition, cell) in enumerate(order, start=1):
        row = {"repetition": repetition, "place": position, "cell": str(cell)}
        row |= {"base": cell.base, "autocast": cell.autocast or "none", "casts": cell.casts}
        rows.append(row | measure_cell(directory, cell, study, batches, monitor))
        _free_memory()
        say(f"{position} of {len(order)}  {cell}: {rows[-1]['seconds']:.2f} s")
    table = pd.DataFrame(rows)
    return table.assign(model=model.name, host=host.describe().label)


def batches_of(tokenizer: Any, encoded: list[dict[str, list[int]]], size: int) -> list[Any]:
    """Padded batches of tensors, in the examples' order; a rest that fills none is left out."""
    collate = adapt.answer_batches(tokenizer)
    if len(encoded) < size:
        raise UserError(
            f"data.train_examples gives {len(encoded)} examples, less than one batch of "
            f"training.batch_size = {size}."
        )
    return [collate(encoded[i : i + size]) for i in range(0, len(encoded) - size + 1, size)]


def measure_cell(
    directory: Path, cell: Cell, study: Study, batches: list[Any], monitor: Monitor
) -> dict[str, Any]:
    """One window over the steps after the warm-up: its figures and what was trained in it."""
    import torch

    model = load_cell(directory, cell, study)
    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=study.training.learning_rate)
    half = None if cell.autocast is None else getattr(torch, cell.autocast)
    autocast = torch.autocast(device.type, dtype=half, enabled=half is not None)
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    losses = []

    def step(batch: Any) -> None:
        with autocast:
            loss = model(**batch.to(device)).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.detach())

    warmup_steps = study.ablation.warmup_steps
    for batch in batches[:warmup_steps]:
        step(batch)
    with monitor.window(str(cell)) as window:
        for batch in batches[warmup_steps:]:
            step(batch)
    found = torch.stack(losses).tolist()
    if not np.isfinite(found).all():
        raise UserError(f"The loss of the cell '{cell}' is not a number: {found}.")
    return {
        "seconds": window.seconds,
        "energy_j": window.energy_j,
        "energy_source": window.energy_source,
        "energy_reason": window.energy_reason or None,
        "power_w": window.power_w,
        "cpu_s": window.cpu_s,
        "peak_memory_gb": window.peak_memory_gb,
        "steps": len(batches) - warmup_steps,
        "tokens": int(sum(batch["attention_mask"].sum() for batch in batches[warmup_steps:])),
        "executed_dtype": cell.autocast or models.executed_dtype(model),
        "loss_first": found[0],
        "loss_last": found[-1],
        "validity": "; ".join(
            f"{check.verdict}: {check.name}"
            for check in window.checks
            if check.verdict in ("warning", "invalid")
        )
        or "ok",
    }


def _free_memory() -> None:
    """Give back what a cell took, so that the next one's peak is its own."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- effects ----------------------------------------------------------------------------------


def effects(runs: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """What each factor's second level takes, over its first: ratio and interval of each quantity.

    Cells that differ in the factor alone are paired within a repetition. `given` says at which
    levels of the other factors; `all` is over all of them (every pair of every repetition is one
    observation, so where the factors interact its interval is the wider for it). A factor of one
    level, and a quantity that was not measured (or an energy that is only estimated from time),
    has no row.
    """
    rows = []
    for factor, levels in FACTORS.items():
        if set(levels) - set(runs[factor]):
            continue
        others = [name for name in FACTORS if name != factor]
        for quantity in _measured(runs):
            pairs = runs.pivot(index=["repetition", *others], columns=factor, values=quantity)
            pairs = pairs[list(levels)].dropna()
            groups = [("all", pairs), *pairs.groupby(others)]
            for given, part in groups:
                if part.empty:
                    continue
                ratio, low, high = paired_ratio_interval(
                    part[levels[1]].to_numpy(), part[levels[0]].to_numpy(), confidence
                )
                rows.append(
                    {"factor": factor, "levels": f"{levels[1]} over {levels[0]}"}
                    | {"given": given if given == "all" else _given(others, given)}
                    | {"quantity": quantity, "pairs": len(part)}
                    | {"ratio": ratio, "ratio_lo": low, "ratio_hi": high}
                )
    return pd.DataFrame(rows)


def _measured(runs: pd.DataFrame) -> list[str]:
    """An energy estimated from CPU time only repeats the seconds: it is not told as a finding."""
    estimated = (runs["energy_source"] == "cpu-model").any()
    return [
        name
        for name in QUANTITIES
        if runs[name].notna().any() and not (name == "energy_j" and estimated)
    ]


def _given(others: list[str], levels: tuple[str, ...]) -> str:
    told = {
        "base": "{} base",
        "autocast": "{}",
        "casts": "{} casts",
    }
    pairs = zip(others, levels, strict=True)
    return ", ".join(told[name].format(level) for name, level in pairs if level != "none")


def against_plain_lora(runs: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Every cell over plain LoRA (FP16 base, no casts, float16 where there is autocast)."""
    plain = (runs["base"] == PLAIN_LORA["base"]) & (runs["casts"] == PLAIN_LORA["casts"])
    plain &= runs["autocast"].isin([PLAIN_LORA["autocast"], "none"])
    reference = runs[plain].set_index("repetition")
    rows = []
    for cell, part in runs[~plain].groupby("cell", sort=False):
        own = part.set_index("repetition")
        for quantity in _measured(runs):
            pairs = pd.concat([own[quantity], reference[quantity]], axis=1).dropna().to_numpy()
            if len(pairs):
                ratio, low, high = paired_ratio_interval(pairs[:, 0], pairs[:, 1], confidence)
                rows.append(
                    {"cell": cell, "quantity": quantity, "repetitions": len(pairs)}
                    | {"ratio": ratio, "ratio_lo": low, "ratio_hi": high}
                )
    return pd.DataFrame(rows, columns=["cell", "quantity", "repetitions", *RATIO])


RATIO = ["ratio", "ratio_lo", "ratio_hi"]


def published_ratios(model: str) -> tuple[float, float] | None:
    """Smallest and largest published energy of QLoRA over LoRA of a model, over its tasks."""
    table = published.read().adaptation
    table = table[table["family"] + "-" + table["size"] == model]
    if table.empty:
        return None
    energy = table.pivot(index="task", columns="method", values="adapt_energy_j")
    ratio = energy["qlora"] / energy["lora"]
    return float(ratio.min()), float(ratio.max())


def verdict(runs: pd.DataFrame, compared: pd.DataFrame) -> tuple[str, str]:
    """What the ablation says of the published ratio: (`open`, `explained` or `not reproduced`,
    and why).

    `open` until a T4 has measured energy in repeated runs of a model that was published: a CPU
    says nothing of watts, and a newer GPU has bfloat16 of its own. `explained` names the cells
    whose interval meets the published range.
    """
    hosts, names = sorted(set(runs["host"])), sorted(set(runs["model"]))
    if not all("T4" in host for host in hosts):
        return "open", f"No T4 has run it yet; these figures are of {', '.join(hosts)}."
    energy = compared[compared["quantity"] == "energy_j"].dropna(subset=RATIO)
    if energy.empty:
        return "open", "There is no measured energy with an interval."
    span = published_ratios(names[0])
    if len(names) != 1 or span is None:
        return "open", f"No ratio was published for {', '.join(names)}."
    told = f"the published {span[0]:.1f} to {span[1]:.1f} times of {names[0]}"
    meets = energy[(energy["ratio_lo"] <= span[1]) & (energy["ratio_hi"] >= span[0])]
    if meets.empty:
        most = energy.loc[energy["ratio"].idxmax()]
        return (
            "not reproduced",
            f"No cell takes {told}; the most is {most['ratio']:.2f} times, {most['cell']}.",
        )
    cells = "; ".join(f"{row.cell} ({row.ratio:.2f} times)" for row in meets.itertuples())
    return "explained", f"These take {told}: {cells}."


# --- what is written --------------------------------------------------------------------------


def draw(found: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """The effects as a picture, with host and energy source at its foot."""
    return figures.ablation_effects(found, stamp_of(runs))


def stamp_of(runs: pd.DataFrame) -> str:
    """Host, model and energy source, for the foot of a figure."""
    sources = ", ".join(sorted(runs["energy_source"].dropna().unique())) or "none"
    hosts, names = ", ".join(sorted(set(runs["host"]))), ", ".join(sorted(set(runs["model"])))
    return f"{names} · {hosts} · energy: {sources}"


def measured_runs(study: Study) -> pd.DataFrame:
    """The runs that the study's ablation measured; UserError if it was not made yet."""
    path = raw_file(study, "ablation", "ablation", "runs.parquet")
    if not path.is_file():
        raise UserError(
            f"{study.name} was not run yet; run `make all STUDY={study.argument}` first."
        )
    return completion.read_raw(place(study, "ablation", "ablation").notebook, "runs")


def write_results(study: Study, runs: pd.DataFrame, directory: Path | None = None) -> Path:
    """Write tables/*.csv, figures/* and report.html from the measured runs; the report's path.

    To the study's outputs, or to `directory`.
    """
    found, compared = effects(runs), against_plain_lora(runs)
    judged, why = verdict(runs, compared)
    picture = draw(found, runs)
    directory = directory or study.directory
    for name, table in {"runs": runs, "effects": found, "cells": compared}.items():
        tables.write_table(table, directory / "tables" / f"ablation_{name}.csv")
    figures.save_figure(picture, directory / "figures" / "ablation_effects")
    on_cpu = set(runs["autocast"]) == {"none"}
    report = Report(
        title=f"Edge-Eval: {study.name}",
        summary=study.description,
        facts={
            "host": ", ".join(sorted(set(runs["host"]))),
            "model": ", ".join(sorted(set(runs["model"]))),
            "energy source": ", ".join(sorted(runs["energy_source"].dropna().unique())) or "none",
            "each run": f"{runs['steps'].iloc[0]} steps, {runs['tokens'].iloc[0]:,} tokens",
            "repetitions": f"{runs['repetition'].max()}, in a random order (seed {study.seed})",
        },
        warnings=[f"The verdict on the published ratio: {judged}. {why}", *_limits(on_cpu)],
        sections=[
            Section(
                "Which factor costs how much?",
                ["Second level over first, everything else equal; intervals of 95 % over pairs "
                 "within a repetition. An interval that holds 1 shows no effect."],
                figure=picture,
            ),
            Section(
                "Effects", table=found, csv="tables/ablation_effects.csv",
                columns=["factor", "levels", "given", "quantity", "ratio", "pairs"],
            ),
            Section(
                "Every cell over plain LoRA", table=compared, csv="tables/ablation_cells.csv",
                columns=["cell", "quantity", "ratio", "repetitions"],
            ),
            Section(
                "Every run", table=runs, csv="tables/ablation_runs.csv",
                columns=["place", "repetition", "cell", "seconds", "energy_j", "peak_memory_gb",
                         "tokens", "executed_dtype", "loss_last", "validity"],
            ),
        ],
    )  # fmt: skip
    return render_report(directory / "report.html", report)


def _limits(on_cpu: bool) -> list[str]:
    if not on_cpu:
        return []
    return [
        "On a CPU: time only. Everything is float32, so that the casts have nothing to do; their "
        "effect tells what these runs can resolve. Energy estimated from CPU time would only "
        "repeat the seconds."
    ]
