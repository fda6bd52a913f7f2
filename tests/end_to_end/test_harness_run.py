"""The real lm-evaluation-harness scores tiny real models by task files of the test's own."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tiny import TINY_TASKS, make_tiny_study, make_tiny_tasks

from edge_eval_lib import models, scraps
from edge_eval_lib.lifecycle import harness
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import load_study

pytestmark = pytest.mark.end_to_end

PROMPTS = 10
CONFIGURATIONS = (("lora", "int4"),)


def command(*arguments: object, outputs: Path) -> subprocess.CompletedProcess[str]:
    told = {"EDGE_EVAL_OUTPUTS": str(outputs), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "edge_eval_lib", *map(str, arguments)],
        env=os.environ | told | {"HF_HOME": str(outputs / "hub")},
        cwd=project_root(),
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("harness")
    make_tiny_tasks(directory / "tasks")
    asked = {"tasks": list(TINY_TASKS), "prompts": PROMPTS, "task_directory": "tasks"}
    return make_tiny_study(directory, configurations=CONFIGURATIONS, harness=asked)


@pytest.fixture(scope="module")
def outputs(path) -> Path:
    done = command("all", path, outputs=path.parent / "outputs")
    assert done.returncode == 0, done.stdout + done.stderr
    return path.parent / "outputs" / "tiny"


def test_every_variant_and_the_base_are_scored(outputs):
    table = pd.read_csv(outputs / "tables" / "harness.csv")
    variants = table[["method", "precision"]].drop_duplicates()
    assert set(variants.itertuples(index=False, name=None)) == {("none", "fp16"), *CONFIGURATIONS}
    base = table[table["method"] == "none"]
    assert base["task"].isna().all()
    assert base["notes"].str.contains("the same for every one").all()
    per_variant = table.groupby(["task", "method", "precision"], dropna=False).size()
    assert (per_variant == 4).all()  # two tasks of two metrics
    assert (table["prompts"] == PROMPTS).all()
    assert (table["few_shot"] == 0).all()
    accuracy = table[table["metric"].isin(["acc", "acc_norm"])]
    assert accuracy["value"].between(0, 1).all()
    assert accuracy["higher_is_better"].all()
    perplexity = table[table["metric"] == "perplexity"]
    assert (perplexity["value"] > 1).all()
    assert not perplexity["higher_is_better"].any()
    assert perplexity["value"].nunique() > 1  # adapting and quantising changed the weights
    assert table["lm_eval"].notna().all()


def test_an_interval_is_two_standard_errors_to_either_side(outputs):
    table = pd.read_csv(outputs / "tables" / "harness.csv").dropna(subset=["stderr"])
    assert len(table)
    half = (table["value_hi"] - table["value_lo"]) / 2
    assert half.to_numpy() == pytest.approx(1.96 * table["stderr"].to_numpy(), rel=1e-3)
    mean = table["metric"] == "acc"
    spread = (table["value"] * (1 - table["value"]) / (PROMPTS - 1)) ** 0.5
    assert table["stderr"][mean].to_numpy() == pytest.approx(spread[mean].to_numpy(), rel=1e-6)


def test_the_scores_are_the_served_weights_own(outputs, path):
    """Each answer's likelihood once more, from the weights, without the library."""
    import torch

    run = next((outputs / "runs" / "harness").glob("*rag_none_fp16.ipynb"))
    told = {
        (r["harness_task"], r["metric"]): r["value"] for r in scraps.read_scraps(run)["harness"]
    }
    directory = path.parent / "llama"
    tokenizer, model = models.load_tokenizer(directory), models.load_model(directory, "float32")

    def log_likelihood(question: str, answer: str) -> float:
        start = tokenizer(question, add_special_tokens=False)["input_ids"]
        ids = tokenizer(question + answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            told = model(torch.tensor([ids])).logits.double().log_softmax(-1)[0, :-1]
        places = range(len(start) - 1, len(ids) - 1)
        return sum(float(told[place, ids[place + 1]]) for place in places)

    lines = (path.parent / "tasks" / "questions.jsonl").read_text().splitlines()[:PROMPTS]
    right, likelihoods = [], []
    for asked in map(json.loads, lines):
        prompt = f"Question: {asked['question']}\nAnswer:"
        found = [log_likelihood(prompt, f" {choice}") for choice in asked["choices"]]
        right.append(found.index(max(found)) == asked["answer"])
        likelihoods.append(found[asked["answer"]])
    assert told["tiny_choice", "acc"] == sum(right) / PROMPTS
    expected = math.exp(-sum(likelihoods) / PROMPTS)
    assert told["tiny_text", "perplexity"] == pytest.approx(expected, rel=1e-3)


def test_answers_lie_beside_the_notebook_prompt_by_prompt(outputs):
    for run in (outputs / "runs" / "harness").glob("*.ipynb"):
        prompts = pd.read_parquet(run.with_suffix(".prompts.parquet"))
        accuracy = prompts[
            (prompts["harness_task"] == "tiny_choice") & (prompts["metric"] == "acc")
        ]
        assert sorted(accuracy["prompt"]) == list(range(PROMPTS))
        told = {
            (row["harness_task"], row["metric"]): row["value"]
            for row in scraps.read_scraps(run)["harness"]
        }
        assert accuracy["value"].mean() == pytest.approx(told["tiny_choice", "acc"])


def test_the_report_shows_them(outputs):
    report = (outputs / "report.html").read_text(encoding="utf-8")
    assert "Scores by lm-evaluation-harness" in report
    assert (outputs / "figures" / "harness.png").is_file()


def test_weights_that_were_deleted_are_built_again_and_score_the_same(outputs, path):
    run = outputs / "runs" / "harness" / "tinyllama-0.1M_rag_lora_int4.ipynb"
    before = scraps.read_scraps(run)["harness"]
    shutil.rmtree(outputs / "artefacts" / "models" / run.stem)
    done = command("run", path, "harness", run.stem, outputs=outputs.parent)
    assert done.returncode == 0, done.stderr
    assert scraps.read_scraps(run)["harness"] == before


def test_an_unknown_task_is_refused_before_anything_runs(path, tmp_path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["name"] = "misspelt"
    content["harness"]["tasks"] = ["tiny_choise"]
    wrong = path.with_name("misspelt.yaml")
    wrong.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = command("all", wrong, outputs=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "harness.tasks: lm-evaluation-harness has no task 'tiny_choise'; did you mean "
        "'tiny_choice'?\n"
    )
    assert not list(tmp_path.glob("misspelt/runs/*/*"))


def test_the_library_s_own_tasks_are_known_beside_the_study_s(path):
    study = load_study(path)
    asked = study.harness.model_copy(update={"tasks": ["arc_easy", "tiny_choice"]})
    both = study.model_copy(update={"harness": asked})
    both._path = path
    assert harness.problems(both) == []
