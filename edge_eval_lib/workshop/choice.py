"""An exercise whose answer is one of a few words."""

from __future__ import annotations

from collections.abc import Mapping

from edge_eval_lib.workshop.exercise import Exercise, Mistake


def choice(answer: str, says: Mapping[str, str], hint_text: str, solution_text: str) -> Exercise:
    """Ask for a word.

    Args:
        answer: The right one.
        says: What is said to whoever gives a word that is not the right one.
        hint_text: What to think of; the words stand before it.
        solution_text: Why.

    Raises:
        ValueError: The answer is none of the words.
    """
    if answer not in says:
        raise ValueError(f"the answer {answer!r} is none of {', '.join(says)}")
    wrong = (Mistake(word, message) for word, message in says.items() if word != answer)
    words = ", ".join(f'"{word}"' for word in says)  # as they are written into the cell
    return Exercise(answer, f"one of {words}. {hint_text}", solution_text, mistakes=tuple(wrong))


def larger(one: float, other: float, words: tuple[str, str, str], same_share: float = 0.1) -> str:
    """Say which of two figures is larger.

    Args:
        one: A figure.
        other: Another.
        words: For `one`, for `other`, and for neither.
        same_share: What differs by at most this share of the larger is the same.
    """
    if abs(one - other) <= same_share * max(one, other):
        return words[2]
    return words[0] if one > other else words[1]
