"""Tables for people: rounded, with units and intervals; gaps are told."""

import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.results.readable import bounded, format_number, heading, notes, readable, show

TABLE = pd.DataFrame(
    {
        "model": ["llama-1B", "<b>other</b>"],
        "n_break": [2.4567, np.inf],
        "ipw": [0.318222, np.nan],
        "ipw_lo": [0.30, np.nan],
        "ipw_hi": [0.34, np.nan],
        "load_energy_j": [92122.3, 12.0],
        "repetitions": [3, 1],
        "notes": [None, "ipw: no energy source"],
    }
)


def test_readable_merges_bounds_and_tells_gaps():
    text = readable(TABLE)
    assert list(text) == [
        "model", "N_break [requests]", "IPW [1/J]", "load energy [J]", "repetitions", "notes",
    ]  # fmt: skip
    assert text["N_break [requests]"].tolist() == ["2.46", "never"]
    assert text["IPW [1/J]"].tolist() == ["0.318 [0.300, 0.340]", "–"]
    assert text["load energy [J]"].tolist() == ["92,122", "12.0"]
    assert text["repetitions"].tolist() == ["3", "1"]
    assert text["notes"].tolist() == ["–", "ipw: no energy source"]


def test_an_unbounded_interval_is_called_so():
    table = pd.DataFrame({"c_tax": [2.0], "c_tax_lo": [-np.inf], "c_tax_hi": [np.inf]})
    assert readable(table).iloc[0, 0] == "2.00 [unbounded]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.318222, "0.318"), (6768.83, "6,769"), (149.76, "150"), (0.0, "0"), (-1.5, "−1.50"),
        (1.2e-7, "1.20e−07"), (np.nan, "–"), (np.inf, "never"), (999.7, "1,000"),
        (0.99999, "1.00"), (92122.3, "92,122"),
    ],
)  # fmt: skip
def test_numbers_for_people(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("ttft_ms", "TTFT [ms]"), ("load_energy_j", "load energy [J]"),
        ("throughput_tok_s", "throughput [tok/s]"),
        ("ipw_median", "IPW, median [1/J]"), ("score_difference", "score, difference [0–1]"),
        ("merge_base", "merge base"),
    ],
)  # fmt: skip
def test_headings_name_the_unit(column, name):
    assert heading(column) == name


def test_a_table_in_a_notebook_cannot_become_markup():
    text = show(TABLE)
    assert "&lt;b&gt;other" in text
    assert "<b>" not in text
    assert "IPW: no energy source" in text  # a note's column by its name for people


def test_a_note_is_reported_once_with_its_rows_and_those_of_other_columns_left_out():
    table = pd.DataFrame(
        {
            "notes": [
                "ttft_p95_ms: of 2 requests; it takes 20; ipw: no energy",
                None,
                "ipw: no energy",
            ]
        }
    )
    text = notes(table)
    assert "- IPW: no energy (2 of 3 rows)." in text
    assert "- TTFT, 95th percentile: of 2 requests; it takes 20 (1 of 3 rows)." in text
    assert "TTFT" not in notes(table, ["ipw"])


def test_a_break_even_of_millions_has_no_more_digits_than_others():
    table = pd.DataFrame({"n_break_full": [1_578_447.0, 5.4321], "requests": [1_578_447.0, 5.4321]})
    text = readable(table)
    assert text.iloc[:, 0].tolist() == ["1,580,000", "5.43"]
    assert text["requests"].tolist() == ["1,578,447", "5.43"]


def test_a_percentage_is_not_rounded_to_tens():
    table = pd.DataFrame({"q_ret_pct": [103.2, 96.71, np.inf, np.nan], "load_energy_j": 103.2})
    table = table.assign(q_ret_pct_lo=99.2, q_ret_pct_hi=[107.4, 101.0, np.nan, np.nan])
    text = readable(table, digits=2)
    assert text["Q_ret [%]"].tolist() == ["103 [99, 107]", "97 [99, 101]", "never", "–"]
    assert text["load energy [J]"].tolist() == ["100"] * 4


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (1.049, 1.351, "1.2 [1.0, 1.4]"),
        (-np.inf, np.inf, "1.2 [unbounded]"),
        (1.049, np.inf, "1.2 [1.0, ∞]"),
        (np.nan, np.nan, "1.2"),
    ],
)
def test_a_figure_stands_in_a_sentence_with_its_interval(low, high, text):
    assert bounded({"ratio": 1.2, "ratio_lo": low, "ratio_hi": high}, "ratio") == text
