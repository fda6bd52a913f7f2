"""The workshop as a class has it: the teacher's notebooks, and the students' copies unanswered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import nbformat.v4 as nb
import pytest
from checkout import change, make_checkout
from hand import OF_A_RUN, complaints
from nbclient import NotebookClient
from ruamel.yaml import YAML

from edge_eval_lib.paths import project_root
from edge_eval_lib.workshop.copies import SOLUTION

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1800)]

NAMES = sorted(path.name for path in (project_root() / "notebooks" / "workshop").glob("[0-9]*"))


def workshop(notebooks: Path, outputs: Path) -> subprocess.CompletedProcess[str]:
    told = {"EDGE_EVAL_NOTEBOOKS": str(notebooks), "EDGE_EVAL_OUTPUTS": str(outputs)}
    return subprocess.run(
        [sys.executable, "-m", "edge_eval_lib", "workshop"],
        env=os.environ | told,
        cwd=project_root(),
        capture_output=True,
        text=True,
        timeout=1500,
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("workshop")
    done = workshop(project_root() / "notebooks", directory)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def test_all_solutions_hold(outputs: Path):
    executed = sorted((outputs / "workshop").glob("*.ipynb"))
    assert [path.name for path in executed] == NAMES
    for path in executed:
        notebook = nbformat.read(path, as_version=4)
        solved = [c for c in notebook.cells if SOLUTION in c.metadata.get("tags", [])]
        assert solved
        said = ["".join(output.text for output in cell.outputs) for cell in solved]
        assert [text for text in said if not text.startswith("Right.")] == []
        assert complaints(notebook) == ""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose embedded model is a tiny one: what is measured is not what is asked here."""
    directory = make_checkout(tmp_path_factory.mktemp("small"), max_position_embeddings=4096)
    file = directory / "params" / "embedded.yaml"
    training = YAML(typ="safe", pure=True).load(file)["training"]
    change(file, {"training": training | {"max_tokens": 512}})  # it has more tokens for a text
    return directory


@pytest.mark.parametrize("name", NAMES)
def test_a_students_copy_goes_through_unanswered(
    name: str, outputs: Path, small: Path, monkeypatch
):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(small / "outputs"))
    monkeypatch.setenv("PYTHONPATH", str(small))
    for variable in OF_A_RUN:
        monkeypatch.delenv(variable, raising=False)
    copy = outputs / "workshop" / "student" / name
    notebook = nbformat.read(copy, as_version=4)
    resources = {"metadata": {"path": str(copy.parent)}}
    NotebookClient(notebook, kernel_name="python3", timeout=600, resources=resources).execute()
    streams = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "stream"]
    asked = sum(" = ...  # " in cell.source for cell in notebook.cells)
    assert 4 <= asked <= 7
    assert "".join(o.text for o in streams).count("Not answered yet. Hint: ") == asked
    assert complaints(notebook) == ""


def test_a_solution_that_is_wrong_is_named_and_the_others_run(tmp_path: Path):
    asked = "from edge_eval_lib.workshop import Exercise\ntask_1 = Exercise(4, 'Count.', 'So.')"
    for name, answer in (("1_wrong", 5), ("2_right", 4)):
        solution = nb.new_code_cell(f"assert task_1.check({answer})", metadata={"tags": [SOLUTION]})
        source = tmp_path / "notebooks" / "workshop" / f"{name}.ipynb"
        source.parent.mkdir(parents=True, exist_ok=True)
        notebook = nb.new_notebook(cells=[nb.new_code_cell(asked), solution])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, source)
    done = workshop(tmp_path / "notebooks", tmp_path / "outputs")
    assert done.returncode == 1
    assert done.stderr == (
        f"1 of 2 notebooks in {tmp_path / 'outputs' / 'workshop'} failed:\n"
        "  1_wrong: `assert task_1.check(5)`: AssertionError\n"
    )
    executed = tmp_path / "outputs" / "workshop" / "1_wrong.ipynb"
    assert "Too high. Hint: Count." in executed.read_text(encoding="utf-8")
    assert (tmp_path / "outputs" / "workshop" / "student" / "2_right.ipynb").is_file()


def test_where_there_is_no_workshop_it_says_so(tmp_path: Path):
    done = workshop(tmp_path, tmp_path / "outputs")
    assert done.returncode == 1
    assert done.stderr == f"There are no notebooks of the workshop in {tmp_path / 'workshop'}.\n"
