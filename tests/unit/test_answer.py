"""The answer to a study's question: right for every kind of study, with its doubt."""

import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.economics import published
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.results import answer, tables
from edge_eval_lib.uncertainty import single_run_spread

BOOK = load_price_book()
PAPER = BOOK.prices("paper")
KEY = {"family": "smollm2", "size": "135M", "task": "rag", "method": "lora", "precision": "fp16"}
TOPICS = ["Quality", "Energy", "Break-even", "Memory", "Cold start", "Verdict"]


def row(**changes) -> dict:
    """A variant as the embedded study measured one, on two cores."""
    return KEY | {
        "repetitions": 1, "concurrency": 8.0, "score": 0.74, "scored_prompts": 24,
        "n_break": 0.0045, "n_break_estimate_lo": 0.0019, "n_break_estimate_hi": 0.013,
        "n_break_full": 1.51e6, "n_break_full_least": 1.43, "n_break_full_most": 2.33e9,
        "energy_per_request_j": 2.6, "energy_per_request_lo_j": 1.066,
        "energy_per_request_hi_j": 7.54, "ipw": 0.28, "rho_sys": 41.0, "memory_gb": 1.19,
        "throughput_tok_s": 49.0, "load_s": 5.06, "load_energy_j": 21.0, "c_tax": 8.06,
        "c_tax_model": 2.12, "q_ret_pct": 100.0, "q_ret_pct_lo": np.nan, "q_ret_pct_hi": np.nan,
        "keep_warm_s": np.nan, "validity": "ok",
        "notes": "keep_warm_s: no idle power is known; q_ret_pct: 100 by definition",
    } | changes  # fmt: skip


def int4(**changes) -> dict:
    figures = {"score": 0.58, "q_ret_pct": 77.6, "q_ret_pct_lo": 64.3, "q_ret_pct_hi": 91.1}
    figures |= {"memory_gb": 0.83, "throughput_tok_s": 25.0, "ipw": 0.11, "n_break_full": 1.54e6}
    return row(precision="int4", **(figures | changes))


EMBEDDED = pd.DataFrame([
    row(),
    int4(),
    int4(method="qlora", score=0.6, q_ret_pct=95.0, q_ret_pct_lo=88.0, q_ret_pct_hi=104.0,
         n_break=0.0053, energy_per_request_j=3.0, rho_sys=37.0),
])  # fmt: skip


@pytest.fixture(scope="module")
def t4() -> dict[str, str]:
    table = tables.variants_table(
        published.observations(), None, PAPER, BOOK.scenario_prices(PAPER), price_set="paper"
    )
    return answer.sentences(table, single_run_spread(table, ["energy_per_request_j", "rho_sys"]),
                            prices=PAPER)  # fmt: skip


def test_there_is_a_sentence_a_topic_and_the_verdict_comes_last():
    texts = answer.sentences(EMBEDDED)
    assert list(texts) == TOPICS
    shown = str(answer.shown(texts))
    assert shown.startswith("- **Quality.** Compressed, smollm2-135M keeps")
    assert shown.replace("*", "").endswith(f"Verdict: {texts['Verdict']}")
    assert "78\N{NO-BREAK SPACE}%" in shown
    assert [line[:4] for line in shown.splitlines() if line.startswith("- ")] == ["- **"] * 5


def test_quality_names_the_losses_that_the_prompts_show():
    text = answer.sentences(EMBEDDED)["Quality"]
    assert "keeps 78 to 95 % of LoRA FP16's score" in text
    assert "1 of 2 are shown to lose: LoRA INT4 (78 % [64, 91])" in text
    assert "16 to 27 points wide" in text
    assert "(24 prompts a variant)" in text
    unsure = EMBEDDED.assign(q_ret_pct_hi=[np.nan, 101.0, 104.0])
    assert "none of the 2 is shown to lose" in answer.sentences(unsure)["Quality"]


def test_a_warning_about_speed_does_not_hide_a_loss_of_quality():
    table = pd.DataFrame([row(), int4(validity="warning: warmed up (serve at 8)")])
    texts = answer.sentences(table)
    assert "LoRA INT4 (78 %" in texts["Quality"]
    assert "doubtful variants are left out: 1" in texts["Verdict"]
    assert "takes 2.6 J" in texts["Energy"]


def test_energy_has_the_estimates_range_and_what_chance_alone_does():
    spread = pd.DataFrame({"relative_sd": {"energy_per_request_j": 0.14, "rho_sys": 0.1}})
    texts = answer.sentences(EMBEDDED, spread)
    assert "takes 2.6 to 3.0 J with 8 in flight" in texts["Energy"]
    assert "LoRA FP16 (0.28)" in texts["Energy"]
    assert "0.36 to 2.9 times" in texts["Energy"]  # of 3.0 J, whose range is that of 2.6
    assert "differ up to 1.5 times" in texts["Energy"]  # exp(1.96 sqrt(2) 0.14)
    assert "differ up to 1.3 times" in texts["Memory"]
    assert "none has a twin" in answer.sentences(EMBEDDED)["Energy"]


def test_repeated_runs_have_intervals_and_no_noise_floor():
    table = pd.DataFrame([row(repetitions=3, energy_per_request_j_lo=2.34,
                              energy_per_request_j_hi=2.86)])  # fmt: skip
    text = answer.sentences(table)["Energy"]
    assert "95 % intervals over runs reach ±10 %" in text
    assert "twin" not in text


def test_both_accountings_stand_side_by_side_with_what_parts_them():
    text = answer.sentences(EMBEDDED, prices=PAPER)["Break-even"]
    assert "after 0.0045 to 0.0053 requests, before the first is over" in text
    assert "(0.0019 to 0.013 by the estimate's range)" in text
    assert "512 USD of labour" in text
    assert "after 1.5 million requests, by other prices anywhere from 1.4 requests to" in text
    assert "to 2.3 billion" in text
    assert "what is counted decides" in text


def test_the_published_figures_pay_after_requests_that_can_be_counted(t4):
    assert "after 2.0 to 72 requests" in t4["Break-even"]
    assert "before the first is over" not in t4["Break-even"]
    assert "keeps 91 to 110 %" in t4["Quality"]
    assert "without intervals" in t4["Quality"]
    assert "only from about 160,000 requests on" in t4["Verdict"]
    assert "estimated" not in t4["Energy"]
    assert "differ up to" in t4["Energy"]
    assert "not known (not measured)" in t4["Cold start"]


def test_a_study_of_zeros_is_not_worth_it_and_its_score_is_no_missing_figure():
    zeros = EMBEDDED.assign(score=0.0, ipw=0.0, q_ret_pct=np.nan,
                            notes="q_ret_pct: lora/fp16 scored 0")  # fmt: skip
    texts = answer.sentences(zeros)
    assert texts["Quality"].startswith("Every variant scores 0 (24 prompts a variant)")
    assert "a joule buys no quality" in texts["Energy"]
    assert texts["Verdict"].startswith("no,")


def test_one_variant_has_nothing_beside_it():
    texts = answer.sentences(pd.DataFrame([row()]))
    assert "no variant stands beside LoRA FP16" in texts["Quality"]
    assert "takes 2.6 J" in texts["Energy"]
    assert "at its peak and yields 41 tokens" in texts["Memory"]
    assert "LoRA INT4" not in " ".join(texts.values())


def test_a_variant_without_fp16_beside_it_says_why():
    alone = pd.DataFrame([int4(q_ret_pct=np.nan, notes="q_ret_pct: lora/fp16 has no score")])
    assert "is not known (LoRA FP16 has no score)" in answer.sentences(alone)["Quality"]


@pytest.mark.parametrize("columns", [[], ["score"], ["n_break"], ["energy_per_request_j", "ipw"]])
def test_missing_columns_are_said_to_be_missing(columns):
    texts = answer.sentences(EMBEDDED[[*KEY, *columns]])
    assert list(texts) == TOPICS
    assert "nan" not in " ".join(texts.values()).lower()
    assert "not in these tables" in texts["Memory"]
    if not columns:
        assert texts["Verdict"].startswith("whether it saves money is not known")


def test_an_unmeasured_figure_has_its_reason():
    unknown = ["energy_per_request_j", "ipw", "n_break", "n_break_full", "c_tax"]
    why = [f"{column}: no counter is readable" for column in ("energy_per_request_j", "n_break")]
    unmeasured = EMBEDDED.assign(**dict.fromkeys(unknown, np.nan), notes="; ".join(why))
    texts = answer.sentences(unmeasured)
    for topic in ("Energy", "Break-even", "Cold start"):
        assert "no counter is readable" in texts[topic]
    assert "takes 5.1 s" in texts["Cold start"]


@pytest.mark.parametrize("both", [True, False])
def test_what_never_pays_is_not_for_money(both):
    never = EMBEDDED.assign(n_break_full=np.inf, n_break_full_least=np.inf,
                            n_break_full_most=np.inf)  # fmt: skip
    never = never.assign(n_break=np.inf) if both else never
    texts = answer.sentences(never)
    assert "never pays (the API costs no more than serving here)" in texts["Break-even"]
    assert "anywhere from" not in texts["Break-even"]
    assert texts["Verdict"].startswith("not to save money")


def test_some_that_never_pay_are_counted():
    table = EMBEDDED.assign(n_break_full=[1.5e6, np.inf, 1.6e6])
    assert "for 1 of 3 variants never" in answer.sentences(table)["Break-even"]


def test_invalid_rows_alone_give_no_verdict():
    table = EMBEDDED.assign(validity="invalid: interference (serve at 8)")
    assert answer.sentences(table)["Verdict"].startswith("not to be said")


def test_several_models_and_tasks_are_named_where_they_differ():
    other = pd.DataFrame([row(size="360M", task="dialogue", ipw=0.4)])
    texts = answer.sentences(pd.concat([EMBEDDED, other], ignore_index=True))
    assert "smollm2-135M rag LoRA FP16 (0.28)" in texts["Energy"]
    assert "smollm2-360M dialogue LoRA FP16 (0.40)" in texts["Energy"]


def test_a_model_that_no_rule_is_shown_to_trail_is_doubted():
    reference = pd.DataFrame([KEY | {"score_difference_no_model_lo": -0.05}])
    text = answer.sentences(EMBEDDED, reference=reference)["Verdict"]
    assert "on rag it is not shown to beat a rule without a model" in text
    better = reference.assign(score_difference_no_model_lo=0.05)
    assert "without a model" not in answer.sentences(EMBEDDED, reference=better)["Verdict"]
