"""The exercises on the published table: their answers, and what they say of wrong ones."""

import numpy as np
import pandas as pd
import pytest

from edge_eval_lib import paper
from edge_eval_lib.economics.advise import choice as advise
from edge_eval_lib.errors import UserError
from edge_eval_lib.runs import planner
from edge_eval_lib.workshop import deciding, misleading


@pytest.fixture(scope="module")
def study():
    return paper.build()


@pytest.fixture(scope="module")
def variant(study):
    prices = ["api_usd_per_request", "local_usd_per_request"]
    table = study.variants.assign(**paper.table(study, "break_even")[prices])
    return table[table["precision"] == "int4"].iloc[0]


@pytest.fixture(scope="module")
def claims(study):
    claims = paper.table(study, "claims").set_index("claim_id")
    named = ["density_17x", "fidelity_97", "fidelity_rag_summ", "cold_start_100_large"]
    return claims.loc[named].assign(letter=list("abcd"))


@pytest.fixture(scope="module")
def question():
    return planner.begin("published", "rag", {"requests_per_day": 30000}, {"ttft_ms": 1000})


@pytest.fixture(scope="module")
def own(question):
    return question.choice.table.loc[question.choice.best]


@pytest.fixture(scope="module")
def exercises(variant, claims, question, own):
    options = question.choice.table
    best = options[options["deployment"] == "on premises"].sort_values("score").iloc[-1]
    flips = pd.DataFrame({"input": deciding.ASKED_OF, "total_order": [0.1, 0.5, 0.0, 0.2]})
    return {
        "ipw": misleading.ipw(variant),
        "statistic": misleading.statistic(pd.Series([1.0, 2.0, 6.0]), 6.0),
        "pays_back": misleading.pays_back(variant, 512.0),
        "net_energy": misleading.net_energy(variant, 28.0),
        "requests_in_flight": misleading.requests_in_flight(variant),
        "cold_start_of_one": misleading.cold_start_of_one(variant),
        "does_not_follow": misleading.does_not_follow(claims),
        "on_the_front": deciding.on_the_front(pd.Series([True, True, False, False, False])),
        "largest_part": deciding.largest_part(own),
        "energy_in_service": deciding.energy_in_service(own, 2.36, 30000),
        "dearer_by": deciding.dearer_by(own, best, 8.6),
        "pays_from": deciding.pays_from(question.choice, 2.46),
        "api_must_cost": deciding.api_must_cost(question.choice),
        "most_able": deciding.most_able(flips),
        "most_able, nothing": deciding.most_able(flips.assign(total_order=0.0)),
    }


def test_three_wrong_answers_get_three_messages(exercises, capsys):
    for name, exercise in exercises.items():
        assert exercise.check(exercise.answer), name
        capsys.readouterr()
        said = set()
        for mistake in exercise.mistakes:
            assert not exercise.check(mistake.answer), name
            said.add(capsys.readouterr().out)
        assert len(said) == len(exercise.mistakes) >= 3, name
        assert not any("Hint" in text for text in said), name
        assert not exercise.check(...)
        assert "Hint: " in capsys.readouterr().out


def test_answers_are_those_of_the_table(variant, claims):
    assert misleading.ipw(variant).answer == pytest.approx(variant["ipw"])
    assert misleading.requests_in_flight(variant).answer == pytest.approx(35.16, abs=0.01)
    assert misleading.cold_start_of_one(variant).answer < variant["c_tax"] / 30
    assert misleading.pays_back(variant, 0.0).answer == 0
    assert misleading.net_energy(variant, 0.0).answer == variant["energy_per_request_j"]
    assert misleading.does_not_follow(claims).answer == "c"


def test_the_load_and_the_price_that_are_asked_for_flip_the_choice(question, exercises):
    for name, asked in (("requests_per_day", "pays_from"), ("api_price_factor", "api_must_cost")):
        at = exercises[asked].answer
        best = advise.best_at(question.choice, name, np.array([0.98 * at, 1.02 * at]))
        deployed = question.choice.options["deployment"].to_numpy()[best]
        assert deployed.tolist() == ["API", "on premises"]


def test_where_nothing_flips_the_choice_it_is_said():
    asked = planner.begin("published", "rag", need={"ttft_ms": 200}, deployments=["on premises"])
    for ask in (lambda: deciding.pays_from(asked.choice, 2.46),
                lambda: deciding.api_must_cost(asked.choice)):  # fmt: skip
        with pytest.raises(UserError, match="the best; ask of a"):
            ask()


def test_a_machine_that_waits_takes_more_for_a_request(question, own):
    more = question.asking(requests_per_day=300_000)
    few = deciding.energy_in_service(own, 2.36, 30_000).answer
    many = deciding.energy_in_service(more.table.loc[more.best], 2.36, 300_000).answer
    assert 2.36 < many < few / 5


def test_the_map_agrees_with_the_planner(question):
    loads, scores = [500.0, 30_000.0], [0.74, 0.78, 0.99]
    chosen = deciding.chosen_at(question.choice, np.array(loads), np.array(scores))
    for load in loads:
        for score in scores:
            need = {"ttft_ms": 1000, "score": score}
            best = planner.begin("published", "rag", {"requests_per_day": load}, need).asking().best
            assert chosen.loc[score, load] == best
