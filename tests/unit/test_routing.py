"""Routing on constructed cases: oracle, random and anti-signals, costs inside, verdicts."""

import math

import numpy as np
import pytest

from edge_eval_lib.results import routing
from edge_eval_lib.results.routing import Cost

PROMPTS = 100


@pytest.fixture
def rng():
    return np.random.default_rng(12)


@pytest.fixture
def answers(rng):
    """Local answers half right, the cloud's nine of ten, each by its own chance."""
    return (rng.random(PROMPTS) < 0.5).astype(float), (rng.random(PROMPTS) < 0.9).astype(float)


def constant(local, cloud, signal=0.0, before=False, prompts=PROMPTS):
    return Cost(*(np.full(prompts, value) for value in (local, cloud, signal)), before)


def oracle(local, cloud):
    return local - cloud  # lowest where only the cloud is right


# --- the curve and its area --------------------------------------------------------------------


def test_the_curve_goes_from_all_local_to_all_cloud(answers, rng):
    local, cloud = answers
    cost = constant(1.0, 10.0, 0.25)
    curve = routing.routing_curve(local, cloud, rng.random(PROMPTS), {"energy_j": cost})
    first, last = curve.iloc[0], curve.iloc[-1]
    assert (first["escalated"], first["correct"]) == (0, local.mean())
    assert (last["escalated"], last["correct"]) == (1, cloud.mean())
    assert first["energy_j"] == 1.25
    assert last["energy_j"] == 11.25  # the cheap answers were made, and are paid for
    assert len(curve) == PROMPTS + 1
    assert curve["escalated"].is_monotonic_increasing


def test_a_router_that_decides_before_pays_for_no_cheap_answer(answers, rng):
    cost = {"usd": constant(1.0, 10.0, 0.25, before=True)}
    curve = routing.routing_curve(*answers, rng.random(PROMPTS), cost)
    assert curve["usd"].iloc[[0, -1]].tolist() == [1.25, 10.25]


def test_a_perfect_signal_is_the_oracle(answers):
    assert routing.signal_area(*answers, oracle(*answers)) == pytest.approx(1)
    free = constant(1.0, 10.0, before=True)
    assert routing.budget_area(*answers, oracle(*answers), free) == pytest.approx(1)


def test_an_anti_signal_lies_below_random_routing(answers):
    assert routing.signal_area(*answers, -oracle(*answers)) == pytest.approx(-1)
    free = constant(1.0, 10.0, before=True)
    assert routing.budget_area(*answers, -oracle(*answers), free) < -0.9


def test_a_random_signal_is_the_diagonal_within_its_interval(answers, rng):
    held = 0
    for trial in range(24):
        _, low, high = routing.signal_area_interval(*answers, rng.random(PROMPTS), seed=trial)
        assert -1 < low < high < 1
        held += low <= 0 <= high
    assert held >= 19  # 23 expected; fewer by chance once in a thousand


def test_a_signal_of_one_value_tells_nothing(answers):
    assert routing.signal_area(*answers, np.ones(PROMPTS)) == pytest.approx(0)
    curve = routing.routing_curve(*answers, np.ones(PROMPTS), {})
    assert curve["escalated"].tolist() == [0, 1]


def test_the_area_is_that_under_the_curve(answers, rng):
    """Summed from the curve itself, ties and all."""
    local, cloud = answers
    signal = np.round(local + rng.normal(size=PROMPTS), 1)

    def area(of):
        curve = routing.routing_curve(local, cloud, of, {})
        return np.trapezoid(curve["correct"], curve["escalated"])

    random = (local.mean() + cloud.mean()) / 2
    expected = (area(signal) - random) / (area(oracle(local, cloud)) - random)
    assert routing.signal_area(local, cloud, signal) == pytest.approx(expected)


def test_areas_of_resamples_are_those_of_each(answers, rng):
    signal = rng.random(PROMPTS)
    drawn = rng.integers(0, PROMPTS, (3, PROMPTS))
    together = routing.signal_area(*(x[drawn] for x in (*answers, signal)))
    alone = [routing.signal_area(*(x[d] for x in (*answers, signal))) for d in drawn]
    assert together == pytest.approx(alone)


def test_the_cheap_answer_and_the_signal_are_inside(answers):
    signal = oracle(*answers)
    areas = [
        routing.budget_area(*answers, signal, constant(local, 10.0, own, before))
        for local, own, before in (
            (1.0, 0.0, True),
            (1.0, 0.0, False),
            (1.0, 1.0, False),
            (4.0, 0.0, False),
            (4.0, 4.0, False),
        )
    ]
    assert areas[0] == pytest.approx(1)
    assert areas[0] > areas[1] > areas[2]
    assert areas[1] > areas[3] > areas[4]
    assert areas[4] < 0  # a perfect signal that costs as much as it saves


@pytest.mark.parametrize(
    ("local", "cloud", "price", "why"),
    [
        ([1, 1, 0, 1], [1, 0, 0, 1], 9.0, "The cloud is not better: it answered 50% of 4 prompts"),
        ([1, 0, 0, 1], [1, 1, 0, 1], 0.5, "ask it always"),
        ([1, 0, 0, 1], [1, 1, 0, 1], 9.0, ""),
    ],
)
def test_without_a_better_and_dearer_cloud_there_is_no_curve(local, cloud, price, why):
    cost = constant(1.0, price, prompts=4)
    reason = routing.why_no_curve(local, cloud, cost)
    assert why in reason
    assert bool(why) == bool(reason)
    if why:
        with pytest.raises(ValueError, match="nothing to route"):
            routing.judge(local, cloud, [1, 2, 3, 4], cost, 2.5)


def test_where_both_are_alike_there_is_no_area():
    same = np.array([1.0, 0.0, 1.0])
    assert math.isnan(routing.signal_area(same, same, [1, 2, 3]))
    assert all(map(math.isnan, routing.signal_area_interval(same, same, [1, 2, 3])))
    assert math.isnan(routing.budget_area(same, same, [1, 2, 3], constant(1.0, 9.0, prompts=3)))


@pytest.mark.parametrize("wrong", [[0.5, 2.0], [0.5, math.nan], [0.5, -1.0]])
def test_what_is_no_share_is_refused(wrong):
    with pytest.raises(ValueError, match="local_correct"):
        routing.routing_curve(wrong, [1, 1], [1, 2], {})


# --- judging a threshold -----------------------------------------------------------------------


def test_halves_part_the_prompts_the_same_way_each_time():
    chosen = routing.halves(121, seed=3)
    assert chosen.sum() == 60
    assert (chosen == routing.halves(121, seed=3)).all()
    assert (chosen != routing.halves(121, seed=4)).any()


def test_a_perfect_signal_chosen_on_one_half_saves_on_the_other(answers):
    cost = constant(1.0, 10.0)
    half, signal = routing.halves(PROMPTS, 0), oracle(*answers)
    there = [x[half] for x in (*answers, signal)]
    threshold = routing.choose_threshold(*there, cost.of(half))
    here = [x[~half] for x in (*answers, signal)]
    judged = routing.judge(*here, cost.of(~half), threshold)
    assert judged.pays
    assert judged.correct >= judged.cloud_correct
    gained = np.mean(here[1] > here[0])
    assert judged.escalated == pytest.approx(gained)
    # Better than the cloud: compared with the cloud's own cost.
    assert judged.cost_change[0] == pytest.approx((1 + 10 * gained - 10) / 10)
    assert judged.cost_change[1] <= judged.cost_change[0] <= judged.cost_change[2]
    assert routing.verdict(judged, "the oracle", "energy").startswith(
        "Route by the oracle: over 50 questions it took 42 % less"
    )


def test_equal_quality_is_bought_at_random(rng):
    local = np.repeat([0.0, 1.0], 50)
    cloud = np.ones(100)
    signal = np.where(np.arange(100) < 25, 0.0, 1.0)  # finds half of the wrong answers
    judged = routing.judge(local, cloud, signal, constant(1.0, 10.0, prompts=100), 0.5)
    assert judged.correct == 0.75
    # At random 0.75 takes half of the prompts to the cloud, without a cheap answer: 5.5.
    assert judged.cost_change[0] == pytest.approx((1 + 2.5 - 5.5) / 10)


def test_of_a_useless_signal_the_verdict_is_not_to_route(answers, rng):
    cost, signal = constant(1.0, 10.0), rng.random(PROMPTS)
    judged = routing.judge(*answers, signal, cost, 0.5)
    assert not judged.pays
    assert routing.verdict(judged, "chance", "energy").startswith("Do not route by chance")


def test_a_weak_signal_says_how_many_prompts_would_be_needed():
    local, cloud = np.repeat([0.0, 1.0], 20), np.ones(40)
    signal = np.where(np.isin(np.arange(40), [*range(12), *range(20, 28)]), 0.0, 1.0)
    judged, more = (
        routing.judge(*np.tile([local, cloud, signal], n), constant(1, 10, prompts=40 * n), 0.5)
        for n in (1, 5)
    )
    # 12 of 20 wrong answers found, and 8 right ones sent too: 0.8 right for 6 instead of 6.4.
    assert judged.cost_change[0] == pytest.approx((6 - 6.4) / 10)
    assert not judged.pays
    assert judged.prompts_needed > 40
    said = routing.verdict(judged, "a weak signal", "energy")
    needed = int(said.split("about ")[1].split(" ")[0].replace(",", ""))
    assert needed == pytest.approx(judged.prompts_needed, rel=0.05)
    assert "it took 4 % less of the cloud's energy at equal quality" in said
    assert np.ptp(more.cost_change[1:]) < np.ptp(judged.cost_change[1:])
    assert more.prompts_needed == pytest.approx(judged.prompts_needed, rel=0.25)


def test_where_no_threshold_is_above_random_routing_nothing_is_escalated(answers):
    cost, signal = constant(1.0, 10.0), -oracle(*answers)
    threshold = routing.choose_threshold(*answers, signal, cost)
    assert threshold == -np.inf
    judged = routing.judge(*answers, signal, cost, threshold)
    assert judged.escalated == 0
    assert "no threshold was better" in routing.verdict(judged, "its opposite", "energy")


def test_the_interval_holds_the_true_change_as_often_as_it_says():
    """Drawn again and again from one law, of which the true change is known."""
    cost = constant(1.0, 10.0, prompts=80)
    rng = np.random.default_rng(5)
    # Local is right half the time, the cloud nine in ten; the signal finds wrong answers at 80 %.
    q = 0.5 * 0.8 + 0.5 * 0.2  # escalated
    routed = 0.5 * 0.8 + 0.9 * q  # local right and kept, or sent
    truth = (1 + 10 * q - (1 + (routed - 0.5) / 0.4 * 9)) / 10
    held = 0
    for trial in range(60):
        local = (rng.random(80) < 0.5).astype(float)
        cloud = (rng.random(80) < 0.9).astype(float)
        signal = np.where(rng.random(80) < 0.8, local, 1 - local)
        _, low, high = routing.judge(local, cloud, signal, cost, 0.5, seed=trial).cost_change
        held += low <= truth <= high
    assert held >= 50  # 57 expected; the bound is that of chance at one in a thousand
