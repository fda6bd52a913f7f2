"""What a better answer costs: which options stand in the planner's fronts, drawn and charted."""

from types import SimpleNamespace

import pandas as pd
import pytest

from edge_eval_lib.results import advice_front

COLUMNS = ["size", "precision", "deployment", "usd_per_request", "ttft_ms", "score", "fits"]
OPTIONS = [  # ranked
    ("8B", "fp16", "on premises", 9e-5, 90.0, 0.8, False),
    ("1B", "int4", "cloud", 1e-4, 50.0, 0.5, True),
    ("1B", "int4", "on premises", 2e-4, 50.0, 0.5, True),
    ("8B", "int8", "cloud", 3e-4, 80.0, 0.7, True),
    ("8B", "fp16", "cloud", 3e-4, 90.0, 0.8, True),
]


@pytest.fixture
def choice():
    table = pd.DataFrame(OPTIONS, columns=COLUMNS)
    table = table.assign(family="llama", task="rag", method="lora", validity="ok", p_best=0.25)
    table = table.assign(concurrency=8, tpot_ms=20.0, energy_per_request_j=5.0)
    for name in ("usd_per_request", "ttft_ms", "energy_per_request_j"):
        table = table.assign(**{f"{name}_least": table[name] / 2, f"{name}_most": 2 * table[name]})
    api = {"deployment": "API", "task": "rag", "usd_per_request": 1e-5, "fits": True}
    table = pd.concat([table, pd.DataFrame([api])], ignore_index=True)
    return SimpleNamespace(table=table, best=1)


def test_each_variant_that_fits_stands_once_in_a_panel_and_nothing_beats_the_front(choice):
    rows = advice_front.rows_of(choice)
    assert rows["fits"].all()
    assert list(rows["panel"].unique()) == list(advice_front.PANELS.values())
    usd, energy, wait = (part for _, part in rows.groupby("panel", sort=False))
    assert usd["deployment"].tolist() == ["cloud"] * 3
    assert usd["value"].tolist() == pytest.approx([0.1, 0.3, 0.3])
    assert usd["front"].tolist() == [True, False, True]  # INT8 takes as much as FP16
    assert wait["front"].tolist() == [True, True, True]
    assert energy["front"].tolist() == [False, False, True]
    said = advice_front.words(rows)
    assert said.startswith("Score over USD per 1,000 requests: llama-1B 0.50 at 0.1, llama-8B 0.80")


def test_where_none_fits_all_are_shown_and_that_is_said(choice):
    choice.best = None
    choice.table["fits"] = False
    rows = advice_front.rows_of(choice)
    assert rows.loc[rows["size"] == "8B", "deployment"].tolist()[:2] == ["on premises", "cloud"]
    said = advice_front.chart(rows, "a machine").to_dict()["title"]["subtitle"][-1]
    assert said.startswith("None fits")


def test_picture_and_chart_hold_the_same_marks_with_their_ranges(choice, tmp_path):
    rows = advice_front.rows_of(choice)
    drawn = advice_front.draw(rows, tmp_path / "front", "a machine")
    panels = list(advice_front.PANELS.values())
    assert [axis.get_title("left") for axis in drawn.figure.axes] == panels
    assert all(axis.get_xscale() == "log" for axis in drawn.figure.axes)
    assert (tmp_path / "front.png").is_file()
    chart = advice_front.chart(rows, "a machine").to_dict()
    marks = chart["data"]["values"]
    assert [mark["panel"] for mark in marks[:3]] == panels
    assert marks[0]["variant"] == "llama-1B  rag  LoRA INT4"
    assert (marks[0]["value"], marks[0]["value_least"], marks[0]["value_most"]) == (0.1, 0.05, 0.2)
    told = {
        each["title"]: each["field"] for each in chart["spec"]["layer"][-1]["encoding"]["tooltip"]
    }
    assert marks[0][told["USD per 1000 requests"]] == "0.10 (0.050 to 0.20)"
    assert marks[0][told["deployment"]] == "cloud"
    assert "value" not in told
    assert [name for name, *_ in chart["usermeta"]["series"]] == [
        "LoRA FP16", "LoRA INT8", "LoRA INT4",
    ]  # fmt: skip


def test_without_a_variant_nothing_is_drawn(choice, tmp_path):
    choice.table = choice.table[choice.table["deployment"] == "API"]
    rows = advice_front.rows_of(choice)
    assert rows.empty
    assert advice_front.chart(rows, "a machine") is None
    assert advice_front.words(rows) == "Nothing to draw."
    assert "Nothing to draw" in advice_front.draw(rows, tmp_path / "front", "").svg
