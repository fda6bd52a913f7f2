"""The choice: constructed tables of which the answer is known, and how it moves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.economics.advise import choice as advise_choice
from edge_eval_lib.economics.advise import evaluation
from edge_eval_lib.economics.advise import inputs as advise_inputs
from edge_eval_lib.economics.advise import options as advise_options
from edge_eval_lib.economics.advise.inputs import Need
from edge_eval_lib.economics.carbon import load_carbon_book
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.errors import UserError
from edge_eval_lib.results import decision


def row(size="1B", precision="int4", **figures):
    return {
        "family": "llama", "size": size, "task": "rag", "method": "lora", "precision": precision,
        "concurrency": 8, "throughput_tok_s": 400.0, "ttft_ms": 100.0, "tpot_ms": 19.3,
        "power_w": 60.0, "output_tokens_per_request": 100.0, "input_tokens_per_request": 500.0,
        "score": 0.8, "score_lo": 0.79, "score_hi": 0.81, "adapt_energy_j": 1e5, "adapt_s": 1e3,
        "compress_energy_j": 1e3, "energy_source": "rapl", "validity": "ok", "host": "a host",
        **{f"{name}{end}": np.nan for name in advise_options.TIMED for end in ("_lo", "_hi")},
    } | figures  # fmt: skip


def exact(table):
    """Figures without an error of their own."""
    for name in [*advise_options.TIMED, "score"]:
        table[f"{name}_lo"] = table[f"{name}_hi"] = table[name]
    return table


@pytest.fixture(scope="module")
def book():
    return load_price_book()


def options_of(*rows, deployments=advise_options.DEPLOYMENTS):
    return advise_options.of_study(exact(pd.DataFrame(rows)), deployments=deployments)


def inputs_of(options, book, need=None, **asked):
    known = advise_inputs.of_place(book, load_carbon_book(), None, "t4", 1)
    return advise_inputs.gather(
        options, book, book.prices("desktop"), need or Need(), asked, known=known
    )


def choice_of(options, book, need=None, draws=256, **asked):
    return advise_choice.choose(options, inputs_of(options, book, need, **asked), draws)


LIGHT, HEAVY = row(power_w=40.0), row("8B", power_w=90.0, throughput_tok_s=200.0, tpot_ms=38.6)


def nominal(options, book, need=None, **asked):
    inputs = inputs_of(options, book, need, **asked)
    return evaluation.evaluate(evaluation.prepared(options, inputs), inputs.nominal(), inputs.need)


# --- what is best -----------------------------------------------------------------------------


def test_an_option_that_dominates_is_best_whatever_the_inputs_are(book):
    options = options_of(LIGHT, HEAVY, deployments=["on premises"])
    choice = choice_of(options, book)
    assert choice.chosen["name"] == "llama-1B_rag_lora_int4"
    assert choice.chosen["p_best"] == 1
    assert choice.chosen["regret_pct"] == 0
    assert choice.p_none == 0
    assert (advise_choice.influence(choice, 64) == 0).all()


def test_options_that_measure_the_same_share_the_first_rank(book):
    table = pd.DataFrame([row(), row("2B"), HEAVY]).drop(columns=["score_lo", "score_hi"])
    table = table.assign(score_lo=0.79, score_hi=0.81)
    options = advise_options.of_study(table, deployments=["on premises"])
    ranks = choice_of(options, book).table.set_index("size")
    assert list(ranks.loc[["1B", "2B"], "rank"]) == [1, 1]
    assert ranks.loc["8B", "rank"] == 3
    assert ranks["tied"].sum() == 1


def test_a_score_below_the_floor_does_not_fit(book):
    poor = row(power_w=10.0, score=0.5)
    choice = choice_of(options_of(poor, HEAVY, deployments=["on premises"]), book)
    assert choice.chosen["size"] == "8B"
    assert choice.table.set_index("size").loc["1B", "binding"] == "score"


@pytest.mark.parametrize("objective", ["cost", "energy", "carbon", "latency"])
def test_the_best_has_least_of_what_is_asked(objective, book):
    options = options_of(LIGHT, HEAVY, row("3B", tpot_ms=10.0, throughput_tok_s=750.0))
    inputs = inputs_of(options, book, Need(objective=objective))
    choice = advise_choice.choose(options, inputs, 64)
    column = advise_inputs.OBJECTIVES[objective]
    fitting = choice.table[choice.table["fits"]]
    assert choice.chosen[column] == fitting[column].min()


# --- how figures move -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ttft_ms", "latency_s", "machines", "utilisation"])
def test_more_load_never_lowers(name, book):
    options = options_of(LIGHT, HEAVY, deployments=["on premises"])
    inputs = inputs_of(options, book)
    x = inputs.nominal() | {"requests_per_day": np.geomspace(1, 2e5, 80)}
    # one machine: what it cannot hold takes for ever
    figures = evaluation.evaluate(
        evaluation.prepared(options, inputs), x, Need(utilisation=1.0)
    ).figures
    one_machine = figures["machines"] == 1
    for values, of_one in zip(figures[name], one_machine, strict=True):
        rising = values if name == "machines" else values[of_one]
        assert len(rising) > 10
        assert (np.diff(rising) >= -1e-12).all()


def test_retrieval_is_an_item_of_its_own_whoever_answers(book):
    options = options_of(LIGHT)
    plain = choice_of(options, book)
    asked = {"retrieval_usd_per_request": 0.0002, "index_usd_per_month": 50}
    with_retrieval = choice_of(options, book, **asked)
    more = 0.0002 + 50 / (plain.inputs.value("requests_per_day") * 365 / 12)
    rise = (with_retrieval.table["usd_per_request"] - plain.table["usd_per_request"]).to_numpy()
    assert rise == pytest.approx(more, rel=1e-9)
    assert with_retrieval.table["retrieval_usd_per_month"].iloc[0] == pytest.approx(
        more * plain.inputs.value("requests_per_day") * 365 / 12
    )


def test_a_dearer_api_never_lowers_the_benefit(book):
    options = options_of(LIGHT)
    inputs = inputs_of(options, book)
    x = inputs.nominal() | {"api_price_factor": np.geomspace(0.01, 100, 50)}
    cost = evaluation.evaluate(evaluation.prepared(options, inputs), x, inputs.need)
    usd = cost.figures["usd_per_request"]
    assert (np.diff(usd[-1] - usd[0]) >= 0).all()
    assert np.ptp(usd[0]) == 0


def test_the_figures_of_one_request_follow_from_what_was_measured(book):
    evaluated = nominal(
        options_of(LIGHT, deployments=["on premises"]), book, requests_per_day=1, setup_hours=0,
        people_hours_per_month=0, hardware_factor=0, pue=1, idle_power_share=0, peak_to_mean=1,
    )  # fmt: skip
    figures = {name: values[0, 0] for name, values in evaluated.figures.items()}
    # Nobody waits; a prompt alone takes a step, which is more than an eighth of eight prompts.
    assert figures["ttft_ms"] == pytest.approx(19.3, rel=1e-3)
    assert figures["latency_s"] == pytest.approx(19.3 * 100 / 1e3, rel=1e-3)
    # At work for that time, at the power that was measured; a full machine does 400 tokens/s where
    # its steps and prompts make it 8 x 100 / (8 x 19.3 + 99 x 19.3 ms).
    energy_j = 40 * 1.93 * (800 / (107 * 0.0193)) / 400
    assert figures["energy_per_request_j"] == pytest.approx(energy_j, rel=1e-3)
    once = (1e5 + 1e3) / 3.6e6 * 0.12 / (3 * 365)
    assert figures["usd_per_request"] == pytest.approx(energy_j / 3.6e6 * 0.12 + once, rel=1e-3)


def test_at_full_use_a_request_takes_the_energy_that_was_measured(book):
    evaluated = nominal(
        options_of(row(concurrency=32, throughput_tok_s=1600.0), deployments=["on premises"]), book,
        Need(utilisation=1.0), requests_per_day=16 * 86400 * 0.99, peak_to_mean=1, pue=1,
    )  # fmt: skip
    assert evaluated.figures["machines"][0, 0] == 1
    assert evaluated.figures["energy_per_request_j"][0, 0] == pytest.approx(60 / 16, rel=0.02)


def test_machines_are_as_many_as_the_slo_needs(book):
    options = options_of(row(concurrency=1, throughput_tok_s=50.0), deployments=["on premises"])
    few = nominal(options, book, requests_per_day=40000).figures["machines"][0, 0]
    many = nominal(options, book, Need(ttft_ms=150), requests_per_day=40000)
    assert few < many.figures["machines"][0, 0]
    assert many.figures["ttft_ms"][0, 0] <= 150.5


def test_few_requests_meet_a_machine_that_is_faster_than_a_full_one(book):
    several = [row(concurrency=1, tpot_ms=12.0, ttft_ms=30.0, throughput_tok_s=80.0), row()]
    table = exact(pd.DataFrame([row()]))
    options = advise_options.of_study(
        table, exact(pd.DataFrame(several)), deployments=["on premises"]
    )
    at_8 = options.set_index("concurrency").loc[8]
    # A step takes 12 ms with one and 19.3 with eight, a prompt 30 and 100.
    assert at_8["alone_tpot_ms"] == pytest.approx(12 - (19.3 - 12) / 7)
    assert at_8["alone_ttft_ms"] == pytest.approx(30)
    few = nominal(options, book, requests_per_day=1, output_tokens=100, peak_to_mean=1).figures
    full = nominal(
        options, book, Need(machines=1), requests_per_day=3.4 * 86400, output_tokens=100,
        peak_to_mean=1,
    ).figures  # fmt: skip
    assert few["tpot_ms"][1, 0] == pytest.approx(12, rel=1e-3)
    assert few["ttft_ms"][1, 0] == pytest.approx(30, rel=0.01)
    assert full["tpot_ms"][1, 0] > 15


ARRIVALS = ["steady", "random", "bursty"]


def of_arrivals(book, figure, **need):
    """An option's figure at loads from light to heavy, a row a pattern."""
    options = options_of(LIGHT, deployments=["on premises"])
    inputs = inputs_of(options, book)
    x = inputs.nominal() | {"requests_per_day": np.geomspace(100, 2e5, 60)}
    ready, rows = evaluation.prepared(options, inputs), []
    for pattern in ARRIVALS:
        found = evaluation.evaluate(ready, x, Need(arrivals=pattern, **need))
        rows.append((found.figures[figure][0], found.fits[0], found.figures["machines"][0]))
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("figure", ["ttft_ms", "tpot_ms", "latency_s"])
def test_burstier_requests_never_lower_a_latency(figure, book):
    values, _, machines = of_arrivals(book, figure, utilisation=0.95)
    assert (machines == machines[0]).all()
    assert (np.diff(values, axis=0) >= -1e-9).all()
    assert (values[2] > values[1]).all()
    assert (values[1] >= values[0]).all()


def test_burstier_requests_never_need_fewer_cards(book):
    cards, fits, _ = of_arrivals(book, "machines", ttft_ms=1000)
    assert fits.all()
    assert (np.diff(cards, axis=0) >= 0).all()
    assert cards[2, -1] > cards[1, -1] > 1


def test_how_requests_come_is_part_of_the_question(book):
    options = options_of(LIGHT)
    need = Need(arrivals="bursty", ttft_ms=1000)
    words = decision.question(choice_of(options, book, need), "a machine")
    assert "100 out, coming in bursts, first token within 1,000 ms" in words


# --- what flips it ----------------------------------------------------------------------------


def test_the_api_price_that_flips_is_the_cost_of_the_best_other(book):
    options = options_of(LIGHT, HEAVY)
    choice = choice_of(options, book)
    at = advise_choice.flip(choice, "api_price_factor")
    price = advise_choice.api_usd_per_request(choice, at.below)
    assert price == pytest.approx(choice.chosen["usd_per_request"], rel=0.01)
    assert choice.table.sort_index()["deployment"][at.below_best] == "API"
    assert at.above is None


def test_where_the_api_is_best_it_flips_above(book):
    options = options_of(LIGHT)
    choice = choice_of(options, book, requests_per_day=10)
    assert choice.chosen["deployment"] == "API"
    at = advise_choice.flip(choice, "api_price_factor")
    assert at.below is None
    price = advise_choice.api_usd_per_request(choice, at.above)
    own = choice.table[choice.table["deployment"] != "API"]["usd_per_request"].min()
    assert price == pytest.approx(own, rel=0.01)


def test_the_input_that_alone_decides_has_the_largest_index(book):
    options = options_of(LIGHT, deployments=["on premises", "API"])
    fixed = {
        "setup_hours": 8,
        "requests_per_day": "30000:30000:30000",
        "people_hours_per_month": "2:2:2",
    }
    choice = choice_of(options, book, api_price_factor="0.001:1:1.1", **fixed)
    assert advise_choice.influence(choice, 256).index[0] == "api_price_factor"


def test_it_pays_after_what_was_spent_over_what_each_request_saves(book):
    choice = choice_of(options_of(LIGHT), book)
    figures = choice.nominal.figures
    saved = advise_choice.api_usd_per_request(choice) - figures["running_usd_per_request"][0, 0]
    expected = figures["fixed_usd"][0, 0] / saved
    assert advise_choice.pays_after_requests(choice, 0) == pytest.approx(expected)
    dear = choice_of(options_of(LIGHT), book, requests_per_day=1)
    assert advise_choice.pays_after_requests(dear, 0) == np.inf


# --- none -------------------------------------------------------------------------------------


def test_none_fits_and_what_would(book):
    options = options_of(LIGHT, HEAVY, deployments=["on premises"])
    choice = choice_of(options, book, Need(ttft_ms=15))
    assert choice.best is None
    assert choice.chosen is None
    assert choice.p_none == 1
    needed = advise_choice.remedies(choice)
    assert list(needed["constraint"]) == ["first token"]
    would = needed["would_fit_at"][0]
    assert 19.3 < would < 100
    assert choice_of(options, book, Need(ttft_ms=1.001 * would)).best is not None


def test_several_needs_are_all_named_where_none_is_broken_alone(book):
    options = options_of(LIGHT, deployments=["on premises"])
    need = Need(ttft_ms=15, budget_usd_per_month=1)
    needed = advise_choice.remedies(choice_of(options, book, need))
    assert set(needed["constraint"]) == {"first token", "budget"}


# --- what cannot be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("need", "words"),
    [
        ({"utilisation": 1.2}, "utilisation must be above 0 and at most 1"),
        ({"ttft_ms": 0}, "ttft_ms must be above 0"),
        ({"budget_usd_per_month": -5}, "budget_usd_per_month must be above 0"),
        ({"score": 1.5}, "score must lie between 0 and 1"),
        ({"machines": 0}, "machines must be above 0"),
        ({"arrivals": "odd"}, "arrivals is 'odd', but it must be one of: steady, random, bursty"),
        ({"objective": "fun"}, "objective is 'fun', but it must be one of: cost, energy"),
    ],
)
def test_a_need_that_nothing_can_hold_is_refused(need, words):
    with pytest.raises(UserError, match=words):
        Need(**need)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"api_price_factor": -1}, "api-price-factor must be at least 0, not -1"),
        ({"requests_per_day": "many"}, "requests-per-day is 'many', but it must be a number"),
        ({"requests_per_day": 0}, "requests-per-day must be above 0"),
        ({"pue": 0.9}, "pue must be at least 1, not 0.9"),
        ({"requests_per_day": "5:3:9"}, "least:value:most must not fall"),
        ({"request_per_day": 5}, "did you mean 'requests_per_day'"),
        ({"idle_power_share": 1.5}, "must be at most 1"),
    ],
)
def test_an_input_that_cannot_be_is_refused(asked, words, book):
    with pytest.raises(UserError, match=words):
        inputs_of(options_of(LIGHT), book, **asked)


def test_an_slo_that_no_measured_option_comes_near_is_refused(book):
    with pytest.raises(UserError, match="ttft_ms of 1 ms is less than"):
        choice_of(options_of(LIGHT), book, Need(ttft_ms=1))


def test_a_task_or_deployment_that_there_is_not_is_refused():
    table = pd.DataFrame([LIGHT])
    with pytest.raises(UserError, match="No variant of the task 'chess'"):
        advise_options.of_study(table, task="chess")
    with pytest.raises(UserError, match="There is no deployment 'moon'"):
        advise_options.of_study(table, deployments=["moon"])


def test_a_region_s_electricity_and_the_cards_are_looked_up(book):
    known = advise_inputs.of_place(book, load_carbon_book(), "FRA", "t4", 2)
    assert known["intensity_g_per_kwh"].value == 56
    assert known["embodied_cards_kg"].value == 120
    assert known["cloud_usd_per_hour"].least == 2 * book.cloud_usd_per_hour("t4")[0]
    nowhere = advise_inputs.of_place(book, load_carbon_book(), None, None, 1)
    assert "cloud_usd_per_hour" not in nowhere
    with pytest.raises(UserError, match="no region 'FRANCE'"):
        advise_inputs.of_place(book, load_carbon_book(), "FRANCE", "t4", 1)


# --- options ----------------------------------------------------------------------------------


def test_every_concurrency_is_an_option_and_a_gap_leaves_a_row_out():
    serving = pd.DataFrame([row(concurrency=1), row(concurrency=8), row("8B", ttft_ms=np.nan)])
    variants = pd.DataFrame([row(), row("8B")])
    options = advise_options.of_study(variants, serving, deployments=["on premises"])
    assert list(options["concurrency"]) == [1, 8]
    assert options.attrs["left_out"] == {"llama-8B_rag_lora_int4": "no ttft_ms"}


def test_the_error_of_one_measurement_is_that_of_rows_that_should_be_alike():
    pair = [row(), row() | {"method": "qlora", "tpot_ms": 19.3 * np.exp(0.1)}]
    errors = advise_options.error_of_timed(pd.DataFrame(pair))
    assert errors["tpot_ms"] == pytest.approx(0.1 / np.sqrt(2))
    assert errors["ttft_ms"] == 0
    assert set(advise_options.error_of_timed(pd.DataFrame([row()])).values()) == {0.05}


def test_a_value_is_the_median_of_its_range(book):
    inputs = inputs_of(options_of(LIGHT), book, requests_per_day="10:1000:2000")
    drawn = inputs.at(np.array([[0.0, 0.5, 1.0]]), ["requests_per_day"])["requests_per_day"]
    assert drawn == pytest.approx([10, 1000, 2000])


# --- serverless -------------------------------------------------------------------------------


def test_a_serverless_machine_costs_no_more_than_one_that_is_always_there(book):
    options = options_of(row(load_s=10.0), deployments=["cloud", "serverless"])
    inputs = inputs_of(options, book)
    x = inputs.nominal() | {"requests_per_day": np.geomspace(1, 1e6, 40)}
    figures = evaluation.evaluate(evaluation.prepared(options, inputs), x, inputs.need).figures
    always, to_zero = figures["usd_per_month"]
    assert (to_zero <= always * (1 + 1e-12)).all()
    assert to_zero[0] < always[0] / 2
    assert to_zero[-1] == pytest.approx(always[-1], rel=1e-3)
    one_machine = figures["machines"][1] == 1
    assert (np.diff(figures["cold_share"][1][one_machine]) <= 0).all()
    assert (figures["cold_share"][0] == 0).all()


def test_cold_starts_count_in_the_first_token_where_they_are_not_rare(book):
    options = options_of(row(load_s=10.0), deployments=["serverless"])
    rare = nominal(options, book, requests_per_day=86400, keep_warm_s=60).figures
    common = nominal(options, book, requests_per_day=100, keep_warm_s=60).figures
    assert rare["ttft_ms"][0, 0] < 150
    assert common["ttft_ms"][0, 0] == pytest.approx(19.3 + 10_000, rel=1e-3)
