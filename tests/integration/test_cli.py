"""The commands, called as a person does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_eval_lib.paths import project_root


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_eval_lib", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=project_root())


def test_help_names_every_step():
    done = call("--help")
    assert done.returncode == 0
    for command in ("all", "plan", "status", "report", "paper", "run", "clean"):
        assert f"\n  {command}  " in done.stdout
    assert "..." not in done.stdout.split("Commands:")[1]  # each whole, in 80 columns


@pytest.mark.parametrize("study", ["embedded", "paper_t4"])
def test_every_study_can_be_planned(call_here, study: str):
    done = call_here("plan", study)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{study}: ")


def test_clean_says_what_it_deleted(call_here, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    made = tmp_path / "embedded"
    assert call_here("clean").stdout == f"There is nothing to delete: no {made}.\n"
    (made / "runs").mkdir(parents=True)
    assert call_here("clean").stdout == f"Deleted: {made}\n"
    assert not made.exists()


MISTAKES = [
    (("plan", "embeded"), 1, "did you mean 'embedded'?"),
    (("run", "embedded", "serve", "nothing"), 1, "has no serve run 'nothing'"),
    (("all", "--repetitions", "0"), 1, "repetitions is '0', but it must be a whole number"),
    (("plan", "--repetitions=-1"), 1, "repetitions is '-1', but it must be a whole number"),
    (("plan", "--repetitions", "abc"), 1, "from 1 to 1000"),
    (("plan", "--repetitions", "1" * 5000), 1, "from 1 to 1000"),
    (("plan", "paper_t4", "--repetitions", "1000"), 1, "a study may have 50,000"),
    (("planet",), 2, "No such command 'planet'"),
    (("plan", "embedded", "more"), 2, "unexpected extra argument"),
    (("plan", "--fast"), 2, "No such option"),
    (("plan", "x" * 300), 1, "cannot be found: File name too long"),
    (("plan", "~nobody-here/x.yaml"), 1, "cannot be found"),
    (("plan", "a\nb.yaml"), 1, "can be no file"),
    (("plan", "-x.yaml"), 2, "No such option"),
    (("plan", "--", "-x.yaml"), 1, "There is no study file"),
    (("plan", "params"), 1, "There is no study 'params'"),
    (("plan", "params/hardware.yaml"), 1, "is not a study"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES)
def test_a_mistake_is_answered_without_a_traceback(
    call_here, arguments: tuple, code: int, message: str
):
    assert_a_sentence(call_here(*arguments), code, message)


@pytest.mark.parametrize(("arguments", "code", "message"), [MISTAKES[1], MISTAKES[7]])
def test_so_it_is_in_a_process_of_its_own(arguments: tuple, code: int, message: str):
    assert_a_sentence(call(*arguments), code, message)


def assert_a_sentence(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert len(done.stderr) < 400


def test_planning_and_judging_import_neither_torch_nor_a_notebook_library():
    code = """
import sys
from edge_eval_lib.paper import claims, published
from edge_eval_lib.runs import plan
from edge_eval_lib.runs.claims import open_study
published.load()
plan.describe(open_study("embedded"))
print([m for m in ("torch", "transformers", "papermill", "snakemake") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
