"""Verdicts are computed: the known ones come out, and every one flips when its input does."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib.economics.published import MODEL
from edge_eval_lib.paper import claims, evidence, published
from edge_eval_lib.paper.finding import VERDICTS
from edge_eval_lib.paper.rules import RULES


@pytest.fixture(scope="module")
def figures():
    return published.load()


@pytest.fixture(scope="module")
def judged(figures):
    return claims.judge(evidence.evidence(figures)).set_index("claim_id")


EXPECTED = {
    **{f"n_break_{m}": "other statistic" for m in ("llama_1b", "llama_7b", "qwen_1_5b", "qwen_3b",
                                                    "qwen_7b")},
    "n_break_llama_3b": "reproduced",  # its median rounds to the same
    "rho_sys_llama_7b": "reproduced",  # likewise
    "headline_statistic": "other statistic",
    "qlora_energy_llama_1b": "reproduced",
    "qlora_energy_llama_3b": "reproduced",
    "qlora_energy_llama_7b": "not reproduced",
    "qlora_energy_qwen_1_5b": "not reproduced",
    "qlora_energy_max": "reproduced",
    "qlora_memory": "not checkable",
    "qlora_paradox_eases": "reproduced",
    "density_17x": "reproduced",
    "fidelity_97": "reproduced",
    "fidelity_rag_summ": "not reproduced",
    "cold_start_range": "other statistic",
    "small_frontier": "reproduced",
    "int4_free": "reproduced",
    "batch_one": "not reproduced",
    "runs_20": "not checkable",
    "variants_72": "reproduced",
    "ipw_ranking": "other statistic",
    "ipw_3x": "reproduced",
    "density_6900": "other statistic",
    "cold_start_100_large": "reproduced",
    "n_break_below_20": "reproduced",
    "api_price": "not reproduced",
    "evaluation_samples": "not reproduced",
    "judge_model": "not checkable",
    "equal_compute": "not reproduced",
}  # fmt: skip


@pytest.mark.parametrize(("claim_id", "verdict"), EXPECTED.items())
def test_verdict(judged, claim_id, verdict):
    assert judged.loc[claim_id, "verdict"] == verdict


def test_every_claim_has_a_known_verdict_a_rule_and_a_value_or_a_reason(judged):
    assert set(judged["verdict"]) <= set(VERDICTS)
    assert (judged["rule"].str.len() > 10).all()
    unknown = judged["recomputed"].isna()
    assert (unknown == (judged["verdict"] == "not checkable")).all()
    assert (judged.loc[unknown, "note"].str.len() > 10).all()


def test_another_statistic_is_always_named(judged):
    other = judged["verdict"] == "other statistic"
    assert (judged["statistic"].str.len() > 0).eq(other).all()


def test_two_cells_are_marked_as_coincidences_with_what_their_column_is(figures, judged):
    marked = judged[judged["coincidence"]]
    assert set(marked.index) == {"n_break_llama_3b", "rho_sys_llama_7b"}
    assert marked["note"].str.startswith("a coincidence: the other cells of the column are").all()
    assert marked["note"].str.contains("mean").all()
    raw = published.tables_of(figures)
    all_medians(raw)  # where every cell is a median, none is one by coincidence
    raw["claims"] = raw["claims"][raw["claims"]["source"] == "headline table"]
    assert not claims.judge(evidence.evidence(published.check(**raw)))["coincidence"].any()


@pytest.mark.parametrize(
    ("claim_id", "words", "hinges"),
    [
        ("density_17x", ["mean over mean 17.74: not", "17.59 to 17.91: not"], True),
        ("ipw_3x", ["mean over mean 3.24: repr", "largest over largest 2.98: repr"], False),
        ("equal_compute", ["energy of a family's sizes, up to 7.1 times: not"], False),
        ("int4_free", ["worst keeps 91.4 %: not"], True),
        ("qlora_energy_max", ["row of that model in the paper's own energy table 2.3: not"], True),
        ("fidelity_97", ["QLoRA-INT4 alone 15 of 18: not", "both together 32 of 36: not"], True),
        ("n_break_below_20", ["LoRA-INT4 alone 6 of 6: repr", "alone 1 of 6: not"], True),
        ("qlora_paradox_eases", ["falls in 4 of 6 series: not", "in seconds"], True),
        ("small_frontier", ["places of larger models: rag 4 of 6"], True),
        ("qlora_kwh_llama_1b", ["adaptation alone 0.2499 kWh: not"], True),
        ("qlora_memory", ["this kit's own model", "not reproduced"], False),
    ],
)
def test_a_verdict_shows_what_another_choice_would_give(judged, claim_id, words, hinges):
    for word in words:
        assert word in judged.loc[claim_id, "other_choices"]
    assert judged.loc[claim_id, "hinges"] == hinges


def test_another_choice_is_computed(figures):
    raw = published.tables_of(figures)
    printed(raw, "density_17x", "17.7")
    assert finding(raw, "density_17x").choices["mean over mean 17.74"]


def test_the_caption_may_also_mean_runs_which_cannot_be_checked(judged):
    assert "median over the 20 runs cannot be checked" in judged.loc["headline_statistic", "note"]


def test_what_is_not_reproduced_says_what_the_figures_show(judged):
    failed = judged[judged["verdict"] == "not reproduced"]
    assert (failed["note"].str.len() > 20).all()


def test_cells_are_kept_apart_from_claims(judged):
    cells = judged[judged["kind"] == "cell"]
    assert cells["source"].value_counts().to_dict() == {
        "headline table": 30,
        "QLoRA energy table": 12,
    }
    assert pd.to_numeric(cells["paper_value"]).notna().all()


def test_the_kits_model_of_training_memory_saves_far_less_than_60_percent():
    table = evidence.modelled_training_memory()
    assert len(table) == 6
    assert table["saved_pct"].between(0, 55).all()
    llama = table[table["family"] == "llama"]["saved_pct"]
    assert llama.is_monotonic_increasing


def test_the_argument_of_a_claim_stands_below_it(judged):
    shown = claims.for_people(judged.reset_index()).set_index("claim_id")
    lines = shown.loc["density_17x", "claim"].split("\n")
    assert lines[0] == judged.loc["density_17x", "statement"]
    assert lines[1].startswith("Rule: LLaMA-1B over")
    assert lines[2].startswith("By another choice: mean over mean 17.74: not reproduced")
    assert shown.loc["n_break_llama_1b", "verdict"] == "≈ other statistic: mean"
    assert shown.loc["n_break_llama_3b", "verdict"] == "✓ reproduced, by coincidence"
    assert shown.loc["density_17x", "verdict"] == "✓ reproduced, by this choice"
    assert shown.loc["ipw_3x", "verdict"] == "✓ reproduced"


# --- the headline table -----------------------------------------------------------------------


def test_all_30_cells_come_out_by_one_statistic_a_column(figures):
    cells = evidence.evidence(figures).headline
    assert len(cells) == 30
    assert all(
        evidence.agrees(p, v) for p, v in zip(cells["printed"], cells["recomputed"], strict=True)
    )
    assert cells.groupby("metric")["statistic"].first().to_dict() == {
        "n_break": "mean",
        "ipw": "largest",
        "rho_sys": "mean",
        "q_ret_pct": "mean, LoRA-INT4 alone",
        "c_tax": "mean",
    }


def test_llama_1bs_14_is_3_7_for_lora_and_24_for_qlora(figures):
    cells = evidence.evidence(figures).headline.set_index([*MODEL, "metric"])
    row = cells.loc[("llama", "1B", "n_break")]
    assert row["median"] == pytest.approx(11.8, abs=0.01)
    assert row["mean, LoRA-INT4 alone"] == pytest.approx(3.7, abs=0.01)
    assert row["mean, QLoRA-INT4 alone"] == pytest.approx(24.0, abs=0.01)


def test_a_column_without_a_single_statistic_has_none(figures):
    raw = published.tables_of(figures)
    at = raw["claims"]["claim_id"] == "c_tax_qwen_3b"
    raw["claims"].loc[at, "value"] = "187"
    proof = evidence.evidence(published.check(**raw))
    cells = proof.headline.set_index("metric")
    assert cells.loc["c_tax", "statistic"].isna().all()
    assert cells.loc["c_tax", "recomputed"].isna().all()
    assert finding(raw, "headline_statistic").verdict == "not reproduced"


# --- digits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "value", "same"),
    [
        ("14", 13.84, True),
        ("14", 14.51, False),
        ("0.45", 0.4484, True),
        ("0.45", 0.4449, False),
        ("100.6", 100.602, True),
        ("6930", 6929.79, True),
        ("6930", 6929.4, False),
    ],
)
def test_a_value_agrees_to_the_digits_printed(printed, value, same):
    assert evidence.agrees(printed, value) is same


@given(st.floats(0.001, 1e5), st.integers(0, 4))
def test_every_number_agrees_with_itself_printed(value, digits):
    assert evidence.agrees(f"{value:.{digits}f}", value)


# --- every verdict flips ----------------------------------------------------------------------

NUMERIC = [
    "n_break_llama_1b", "ipw_qwen_3b", "rho_sys_llama_7b", "q_ret_llama_3b", "c_tax_qwen_7b",
    "lora_kwh_llama_1b", "qlora_kwh_llama_3b", "qlora_energy_llama_1b", "qlora_energy_max",
    "density_17x", "ipw_3x", "variants_72",
]  # fmt: skip


@pytest.mark.parametrize("claim_id", NUMERIC)
@pytest.mark.slow
def test_another_printed_value_is_not_reproduced(figures, claim_id):
    raw = published.tables_of(figures)
    at = raw["claims"]["claim_id"] == claim_id
    printed = raw["claims"].loc[at, "value"].iloc[0]
    digits = len(printed.partition(".")[2])
    raw["claims"].loc[at, "value"] = f"{float(printed) * 1.5:.{digits}f}"
    assert finding(raw, claim_id).verdict == "not reproduced"


def finding(raw, claim_id):
    """A claim judged by other figures."""
    proof = evidence.evidence(published.check(**raw))
    claim = evidence.by(proof.figures.claims, claim_id=claim_id).iloc[0]
    return RULES[claim["rule"]](claim, proof)


def rows(raw, name, **which):
    table = raw[name]
    return (table[list(which)] == list(which.values())).all(axis=1)


def scale(raw, name, factor, *columns, **which):
    at = rows(raw, name, **which)
    for column in columns:
        raw[name][column] = raw[name][column].astype(float)
        raw[name].loc[at, column] *= factor


def printed(raw, claim_id, value):
    raw["claims"].loc[raw["claims"]["claim_id"] == claim_id, "value"] = value


ADAPTATION = ("adapt_energy_j", "adapt_s")
SCORE = ("score_mean", "score_median", "score_std")
SERVING = ("serve_energy_j", "power_mean_w", "power_peak_w")


def median_of_llama_1b(raw):
    printed(raw, "n_break_llama_1b", "12")


def all_medians(raw):
    cells = evidence.evidence(published.check(**raw)).headline
    for _, cell in cells.iterrows():
        at = rows(raw, "claims", rule=cell["metric"], family=cell["family"], size=cell["size"])
        digits = len(cell["printed"].partition(".")[2])
        raw["claims"].loc[at, "value"] = f"{cell['median']:.{digits}f}"


def memory_falls(factor):
    def change(raw):
        table = raw["adaptation"]
        table["adapt_peak_memory_gb"] = [
            10.0 * (factor if m == "qlora" else 1) for m in table["method"]
        ]

    return change


def repeated(times):
    def change(raw):
        raw["serving"] = pd.concat(
            [raw["serving"].assign(repetition=i) for i in range(1, times + 1)], ignore_index=True
        )

    return change


def judged_by(model):
    def change(raw):
        raw["quality"]["judge_model"] = model

    return change


def one_in_flight(raw):
    """A request at a time: the published time per token, a thirtieth of the speed."""
    table = raw["serving"]
    in_flight = table["throughput_tok_s"] * table["tpot_mean_ms"] / 1e3
    table["throughput_tok_s"] /= in_flight
    table["serve_s"] *= in_flight
    table["serve_energy_j"] *= in_flight


def forty_samples(raw):
    table = raw["quality"]
    table["score_median"] = (table["score_median"] * 40).round() / 40
    table["score_mean"] = table["score_median"]
    table["score_std"] = 0.0


def equal_compute(raw):
    known = raw["models"].set_index(MODEL)["parameters"]
    parameters = known.reindex(pd.MultiIndex.from_frame(raw["adaptation"][MODEL])).to_numpy()
    raw["adaptation"]["train_examples"] = (4e13 / parameters).astype(int)


def ten_times_as_dear(raw):
    scale(raw, "adaptation", 10, *ADAPTATION)


FLIPS = [
    # claim, what changes, the verdict then
    ("n_break_llama_1b", median_of_llama_1b, "reproduced"),
    ("n_break_llama_1b",
     lambda r: scale(r, "adaptation", 2, *ADAPTATION, family="llama", size="1B"),
     "not reproduced"),
    ("ipw_llama_1b", lambda r: scale(r, "serving", 1.1, *SERVING, family="llama", size="1B"),
     "not reproduced"),
    ("rho_sys_qwen_7b",
     lambda r: scale(r, "serving", 1.02, "throughput_tok_s", family="qwen", size="7B"),
     "not reproduced"),
    ("q_ret_qwen_3b",
     lambda r: scale(r, "quality", 0.9, *SCORE, family="qwen", size="3B", precision="int4"),
     "not reproduced"),
    ("c_tax_llama_7b", lambda r: scale(r, "serving", 1.1, "load_s", family="llama", size="8B"),
     "not reproduced"),
    ("headline_statistic", all_medians, "reproduced"),
    ("lora_kwh_llama_1b",
     lambda r: scale(r, "adaptation", 1.1, *ADAPTATION, family="llama", size="1B"),
     "not reproduced"),
    ("qlora_kwh_llama_7b", lambda r: printed(r, "qlora_kwh_llama_7b", "0.620"), "reproduced"),
    ("qlora_energy_qwen_1_5b", lambda r: printed(r, "qlora_energy_qwen_1_5b", "7.2"),
     "reproduced"),
    ("qlora_energy_llama_3b",
     lambda r: scale(r, "adaptation", 1.1, *ADAPTATION, family="llama", size="3B",
                     method="qlora"),
     "not reproduced"),
    ("qlora_energy_max",
     lambda r: scale(r, "adaptation", 1.5, *ADAPTATION, method="qlora"), "not reproduced"),
    ("qlora_memory", memory_falls(0.4), "reproduced"),
    ("qlora_memory", memory_falls(0.9), "not reproduced"),
    ("qlora_paradox_eases",
     lambda r: scale(r, "adaptation", 4, *ADAPTATION, family="qwen", size="7B", method="qlora"),
     "not reproduced"),
    ("density_17x",
     lambda r: scale(r, "serving", 1.2, "throughput_tok_s", family="llama", size="1B"),
     "not reproduced"),
    ("ipw_3x", lambda r: scale(r, "serving", 0.8, *SERVING, family="llama", size="1B"),
     "not reproduced"),
    ("density_6900",
     lambda r: scale(r, "serving", 1.04, "throughput_tok_s", family="llama", size="1B"),
     "reproduced"),
    ("density_6900",
     lambda r: scale(r, "serving", 0.8, "throughput_tok_s", family="llama", size="1B"),
     "not reproduced"),
    ("fidelity_97", lambda r: printed(r, "fidelity_97", "99"), "not reproduced"),
    ("fidelity_97", lambda r: scale(r, "quality", 0.97, *SCORE, precision="int4"),
     "not reproduced"),
    ("fidelity_rag_summ", lambda r: scale(r, "quality", 1.05, *SCORE, precision="int4"),
     "reproduced"),
    ("cold_start_range", lambda r: printed(r, "cold_start_range", "139-212"), "reproduced"),
    ("cold_start_range", lambda r: scale(r, "serving", 1.2, "load_s"), "not reproduced"),
    ("cold_start_100_large", lambda r: scale(r, "serving", 0.5, "load_s", size="7B"),
     "not reproduced"),
    ("small_frontier",
     lambda r: scale(r, "serving", 0.1, *SERVING, family="llama", size="8B"), "not reproduced"),
    ("int4_free",
     lambda r: scale(r, "serving", 0.4, "throughput_tok_s", precision="int4", size="3B"),
     "not reproduced"),
    ("int4_free", lambda r: scale(r, "quality", 0.95, *SCORE, precision="int4"),
     "not reproduced"),
    ("batch_one", one_in_flight, "reproduced"),
    ("runs_20", repeated(20), "reproduced"),
    ("runs_20", repeated(3), "not reproduced"),
    ("variants_72", lambda r: printed(r, "variants_72", "71"), "not reproduced"),
    ("ipw_ranking",
     lambda r: scale(r, "serving", 0.5, *SERVING, family="llama", size="3B"), "not reproduced"),
    ("n_break_below_20", ten_times_as_dear, "not reproduced"),
    ("api_price", lambda r: printed(r, "api_price", "0.00125"), "reproduced"),
    ("evaluation_samples", forty_samples, "reproduced"),
    ("judge_model", judged_by("GPT-4o"), "reproduced"),
    ("judge_model", judged_by("another"), "not reproduced"),
    ("equal_compute", equal_compute, "reproduced"),
]  # fmt: skip


@pytest.mark.parametrize(("claim_id", "change", "expected"), FLIPS)
@pytest.mark.slow
def test_verdict_flips_with_its_input(figures, judged, claim_id, change, expected):
    raw = published.tables_of(figures)
    change(raw)
    assert expected != judged.loc[claim_id, "verdict"]
    assert finding(raw, claim_id).verdict == expected


def test_every_rule_has_a_claim_that_flips(figures):
    rules = figures.claims.set_index("claim_id")["rule"]
    flipped = {rules[claim_id] for claim_id, _, _ in FLIPS}
    assert flipped == set(rules) == set(RULES)


def test_a_claim_with_an_unknown_rule_is_refused(figures):
    raw = published.tables_of(figures)
    raw["claims"].loc[0, "rule"] = "vibes"
    with pytest.raises(ValueError, match="n_break_llama_1b names no known rule: 'vibes'"):
        claims.judge(evidence.evidence(published.check(**raw)))


# --- what the rules stand on ------------------------------------------------------------------


def test_the_api_price_is_gpt_4os_input_price_for_500_tokens(judged):
    assert judged.loc["api_price", "recomputed"] == pytest.approx(2.50 * 500 / 1e6, rel=0.02)


def test_the_paradox_eases_in_four_of_six_series_of_energy(figures):
    series = evidence.eases_with_size(evidence.evidence(figures))
    tasks = series[(series["quantity"] == "energy") & (series["series"] != "means")]
    assert (tasks["falls"].sum(), len(tasks)) == (4, 6)


def test_samples_per_pass_are_200(figures):
    assert evidence.samples_per_pass(figures.quality) == 200


def test_no_number_of_samples_fits_arbitrary_medians(figures):
    medians = np.random.default_rng(0).uniform(0, 1, len(figures.quality)).round(6)
    odd = figures.quality.assign(score_median=medians)
    assert evidence.samples_per_pass(odd) is None
