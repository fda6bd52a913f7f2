"""How sure a model is of what it answers: kept with the answers, calibrated, and checked."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import make_tiny_model

from edge_eval_lib import models
from edge_eval_lib.engines.base import ranked_reading
from edge_eval_lib.lifecycle import answers
from edge_eval_lib.models.likelihood import NOT_READ, Reading, read_texts
from edge_eval_lib.results import confidence


@pytest.fixture
def rng():
    return np.random.default_rng(12)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = make_tiny_model(tmp_path_factory.mktemp("confidence") / "llama")
    model = models.load_model(directory, "float32").eval()
    return model, models.load_tokenizer(directory)


@pytest.mark.parametrize("shared", [[], [3, 4, 20, 21, 22]])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_log_probabilities_and_margins_are_those_of_a_plain_forward_pass(tiny, shared, batch_size):
    model, tokenizer = tiny
    prompts, texts = [[5, 6, 7], [8, 9], [5]], [[[10, 11, 12], [13]], [[14, 15]], [[16]]]
    prompts = [shared + prompt for prompt in prompts]
    read = read_texts(model, tokenizer, prompts, texts, batch_size)
    for prompt, of_prompt, readings in zip(prompts, texts, read, strict=True):
        for text, reading in zip(of_prompt, readings, strict=True):
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1]
            ranked = logits.softmax(-1).sort(descending=True).values
            logs = logits.log_softmax(-1)[range(len(text)), text]
            assert reading.token_nlls == pytest.approx((-logs).tolist(), abs=1e-5)
            assert reading.token_margins == pytest.approx(
                (ranked[:, 0] - ranked[:, 1]).tolist(), abs=1e-5
            )
            assert reading.nll == pytest.approx(np.mean(reading.token_nlls))


def test_what_all_prompts_begin_with_is_computed_once(tiny):
    model, tokenizer = tiny
    rows, embedding = [], model.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape))
    prompts = [[3, 4, 20, 21, 22, last] for last in range(30, 34)]
    try:
        read_texts(model, tokenizer, prompts, [[[7]]] * 4, 2)
    finally:
        hook.remove()
    assert rows == [(1, 5), (2, 1), (2, 1)]


def test_confidence_is_taken_over_the_answer_and_not_over_what_follows_its_end():
    reading = Reading(1.0, [1, 2, 3], token_nlls=[0.5, 1.5, 9.0], token_margins=[0.2, 0.4, 0.9])
    known = answers._confidence(reading, 2)
    assert known == {"mean_logprob": -1.0, "mean_margin": pytest.approx(0.3)}


@pytest.mark.parametrize("reading", [None, NOT_READ])
def test_an_answer_that_was_not_read_has_no_confidence(reading):
    assert all(map(math.isnan, answers._confidence(reading, 3).values()))


def test_an_engine_that_ranks_two_tokens_at_most_tells_no_margin():
    reading = ranked_reading([4, 5], [{4: (-0.1, 1)}, {5: (-2.0, 2), 6: (-0.2, 1)}])
    known = answers._confidence(reading, 2)
    assert known["mean_logprob"] == pytest.approx(-1.05)
    assert math.isnan(known["mean_margin"])


# --- calibration -------------------------------------------------------------------------------


def test_isotonic_calibration_lowers_the_error_on_the_other_half(rng):
    said = rng.random(1000)
    correct = (rng.random(1000) < said**3).astype(float)  # too sure of itself
    before = confidence.expected_calibration_error(said[500:], correct[500:])
    calibration = confidence.calibrate(said[:500], correct[:500])
    after = confidence.expected_calibration_error(
        calibration.probability(said[500:]), correct[500:]
    )
    assert before > 0.2
    assert after < 0.08
    assert (np.diff(calibration.probabilities) >= 0).all()


def test_the_calibration_error_is_that_of_the_bins():
    # Two bins: 0.9 said, half right; 0.1 said, none right.
    error = confidence.expected_calibration_error([0.9, 0.9, 0.1, 0.1], [1, 0, 0, 0])
    assert error == pytest.approx((0.4 + 0.1) / 2)
    assert confidence.expected_calibration_error([1.0, 0.0], [1, 0]) == 0


def test_prompts_of_one_signal_have_one_probability():
    calibration = confidence.calibrate([1, 1, 2, 2], [0, 1, 1, 1])
    assert calibration.probability([1, 1.5, 2, 5]).tolist() == [0.5, 0.75, 1, 1]


# --- validation --------------------------------------------------------------------------------


def test_a_checked_sample_estimates_the_error_rate(rng):
    correct = (rng.random(1000) < 0.7).astype(float)
    checked = confidence.validate(1 - correct, correct, {"energy_j": np.full(1000, 4.0)}, 0.2, 1)
    assert checked.checked == 200
    _, low, high = checked.error_rate
    assert low < 1 - correct.mean() < high
    assert checked.error_rate == checked.true_error_rate
    assert checked.precision == checked.recall == 1
    assert checked.cost == {"energy_j": 0.8}  # a fifth of 4 J, over every prompt
    wilson = stats.binomtest(checked.objections, 200).proportion_ci(method="wilson")
    assert (low, high) == (wilson.low, wilson.high)


def test_a_cloud_that_errs_objects_wrongly_too():
    objects, correct = [1, 1, 0, 0], [0, 1, 1, 0]
    found = confidence.validate(objects, correct, {}, 1.0)
    assert (found.checked, found.objections) == (4, 2)
    assert (found.precision, found.recall) == (0.5, 0.5)
    assert math.isnan(confidence.validate([0, 0], [1, 1], {}, 1.0).precision)
