"""Descriptions of pictures: their numbers are the table's."""

import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.results import break_even_shown, described


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
    assert described.break_even_column(rows(n_break=paper, n_break_full=counted)) == column


def test_without_the_full_accounting_the_papers_is_drawn():
    assert described.break_even_column(rows(n_break=[0.1, 0.2])) == "n_break"


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
    assert "anywhere from 1.4 requests to never" in text
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


def test_density_quality_and_adaptation_are_described_from_their_numbers():
    table = rows(rho_sys=[30.0, 60.0], score=[0.8, 0.6], q_ret_pct=[100.0, 75.0],
                 q_ret_pct_lo=[np.nan, 60.0], q_ret_pct_hi=[np.nan, 90.0])  # fmt: skip
    assert described.density(table) == (
        "ρ_sys runs from 30 (LoRA FP16) to 60 tok/s/GB (LoRA INT8)."
    )
    assert described.quality(table).endswith("Of 1 with an interval, 0 hold 100.")
    unbounded = table.drop(columns=["q_ret_pct_lo", "q_ret_pct_hi"])
    assert described.quality(unbounded).endswith("No Q_ret has an interval.")
    pairs = pd.DataFrame([{"family": "smollm2", "size": "135M", "task": "rag"}]).assign(
        lora_energy_j=150.0, qlora_energy_j=180.0, energy_ratio=1.2
    )
    assert described.adaptation(pairs) == (
        "Adapting once takes by LoRA 150 J and by QLoRA 180 J; QLoRA over LoRA: 1.2."
    )
    alone = pairs.assign(qlora_energy_j=np.nan, energy_ratio=np.nan)
    assert described.adaptation(alone) == "Adapting once takes by LoRA 150 J."


def test_the_lifecycles_largest_stage_is_named():
    stages = rows(adapt_energy_j=[200.0, 200.0], compress_energy_j=[np.nan, np.nan],
                  load_energy_j=[20.0, 25.0], serving_energy_j=[150.0, 3000.0])  # fmt: skip
    text = described.lifecycle(stages, 1000)
    assert "compressing" not in text
    assert "a cold start: 20 to 25 J" in text
    assert text.endswith("for 1 of 2.")


def test_waits_are_described_by_medians_and_loads_by_their_ends():
    requests = rows(ttft_ms=[100.0, 300.0], tpot_ms=[50.0, 60.0])
    requests = pd.concat([requests, requests.assign(ttft_ms=[200.0, 300.0])])
    text = described.latency(requests)
    assert "time to first token from 150 (LoRA FP16) to 300 (LoRA INT8) ms" in text
    assert "Nothing" in described.latency(requests.iloc[:0])
    serving = rows(throughput_tok_s=[10.0, 30.0], concurrency=[1.0, 8.0], ttft_ms=[100.0, np.nan])
    assert described.load(serving, "concurrency", "ttft_ms") == (
        "Concurrency at 1: 10 tok/s, waiting 100 ms; at 8: 30 tok/s."
    )
    scores = rows(value=[0.25, 0.5]).assign(harness_task="arc_easy", metric="acc")
    assert described.harness(scores) == "arc_easy acc 0.25 to 0.50."


@pytest.mark.parametrize(
    ("describe", "columns"),
    [
        (described.density, ["rho_sys"]),
        (described.quality, ["score", "q_ret_pct"]),
        (described.adaptation, ["lora_energy_j", "qlora_energy_j"]),
        (described.harness, ["value"]),
    ],
)
def test_what_was_not_measured_is_described_as_nothing(describe, columns):
    table = rows(**{column: [np.nan, np.nan] for column in columns})
    assert describe(table.assign(harness_task="arc_easy")).startswith("Nothing to draw: no ")


def test_accountings_are_drawn_from_the_first_request_to_never(tmp_path):
    table = rows(
        n_break=[0.004, 0.005, np.inf], n_break_full=[1.5e6, np.inf, 1.6e6],
        n_break_full_least=[1.4] * 3, n_break_full_most=[2e9, np.inf, np.inf], validity="ok",
    )  # fmt: skip
    drawn = break_even_shown.drawn(table, tmp_path / "break_even", "a host")
    (axis,) = drawn.figure.axes
    assert axis.get_xscale() == "log"
    assert "[log]" in axis.get_xlabel()
    assert axis.get_xlim()[0] < 0.004
    assert axis.get_xlim()[1] > 2e9
    assert [text.get_text() for text in axis.texts] == ["never", "never"]
    assert drawn.alt == described.break_even(table)
    assert (tmp_path / "break_even.svg").is_file()


def test_without_the_full_accounting_one_is_drawn(tmp_path):
    drawn = break_even_shown.drawn(rows(n_break=[2.0, 72.0]), tmp_path / "x", "a host")
    assert "everything counted" not in drawn.alt
    unknown = break_even_shown.drawn(rows(n_break=[np.nan, np.nan]), tmp_path / "y", "a host")
    assert unknown.alt.startswith("Nothing to draw")


def test_the_front_is_described_by_who_is_on_it():
    table = rows(score=[0.5, 0.7, 0.4], energy_per_request_j=[2.0, 3.0, 4.0])
    text = described.front(table.assign(front=[True, True, False]))
    assert text.endswith("Nothing beats 2 of 3 in both: LoRA FP16, LoRA INT8.")
    assert "from 2.0 (LoRA FP16) to 4.0 J (LoRA INT4)" in text
    assert "is known" in described.front(table.assign(front=False, score=np.nan))
