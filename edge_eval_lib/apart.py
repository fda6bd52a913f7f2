"""A module of ours in a process of its own, so that this one stays as it is."""

from __future__ import annotations

import subprocess
import sys

from edge_eval_lib.errors import UserError


def run_module(*arguments: str, otherwise: str) -> None:
    """Run `python -m ARGUMENTS` to its end.

    Args:
        arguments: The module, and what it is called with.
        otherwise: What to say of a failure about which it said nothing.

    Raises:
        UserError: It failed; with the last line that it said.
    """
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise UserError(lines[-1] if lines else otherwise)
