"""llm-d's Benchmark Report, version 0.2.1: a JSON file a variant, every figure with its unit.

What that format has a place for stands there. Its units know no joule and no score: all figures
of a variant, these too, stand below `results.observability.edge_eval`, where it takes what others
add, each as {"value", "units", "interval"}.
"""

from __future__ import annotations

import uuid
from typing import Any

import orjson

from edge_eval_lib.results.exchange import ResultRow, ResultsFile
from edge_eval_lib.results.meanings import unit

VERSION = "0.2.1"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://arxiv.org/abs/2604.19342")
_SERVER = "server"


def files(results: ResultsFile) -> dict[str, str]:
    """Return what to write, by name: `VARIANT.json`."""
    return {
        f"{row.name}.json": orjson.dumps(
            report_of(row, results), option=orjson.OPT_INDENT_2
        ).decode()
        for row in results.variants
    }


def report_of(row: ResultRow, results: ResultsFile) -> dict[str, Any]:
    """Return one variant's report."""
    return {
        "version": VERSION,
        "run": {
            "uid": str(uuid.uuid5(_NAMESPACE, f"{results.measured_hash}/{row.name}")),
            "eid": results.measured_hash,
            "time": {"start": _with_zone(results.provenance.first_run)},
            "description": results.description,
            "keywords": ["edge-eval", row.method, row.precision],
        },
        "scenario": {"stack": [_server(row, results)], "load": _load(row, results)},
        "results": {
            "request_performance": {"aggregate": _performance(row)},
            "observability": _power(row) | {"edge_eval": _figures(row)},
        },
    }


def _with_zone(time: str) -> str:
    return time if time.endswith("Z") or "+" in time else f"{time}+00:00"


def _version_of(results: ResultsFile, package: str) -> str:
    return ", ".join(results.provenance.packages.get(package, [])) or "not recorded"


def _server(row: ResultRow, results: ResultsFile) -> dict[str, Any]:
    """The engine; its accelerator has the count 0 on a processor. An endpoint's is not known."""
    about: dict[str, Any] = {"tool": row.engine, "tool_version": _version_of(results, row.engine)}
    if row.gpus is None:
        about |= {"kind": "generic", "model": {"name": row.name}}
    else:
        about |= {
            "kind": "inference_engine",
            "role": "replica",
            "replicas": 1,
            "model": {"name": row.name},
            "accelerator": {
                "model": row.host,
                "count": row.gpus,
                "parallelism": {"tp": max(row.gpus, 1)},
            },
        }
    config = {
        "method": row.method,
        "precision": row.precision,
        "executed_dtype": row.executed_dtype,
        "instruction_set": row.instruction_set,
    }
    return {
        "metadata": {"label": _SERVER, "cfg_id": results.measured_hash},
        "standardized": about,
        "native": {"config": {name: value for name, value in config.items() if value}},
    }


def _load(row: ResultRow, results: ResultsFile) -> dict[str, Any] | None:
    """The requests; None where their length was not recorded, without which there is no load."""
    if "input_tokens_per_request" not in row.figures:
        return None
    tokens = results.settings["workload"]["output_tokens"]
    return {
        "metadata": {"description": f"the prompts of the task {row.task}"},
        "standardized": {
            "tool": "edge-eval",
            "tool_version": _version_of(results, "edge-eval"),
            "source": "sampled",
            "input_seq_len": {
                "distribution": "other",
                "value": float(row.figures["input_tokens_per_request"]),
            },
            "output_seq_len": {"distribution": "fixed", "value": tokens},
            "concurrency": row.concurrency,
        },
        "native": {"config": results.settings["workload"]},
    }


def _statistics(row: ResultRow, name: str, units: str, **others: str) -> dict[str, Any] | None:
    """A figure as the format has them; None if it is not known, or is no finite number."""
    found = {"mean": name} | others
    known = {key: row.figures[column] for key, column in found.items() if column in row.figures}
    if "mean" not in known or not all(isinstance(value, float) for value in known.values()):
        return None
    return {"units": units} | known


def _performance(row: ResultRow) -> dict[str, Any]:
    parts: dict[str, dict[str, Any]] = {
        "requests": {
            "input_length": _statistics(row, "input_tokens_per_request", "count"),
            "output_length": _statistics(row, "output_tokens_per_request", "count"),
        },
        "latency": {
            "time_to_first_token": _statistics(row, "ttft_ms", "ms", p95="ttft_p95_ms"),
            "time_per_output_token": _statistics(row, "tpot_ms", "ms/token", p95="tpot_p95_ms"),
        },
        "throughput": {"output_token_rate": _statistics(row, "throughput_tok_s", "tokens/s")},
    }
    known = {
        part: {name: value for name, value in content.items() if value is not None}
        for part, content in parts.items()
    }
    answered, failed = row.figures.get("requests"), row.figures.get("failed_requests")
    if answered is None:
        del known["requests"]  # which would need their number
    else:
        known["requests"]["total"] = round(float(answered) + float(failed or 0))
        if failed is not None:
            known["requests"]["failures"] = round(float(failed))
    return known


def _power(row: ResultRow) -> dict[str, Any]:
    power = _statistics(row, "power_w", "Watts")
    if power is None:
        return {}
    return {"components": [{"component_label": _SERVER, "aggregate": {"power_consumption": power}}]}


def _figures(row: ResultRow) -> dict[str, Any]:
    """Every figure of the variant with its unit; and why those are missing that are."""
    figures = {
        name: {"value": value, "units": unit(name)}
        | ({"interval": row.intervals[name]} if name in row.intervals else {})
        for name, value in row.figures.items()
    }
    missing = {name: why for name, why in row.reasons.items() if name not in figures}
    return {
        "energy_source": row.energy_source or "not measured",
        "validity": row.validity or "not checked",
        "figures": figures,
        "missing": missing,
    }
