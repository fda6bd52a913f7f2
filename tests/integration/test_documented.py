"""What README and docs tell people to type: make and the commands take every word of it.

What is quick is also run, on a tiny study: tests/end_to_end/test_documented_run.py.
"""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from documented import PAGES, ROOT, arguments, blocks, commands, words_of

from edge_eval_lib.__main__ import app
from edge_eval_lib.study import PUBLISHED

HISTORY = ROOT / "CHANGELOG.md"
COMMANDS = sorted({c for page in PAGES if page != HISTORY for c in commands(page)})
PLACEHOLDERS = {"...", "NAME", PUBLISHED}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("environment")


def parse(given: list[str]) -> str:
    """Have typer read the arguments of a command without doing it; the command's name."""
    group = typer.main.get_command(app)
    asked = []
    for name, command in group.commands.items():
        command.callback = lambda name=name, **_: asked.append(name)
    group.main(given, prog_name="edge_eval_lib", standalone_mode=False)
    return asked[0] if asked else "--help"


def test_the_pages_have_commands():
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one(command, environment):
    variables, words = words_of(command)
    if words[0] == "make":
        given = arguments(words, environment)
        said = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        study, profile = said.get("STUDY"), said.get("PROFILE")
        assert study is None or "/" in study or study.endswith(".yaml") or named(study)
        assert profile is None or "/" in profile or (ROOT / "profiles" / profile).is_dir()
        assert given is None or parse(given)
    elif words[1:3] == ["-m", "edge_eval_lib"]:
        assert words[0] == ".venv/bin/python", "another Python has not what it needs"
        assert parse(words[3:])
    elif words[1:2] == ["-m"]:
        assert importlib.util.find_spec(words[2]), command
    elif "pip" in words[0]:
        assert words[1] == "install"
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.findall(r"\[(.+)\]", command)
        assert set(extras) <= set(project["optional-dependencies"])
    elif words[0] in ("python", "python3"):
        assert len(words) == 1 or (ROOT / words[1]).is_file()
    elif words[0] == "cp":
        assert len(words) == 1 or (ROOT / words[-2]).exists()
    else:
        assert words[0] in ("export", ".venv/bin/pre-commit", ".venv/bin/python"), command
    assert all(re.fullmatch(r"[A-Z_]+", name) for name in variables)


def named(study: str) -> bool:
    return study in PLACEHOLDERS or (ROOT / "params" / f"{study}.yaml").is_file()


def test_a_word_that_is_none_would_be_noticed(environment):
    with pytest.raises(Exception, match="No such option"):
        parse(["advise", "--requests-a-day", "3"])
    with pytest.raises(AssertionError, match="No rule to make target"):
        arguments(shlex.split("make planet"), environment)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_and_yaml_on_a_page_are_that(page):
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, str(page), "exec")
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)
        else:
            assert block.language in ("", "bash", "mermaid"), block
