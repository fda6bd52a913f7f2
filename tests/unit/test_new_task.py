"""A task from outside: one new file and its name in a study, from its rows to the tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny

from edge_eval_lib import tasks
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import score as scoring
from edge_eval_lib.paths import project_root
from edge_eval_lib.results import readable, tables
from edge_eval_lib.study import Study, load_study

RHYMES = '''
"""Lines and what rhymes with them."""

from edge_eval_lib.tasks.base import Example, Rule, Task, TaskData


def shipped():
    rows = [{"id": f"r{n}", "line": f"{n} a cat", "rhyme": f"{n} a hat"} for n in range(20)]
    return rows[:14], rows[14:]


def build(train, evaluation, source):
    return TaskData("rhymes", *([_example(row) for row in rows] for rows in (train, evaluation)))


def _example(row):
    return Example(row["id"], [{"role": "user", "content": row["line"]}], row["rhyme"])


def score(answers, examples):
    return [
        {"rhymes": float(answer.split()[-1:] == example.answer.split()[-1:]), "words": 1.0}
        for answer, example in zip(answers, examples)
    ]


task = Task(
    shipped=shipped,
    build=build,
    score=score,
    figures={"rhymes": "share of lines that rhyme", "words": "words"},
    no_model_rules=[Rule("the line itself", lambda example, _: example.messages[0]["content"])],
)
'''


def add(directory: Path, content: str, name: str = "rhymes") -> Path:
    """Write a task's file where EDGE_EVAL_EXTENSIONS may name `directory`."""
    (directory / "tasks").mkdir()
    (directory / "tasks" / f"{name}.py").write_text(content)
    return directory / "tasks"


@pytest.fixture
def rhymes(tmp_path, monkeypatch) -> Study:
    """The tiny study of a task whose file lies outside the library."""
    folder = add(tmp_path, RHYMES)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(folder)])
    yield load_study(tiny.write_tiny_study(tmp_path, "small", tasks=("rhymes",)))
    sys.modules.pop("edge_eval_lib.tasks.rhymes", None)


def served(study: Study, precision: str, answer) -> scoring.Served:
    """What a serving run would have left, each prompt answered by `answer(example)`."""
    asked = tasks.load_task("rhymes", evaluation_examples=4).evaluation
    raw = pd.DataFrame(
        {
            "prompt_id": [example.id for example in asked],
            "answer": [answer(example) for example in asked],
            "reference": [example.answer for example in asked],
            "gold_nll": 1.0,
            "failure": None,
            "gold_argmax_ids": [[1, 2]] * len(asked),
            "answer_tokens": 3,
        }
    )
    key = ["tinyllama", "0.1M", "rhymes", "lora", precision, 1]
    return scoring.Served(dict(zip(scoring.RUN_COLUMNS, key, strict=True)), raw, asked)


def test_a_task_of_one_new_file_goes_from_its_rows_to_the_tables(rhymes):
    published, others = tuple(tasks.names()[:3]), tasks.names()[3:]
    assert published == tasks.PUBLISHED
    assert "rhymes" in others
    assert others == sorted(set(others))
    assert next(str(v) for v in rhymes.variants()) == "tinyllama-0.1M_rhymes_lora_fp16"
    assert "tinyllama-0.1M_rhymes_lora" in {r.name for r in rhymes.runs() if r.stage == "adapt"}

    answers = scoring.together(
        [
            scoring.score_served(served(rhymes, "fp16", lambda example: example.answer)),
            scoring.score_served(served(rhymes, "int4", lambda example: "")),
        ]
    )
    no_model = scoring.no_model(rhymes)
    assert answers.groupby("precision")["score"].mean().to_dict() == {"fp16": 1.0, "int4": 0.0}
    assert (answers["content"] == answers["score"]).all()
    assert answers["top1_agreement"].tolist() == [1.0] * 8
    assert set(no_model["rule"]) == {"the line itself"}

    runs = pd.DataFrame(
        [
            dict(zip(scoring.RUN_COLUMNS, key, strict=True))
            | {"concurrency": 4, "energy_per_request_j": 2.0, "throughput_tok_s": 5.0}
            | {"memory_gb": 0.5, "load_energy_j": 8.0, "load_s": 1.0, "energy_source": "x"}
            for key in (("tinyllama", "0.1M", "rhymes", "lora", p, 1) for p in ("fp16", "int4"))
        ]
    ).assign(host="h", adapt_energy_j=1.0, adapt_s=1.0, power_w=1.0)
    reference = tables.reference_table(runs, answers, no_model)
    assert reference["method"].tolist() == ["rule", "lora", "lora"]
    assert reference["rhymes"].tolist() == [0.0, 1.0, 0.0]
    assert reference["notes"][0] == "rule: the line itself"
    assert "share of lines that rhyme" in readable.readable(reference)


def test_another_score_is_what_is_recorded(rhymes):
    run = served(rhymes, "fp16", lambda example: example.answer)
    scored = scoring.score_served(run, lambda answers, examples: [{"half": 0.5} for _ in answers])
    assert scored["score"].tolist() == scored["half"].tolist() == [0.5] * 4
    assert scored["rhymes"].isna().all()
    with pytest.raises(ValueError, match=r"^score must lie between 0 and 1, but is 7"):
        scoring.score_served(run, lambda answers, examples: [{"judge": 7.0} for _ in answers])
    with pytest.raises(ValueError, match=r"^score gives 1 rows of figures for 4 answers"):
        scoring.score_served(run, lambda answers, examples: [{"half": 0.5}])


def test_its_data_and_prompts_decide_its_fingerprint(tmp_path, rhymes):
    before = tasks.data_fingerprint("rhymes")
    assert before == tasks.data_fingerprint("rhymes")
    (tmp_path / "tasks" / "rhymes.py").write_text(RHYMES.replace("a hat", "that hat"))
    sys.modules.pop("edge_eval_lib.tasks.rhymes")
    assert tasks.data_fingerprint("rhymes") != before


def test_a_directory_is_named_in_the_environment(tmp_path):
    add(tmp_path, RHYMES)
    code = "from edge_eval_lib import tasks; print(len(tasks.load_task('rhymes').evaluation))"
    environment = os.environ | {"EDGE_EVAL_EXTENSIONS": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "6"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", r"broken\.py has no `task`, a Task with its data, prompts and scores"),
        ("import no_such_module", "task broken cannot be used: .*no_such_module"),
        ("def", "task broken cannot be used: "),
        (
            "from edge_eval_lib.tasks.base import Task\ntask = Task(shipped=list)",
            "task broken cannot be used: .*'build', 'score', and 'figures'",
        ),
        (
            RHYMES.replace('"rhymes": "share', '"score": "share'),
            "task broken cannot be used: figures may not be called score",
        ),
        (
            RHYMES.replace("no_model_rules", 'content="form", no_model_rules'),
            "task broken cannot be used: content is 'form', figures are",
        ),
    ],
)
def test_a_file_that_is_no_task_is_refused_in_one_sentence(
    content, complaint, tmp_path, monkeypatch
):
    folder = add(tmp_path, content, "broken")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(folder)])
    try:
        with pytest.raises(UserError, match=complaint) as refusal:
            tasks.load_task("broken")
    finally:
        sys.modules.pop("edge_eval_lib.tasks.broken", None)
    assert "\n" not in str(refusal.value)


def test_a_task_without_a_public_set_says_so(rhymes):
    for source in ("hub", "somewhere"):
        with pytest.raises(UserError, match="rhymes has no public set; its source can be"):
            tasks.load_task("rhymes", source)
    with pytest.raises(UserError, match="rhymes has no public set"):
        tasks.require_examples("rhymes", "hub", 1, 1)


def test_the_data_cards_example_is_a_task(tmp_path, monkeypatch):
    card = (project_root() / "docs" / "data-card.md").read_text()
    folder = add(tmp_path, card.partition("```python\n")[2].partition("```")[0], "capitals")
    (folder / "data").mkdir()
    for part in ("train", "evaluation"):
        row = {"id": part, "country": "Peru", "capital": "Lima"}
        (folder / "data" / f"capitals_{part}.jsonl").write_text(json.dumps(row))
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(folder)])
    try:
        (example,) = tasks.load_task("capitals").evaluation
        assert scoring.score_answers("capitals", ["It is Lima."], [example])["score"].item() == 1
        assert tasks.data_fingerprint("capitals")
    finally:
        sys.modules.pop("edge_eval_lib.tasks.capitals", None)
