"""The published figures: what is there, what is refused, what is only doubted."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib.economics.published import MODEL, VARIANT, observations, read, requests_in_flight
from edge_eval_lib.errors import UserError
from edge_eval_lib.paper import plausible, published
from edge_eval_lib.results import tables
from edge_eval_lib.study import load_study


@pytest.fixture(scope="module")
def figures():
    return published.load()


@pytest.fixture
def raw(figures):
    return published.tables_of(figures)


def change(raw, name, column, value, row=0):
    table = raw[name].astype({column: object})
    table.loc[row, column] = value(table.loc[row, column]) if callable(value) else value
    raw[name] = table
    return raw


# --- what is there ----------------------------------------------------------------------------


def test_there_are_72_variants_of_six_models_and_36_adaptations(figures):
    assert len(figures.serving) == len(figures.quality) == 72
    assert len(figures.adaptation) == 36
    assert len(figures.models) == 6
    assert not figures.serving.duplicated(VARIANT).any()


def test_the_grid_is_that_of_the_study_paper_t4(figures):
    grid = {
        (v.family, v.size, v.task, v.method, v.precision) for v in load_study("paper_t4").variants()
    }
    assert set(figures.serving[VARIANT].itertuples(index=False, name=None)) == grid


def test_model_facts_agree_with_the_studys_models(figures):
    known = {(m.family, m.size): m for m in load_study("paper_t4").models}
    for _, row in figures.models.iterrows():
        model = known[(row["family"], row["size"])]
        assert model.parameters == row["parameters"]
        for precision, gigabytes in model.nominal_gb.items():
            assert row[f"nominal_{precision}_gb"] == gigabytes


def test_cache_bytes_agree_with_published_values(figures):
    models = figures.models.set_index(MODEL)
    table = figures.models
    cache = plausible.kv_bytes_per_token(table, models)
    by_model = dict(zip(table["family"] + "-" + table["size"], cache, strict=True))
    assert by_model["llama-8B"] == 131_072
    assert by_model["qwen-1.5B"] == 28_672
    assert by_model["qwen-7B"] == 57_344


def test_figures_load_from_another_directory_of_the_same_schema(figures, tmp_path):
    for name, table in published.tables_of(figures).items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    again = published.load(tmp_path)
    pd.testing.assert_frame_equal(again.serving, figures.serving)


# --- what is refused --------------------------------------------------------------------------


def refused(raw, *words):
    with pytest.raises(UserError) as error:
        published.check(**raw)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_a_missing_column_is_named(raw):
    raw["serving"] = raw["serving"].drop(columns="load_s")
    refused(raw, "serving.csv", "'load_s'")


def test_an_unknown_column_is_named(raw):
    raw["quality"] = raw["quality"].assign(vibes=1)
    refused(raw, "quality.csv", "'vibes'")


@pytest.mark.parametrize("value", [-5.0, 0.0, "", "many", float("nan"), float("inf")])
def test_an_energy_must_be_a_positive_number(raw, value):
    refused(
        change(raw, "serving", "serve_energy_j", value),
        "serving.csv line 2 (llama 1B rag lora fp16)",
        "serve_energy_j",
    )


def test_an_unknown_task_is_refused_with_the_known_ones(raw):
    refused(change(raw, "quality", "task", "summ"), "quality.csv line 2", "summarization")


def test_a_variant_that_stands_there_twice_is_refused(raw):
    raw["serving"] = pd.concat([raw["serving"], raw["serving"].iloc[[3]]], ignore_index=True)
    refused(raw, "serving.csv line 74", "twice")


def test_a_variant_without_scores_or_without_adaptation_is_refused(raw):
    refused(raw | {"quality": raw["quality"].drop(index=5)}, "serving.csv", "quality.csv")
    refused(raw | {"adaptation": raw["adaptation"].drop(index=0)}, "adaptation.csv")


def test_a_model_without_facts_is_refused(raw):
    refused(raw | {"models": raw["models"].drop(index=0)}, "models.csv", "llama 1B")


def test_a_score_above_its_maximum_is_refused(raw):
    refused(change(raw, "quality", "score_mean", 1.2), "score_mean 1.2", "score_maximum 1")


def test_an_absent_or_broken_file_is_refused_in_a_sentence(figures, tmp_path):
    for name, table in published.tables_of(figures).items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "quality.csv").write_text("")
    with pytest.raises(UserError, match=r"quality.csv cannot be read as CSV"):
        published.load(tmp_path)
    (tmp_path / "quality.csv").unlink()
    with pytest.raises(UserError, match="There is no published table"):
        published.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("adaptation", "adapt_energy_j"),
        ("adaptation", "adapt_power_w"),
        ("adaptation", "adapt_s"),
        ("compression", "compress_energy_j"),
        ("compression", "compress_s"),
        ("serving", "serve_energy_j"),
        ("serving", "power_mean_w"),
        ("serving", "power_peak_w"),
        ("serving", "serve_s"),
        ("serving", "throughput_tok_s"),
        ("serving", "tpot_mean_ms"),
        ("serving", "tpot_median_ms"),
        ("serving", "ttft_mean_ms"),
        ("serving", "ttft_median_ms"),
        ("serving", "load_s"),
        ("quality", "score_median"),
        ("quality", "score_std"),
        ("quality", "secondary_mean"),
        ("quality", "secondary_median"),
        ("quality", "secondary_std"),
    ],
)
@pytest.mark.parametrize("factor", [1000.0, 0.001])
def test_a_unit_mistake_of_a_thousand_is_refused(raw, name, column, factor):
    refused(change(raw, name, column, lambda v: v * factor), f"{name}.csv line 2", "unit")


SCORES = [f"{which}_{of}" for which in ("score", "secondary") for of in ("mean", "median", "std")]


@pytest.mark.parametrize("column", SCORES)
@pytest.mark.parametrize("factor", [1000.0, 0.001])
def test_a_unit_mistake_of_a_score_is_refused_in_every_row(figures, column, factor):
    for row in figures.quality.index[figures.quality[column] > 0]:
        table = figures.quality.copy()
        table.loc[row, column] *= factor
        with pytest.raises(UserError, match=f"quality.csv line {row + 2} .* unit"):
            plausible.refuse_impossible_passes(table)


@given(
    st.lists(st.integers(0, 2000), min_size=3, max_size=3).map(sorted),
    st.sampled_from([1.0, 10.0]),
)
def test_every_three_passes_within_the_scale_are_accepted(figures, sums, maximum):
    passes = maximum * np.array(sums) / 2000
    printed = [passes.mean().round(6), np.median(passes).round(6), passes.std().round(6)]
    table = figures.quality.head(1).assign(score_maximum=maximum)
    table[SCORES] = [*printed, *printed]
    plausible.refuse_impossible_passes(table)


def test_a_consistent_mistake_of_unit_is_caught_by_the_power_itself(raw):
    change(raw, "adaptation", "adapt_energy_j", lambda v: v / 1000)
    change(raw, "adaptation", "adapt_power_w", lambda v: v / 1000)
    refused(raw, "adapt_power_w", "unit")


# --- what is doubted --------------------------------------------------------------------------


def test_physics_doubts_none_of_the_published_rows(figures):
    for table in (figures.adaptation, figures.compression, figures.serving):
        assert table["implausible"].isna().all()


@pytest.mark.parametrize(
    ("name", "column", "factor", "reason"),
    [
        ("serving", "serve_energy_j", 1.3, "J, but"),
        ("serving", "power_peak_w", 1.8, "outside what 2 T4 can draw"),
        ("serving", "power_mean_w", 1.15, "above peak"),
        ("serving", "tpot_mean_ms", 0.2, "two T4 can reach"),
        ("serving", "tpot_mean_ms", 5.0, "requests in flight of 100"),
        ("serving", "serve_s", 1.1, "are not 15000 tokens"),
        ("serving", "ttft_mean_ms", 0.05, "read the weights once"),
        ("serving", "ttft_median_ms", 2.5, "beside a mean of"),
        ("serving", "tpot_median_ms", 0.05, "beside a mean of"),
        ("serving", "load_s", 0.05, "needs to start"),
        ("serving", "load_s", 20.0, "GB of weights"),
        ("adaptation", "adapt_energy_j", 0.7, "J, but"),
        ("adaptation", "adapt_power_w", 1.6, "outside what 1 T4 can draw"),
        ("compression", "compress_energy_j", 1.25, "J, but"),
    ],
)
def test_what_physics_doubts_stays_with_its_reason(raw, name, column, factor, reason):
    figures = published.check(**change(raw, name, column, lambda v: v * factor))
    told = getattr(figures, name)["implausible"]
    assert reason in told[0]
    assert told[1:].isna().all()
    assert len(getattr(figures, name)) == len(raw[name])


def test_a_doubt_reaches_the_notes_of_the_variant(raw):
    figures = published.check(**change(raw, "serving", "serve_energy_j", lambda v: v * 1.3))
    assert "J, but" in observations(figures)["notes"][0]


def test_an_energy_within_a_fifth_of_power_times_seconds_is_believed(raw):
    figures = published.check(**change(raw, "serving", "serve_energy_j", lambda v: v * 1.15))
    assert figures.serving["implausible"].isna().all()


# --- the decode bound -------------------------------------------------------------------------


def test_requests_in_flight_follow_from_speed_and_time_per_token(figures):
    in_flight = requests_in_flight(figures.serving)
    assert in_flight.min() == pytest.approx(23.1, abs=0.1)
    assert in_flight.max() == pytest.approx(42.1, abs=0.1)
    assert in_flight.mean() == pytest.approx(30.5, abs=0.1)


def test_the_decode_bound_falls_with_longer_prompts(figures):
    models = figures.models.set_index(MODEL)
    short = plausible.decode_bound_tok_s(figures.serving, models)
    long = plausible.decode_bound_tok_s(figures.serving, models, input_tokens=2000)
    assert (long <= short).all()
    assert (long < short).any()


# --- the passes -------------------------------------------------------------------------------


def test_every_score_gives_back_three_passes_of_200_samples(figures):
    passes = plausible.pass_scores(figures.quality)[["pass_1", "pass_2", "pass_3"]]
    maximum = figures.quality["score_maximum"].to_numpy()[:, None]
    sums = passes.to_numpy() * maximum * 200
    assert np.abs(sums - sums.round()).max() < 0.02


@given(
    st.lists(st.integers(0, 200), min_size=3, max_size=3).map(sorted),
)
def test_passes_are_recovered_from_mean_median_and_deviation(sums):
    values = np.array(sums) / 200
    quality = pd.DataFrame(
        [["f", "1B", "rag", "lora", "fp16", 1.0, values.mean(), values[1], values.std()]],
        columns=[*VARIANT, "score_maximum", "score_mean", "score_median", "score_std"],
    )
    found = plausible.pass_scores(quality)[["pass_1", "pass_2", "pass_3"]].to_numpy()[0]
    assert found == pytest.approx(values, abs=1e-6)


# --- observations -----------------------------------------------------------------------------


def test_observations_make_the_worked_example_of_llama_1b(figures):
    from edge_eval_lib.economics.prices import load_price_book

    variants = tables.variants_table(observations(figures), None, load_price_book().prices("paper"))
    row = variants.set_index(tables.VARIANT).loc[("llama", "1B", "rag", "lora", "int4")]
    assert row["n_break"] == pytest.approx(2.4567, abs=1e-4)
    assert row["ipw"] == pytest.approx(0.31822, abs=1e-5)
    assert row["rho_sys"] == pytest.approx(6768.83, abs=0.01)
    assert row["c_tax"] == pytest.approx(149.76, abs=0.01)
    assert row["q_ret_pct"] == pytest.approx(101.348, abs=1e-3)
    chat = variants.set_index(tables.VARIANT).loc[("qwen", "3B", "dialogue", "lora", "int4")]
    assert chat["q_ret_pct"] == pytest.approx(91.385, abs=1e-3)


def test_what_plans_and_comparisons_read_is_what_was_checked(figures):
    pd.testing.assert_frame_equal(observations(), observations(figures), check_exact=True)
    unchecked = read()
    assert unchecked.adaptation["adapt_energy_j"].equals(figures.adaptation["adapt_energy_j"])
    assert not [name for name in vars(unchecked) if "implausible" in getattr(unchecked, name)]


def test_observations_say_what_is_estimated_and_what_is_empty(figures):
    table = observations(figures)
    assert len(table) == 72
    for word in ("memory_gb: nominal", "load_energy_j: estimated", "energy_per_request_net_j"):
        assert table["notes"].str.contains(word, regex=False).all()
    assert "energy_per_request_net_j" not in table
    qlora = table["method"] == "qlora"
    merge_only = table["notes"].str.contains("merge only", regex=False)
    assert (merge_only == qlora).all()


def test_compression_is_the_merge_and_the_quantisation(figures):
    table = observations(figures).set_index(tables.VARIANT).sort_index()
    llama = table.loc[("llama", "1B", "rag")]["compress_energy_j"]
    assert llama[("lora", "fp16")] == pytest.approx(2519.62)
    assert llama[("lora", "int8")] == pytest.approx(2519.62 + 2202.99)
    assert llama[("lora", "int4")] == pytest.approx(2519.62 + 2107.93)
    assert llama[("qlora", "int4")] == pytest.approx(2287.69)
    assert table["compress_energy_j"].notna().all()


def test_scores_are_between_0_and_1(figures):
    scores = observations(figures)["score"]
    assert scores.between(0, 1).all()
    assert scores.min() > 0.6
