"""Where the project lies, and where runs write."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from edge_eval_lib.errors import UserError


def project_root() -> Path:
    """Return the directory that holds notebooks/, params/ and outputs/."""
    return Path(__file__).resolve().parents[1]


def outputs_root() -> Path:
    """Return where runs write: outputs/, or the directory that EDGE_EVAL_OUTPUTS names."""
    return Path(os.environ.get("EDGE_EVAL_OUTPUTS") or project_root() / "outputs").resolve()


def user_directory() -> Path:
    """Return the user's directory of what holds until the machine is started anew, such as locks.

    UserError if it belongs to another user.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    if not base or not Path(base).is_dir():  # a cluster's job may inherit it from another machine
        base = tempfile.gettempdir()
    directory = Path(base) / f"edge-eval-{os.getuid()}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise UserError(f"{directory} belongs to another user; set XDG_RUNTIME_DIR to your own.")
    return directory
