"""The paper's analysis: known values, exact break-points, and findings that follow the numbers."""

import re

import numpy as np
import pandas as pd
import pytest
from finished import executed
from tiny import VARIANT_COLUMNS

from edge_eval_lib import paper
from edge_eval_lib.artefacts.place import Place
from edge_eval_lib.errors import UserError
from edge_eval_lib.paper import analysis, fronts, published, qlora, small_models
from edge_eval_lib.paper.code_points import CHECKS, code_against_figures
from edge_eval_lib.paper.evidence import by
from edge_eval_lib.paper.published import tables_of
from edge_eval_lib.paths import outputs_root
from edge_eval_lib.results import tables

NO_EMBEDDED = "no/such/adaptation.csv"


@pytest.fixture(scope="module")
def study():
    return paper.build(embedded=NO_EMBEDDED)


def variant(table, family, size, task, method="lora", precision="int4"):
    return table.set_index(tables.VARIANT).loc[(family, size, task, method, precision)]


# --- the tables that a live study has too -----------------------------------------------------


def test_the_three_tables_have_a_live_studys_columns(study):
    assert len(paper.table(study, "variants")) == 72
    assert len(paper.table(study, "frontier")) == 6
    assert len(paper.table(study, "adaptation")) == 18
    assert set(paper.table(study, "variants")) >= VARIANT_COLUMNS
    assert {"model", *tables.METRICS} <= set(paper.table(study, "frontier"))


def test_no_interval_is_shown_where_there_is_one_observation(study):
    bounds = paper.table(study, "variants").filter(regex=r"(?<!pooled)_(lo|hi)$")
    assert bounds.shape[1] > 10
    assert bounds.isna().all(axis=None)


def test_the_frontier_is_the_printed_table(study):
    frontier = paper.table(study, "frontier").set_index("model")
    assert frontier["n_break"].round().tolist() == [14, 33, 43, 21, 28, 39]
    assert frontier["ipw"].round(2).tolist() == [0.45, 0.27, 0.15, 0.48, 0.23, 0.14]
    assert frontier["rho_sys"].round().tolist() == [6930, 1336, 387, 6942, 1419, 394]
    assert frontier["q_ret_pct"].round(1).tolist() == [100.6, 99.8, 100.3, 99.6, 97.3, 99.5]
    assert frontier["c_tax"].round().tolist() == [183, 184, 230, 179, 188, 237]


def test_the_consistent_table_holds_every_statistic_and_method_once(study):
    table = analysis.consistent_headline(study)
    assert len(table) == 2 * 3 * 6
    rows = table.set_index(["statistic", "over", "model"])["n_break"]
    assert rows[("mean", "LoRA-INT4", "llama-1B")] == pytest.approx(3.7, abs=0.01)
    assert rows[("mean", "QLoRA-INT4", "llama-1B")] == pytest.approx(24.0, abs=0.01)


def test_the_consistent_table_takes_every_column_over_the_variants_it_names(study):
    table = analysis.consistent_headline(study).set_index(["statistic", "over", "model"])
    both, lora = "LoRA-INT4 and QLoRA-INT4", "LoRA-INT4"
    assert table.loc[("median", both, "llama-8B"), "q_ret_pct"] == pytest.approx(100.95, abs=0.01)
    assert table.loc[("median", both, "qwen-1.5B"), "q_ret_pct"] == pytest.approx(97.75, abs=0.01)
    assert table.loc[("median", both, "llama-1B"), "q_ret_pct"] == pytest.approx(100.77, abs=0.01)
    assert table.loc[("median", lora, "llama-8B"), "q_ret_pct"] == pytest.approx(99.70, abs=0.01)
    # The headline table's own medians and means over all INT4 variants are the same figures.
    cells = paper.table(study, "headline").assign(model=lambda t: t["family"] + "-" + t["size"])
    for statistic in ("median", "mean"):
        for _, cell in cells.iterrows():
            recomputed = table.loc[(statistic, both, cell["model"]), cell["metric"]]
            assert recomputed == pytest.approx(cell[statistic])


def test_twelve_figures_of_the_qlora_energy_table_are_judged(study):
    judged = paper.table(study, "qlora_energy")
    assert len(judged) == 12
    assert (judged["verdict"] == "reproduced").sum() == 6


# --- accountings ------------------------------------------------------------------------------


def test_set_up_hours_decide_the_full_accounting(study):
    table = analysis.break_even(study)
    row = variant(table, "llama", "1B", "rag")
    assert row["n_break"] == pytest.approx(2.4567, abs=1e-4)
    per_hour = study.prices.labour_usd_per_hour / (
        row["api_usd_per_request"] - row["local_usd_per_request"]
    )
    free = row["n_break_full_0h"]
    assert row["n_break_full_8h"] - free == pytest.approx(8 * per_hour)
    assert row["n_break_full_80h"] - free == pytest.approx(80 * per_hour)
    assert (table["n_break_full_80h"] > table["n_break_full_8h"]).all()


def test_the_headline_hours_are_those_of_the_shared_table(study):
    table = analysis.break_even(study)
    assert table["n_break_full_8h"].tolist() == pytest.approx(
        study.variants["n_break_full"].tolist()
    )


def test_electricity_is_negligible_beside_the_apis_price(study):
    table = analysis.break_even(study)
    int4 = table[table["precision"] == "int4"]
    at_the_meter = int4["electricity_share_pct"] / study.prices.pue
    assert at_the_meter.median() < 0.01
    shares = analysis.setup_shares(study)
    assert (shares["labour_usd"] > 100 * shares["electricity_usd"]).all()


def test_more_input_tokens_make_the_api_dearer_and_the_break_even_sooner(study):
    longer = paper.build(input_tokens=2000, embedded=NO_EMBEDDED)
    assert longer.prices.api_input_tokens_per_request == 2000
    assert (longer.variants["n_break_full"] < study.variants["n_break_full"]).all()
    assert (longer.variants["n_break"] == study.variants["n_break"]).all()
    # The claims are judged by the paper's assumptions, whatever is assumed here.
    assert longer.judged["verdict"].tolist() == study.judged["verdict"].tolist()


def test_at_the_least_utilisation_a_request_costs_what_the_api_asks(study):
    points = analysis.api_break_points(study)
    row = points.loc[points["least_utilisation"].idxmax()]
    api = next(p for p in study.book.api_prices if p.model == row["api"])
    prices = analysis.at_api_price(study.prices, api).model_copy(
        update={"utilisation": row["least_utilisation"]}
    )
    one = study.variants[
        (study.variants[tables.VARIANT] == row[tables.VARIANT].tolist()).all(axis=1)
    ]
    spent = analysis.costs(one, prices)
    assert spent.local_usd_per_request.iloc[0] == pytest.approx(
        spent.api_usd_per_request.iloc[0], rel=1e-9
    )
    assert len(points) == 18 * len(study.book.api_prices)


def test_one_request_at_a_time_costs_more_than_many(study):
    table = analysis.break_even(study)
    assert (table["alone_usd_per_request"] > table["local_usd_per_request"]).all()


# --- density, cold start, quality -------------------------------------------------------------


def test_modelled_memory_is_weights_and_cache(study):
    row = variant(analysis.density(study), "llama", "8B", "rag", precision="fp16")
    assert row["weights_gb"] == pytest.approx(16.06, abs=0.01)
    tokens = row["concurrency"] * (500 + 150 / 2)
    assert row["cache_gb"] == pytest.approx(tokens * 131_072 / 1e9)
    assert row["rho_sys_modelled"] == pytest.approx(
        row["throughput_tok_s"] / (row["weights_gb"] + row["cache_gb"])
    )


def test_the_cold_start_tax_is_a_figure_of_the_batch(study):
    table = analysis.cold_start(study)
    int4 = table[table["precision"] == "int4"].groupby(["family", "size"])
    means = int4[["c_tax", "c_tax_batch_1"]].mean().round()
    assert means.loc[("llama", "1B")].tolist() == [183, 5]
    assert means.loc[("llama", "8B")].tolist() == [230, 8]
    assert table["notes"].str.contains("estimated").all()


def test_passes_bound_fidelity_and_the_sample_bounds_it_wider(study):
    table = analysis.fidelity(study)
    assert len(table) == 54
    inside = table["q_ret_pct"].between(table["passes_lo"], table["passes_hi"])
    assert inside.all()
    shared = study.variants.set_index(tables.VARIANT)["q_ret_pct"]
    ours = table.set_index(tables.VARIANT)["q_ret_pct"]
    assert ours.to_numpy() == pytest.approx(shared.reindex(ours.index).to_numpy(), abs=1e-3)
    assert table.loc[table["task"] == "dialogue", "sampling_points"].isna().all()
    assert table["sampling_points"].dropna().between(4, 14).all()
    # What the passes show is what their interval leaves out.
    beyond = (table["q_ret_pct"] - 100).abs() > table["visible_by_passes"]
    assert (table["resolved_by_passes"] | ~beyond).all()
    assert table["visible_by_passes"].median() == pytest.approx(3.7, abs=0.1)


def test_which_variants_differ_from_fp16_by_their_passes(study):
    table = analysis.fidelity(study)
    resolved = table[table["resolved_by_passes"]]
    counts = resolved.groupby(["method", "precision"]).size().to_dict()
    assert counts == {("lora", "int8"): 1, ("qlora", "int4"): 6}
    gain = resolved.loc[resolved["q_ret_pct"].idxmax()]
    assert (gain["family"], gain["size"], gain["task"]) == ("llama", "1B", "dialogue")
    assert gain["q_ret_pct"] == pytest.approx(109.5, abs=0.05)
    assert (by(resolved, method="qlora")["q_ret_pct"] < 100).sum() == 4
    hidden = table[~table["resolved_by_passes"]]
    worst = hidden.loc[hidden["q_ret_pct"].idxmin()]
    assert paper.short_name(worst) == "qwen-3B LoRA-INT4"
    assert worst["passes_hi"] == pytest.approx(100.05, abs=0.01)


def test_what_qlora_saves_is_modelled_and_measured_never_taken_from_the_paper(study, tmp_path):
    table = qlora.qlora_memory(study)
    assert len(table) == 6
    assert table["saved_pct"].between(0, 55).all()
    assert table["basis"].str.startswith("modelled").all()
    own = paper.table(study, "adaptation").head(3)
    own = own.assign(lora_peak_memory_gb=2.0, qlora_peak_memory_gb=[1.7, 1.72, 1.76])
    tables.write_table(own, tmp_path / "adaptation.csv")
    with_runs = paper.build(embedded=tmp_path / "adaptation.csv")
    assert qlora.qlora_memory(with_runs)["saved_pct"].tail(3).tolist() == pytest.approx(
        [15.0, 14.0, 12.0]
    )
    bases = qlora.qlora_memory(with_runs)["basis"].tail(3)
    assert (bases == "measured by the embedded study").all()


# --- the paradox ------------------------------------------------------------------------------


def test_time_and_power_explain_the_whole_energy_ratio(study):
    table = qlora.decomposition(study)
    product = table["seconds_ratio"] * table["power_ratio"]
    assert product.to_numpy() == pytest.approx(table["energy_ratio"].to_numpy(), rel=2e-3)
    total = table["time_share_pct"] + table["power_share_pct"]
    assert total.to_numpy() == pytest.approx(100, abs=0.1)


def test_one_lora_run_draws_what_qlora_runs_draw(study):
    table = qlora.decomposition(study)
    odd = table[table["looks_like_qlora"]]
    assert odd[["family", "size", "task"]].to_numpy().tolist() == [["llama", "3B", "summarization"]]
    assert odd["energy_ratio"].iloc[0] == pytest.approx(1.73, abs=0.01)


def test_two_cards_of_lora_halve_the_ratio_of_card_seconds(study):
    table = qlora.decomposition(study)
    two = table["lora_gpus"] == 2
    assert set(table[two]["size"]) == {"7B", "8B"}
    expected = np.where(two, table["seconds_ratio"] / 2, table["seconds_ratio"])
    assert table["card_seconds_ratio"].to_numpy() == pytest.approx(expected)


def test_the_fp16_peak_allows_eight_times_the_tokens_of_fp32(study):
    table = qlora.training_rate(study)
    ratio = table["tokens_at_fp16_peak"] / table["tokens_at_fp32_peak"]
    assert ratio.to_numpy() == pytest.approx(65 / 8.1)
    row = table.set_index(["family", "size", "task", "method"]).loc[("llama", "1B", "rag", "lora")]
    assert row["tokens_at_fp32_peak"] == pytest.approx(
        8.1e12 * 1690.81 / (6 * 1_235_814_400 * 15_000)
    )


def test_the_embedded_pair_stands_beside_the_papers_or_is_missing(study, tmp_path):
    assert len(qlora.qlora_beside_embedded(study)) == 18
    own = (
        paper.table(study, "adaptation")
        .head(1)
        .assign(family="smollm2", size="135M", energy_ratio=1.1, seconds_ratio=1.2)
    )
    tables.write_table(own, tmp_path / "adaptation.csv")
    with_pair = paper.build(embedded=tmp_path / "adaptation.csv")
    beside = qlora.qlora_beside_embedded(with_pair)
    assert len(beside) == 19
    assert beside["study"].iloc[0].startswith("embedded")


def test_the_embedded_pair_is_read_from_its_finished_adaptations(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    assert paper.build().embedded_adaptation is None

    def adapt(task: str, method: str, energy_j: float, done: bool = True):
        parts = {"base_load": 1.0, "adapt": energy_j - 1.0}
        scraps = {"family": "smollm2", "size": "135M", "task": task, "method": method}
        scraps |= {f"{part}_energy_j": value for part, value in parts.items()}
        scraps |= {f"{part}_s": value / 8 for part, value in parts.items()}
        scraps |= {
            "adapt_peak_memory_gb": 1.5,
            "provenance": {"host": "here"},
            "run_complete": True,
        }
        at = Place(tmp_path / "embedded", "adapt", f"{task}_{method}")
        for file in (at.notebook, at.settings if done else at.outdated):
            file.parent.mkdir(parents=True, exist_ok=True)
        at.notebook.write_bytes(executed(*scraps.items()))
        (at.settings if done else at.outdated).write_text("{}")

    adapt("rag", "lora", 100.0)
    adapt("rag", "qlora", 130.0)
    adapt("dialogue", "lora", 100.0)
    adapt("dialogue", "qlora", 150.0, done=False)  # its settings have changed
    table = paper.build().embedded_adaptation.set_index("task")
    assert table.loc["rag", ["energy_ratio", "seconds_ratio"]].tolist() == pytest.approx([1.3, 1.3])
    assert np.isnan(table.loc["dialogue", "energy_ratio"])


# --- code against figures ---------------------------------------------------------------------


def test_code_against_figures(study):
    table = code_against_figures(study).set_index("topic")
    agreeing = set(table.index[table["agrees"]])
    assert agreeing == {"samples scored", "training examples", "QLoRA as compressed"}
    energy = table.loc["energy and power", "figures"]
    assert energy.startswith("1 of 180 windows")
    assert "compress qwen 7B rag lora int4" in energy or "compress qwen 7B rag lora int8" in energy
    assert "15% below" in energy
    assert "18 merges and 0 quantisations" in table.loc["QLoRA as compressed", "figures"]
    assert "51 to 60 W" in table.loc["one LoRA run unlike the others", "figures"]
    assert "69 of 72 rows" in table.loc["cards in the meter", "figures"]
    assert "23 to 42 requests in flight" in table.loc["batch size", "figures"]
    assert "1.85 times LoRA-FP16" in table.loc["QLoRA as served: speed", "figures"]
    assert "50.2 ms" in table.loc["weights from one card", "code_or_paper"]


def test_points_that_change_a_headline_figure_are_kept_apart_from_details(study):
    table = code_against_figures(study).set_index("topic")
    assert "energy per request" in table.loc["batch size", "bears_on"]
    assert pd.isna(table.loc["energy and power", "bears_on"])  # one window of 180


def test_every_point_has_words_and_a_check(study):
    points = pd.read_csv(published.folder() / "code_points.csv")
    assert list(CHECKS) == points["topic"].tolist()
    for column in ("code_or_paper", "figures"):
        assert not code_against_figures(study)[column].str.contains(r"[{}]|nan|None").any()


def test_a_point_agrees_once_the_figures_are_what_the_code_gives():
    raw = tables_of(published.load())
    serving = raw["serving"]
    serving["serve_energy_j"] = serving["power_mean_w"] * (serving["load_s"] + serving["serve_s"])
    qlora, lora = (
        serving[(serving["method"] == m) & (serving["precision"] == p)].index
        for m, p in (("qlora", "int4"), ("lora", "fp16"))
    )
    for column in ("throughput_tok_s", "load_s", "serve_s", "tpot_mean_ms", "power_mean_w"):
        serving.loc[qlora, column] = serving.loc[lora, column].to_numpy()
    energy = serving["power_mean_w"] * (serving["load_s"] + serving["serve_s"])
    serving["serve_energy_j"] = energy
    serving["power_peak_w"] = serving["power_mean_w"] + 5
    study = paper.build(published.check(**raw), embedded=NO_EMBEDDED)
    agrees = code_against_figures(study).set_index("topic")["agrees"]
    assert agrees["energy window"]
    assert agrees["QLoRA as served: speed"]
    assert agrees["QLoRA as served: load"]
    assert not agrees["batch size"]


# --- the frontier -----------------------------------------------------------------------------


def test_any_subset_of_objectives_gives_a_front(study):
    cheapest = fronts.pareto(study, {"usd_per_request": "min"})
    front = cheapest[cheapest["on_front"]]
    assert front.groupby("task")["usd_per_request"].nunique().eq(1).all()
    pair = fronts.pareto(study, {"score": "max", "energy_per_request_j": "min"})
    every = fronts.pareto(study)
    assert (every["on_front"] >= pair["on_front"]).all()


def test_an_unknown_objective_is_refused_with_the_known_ones(study):
    with pytest.raises(UserError, match=r"no objective 'vibes'.*latency_ms"):
        fronts.pareto(study, {"vibes": "max"})


def test_nothing_beats_a_variant_on_the_front(study):
    table = fronts.pareto(study, {"score": "max", "energy_per_request_j": "min"})
    for _, part in table.groupby("task"):
        for _, row in part.iterrows():
            better = part[
                (part["score"] >= row["score"])
                & (part["energy_per_request_j"] <= row["energy_per_request_j"])
                & (
                    (part["score"] > row["score"])
                    | (part["energy_per_request_j"] < row["energy_per_request_j"])
                )
            ]
            assert row["on_front"] == better.empty


def test_hypervolume_lies_in_the_box_and_small_models_cover_part_of_it(study):
    table = fronts.fronts(study)
    assert len(table) == 15
    assert table["hypervolume"].between(0, 1).all()
    assert (table["hypervolume_small"] <= table["hypervolume"] + 1e-12).all()


@pytest.mark.slow
def test_robustness_is_a_share_and_reproducible(study):
    table = fronts.robustness(study, draws=20)
    shares = table.drop(columns=tables.VARIANT)
    assert list(shares) == [
        f"{kind}_{case}" for case in ("passes", "prompts") for kind in ("technical", "economic")
    ]
    assert shares.to_numpy().min() >= 0
    assert shares.to_numpy().max() <= 1
    again = paper.build(embedded=NO_EMBEDDED)
    pd.testing.assert_frame_equal(table, fronts.robustness(again, draws=20))
    assert len(table) == 72


def test_a_models_share_holds_all_of_its_variants(study):
    variants = fronts.robustness(study, draws=50)
    models = fronts.model_robustness(study, draws=50).set_index(["task", "family", "size"])
    grouped = variants.groupby(["task", "family", "size"])
    shares = list(models)
    assert len(models) == 18
    best, together = grouped[shares].max(), grouped[shares].sum().clip(upper=1)
    assert (models >= best.loc[models.index] - 1e-12).all(axis=None)
    assert (models <= together.loc[models.index] + 1e-12).all(axis=None)
    assert (models > best.loc[models.index] + 0.01).any(axis=None)


def test_other_prompts_scatter_a_score_by_the_size_of_the_sample(study):
    spread = fronts.score_spread(study)
    row = variant(spread.reset_index(), "qwen", "7B", "rag", precision="fp16")
    quality = variant(study.figures.quality, "qwen", "7B", "rag", precision="fp16")
    p, passes = quality["score_mean"], quality["score_std"] / np.sqrt(2)
    assert row["passes"] * p == pytest.approx(passes)
    assert (row["prompts"] * p) ** 2 == pytest.approx(passes**2 + p * (1 - p) / 200)
    ratio = spread["prompts"].median() / spread["passes"].median()
    assert ratio == pytest.approx(5, abs=1)
    # A judge's scores from 1 to 10 spread at most as if all were 1 or 10.
    judged = variant(spread.reset_index(), "llama", "8B", "dialogue")
    quality = variant(study.figures.quality, "llama", "8B", "dialogue")
    m = quality["score_mean"]
    most = (10 - m) * (m - 1) / 200 + quality["score_std"] ** 2 / 2
    assert (judged["prompts"] * m) ** 2 == pytest.approx(most)


@pytest.mark.slow
def test_other_prompts_take_most_of_the_larger_models_place_on_the_front(study):
    best = fronts.robustness(study).groupby(["task", "family", "size"]).max(numeric_only=True)
    for key, passes, prompts in [
        (("rag", "qwen", "7B"), 0.65, 0.13),
        (("rag", "llama", "3B"), 0.62, 0.30),
        (("rag", "qwen", "3B"), 0.54, 0.22),
        (("summarization", "llama", "8B"), 0.97, 0.76),
        (("summarization", "qwen", "1.5B"), 1.00, 0.84),
    ]:
        assert best.loc[key, "technical_passes"] == pytest.approx(passes, abs=0.1)
        assert best.loc[key, "technical_prompts"] == pytest.approx(prompts, abs=0.1)


def test_the_spread_of_a_run_is_that_of_pairs_that_should_be_alike(study):
    spread = fronts.measurement_spread(study)
    assert spread.between(0.02, 0.15).all()


def test_at_the_flip_two_models_break_even_together(study):
    flips = small_models.order_flips(study)
    assert len(flips) == 2 * 3 * 15
    found = flips.dropna(subset=["api_price_flip_usd_per_request"])
    assert set(found["accounting"]) == {"paper", "full"}
    v = study.variants[
        (study.variants["method"] == "lora") & (study.variants["precision"] == "int4")
    ].assign(model=lambda t: t["family"] + "-" + t["size"])
    for _, row in found.iterrows():
        price = row["api_price_flip_usd_per_request"]
        pair = v[(v["task"] == row["task"]) & v["model"].isin([row["sooner"], row["later"]])]
        spent = small_models.accounting(row["accounting"], pair, study.prices)
        first, second = spent.fixed_usd / (price - spent.local_usd_per_request)
        assert first == pytest.approx(second, rel=1e-6)


def test_an_electricity_flip_is_detected_where_there_is_one():
    # Spent before: e against 0.1 + e / 2, both saving 1 a request: equal at e = 0.2.
    first = pd.Series(
        {"fixed_free": 0.0, "fixed_slope": 1.0, "local_free": 0.0, "local_slope": 0.0, "api": 1.0}
    )
    second = pd.Series(
        {"fixed_free": 0.1, "fixed_slope": 0.5, "local_free": 0.0, "local_slope": 0.0, "api": 1.0}
    )
    assert small_models.electricity_flip(first, second, [0.03, 0.40]) == pytest.approx(0.2)
    assert np.isnan(small_models.electricity_flip(first, second, [0.25, 0.40]))


def test_the_winner_at_each_score_is_the_first_to_break_even(study):
    table = small_models.small_models(study)
    for _, row in table.iterrows():
        part = study.variants[
            (study.variants["task"] == row["task"])
            & (study.variants["score"] >= row["score_at_least"])
        ]
        assert row["n_break_full"] == part["n_break_full"].min()
    assert table.groupby("task")["n_break_full"].apply(lambda s: s.is_monotonic_increasing).all()


def test_a_lead_is_set_against_what_other_prompts_could_change(study):
    table = small_models.best_scores(study, draws=200).set_index("task")
    rag = table.loc["rag"]
    assert rag["difference"] == pytest.approx(0.012, abs=1e-3)
    assert rag["error_prompts"] == pytest.approx(0.082, abs=2e-3)
    assert rag["larger_above"] == 6
    assert rag["larger_beyond_prompts"] == 0
    assert table.loc["summarization", "larger_beyond_prompts"] > 0
    assert (table["larger_beyond_prompts"] <= table["larger_beyond_passes"]).all()
    assert (table["larger_beyond_passes"] <= table["larger_above"]).all()
    assert table[["small_first_passes", "small_first_prompts"]].stack().between(0, 1).all()
    assert (table["larger_beyond_prompts"] > 0).to_dict() == {
        "rag": False,
        "summarization": True,
        "dialogue": False,
    }


def test_without_scatter_a_small_model_wins_where_the_table_says_so(study):
    table = small_models.small_models(study)
    v = study.variants.assign(small=study.is_small(study.variants))
    for task, part in v.groupby("task", sort=False):
        own = table[table["task"] == task].dropna(
            subset=["n_break_full_small", "n_break_full_large"]
        )
        share = small_models.small_first(part["score"].to_numpy()[None, :], part)
        per_threshold = own.set_index("score_at_least")["winner_is_small"]
        expected = per_threshold.reindex(part["score"]).dropna().mean()
        assert share == pytest.approx(expected)


# --- findings ---------------------------------------------------------------------------------


def test_the_five_findings_are_computed(study):
    first, caption, energy, batch, labour = paper.findings(study)
    assert first.startswith("**The arithmetic follows**: 30 of 30 cells")
    assert "72 variants" in first
    assert "IPW: largest" in caption
    assert "2 of 30 cells equal their median, 2 of them by coincidence" in caption
    assert "cannot be checked" in caption
    assert energy.startswith("**6 of 12")
    assert '"up to 7.2 times" is qwen-1.5B (7.16 recomputed)' in energy
    assert "the paper's own table prints 2.3" in energy
    assert "About 31 requests were in flight, not 1" in batch
    assert labour.startswith("**Labour decides when it pays**")
    assert "2 to 53 requests" in labour


@pytest.mark.slow
def test_other_figures_give_other_findings(study):
    raw = tables_of(study.figures)
    serving = raw["serving"]
    in_flight = serving["throughput_tok_s"] * serving["tpot_mean_ms"] / 1e3
    serving["throughput_tok_s"] /= in_flight
    for column in ("serve_s", "serve_energy_j"):
        serving[column] *= in_flight
    raw["adaptation"]["adapt_energy_j"] *= 1.1
    other = paper.build(published.check(**raw), embedded=NO_EMBEDDED)
    first, _, energy, batch, _ = paper.findings(other)
    assert first.startswith("**Not all of the arithmetic follows**")
    assert not energy.startswith("**6 of 12")
    assert batch.startswith("**One request was in flight**")


def test_verdicts_are_counted_in_words(study):
    cells, words = (by(study.judged, kind=kind) for kind in ("cell", "claim"))
    assert (len(cells), len(words)) == (42, 22)
    assert paper.tally(cells) == (
        "8 reproduced as stated (2 of them by coincidence), 28 by another statistic, "
        "6 not reproduced"
    )
    assert paper.tally(words) == (
        "10 reproduced as stated, 4 by another statistic, 5 not reproduced, 3 cannot be checked "
        "from what was published"
    )


def test_pairs_that_bf16_cannot_explain_are_two(study):
    split = qlora.decomposition(study)
    one_card = split[(split["lora_gpus"] == 1) & ~split["looks_like_qlora"]]
    assert len(one_card) == 11
    beyond = one_card[one_card["seconds_ratio"] > 65 / 8.1].sort_values("seconds_ratio")
    assert [paper.model_name(row) for _, row in beyond.iterrows()] == ["qwen-3B", "qwen-1.5B"]
    assert beyond["seconds_ratio"].round(1).tolist() == [8.9, 11.6]


def test_small_models_that_answer_best_have_no_larger_one_above(study):
    raw = tables_of(study.figures)
    small = raw["quality"]["size"].isin(["1B", "1.5B"])
    for column in ("score_mean", "score_median"):
        raw["quality"].loc[small, column] = 0.9 * raw["quality"].loc[small, "score_maximum"]
    best = paper.build(published.check(**raw), embedded=NO_EMBEDDED)
    assert (small_models.best_scores(best)["larger_above"] == 0).sum() == 2
    assert (small_models.best_scores(study)["larger_above"] > 0).all()


# --- writing ----------------------------------------------------------------------------------


def test_one_table_can_be_rebuilt_alone(study, tmp_path):
    assert paper.write_tables(tmp_path, study, ["claims"]) == [tmp_path / "tables" / "claims.csv"]
    assert [p.name for p in tmp_path.rglob("*.*")] == ["claims.csv"]
    columns = pd.read_csv(tmp_path / "tables" / "claims.csv").columns
    wanted = ["claim_id", "kind", "statement", "source", "paper_value", "recomputed", "rule"]
    wanted += ["verdict", "statistic", "coincidence", "other_choices", "hinges", "note"]
    assert set(wanted) <= set(columns)


def test_a_table_that_does_not_exist_is_refused_with_those_that_do(study, tmp_path):
    with pytest.raises(UserError, match=r"no table 'clams'; there is: variants, frontier"):
        paper.write_tables(tmp_path, study, names=["claims", "clams"])
    assert not list(tmp_path.iterdir())


def test_output_goes_to_the_project_unless_a_directory_is_given(tmp_path):
    assert paper.output_directory() == outputs_root() / "paper"
    assert paper.output_directory(tmp_path) == tmp_path


@pytest.mark.slow  # computes every table
def test_every_table_is_written_without_rounding_and_read_again(study, tmp_path):
    for path in paper.write_tables(tmp_path, study):
        table = paper.table(study, path.stem)
        again = pd.read_csv(path)
        assert list(again) == list(table)
        assert len(again) == len(table) > 0
        for column in table.select_dtypes("float"):
            assert again[column].to_numpy() == pytest.approx(
                table[column].to_numpy(float), rel=1e-12, nan_ok=True
            )
    assert {path.stem for path in tmp_path.rglob("*.csv")} == set(paper.TABLES)


def test_a_table_is_shown_in_words_without_its_index(study):
    html = paper.show(code_against_figures(study), ["topic", "agrees"]).data
    assert html.count(">yes<") == 3
    assert "True" not in html
    cells = paper.show(paper.table(study, "headline"), ["metric", "printed", "recomputed"]).data
    assert cells.count(">100.6<") == 2  # printed, and recomputed to the printed digits
    judged = paper.show(study.judged, paper.CLAIM_COLUMNS).data
    assert ">11.8<" in judged
    assert len(re.findall("<br><small>Rule: ", judged)) == len(study.judged)
    assert "…" not in judged
    assert "..." not in judged
