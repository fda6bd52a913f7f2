"""What a finished run measured, in a phrase for the person who waits for the next one."""

from __future__ import annotations

from typing import Any

from edge_eval_lib.results.columns import DOUBTFUL, ESTIMATED_SOURCE
from edge_eval_lib.results.observations import checks_of_run
from edge_eval_lib.results.readable import format_number
from edge_eval_lib.units import duration, energy


def phrase(stage: str, recorded: dict[str, Any]) -> str:
    """Say what a run measured: `31.2 tok/s, 2.9 J (estimated) per request at 8 at a time`.

    Args:
        stage: The run's.
        recorded: Its scraps.

    Returns:
        The phrase; empty for a stage that measures nothing, or a record without these figures.
    """
    if stage == "adapt" and recorded.get("adapt_s") is not None:
        joules = _energy(recorded.get("adapt_energy_j"), recorded.get("adapt_energy_source"))
        return ", ".join(filter(None, [joules, f"{duration(recorded['adapt_s'])} of training"]))
    if stage == "compress":
        sizes = [
            f"{row['precision']} {format_number(row['disk_mb'] / 1e3)} GB"
            for row in recorded.get("artefacts") or []
            if row.get("disk_mb")
        ]
        return ", ".join(sizes)
    if stage == "serve":
        return _served(recorded)
    return ""


def _served(recorded: dict[str, Any]) -> str:
    """Say how fast, and with how many joules, it served at its headline concurrency."""
    at = (recorded.get("executed_workload") or {}).get("headline_concurrency")
    rows = [row for row in recorded.get("serving") or [] if row.get("concurrency") == at]
    if not rows or rows[0].get("throughput_tok_s") is None:
        return ""
    row = rows[0]
    joules = _energy(row.get("energy_per_request_j"), row.get("energy_source"))
    speed = f"{format_number(row['throughput_tok_s'])} tok/s"
    return f"{speed}{f', {joules} per request' if joules else ''} at {at} at a time"


def _energy(joules: float | None, source: str | None) -> str:
    if joules is None:
        return ""
    return energy(joules) + (" (estimated)" if source and ESTIMATED_SOURCE in source else "")


def disturbance(recorded: dict[str, Any]) -> str | None:
    """Say in a phrase what other work did to a run's windows; None if nothing doubtful."""
    judged = [c for c in checks_of_run(recorded) if c["name"] == "interference"]
    doubtful = [check for check in judged if check["verdict"] in DOUBTFUL]
    if not doubtful:
        return None
    worst = min(doubtful, key=lambda check: DOUBTFUL.index(check["verdict"]))
    more = len(doubtful) - 1
    others = {0: "", 1: ", and one more window"}.get(more, f", and {more} more windows")
    return f"{worst['detail']} in '{worst['window']}'{others}"
