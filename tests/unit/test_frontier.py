"""Fronts: published examples, what must hold of any table, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_eval_lib.frontier import front_frequency, hypervolume, non_dominated

points_strategy = arrays(
    float, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=st.integers(0, 5).map(float)
)
BOTH = {"x": "max", "y": "max"}


def on_front(points, directions=("max", "max")):
    table = pd.DataFrame(points, columns=["x", "y"])
    return non_dominated(table, dict(zip("xy", directions, strict=True))).tolist()


def test_a_point_as_good_in_one_and_better_in_the_other_dominates():
    assert on_front([(6, 7), (8, 7)]) == [False, True]
    assert on_front([(6, 7), (8, 7)], ("min", "min")) == [True, False]
    assert on_front([(6, 7), (8, 7)], ("min", "max")) == [True, False]
    assert on_front([(6, 7), (8, 6)]) == [True, True]


def test_duplicates_are_all_on_the_front():
    assert on_front([(1, 2), (2, 1), (1, 2), (0, 0)]) == [True, True, True, False]


def test_a_row_with_a_gap_is_not_on_the_front_and_dominates_nothing():
    assert on_front([(np.nan, 9), (1, 1), (0, 0)]) == [False, True, False]
    assert on_front([(np.nan, 9), (np.nan, 1)]) == [False, False]


def test_infinity_is_a_value():
    assert on_front([(np.inf, 1), (3, 1)], ("min", "max")) == [False, True]


def test_any_subset_of_columns():
    table = pd.DataFrame(
        {"energy_per_request_j": [2.0, 1.0, 3.0], "score": [0.9, 0.5, 0.8], "name": list("abc")},
        index=["first", "second", "third"],
    )
    front = non_dominated(table, {"energy_per_request_j": "min", "score": "max"})
    assert front.to_dict() == {"first": True, "second": True, "third": False}
    assert front.dtype == bool
    assert non_dominated(table, {"score": "max"}).tolist() == [True, False, False]
    assert non_dominated(table, {"energy_per_request_j": "min"}).tolist() == [False, True, False]


def test_an_empty_table_has_an_empty_front():
    assert on_front(np.empty((0, 2))) == []


@given(points_strategy)
def test_front_is_what_nothing_dominates(points):
    table = pd.DataFrame(points).add_prefix("c")
    front = non_dominated(table, dict.fromkeys(table, "min"))
    for i, point in enumerate(points):
        dominated = any((o <= point).all() and (o < point).any() for o in points)
        assert front[i] == (not dominated)


@given(points_strategy)
def test_to_maximise_is_to_minimise_the_opposite(points):
    table = pd.DataFrame(points).add_prefix("c")
    most = non_dominated(table, dict.fromkeys(table, "max"))
    pd.testing.assert_series_equal(most, non_dominated(-table, dict.fromkeys(table, "min")))


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ({}, "^objectives is empty"),
        ({"z": "min"}, "^objectives names 'z', which is no column of: x, y, name"),
        ({"x": "lowest"}, r"^objectives\['x'\] must be 'min' or 'max', not 'lowest'"),
        ({"name": "min"}, "^objectives names 'name', which does not hold numbers"),
    ],
)
def test_refuses_by_name(objectives, message):
    table = pd.DataFrame({"x": [1.0], "y": [2.0], "name": ["a"]})
    with pytest.raises(ValueError, match=message):
        non_dominated(table, objectives)


def test_hypervolume_of_published_examples():
    assert hypervolume([(5, 5), (4, 6), (2, 7), (7, 4)], (10, 10)) == 38
    assert hypervolume([(1, 2), (2, 1)], (3, 3)) == 3


def test_hypervolume_counts_what_is_better_than_the_reference():
    assert hypervolume([(4, 4)], (3, 3)) == 0
    assert hypervolume([(3, 1)], (3, 3)) == 0
    assert hypervolume(np.empty((0, 2)), (3, 3)) == 0
    assert hypervolume(pd.DataFrame({"x": [1], "y": [1], "z": [1]}), (2, 3, 4)) == 6


@given(points_strategy)
def test_hypervolume_is_that_of_the_front_and_grows_with_points(points):
    reference = np.full(points.shape[1], 6.0)
    table = pd.DataFrame(points).add_prefix("c")
    front = non_dominated(table, dict.fromkeys(table, "min"))
    whole = hypervolume(points, reference)
    assert hypervolume(points[front.to_numpy()], reference) == pytest.approx(whole)
    assert hypervolume(points[1:], reference) <= whole + 1e-9
    assert hypervolume(2 * points, 2 * reference) == pytest.approx(whole * 2 ** points.shape[1])


@pytest.mark.parametrize(
    ("points", "reference", "message"),
    [
        ([(1, 2)], (3, 3, 3), "^reference must have 2 numbers"),
        ([(1, np.nan)], (3, 3), "^points must be finite"),
        ([(1, 2)], (3, np.inf), "^reference must be finite"),
        ([1, 2], (3, 3), "^points must have two dimensions"),
    ],
)
def test_hypervolume_refuses_by_name(points, reference, message):
    with pytest.raises(ValueError, match=message):
        hypervolume(points, reference)


TABLE = pd.DataFrame({"x": [1.0, 1.01, 5.0, np.nan], "y": [1.0, 1.0, 0.5, 1.0]}, index=list("abcd"))
OBJECTIVES = {"x": "min", "y": "max"}


def test_without_spread_a_row_is_always_or_never_on_the_front():
    frequency = front_frequency(TABLE, OBJECTIVES, {"x": 0.0}, draws=10)
    assert frequency.to_dict() == pytest.approx({"a": 1, "b": 0, "c": 0, "d": np.nan}, nan_ok=True)


def test_near_rows_share_the_front_and_far_ones_stay_off():
    frequency = front_frequency(TABLE, OBJECTIVES, {"x": 0.05}, draws=4000)
    # ln x differs by ln 1.01 and scatters by sqrt(2 ln(1 + 0.05^2)): a is less with Phi(0.1408).
    assert frequency["a"] == pytest.approx(0.556, abs=0.025)
    assert frequency["a"] + frequency["b"] == pytest.approx(1)
    assert frequency["c"] == 0
    assert np.isnan(frequency["d"])


def test_a_spread_of_its_own_for_every_row():
    steady = pd.Series([0.0, 0.0, 0.0, 0.0], index=TABLE.index)
    restless = pd.Series([0.0, 0.05, 0.0, 0.0], index=TABLE.index)
    assert front_frequency(TABLE, OBJECTIVES, {"x": steady})["b"] == 0
    assert 0.3 < front_frequency(TABLE, OBJECTIVES, {"x": restless})["b"] < 0.5


def test_frequency_repeats_from_its_seed():
    draws = [front_frequency(TABLE, OBJECTIVES, {"x": 0.05}, 500, seed)["a"] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("spread", "draws", "message"),
    [
        ({"x": -0.1}, 10, r"^relative_spread\['x'\] must not be negative"),
        ({"x": np.nan}, 10, r"^relative_spread\['x'\] must be finite"),
        ({"z": 0.1}, 10, "^relative_spread names 'z', which is no objective"),
        ({"x": pd.Series([0.1])}, 10, r"^relative_spread\['x'\] must have the table's index"),
        ({"x": 0.1}, 0, "^draws must be a whole number"),
    ],
)
def test_frequency_refuses_by_name(spread, draws, message):
    with pytest.raises(ValueError, match=message):
        front_frequency(TABLE, OBJECTIVES, spread, draws)
