"""The commands, called as a person does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_eval_lib.study import project_root


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_eval_lib", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=project_root())


def test_help_names_every_step():
    done = call("--help")
    assert done.returncode == 0
    for command in ("all", "plan", "status", "report", "paper", "run", "clean"):
        assert f"\n  {command}  " in done.stdout


@pytest.mark.parametrize("study", ["embedded", "paper_t4"])
def test_every_study_can_be_planned(study: str):
    done = call("plan", study)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{study}: ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("plan", "embeded"), 1, "did you mean 'embedded'?"),
        (("run", "embedded", "serve", "nothing"), 1, "has no serve run 'nothing'"),
        (("all", "--repetitions", "0"), 2, "--repetitions"),
        (("planet",), 2, "No such command 'planet'"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(arguments: tuple, code: int, message: str):
    done = call(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_planning_imports_neither_torch_nor_a_notebook_library():
    code = """
import sys
from edge_eval_lib import grid, plan
plan.describe(grid.open_study("embedded"))
print([m for m in ("torch", "transformers", "papermill", "snakemake") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
