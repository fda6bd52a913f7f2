"""`advise` from the command to the page: the published figures, and a study's tables."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from edge_eval_lib.paths import project_root


def advise(outputs, *arguments):
    command = [sys.executable, "-m", "edge_eval_lib", "advise", *arguments]
    environment = os.environ | {"EDGE_EVAL_OUTPUTS": str(outputs)}
    return subprocess.run(
        command, env=environment, cwd=project_root(), capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize("study", ["published", "embedded"])
def test_a_choice_is_made_and_its_page_written(study, tmp_path):
    folder = tmp_path / ("paper" if study == "published" else study)
    if study == "embedded":  # a finished study, as far as a choice reads it
        from edge_eval_lib.economics import published

        rows = published.observations()
        rows = rows[rows["task"] == "rag"].assign(family="smollm2", size="135M").head(4)
        (folder / "tables").mkdir(parents=True)
        rows.to_csv(folder / "tables" / "variants.csv", index=False)
    done = advise(tmp_path, study, "--requests-per-day", "30000", "--ttft-ms", "1000")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("For 30,000 rag requests a day")
    page = (folder / "planner.html").read_text(encoding="utf-8")
    for words in (
        "What would change it?",
        "Every option, ranked",
        '<figure class="picture">',
        "For 30,000 rag requests",
    ):
        assert words in page
    assert page.count('<template class="chart">') == 1
    assert not re.search(r"<script[^>]* src=|application/vnd.jupyter", page)
    assert len(page.encode()) <= 3e6
    advice = pd.read_csv(folder / "tables" / "advice.csv")
    assert advice["p_best"].sum() <= 1 + 1e-9
    for name in ("requirements", "prediction_errors", "advice_inputs"):
        assert len(pd.read_csv(folder / "tables" / f"{name}.csv")) > 10
    shutil.rmtree(folder)


def test_what_cannot_be_is_one_sentence(tmp_path):
    done = advise(tmp_path, "published", "--ttft-ms", "0.1")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "less than any option can do" in done.stderr
