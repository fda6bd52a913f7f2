"""Signals over a pair of arms: areas, verdicts by currency, routers, checks, what is shown."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from edge_eval_lib.results import (
    confidence,
    escalation,
    escalation_chart,
    escalation_shown,
    hybrid,
)
from edge_eval_lib.results.escalation import Signal

PROMPTS = 120
COSTS = {"energy_j": (2.0, 1.0), "usd": (1.0, 10.0), "list_usd": (0.1, 10.0), "latency_s": (1, 1)}


def pair_of(local, cloud, costs=COSTS, missing=None):
    prompts = pd.DataFrame({"local_correct": local, "cloud_correct": cloud})
    for currency, (here, there) in costs.items():
        prompts[f"local_{currency}"], prompts[f"cloud_{currency}"] = float(here), float(there)
    arms = ("m", "1B", "one", "lora", "int4"), ("m", "1B", "two", "lora", "fp16")
    return hybrid.Pair(*arms, prompts, missing or {})


@pytest.fixture
def pair():
    rng = np.random.default_rng(4)
    local, cloud = (rng.random((2, PROMPTS)) < [[0.5], [0.95]]).astype(float)
    return pair_of(local, cloud)


def signal_of(values, **options):
    values = np.asarray(values, dtype=float)
    return Signal(values, np.clip(values, 0, 1), **options)


@pytest.fixture
def signals(pair):
    oracle = escalation.oracle(pair)
    return {
        "perfect": signal_of(oracle.values),
        "perfect but dear": signal_of(oracle.values, used={"usd": np.full(PROMPTS, 9.0)}),
        "useless": signal_of(np.random.default_rng(1).random(PROMPTS)),
        "opposite": signal_of(-oracle.values),
    }


def test_the_oracle_bounds_every_signal(pair, signals):
    areas = escalation.signal_areas(pair, signals).set_index("signal")
    assert areas.loc[
        "oracle", ["area", "area_by_machine_price", "area_by_list_price"]
    ].tolist() == [1, 1, 1]
    assert areas.loc["perfect", "area"] == pytest.approx(1)
    assert areas.loc["opposite", "area"] == pytest.approx(-1)
    assert areas.loc["useless", "area_lo"] < 0 < areas.loc["useless", "area_hi"]
    # A cheap answer costs a tenth of the cloud's, or a hundredth; a dear signal loses by it.
    paid, listed = areas["area_by_machine_price"], areas["area_by_list_price"]
    assert 0 < paid["perfect"] < listed["perfect"] < 1
    assert paid["perfect but dear"] < 0
    # Where the cloud takes less there is no budget to divide.
    assert areas["area_by_energy"].isna().all()


def test_verdicts_are_by_currency_and_where_nothing_is_to_route_say_why(pair, signals):
    judged = escalation.verdicts(pair, signals, seed=3)
    why = judged.set_index("currency").loc["energy_j"]
    assert why["signal"] == "none"
    assert "ask it always" in why["verdict"]
    usd = judged[judged["currency"] == "usd"].set_index("signal")["verdict"]
    assert usd["perfect"].startswith("Route by perfect: over ")
    for name in ("perfect but dear", "opposite"):
        assert usd[name].startswith(f"Do not route by {name}")
    assert set(escalation.told(judged)["currency"]) == {"usd", "list_usd"}
    areas = escalation.signal_areas(pair, signals)
    first, *_ = escalation.summary(pair, areas, judged)
    assert first.startswith("Routing is shown to save machine price by perfect")
    useless = judged[judged["signal"].isin(["none", "opposite"])]
    assert escalation.summary(pair, areas, useless)[0] == "Routing is shown to save nothing."


def test_a_cloud_that_is_no_better_leaves_every_curve_empty(signals):
    same = np.tile([0.0, 1.0], PROMPTS // 2)
    alike = pair_of(same, same)
    judged = escalation.verdicts(alike, signals)
    assert judged["verdict"].str.contains("The cloud is not better").all()
    assert escalation.told(judged).empty
    curves = escalation.curves(alike, signals)
    assert curves.empty
    assert "correct" in curves
    _, panels = plt.subplots(1, 2)
    escalation_shown.draw_quality(panels[0], alike, curves, signals)
    escalation_shown.draw_cost(panels[1], alike, curves, signals, "usd")
    assert all("not better" in axis.texts[0].get_text() for axis in panels)
    plt.close("all")
    areas = escalation.signal_areas(alike, signals)
    assert areas["area"].isna().all()
    said = escalation.summary(alike, areas, judged)
    assert said[0].startswith("The local system answered 50 %")
    assert len(said) == 1 + len(hybrid.CURRENCIES)


def test_the_chart_has_a_mark_for_each_threshold_and_both_sides_in_every_currency(pair, signals):
    asked = "Which?", "dotted: a random mix", "a machine"
    curves = escalation.curves(pair, signals)
    chart = escalation_chart.cost_chart(pair, curves, signals, *asked).to_dict()
    marks = pd.DataFrame(chart["data"]["values"])
    assert marks["panel"].nunique() == len(pair.currencies)
    useless = marks[(marks["series"] == "useless") & marks["panel"].str.startswith("energy")]
    curve = curves[curves["signal"] == "useless"]
    assert useless["value"].to_numpy() == pytest.approx(curve["energy_j"].to_numpy(), rel=1e-5)
    assert useless["correct"].to_numpy() == pytest.approx(curve["correct"].to_numpy(), rel=1e-5)
    assert useless.iloc[0][["sent", "below", "takes"]].tolist() == ["0 %", "–", "2.00 J"]
    assert useless.iloc[-1]["sent"] == "100 %"
    sides = marks[marks["series"].isin(["all answered here", "all sent to the cloud"])]
    assert len(sides) == 2 * len(pair.currencies)
    named = [name for name, *_ in chart["usermeta"]["series"]]
    assert set(named) == set(marks["series"].dropna())
    told = [each["title"] for each in chart["spec"]["layer"][-1]["encoding"]["tooltip"]]
    assert told[:2] == ["signal", "sent where below"]  # and not the signal once more


def test_where_the_cloud_is_no_better_there_is_no_chart(signals):
    same = np.tile([0.0, 1.0], PROMPTS // 2)
    curves = escalation.curves(pair_of(same, same), signals)
    assert escalation_chart.cost_chart(pair_of(same, same), curves, signals, "", "", "") is None


def test_what_a_signal_takes_is_never_taken_for_nothing(pair):
    unknown = signal_of(escalation.oracle(pair).values, used={"usd": math.nan})
    areas = escalation.signal_areas(pair, {"unknown": unknown}).set_index("signal")
    assert math.isnan(areas.loc["unknown", "area_by_machine_price"])
    judged = escalation.verdicts(pair, {"unknown": unknown}).set_index("currency")
    assert judged.loc["usd", "verdict"] == ("unknown: what it takes in machine price is not known.")
    assert judged.loc["list_usd", "verdict"].startswith("Route by unknown")


def test_a_currency_that_is_not_known_is_left_out(pair, signals):
    partly = pair_of(
        *(pair.prompts[c] for c in ("local_correct", "cloud_correct")),
        missing={"energy_j": "What the cloud takes in energy [J] is not known."},
    )
    assert partly.currencies == ["usd", "list_usd", "latency_s"]
    judged = escalation.verdicts(partly, signals)
    assert "is not known" in judged.set_index("currency").loc["energy_j", "verdict"]


def test_signals_that_are_not_known_of_every_prompt_are_named():
    known, gone = escalation.known({"a": signal_of([0.1, 0.2]), "b": signal_of([0.1, math.nan])})
    assert list(known) == ["a"]
    assert gone == ["The signal b is not known of 1 of 2 prompts."]


# --- a router before generation ----------------------------------------------------------------


def router():
    return make_pipeline(TfidfVectorizer(), LogisticRegression())


def test_a_router_foretells_what_the_question_tells():
    questions = [f"{'why' if i % 2 else 'when'} {i}" for i in range(80)]
    said = escalation.foretold(router(), questions, [i % 2 for i in range(80)], seed=0)
    assert (said[1::2] > 0.5).all()
    assert (said[::2] < 0.5).all()


def test_the_half_that_it_learnt_from_is_not_known_by_heart():
    """Questions of distinct words: each foretells itself alone."""
    rng = np.random.default_rng(0)
    questions, right = [f"word{i}" for i in range(200)], rng.integers(0, 2, 200)
    said = escalation.foretold(router(), questions, right, seed=0)
    assert abs(np.corrcoef(said, right)[0, 1]) < 0.3


def test_a_half_without_wrong_answers_teaches_nothing():
    assert np.isnan(escalation.foretold(router(), ["a", "b", "c", "d"], [1, 1, 1, 1], 0)).all()


# --- tables and pictures -----------------------------------------------------------------------


def test_calibration_is_judged_on_the_half_that_did_not_fit_it(pair):
    local = pair.prompts["local_correct"].to_numpy()
    sure = signal_of(np.where(local > 0, 0.99, 0.9))
    table = escalation.calibration(pair, {"too sure": sure}).set_index("signal")
    assert table.loc["too sure", "prompts"] == PROMPTS // 2
    assert table.loc["too sure", "ece_before"] > 0.3
    assert table.loc["too sure", "ece_after"] < 0.01


def test_checks_of_samples_are_a_row_each(pair):
    wrong = 1 - pair.prompts["local_correct"].to_numpy()
    checks = {
        share: confidence.validate(wrong, 1 - wrong, {"usd": np.full(PROMPTS, 10.0)}, share)
        for share in (0.25, 1.0)
    }
    table = escalation.checked_table(checks)
    assert table["checked"].tolist() == [30, 120]
    assert table["usd"].tolist() == [2.5, 10.0]
    assert table["error_rate"].iloc[1] == pytest.approx(wrong.mean())


def test_a_cascade_may_escalate_what_the_cheap_answer_leaves():
    assert escalation.most_escalated(1.0, 10.0) == pytest.approx(0.9)
    assert escalation.most_escalated([1, 2, 3], [2, 2, 2]).tolist() == [0.5, 0, 0]


def test_the_published_energies_stand_beside_those_of_here(pair):
    table = escalation.most_escalated_table(pair).set_index("where")
    here = table.loc["here"].set_index("in")["escalated_at_most"]
    assert here[hybrid.CURRENCIES["usd"]] == pytest.approx(0.9)
    assert here[hybrid.CURRENCIES["energy_j"]] == 0
    published = table.loc["T4, published, llama rag"]
    assert (published["local_system"], published["cloud_system"]) == ("1B INT4", "8B FP16")
    assert 0 < published["escalated_at_most"] < 1
    assert table["escalated_at_most"].between(0, 1).all()


def test_pictures_show_each_signal_and_both_ends(pair, signals):
    curves = escalation.curves(pair, signals)
    counts = escalation_shown.both_sides(pair)
    assert counts[["cloud right", "cloud wrong"]].to_numpy().sum() == PROMPTS
    _, panels = plt.subplots(2, 2)
    escalation_shown.draw_signal(panels[0, 0], pair, "perfect", signals["perfect"])
    escalation_shown.draw_reliability(panels[0, 1], pair, "perfect", signals["perfect"])
    escalation_shown.draw_quality(panels[1, 0], pair, curves, signals)
    escalation_shown.draw_cost(panels[1, 1], pair, curves, signals, "usd")
    drawn = [line.get_color() for line in panels[1, 0].lines[2:]]  # chance and the oracle first
    assert drawn == [colour for colour, _ in escalation_shown.legend(signals).values()]
    assert {text.get_text() for text in panels[1, 1].texts} == {"local", "cloud"}
    assert panels[1, 1].get_xlabel() == "machine price [USD per 1,000, log]"
    plt.close("all")


def test_what_pictures_show_is_said_with_its_values(pair, signals):
    said = escalation_shown.signals_words(pair, {"opposite": signals["opposite"]})
    assert "50 % by chance" in said
    areas = escalation.signal_areas(pair, signals)
    said = escalation_shown.quality_words(pair, areas)
    assert "perfect 1.00" in said
    assert f"to {100 * pair.prompts['cloud_correct'].mean():.0f} % with all sent" in said
    said = escalation_shown.cost_words(pair, areas)
    assert "machine price" in said
    assert "USD per 1,000" in said
    assert "energy" in said.split(";")[0]
    calibration = pd.DataFrame([{"signal": "margin", "ece_before": 0.306, "ece_after": 0.102}])
    words = escalation_shown.calibration_words(calibration)
    assert "margin 31 points as said, 10 calibrated" in words


def test_a_signal_that_orders_all_answers_sets_every_right_one_above(pair):
    right = pair.prompts["local_correct"].to_numpy()
    for values, share in ((right, 100), (-right, 0), (np.ones(len(right)), 50)):
        assert f"it {share} %" in escalation_shown.signals_words(pair, {"it": signal_of(values)})


def test_without_a_curve_one_panel_says_why_and_no_other():
    same = np.tile([0.0, 1.0], PROMPTS // 2)
    alike = pair_of(same, same)
    assert len(escalation_shown.panels_of(alike)) == 1
    areas = escalation.signal_areas(alike, {})
    assert "not better" in escalation_shown.cost_words(alike, areas)
    assert "not better" in escalation_shown.quality_words(alike, areas)


def test_tables_name_currencies_and_count_usd_by_the_thousand(pair, signals):
    table = escalation_shown.in_words(pd.DataFrame({"usd": [2e-6], "energy_j": [3.0]}))
    assert table["machine price [USD per 1,000]"].tolist() == pytest.approx([2e-3])
    assert table["energy [J]"].tolist() == [3.0]
    told = escalation.told(escalation.verdicts(pair, signals))
    shown = escalation_shown.judged_for_people(told)
    assert set(shown["currency"]) == {"machine price", "list price"}
    assert shown["correct [%]"].between(0, 100).all()
    most = escalation.most_escalated_table(pair)
    words = escalation_shown.in_words(most)
    usd = words["in"].str.contains("USD per 1,000")
    assert words.loc[usd, "local"].tolist() == pytest.approx(
        (1e3 * most.loc[usd, "local"]).tolist()
    )
    assert words.loc[~usd, "local"].equals(most.loc[~usd, "local"])


def test_what_a_signal_takes_is_said_by_currency():
    said = escalation_shown.taken({"energy_j": 3.72, "usd": 1.1e-5})
    assert said == "A question takes: energy 3.7 J, machine price 0.011 USD per 1,000."
