"""The power sweep: its order, its refusals, and the knee of constructed curves."""

import numpy as np
import pandas as pd
import pytest
from tiny import make_tiny_study

from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import power_sweep
from edge_eval_lib.results import power_sweep as found
from edge_eval_lib.results.records import PowerSweepRecord
from edge_eval_lib.runs import plan
from edge_eval_lib.study import PowerSweep, load_study

POINTS = [300.0, 600.0, 900.0, 1200.0, 1500.0]
SWEEP = {"knob": "sm_clock_mhz", "points": POINTS, "settle_seconds": 1.0, "exclusive": True}


def runs_of(energy_j, tpot_ms, repetitions=5, noise=0.005, seed=1):
    """A sweep whose curves are given by setting, with relative noise and a control that drifted."""
    generator = np.random.default_rng(seed)
    rows = []
    for repetition in range(1, repetitions + 1):
        for setting in [*POINTS, POINTS[0]]:
            control = sum(r["repetition"] == repetition for r in rows) == len(POINTS)
            off = generator.normal(1, noise, 2) * (1.1 if control else 1.0)
            rows.append(
                {"repetition": repetition, "setting": setting, "control": control}
                | {"energy_per_token_j": energy_j(setting) * off[0]}
                | {"tpot_ms": tpot_ms(setting) * off[1], "ttft_ms": 100.0, "power_w": 40.0}
                | {"throughput_tok_s": 50.0, "sm_clock_mhz": setting, "concurrency": 8}
                | {"setting_verdict": "held", "knob": "sm_clock_mhz", "model": "m", "host": "h"}
                | {"energy_source": "nvml-counter"}
            )
    return pd.DataFrame(rows)


def u_shaped(setting):
    return 1 + ((setting - 900) / 900) ** 2


def constant(setting):
    return 1.0


def falling(setting):
    return 300 / setting


def rising(setting):
    return setting / 300


@pytest.mark.parametrize(
    ("energy_j", "tpot_ms", "verdicts"),
    [  # (least J/token, least J/token x TPOT), each with where it lies
        (u_shaped, constant, [("knee", 900), ("knee", 900)]),
        # The energy-delay product (1 + (s - 900)^2 / 900^2) / s is least at 900 sqrt(2) = 1273.
        (u_shaped, falling, [("knee", 900), ("knee", 1200)]),
        (falling, constant, [("none", 1500), ("none", 1500)]),
        (rising, constant, [("none", 300), ("none", 300)]),
        (rising, falling, [("none", 300), ("flat", None)]),
        (constant, constant, [("flat", None), ("flat", None)]),
    ],
)
def test_knees_of_constructed_curves(energy_j, tpot_ms, verdicts):
    knees = found.knees(runs_of(energy_j, tpot_ms))
    assert knees["rule"].tolist() == ["least J/token", "least J/token x TPOT"]
    for knee, (verdict, setting) in zip(knees.itertuples(), verdicts, strict=True):
        assert knee.verdict == verdict, knee.why
        assert knee.setting_lo <= knee.setting <= knee.setting_hi
        assert {knee.setting_lo, knee.setting_hi} <= set(POINTS)
        if setting is not None:
            assert knee.setting == setting
            assert knee.setting_hi - knee.setting_lo <= 300
    said = found.sentences(knees, "sm_clock_mhz")
    assert ["no knee within the range" in s for s in said] == [v != "knee" for v, _ in verdicts]


def test_a_flat_curve_has_an_interval_as_wide_as_what_it_cannot_tell():
    knee = found.knees(runs_of(constant, constant, noise=0.02)).iloc[0]
    assert knee["setting_hi"] - knee["setting_lo"] >= 600


def test_savings_are_over_the_highest_setting():
    knee = found.knees(runs_of(u_shaped, falling, noise=0.0)).iloc[0]
    assert knee["energy_per_token_ratio"] == pytest.approx(1 / u_shaped(1500))
    assert knee["tpot_ratio"] == pytest.approx(1500 / 900)


def test_the_knees_interval_holds_the_true_knee_as_often_as_it_says():
    """Where noise alone decides between neighbours; percentile intervals of five are too narrow."""
    held = 0
    for seed in range(40):
        knee = found.knees(runs_of(u_shaped, constant, noise=0.1, seed=seed)).iloc[0]
        held += knee["setting_lo"] <= 900 <= knee["setting_hi"]
    assert held >= 34


@pytest.mark.parametrize("without", ["repetitions", "energy"])
def test_without_repetitions_or_energy_the_verdict_is_open(without):
    runs = runs_of(u_shaped, constant, repetitions=1 if without == "repetitions" else 3)
    if without == "energy":
        runs["energy_per_token_j"] = None
    knees = found.knees(runs)
    assert set(knees["verdict"]) == {"open"}
    assert all("open, no interval without" in s for s in found.sentences(knees, "power_limit_w"))
    assert len(found.by_setting(runs)) == len(POINTS)
    record = PowerSweepRecord(
        idle_power_w=None, knob="sm_clock_mhz", knees=found.verdicts(knees), sentences=[]
    )
    assert [knee["setting"] for knee in record.as_scraps()["knees"]] == [None, None]


def test_what_two_noisy_repetitions_cannot_bound_is_said_and_recorded():
    knees = found.knees(runs_of(u_shaped, constant, repetitions=2, noise=0.5))
    assert any("unbounded" in s or "[" in s for s in found.sentences(knees, "sm_clock_mhz"))
    assert not any("inf" in s for s in found.sentences(knees, "sm_clock_mhz"))
    recorded = found.verdicts(knees)
    assert all(knee["setting"] in POINTS for knee in recorded)


def test_controls_show_drift_and_count_in_nothing_else():
    runs = runs_of(u_shaped, constant)
    drift = found.drift(runs).set_index("quantity")
    assert drift.loc["tpot_ms", "ratio"] == pytest.approx(1.1, abs=0.02)
    assert drift.loc["tpot_ms", "ratio_lo"] > 1
    table = found.by_setting(runs).set_index("setting")
    assert set(table["repetitions"]) == {5}
    assert table.loc[300, "tpot_ms"] == pytest.approx(1.0, abs=0.01)


def test_tables_and_figure_are_written(tmp_path):
    found.write_results(runs_of(u_shaped, falling), tmp_path)
    names = {f"power_{name}.csv" for name in ("sweep", "sweep_runs", "knee", "drift")}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == names
    assert (tmp_path / "figures" / "power_sweep.png").is_file()


def test_the_picture_says_the_knees():
    drawn = found.draw(runs_of(u_shaped, falling), "sm_clock_mhz")
    assert "At concurrency" in drawn.alt
    assert "J/token" in drawn.alt
    assert "at a time" in drawn.svg


# --- the order, and what a clock says -----------------------------------------------------------


def test_each_repetition_visits_every_setting_once_and_its_first_again():
    visits = power_sweep.visits(POINTS, 3, seed=7)
    orders = []
    for repetition in (1, 2, 3):
        *swept, control = [v for v in visits if v.repetition == repetition]
        assert sorted(v.setting for v in swept) == POINTS
        assert control.control
        assert not any(v.control for v in swept)
        assert control.setting == swept[0].setting
        orders.append([v.setting for v in swept])
    assert len({tuple(order) for order in orders}) == 3
    assert visits == power_sweep.visits(POINTS, 3, seed=7)


@pytest.mark.parametrize(("ran", "verdict"), [(900.0, "held"), (885.0, "held"), (600.0, "lower")])
def test_a_lock_that_something_undercut_is_said(ran, verdict):
    sweep = PowerSweep(**SWEEP)
    assert power_sweep.Clocks([ran, ran, 300.0]).verdict(sweep, 900.0) == verdict


def test_a_clock_above_its_lock_ends_the_sweep():
    with pytest.raises(UserError, match=r"set to 900 MHz and ran at 1590: .* takes no lock"):
        power_sweep.Clocks([1590.0]).verdict(PowerSweep(**SWEEP), 900.0)


def test_another_process_on_the_gpu_ends_the_sweep():
    check = {"name": "other processes", "verdict": "invalid", "detail": "python (7) on GPU 0"}
    with pytest.raises(UserError, match=r"not ours alone: python \(7\) on GPU 0\."):
        power_sweep.row(
            power_sweep.Visit(1, 300.0), 1, power_sweep.Clocks(), "held", {"checks": [check]}
        )


# --- the study ------------------------------------------------------------------------------------


def sweeping(tmp_path, **changes):
    configurations = (("none", "fp16"),)
    return make_tiny_study(
        tmp_path, name="sweep", configurations=configurations, power_sweep=SWEEP, **changes
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"points": [600.0, 300.0, 900.0]}, "points must rise"),
        ({"points": [300.0, 300.0, 900.0]}, "points must rise"),
        ({"points": [300.0, 900.0]}, "at least 3"),
        ({"knob": "memory_clock_mhz"}, "sm_clock_mhz"),
        ({"knob": "power_limit_w", "locked_mhz": [300, 900]}, "is of sm_clock_mhz"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(changes, sentence, tmp_path):
    path = sweeping(tmp_path)
    text = path.read_text()
    study = load_study(path)
    with pytest.raises(UserError, match=sentence):
        study.changed(power_sweep=SWEEP | changes)
    with pytest.raises(UserError, match="a study by itself, without ablation"):
        study.changed(ablation={"steps": 1, "warmup_steps": 1})
    assert path.read_text() == text


def test_the_shipped_study_plans_anywhere_and_is_one_run(call_here, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    study = load_study("power_sweep")
    assert [run.stage for run in study.runs()] == ["preflight", "power_sweep"]
    assert study.power_sweep.exclusive is False  # nobody's GPU is turned unasked
    table = plan.plan_table(study).set_index("stage")
    assert 300 < table.loc["power_sweep", "seconds"] < 7200
    planned = call_here("plan", "power_sweep")
    assert planned.returncode == 0
    assert "at 7 settings of sm_clock_mhz" in planned.stdout
    assert "make all would be refused here: " in planned.stdout


def test_without_a_gpu_it_refuses_to_run_in_one_sentence(call_here, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = call_here("all", "power_sweep")
    assert done.returncode == 1
    assert done.stderr.startswith("There is no GPU here of which the SM clock could be swept: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "power_sweep" / "runs").exists()
