"""Descriptions of pictures: their numbers are the table's."""

import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.results import described


def rows(**columns) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    key = {"family": "smollm2", "size": "135M", "task": "rag", "method": "lora"}
    precisions = ["fp16", "int8", "int4"][:count]
    return pd.DataFrame([key | {"precision": p} for p in precisions]).assign(**columns)


@pytest.mark.parametrize(
    ("paper", "counted", "column"),
    [
        ([0.004, 0.005], [1.5e6, 1.6e6], "n_break_full"),
        ([0.004, 3.0], [1.5e6, 1.6e6], "n_break"),
        ([0.004, np.inf], [1.5e6, np.inf], "n_break"),
        ([0.004, 0.005], [np.nan, np.nan], "n_break"),
        ([0.004, 0.005], [np.inf, np.inf], "n_break_full"),
        ([np.nan, np.nan], [1.5e6, 1.6e6], "n_break_full"),
    ],
)
def test_the_break_even_that_is_drawn_tells_variants_apart(paper, counted, column):
    assert described.break_even_shown(rows(n_break=paper, n_break_full=counted)) == column


def test_without_the_full_accounting_the_papers_is_drawn():
    assert described.break_even_shown(rows(n_break=[0.1, 0.2])) == "n_break"


def test_quadrants_are_described_by_their_extremes_and_what_never_pays():
    table = rows(ipw=[0.1, 0.3, 0.2], n_break=[0.004] * 3, n_break_full=[1.5e6, np.inf, 1.8e6])
    text = described.quadrants(table, "n_break_full")
    assert "from 0.10 (LoRA FP16) to 0.30 1/J (LoRA INT8)" in text
    assert "from 1.5 million (LoRA FP16) to 1.8 million (LoRA INT4)" in text
    assert "1 of 3 never pay back" in text
    assert "before the first request is over" in text
    never = described.quadrants(table.assign(n_break=np.inf), "n_break")
    assert never.endswith("No variant ever pays back.")
    assert "no IPW and N_break" in described.quadrants(table.assign(ipw=np.nan), "n_break")


def test_break_even_is_described_by_both_accountings():
    table = rows(
        n_break=[0.004, 0.0055], n_break_full=[1.5e6, np.inf],
        n_break_full_least=[1.4, 2.0], n_break_full_most=[2e9, np.inf],
    )  # fmt: skip
    text = described.break_even(table)
    assert "electricity alone (the paper's): 0.0040 to 0.0055 requests" in text
    assert "everything counted: 1.5 million requests, 1 of 2 never" in text
    assert "anywhere from 1.4 to never" in text
    assert "is known" in described.break_even(rows(n_break=[np.nan, np.nan]))


@pytest.mark.parametrize(
    ("number", "words"),
    [(0.004, "0.0040"), (1180.0, "1,200"), (1.58e6, "1.6 million"), (2.3e9, "2.3 billion"),
     (np.inf, "never"), (0.0, "0")],
)  # fmt: skip
def test_numbers_of_any_size_in_words(number, words):
    assert described.large(number) == words


def test_a_variant_is_named_by_what_differs():
    table = rows(ipw=[1.0, 2.0])
    assert described.variant(table.iloc[0], table) == "LoRA FP16"
    table.loc[1, ["size", "task"]] = "360M", "dialogue"
    assert described.variant(table.iloc[1], table) == "smollm2-360M dialogue LoRA INT8"
