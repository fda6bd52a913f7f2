"""A study all of whose runs are done, although nothing was measured: files as runs leave them."""

from __future__ import annotations

import json
import struct
import time
from functools import cache
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet
from tiny import tiny_study, write_sources

from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import place
from edge_eval_lib.runs import catalogue
from edge_eval_lib.scraps import RUN_COMPLETE, SCRAP_MIMES
from edge_eval_lib.study import Run, Study, load_study

ADAPTER = "tinyllama-0.1M_rag_lora"
INT4 = f"{ADAPTER}_int4"


def safetensors(content: bytes) -> bytes:
    """A whole safetensors file of one tensor."""
    tensor = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
    header = json.dumps({"a": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + content


def executed(*scraps: tuple[str, object]) -> bytes:
    """An executed notebook that recorded these names and values."""
    outputs = [
        {
            "output_type": "display_data",
            "data": {SCRAP_MIMES[0]: {"name": name, "data": value}},
            "metadata": {},
        }
        for name, value in scraps
    ]
    cell = {
        "cell_type": "code",
        "id": "a",
        "source": "",
        "execution_count": 1,
        "metadata": {"papermill": {"duration": 1.0}},
        "outputs": outputs,
    }
    notebook = {
        "cells": [cell],
        "metadata": {"papermill": {"duration": 9.0}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return orjson.dumps(notebook)


@cache
def _answers() -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"answer": ["yes"]}), sink)
    return sink.getvalue().to_pybytes()


def make(study: Study, key: tuple[str, str], content: bytes = b"0" * 1000) -> None:
    """Write what a run makes, and its record."""
    make_run(study, catalogue.find_run(study, *key), content)


def make_run(study: Study, run: Run, content: bytes = b"0" * 1000) -> None:
    """Write what this run makes, and its record; `content` goes into its artefacts."""
    at = place(study, run.stage, run.name)
    for path in (at.notebook, at.settings):
        path.parent.mkdir(parents=True, exist_ok=True)
    scraps = {"settings_hash": run.settings_hash, "made": time.time_ns(), RUN_COMPLETE: True}
    scraps |= {f"{p}_energy_j": 1.0 for p in run.precisions}
    scraps |= {"artefacts": [{"precision": p} for p in run.precisions]} if run.precisions else {}
    at.notebook.write_bytes(executed(*scraps.items()))
    if run.stage in ("serve", "score"):
        at.notebook.with_name(f"{at.name}.answers.parquet").write_bytes(_answers())
    for artefact in run.artefacts:
        target = at.directory / artefact
        if target.suffix == ".html":
            target.write_text("report")
        else:
            target.mkdir(parents=True, exist_ok=True)
            name = "x.csv" if artefact in ("tables", "figures") else "model.safetensors"
            (target / name).write_bytes(safetensors(artefact.encode() + content))
    completion.write(study, run)


def everything(study: Study) -> list[tuple[str, str]]:
    """Stage and name of every run, the synthesis too."""
    return [*((run.stage, run.name) for run in study.runs()), ("synthesis", "synthesis")]


def undone(study: Study) -> dict[tuple[str, str], str]:
    """Why each run that is not done is not."""
    return completion.survey(study, [catalogue.find_run(study, *key) for key in everything(study)])


def serving_record(**changes: object) -> dict[str, object]:
    """A window's record of serving two requests at a time."""
    return {
        "window": "serve at 2",
        "concurrency": 2,
        "rate_per_s": None,
        "prefix_caching": False,
        "prefix_cache_hit_rate": None,
        "kv_cache": None,
        "failures": {},
        "continuous_batching": False,
        "on_gpu": False,
        "s": 25.0,
        "start_monotonic_s": 1000.0,
        "energy_j": 500.0,
        "energy_lo_j": 250.0,
        "energy_hi_j": 1000.0,
        "energy_net_j": 400.0,
        "energy_source": "nvml-counter",
        "energy_reason": None,
        "energy_net_reason": None,
        "power_w": 20.0,
        "cpu_s": 30.0,
        "peak_memory_gb": 2.0,
        "peak_memory_reason": None,
        "checks": [{"name": "resolution", "verdict": "ok", "detail": ""}],
    } | changes


def study_below(root: Path, patch: pytest.MonkeyPatch) -> Study:
    """The tiny study in `root`, with notebooks and outputs of its own and no run done."""
    patch.setenv("EDGE_EVAL_OUTPUTS", str(root / "outputs"))
    write_sources(root / "notebooks", patch)
    content = tiny_study(root)
    content["models"][0]["location"] = "/absent/llama"  # a run's settings hold the whole path
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_study(path)
