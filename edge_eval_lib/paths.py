"""Where the project lies, and where runs write."""

from __future__ import annotations

import os
from pathlib import Path


def project_root() -> Path:
    """Return the directory that holds notebooks/, params/ and outputs/."""
    return Path(__file__).resolve().parents[1]


def outputs_root() -> Path:
    """Return where runs write: outputs/, or the directory that EDGE_EVAL_OUTPUTS names."""
    return Path(os.environ.get("EDGE_EVAL_OUTPUTS") or project_root() / "outputs").resolve()
