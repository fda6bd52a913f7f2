"""Agents from their study to their page, on a tiny model: every call is in every figure."""

from __future__ import annotations

import pandas as pd
import pytest
from hand import complaints, executed
from tiny import make_all, make_tiny_study

from edge_eval_lib.study import load_study

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The study of agents on a tiny model, executed, and its notebook by hand."""
    directory = tmp_path_factory.mktemp("agents")
    asked = load_study("agents")
    path = make_tiny_study(
        directory,
        name="agents",
        tasks=tuple(asked.tasks),
        configurations=(("lora", "fp16"),),
        unadapted_base=False,
        notebook=asked.notebook,
        correct_from=asked.correct_from,
        workload={"prefix_caching": True, "output_tokens": 6, "uncut_tokens": None},
    )
    done = make_all(path, directory / "outputs")
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        page = executed("13_agents.ipynb", directory / "outputs", patch, study=str(path))
    assert complaints(page) == ""
    return directory / "outputs" / "agents"


def table(outputs, name):
    return pd.read_csv(outputs / "tables" / f"{name}.csv")


def test_every_call_of_an_agent_is_in_what_its_answer_took(outputs):
    requests = pd.read_parquet(next(outputs.glob("runs/serve/*_agent_*.requests.parquet")))
    headline = requests[requests["window"] == "serve at 4"]
    counted = headline.groupby("prompt_id").agg(
        calls=("call", "size"), tokens=("input_tokens", "sum"), last=("call", "max")
    )
    assert (counted["calls"] == counted["last"]).all()
    assert (counted["calls"] > 1).all()  # two an attempt
    row = table(outputs, "variants").set_index("task").loc["agent"]
    assert row["calls_per_request"] == pytest.approx(counted["calls"].mean())
    assert row["input_tokens_per_request"] == pytest.approx(counted["tokens"].mean())
    assert row["energy_per_request_j"] > 0
    solved = table(outputs, "agents_solved").set_index(["task", "prefix_caching"])
    assert solved.loc[("agent", False), "task_energy_j"] == pytest.approx(
        row["energy_per_request_j"]
    )


def test_reuse_of_prefixes_gives_the_same_tokens_for_fewer(outputs):
    reuse = table(outputs, "agents_reuse").set_index("task")
    assert reuse.loc["agent", "same_tokens"] == 1
    assert reuse.loc["agent", "hit_rate"] > 0.5
    serving = table(outputs, "prefix_caching").set_index("task")
    assert serving.loc["agent", "prefix_cache_hit_rate"] == reuse.loc["agent", "hit_rate"]


def test_steps_take_more_than_one_call_and_the_page_says_so(outputs):
    inflation = table(outputs, "agents_inflation")
    assert (inflation["input_tokens_times"] > 2).all()
    page = (outputs / "experiment.html").read_text(encoding="utf-8")
    assert "What follows" in page
    assert "LoRA FP16: in steps" in page
    report = (outputs / "report.html").read_text(encoding="utf-8")
    assert 'href="experiment.html"' in report
