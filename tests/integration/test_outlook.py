"""What the best option saves, costs over years and emits, and how its tokens came."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_advise import LIGHT, choice_of, exact, options_of, row

from edge_eval_lib.economics.advise import options as advise_options
from edge_eval_lib.economics.advise.inputs import Need
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.results import outlook
from edge_eval_lib.runs import own_machine, planner


@pytest.fixture(scope="module")
def book():
    return load_price_book()


@pytest.fixture(scope="module")
def several(book):
    """A variant at one and at eight requests at once, and the same in FP16."""
    serving = [
        row(concurrency=1, tpot_ms=12.0, ttft_ms=30.0, throughput_tok_s=80.0, power_w=30.0),
        row(),
        row(precision="fp16", throughput_tok_s=250.0, tpot_ms=30.0),
    ]
    variants = pd.DataFrame([row(), row(precision="fp16")])
    options = advise_options.of_study(exact(variants), exact(pd.DataFrame(serving)))
    return choice_of(options, book)


# --- token by token ---------------------------------------------------------------------------


def requests(**late):
    """Ten answers of eleven tokens, a token every 0.1 s, the first after 0.5."""
    start = np.arange(10.0)
    times = [s + 0.5 + 0.1 * np.arange(11) for s in start]
    for number, seconds in late.items():
        times[int(number[1:])][5:] += seconds
    return pd.DataFrame({"concurrency": 8, "submitted_s": start, "token_times_s": times})


def test_even_answers_have_no_jitter_and_miss_nothing():
    table = outlook.token_traces(requests(), 1.0, 0.2)
    found = table.iloc[0]
    assert found["ttft_ms"] == pytest.approx(500)
    assert found["tpot_ms"] == pytest.approx(100)
    assert found["jitter_ms"] == pytest.approx(0, abs=1e-9)
    assert (found["in_time_pct"], found["missed_pct"], found["experience"]) == (100, 0, 1)
    # Ten requests cannot bound their 95th percentile from above.
    assert found["ttft_p95_ms_hi"] == np.inf


def test_a_pause_within_an_answer_shows_where_means_hide_it():
    even, paused = (
        outlook.token_traces(r, 1.0, 0.2).iloc[0] for r in (requests(), requests(_3=1.0, _4=3.0))
    )
    assert paused["worst_interval_ms"] == pytest.approx(3100)
    assert paused["missed_pct"] > 0
    assert paused["experience"] < 1
    assert paused["ttft_ms"] == even["ttft_ms"]
    tighter = outlook.token_traces(requests(), 0.4, 0.05).iloc[0]
    assert tighter["in_time_pct"] == 0
    assert tighter["missed_pct"] > 50


def test_raw_times_are_read_of_every_repetition(tmp_path):
    folder = tmp_path / "runs" / "serve"
    folder.mkdir(parents=True)
    failed = requests().assign(token_times_s=[[]] * 10)
    for name, table in {"a_r01": requests(), "a_r02": failed, "ab_r01": requests()}.items():
        table.to_parquet(folder / f"{name}.requests.parquet")
    assert len(outlook.read_requests(tmp_path, "a")) == 10
    assert outlook.token_traces(outlook.read_requests(tmp_path, "b")).empty


# --- savings ----------------------------------------------------------------------------------


def test_use_batches_and_quantised_weights_each_save(several):
    own = several.table[several.table["deployment"] == "on premises"]
    index = int(own.index[own["concurrency"].eq(8) & own["precision"].eq("int4")][0])
    table = outlook.savings(several, index).set_index("change")
    assert list(table.index) == ["utilisation", "batching", "quantisation"]
    assert (table["saving_pct"] > 0).all()
    used = several.table["utilisation"][index]
    assert table["saving_pct"]["utilisation"] == pytest.approx(100 * (1 - used / 0.9))
    # The same hour and power, 400 tokens/s instead of 250; only watts differ else.
    assert table["saving_pct"]["quantisation"] == pytest.approx(100 * (1 - 250 / 400))
    after = table["usd_per_mtok_after"]
    assert after.to_numpy() == pytest.approx([after.iloc[0]] * 3)


def test_a_saving_that_was_not_measured_is_missing(book):
    choice = choice_of(options_of(LIGHT), book)
    assert outlook.savings(choice, 0)["change"].tolist() == ["utilisation"]


# --- years ------------------------------------------------------------------------------------


def test_years_cost_more_and_ranges_hold_the_value(book):
    choice = choice_of(options_of(LIGHT), book)
    table = outlook.over_years(choice)
    for _, rows in table.groupby("option"):
        assert rows["tco_usd"].is_monotonic_increasing
        assert (rows["tco_usd_lo"] <= rows["tco_usd"]).all()
        assert (rows["tco_usd"] <= rows["tco_usd_hi"]).all()
    first = table.iloc[0]
    best = choice.table.iloc[0]
    per_year = 365 * 30000 * best["running_usd_per_request"]
    assert best["fixed_usd"] < first["tco_usd"] < best["fixed_usd"] + per_year
    api = table[table["option"] == "the API"]
    assert api["pays_after_months"].isna().all()
    pays = table["pays_after_months"].iloc[0]
    choice_says = choice.table.iloc[0]["fixed_usd"] / (
        30000 * 365 / 12
        * (choice.table.set_index("deployment")["running_usd_per_request"]["API"]
           - best["running_usd_per_request"])
    )  # fmt: skip
    assert pays == pytest.approx(choice_says)
    assert "1 year [USD]" in outlook.years_for_people(table)


# --- carbon -----------------------------------------------------------------------------------


def test_the_consumer_s_carbon_is_the_choice_s(book):
    choice = choice_of(options_of(LIGHT), book)
    table = outlook.carbon_of(choice, 0).set_index("per")
    assert table["total_g"]["request"] == pytest.approx(choice.table["carbon_g_per_request"][0])
    per_token = table["total_g"]["request"] / choice.inputs.value("output_tokens")
    assert table["total_g"]["million output tokens"] == pytest.approx(1e6 * per_token)
    assert table["total_g"]["year"] == pytest.approx(table["total_g"]["request"] * 30000 * 365)
    assert (table["total_g"] == table["operational_g"] + table["embodied_g"]).all()
    assert list(table["boundary"]) == ["consumer: serving"] * 3 + ["provider: adaptation"]


def test_the_provider_s_carbon_is_the_adaptation_s(book):
    choice = choice_of(options_of(LIGHT), book)
    table = outlook.carbon_of(choice, 0, 2e17, 65e12, 70.0).set_index(["boundary", "per"])
    measured = table.loc[("provider: adaptation", "adaptation")]
    by_flop = table.loc[("provider: adaptation", "1e15 FLOP of training")]
    assert by_flop["total_g"] == pytest.approx(measured["total_g"] / 200)
    kwh = (1e5 + 1e3) / 3.6e6 * choice.inputs.value("pue")
    grid = choice.inputs.value("intensity_g_per_kwh")
    assert measured["operational_g"] == pytest.approx(kwh * grid)
    estimated = table.loc[("provider: estimated beforehand", "adaptation")]
    hours = 2e17 / (65e12 * 0.3) / 3600
    expected = hours * 0.07 * choice.inputs.value("pue") * grid
    assert estimated["operational_g"] == pytest.approx(expected)
    without = outlook.carbon_of(choice, 0)
    assert len(without) == len(table) - 2


# --- of the best own option -------------------------------------------------------------------


def test_the_published_best_is_carried_to_speed_and_carbon():
    question = planner.begin("published", need={"ttft_ms": 1000})
    speeds = own_machine.against_speed(question)
    assert speeds["usd_per_million_tokens"].is_monotonic_decreasing
    assert speeds["tok_s_per_request"].is_monotonic_decreasing
    emitted = own_machine.carbon_of(question).set_index("boundary")
    assert len(emitted.loc["provider: adaptation"]) == 2
    # An assumed share of the peak is right within a factor of a few.
    ratio = (
        emitted["total_g"]["provider: estimated beforehand"]
        / emitted["total_g"]["provider: adaptation"].iloc[0]
    )
    assert 0.3 < ratio < 5
    assert own_machine.token_traces(question).empty


def test_without_a_machine_of_one_s_own_there_is_nothing_to_show():
    question = planner.begin("published", deployments=["API"])
    for table in (own_machine.token_traces, own_machine.carbon_of, own_machine.against_speed):
        assert table(question).empty
    assert outlook.for_people(pd.DataFrame(), "Nothing.") == "Nothing."
    assert Need().arrivals == "random"
