"""A checkout of the project whose smollm2-135M is a tiny model, for tests that change its files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ruamel.yaml import YAML
from tiny import make_tiny_model

from edge_eval_lib.paths import project_root

DIRECTORIES = ("edge_eval_lib", "notebooks", "params", "profiles")
FILES = ("Snakefile", "pyproject.toml", "constraints.txt")


def make_checkout(directory: Path, **shape: int) -> Path:
    """Copy the project to `directory`, a repository of its own; returns it.

    `shape` replaces fields of the tiny model's configuration.
    """
    for name in DIRECTORIES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(project_root() / name, directory / name, ignore=ignored)
    for name in FILES:
        shutil.copy(project_root() / name, directory)
    _git("init", "--quiet", cwd=directory)  # a clone is one, and libraries ask for its commit
    _git("commit", "--quiet", "--allow-empty", "--message", "A checkout", cwd=directory)
    tiny_model = make_tiny_model(directory / "tiny", **shape)
    change(directory / "params" / "models.yaml", {"smollm2-135M": _stanza(tiny_model)})
    return directory


def change(file: Path, changes: dict[str, object]) -> None:
    """Replace top-level fields of a YAML file."""
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load(file) | changes
    with file.open("w", encoding="utf-8") as target:
        yaml.dump(content, target)


def _git(*arguments: str, cwd: Path) -> None:
    identity = ["-c", "user.name=Tests", "-c", "user.email=tests@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True)


def _stanza(directory: Path) -> dict[str, object]:
    """A tiny model under the name and size of the embedded one."""
    return {
        "family": "smollm2",
        "size": "135M",
        "source": "local",
        "location": str(directory),
        "revision": "none",
        "licence": "Apache-2.0",
        "parameters": 140_000,
        "nominal_gb": {"fp16": 2.8e-4, "int8": 1.4e-4, "int4": 0.7e-4},
    }
