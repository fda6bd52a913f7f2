"""A notebook in a kernel of its own: when it is written, and what is noted meanwhile."""

import gc
import os
import subprocess
import sys

import nbformat
import pytest
from nbformat import v4
from papermill.iorw import LocalHandler

from edge_eval_lib.artefacts.place import Place, place
from edge_eval_lib.runs import kernel, under_way
from edge_eval_lib.study import load_study

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Executes cells of code, prose before each; returns the reason and the notebook's file."""
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path / "outputs"))
    at = place(load_study("embedded"), "serve", "x_r01")
    at.running.mkdir(parents=True)
    under_way.begin(at)

    def run(*codes, measured=True):
        cells = [
            cell for code in codes for cell in (v4.new_markdown_cell("."), v4.new_code_cell(code))
        ]
        spec = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
        nbformat.write(v4.new_notebook(cells=cells, metadata=spec), tmp_path / "source.ipynb")
        own = {"JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"), "IPYTHONDIR": str(tmp_path)}
        written = at.running / "notebook.ipynb"
        source, environment = tmp_path / "source.ipynb", os.environ | own
        return kernel.execute(source, written, {}, environment, at, measured), written

    return run


def printed(file):
    cells = nbformat.read(file, 4).cells
    return [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]


def test_a_notebook_is_written_at_its_start_and_end_and_noted_at_every_cell(execute, monkeypatch):
    writes, notes = [], []
    write = LocalHandler.write
    monkeypatch.setattr(LocalHandler, "write", lambda *given: (writes.append(1), write(*given))[1])
    monkeypatch.setattr(under_way, "note", lambda _at, *counts: notes.append(counts))
    reason, file = execute(*["print('done')"] * 6)
    assert reason is None
    assert printed(file) == ["done\n"] * 6
    assert notes == [(completed, 12) for completed in range(12)]
    assert len(writes) <= 3  # not 24: at the start, at the end, and by papermill once more


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("print('so far'); raise ValueError('no')", "ValueError: no"),
        ("print('so far', flush=True); import os, time; time.sleep(1); os._exit(3)", "kernel"),
    ],
)
def test_what_was_done_before_a_failure_is_written(execute, failing, said):
    reason, file = execute("print('first')", failing)
    assert said in reason
    assert printed(file)[:2] == ["first\n", "so far\n"]


@pytest.mark.parametrize("content", ["<<<<<<< HEAD", "{}", '{"metadata": []}'])
def test_a_source_that_is_no_notebook_is_said_in_a_sentence(tmp_path, content):
    (tmp_path / "source.ipynb").write_text(content)
    at = Place(tmp_path, "serve", "x_r01")
    own = os.environ | {"JUPYTER_RUNTIME_DIR": str(tmp_path)}
    reason = kernel.execute(tmp_path / "source.ipynb", tmp_path / "x.ipynb", {}, own, at)
    assert "Error" in (reason or "")


def test_garbage_is_collected_seldom_only_where_nothing_is_measured(execute):
    code = "import gc; print(gc.get_threshold()[0])"
    for measured, threshold in ((True, gc.get_threshold()[0]), (False, 100_000)):
        reason, file = execute(code, measured=measured)
        assert reason is None
        assert printed(file) == [f"{threshold}\n"]


def test_what_runs_a_notebook_imports_nothing_that_it_does_not_need():
    """Each of a study's runs starts such a process; what it leaves out can be imported later."""
    program = (
        "import sys; from edge_eval_lib.runs import kernel\n"
        "with kernel._left_out(*kernel.UNUSED): import papermill\n"
        "print(sorted({'numpy', 'pandas', 'pyarrow', 'chardet'} & set(sys.modules)))\n"
        "import pyarrow.fs; print(pyarrow.fs.__name__)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert said.stdout.splitlines() == ["[]", "pyarrow.fs"], said.stderr
