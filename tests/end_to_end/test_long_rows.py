"""Training data as the public sets have it, some replies far longer than training.max_tokens."""

import json
import subprocess
import sys

import pytest
from tiny import make_local_copy, make_tiny_study

from edge_eval_lib import models, scraps
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import adapt, compress
from edge_eval_lib.lifecycle.data import task_examples
from edge_eval_lib.runs import plan
from edge_eval_lib.study import load_study

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Adapted with LoRA and QLoRA to dialogues, and with LoRA to questions."""
    directory = tmp_path_factory.mktemp("long")
    patch = pytest.MonkeyPatch()
    patch.setenv("EDGE_EVAL_OUTPUTS", str(directory / "outputs"))
    patch.setenv("XDG_RUNTIME_DIR", str(directory))
    data = {"source": str(make_local_copy(directory / "copy")), "train_examples": 10}
    path = make_tiny_study(
        directory,
        tasks=("dialogue", "rag"),
        configurations=(("lora", "fp16"), ("qlora", "int4")),
        data=data | {"heldout_examples": 3, "evaluation_examples": 6},
    )
    loaded = load_study(path)
    for adapter in ("dialogue_lora", "dialogue_qlora", "rag_lora"):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "edge_eval_lib",
                "run",
                path,
                "adapt",
                f"tinyllama-0.1M_{adapter}",
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    yield loaded
    patch.undo()


def adapt_scraps(study, adapter):
    run = study.directory / "runs" / "adapt" / f"tinyllama-0.1M_{adapter}.ipynb"
    return scraps.read_scraps(run)


def test_long_replies_are_passed_over_alike_by_both_methods_and_counted(study):
    lora, qlora = (adapt_scraps(study, f"dialogue_{method}") for method in ("lora", "qlora"))
    tokenizer = models.load_tokenizer(models.model_directory(study.models[0]))
    lengths = []
    for line in (study.path.parent / "copy" / "train_sft.jsonl").read_text().splitlines():
        row = json.loads(line)
        reply = row["messages"][3]["content"]
        lengths.append(len(models.answer_ids(tokenizer, reply)))
    # Every fifth reply has 700 words: to find 13 short ones, 16 rows are read.
    assert [n for n, length in enumerate(lengths[:16]) if length > 512] == [4, 9, 14]
    assert lora["rows_passed_over"] == qlora["rows_passed_over"] == 3
    assert lora["tokens_seen"] == qlora["tokens_seen"]
    assert lora["answer_tokens_seen"] == qlora["answer_tokens_seen"]
    assert adapt_scraps(study, "rag_lora")["rows_passed_over"] > 0


def test_held_out_rows_and_calibration_fit_too(study):
    tokenizer = models.load_tokenizer(models.model_directory(study.models[0]))
    train, heldout, data = task_examples(study, "dialogue", tokenizer)
    assert (len(train), len(heldout), data.passed_over) == (10, 3, 3)
    assert max(models.count_tokens(tokenizer, e) for e in train + heldout) <= 512
    unlimited = task_examples(study, "dialogue")[2]
    assert data.evaluation == unlimited.evaluation
    assert max(models.count_tokens(tokenizer, e) for e in unlimited.evaluation) > 512


def test_the_plan_says_what_was_passed_over_and_what_is_not_known_yet(study):
    text = plan.describe(study)
    assert "Training rows of more than 512 tokens are passed over" in text
    assert "dialogue 3" in text
    fresh = study.model_copy(update={"name": "fresh"})
    fresh._path = study.path
    assert "counted when an adapter is trained: dialogue and rag" in plan.describe(fresh)


def test_a_limit_that_leaves_too_few_is_reported_with_the_numbers(study):
    tokenizer = models.load_tokenizer(models.model_directory(study.models[0]))
    training = study.training.model_copy(update={"max_tokens": 40})
    short = study.model_copy(update={"training": training})
    with pytest.raises(
        UserError, match=r"dialogue has \d+ training examples of at most 40 tokens .* 13 are asked"
    ):
        task_examples(short, "dialogue", tokenizer)


def test_calibration_takes_rows_that_were_trained_on(study):
    calibrated = study.model_copy(update={"calibration_examples": 8})
    base = models.model_directory(study.models[0])
    tokenizer = models.load_tokenizer(base)
    trained = task_examples(study, "dialogue", tokenizer)[0][:8]
    encoded = adapt.encode(tokenizer, trained, 512)
    texts = [row["input_ids"] for row in encoded]
    assert compress.calibration(calibrated, "dialogue", base) == texts
    assert compress.calibration(study, "dialogue", base) is None
