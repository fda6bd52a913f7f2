"""Tables: published figures come out as published, gaps stay gaps, intervals have their basis."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from edge_eval_lib.economics import published
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.results import columns, readable, tables
from edge_eval_lib.uncertainty import mean_interval, paired_ratio_interval

BOOK = load_price_book()
PAPER = BOOK.prices("paper")
CONFIGURATIONS = [("lora", "fp16"), ("lora", "int8"), ("lora", "int4"), ("qlora", "int4")]


@pytest.fixture(scope="module")
def paper() -> pd.DataFrame:
    return tables.variants_table(published.observations(), None, PAPER, BOOK.scenario_prices(PAPER))


def variant(table: pd.DataFrame, family, size, task, method, precision) -> pd.Series:
    key = [family, size, task, method, precision]
    (index,) = table.index[(table[tables.VARIANT] == key).all(axis=1)]
    return table.loc[index]


def observation(repetition=1, **figures) -> dict:
    return {
        "family": "llama",
        "size": "1B",
        "task": "rag",
        "method": "lora",
        "precision": "fp16",
        "repetition": repetition,
        "concurrency": 8,
        "adapt_energy_j": 1000.0,
        "adapt_s": 100.0,
        "compress_energy_j": 10.0,
        "compress_s": 1.0,
        "load_energy_j": 80.0 + repetition,
        "load_s": 3.0,
        "energy_per_request_j": 4.0 + 0.1 * repetition,
        "throughput_tok_s": 60.0 - repetition,
        "memory_gb": 0.5,
        "memory_nominal_gb": 0.25,
        "power_w": 20.0,
        "output_tokens_per_request": 16,
        "input_tokens_per_request": 70,
        "energy_source": "cpu-model (estimated)",
    } | figures


def answers_of(scores: dict[str, list[float]], repetition=1, **key) -> pd.DataFrame:
    key = {"family": "llama", "size": "1B", "task": "rag", "method": "lora"} | key
    return pd.DataFrame(
        [
            key
            | {
                "precision": precision,
                "repetition": repetition,
                "prompt_id": f"p{i}",
                "score": score,
                "score_reason": None if np.isfinite(score) else "the answer is empty",
                "gold_nll": 2.0 + score,
                "answer_tokens": 5,
            }
            for precision, values in scores.items()
            for i, score in enumerate(values)
        ]
    )


# --- the published figures --------------------------------------------------------------------


def test_metrics_of_a_published_variant(paper):
    row = variant(paper, "llama", "1B", "rag", "lora", "int4")
    assert row["n_break"] == pytest.approx(2.4567, abs=5e-5)
    assert row["ipw"] == pytest.approx(0.31822, abs=5e-6)
    assert row["rho_sys"] == pytest.approx(6768.83, abs=5e-3)
    assert row["c_tax"] == pytest.approx(149.76, abs=5e-3)
    assert row["q_ret_pct"] == pytest.approx(101.348, abs=5e-4)
    worst = variant(paper, "qwen", "3B", "dialogue", "lora", "int4")
    assert worst["q_ret_pct"] == pytest.approx(91.385, abs=5e-4)


def test_headline_table_of_the_paper(paper):
    frontier = tables.frontier_table(paper)
    assert list(frontier["model"]) == [
        "llama-1B", "llama-3B", "llama-8B", "qwen-1.5B", "qwen-3B", "qwen-7B",
    ]  # fmt: skip
    assert list(frontier["n_break"].round()) == [14, 33, 43, 21, 28, 39]
    assert list(frontier["ipw"].round(2)) == [0.45, 0.27, 0.15, 0.48, 0.23, 0.14]
    assert list(frontier["rho_sys"].round()) == [6930, 1336, 387, 6942, 1419, 394]
    assert list(frontier["q_ret_pct"].round(1)) == [100.6, 99.8, 100.3, 99.6, 97.3, 99.5]
    assert list(frontier["c_tax"].round()) == [183, 184, 230, 179, 188, 237]
    assert (frontier["int4_variants"] == 6).all()


def test_the_headline_table_is_not_one_of_medians(paper):
    frontier = tables.frontier_table(paper).iloc[0]
    assert frontier["n_break_median"] == pytest.approx(11.8, abs=0.05)
    one_rule = tables.frontier_table(paper, rule="median").iloc[0]
    assert one_rule["n_break"] == frontier["n_break_median"]
    assert one_rule["ipw"] == frontier["ipw_median"] < frontier["ipw"]
    assert tables.frontier_table(paper, rule="mean").iloc[0]["ipw"] == pytest.approx(0.32, abs=5e-3)


def test_methods_apart(paper):
    lora = tables.frontier_table(paper, methods=["lora"]).iloc[0]
    qlora = tables.frontier_table(paper, methods=["qlora"]).iloc[0]
    both = tables.frontier_table(paper).iloc[0]
    assert lora["n_break"] < both["n_break"] < qlora["n_break"]
    assert (lora["n_break"] + qlora["n_break"]) / 2 == pytest.approx(both["n_break"])
    assert lora["q_ret_pct"] == both["q_ret_pct"] != qlora["q_ret_pct"]


def test_adaptation_of_the_paper():
    table = tables.adaptation_table(published.observations())
    assert len(table) == 18
    row = table.iloc[0]
    assert (row["lora_energy_j"], row["qlora_energy_j"]) == (92122.30, 784066.12)
    assert row["energy_ratio"] == pytest.approx(8.5111, abs=5e-5)
    assert row["energy_ratio"] == pytest.approx(row["seconds_ratio"] * row["power_ratio"], rel=1e-3)
    small = table[(table["family"] == "llama") & (table["size"] == "1B")]
    assert small["lora_with_merge_energy_j"].mean() / 3.6e6 == pytest.approx(0.039, abs=5e-4)
    assert small["qlora_with_merge_energy_j"].mean() / 3.6e6 == pytest.approx(0.251, abs=5e-4)
    assert np.isnan(row["lora_peak_memory_gb"])
    assert "lora peak memory: not measured" in row["notes"]


def test_published_figures_have_no_interval_over_runs(paper):
    for column in ("ipw", "rho_sys", "c_tax", "q_ret_pct", "energy_per_request_j", "score"):
        if f"{column}_lo" in paper:
            assert paper[f"{column}_lo"].isna().all(), column


def test_scenarios_enclose_the_full_accounting(paper):
    assert (paper["n_break_full_least"] <= paper["n_break_full"]).all()
    assert (paper["n_break_full"] <= paper["n_break_full_most"]).all()
    assert (paper["n_break_full"] > paper["n_break"]).all()


# --- means, metrics and notes -----------------------------------------------------------------


def test_metrics_are_computed_from_the_row_itself():
    runs = pd.DataFrame([observation(r) for r in (1, 2, 3)])
    table = tables.variants_table(runs, answers_of({"fp16": [0.2, 0.6]}), PAPER)
    row = table.iloc[0]
    assert row["repetitions"] == 3
    assert row["load_energy_j"] == 82
    assert row["c_tax"] == pytest.approx(row["load_energy_j"] / row["energy_per_request_j"])
    assert row["ipw"] == pytest.approx(row["score"] / row["energy_per_request_j"])
    assert row["rho_sys"] == pytest.approx(row["throughput_tok_s"] / row["memory_gb"])
    assert row["score"] == pytest.approx(0.4)
    assert row["score_per_watt"] == pytest.approx(0.02)
    assert row["q_ret_pct"] == 100


def test_a_missing_figure_is_empty_and_says_why():
    runs = pd.DataFrame(
        [
            observation(
                energy_per_request_j=None, load_energy_j=None, notes="load_energy_j: no meter"
            )
        ]
    )
    row = tables.variants_table(runs, answers_of({"fp16": [0.2, 0.6]}), PAPER).iloc[0]
    for column in ("energy_per_request_j", "load_energy_j", "ipw", "c_tax", "n_break"):
        assert np.isnan(row[column]), column
    assert row["rho_sys"] > 0
    assert "load_energy_j: no meter" in row["notes"]
    assert "load_energy_j: not measured" not in row["notes"]
    assert "energy_per_request_j: not measured" in row["notes"]


def test_a_prompt_without_score_is_left_out_and_reported():
    runs = pd.DataFrame([observation(), observation(precision="int4")])
    answers = answers_of({"fp16": [0.5, 0.5, 0.5], "int4": [0.4, 0.4, np.nan]})
    table = tables.variants_table(runs, answers, PAPER)
    row = variant(table, "llama", "1B", "rag", "lora", "int4")
    assert row["score"] == pytest.approx(0.4)
    assert row["scored_prompts"] == 2
    assert row["q_ret_pct"] == pytest.approx(80)
    assert "score: 1 prompts not scored (the answer is empty)" in row["notes"]


def test_a_base_that_scored_nothing_leaves_fidelity_empty():
    runs = pd.DataFrame([observation(), observation(precision="int4")])
    answers = answers_of({"fp16": [0.0, 0.0], "int4": [0.4, 0.0]})
    table = tables.variants_table(runs, answers, PAPER)
    assert table["q_ret_pct"].isna().all()
    assert table["notes"].str.contains("q_ret_pct: lora/fp16 scored 0").all()


def test_where_the_api_is_cheaper_it_never_pays():
    runs = pd.DataFrame([observation(energy_per_request_j=1e6)])
    row = tables.variants_table(runs, answers_of({"fp16": [0.2, 0.6]}), PAPER).iloc[0]
    assert row["n_break"] == np.inf
    assert "n_break: the API costs no more than serving here" in row["notes"]


def test_full_accounting_by_hand():
    prices = PAPER.model_copy(update={"discount_rate": 0.0, "utilisation": 1.0})
    runs = pd.DataFrame([observation()])
    row = tables.variants_table(runs, answers_of({"fp16": [0.2, 0.6]}), prices).iloc[0]
    hardware = 5000 / 5 / 8760 / 3600  # USD a second
    kwh = 0.12 * 1.56 / 3.6e6  # USD a joule
    before = (1000 + 10 + 81) * kwh + (100 + 1 + 3) * hardware + 8 * 64
    here = 4.1 * kwh + 16 / 59 * hardware
    api = (70 * 2.5 + 16 * 10) / 1e6
    assert row["n_break_full"] == pytest.approx(before / (api - here))


def test_two_concurrencies_are_refused():
    runs = pd.DataFrame([observation(), observation(concurrency=1)])
    with pytest.raises(ValueError, match="llama-1B_rag_lora_fp16 has two observations"):
        tables.variants_table(runs, None, PAPER)


def test_observations_without_a_key_are_refused():
    with pytest.raises(ValueError, match="precision"):
        tables.variants_table(pd.DataFrame([observation()]).drop(columns="precision"), None, PAPER)


def test_training_rows_that_were_passed_over_stand_beside_the_adaptation():
    rows = [
        observation(task=task, rows_passed_over=count)
        for task, count in (("rag", 0), ("dialogue", 37), ("summarization", None))
    ]
    table = tables.adaptation_table(pd.DataFrame(rows)).set_index("task")
    assert table.loc["dialogue", "rows_passed_over"] == 37
    assert "37 training rows passed over: too long" in table.loc["dialogue", "notes"]
    assert table.loc["rag", "rows_passed_over"] == 0
    assert np.isnan(table.loc["summarization", "rows_passed_over"])
    for task in ("rag", "summarization"):
        assert "passed over" not in table.loc[task, "notes"]


# --- intervals --------------------------------------------------------------------------------


def test_intervals_over_runs_and_none_from_one():
    runs = pd.DataFrame([observation(r) for r in (1, 2, 3)])
    row = tables.variants_table(runs, answers_of({"fp16": [0.2, 0.6]}), PAPER).iloc[0]
    half = stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert row["energy_per_request_j_lo"] == pytest.approx(4.2 - half)
    assert row["energy_per_request_j_hi"] == pytest.approx(4.2 + half)
    assert row["c_tax_lo"] < row["c_tax"] < row["c_tax_hi"]
    assert row["rho_sys_lo"] < row["rho_sys"] < row["rho_sys_hi"]

    one = tables.variants_table(runs.iloc[:1], answers_of({"fp16": [0.2, 0.6]}), PAPER).iloc[0]
    for column in ("energy_per_request_j", "c_tax", "rho_sys", "ipw"):
        assert np.isnan(one[f"{column}_lo"]), column
        assert np.isnan(one[f"{column}_hi"]), column
    assert np.isfinite(one["score_lo"])  # prompts are its observations


def test_repeating_a_run_does_not_narrow_the_interval_of_a_score():
    prompts = {"fp16": [0.1, 0.5, 0.9], "int4": [0.2, 0.4, 0.9]}
    once = answers_of(prompts)
    again = pd.concat([once, answers_of(prompts, repetition=2)])
    rows = []
    for answers, repetitions in ((once, [1]), (again, [1, 2])):
        runs = pd.DataFrame(
            [observation(r, precision=p) for p in ("fp16", "int4") for r in repetitions]
        )
        table = tables.variants_table(runs, answers, PAPER)
        rows.append(variant(table, "llama", "1B", "rag", "lora", "int4"))
    columns = ["score", "score_lo", "score_hi", "q_ret_pct", "q_ret_pct_lo", "q_ret_pct_hi"]
    assert rows[0][columns].tolist() == pytest.approx(rows[1][columns].tolist())
    assert rows[0]["q_ret_pct_lo"] < rows[0]["q_ret_pct"] < rows[0]["q_ret_pct_hi"]


def test_loads_are_pooled_over_the_tasks_of_a_configuration():
    runs = pd.DataFrame(
        [
            observation(task=task, load_energy_j=load)
            for task, load in (("rag", 70.0), ("summarization", 80.0), ("dialogue", 90.0))
        ]
    )
    runs["score"] = 0.5
    table = tables.variants_table(runs, None, PAPER)
    assert list(table["load_energy_j"]) == [70, 80, 90]
    assert (table["load_energy_j_pooled"] == 80).all()
    half = stats.t.ppf(0.975, 2) * 10 / np.sqrt(3)
    assert table["load_energy_j_pooled_hi"].tolist() == pytest.approx([80 + half] * 3)


# --- the other tables -------------------------------------------------------------------------


def test_reference_sets_adapted_variants_beside_the_base():
    base = observation(method="none", adapt_energy_j=None)
    runs = pd.DataFrame([base, observation()])
    answers = pd.concat(
        [
            answers_of({"fp16": [0.1, 0.2, 0.3]}, method="none"),
            answers_of({"fp16": [0.4, 0.4, 0.4]}),
        ]
    )
    table = tables.reference_table(runs, answers)
    assert list(table["method"]) == ["none", "lora"]
    adapted = table.iloc[1]
    assert adapted["score_difference"] == pytest.approx(0.2)
    half = stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert adapted["score_difference_lo"] == pytest.approx(0.2 - half)
    assert np.isnan(table.iloc[0]["score_difference"])
    assert adapted["answer_tokens_difference"] == 0
    assert tables.variants_table(runs, answers, PAPER)["method"].tolist() == ["lora"]


def ruled(scores, task="rag", **columns):
    rows = {"prompt_id": [f"p{i}" for i in range(len(scores))], "task": task, "score": scores}
    return pd.DataFrame(rows | {"rule": "says it", "content_rule": "says it"} | columns)


def test_reference_sets_every_variant_beside_answers_without_a_model():
    runs = pd.DataFrame([observation(method="none", adapt_energy_j=None), observation()])
    answers = pd.concat(
        [
            answers_of({"fp16": [0.1, 0.2, 0.3]}, method="none"),
            answers_of({"fp16": [0.4, 0.6, 0.8]}),
        ]
    ).assign(limit_reached=1.0, content=[0.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    prompts = answers["prompt_id"].unique()
    rules = ruled([0.5, 0.5, 0.5], content=[1.0, 0.0, 0.0], content_rule="says more")
    rules["prompt_id"] = prompts
    table = tables.reference_table(runs, answers, rules)
    assert list(table["method"]) == ["rule", "none", "lora"]
    rule, base, adapted = (row for _, row in table.iterrows())
    assert (rule["family"], rule["task"], rule["prompts"], rule["score"]) == (
        "no model", "rag", 3, 0.5,
    )  # fmt: skip
    assert "says it" in rule["notes"]
    assert "says more" in rule["notes"]
    assert np.isnan(rule["score_difference"])
    assert np.isnan(rule["energy_per_request_j"])
    assert adapted["score_difference_no_model"] == pytest.approx(0.1)
    half = stats.t.ppf(0.975, 2) * 0.2 / np.sqrt(3)
    assert adapted["score_difference_no_model_lo"] == pytest.approx(0.1 - half)
    assert adapted["score_difference_no_model_hi"] == pytest.approx(0.1 + half)
    assert base["score_difference_no_model"] == pytest.approx(-0.3)
    assert adapted["content_difference_no_model"] == pytest.approx(1 / 3)
    assert adapted["content_difference"] == pytest.approx(2 / 3)
    assert (base["limit_reached_share"], adapted["limit_reached_share"]) == (1, 1)
    assert "limit_reached" not in table
    # What the rules are scored by is what is compared, no more.
    assert "gold_nll_difference_no_model" not in table


def test_reference_pairs_by_prompt_and_task():
    runs = pd.DataFrame([observation(), observation(task="dialogue")])
    answers = pd.concat(
        [answers_of({"fp16": [0.4, 0.6]}), answers_of({"fp16": [0.9, 0.7]}).assign(task="dialogue")]
    )
    rules = pd.concat([ruled([0.6, 0.4]), ruled([0.1, 0.1], task="dialogue")])
    rules["prompt_id"] = answers["prompt_id"].to_numpy()
    backwards = rules.iloc[::-1].reset_index(drop=True)
    for given in (rules, backwards):
        table = tables.reference_table(runs, answers, given).set_index(["task", "method"])
        assert table.loc[("rag", "lora"), "score_difference_no_model"] == pytest.approx(0)
        assert table.loc[("dialogue", "lora"), "score_difference_no_model"] == pytest.approx(0.7)
        assert table.loc[("rag", "lora"), "score_difference_no_model_lo"] < -0.2


def test_headings_tell_what_a_difference_is_to():
    assert readable.heading("score_difference_no_model") == "score, difference to no model [0–1]"
    assert readable.heading("content") == "content alone [0–1]"


def test_serving_has_a_row_a_variant_and_concurrency():
    runs = pd.DataFrame(
        [observation(r, concurrency=c) for c in (8, 1) for r in (1, 2)]
        + [observation(method="none", concurrency=1)]
    )
    table = tables.serving_table(runs)
    assert table[["method", "concurrency", "repetitions"]].to_numpy().tolist() == [
        ["none", 1, 1], ["lora", 1, 2], ["lora", 8, 2],
    ]  # fmt: skip
    assert np.isnan(table.iloc[0]["throughput_tok_s_lo"])
    assert table.iloc[1]["throughput_tok_s_lo"] < table.iloc[1]["throughput_tok_s"]


def test_frontier_says_what_is_empty():
    runs = pd.DataFrame([observation(precision="int4", energy_per_request_j=None, score=0.5)])
    row = tables.frontier_table(tables.variants_table(runs, None, PAPER)).iloc[0]
    assert np.isnan(row["n_break"])
    assert "n_break: 1 INT4 variants empty" in row["notes"]
    runs = pd.DataFrame([observation(score=0.5)])
    row = tables.frontier_table(tables.variants_table(runs, None, PAPER)).iloc[0]
    assert row["notes"] == "no INT4 variant"
    assert np.isnan(row["ipw"])


def int4(method="lora", task="rag", **figures) -> dict:
    return observation(precision="int4", method=method, task=task, score=0.5) | figures


def frontier_of(rows: list[dict], **options) -> pd.Series:
    table = tables.variants_table(pd.DataFrame(rows), None, PAPER)
    return tables.frontier_table(table, **options).iloc[0]


@pytest.mark.parametrize("doubt", ["warning: warmed up (serve at 8)",
                                   "ok; invalid: interference (serve at 8)"])  # fmt: skip
def test_the_best_figure_is_never_a_doubtful_rows_while_there_is_another(doubt):
    best = int4(energy_per_request_j=1.0, validity=doubt)
    rows = [best, int4("qlora", energy_per_request_j=4.0, validity="ok")]
    row = frontier_of(rows)
    assert row["ipw"] == pytest.approx(0.5 / 4)
    worst = "invalid" if "invalid" in doubt else "warning"
    assert row["validity"].startswith(f"{worst}: 1 of 2 INT4 variants (")
    alone = frontier_of([best])
    assert alone["ipw"] == pytest.approx(0.5)
    assert alone["validity"].startswith(f"{worst}: 1 of 1")


def test_invalid_rows_are_left_out_of_means_too_and_reported():
    rows = [
        int4(throughput_tok_s=1.0, validity="invalid: interference (serve at 8)"),
        int4("qlora", throughput_tok_s=60.0, validity="ok"),
    ]
    row = frontier_of(rows)
    assert row["rho_sys"] == pytest.approx(60 / 0.5)
    assert "left out as invalid: 1 of 2" in row["notes"]
    assert "left out" not in (frontier_of(rows[:1])["notes"] or "")


def test_the_frontier_says_what_noise_cannot_order():
    rows = [
        int4(method, size=size, energy_per_request_j=energy, throughput_tok_s=speed)
        for size, energy, speed in (("1B", 4.0, 60.0), ("3B", 4.4, 30.0), ("8B", 40.0, 28.0))
        for method in ("lora", "qlora")
    ]
    table = tables.variants_table(pd.DataFrame(rows), None, PAPER)
    spread = pd.DataFrame({"relative_sd": [0.1] * 3}, ["energy_per_request_j", "rho_sys", "c_tax"])
    told = tables.frontier_table(table, spread=spread).set_index("size")["not_ordered"]
    assert "IPW: within noise of llama-3B" in told["1B"]
    assert "llama-8B" not in told["1B"].split("ρ_sys")[0]
    assert "ρ_sys: within noise of llama-8B" in told["3B"]
    assert "IPW: the largest of 2 variants, 1 of them within noise of it" in told["1B"]


def test_a_largest_figure_of_zero_has_none_within_noise():
    rows = [int4(method) | {"score": 0.0} for method in ("lora", "qlora")]
    table = tables.variants_table(pd.DataFrame(rows), None, PAPER)
    spread = pd.DataFrame({"relative_sd": [0.1] * 3}, ["energy_per_request_j", "rho_sys", "c_tax"])
    assert "-1" not in (tables.frontier_table(table, spread=spread)["not_ordered"][0] or "")


@pytest.mark.parametrize(
    ("function", "low"),
    [
        (lambda score, energy: 2 * score / energy, "paired"),
        (lambda score, energy: score - energy / 100, "of its values"),
    ],
)
def test_the_interval_of_another_function_is_its_own(function, low):
    runs = pd.DataFrame([observation(r, score=0.5 + 0.01 * r) for r in (1, 2, 3)])
    variants = tables.Variants(runs, None)
    variants.add("mine", function, "score", "energy_per_request_j", over="runs")
    row = variants.table().iloc[0]
    a, b = runs["score"].to_numpy(), runs["energy_per_request_j"].to_numpy()
    expected = mean_interval(function(a, b))
    if low == "paired":
        expected = [2 * bound for bound in paired_ratio_interval(a, b)]
    assert (row["mine_lo"], row["mine_hi"]) == pytest.approx(expected[1:])
    assert row["mine"] == pytest.approx(function(a.mean(), b.mean()))


def test_a_line_says_the_range_of_what_is_folded_percentages_not_by_tens():
    rows = [observation(1, precision=p, score=s) for p, s in (("fp16", 0.6), ("int8", 0.619))]
    variants = tables.Variants(pd.DataFrame(rows), None)
    variants.compare("q_ret_pct", lambda one, whole: 100 * one / whole, column="score")
    assert "Q_ret of 2 variants: 100 to 103" in variants.fold("q_ret_pct", 2)


def test_the_range_of_an_estimate_reaches_the_metrics():
    ranges = {
        f"{name}_energy_{end}_j": factor * value
        for name, value in {"adapt": 1000.0, "compress": 10.0, "load": 81.0}.items()
        for end, factor in (("lo", 0.5), ("hi", 3.0))
    }
    ranges |= {"energy_per_request_lo_j": 4.1 / 2, "energy_per_request_hi_j": 4.1 * 3}
    row = tables.variants_table(pd.DataFrame([observation(score=0.6) | ranges]), None, PAPER).iloc[
        0
    ]
    assert row["ipw_estimate_lo"] == pytest.approx(0.6 / 4.1 / 3)
    assert row["ipw_estimate_hi"] == pytest.approx(0.6 / 4.1 * 2)
    assert row["score_per_watt_estimate_lo"] == pytest.approx(0.03 / 3)
    thrice = tables.variants_table(
        pd.DataFrame([observation(score=0.6, adapt_energy_j=3000.0, energy_per_request_j=12.3)]),
        None, PAPER,
    ).iloc[0]  # fmt: skip
    assert row["n_break_estimate_hi"] == pytest.approx(thrice["n_break"])
    least, most = (row[f"n_break_full_estimate_{end}"] for end in ("lo", "hi"))
    assert least < row["n_break_full"] < most
    assert not any(c.startswith("c_tax_estimate") for c in row.index)  # it cancels
    measured = tables.variants_table(pd.DataFrame([observation(score=0.6)]), None, PAPER).iloc[0]
    assert np.isnan(measured["ipw_estimate_lo"])


def test_a_tax_of_the_model_alone_stands_beside_with_its_interval():
    runs = pd.DataFrame(
        [observation(r, score=0.5, load_model_energy_j=20.0 + r) for r in (1, 2, 3)]
    )
    row = tables.variants_table(runs, None, PAPER).iloc[0]
    assert row["c_tax_model"] == pytest.approx(22 / 4.2)
    assert row["c_tax_model_lo"] < row["c_tax_model"] < row["c_tax_model_hi"]


def test_adaptation_tells_the_ratio_with_and_without_loading_and_its_dtypes():
    rows = [
        observation(method=m, precision=p, adapt_energy_j=load + train, adapt_train_energy_j=train,
                    adapt_executed_dtype=dtype, score=0.5)
        for m, p, load, train, dtype in (
            ("lora", "fp16", 10.0, 100.0, "float32"), ("qlora", "int4", 40.0, 120.0, "bfloat16"),
        )
    ]  # fmt: skip
    row = tables.adaptation_table(pd.DataFrame(rows)).iloc[0]
    assert row["energy_ratio"] == pytest.approx(160 / 110)
    assert row["train_energy_ratio"] == pytest.approx(1.2)
    assert row["executed_dtype"] == "float32; bfloat16"
    assert "ratios: LoRA computed in float32, QLoRA in bfloat16" in row["notes"]


@pytest.mark.parametrize("column", list(columns.MIXED))
def test_what_rows_do_not_share_is_reported(column):
    table = pd.DataFrame({"precision": ["fp16", "int4"], column: ["one", "other"]})
    (told,) = columns.mixed(table)
    assert "one" in told
    assert "other" in told
    assert columns.mixed(table.assign(**{column: "one"})) == []
    assert columns.mixed(table.assign(**{column: ["one", None]})) == []


def test_break_even_below_one_request_is_said_so_to_people():
    table = pd.DataFrame({"n_break": [0.004, 0.0, 1.4], "n_break_full": [1234567.0, 0.5, np.inf]})
    shown = readable.readable(table, digits=2)
    assert shown["N_break [requests]"].tolist() == ["< 1", "< 1", "1.4"]
    full = shown["N_break, full accounting [requests]"].tolist()
    assert full == ["1,200,000", "< 1", "never"]


def test_digits_are_no_more_than_asked_for():
    assert [readable.format_number(v, 2) for v in (64.3, 0.1234, 1234.0, 9.96)] == [
        "64", "0.12", "1,200", "10",
    ]  # fmt: skip


def test_unknown_rule_is_refused(paper):
    with pytest.raises(ValueError, match="rule"):
        tables.frontier_table(paper, rule="mode")


def test_sizes_sort_by_parameters():
    sizes = ["8B", "135M", "1.5B", "unknown"]
    assert sorted(sizes, key=columns.parameters_of) == ["135M", "1.5B", "8B", "unknown"]


def test_csv_keeps_every_digit_and_leaves_gaps_empty(tmp_path, paper):
    path = tables.write_table(paper, tmp_path / "new" / "variants.csv")
    back = pd.read_csv(path)
    assert back["ipw"].tolist() == paper["ipw"].tolist()
    assert back["adapt_peak_memory_gb"].isna().all()
    assert ",nan" not in path.read_text().lower()


def test_the_order_of_rows_does_not_matter():
    runs = pd.DataFrame(
        [
            observation(r, method=m, precision=p, task=t, score=0.5)
            for r in (1, 2)
            for m, p in CONFIGURATIONS
            for t in ("rag", "dialogue")
        ]
    )
    table = tables.variants_table(runs, None, PAPER)
    shuffled = tables.variants_table(runs.sample(frac=1, random_state=1), None, PAPER)
    pd.testing.assert_frame_equal(table, shuffled)
