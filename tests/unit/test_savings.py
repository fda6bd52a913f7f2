"""Whether a claimed saving of energy is shown, on constructed runs and the published ones."""

from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.results import savings
from edge_eval_lib.results.columns import VARIANT

ARM = ("smollm2", "135M", "agent", "lora")


def results(energies: dict[tuple[str, bool], list[float]]) -> SimpleNamespace:
    """Runs' J a request by precision and whether prefixes were cached."""
    rows = pd.DataFrame(
        dict(zip(VARIANT, (*ARM, precision), strict=True))
        | {"repetition": n, "concurrency": 8, "prefix_caching": cached, "energy_per_request_j": j}
        for (precision, cached), values in energies.items()
        for n, j in enumerate(values, start=1)
    )
    study = SimpleNamespace(name="made")
    return SimpleNamespace(study=study, observations=rows, headline=rows[~rows["prefix_caching"]])


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ((-20.0, -25.0, -15.0), "saves, less than 40 %"),
        ((-38.0, -45.0, -30.0), "saves; 40 % is possible"),
        ((-60.0, -65.0, -55.0), "saves 40 % or more"),
        ((-5.0, -15.0, 5.0), "no saving shown"),
        ((20.0, 15.0, 25.0), "costs more"),
        ((-70.0, np.nan, np.nan), "no conclusion: one pair"),
        ((-70.0, -np.inf, np.inf), "no conclusion: one pair"),
    ],
)
def test_the_interval_decides_and_not_the_value(bounds, said):
    assert savings.verdict(*bounds, 40) == said


def test_runs_are_paired_and_caching_is_compared_with_the_same_variant():
    drift = np.array([1.0, 1.5, 0.8, 1.1, 1.0])  # the machine's, the same of a repetition's runs
    own = results(
        {
            ("fp16", False): list(10 * drift),
            ("int4", False): list(8 * drift),
            ("int4", True): list(4 * drift),
            ("depth20-fp16", False): [7.0],
        }
    )
    table = savings.savings([own], 40).query("shown_by == 'made'").set_index("technique")
    assert table.loc["int4", savings.CHANGE] == pytest.approx(-20)
    assert table.loc["int4", "verdict"] == "saves, less than 40 %"
    assert table.loc[savings.CACHING, savings.CHANGE] == pytest.approx(-50)
    assert table.loc[savings.CACHING, "precision"] == "int4"
    assert table.loc["depth20-fp16", "pairs"] == 1
    assert table.loc["depth20-fp16", "verdict"].startswith("no conclusion")


def test_the_published_figures_answer_by_task_over_six_models():
    table = savings.savings([], 40)
    assert set(table["shown_by"]) == {savings.PUBLISHED_T4}
    assert table.groupby("technique")["task"].nunique().to_dict() == {"int4": 3, "int8": 3}
    assert (table["pairs"] == 6).all()
    int4 = table[table["technique"] == "int4"]
    assert (int4[f"{savings.CHANGE}_hi"] < -40).all()
    assert set(int4["verdict"]) == {"saves 40 % or more"}


def test_a_study_that_was_not_run_or_run_by_other_settings_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    outdated = tmp_path / "agents" / "runs" / "serve" / "old.ipynb"
    outdated.parent.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(), outdated)
    assert savings.finished(["embedded", "agents"]) == []
