"""lm-evaluation-harness as an option of a study: which runs it makes, and its table and figure.

That the library itself scores the weights is for tests/end_to_end/test_harness_run.py.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny
from cells import run_cell

from edge_eval_lib.economics import fit
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import harness
from edge_eval_lib.results import described, figures, tables
from edge_eval_lib.results import harness as harness_results
from edge_eval_lib.runs import estimate, plan
from edge_eval_lib.study import Study, load_study, read_yaml

HARNESS = {"tasks": ["arc_easy", "mmlu"], "prompts": 400}
CONFIGURATIONS = (("lora", "fp16"), ("lora", "int4"))
# As the library gives them: a task, a group of two, a metric without a standard error, a NaN.
RESULTS = {
    "results": {
        "arc_easy": {
            "name": "arc_easy",
            "alias": "arc_easy",
            "sample_len": 400,
            "acc,none": 0.5,
            "acc_stderr,none": 0.025,
            "acc_norm,none": 0.4,
            "acc_norm_stderr,none": 0.02,
        },
        "mmlu_law": {
            "sample_len": 300,
            "exact_match,strict-match": 0.1,
            "exact_match_stderr,strict-match": "N/A",
        },
        "mmlu_logic": {
            "sample_len": 100,
            "exact_match,strict-match": float("nan"),
            "exact_match_stderr,strict-match": 0.0,
        },
        "mmlu": {"sample_len": 400, "acc,none": 0.3, "acc_stderr,none": 0.01},
    },
    "group_subtasks": {"mmlu": ["mmlu_law", "mmlu_logic"]},
    "higher_is_better": {
        "arc_easy": {"acc": True, "acc_norm": True},
        "mmlu_law": {"exact_match": True},
        "mmlu": {"acc": None},
    },
    "n-shot": {"arc_easy": 0, "mmlu_law": 5, "mmlu_logic": 5, "mmlu": 5},
    "versions": {"arc_easy": 1.0, "mmlu_law": "N/A"},
    "lm_eval_version": "0.4.13",
}


def load(directory: Path, **changes: object) -> Study:
    options = {"tasks": ("rag", "dialogue"), "configurations": CONFIGURATIONS} | changes
    return load_study(tiny.write_tiny_study(directory, "small", **options))


def harness_hashes(study: Study) -> dict[str, str]:
    return {name: made for (stage, name), made in tiny.hashes(study).items() if stage == "harness"}


# --- the study --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"harness": {"tasks": []}}, "harness.tasks is empty"),
        ({"harness": {"tasks": ["a", "a"]}}, "harness.tasks names a twice"),
        ({"harness": {"tasks": ["a"], "prompts": 0}}, "the field 'harness.prompts' is 0"),
        ({"harness": {"tasks": ["a"], "few_shot": -1}}, "the field 'harness.few_shot' is -1"),
        ({"harness": {"tasks": ["a"], "promps": 9}}, "did you mean 'prompts'?"),
        ({"harness": HARNESS, "workload": {"engine": "openai"}}, "not openai: it loads"),
        ({"harness": HARNESS, "ablation": {"steps": 1, "warmup_steps": 1}}, "ablation serves none"),
    ],
)
def test_a_wrong_harness_is_refused_in_a_sentence(tmp_path, changes, message):
    with pytest.raises(UserError) as refused:
        load(tmp_path, **changes)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_it_nothing_is_run_and_with_it_nothing_else_changes(tmp_path):
    without, asked = load(tmp_path), load(tmp_path, harness=HARNESS)
    assert not harness_hashes(without)
    assert "harness" not in without.model_dump()  # what the report was made with
    assert tiny.hashes(without).items() < tiny.hashes(asked).items()
    assert {stage for stage, _ in tiny.hashes(asked).keys() - tiny.hashes(without).keys()} == {
        "harness"
    }


def test_every_variant_is_scored_once_and_the_base_once_for_all_tasks(tmp_path):
    study = load(tmp_path, harness=HARNESS, repetitions=3)
    runs = {run.name: run for run in study.runs() if run.stage == "harness"}
    adapted = {str(variant) for variant in study.variants()}
    assert set(runs) == {*adapted, "tinyllama-0.1M_rag_none_fp16"}
    for variant in study.variants():
        assert runs[str(variant)].needs == (("compress", variant.adapter),)
    assert runs["tinyllama-0.1M_rag_none_fp16"].needs == ()
    assert fit.devices_needed({}, runs[next(iter(adapted))]) == 1


def test_what_scores_depend_on_makes_their_runs_again_and_nothing_else(tmp_path):
    study = load(tmp_path, harness=HARNESS)
    before = harness_hashes(study)
    assert harness_hashes(load(tmp_path, harness=HARNESS, workload={"output_tokens": 7})) == before
    assert (
        harness_hashes(load(tmp_path, harness=HARNESS | {"prompts": 9}))
        .items()
        .isdisjoint(before.items())
    )
    trained = harness_hashes(load(tmp_path, harness=HARNESS, training={"epochs": 2}))
    same = {name for name in before if trained[name] == before[name]}
    assert same == {"tinyllama-0.1M_rag_none_fp16"}


def test_task_files_count_by_their_content_wherever_they_lie(tmp_path):
    found = []
    for folder, text in (("a", "task: mine"), ("b", "task: mine"), ("c", "task: other")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.yaml").write_text(text)
        found.append(harness_hashes(load(tmp_path, harness=HARNESS | {"task_directory": folder})))
    assert found[0] == found[1]
    assert found[0].items().isdisjoint(found[2].items())
    nowhere = load(tmp_path, harness=HARNESS | {"task_directory": "nowhere"})
    with pytest.raises(UserError, match=r"names .*nowhere, which is not a directory\.$"):
        nowhere.runs()
    assert len(harness.problems(nowhere)) == 1


def test_answers_of_random_weights_are_not_scored(tmp_path):
    stanza = read_yaml(Path(__file__).parents[2] / "params" / "models.yaml")["llama-1B-random"]
    study = load(tmp_path, models=[stanza], harness=HARNESS)
    assert not harness_hashes(study)
    table = harness_results.harness_table(pd.DataFrame({"stage": ["serve"]}), study)
    assert len(table) == 2 * len(CONFIGURATIONS) + 1
    assert table["value"].isna().all()
    assert table["notes"].str.contains("the model's weights are random").all()
    assert picture(table, tmp_path).axes


# --- the plan ---------------------------------------------------------------------------------


@pytest.mark.slow  # reads the 14,000 tasks that the library knows
def test_the_plan_counts_its_runs_and_says_what_they_take(tmp_path):
    study = load(tmp_path, harness=HARNESS)
    told = plan.describe(study)
    assert "5 runs of lm-evaluation-harness, 400 prompts a task: arc_easy, mmlu" in told
    assert re.search(r"^harness +5 +0 +5 ", told, re.MULTILINE)
    runs = study.runs()
    twice = load(tmp_path, harness=HARNESS | {"prompts": 40_000_000})
    costs = [estimate.costs(s, s.runs(), {}) for s in (study, twice)]
    name = ("harness", next(run.name for run in runs if run.stage == "harness"))
    assert costs[1][name].seconds > costs[0][name].seconds
    assert "lm-evaluation-harness" not in plan.describe(load(tmp_path))


def test_without_the_library_the_way_to_it_is_reported(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name)
    )
    (problem,) = harness.problems(load(tmp_path, harness=HARNESS))
    assert "pip install -c constraints.txt -e '.[harness]'" in problem
    assert harness.problems(load(tmp_path)) == []


# --- results ----------------------------------------------------------------------------------


def recorded(study: Study) -> pd.DataFrame:
    """What `synthesis` collects of the study's harness runs."""
    rows = []
    for run in study.runs():
        if run.stage == "harness":
            told = {"family": "tinyllama", "size": "0.1M", "provenance": {"host": "A CPU"}}
            told |= {name: value for name, value in run.parameters.items() if name != "model"}
            rows.append({"stage": "harness", "harness": harness.metric_rows(RESULTS)} | told)
    return pd.DataFrame([*rows, {"stage": "serve"}])


def test_a_row_a_variant_task_and_metric(tmp_path):
    study = load(tmp_path, harness=HARNESS)
    table = harness_results.harness_table(recorded(study), study)
    assert list(table.columns) == harness_results.COLUMNS
    assert len(table) == 5 * 5
    adapted = table[(table["task"] == "rag") & (table["precision"] == "int4")]
    rows = adapted.set_index(["harness_task", "metric"])
    accuracy = rows.loc[("arc_easy", "acc")]
    assert accuracy["value_lo"] == pytest.approx(0.5 - 1.96 * 0.025, abs=1e-5)
    assert accuracy["value_hi"] == pytest.approx(0.5 + 1.96 * 0.025, abs=1e-5)
    assert accuracy["prompts"] == 400
    assert pd.isna(accuracy["notes"])
    # Of a group's task the group is told, and of a number that is none the reason.
    assert pd.isna(accuracy["group"])
    assert rows.loc[("mmlu_law", "exact_match"), "group"] == "mmlu"
    assert rows.loc[("mmlu_law", "exact_match"), "filter"] == "strict-match"
    assert rows.loc[("mmlu_law", "exact_match"), "notes"] == "stderr: the library has none"
    assert pd.isna(rows.loc[("mmlu_law", "exact_match"), "value_lo"])
    assert rows.loc[("mmlu_logic", "exact_match"), "notes"] == "value: the library has none"
    assert pd.isna(rows.loc[("mmlu", "acc"), "group"])
    assert rows.loc[("mmlu", "acc"), "few_shot"] == 5
    base = table[table["method"] == "none"]
    assert len(base) == 5
    assert base["task"].isna().all()
    assert base["notes"].str.startswith("task: the base is the same for every one").all()


def test_numbers_prompt_by_prompt_are_kept_and_other_things_left_out():
    samples = [
        {"doc_id": 0, "filter": "none", "metrics": ["acc", "perplexity"]}
        | {"acc": 1.0, "perplexity": -2.5},
        {"doc_id": 1, "filter": "none", "metrics": ["acc", "bleu"]}
        | {"acc": 0.0, "bleu": ("a", "b")},
    ]
    table = harness.prompt_table(RESULTS | {"samples": {"arc_easy": samples}})
    told = list(table[["prompt", "metric", "value"]].itertuples(index=False, name=None))
    assert told == [(0, "acc", 1.0), (0, "perplexity", -2.5), (1, "acc", 0.0)]


def picture(table, directory):
    """The figure that notebook 05 draws of a table of scores."""
    space = {"figures": figures, "tables": tables, "asked": {"harness": table}, "harness": table}
    space |= {
        "described": described,
        "pictures": directory,
        "results": SimpleNamespace(stamp="A CPU"),
    }
    return run_cell("05_synthesis.ipynb", "harness-picture", space).figure


def test_the_figure_has_a_panel_a_task_that_was_asked_for(tmp_path):
    study = load(tmp_path, harness=HARNESS)
    figure = picture(harness_results.harness_table(recorded(study), study), tmp_path)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["arc_easy", "mmlu"]
    assert [axis.get_xlabel() for axis in figure.axes] == ["acc, higher is better", "acc"]
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert "tinyllama-0.1M rag   LoRA FP16" in labels
    assert "tinyllama-0.1M   base FP16" in labels
    assert len(labels) == 5
