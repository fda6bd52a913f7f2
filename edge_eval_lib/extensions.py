"""A new task, engine, energy source or compression is one new file in its room.

The file may also lie outside the library: directories named in EDGE_EVAL_EXTENSIONS hold folders
called as the rooms are, such as `compressions/prune50.py`.
"""

from __future__ import annotations

import os
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
    found = {
        file.removesuffix(".py")
        for folder in filter(os.path.isdir, path)
        for file in os.listdir(folder)
        if file.endswith(".py") or os.path.isfile(os.path.join(folder, file, "__init__.py"))
    }
    return sorted(found - {*but} - {name for name in found if name.startswith("_")})
