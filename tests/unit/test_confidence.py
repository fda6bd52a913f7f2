"""How sure a model is of what it answers: read beside the likelihood, and kept with the answers."""

import math

import numpy as np
import pytest
import torch
from tiny import make_tiny_model

from edge_eval_lib import models
from edge_eval_lib.engines.base import ranked_reading
from edge_eval_lib.lifecycle import answers
from edge_eval_lib.models.likelihood import NOT_READ, Reading, read_texts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = make_tiny_model(tmp_path_factory.mktemp("confidence") / "llama")
    model = models.load_model(directory, "float32").eval()
    return model, models.load_tokenizer(directory)


def test_log_probabilities_and_margins_are_those_of_a_plain_forward_pass(tiny):
    model, tokenizer = tiny
    prompts, texts = [[5, 6, 7], [8, 9]], [[[10, 11, 12], [13]], [[14, 15]]]
    read = read_texts(model, tokenizer, prompts, texts, 2)
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
