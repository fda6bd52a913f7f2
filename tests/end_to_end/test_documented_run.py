"""docs/new-model.md followed to the letter, by a family that the project has not seen; and then the
quick commands of README and docs on the study that came of it."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import orjson
import pandas as pd
import pytest
import yaml
from documented import PAGES, ROOT, arguments, blocks, commands, words_of
from huggingface_hub import ModelCard
from tiny import make_tiny_model

from edge_eval_lib.results import meanings, reference

pytestmark = pytest.mark.end_to_end

PAGE = ROOT / "docs" / "new-model.md"
FAMILY = "olmo2"
# Commands that are run, in this order; tests/integration/test_documented.py parses the others.
QUICK = ("results", "compare", "status", "advise", "report", "export", "pack", "unpack")


class Newcomer:
    """A person in the project's directory who types what a page says."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.said = directory, {}
        self.environment = os.environ | {
            "EDGE_EVAL_OUTPUTS": str(directory / "outputs"),
            "PYTHONPATH": str(ROOT),
        }
        for name in ("Makefile", "params", "pyproject.toml", "constraints.txt"):
            (directory / name).symlink_to(ROOT / name)

    def run(self, *words: str, **variables: str) -> str:
        done = subprocess.run(
            words,
            cwd=self.directory,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def type(self, command: str) -> None:
        _, words = words_of(command)
        own = [f"VENV={sys.prefix}"] if words[0] == "make" else []
        self.said[command] = self.run(*words, *own)

    def change(self, study: Path, lines: str) -> None:
        """Change the lines of a study file that are shown."""
        content = yaml.safe_load(study.read_text(encoding="utf-8"))
        changed = yaml.safe_load(lines)
        assert set(changed) <= set(content)
        study.write_text(yaml.safe_dump(content | changed, sort_keys=False), encoding="utf-8")


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory) -> Newcomer:
    """A person who followed the page to its end."""
    person = Newcomer(tmp_path_factory.mktemp("newcomer"))
    weights = make_tiny_model(person.directory / "weights" / "Tiny_0.1M", FAMILY)
    for block in blocks(PAGE):
        text = block.text.replace("/path/to/weights", str(weights))
        if block.language == "yaml":
            person.change(person.directory / "mine.yaml", text)
        else:
            for command in text.splitlines():
                person.type(command.strip())
    return person


@pytest.mark.timeout(1800)
def test_an_unseen_family_goes_through_the_five_steps(newcomer):
    config = orjson.loads(
        (newcomer.directory / "weights" / "Tiny_0.1M" / "config.json").read_bytes()
    )
    assert config["model_type"] == FAMILY
    others = [*(ROOT / "edge_eval_lib").rglob("*.py"), *(ROOT / "params").glob("*.yaml")]
    others += [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    assert not [path for path in others if FAMILY in path.read_text(encoding="utf-8").lower()]
    titles = [line for line in PAGE.read_text().splitlines() if line.startswith("## ")]
    assert [title[:5] for title in titles] == [f"## {n}." for n in range(1, 6)]

    outputs = newcomer.directory / "outputs" / "mine"
    assert (outputs / "report.html").is_file()
    variants = pd.read_csv(outputs / "tables" / "variants.csv")
    assert list(variants["precision"]) == ["fp16", "int4"]
    assert variants["energy_per_request_j"].gt(0).all()
    assert "runs are done" in newcomer.said["make status STUDY=mine.yaml"]
    card = ModelCard.load(outputs / "export" / "model-card" / f"{name_of(variants)}.md")
    assert card.data.co2_eq_emissions["emissions"] > 0
    assert (outputs / "planner.html").is_file()


def name_of(variants: pd.DataFrame) -> str:
    row = variants.iloc[-1]
    return f"{row['family']}-{row['size']}_{row['task']}_{row['method']}_{row['precision']}"


def test_tables_have_the_columns_that_the_reference_lists(newcomer):
    directory = newcomer.directory / "outputs" / "mine" / "tables"
    for name, (_, listed) in reference.tables().items():
        if (directory / f"{name}.csv").is_file():
            columns = pd.read_csv(directory / f"{name}.csv", nrows=0).columns
            known = {meanings.stem(column) for column in listed}
            assert {meanings.stem(column) for column in columns} <= known, name


@pytest.mark.timeout(1800)
def test_quick_commands_of_the_pages_work_on_that_study(newcomer, tmp_path):
    study = str(newcomer.directory / "mine.yaml")
    meant = {"t4_free": study, "embedded": study, "outputs.zip": str(tmp_path / "mine.zip")}
    for name in ("results/t4_free-MACHINE.json", "one.json"):
        meant[name] = str(tmp_path / "sent.json")
    meant["outputs/two"] = str(newcomer.directory / "outputs" / "mine")
    typed = {}
    for page in PAGES:
        for command in commands(page) if page not in (PAGE, ROOT / "CHANGELOG.md") else []:
            given = arguments(words_of(command)[1], tmp_path / "environment") or [""]
            is_whole = len(given) > 2 and all(given) and "published" not in given
            if given[0] in QUICK and is_whole:
                words = [meant.get(word, word) for word in given]
                typed.setdefault(shlex.join(words), words)
    # advise makes a report again that is there, as it has for the newcomer; report makes it anew.
    (newcomer.directory / "outputs" / "mine" / "report.html").unlink()
    in_order = sorted(typed.values(), key=lambda words: QUICK.index(words[0]))
    assert {words[0] for words in in_order} == set(QUICK)
    for words in in_order:
        own = {"EDGE_EVAL_OUTPUTS": str(tmp_path / "elsewhere")} if words[0] == "unpack" else {}
        newcomer.run(sys.executable, "-m", "edge_eval_lib", *words, **own)
    assert (tmp_path / "elsewhere" / "mine" / "runs" / "serve").is_dir()
