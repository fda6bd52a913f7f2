"""How long is left: the estimate at every moment of real studies, against what was really left."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from edge_eval_lib.machine.declared import load_hardware
from edge_eval_lib.runs import estimate, model_time, remaining
from edge_eval_lib.runs.finished import Finished
from edge_eval_lib.runs.remaining import OVERHEAD_S, REPORT_S, Expected, Remaining, still_s
from edge_eval_lib.study import Study, load_study

# Three executions of the embedded study on two cores: each run's notebook, in order.
EXECUTED = pd.read_csv(Path(__file__).with_name("embedded_runs.csv"))
REPORTS = {("synthesis", "synthesis"): 13.0, ("paper", "paper"): 15.5}
MOMENTS = (0.0, 0.25, 0.5, 0.75, 0.98)  # of every run
SHORT_S = 25.0  # off by so much is little to a person, however little is left


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Study:
    """The embedded study on a machine without a GPU, nothing done."""
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    unknown = ("power_limit_w", "bandwidth_gb_s", "fp16_tflops", "fp32_tflops", "int8_tops")
    no_gpu = {"gpus": 0, "gpu_names": []} | dict.fromkeys(unknown)
    none = load_hardware("t4").model_copy(update=no_gpu)
    monkeypatch.setattr(estimate, "load_hardware", lambda *_: none)
    return load_study("embedded")


def executed(number: int) -> dict[tuple[str, str], float]:
    rows = EXECUTED[EXECUTED["executed"] == number]
    keys = zip(rows["stage"], rows["name"], strict=True)
    return dict(zip(keys, rows["seconds"] + OVERHEAD_S, strict=True)) | {
        key: seconds + OVERHEAD_S for key, seconds in REPORTS.items()
    }


def replayed(study: Study, took: dict[tuple[str, str], float]) -> pd.DataFrame:
    """Estimated and real seconds left, and those gone, at every moment of an execution."""
    asked = Remaining(remaining.expected_runs(study, took))
    gone_s, rows = 0.0, []
    for key, seconds in took.items():
        for share in MOMENTS:
            at_s = gone_s + share * seconds
            estimated = asked.left_s({key: share * seconds})
            rows.append((key, at_s, estimated, sum(took.values()) - at_s))
        asked.measured[key] = seconds
        gone_s += seconds
    return pd.DataFrame(rows, columns=["run", "gone_s", "estimated_s", "real_s"])


def settles(replay: pd.DataFrame) -> None:
    """It is right within a third at any moment, and no run moves the end by much."""
    off_s = (replay["estimated_s"] - replay["real_s"]).abs()
    allowed_s = (replay[["estimated_s", "real_s"]].min(axis=1) / 3).clip(lower=SHORT_S)
    assert (off_s <= allowed_s).all(), replay[off_s > allowed_s]
    ends_s = replay["gone_s"] + replay["estimated_s"]
    jumps = (ends_s.diff().abs() / ends_s).dropna()
    assert jumps.max() < 0.15, replay.loc[jumps.idxmax()]
    assert (replay["estimated_s"] > 0).all()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_first_study_on_a_machine_is_right_within_a_third_at_any_moment(
    study: Study, number: int
):
    settles(replayed(study, executed(number)))


@pytest.mark.parametrize(("number", "before"), [(1, 2), (2, 3), (3, 1)])
def test_a_later_study_is_right_within_a_fifth_from_the_start(
    study: Study, monkeypatch: pytest.MonkeyPatch, number: int, before: int
):
    earlier = executed(before)

    def took_before(_: Study, run) -> Finished:
        seconds = earlier[run.stage, run.name] - OVERHEAD_S
        return Finished(seconds, seconds, None)

    monkeypatch.setattr(estimate, "_took_before", took_before)
    replay = replayed(study, executed(number))
    settles(replay)
    first = replay.iloc[0]
    assert first["estimated_s"] == pytest.approx(first["real_s"], rel=0.2)


def test_a_machine_three_times_as_slow_is_noticed_in_the_first_run_and_learnt(study: Study):
    took = {key: 3 * seconds for key, seconds in executed(2).items()}
    replay = replayed(study, took)
    off = replay["estimated_s"] / replay["real_s"]
    first = off[0]
    assert first < 0.5  # nothing told it
    half = replay["gone_s"] > 0.5 * sum(took.values())
    assert off[half & (replay["real_s"] > 600)].between(3 / 4, 4 / 3).all()


def test_reports_and_what_a_process_takes_to_start_are_counted(study: Study):
    keys = [("score", "score"), *REPORTS]
    left_s = Remaining(remaining.expected_runs(study, keys)).left_s()
    assert left_s == pytest.approx(model_time.START_S + 2 * REPORT_S + 3 * OVERHEAD_S)


def test_a_run_that_goes_on_has_never_nothing_left():
    assert still_s(40.0, 0.0) == 40.0
    rests = [still_s(40.0, elapsed) for elapsed in (10, 30, 39, 45, 60, 120, 600, 40_000)]
    assert rests[0] == pytest.approx(30.0, rel=0.1)
    assert all(rest > 3.0 for rest in rests)
    assert rests[-1] > rests[-2] > rests[-3]  # the longer beyond, the longer still


def test_several_devices_divide_what_is_left_and_one_long_run_bounds_it():
    runs = {("serve", str(n)): Expected(10.0, "serve") for n in range(8)}
    assert Remaining(runs).left_s() == 80.0
    assert Remaining(runs, at_once=4).left_s() == 20.0
    long = runs | {("adapt", "x"): Expected(50.0, "adapt", devices=2)}
    assert Remaining(long, at_once=4).left_s() == 50.0
    under_way = {("serve", str(n)): 0.0 for n in range(8)}  # on a cluster: as many as are seen
    assert Remaining(runs).left_s(under_way) == pytest.approx(10.0)
    assert Remaining({}).left_s() == 0.0
