"""An experiment from its study to its page: arms on a tiny model, and a notebook that fails."""

from __future__ import annotations

import subprocess

import nbformat
import pandas as pd
import pytest
from hand import complaints, executed
from tiny import make_all, make_tiny_model, make_tiny_study, runs_started

from edge_eval_lib.paths import project_root
from edge_eval_lib.study import load_study

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """The study of facts on a tiny model: its notebook by hand where nothing was, then `make all`.

    Its file, its outputs and what was said.
    """
    directory = tmp_path_factory.mktemp("facts")
    tasks = load_study("rag_or_finetuning").tasks
    path = make_tiny_study(
        directory,
        name="facts",
        tasks=tuple(tasks),
        configurations=(("lora", "fp16"),),
        notebook="11_rag_or_finetuning",
        correct_from=dict.fromkeys(tasks, 1.0),
    )
    with pytest.MonkeyPatch.context() as patch:
        page = executed("11_rag_or_finetuning.ipynb", directory / "outputs", patch, study=str(path))
    assert complaints(page) == ""
    done = make_all(path, directory / "outputs")
    return path, directory / "outputs" / "facts", done


def test_a_notebook_run_by_hand_makes_what_it_tells_of(facts):
    _, _, done = facts
    assert started(done) == ["preflight", "experiment", "synthesis"]


def test_four_arms_are_served_by_one_adapter_and_told_on_a_page(facts):
    _, outputs, done = facts
    assert done.returncode == 0, done.stdout + done.stderr
    assert [p.name for p in (outputs / "artefacts" / "adapters").iterdir()] == [
        "tinyllama-0.1M_closedbook_lora"
    ]
    table = pd.read_csv(outputs / "tables" / "arms.csv")
    assert sorted(zip(table["task"], table["method"], strict=True)) == [
        ("closedbook", "lora"), ("closedbook", "none"), ("openbook", "lora"), ("openbook", "none"),
    ]  # fmt: skip
    assert (table["prompts"] == 4).all()
    assert (table["energy_per_request_j"] > 0).all()
    assert (table["prompt_s"] > 0).all()
    tokens = table.groupby("task")["input_tokens_per_request"].mean()
    assert tokens["openbook"] > tokens["closedbook"] + 20  # the notes
    assert "What follows" in (outputs / "experiment.html").read_text(encoding="utf-8")
    report = (outputs / "report.html").read_text(encoding="utf-8")
    assert 'href="experiment.html"' in report


def test_what_is_done_is_not_made_again_and_its_page_is_if_it_is_lost(facts):
    path, outputs, _ = facts
    assert started(make_all(path, outputs.parent)) == []
    (outputs / "experiment.html").unlink()
    assert started(make_all(path, outputs.parent)) == ["experiment", "synthesis"]  # shows its table
    assert (outputs / "experiment.html").is_file()


def test_a_page_that_fails_leaves_everything_else(facts, tmp_path, monkeypatch):
    path, outputs, _ = facts
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    for file in (project_root() / "notebooks").glob("*.ipynb"):
        if file.name not in ("06_paper.ipynb", "11_rag_or_finetuning.ipynb"):
            (notebooks / file.name).symlink_to(file)
    broken = nbformat.read(project_root() / "notebooks" / "11_rag_or_finetuning.ipynb", 4)
    broken.cells.append(nbformat.v4.new_code_cell("raise ValueError('no such arm')"))
    nbformat.write(broken, notebooks / "11_rag_or_finetuning.ipynb")
    done = make_all(path, outputs.parent, EDGE_EVAL_NOTEBOOKS=str(notebooks))
    assert done.returncode != 0
    assert "no such arm" in done.stderr
    assert (outputs / "report.html").is_file()
    assert len(list((outputs / "runs" / "serve").glob("*.ipynb"))) == 4


def started(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return [run.partition("/")[0] for run in runs_started(done.stdout)]


def test_pruned_and_distilled_students_are_served_and_told_on_a_page(tmp_path, monkeypatch):
    make_tiny_model(tmp_path / "llama", num_hidden_layers=4)
    chains = ("fp16", "int4", "depth50-distil-fp16", "depth50-distil-int4", "int4-depth50")
    path = make_tiny_study(
        tmp_path,
        name="pruned",
        configurations=tuple(("lora", chain) for chain in chains),
        notebook="14_pruning",
        correct_from={"rag": 0.5},
        unadapted_base=False,
    )
    done = make_all(path, tmp_path / "outputs")
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = tmp_path / "outputs" / "pruned"
    made = {p.name.rsplit("_", 1)[1] for p in (outputs / "artefacts" / "models").iterdir()}
    assert made == set(chains)  # what is on the way to them is dropped again
    arms = pd.read_csv(outputs / "tables" / "arms.csv").set_index("precision")
    assert arms.loc["depth50-distil-int4", "disk_gb"] < arms.loc["int4", "disk_gb"]
    spent = arms["compress_energy_j"]  # a chain's are those of every step of it
    assert spent["depth50-distil-int4"] > spent["depth50-distil-fp16"] > spent["fp16"]
    joint = pd.read_csv(outputs / "tables" / "pruning_joint_losses.csv")
    assert set(joint["precision"]) == {"depth50-distil-int4"}  # the other's first part is lacking
    frontier = pd.read_csv(outputs / "tables" / "frontier.csv")
    assert len(frontier) == 2
    assert started(make_all(path, tmp_path / "outputs")) == []
    assert "quantise" in (outputs / "experiment.html").read_text(encoding="utf-8")
    page = executed("14_pruning.ipynb", tmp_path / "outputs", monkeypatch, study=str(path))
    assert complaints(page) == ""
