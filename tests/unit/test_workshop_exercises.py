"""Exercises of workshop notebooks 1 and 2: answers follow figures, wrong ones are told apart."""

import pytest

from edge_eval_lib.energy import Measurement
from edge_eval_lib.engines.base import Generation
from edge_eval_lib.errors import UserError
from edge_eval_lib.workshop import compressing, measuring
from edge_eval_lib.workshop.choice import choice, larger

TEXT = "How many tokens are these eight words, do you think?\n"  # 10 words, 53 characters
ESTIMATED = Measurement(
    "w", energy_j=20.0, energy_lo_j=8.0, energy_hi_j=60.0, energy_source="cpu-model"
)
MEASURED = Measurement("w", energy_j=20.0, energy_source="rapl")
FP16, INT4 = ["a", "b", "c", "d", "e"], ["a", "b", "c", "x", "y"]

# An exercise, its right answer, and wrong ones that must be told apart.
EXERCISES = {
    "tokens": (measuring.tokens_read(17, TEXT), 18, (10, 53, 5, 80, 30)),
    "first": (measuring.slower_token(300, 70), "first", ("next", "same", "both")),
    "first, where all is quick": (
        measuring.slower_token(10.5, 10),
        "same",
        ("first", "next", "both"),
    ),
    "ttft": (
        measuring.what_grows(6, (300, 70), (1500, 75)),
        "ttft",
        ("tpot", "both", "neither", "all"),
    ),
    "neither": (
        measuring.what_grows(6, (10, 9), (12, 9)),
        "neither",
        ("ttft", "tpot", "both", "all"),
    ),
    "batch": (measuring.batch_speed(3.2, 8), "3", (9, 8, 1, 5.5, 1.5)),
    "falls": (measuring.batch_energy(0.3, 0.1), "falls", ("stays", "rises", "grows")),
    "estimated": (measuring.kind_of_energy(ESTIMATED), "Estimated", ("measured", "exact", "both")),
    "measured": (measuring.kind_of_energy(MEASURED), "measured", ("estimated", "exact", "both")),
    "idle": (measuring.energy_with_idle(7.5, 20, 60), "1.2 kJ", (7.5, 20, 27.5, 1 / 3, 600)),
    "adapter": (compressing.trained_share(2_400_000, 135_000_000), 2.5, (100, 40, 0.018, 8)),
    "INT4's size": (
        compressing.stored_share(212_000_000, 57_000_000, 4, 173_000_000, 114_000_000),
        63,
        (25, 41, 12.5, 120, 5, 90),
    ),
    "INT8's size": (
        compressing.stored_share(212_000_000, 57_000_000, 8, 165_000_000, 57_000_000),
        60,
        (50, 25, 120, 10, 80),
    ),
    "loses": (compressing.loses_more(0.68, 0.69, 0.84), "int4", ("int8", "same", "fp16")),
    "gains": (compressing.gain_or_loss(3.1, 0.68, 0.84), "adapting", ("int4", "same", "int8")),
    "slower": (
        compressing.speed_of_int4(50, 30),
        "slower",
        ("faster", "same", "half"),
    ),
    "faster": (
        compressing.speed_of_int4(30, 50),
        "faster",
        ("slower", "same", "twice"),
    ),
    "answers": (compressing.same_answers(FP16, INT4), 60, (120, 100, 0, 20)),
    "most answers": (compressing.same_answers([*"abcd"], [*"abcx"]), 75, (120, 100, 0, 20)),
}


@pytest.mark.parametrize("name", EXERCISES)
def test_each_wrong_answer_has_a_message_of_its_own(name, capsys):
    exercise, right, wrong = EXERCISES[name]
    assert exercise.check(right)
    capsys.readouterr()
    said = []
    for answer in wrong:
        assert not exercise.check(answer)
        said.append(capsys.readouterr().out)
    assert len(set(said)) == len(wrong) >= 3
    assert not exercise.check(...)
    unanswered = " ".join(capsys.readouterr().out.split())  # its lines are wrapped
    assert unanswered == f"Not answered yet. Hint: {exercise.hint_text}"


def test_what_differs_by_little_is_the_same():
    words = ("one", "other", "same")
    assert [larger(*pair, words) for pair in ((10, 9), (10, 8), (8, 10))] == [
        "same",
        "one",
        "other",
    ]
    with pytest.raises(ValueError, match="'no' is none of yes"):
        choice("no", {"yes": "..."}, "", "")


def test_what_to_write_is_said_as_it_is_written(capsys):
    words = measuring.batch_energy(0.3, 0.1)
    assert words.hint_text.startswith('one of "falls", "stays", "rises". ')
    assert not measuring.tokens_read(17, TEXT).check("many")
    assert not measuring.energy_with_idle(7.5, 20, 60).check("half a kJ")
    plain, with_unit = capsys.readouterr().out.splitlines()
    assert plain == "Not readable: write a number."
    assert with_unit == "Not readable: write a number, with one of the units mJ, J, kJ, Wh, kWh."


def test_the_median_of_requests_and_the_joules_of_a_token():
    requests = [Generation([1], 0.0, [2, 3], [first, first + 0.1]) for first in (0.3, 0.5, 9.0)]
    assert measuring.median_ms(requests) == pytest.approx((500, 100))
    assert measuring.energy_per_token(MEASURED, 40) == 0.5


def test_a_machine_without_an_energy_figure_says_what_to_do():
    window = Measurement("w", energy_reason="no counter")
    with pytest.raises(UserError, match=r"no energy figure \(no counter\).*CUDA_VISIBLE_DEVICES="):
        measuring.energy_per_token(window, 8)
