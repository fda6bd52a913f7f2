"""What is done is told by content: what is damaged or made from something else is made again, and
nothing else is."""

import os
import shutil
import time

import pytest
import yaml
from finished import ADAPTER, INT4, everything, make, make_run, safetensors, undone
from tiny import write_sources

from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import place, write_atomically
from edge_eval_lib.errors import UserError
from edge_eval_lib.runs import outdated, scheduler, weights
from edge_eval_lib.runs.finished import finished_runs
from edge_eval_lib.runs.notebook import Stage
from edge_eval_lib.study import Study, Variant, load_study

WEIGHTS = f"artefacts/models/{INT4}/model.safetensors"


def change(study: Study, **changes) -> Study:
    content = yaml.safe_load(study.path.read_text()) | changes
    study.path.write_text(yaml.safe_dump(content))
    return load_study(study.path)


@pytest.fixture
def study(finished_study, monkeypatch) -> Study:
    monkeypatch.setenv("EDGE_EVAL_RUN", "compress/x")
    return finished_study


def test_no_date_of_a_file_makes_a_run_again(study, tmp_path, monkeypatch):
    for number, path in enumerate(sorted(study.directory.rglob("*"))):
        os.utime(path, (4e9 - number, 4e9 - number))  # in the future, and in the wrong order
    assert undone(study) == {}
    copied = tmp_path / "elsewhere" / study.name
    shutil.copytree(study.directory, copied, copy_function=shutil.copyfile)
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(copied.parent))
    assert undone(study) == {}
    assert len(finished_runs(study, study.runs())) == len(study.runs())


DAMAGED = {
    f"artefacts/adapters/{ADAPTER}/model.safetensors": ("adapt", ADAPTER),
    WEIGHTS: ("compress", ADAPTER),
    f"runs/serve/{INT4}_r01.answers.parquet": ("serve", f"{INT4}_r01"),
    f"runs/serve/{INT4}_r01.ipynb": ("serve", f"{INT4}_r01"),
    "runs/score/score.answers.parquet": ("score", "score"),
    "tables/x.csv": ("synthesis", "synthesis"),
    "report.html": ("synthesis", "synthesis"),
}


@pytest.mark.parametrize("path", DAMAGED)
def test_whatever_is_damaged_is_named(study, path):
    file = study.directory / path
    content, dates = file.read_bytes(), file.stat()
    for damaged in (content[: len(content) // 2], b"", content[:-1] + b"x", None):
        if damaged is None:
            file.unlink()
        else:
            file.write_bytes(damaged)
            os.utime(file, (dates.st_atime, dates.st_mtime))
        why = undone(study)
        assert why[DAMAGED[path]].startswith("is damaged: ")
        assert path in why[DAMAGED[path]]
        collecting = {DAMAGED[path], ("score", "score"), ("synthesis", "synthesis")}
        assert not (set(everything(study)) - collecting) & why.keys()
        file.write_bytes(content)
        assert undone(study) == {}


def test_large_weights_are_checked_by_their_header(study, monkeypatch):
    monkeypatch.setattr(completion, "SMALL_BYTES", 0)
    file = study.directory / WEIGHTS
    content = file.read_bytes()
    file.write_bytes(b"\xff" * 16 + content[16:])  # of the right size
    assert "not a whole safetensors file" in undone(study)["compress", ADAPTER]
    file.write_bytes(content[:-1] + b"x")
    assert ("compress", ADAPTER) not in undone(study)  # seen by whoever reads it
    with pytest.raises(UserError, match=r"damaged .* make all makes compress .* again"):
        completion.require_whole(
            place(study, "compress", ADAPTER), f"artefacts/models/{INT4}/", "Weights"
        )
    assert ("compress", ADAPTER) in undone(study)


def test_weights_that_were_deleted_to_save_disk_are_not_missed(study):
    shutil.rmtree(study.directory / "artefacts" / "models" / INT4)
    assert undone(study) == {}


def test_an_adapter_made_again_the_same_changes_nothing(study):
    make(study, ("adapt", ADAPTER))
    assert undone(study).keys() == {("synthesis", "synthesis")}  # which tells its energy


def test_another_adapter_makes_weights_and_servings_again(study):
    make(study, ("adapt", ADAPTER), b"another")
    assert "made from another adapt run" in undone(study)["compress", ADAPTER]
    make(study, ("compress", ADAPTER), b"others")
    again = {name for stage, name in undone(study) if stage == "serve"}
    assert again == {f"{ADAPTER}_{p}_r01" for p in ("fp16", "int8", "int4")}


def test_a_run_is_kept_until_what_it_needs_is_made(study):
    (study.directory / "artefacts/adapters" / ADAPTER / "model.safetensors").unlink()
    assert undone(study).keys() == {("adapt", ADAPTER), ("synthesis", "synthesis")}


def test_one_more_precision_compresses_and_serves_that_one_alone(study):
    three = study.configurations
    fewer = [c.model_dump() for c in three if str(c.precision) != "int4" or c.method == "qlora"]
    less = change(study, configurations=fewer)
    assert undone(less).keys() == {("score", "score"), ("synthesis", "synthesis")}
    shutil.rmtree(study.directory)
    for key in everything(less):
        make(less, key)
    more = change(study, configurations=[c.model_dump() for c in three])
    assert undone(more).keys() == {
        ("compress", ADAPTER),
        ("serve", f"{INT4}_r01"),
        ("score", "score"),
        ("synthesis", "synthesis"),
    }
    completion.withdraw(place(more, "compress", ADAPTER))
    run = Stage(more, more.run("compress", ADAPTER), more.models[0])
    carried = run.carried()
    assert carried.precisions == ("fp16", "int8")
    assert carried.scraps == {"fp16_energy_j": 1.0, "int8_energy_j": 1.0}
    assert [row["precision"] for row in carried.artefacts] == ["fp16", "int8"]


def test_nothing_is_carried_over_of_another_adapter_or_of_damaged_weights(study):
    at = place(study, "compress", ADAPTER)
    run = Stage(study, study.run("compress", ADAPTER), study.models[0])
    assert run.carried().precisions == ()  # whoever repeats it wants all of it
    (study.directory / WEIGHTS).write_bytes(b"cut")
    completion.withdraw(at)
    assert run.carried().precisions == ("fp16", "int8")
    make(study, ("adapt", ADAPTER), b"another")
    assert run.carried().precisions == ()


def test_weights_built_again_by_another_machine_keep_what_was_served(study):
    file = study.directory / WEIGHTS
    file.write_bytes(safetensors(b"rounded otherwise"))
    completion.note_rebuilt(study, ADAPTER, INT4)
    assert undone(study) == {}


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"stage": "serve"}'])
def test_a_run_whose_record_was_lost_is_adopted(study, content):
    at = place(study, "serve", f"{INT4}_r01")
    at.settings.unlink()
    if content is not None:
        at.settings.write_bytes(content)
    assert ("serve", f"{INT4}_r01") in undone(study)
    assert completion.adopt(study, study.run("serve", f"{INT4}_r01"))
    assert undone(study) == {}


def test_a_cut_file_is_not_adopted(study):
    at = place(study, "serve", f"{INT4}_r01")
    at.settings.unlink()
    answers = at.notebook.with_name(f"{at.name}.answers.parquet")
    answers.write_bytes(answers.read_bytes()[:-9])
    assert not completion.adopt(study, study.run("serve", f"{INT4}_r01"))


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("damage", [b"", b"PAR1 no table PAR1", None])
def test_raw_data_that_cannot_be_read_name_their_run_and_are_made_again(study, damage, recorded):
    at = place(study, "serve", f"{INT4}_r01")
    answers = at.notebook.with_name(f"{at.name}.answers.parquet")
    answers.unlink() if damage is None else answers.write_bytes(damage)
    if not recorded:
        at.settings.unlink()
    with pytest.raises(UserError) as told:
        completion.read_raw(at.notebook, "answers")
    assert f"{answers.name} is {'missing' if damage is None else 'damaged'}" in str(told.value)
    assert f"make all makes serve {at.name} again" in str(told.value)
    assert not completion.adopt(study, study.run("serve", at.name))
    assert ("serve", at.name) in undone(study)


def test_rerun_makes_a_stage_again_and_carries_nothing_over(study, monkeypatch):
    outdated.forget(study, {"compress"})
    assert ("compress", ADAPTER) in undone(study)
    run = Stage(study, study.run("compress", ADAPTER), study.models[0])
    assert run.carried().precisions == ()
    assert not completion.adopt(study, study.run("compress", ADAPTER))


def test_half_written_files_are_cleaned_up(study, monkeypatch):
    left = study.directory / "failed" / "serve" / ".x.json.123"
    left.parent.mkdir(parents=True)
    left.write_text("{")
    scheduler._clean_up(study)
    assert not left.exists()

    def full(_path, _content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.rename", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(left.with_name("x.json"), {})
    assert not list(left.parent.iterdir())


@pytest.mark.slow  # writes thousands of files
def test_a_study_of_1440_runs_is_surveyed_in_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    write_sources(tmp_path / "notebooks", monkeypatch)
    study = load_study("paper_t4")
    for run in study.runs():
        make_run(study, run)
    began = time.process_time()
    assert completion.survey(study, study.runs()) == {}
    assert time.process_time() - began < 3


def test_the_weights_of_the_unadapted_base_have_no_record(study):
    variant = Variant("tinyllama", "0.1M", "rag", "none", "fp16")
    assert weights.damage_of_weights(study, variant) is None
