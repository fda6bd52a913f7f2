"""Three answers of a study: the best, one in the middle, the worst, and how they were chosen."""

from __future__ import annotations

import re
import textwrap

import pandas as pd

from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle.data import task_examples
from edge_eval_lib.results.columns import sort_variants
from edge_eval_lib.results.described import variant
from edge_eval_lib.results.readable import Prose, escaped, format_number
from edge_eval_lib.study import Study

CHARACTERS = 160  # of a text that is shown
PLACES = ("best", "middle", "worst")


def three(answers: pd.DataFrame) -> pd.DataFrame:
    """Choose the answer with the highest score, the one nearest to the median, and the lowest.

    Of the adapted variants' scored answers; of several alike the first by variant and prompt, and
    none is taken twice. The rows have their `place`; fewer than three where there are fewer.
    """
    scored = answers[answers["method"] != "none"].dropna(subset=["score"])
    scored = sort_variants(scored.sort_values("prompt_id", kind="stable"))
    chosen: list[int] = []
    for place in PLACES:
        left = scored.drop(index=chosen)
        if left.empty:
            break
        score = left["score"].astype(float)
        distance = {"best": -score, "worst": score}.get(
            place, (score - scored["score"].astype(float).median()).abs()
        )
        chosen.append(int(distance.idxmin()))
    rows = scored.loc[chosen]
    return rows.assign(place=[*PLACES[: len(rows)]])


def shown(answers: pd.DataFrame, study: Study) -> Prose:
    """Show the three answers below their questions, shortened, and how they were chosen.

    Args:
        answers: A row a variant, repetition and prompt.
        study: Whose tasks' data hold the questions; where they cannot be read, that is said.
    """
    rows = three(answers)
    if rows.empty:
        return Prose("No answer was scored.")
    questions = {task: _questions(study, task) for task in rows["task"].unique()}
    items = [
        f"- **{row['place'].capitalize()}, score {format_number(row['score'], 2)}** "
        f"({escaped(variant(row, answers))})\n"
        f"    - question: {_short(questions[row['task']].get(row['prompt_id']))}\n"
        f"    - gold answer: {_short(row['reference'])}\n"
        f"    - answer: {_short(row['answer'])}"
        for _, row in rows.iterrows()
    ]
    count = answers.loc[answers["method"] != "none", "score"].notna().sum()
    items.append(
        f"\nOf {count:,} scored answers by adapted variants: the highest score, the one nearest to "
        "the median, and the lowest; of several alike the first by variant and prompt."
    )
    return Prose("\n".join(items))


def _questions(study: Study, task: str) -> dict[str, str]:
    """The question of each prompt: the task's own, else the last thing that the user said."""
    try:
        evaluation = task_examples(study, task)[2].evaluation
    except UserError:  # the data lie on another machine
        return {}
    return {
        example.id: example.details.get("question")
        or re.sub(r"\n[^\n]*:$", "", example.messages[-1]["content"])  # the answer's first word
        for example in evaluation
    }


def _short(text: object) -> str:
    if not isinstance(text, str):
        return "not on this machine"
    return escaped(textwrap.shorten(text, CHARACTERS, placeholder=" …")) or "(empty)"
