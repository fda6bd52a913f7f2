"""Run All of every notebook, as it lies there, in a checkout whose embedded model is a tiny one.

Those of experiments are run by hand where their studies are made: test_experiments.py,
test_cascade_run.py, test_agents_run.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hand import complaints
from nbclient import NotebookClient
from ruamel.yaml import YAML
from tiny import TINY_TASKS, make_tiny_model, make_tiny_tasks

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
    directory = tmp_path_factory.mktemp("checkout")
    for name in ("edge_eval_lib", "notebooks", "params", "profiles"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(project_root() / name, directory / name, ignore=ignored)
    for name in ("Snakefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(project_root() / name, directory)
    git("init", "--quiet", cwd=directory)  # a clone is one, and libraries ask for its commit
    git("commit", "--quiet", "--allow-empty", "--message", "A checkout", cwd=directory)
    (directory / "studied").mkdir()
    for file in (directory / "notebooks").glob("*.ipynb"):
        if file.name != NOTEBOOK_OF["paper"]:  # which is run by itself
            (directory / "studied" / file.name).symlink_to(file)
    tiny_model = make_tiny_model(directory / "tiny")
    make_tiny_tasks(directory / "tasks")
    change(directory / "params" / "models.yaml", {"smollm2-135M": stanza(tiny_model)})
    for name in STUDIES:
        file = directory / "params" / f"{name}.yaml"
        study = YAML(typ="safe", pure=True).load(file)
        training = study["training"] | {"target_modules": ["q_proj", "v_proj", "down_proj"]}
        changes = SMALL | {"training": training, "workload": study["workload"] | SMALL_WORKLOAD}
        if name == "harness":
            tasks = {"tasks": list(TINY_TASKS), "task_directory": str(directory / "tasks")}
            changes["harness"] = tasks | {"prompts": 10}
        elif name == "power_sweep":
            changes["power_sweep"] = study["power_sweep"] | {"exclusive": True, "settle_seconds": 0}
            changes["workload"] |= {"concurrency": [1, 4], "headline_concurrency": 4}
        elif name == "t4_free":
            changes |= {"configurations": study["configurations"][:1], "unadapted_base": False}
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


def git(*arguments: str, cwd: Path) -> None:
    identity = ["-c", "user.name=Tests", "-c", "user.email=tests@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True)


def stanza(directory: Path) -> dict[str, object]:
    """A tiny model under the name and size of the embedded one."""
    return {
        "family": "smollm2",
        "size": "135M",
        "source": "local",
        "location": str(directory),
        "revision": "none",
        "licence": "Apache-2.0",
        "parameters": 140_000,
        "nominal_gb": {"fp16": 2.8e-4, "int8": 1.4e-4, "int4": 0.7e-4},
    }


def change(file: Path, changes: dict[str, object]) -> None:
    """Replace top-level fields of a YAML file."""
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load(file) | changes
    with file.open("w", encoding="utf-8") as target:
        yaml.dump(content, target)


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
    started = re.findall(r"^(?:run \d+ of \d+|report(?!  paper))  (\S+)", done.stdout, re.MULTILINE)
    assert started == ["synthesis"]
    report = tmp_path / "outputs" / "embedded" / "report.html"
    assert "nobody else says 42" in report.read_text(encoding="utf-8")
