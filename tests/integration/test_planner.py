"""The planner on the published figures and on a study's tables: notebook 07, words, refusals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from cells import run_cells
from test_advise import row

from edge_eval_lib.__main__ import app
from edge_eval_lib.economics.advise import choice as advise_choice
from edge_eval_lib.errors import UserError
from edge_eval_lib.results import advice, chosen, decision
from edge_eval_lib.results.readable import write_table
from edge_eval_lib.runs import own_machine, planner


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def study(outputs):
    """The embedded study's outputs, as far as a choice reads them."""
    of_model = {"family": "smollm2", "size": "135M"}
    table = pd.DataFrame([row(**of_model), row(**of_model, precision="fp16", power_w=90.0)])
    write_table(table, outputs / "embedded" / "tables" / "variants.csv")
    return outputs / "embedded"


@pytest.fixture(scope="module")
def published_choice():
    return planner.begin("published", need={"ttft_ms": 1000})


# --- the published figures --------------------------------------------------------------------


def test_every_published_variant_of_a_task_is_an_option(published_choice):
    counts = published_choice.options["deployment"].value_counts()
    assert counts["on premises"] == 24
    assert counts["API"] == 1
    assert published_choice.machine == "2x Tesla T4"
    assert published_choice.task == "rag"


def test_rows_that_nearly_the_peak_bandwidth_would_take_are_doubtful(published_choice):
    doubted = published_choice.options[published_choice.options["doubtful"].astype(bool)]
    assert set(zip(doubted["size"], doubted["precision"], strict=True)) == {("8B", "fp16")}
    assert "of the cards' peak" in doubted["validity"].iloc[0]
    assert "†" in advice.for_people(published_choice.choice.table, most=100)


def test_a_day_of_the_chosen_machine_is_simulated(published_choice):
    day = own_machine.day(published_choice).set_index("arrivals")
    row = published_choice.options.loc[own_machine.best_of(published_choice).name]
    most = row["throughput_tok_s"] / published_choice.inputs.value("output_tokens")
    assert 0.6 * most < day["highest_rate_req_s"]["random"] < 1.2 * most
    rates = day["highest_rate_req_s"]
    assert rates["bursty"] < rates["random"] < rates["steady"]
    assert (day["cards"] == 1).all()
    assert (day["share_in_time"] >= 0.9).all()


def test_between_requests_a_warm_machine_is_set_beside_loading_again(published_choice):
    both = own_machine.between_requests(published_choice)
    ways = both[both["at"] == "on premises"].set_index("way")
    row = published_choice.options.loc[own_machine.best_of(published_choice).name]
    c_tax = row["load_energy_j"] / row["energy_per_request_j"]
    assert ways["standby_tax"]["scale to zero"] == pytest.approx(c_tax, rel=1e-3)
    assert ways["cold_share"].is_monotonic_decreasing
    # Paid for anyway, a load costs its electricity, as a request does; serverless, its seconds.
    assert ways["standby_tax_usd"].to_numpy() == pytest.approx(ways["standby_tax"].to_numpy())
    rented = both[both["at"] == "serverless"].set_index("way")
    request_s = row["output_tokens_per_request"] / row["throughput_tok_s"]
    assert rented["standby_tax_usd"]["scale to zero"] == pytest.approx(row["load_s"] / request_s)


def test_without_an_idle_power_nothing_is_said_of_waiting(study):
    question = planner.begin("embedded", deployments=["on premises"])
    assert own_machine.between_requests(question).empty
    assert len(own_machine.day(question)) == 3
    asked_api = planner.begin("embedded", deployments=["API"])
    assert own_machine.day(asked_api).empty
    assert own_machine.between_requests(asked_api).empty


def test_the_answer_holds_what_a_decision_needs(published_choice):
    choice = published_choice.choice
    text = " ".join(decision.answer(choice, "2x Tesla T4", advise_choice.flips(choice)))
    for part in ("For 30,000 rag requests a day", "first token within 1,000 ms", "take **llama-1B",
                 "% of what the inputs may be", "It pays after", "g CO2e a request",
                 "when the API falls below", "Most able to flip it"):  # fmt: skip
        assert part in text


def test_neighbours_that_noise_hides_share_a_rank_and_are_named(published_choice):
    table = published_choice.choice.table
    assert table["tied"].any()
    text = " ".join(decision.answer(published_choice.choice, "2x Tesla T4"))
    assert "The measuring errors do not tell it from" in text


def test_the_shares_of_being_best_add_up(published_choice):
    choice = published_choice.choice
    assert choice.table["p_best"].sum() + choice.p_none == pytest.approx(1)
    assert choice.p_best_of("deployment").sum() + choice.p_none == pytest.approx(1)


def test_an_slo_below_reading_the_weights_once_is_refused():
    with pytest.raises(UserError, match="even reading the weights once takes"):
        planner.begin("published", need={"tpot_ms": 0.5})


def test_where_none_fits_the_answer_says_what_would():
    asked = planner.begin("published", need={"ttft_ms": 6}, deployments=["on premises"])
    text = " ".join(decision.answer(asked.choice, asked.machine))
    assert "**none** of the 24 options fits" in text
    assert "would fit if the first token may take" in text


def test_listed_apis_below_the_flip_change_the_choice(published_choice):
    choice = published_choice.choice
    at = advise_choice.flip(choice, "api_price_factor")
    price = 1e3 * advise_choice.api_usd_per_request(choice, at.below)
    listed = advice.against_listed(choice, published_choice.book)
    for less in ("all input cached", "in a batch overnight"):
        known = listed.dropna(subset=[less])
        assert len(known) > 5
        assert (known[less] < known["USD per 1,000 requests"]).all()
    stands = listed["USD per 1,000 requests"] > price
    assert list(listed["the choice"] == "stands") == list(stands)


def test_sliders_ask_again_quickly(published_choice):
    fewer = published_choice.asking(requests_per_day=100, ttft_ms=2000)
    assert fewer.inputs.need.ttft_ms == 2000
    assert fewer.chosen["deployment"] == "API"
    scores = published_choice.options["score"]
    better = published_choice.asking(score=0.99 * scores.max())
    assert better.chosen["deployment"] == "API" or better.chosen["score"] >= 0.99 * scores.max()
    assert better.inputs.value("score_floor_share") == 1


def test_sliders_answer_what_they_are_moved_to(published_choice, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    planner.sliders(published_choice)
    *controls, answer = shown[0].children
    assert "on premises</strong>" in answer.value.partition("</p>")[0]
    next(c for c in controls if c.description == "requests a day").value = 10
    assert "take <strong>the API</strong>" in answer.value.partition("</p>")[0]


def test_on_other_hardware_speed_is_predicted_and_said_to_be():
    asked = planner.begin("published", hardware="t4", deployments=["on premises"])
    measured = planner.begin("published", deployments=["on premises"]).options
    left_out = asked.options.attrs["left_out"]
    assert any(name.startswith("llama-8B") and "fp16" in name for name in left_out)
    both = asked.options.merge(measured, on=["family", "size", "method", "precision"])
    assert len(both) == len(asked.options) > 10
    assert (both["tpot_ms_x"] > both["tpot_ms_y"]).all()  # half the bandwidth
    assert "predicted" in decision.answer(asked.choice, asked.machine)[0]
    assert asked.inputs.value("hardware_usd") == 3000


# --- notebook 07 ------------------------------------------------------------------------------


def test_the_notebook_writes_tables_and_pictures(study, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_RUN", "planner/planner")
    parameters = """
study, task, deployments, region, prices, hardware = "embedded", None, None, None, None, None
inputs, need = {"requests_per_day": 5000}, {"ttft_ms": 500}
"""
    left = run_cells("07_planner.ipynb", parameters)
    written = {file.name for file in (study / "tables").iterdir()}
    assert {"advice.csv", "requirements.csv", "prediction_errors.csv"} < written
    assert {f"advice_{name}.csv" for name in ("savings", "years", "carbon")} < written
    assert len(list((study / "figures").glob("advice_*.svg"))) == 6
    table = pd.read_csv(study / "tables" / "advice.csv")
    assert table["rank"][0] == 1
    assert np.isfinite(table["usd_per_request"]).all()
    assert left["answer"][0].startswith("For 5,000 rag requests a day")
    page = str(chosen.shown(study))
    assert "For 5,000 rag requests a day" in page
    assert "`planner.html`" in page
    now = pd.read_csv(study / "tables" / "variants.csv")
    assert "have changed since" not in chosen.shown(study, now)
    assert "have changed since" in chosen.shown(study, now.assign(tpot_ms=now["tpot_ms"] * 2))


@pytest.mark.parametrize("asked", [{"ttft_ms": 15}, {"machines": 0.5}])
def test_the_notebook_answers_none_where_nothing_fits(study, monkeypatch, asked):
    monkeypatch.setenv("EDGE_EVAL_RUN", "planner/planner")
    parameters = f"""
study, task, region, prices, hardware = "embedded", None, None, None, None
inputs, need, deployments = {{}}, {asked!r}, ["on premises"]
"""
    left = run_cells("07_planner.ipynb", parameters)
    assert "**none** of the" in left["answer"][0]
    assert not pd.read_csv(study / "tables" / "advice.csv")["fits"].any()


def test_a_report_says_how_to_choose_where_nobody_did(tmp_path):
    assert "make advise" in chosen.shown(tmp_path)


# --- the command ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["published", "--requests-per-day", "-5"], "requests-per-day must be above 0, not -5"),
        (["published", "--input", "pue"], "input is 'pue', but it must be NAME=VALUE"),
        (["published", "--input", "api-price=1"], "There is no input 'api_price'; did you mean"),
        (["published", "--input", "api-price-factor=-1"], "must be at least 0, not -1"),
        (["published", "--ttft-ms", "0"], "ttft_ms must be above 0"),
        (["published", "--ttft-ms", "0.1"], "less than any option can do"),
        (["published", "--task", "chess"], "No variant of the task 'chess' was served"),
        (["published", "--deployment", "moon"], "There is no deployment 'moon'"),
        (["published", "--arrivals", "odd"], "arrivals is 'odd', but it must be one of: steady"),
        (["published", "--objective", "fun"], "objective is 'fun'"),
        (["published", "--hardware", "t5"], "has no hardware 't5'"),
        (["published", "--prices", "gold"], "There is no set of prices 'gold'"),
        (["embedded"], "embedded has no table of variants yet: `make all STUDY=embedded` first"),
    ],
)
def test_what_cannot_be_is_refused_before_a_notebook_starts(arguments, words, outputs):
    with pytest.raises(UserError, match=words):
        app(["advise", *arguments], standalone_mode=False)
    assert not list(outputs.rglob("*.ipynb"))
