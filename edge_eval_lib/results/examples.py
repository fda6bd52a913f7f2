"""Three answers of a study: the best, one in the middle, the worst, and how they were chosen."""

from __future__ import annotations

import re
import textwrap

import pandas as pd

from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle.data import task_examples
from edge_eval_lib.results.columns import sort_variants
from edge_eval_lib.results.described import variant
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


def shown(answers: pd.DataFrame, study: Study) -> tuple[pd.DataFrame, str]:
    """Set the three answers beside their questions, shortened, and say how they were chosen.

    Args:
        answers: A row a variant, repetition and prompt.
        study: Whose tasks' data hold the questions; where they cannot be read, a dash stands.

    Returns:
        A table of texts and scores, and the sentence.
    """
    rows = three(answers)
    questions = {task: _questions(study, task) for task in rows["task"].unique()}
    table = pd.DataFrame(
        [
            {
                "": row["place"],
                "variant": variant(row, answers),
                "question": _short(questions[row["task"]].get(row["prompt_id"])),
                "gold answer": _short(row["reference"]),
                "answer": _short(row["answer"]) or "(an empty answer)",
                "score": row["score"],
            }
            for _, row in rows.iterrows()
        ],
        columns=["", "variant", "question", "gold answer", "answer", "score"],
    )
    count = answers.loc[answers["method"] != "none", "score"].notna().sum()
    how = (
        f"Of {count:,} scored answers by adapted variants: the highest score, the one nearest to "
        "the median, and the lowest; of several alike the first by variant and prompt."
    )
    return table, how if len(table) else "No answer was scored."


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


def _short(text: object) -> str | None:
    return textwrap.shorten(text, CHARACTERS, placeholder=" …") if isinstance(text, str) else None
