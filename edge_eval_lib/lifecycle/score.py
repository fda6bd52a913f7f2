"""Pair a study's answers with their examples, score them, and answer without a model.

What a score is stands with its task (tasks/rag.py), and notebook 04 calls it; here is what needs a
test: whose answer is whose, what is missing and why, which answers are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib import bars, tasks
from edge_eval_lib.artefacts.completion import read_raw
from edge_eval_lib.bounds import Share, require
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle.data import task_examples
from edge_eval_lib.scraps import collect
from edge_eval_lib.study import Study
from edge_eval_lib.tasks import Example, Score

RUN_COLUMNS = ["family", "size", "task", "method", "precision", "repetition"]
# Rules without a model are chosen on this many training examples, and look for neighbours there.
RULE_EXAMPLES = 200
NO_RULE = "no rule without a model applies to these data"


@dataclass(frozen=True)
class Served:
    """The answers of one finished serving run, and the example that each answers.

    `run` holds `RUN_COLUMNS`; `raw` a row an answer, with what the run recorded of it.
    """

    run: dict[str, Any]
    raw: pd.DataFrame
    examples: list[Example]

    @property
    def task(self) -> str:
        """The task that was served."""
        return self.run["task"]


def served(study: Study) -> Iterator[Served]:
    """Yield the answers of each finished serving run of a study.

    Runs made with other settings than the study's are left out. Answers of a model with random
    weights are missing: nothing is to be scored in them.

    Raises:
        UserError: No serving run is finished.
    """
    runs = served_runs(study)
    if runs.empty:
        raise UserError(f"No serving run of study {study.name} is finished: nothing to score.")
    examples = {
        task: {e.id: e for e in task_examples(study, task)[2].evaluation} for task in study.tasks
    }
    with bars.counted("serving runs scored", len(runs)) as count:
        for _, scraps in runs.iterrows():
            raw = read_raw(scraps["notebook"], "answers")
            if study.model(f"{scraps['family']}-{scraps['size']}").source == "random":
                reason = "the model's weights are random"
                raw = raw.assign(answer=None, gold_nll=np.nan, failure=reason)
            asked = [examples[scraps["task"]][prompt_id] for prompt_id in raw["prompt_id"]]
            yield Served({column: scraps[column] for column in RUN_COLUMNS}, raw, asked)
            count(1)


def served_runs(study: Study) -> pd.DataFrame:
    """Collect the scraps of finished serving runs, whatever the number of repetitions."""
    runs = collect(study.directory / "runs" / "serve")
    if runs.empty:
        return runs
    study = study.covering(int(runs["repetition"].max()))
    current = {run.name: run.settings_hash for run in study.runs() if run.stage == "serve"}
    return runs[runs["run"].map(current) == runs["settings_hash"]]


def score_served(run: Served, score: Score | None = None) -> pd.DataFrame:
    """Score the answers of a serving run; a row a prompt.

    Args:
        run: What `served` yields.
        score: What scores answers; by default the task's own.

    Returns:
        The columns of `score_answers`, what the run recorded of each answer, and `RUN_COLUMNS`.
    """
    scored = score_answers(run.task, run.raw["answer"].tolist(), run.examples, score)
    recorded = run.raw.drop(columns=["answer", "reference"])
    scored = scored.merge(recorded, on="prompt_id", validate="1:1")
    scored["score_reason"] = scored.pop("failure").fillna(scored["score_reason"])
    return scored.assign(**run.run)


def together(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Put the tables of `score_served` in one, and compare each answer with that of FP16.

    `top1_agreement` is the share of the gold answer's positions at which the model's most likely
    token is that of LoRA at FP16, same model, task and repetition; missing where that was not
    served.
    """
    table = pd.concat(tables, ignore_index=True)
    table["top1_agreement"] = _agreement_with_fp16(table).where(table["gold_nll"].notna())
    return table.drop(columns="gold_argmax_ids")


def score_answers(
    task: str, answers: list[str | None], examples: list[Example], score: Score | None = None
) -> pd.DataFrame:
    """Score each answer against its example.

    An empty string is an answer and scores 0. An answer of None (or NaN, as tables keep it) could
    not be obtained: its row holds NaN and the reason.

    Args:
        task: Whose figures they are.
        answers: One for each example.
        examples: What was asked.
        score: What scores answers; by default the task's own.

    Returns:
        A row a prompt: prompt_id, score (the first of the figures, 0..1), content (the task's
        figure of content alone; the score where the data have no form, as a hub's), score_reason
        (why the score is missing, else empty), every figure of the score, answer, reference.

    Raises:
        UserError: There is no such task.
        ValueError: Answers and examples or figures differ in number, or a score is not in 0..1.
    """
    definition = tasks.find(task)
    if len(answers) != len(examples):
        raise ValueError(f"answers has {len(answers)} items, examples has {len(examples)}")
    answered = [index for index, answer in enumerate(answers) if not pd.isna(answer)]
    figures = (score or definition.score)(
        [str(answers[index]) for index in answered], [examples[index] for index in answered]
    )
    if len(figures) != len(answered):
        raise ValueError(f"score gives {len(figures)} rows of figures for {len(answered)} answers")
    names = list(dict.fromkeys([*(figures[0] if figures else ()), *definition.figures]))
    by_answer = pd.DataFrame(figures, index=answered, columns=names, dtype=float)
    table = by_answer.reindex(range(len(answers)))
    scores = table[names[0]]
    require(Share, score=scores.dropna())
    content = table[definition.content].fillna(scores) if definition.content else scores
    reasons = [
        "" if i in by_answer.index else "there is no answer to this prompt" for i in table.index
    ]
    table.insert(0, "prompt_id", [example.id for example in examples])
    table.insert(1, "score", scores)
    table.insert(2, "content", content)
    table.insert(3, "score_reason", reasons)
    return table.assign(
        answer=pd.Series(answers, index=table.index), reference=[e.answer for e in examples]
    )


def no_model(study: Study, scores: Mapping[str, Score] | None = None) -> pd.DataFrame:
    """Answer the study's evaluation prompts without a model and score them.

    Args:
        study: Whose tasks and prompts.
        scores: What scores the answers to a task; by default its own.

    Returns:
        The rows of `answer_without_model` for each task, and `task`.
    """
    parts = []
    for task in study.tasks:
        training, _, data = task_examples(study, task)
        score = (scores or {}).get(task)
        parts.append(answer_without_model(task, training, data.evaluation, score).assign(task=task))
    return pd.concat(parts, ignore_index=True)


def answer_without_model(
    task: str, training: list[Example], evaluation: list[Example], score: Score | None = None
) -> pd.DataFrame:
    """Answer by the best of the task's rules without a model, chosen on training examples.

    A rule that looks at a neighbour looks at another example.

    Returns:
        `score_answers` of the rule with the best mean score, whose sentence is `rule`. `content`
        is that of the rule with the best content, `content_rule`: no rule has to do well in both.
        Where no rule applies, rows without answer and score, which say so.
    """
    training = training[:RULE_EXAMPLES]
    means = {}
    for rule in tasks.find(task).no_model_rules:
        answers = [rule.answer(example, training) for example in training]
        if answers and None not in answers:
            means[rule] = score_answers(task, answers, training, score)[["score", "content"]].mean()
    if not means:
        table = score_answers(task, [None] * len(evaluation), evaluation, score)
        return table.assign(score_reason=NO_RULE, rule=NO_RULE, content_rule=NO_RULE)
    by_score, by_content = (
        max(means, key=lambda rule: means[rule][figure]) for figure in ("score", "content")
    )
    table, content = (
        score_answers(task, [rule.answer(e, training) for e in evaluation], evaluation, score)
        for rule in (by_score, by_content)
    )
    return table.assign(
        content=content["content"], rule=by_score.sentence, content_rule=by_content.sentence
    )


def _agreement_with_fp16(table: pd.DataFrame) -> pd.Series:
    keys = ["family", "size", "task", "repetition", "prompt_id"]
    fp16 = table[(table["method"] == "lora") & (table["precision"] == "fp16")]
    wanted = table[keys].merge(fp16[[*keys, "gold_argmax_ids"]], on=keys, how="left")
    return pd.Series(
        [
            float("nan") if not hasattr(of_fp16, "__len__") else float(np.mean(own == of_fp16))
            for own, of_fp16 in zip(
                table["gold_argmax_ids"], wanted["gold_argmax_ids"], strict=True
            )
        ],
        index=table.index,
    )
