"""A new task, engine, energy source or compression is one new file in its room.

The file may also lie outside the library: directories named in EDGE_EVAL_EXTENSIONS hold folders
called as the rooms are, such as `compressions/prune50.py`.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Iterable
from pathlib import Path

VARIABLE = "EDGE_EVAL_EXTENSIONS"


def folders(room: str) -> list[str]:
    """Folders outside the library whose files belong to a room; add them to its `__path__`."""
    directories = os.environ.get(VARIABLE, "").split(os.pathsep)
    candidates = [Path(directory).resolve() / room for directory in directories if directory]
    return [str(folder) for folder in candidates if folder.is_dir()]


def names(path: Iterable[str], but: Iterable[str] = ()) -> list[str]:
    """What a room with that `__path__` offers: its files' names in order, without those of `but`.

    Nothing is imported.
    """
    found = (module.name for module in pkgutil.iter_modules(list(path)))
    return sorted(name for name in found if name not in but and not name.startswith("_"))
