"""Studies: what they hold, what is refused, and which runs a change touches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nbformat
import pytest
import tiny
import yaml

from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import outputs_root, project_root
from edge_eval_lib.study import Study, load_study


def load(directory: Path, **changes: object) -> Study:
    return load_study(
        tiny.write_tiny_study(directory, "small", tasks=("rag", "dialogue"), **changes)
    )


def touched(before: Study, after: Study) -> set[str]:
    """Stages of the runs that `after` makes with other settings than `before`."""
    old, new = tiny.hashes(before), tiny.hashes(after)
    return {stage for stage, name in new if new[stage, name] != old.get((stage, name))}


def test_the_published_grid_has_its_72_variants_and_1440_serving_runs():
    study = load_study("paper_t4")
    assert len(study.variants()) == 72
    served = Counter(run.parameters["method"] for run in study.runs() if run.stage == "serve")
    assert served == {"lora": 1080, "qlora": 360, "none": 360}
    stages = Counter(run.stage for run in study.runs())
    assert stages["adapt"] == stages["compress"] == 36  # once, however often it is served
    assert stages["preflight"] == stages["score"] == 1


def test_the_default_study_is_12_variants_and_their_three_bases():
    study = load_study("embedded")
    assert [str(v) for v in study.variants()][:4] == [
        "smollm2-135M_rag_lora_fp16",
        "smollm2-135M_rag_lora_int8",
        "smollm2-135M_rag_lora_int4",
        "smollm2-135M_rag_qlora_int4",
    ]
    assert len(study.variants()) == 12
    assert len(study.served_variants()) == 15


def test_every_run_comes_after_what_it_needs(tmp_path: Path):
    seen = set()
    for run in load(tmp_path, repetitions=2).runs():
        assert set(run.needs) <= seen
        assert (run.stage, run.name) not in seen
        seen.add((run.stage, run.name))


def test_only_what_depends_on_a_change_is_made_again(tmp_path: Path):
    study = load(tmp_path)
    assert touched(study, load(tmp_path, description="other words")) == set()
    assert touched(study, load(tmp_path, prices="desktop")) == set()
    served = {"serve", "score"}
    assert touched(study, load(tmp_path, workload={"output_tokens": 5})) == served
    everything = served | {"adapt", "compress"}
    assert touched(study, load(tmp_path, training={"learning_rate": 2e-3})) == everything
    # Another repetition is measured beside the first, which stays.
    assert touched(study, study.with_repetitions(2)) == served
    assert study.measured_hash != study.with_repetitions(2).measured_hash
    assert len(study.serving_order) * 2 == len(study.with_repetitions(2).serving_order)
    old, new = tiny.hashes(study), tiny.hashes(study.with_repetitions(2))
    assert all(new[run] == old[run] for run in old if run[0] != "score")


def test_the_bases_are_not_trained_and_not_touched_by_training(tmp_path: Path):
    old = tiny.hashes(load(tmp_path))
    new = tiny.hashes(load(tmp_path, training={"epochs": 2}))
    same = {name for (stage, name) in old if old[stage, name] == new[stage, name]}
    assert same == {
        "preflight",
        "tinyllama-0.1M_rag_none_fp16_r01",
        "tinyllama-0.1M_dialogue_none_fp16_r01",
    }


def test_an_adapter_on_all_layers_is_what_it_was_before_it_could_be_on_some(tmp_path: Path):
    study = load(tmp_path)
    assert "adapted_share" not in study.training.model_dump()
    old = tiny.hashes(study)
    assert tiny.hashes(load(tmp_path, training={"adapted_share": 1.0})) == old
    assert tiny.hashes(load(tmp_path, training={"adapted_share": 0.5})) != old


def test_one_task_s_data_touch_that_task_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from edge_eval_lib.tasks import dialogue

    old = tiny.hashes(load(tmp_path))
    monkeypatch.setattr(dialogue, "INSTRUCTION", "Answer like a pirate.", raising=False)
    new = tiny.hashes(load(tmp_path))
    changed = {name for (stage, name) in old if old[stage, name] != new[stage, name]}
    assert changed
    assert all("dialogue" in name or name == "score" for name in changed)


def test_numbers_are_read_as_people_write_them(tmp_path: Path):
    text = yaml.safe_dump(tiny.tiny_study(tmp_path)).replace("0.001", "1e-3")
    (tmp_path / "study.yaml").write_text(text)
    assert load_study(tmp_path / "study.yaml").training.learning_rate == 0.001


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "two words"}, "the field 'name' is 'two words'"),
        ({"name": "paper"}, "the name 'paper' is taken"),
        ({"repetitions": 0}, "the field 'repetitions' is 0"),
        ({"repetitions": True}, "the field 'repetitions' is True"),
        ({"seed": "7"}, "the field 'seed' is '7'"),
        ({"tasks": []}, "tasks is empty"),
        ({"tasks": ["rag", "rag"]}, "tasks names rag twice"),
        ({"workload": {"concurrency": [4]}}, "workload.concurrency must contain 1"),
        ({"workload": {"output_tokens": 1}}, "the field 'workload.output_tokens' is 1"),
        ({"training": {"lora_dropout": 1.0}}, "the field 'training.lora_dropout' is 1.0"),
        ({"data": {"train_examples": 1.5}}, "the field 'data.train_examples' is 1.5"),
        ({"data": {"train": 3}}, "unknown field 'data.train'"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(tmp_path: Path, changes: dict, message: str):
    content = tiny.tiny_study(tmp_path)
    for name, value in changes.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"bad\.yaml") as refused:
        load_study(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_run_or_model_names_the_nearest():
    study = load_study("embedded")
    with pytest.raises(UserError, match="did you mean 'smollm2-135M_rag_lora'"):
        study.run("adapt", "smollm2-135M_rag_lorra")
    with pytest.raises(UserError, match="did you mean 'smollm2-135M'"):
        study.model("smolm2-135M")


def test_outputs_lie_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    assert outputs_root() == tmp_path
    assert load_study("embedded").directory == tmp_path / "embedded"


@pytest.mark.parametrize("name", ["rag_or_finetuning", "hybrid", "agents", "pruning"])
def test_the_notebook_that_tells_an_experiment_opens_its_study(name):
    stem = load_study(name).notebook
    assert stem is not None
    notebook = nbformat.read(project_root() / "notebooks" / f"{stem}.ipynb", as_version=4)
    (first,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert f'study = "{name}"' in first.source.splitlines()
