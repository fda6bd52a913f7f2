"""Bars: who runs a notebook by hand sees one; a study's runs have none and lose no time."""

from __future__ import annotations

import time

import nbformat
import pytest
from nbclient import NotebookClient

from edge_eval_lib import bars

LOOP = """
import sys, time
from edge_eval_lib import bars
with bars.counted("steps", 20_000) as count:
    for _ in range(20_000):
        count(1)
    time.sleep(1.2)
    count(0)
print("tqdm" in sys.modules)
"""


@pytest.fixture(scope="module")
def outputs_of():
    """The outputs of a notebook that counts to 20,000, in a kernel with or without a run's name."""

    def execute(by_hand: bool) -> list:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EDGE_EVAL_RUN", "serve/x")
            if by_hand:
                patch.delenv("EDGE_EVAL_RUN")
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LOOP)])
            NotebookClient(notebook, timeout=120).execute()
        return notebook.cells[0].outputs

    return execute


def test_a_run_of_a_study_has_no_bar_nor_imports_one(outputs_of):
    (said,) = outputs_of(by_hand=False)
    assert said["text"] == "False\n"


def test_by_hand_there_is_one_bar_however_long_the_loop(outputs_of):
    shown, *said = outputs_of(by_hand=True)
    assert "application/vnd.jupyter.widget-view+json" in shown["data"]
    assert [output["text"] for output in said if output["output_type"] == "stream"] == ["True\n"]
    assert len(said) <= 2


def test_outside_a_notebook_nothing_is_shown(capsys: pytest.CaptureFixture[str]):
    assert not bars.shown()
    with bars.counted("steps", 3) as count:
        count(3)
    assert capsys.readouterr() == ("", "")


def test_a_step_of_a_bar_takes_nothing_that_a_window_would_notice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A training step takes tenths of a second; of ten thousand counts the mean is looked at."""
    monkeypatch.setattr(bars, "shown", lambda: True)
    with bars.counted("steps", 10_000) as count:
        began = time.process_time()
        for _ in range(10_000):
            count(1)
        took_s = (time.process_time() - began) / 10_000
    assert took_s < 1e-4
    assert capsys.readouterr().err.count("\r") < 10
