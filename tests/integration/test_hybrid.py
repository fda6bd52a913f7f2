"""Both sides of a question: pairing, what each answer took, agreement, failures, a forecast."""

import math

import numpy as np
import pandas as pd
import pytest
from tiny import write_tiny_study

from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.errors import UserError
from edge_eval_lib.results import escalation, hybrid
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.results.observations import Results
from edge_eval_lib.study import load_study
from edge_eval_lib.tasks import load_task

TASKS = ("onepassage", "oncloud", "sampled", "hybrid")
PRICES = load_price_book().prices("desktop")
# Of 50 tokens read and 3 answered, at the study's prices per million.
LISTED = (50 * PRICES.api_input_usd_per_mtok + 3 * PRICES.api_output_usd_per_mtok) / 1e6
ENERGY_J = {"onepassage": 2.0, "oncloud": 5.0, "sampled": 4.0, "hybrid": 4.5}
# Of four questions: who is right; the cloud does not answer the last.
RIGHT = {"onepassage": [1, 0, 0, 1], "oncloud": [1, 1, 0, None], "hybrid": [1, 1, 0, 1]}
LOGPROBS = [-0.1, -0.9, -0.8, -0.2]
BELOW = -0.5


def key(task):
    return ("tinyllama", "0.1M", task, "lora", "int4")


def calls(task, prompts):
    """The requests of an arm: its calls by prompt, the cloud's by its role."""
    rows = []
    for place, prompt in enumerate(prompts):
        roles = {"onepassage": [None], "oncloud": ["cloud"], "sampled": [None, None]}.get(task)
        roles = roles or ([None, "cloud"] if LOGPROBS[place] < BELOW else [None])
        if task == "oncloud" and place == 3:
            continue
        for number, role in enumerate(roles, 1):
            # The second sample of every other prompt differs; what follows an end does not count.
            ids = [7, 8, 0, place + number] if number < 2 or place % 2 else [7, 9, 0, 1]
            rows.append(
                {"window": "serve at 4", "concurrency": 4, "prompt_id": prompt, "call": number}
                | {"role": role, "submitted_s": 1.0 * number, "token_ids": ids, "input_tokens": 50}
                | {"output_tokens": 4, "natural_tokens": 3, "ttft_ms": 100.0, "tpot_ms": 10.0}
            )
    table = pd.DataFrame(rows)
    return table if task != "onepassage" else table.drop(columns=["call", "role"])


def results_of(directory, remote=False, failed=None):
    study = load_study(
        write_tiny_study(
            directory,
            tasks=TASKS,
            configurations=(("lora", "int4"),),
            unadapted_base=False,
            roles={"cloud": {"method": "lora", "precision": "fp16"}},
            task_settings={"hybrid": {"below": BELOW}},
            correct_from=dict.fromkeys(TASKS, 0.8),
        )
    )
    prompts = [example.id for example in load_task("onepassage", evaluation_examples=4).evaluation]
    runs, rows, answers = [], [], []
    for task in TASKS:
        run = f"tinyllama-0.1M_{task}_lora_int4_r01"
        variant = dict(zip(VARIANT, key(task), strict=True))
        calls(task, prompts).to_parquet(directory / f"{run}.requests.parquet")
        window = {"window": "serve at 4", "failures": {}, "failed_calls": {}}
        window |= (failed or {}).get(task, {})
        runs.append(
            {"stage": "serve", "run": run, "notebook": str(directory / f"{run}.ipynb")}
            | {"engine": "transformers", "repetition": 1, "serving_windows": [window]}
            | {"roles": [{"role": "cloud", "remote": remote}] if task != "onepassage" else None}
            | variant
        )
        rows.append(
            variant
            | {"run": run, "repetition": 1, "concurrency": 4, "rate_per_s": None}
            | {"prefix_caching": False, "energy_per_request_j": ENERGY_J[task]}
            | {"output_tokens_per_request": 4.0, "throughput_tok_s": 8.0}
        )
        for place, right in enumerate(RIGHT.get(task, [1, 1, 1, 1])):
            told = {"mean_logprob": LOGPROBS[place], "mean_margin": 0.5 + place / 10}
            nothing = {"content": math.nan, "answer": None, "answer_tokens": None}
            words = "same words" if right else f"other words of {task}"
            text = {"content": float(right or 0), "answer": words, "answer_tokens": 3}
            answers.append(
                {"prompt_id": prompts[place], "repetition": 1, **variant}
                | {"score_reason": "HTTP 503" if right is None else ""}
                | (nothing if right is None else text)
                | (told if task == "onepassage" else {})
            )
    frame = pd.DataFrame(answers)
    observed = pd.DataFrame(rows)
    empty = pd.DataFrame()
    return Results(study, pd.DataFrame(runs), observed, frame, empty, empty, empty, empty, [], [])


@pytest.fixture
def results(tmp_path):
    return results_of(tmp_path)


@pytest.fixture
def pair(results):
    return hybrid.pair(results, PRICES, "onepassage", "oncloud")


def test_answers_are_paired_by_their_questions(pair):
    assert (pair.local, pair.cloud) == (key("onepassage"), key("oncloud"))
    assert pair.prompts["local_correct"].tolist() == [1, 0, 0, 1]
    assert pair.prompts["mean_logprob"].tolist() == LOGPROBS
    assert pair.currencies == ["energy_j", "usd", "list_usd"]
    # How long the call took that failed was not recorded.
    assert pair.missing["latency_s"].endswith("is not known of 1 of 4 questions.")


def test_what_the_cloud_does_not_answer_is_not_correct_and_says_why(pair):
    assert pair.prompts["cloud_correct"].tolist() == [1, 1, 0, 0]
    assert pair.prompts["cloud_failure"].tolist()[3] == "HTTP 503"
    assert pair.prompts["cloud_failure"].isna().tolist()[:3] == [True] * 3


def test_energy_is_the_windows_and_list_prices_are_the_clouds_alone(pair):
    prompts = pair.prompts
    assert prompts["local_energy_j"].tolist() == [2.0] * 4
    assert prompts["cloud_energy_j"].tolist() == [5.0] * 4
    machine = PRICES.machine_usd(2.0, 0.5)
    assert prompts["local_usd"].tolist() == pytest.approx([machine] * 4)
    assert prompts["local_list_usd"].tolist() == pytest.approx([machine] * 4)
    call = LISTED
    assert prompts["cloud_list_usd"].tolist() == pytest.approx([call] * 3 + [0.0])
    # First token after 0.1 s, three more.
    assert prompts["local_latency_s"].tolist() == pytest.approx([0.13] * 4)


def test_an_answer_of_one_token_ends_with_its_first(results, tmp_path):
    alone = key("onepassage")
    file = tmp_path / f"{'_'.join(alone).replace('_', '-', 1)}_r01.requests.parquet"
    kept = pd.read_parquet(file)
    kept.loc[0, ["output_tokens", "tpot_ms"]] = [1, math.nan]
    kept.to_parquet(file)
    took = hybrid.requests_used(results, PRICES, alone)["latency_s"]
    assert took.tolist() == pytest.approx([0.1, 0.13, 0.13, 0.13])


def test_a_cascades_cost_is_of_both_answers(pair):
    cost = pair.cost("energy_j", {"energy_j": 0.5})
    assert cost.routed(np.array([True, False, True, False])).tolist() == [7.5, 2.5, 7.5, 2.5]


def test_of_an_endpoint_the_energy_is_not_known_and_its_price_is(tmp_path):
    pair = hybrid.pair(results_of(tmp_path, remote=True), PRICES, "onepassage", "oncloud")
    assert "energy_j" not in pair.currencies
    assert pair.missing["energy_j"].startswith("What the cloud takes in energy [J] is not known")
    assert pair.prompts["cloud_usd"].iloc[0] == pytest.approx(LISTED)
    cascade = hybrid.requests_used(results_of(tmp_path, remote=True), PRICES, key("hybrid"))
    machine = PRICES.machine_usd(4.5, 0.5)
    escalated = [0.0, LISTED, LISTED, 0.0]
    assert cascade["usd"].tolist() == pytest.approx([machine + call for call in escalated])


def test_agreement_is_of_tokens_up_to_the_end(results):
    shares = hybrid.agreement(results, "onepassage", "sampled")
    assert shares.tolist() == [0.5, 1.0, 0.5, 1.0]


def test_the_cloud_objects_to_another_answer_and_not_in_silence(results, pair):
    assert hybrid.objections(results, pair).tolist() == [0, 1, 1, 0]


def test_an_arm_is_one_configuration(results):
    with pytest.raises(UserError, match="serves the task rag at 0 configurations"):
        hybrid.arm(results, "rag")


def test_questions_are_without_their_notes(results, pair):
    asked = hybrid.questions(results, pair)
    assert len(asked) == 4
    assert all("Notes" not in question for question in asked)


def test_failures_are_counted_by_reason(tmp_path):
    failed = {
        "oncloud": {"failures": {"HTTP 503": 1}, "failed_calls": {"HTTP 503": 1}},
        "hybrid": {"failed_calls": {"APITimeoutError": 2, "HTTP 503": 1}},
    }
    results = results_of(tmp_path, remote=True, failed=failed)
    lines = hybrid.failures(results, ["onepassage", "oncloud", "hybrid"])
    assert "oncloud: 1 requests failed (1 x HTTP 503)." in lines
    assert "hybrid: 3 calls failed (2 x APITimeoutError; 1 x HTTP 503)." in lines
    assert sum("this machine's alone" in line for line in lines) == 2
    assert not any(line.startswith("onepassage") for line in lines)


def test_what_was_foretold_of_a_threshold_stands_beside_what_was_measured(results, pair):
    logprob = pair.prompts["mean_logprob"].to_numpy()
    table = escalation.confirmation(results, PRICES, pair, "hybrid", logprob, BELOW)
    table = table.set_index("cascade")
    assert table["escalated"].tolist() == [0.5, 0.5]
    assert table["correct"].tolist() == [0.75, 0.75]
    assert table.loc["foretold", "energy_j"] == pytest.approx(2.0 + 5.0 / 2)
    assert table.loc["measured", "energy_j"] == 4.5
    machine, call = PRICES.machine_usd(2.0, 0.5), LISTED
    assert table["list_usd"].tolist() == pytest.approx([machine + call / 2] * 2)
