"""Run All of every notebook, as it lies there, in a checkout whose embedded model is a tiny one.

Those of experiments are run by hand where their studies are made: test_experiments.py,
test_cascade_run.py, test_agents_run.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from checkout import change, make_checkout
from hand import complaints
from nbclient import NotebookClient
from ruamel.yaml import YAML
from tiny import TINY_TASKS, make_tiny_tasks, runs_started

from edge_eval_lib.paths import project_root
from edge_eval_lib.study import NOTEBOOKS as NOTEBOOK_OF
from edge_eval_lib.study import load_study

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1800)]

EXPERIMENTS = {study.notebook for study in map(load_study, ("rag_or_finetuning", "hybrid", "agents",
                                                            "pruning"))}  # fmt: skip
NOTEBOOKS = sorted(path.name for path in (project_root() / "notebooks").glob("[0-9]*.ipynb")
                   if path.stem not in EXPERIMENTS)  # fmt: skip
STUDIES = ("embedded", "qlora_ablation", "harness", "t4_free", "power_sweep")
SMALL = {
    "models": ["smollm2-135M"],
    "hardware": "this-machine",
    "tasks": ["rag"],
    "data": {
        "source": "embedded",
        "train_examples": 8,
        "heldout_examples": 2,
        "evaluation_examples": 4,
    },
    "repetitions": 1,
}
SMALL_WORKLOAD = {"output_tokens": 4, "warmup_requests": 1, "idle_seconds": 0.5}
# Where a default lies outside the checkout.
ELSEWHERE = {"09_t4_free.ipynb": {"outputs": "../outputs-t4", "hours": 0.5}}
# What turns a GPU's knobs runs on a simulated one.
ON_A_GPU = ("15_power_sweep.ipynb",)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, its smollm2-135M a tiny model, with a finished study called embedded."""
    directory = make_checkout(tmp_path_factory.mktemp("checkout"))
    (directory / "studied").mkdir()
    for file in (directory / "notebooks").glob("*.ipynb"):
        if file.name != NOTEBOOK_OF["paper"]:  # which is run by itself
            (directory / "studied" / file.name).symlink_to(file)
    make_tiny_tasks(directory / "tasks")
    for name in STUDIES:
        file = directory / "params" / f"{name}.yaml"
        study = YAML(typ="safe", pure=True).load(file)
        training = study["training"] | {"target_modules": ["q_proj", "v_proj", "down_proj"]}
        changes = SMALL | {"training": training, "workload": study["workload"] | SMALL_WORKLOAD}
        if name == "harness":
            tasks = {"tasks": list(TINY_TASKS), "task_directory": str(directory / "tasks")}
            changes["harness"] = tasks | {"prompts": 10}
        elif name == "power_sweep":
            changes["power_sweep"] = study["power_sweep"] | {
                "points": [300, 795, 1590],
                "exclusive": True,
                "settle_seconds": 0,
            }
            changes["workload"] |= {"concurrency": [1, 4], "headline_concurrency": 4}
        elif name == "t4_free":
            changes |= {"configurations": study["configurations"][:1], "unadapted_base": False}
        elif name == "embedded":  # whose QLoRA no notebook asks for by default
            changes["configurations"] = study["configurations"][:3]
        change(file, changes)
    done = subprocess.run(
        [sys.executable, "-m", "edge_eval_lib", "all", "embedded"],
        env=environment(directory),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    return directory


def environment(checkout: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "EDGE_EVAL"))}
    return kept | {
        "PYTHONPATH": str(checkout),
        "EDGE_EVAL_NOTEBOOKS": str(checkout / "studied"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(checkout / "hub"),
    }


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_its_defaults(name: str, checkout: Path, monkeypatch):
    notebook = nbformat.read(checkout / "notebooks" / name, as_version=4)
    if name in ELSEWHERE:
        cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        cell.source += "".join(f"\n{key} = {value!r}" for key, value in ELSEWHERE[name].items())
    for key in set(os.environ) - set(environment(checkout)):
        monkeypatch.delenv(key)
    for key, value in environment(checkout).items():
        monkeypatch.setenv(key, value)
    if name in ON_A_GPU:
        simulation = project_root() / "tests" / "simulated_gpu"
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(simulation), str(checkout)]))
        monkeypatch.setenv("SIMULATED_GPU", str(checkout / "gpu.json"))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    before = published(checkout)
    resources = {"metadata": {"path": str(checkout / "notebooks")}}
    NotebookClient(notebook, kernel_name="python3", timeout=1500, resources=resources).execute()
    assert published(checkout) == before  # whoever tries something leaves the study as it is
    assert [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert complaints(notebook) == ""


def published(checkout: Path) -> dict[str, str]:
    """When each run of the finished study began, by its record."""
    records = (checkout / "outputs" / "embedded" / "settings").rglob("*.json")
    return {str(path): json.dumps(path.stat().st_mtime_ns) for path in records}


def test_a_cell_added_to_the_synthesis_is_in_the_report(checkout: Path, tmp_path: Path):
    shutil.copytree(checkout / "studied", tmp_path / "notebooks")
    shutil.copytree(checkout / "outputs", tmp_path / "outputs")
    (tmp_path / "outputs" / "embedded" / "study.json").unlink()  # it names the original's file
    file = tmp_path / "notebooks" / "05_synthesis.ipynb"
    notebook = nbformat.read(file, as_version=4)
    added = nbformat.v4.new_code_cell("print('nobody else says', 6 * 7)")
    notebook.cells.insert(len(notebook.cells) - 1, added)
    nbformat.write(notebook, file)
    done = subprocess.run(
        [sys.executable, "-m", "edge_eval_lib", "all", "embedded"],
        env=environment(checkout)
        | {
            "EDGE_EVAL_NOTEBOOKS": str(file.parent),
            "EDGE_EVAL_OUTPUTS": str(tmp_path / "outputs"),
        },
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert runs_started(done.stdout) == ["synthesis/synthesis"]
    report = tmp_path / "outputs" / "embedded" / "report.html"
    assert "nobody else says 42" in report.read_text(encoding="utf-8")
