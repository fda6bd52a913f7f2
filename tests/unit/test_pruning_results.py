"""What pruning loses and saves, on constructed answers and runs."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.results import pruning, pruning_shown
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.study import load_study

MODEL = ("smollm2", "135M", "rag", "lora")
WHOLE_NLL = np.linspace(0.2, 0.6, 24)


def results(nll: dict[str, np.ndarray], **others: pd.DataFrame) -> SimpleNamespace:
    rows = [
        dict(zip(VARIANT, (*MODEL, precision), strict=True))
        | {"repetition": 1, "prompt_id": f"q{i:02d}", "gold_nll": value, "score": 1 - value}
        for precision, values in nll.items()
        for i, value in enumerate(values)
    ]
    return SimpleNamespace(study=load_study("pruning"), answers=pd.DataFrame(rows), **others)


def runs(tpot_ms: dict[str, list[float]], concurrency: int = 1) -> pd.DataFrame:
    return pd.DataFrame(
        [
            dict(zip(VARIANT, (*MODEL, precision), strict=True))
            | {"repetition": n, "concurrency": concurrency, "tpot_ms": ms}
            | {"input_tokens_per_request": 80.0, "output_tokens_per_request": 12.0}
            | {"energy_per_request_j": ms, "throughput_tok_s": 1e3 / ms, "memory_gb": 0.5}
            for precision, times in tpot_ms.items()
            for n, ms in enumerate(times, start=1)
        ]
    )


@pytest.mark.parametrize(
    ("chain", "parts"),
    [
        ("depth20-distil-int4", ("depth20-distil-fp16", "int4")),
        ("depth20-int4-distil", ("depth20-distil-fp16", "int4")),
        ("int4-depth20", ("depth20-fp16", "int4")),
        ("depth20-fp16", None),
        ("int8", None),
        ("fp16", None),
    ],
)
def test_a_joint_chain_is_taken_apart(chain, parts):
    assert pruning.parts(chain) == parts


@pytest.mark.parametrize(("beyond", "verdict"), [(0.0, "the sum"), (0.3, "more"), (-0.3, "less")])
def test_the_joint_loss_is_compared_with_the_sum(beyond, verdict):
    noise = np.random.default_rng(0).normal(0, 0.02, (3, 24))
    nll = {
        "fp16": WHOLE_NLL,
        "int4": WHOLE_NLL + 0.1 + noise[0],
        "depth20-fp16": WHOLE_NLL + 0.5 + noise[1],
        "int4-depth20": WHOLE_NLL + 0.6 + beyond + noise[:2].sum(0) + noise[2],
    }
    table = pruning.joint_losses(results(nll)).set_index("figure")
    row = table.loc["gold_nll"]
    assert row["beyond_sum"] == pytest.approx(beyond, abs=0.02)
    assert row["beyond_sum_lo"] <= row["beyond_sum"] <= row["beyond_sum_hi"]
    assert row["verdict"] == table.loc["score", "verdict"] == verdict
    assert row["first_loss"] == pytest.approx(0.5, abs=0.02)
    assert row["prompts"] == 24


def test_a_chain_without_its_parts_is_left_out():
    table = pruning.joint_losses(results({"fp16": WHOLE_NLL, "int4-depth20": WHOLE_NLL + 1}))
    assert table.empty


def test_speed_ups_are_paired_and_set_beside_the_prediction():
    drift = np.array([1.0, 1.4, 0.8, 1.1, 1.0])  # the machine's, the same of both
    times = {"fp16": list(50 * drift), "depth20-fp16": list(40 * drift), "int4-depth20": [9.0]}
    times |= {"magnitude50-fp16": [50.0]}
    observed = runs(times)
    empty = observed.iloc[:0]
    made = results({}, closed_loop=observed, headline=empty)
    table = pruning.speed_ups(made).set_index("precision")
    assert set(table.index) == {"depth20-fp16", "magnitude50-fp16"}  # of one storage with FP16
    depth = table.loc["depth20-fp16"]
    assert depth["paired_runs"] == 5
    assert depth["speed_up"] == pytest.approx(1.25)
    assert depth["speed_up_hi"] - depth["speed_up_lo"] < 0.01
    assert 1.05 < depth["predicted"] < 1.25  # a fifth of the layers, not of the output head
    assert not depth["agrees"]
    assert table.loc["magnitude50-fp16", "predicted"] == pytest.approx(1)
    assert table.loc["magnitude50-fp16", "agrees"] is None


def test_without_a_chain_that_is_served_beside_fp16_the_tables_are_empty_and_nothing_is_said():
    observed = runs({"int4": [50.0, 51.0]}, 8)
    made = results({"int4": WHOLE_NLL}, closed_loop=observed, headline=observed)
    empty = [pruning.joint_losses(made), pruning.speed_ups(made), pruning.saved(made)]
    assert [len(table) for table in empty] == [0, 0, 0]
    assert empty[1]["agrees"].map({True: "yes"}).empty  # as the notebook shows it
    assert pruning_shown.summary(arms_of({"int4": 0.1}), *empty) == []


def test_a_student_has_a_size_of_its_own():
    precisions = ["fp16", "int4", "depth20-distil-int4", "int4-depth20", "magnitude50-fp16"]
    table = pd.DataFrame([dict(zip(VARIANT, (*MODEL, p), strict=True)) for p in precisions])
    sizes = pruning.students(table, load_study("pruning"))
    assert list(sizes["size"]) == ["135M", "135M", "113M", "113M", "135M"]
    assert list(sizes["precision"]) == ["fp16", "int4", "int4", "int4", "magnitude50-fp16"]


def test_orders_are_compared_prompt_by_prompt():
    better = WHOLE_NLL + 0.3 + np.random.default_rng(1).normal(0, 0.01, 24)
    nll = {
        "fp16": WHOLE_NLL,
        "depth20-distil-int4": better,
        "depth20-int4-distil": better + 0.2,
        "width33-distil-int4": better,
    }
    (said,) = pruning_shown.order(results(nll), "int4")
    assert "depth20-distil-int4 is better" in said


def test_doubtful_runs_are_counted():
    observed = runs({"fp16": [50.0, 51.0]}, 8).assign(validity=["ok", "invalid: quiet (serve c8)"])
    said = pruning_shown.doubtful(results({}, headline=observed))
    assert said.startswith("1 of 2 runs are doubtful by their own checks (quiet")
    fine = results({}, headline=observed.assign(validity="ok"))
    assert pruning_shown.doubtful(fine) == "Every run passed its own checks."


def arms_of(losses: dict[str, float]) -> pd.DataFrame:
    rows = [
        dict(zip(VARIANT, (*MODEL, precision), strict=True))
        | {"gold_nll_loss": np.nan if precision == "fp16" else loss, "disk_gb": 0.2}
        | {"gold_nll_loss_lo": loss - 0.1, "gold_nll_loss_hi": loss + 0.1}
        | {"energy_per_request_j": 2.0}
        for precision, loss in losses.items()
    ]
    return pd.DataFrame(rows)


ARMS = arms_of({"depth20-fp16": 1.5, "fp16": 0.0, "depth20-distil-fp16": 0.3, "int4": 0.1})


def test_chains_stand_in_the_order_of_their_loss_below_fp16():
    assert list(pruning_shown.by_loss(ARMS)["name"]) == [
        "fp16", "int4", "depth20-distil-fp16", "depth20-fp16",
    ]  # fmt: skip
    said = pruning_shown.chains_words(ARMS)
    assert said.startswith("Of 3 chains int4 loses least, 0.10 nats")
    assert "depth20-fp16 loses most, 1.5 nats" in said
    assert said.endswith("FP16: 0.20 GB and 2.0 J a request.")


def test_the_joint_losses_are_said_with_their_verdicts():
    joint = pd.DataFrame(
        [
            {"precision": "depth20-int4", "figure": "gold_nll", "first_loss": 0.2,
             "second_loss": 0.1, "joint_loss": 0.5, "verdict": "more"},
            {"precision": "int4-depth20", "figure": "gold_nll", "first_loss": 0.2,
             "second_loss": 0.1, "joint_loss": 0.3, "verdict": "the sum"},
        ]
    )  # fmt: skip
    said = pruning_shown.joint_words(joint)
    assert "depth20-int4 0.30 alone, 0.50 together (more than the sum)" in said
    assert "int4-depth20 0.30 alone, 0.30 together (the sum)" in said


def test_the_answer_says_what_is_brought_back_faster_and_saved():
    speed = pd.DataFrame(
        [
            {"precision": "depth20-fp16", "concurrency": 8, "paired_runs": 5, "speed_up": 1.25,
             "speed_up_lo": 1.1, "speed_up_hi": 1.4, "predicted": 1.19, "agrees": True},
            {"precision": "int4", "concurrency": 8, "paired_runs": 1},
        ]
    )  # fmt: skip
    changed = pd.DataFrame(
        [
            {"precision": "depth20-fp16", "paired_runs": 5, "energy_change_pct": -20.9,
             "energy_change_pct_lo": -32.6, "energy_change_pct_hi": -3.3},
            {"precision": "magnitude50-fp16", "paired_runs": 3, "energy_change_pct": -8.0,
             "energy_change_pct_lo": -39.0, "energy_change_pct_hi": 65.0},
        ]
    )  # fmt: skip
    joint = pruning.joint_losses(results({"fp16": WHOLE_NLL}))
    back, fast, saves, none = pruning_shown.summary(ARMS, joint, speed, changed)
    assert back.startswith("Distilling brings back 80 % of what depth20-fp16 loses")
    assert fast.startswith("depth20-fp16 is as fast as FP16 1.2 [1.1, 1.4] times with 8 at a time")
    assert fast.endswith("(the planner's 1.2 is within).")
    assert saves.startswith("depth20-fp16 saves energy: -21 % a request [-33, -3]")
    assert none.startswith("magnitude50-fp16 shows no saving")
