"""Exercises that the workshop's notebooks ask, check and explain."""

from edge_eval_lib.workshop.copies import student_copy
from edge_eval_lib.workshop.exercise import Exercise, Mistake

__all__ = ["Exercise", "Mistake", "student_copy"]
