"""A section of a model card for the hub: scores, energy, hardware, carbon, with their metadata.

The metadata's `co2_eq_emissions` are of adapting and compressing, as the hub means them; what a
request emits stands in the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_eval_lib import tasks
from edge_eval_lib.economics.carbon import CarbonBook, load_carbon_book, operational_g
from edge_eval_lib.results.columns import ESTIMATED_SOURCE
from edge_eval_lib.results.exchange import Number, ResultRow, ResultsFile
from edge_eval_lib.results.meanings import meaning, unit
from edge_eval_lib.results.readable import format_number, heading
from edge_eval_lib.units import JOULES_PER_KWH

WORLD = "WORLD"  # whose electricity is taken where nobody says
SHOWN = ("adapt_energy_j", "adapt_s", "compress_energy_j", "load_energy_j", "energy_per_request_j",
         "throughput_tok_s", "ttft_ms", "tpot_ms", "memory_gb", "score", "n_break", "ipw",
         "rho_sys", "q_ret_pct", "c_tax")  # fmt: skip


def files(results: ResultsFile, region: str | None = None) -> dict[str, str]:
    """Return what to write, by name: `VARIANT.md`, a card with metadata and one section.

    `region` is whose electricity it was, by a code of params/carbon.yaml; without it the world's
    mean is taken, and no location is claimed.
    """
    from huggingface_hub import ModelCard

    book = load_carbon_book()
    book.intensity_g_per_kwh(region or WORLD)  # refuses a region that there is not
    cards = {}
    for row in results.variants:
        data = _metadata(row, results, book, region)
        text = f"---\n{data.to_yaml()}\n---\n\n{_section(row, results, book, region)}"
        cards[f"{row.name}.md"] = str(ModelCard(text))
    return cards


def _metadata(row: ResultRow, results: ResultsFile, book: CarbonBook, region: str | None) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    model = results.model_of(row)
    task, source = tasks.find(row.task), results.settings["data"]["source"]
    known: dict[str, Any] = {}
    if model["licence"] not in ("unknown", "none"):
        known["license"] = model["licence"].lower()
    if model["source"] == "hub":
        known["base_model"] = model["location"]
    emitted = _emitted_g(row, book, region)
    if emitted is not None:
        known["co2_eq_emissions"] = {
            "emissions": emitted,
            "source": _source(row, book, region),
            "training_type": "fine-tuning",
            "hardware_used": row.host,
        } | ({"geographical_location": region} if region else {})
    if "score" in row.figures:
        of_hub = source == "hub" and task.hub is not None
        first = next(iter(task.figures))
        known["eval_results"] = [
            EvalResult(
                task_type="text-generation",
                dataset_type=task.hub.repository
                if of_hub and task.hub
                else f"edge-eval-{row.task}",
                dataset_name=row.task if of_hub else f"{row.task} (edge-eval's own prompts)",
                metric_type=first,
                metric_name=task.figures[first],
                metric_value=float(row.figures["score"]),
            )
        ]
    tags = ["edge-eval", row.method, row.precision]
    return ModelCardData(model_name=row.name, pipeline_tag="text-generation", tags=tags, **known)


def _emitted_g(row: ResultRow, book: CarbonBook, region: str | None) -> float | None:
    """Return g CO2e of adapting and compressing; None where either is not known."""
    spent = [row.figures.get(name) for name in ("adapt_energy_j", "compress_energy_j")]
    if None in spent:
        return None
    joules = sum(float(energy) for energy in spent if energy is not None)
    intensity = book.intensity_g_per_kwh(region or WORLD)
    return float(f"{operational_g(joules / JOULES_PER_KWH, intensity):.4g}")


def _source(row: ResultRow, book: CarbonBook, region: str | None) -> str:
    grid = f"{region or WORLD} {book.intensities.year}"
    return (
        f"edge-eval: energy of adapting and compressing ({row.energy_source}"
        f"{', estimated' if row.energy_source == ESTIMATED_SOURCE else ''}) x "
        f"{book.intensity_g_per_kwh(region or WORLD):g} g CO2e per kWh ({grid}), PUE 1"
    )


def _section(row: ResultRow, results: ResultsFile, book: CarbonBook, region: str | None) -> str:
    estimated = row.energy_source == ESTIMATED_SOURCE
    lines = [
        "## Energy, hardware and carbon",
        f"Measured by Edge-Eval on {row.host} ({row.engine}"
        + (f", computing in {row.executed_dtype}" if row.executed_dtype else "")
        + f"), {row.concurrency} requests in flight, {row.repetitions} cold serving "
        f"{'runs' if row.repetitions > 1 else 'run'}; study `{results.study}`. Energy: "
        + (row.energy_source or "not measured")
        + (", **estimated** from processor time." if estimated else "."),
        "| figure | value | 95 % interval | estimate's range | unit | what it is |\n"
        "|---|---|---|---|---|---|\n"
        + "\n".join(_line(row, name) for name in SHOWN if name in row.figures),
    ]
    request = row.figures.get("energy_per_request_j")
    if request is not None:
        intensity = book.intensity_g_per_kwh(region or WORLD)
        grams = operational_g(1000 * float(request) / JOULES_PER_KWH, intensity)
        lines.append(
            f"Carbon: {format_number(float(grams))} g CO2e for 1,000 requests, at {intensity:g} g "
            f"a kWh ({region or WORLD}, {book.intensities.year})."
        )
    left_out = {name: row.reasons.get(name) or "not measured" for name in SHOWN
                if name not in row.figures}  # fmt: skip
    if _emitted_g(row, book, region) is None:
        left_out["co2_eq_emissions"] = "the energy of adapting or compressing is not known"
    if left_out:
        lines.append("Left out:\n\n" + "\n".join(f"- {n}: {why}" for n, why in left_out.items()))
    return "\n\n".join(lines) + "\n"


def _line(row: ResultRow, name: str) -> str:
    base = name.removesuffix("_j")
    ends = [
        row.figures.get(f"{base}_{end}_j", row.figures.get(f"{name}_estimate_{end}"))
        for end in ("lo", "hi")
    ]
    cells = [
        heading(name).partition(" [")[0],
        format_number(float(row.figures[name])),
        _range(row.intervals.get(name)),
        _range(ends),
        unit(name),
        meaning(name) or "",
    ]
    return f"| {' | '.join(cells)} |"


def _range(ends: Sequence[Number | None] | None) -> str:
    known = [format_number(float(end)) for end in ends or () if end is not None]
    return " to ".join(known) or "-"
