"""Runs: what a notebook begins and ends with, one run, the whole grid, and its plan."""
