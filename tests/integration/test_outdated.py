"""Editing a stage notebook's code makes its runs out of date; prose, layout and outputs do not."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import nbformat
import orjson
import pytest
from finished import ADAPTER, INT4, undone

from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import place
from edge_eval_lib.artefacts.source import code_of, kept_code, kept_warnings
from edge_eval_lib.errors import UserError
from edge_eval_lib.runs import catalogue, outdated, plan, scheduler
from edge_eval_lib.study import Study, load_study

cell, prose = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
SERVE = {f"{INT4}_r01"}


def notebook_of(*cells) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=list(cells))


def parameters(text: str, tag: str = "parameters") -> nbformat.NotebookNode:
    return cell(text, metadata={"tags": [tag]})


def code(path: Path, notebook: nbformat.NotebookNode) -> str | None:
    path.unlink(missing_ok=True)
    nbformat.write(notebook, path)
    return code_of(path)


BASE = notebook_of(
    prose("Train."), parameters("rank = 16"), cell("import os\nrun = begin(rank)"), cell("run()")
)


def test_prose_outputs_comments_layout_and_parameters_do_not_count(tmp_path):
    before = code(tmp_path / "base.ipynb", BASE)
    same = copy.deepcopy(BASE)
    same.cells[0].source = "Train it differently."
    same.cells[1].source = "rank = 32"
    same.cells.insert(2, parameters("rank = 64", "injected-parameters"))
    same.cells[3].source = "import os  # for paths\n\n\nrun = begin(\n    rank,\n)"
    same.cells[4].outputs = [nbformat.v4.new_output("stream", text="done")]
    same.cells[4].execution_count = 7
    assert code(tmp_path / "same.ipynb", same) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda nb: nb.cells[2].update(source="import os\nrun = begin(rank + 1)"),
        lambda nb: nb.cells.append(cell("more()")),
        lambda nb: nb.cells.reverse(),
        lambda nb: nb.cells[3].update(source="%time run()"),
        lambda nb: nb.cells[3].update(source="run("),
    ],
)
def test_code_counts(tmp_path, change):
    changed = copy.deepcopy(BASE)
    change(changed)
    assert code(tmp_path / "changed.ipynb", changed) != code(tmp_path / "base.ipynb", BASE)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("%matplotlib inline\nrun()", "%matplotlib inline\nrun()  # comment"),
        ("%%energy adapt\nrun(1)", "%%energy   adapt\n\nrun( 1 )  # comment"),
        ("!pip list\nx = 1", "!pip list\nx=1"),
    ],
)
def test_magics_are_read_as_code(tmp_path, one: str, other: str):
    first, second = (code(tmp_path / "x.ipynb", notebook_of(cell(c))) for c in (one, other))
    assert first == second is not None
    assert code(tmp_path / "x.ipynb", notebook_of(cell(one + "\nmore()"))) != first


def test_what_is_no_notebook_has_no_code(tmp_path):
    (tmp_path / "x.ipynb").write_text("{")
    assert code_of(tmp_path / "x.ipynb") is None
    assert code_of(tmp_path / "absent.ipynb") is None


# --- a study whose runs are done ----------------------------------------------------------------


@pytest.fixture
def study(finished_study) -> Study:
    return finished_study


def edit(study: Study, file_name: str, text: str = "x = 1") -> None:
    path = study.path.parent / "notebooks" / file_name
    path.unlink()
    nbformat.write(notebook_of(cell(text)), path)


def settle(study: Study, rerun: str | None = None, keep: str | None = None) -> None:
    scheduler._settle_code(study, *outdated.stages_given(rerun, keep))


def changed(study: Study) -> set[str]:
    return {stage for (stage, _), why in undone(study).items() if completion.OTHER_CODE in why}


def test_a_stage_whose_code_changed_is_out_of_date_and_says_why(study, capsys):
    edit(study, "03_serve.ipynb")
    assert changed(study) == {"serve"}
    assert undone(study)["serve", f"{INT4}_r01"] == "was made by other code in 03_serve.ipynb"
    told = plan.describe(study)
    assert "5 serve runs are out of date: each was made by other code in 03_serve.ipynb" in told
    settle(study)  # seconds of repetition: said, and done
    assert "made by other code in 03_serve.ipynb (about 45 s to make again)" in (
        capsys.readouterr().out
    )


def test_what_needs_them_is_reported_with_its_time(study):
    edit(study, "01_adapt.ipynb")
    (sentence,) = outdated.reasons(study, study.runs(), completion.survey(study, study.runs()))
    assert sentence.startswith("2 adapt runs are out of date: each was made by other code in 01_")
    assert "7 runs that need them are made again where what they read comes out other" in sentence


def test_more_than_half_an_hour_is_not_repeated_unasked(study, monkeypatch):
    monkeypatch.setattr(outdated, "REPEATED_S", 30)
    edit(study, "03_serve.ipynb")
    with pytest.raises(UserError) as refused:
        settle(study)
    assert "RERUN=serve or KEEP=serve" in str(refused.value)
    assert place(study, "serve", f"{INT4}_r01").settings.is_file()  # nothing was put away
    settle(study, rerun="serve")
    assert {why for (stage, _), why in undone(study).items() if stage == "serve"} == {
        completion.UNMADE
    }


def test_keep_lasts_until_the_code_changes_again_and_the_report_says_so(study, monkeypatch):
    monkeypatch.setattr(outdated, "REPEATED_S", 30)
    edit(study, "03_serve.ipynb")
    report = catalogue.find_run(study, "synthesis", "synthesis").settings_hash
    assert kept_warnings(study) == []
    settle(study, keep="serve")
    assert not changed(study)
    assert orjson.loads((study.directory / "kept.json").read_bytes())["serve"]["runs"] == 5
    (warning,) = kept_warnings(study)
    assert "03_serve.ipynb changed after 5 of the serve runs were made" in warning
    assert catalogue.find_run(study, "synthesis", "synthesis").settings_hash != report
    settle(study)
    edit(study, "03_serve.ipynb", "x = 2")
    assert changed(study) == {"serve"}
    assert kept_code(study) == {}
    with pytest.raises(UserError, match="RERUN=serve or KEEP=serve"):
        settle(study)


def test_runs_made_by_the_new_code_and_kept_ones_are_both_done(study):
    edit(study, "03_serve.ipynb")
    settle(study, keep="serve")
    at = place(study, "serve", f"{INT4}_r01")
    record = orjson.loads(at.settings.read_bytes())
    at.settings.write_bytes(orjson.dumps(record | {"code": kept_code(study)["serve"]["code"]}))
    assert not changed(study)


def test_keep_takes_back_what_was_put_away_for_the_code_alone(study):
    edit(study, "03_serve.ipynb")
    outdated.put_away(study)
    assert not place(study, "serve", f"{INT4}_r01").settings.is_file()
    settle(study, keep="serve")
    assert not [key for key in undone(study) if key[0] == "serve"]


def test_a_run_of_a_version_that_noted_no_code_is_taken_for_current(study):
    at = place(study, "serve", f"{INT4}_r01")
    record = json.loads(at.settings.read_text())
    del record["code"]
    at.settings.write_text(json.dumps(record))
    edit(study, "03_serve.ipynb")
    assert ("serve", f"{INT4}_r01") not in undone(study)
    completion.adopt(study, study.run("serve", f"{INT4}_r01"))
    edit(study, "03_serve.ipynb", "x = 2")
    assert ("serve", f"{INT4}_r01") in undone(study)


@pytest.mark.parametrize(
    ("rerun", "keep", "says"),
    [
        ("serv", None, "RERUN=serv is not a stage; give all or one of preflight, adapt"),
        (None, "serv", "KEEP=serv is not a stage"),
        ("", None, "RERUN= is not a stage"),
        ("serve", "serve", "RERUN=serve and KEEP=serve both name serve"),
        ("all", "adapt", "RERUN=all and KEEP=adapt both name adapt"),
        ("adapt,serve", "compress serve", "both name serve"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, rerun, keep, says
):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path / "outputs"))
    with pytest.raises(UserError, match=says):
        scheduler.make_all(load_study("embedded"), rerun=rerun, keep=keep)
    assert not (tmp_path / "outputs").exists()


def test_several_stages_are_named_with_commas():
    assert outdated.stages_given("adapt, serve", "score") == ({"adapt", "serve"}, {"score"})


def test_the_adapter_of_other_code_names_what_was_made_of_it(study):
    edit(study, "01_adapt.ipynb")
    dependent = outdated._dependents(study.runs(), [("adapt", ADAPTER)], {})
    assert ("compress", ADAPTER) in dependent
    assert ("score", "score") in dependent
