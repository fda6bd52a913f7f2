"""Models that a study only names: by directory, by repository, and with MODEL=."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import yaml
from safetensors.numpy import save_file

from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import project_root
from edge_eval_lib.runs.claims import open_study
from edge_eval_lib.study import find_study, load_study, study_on, trial
from edge_eval_lib.study.stanzas import stanza_of_directory

CONFIG = {"model_type": "qwen2", "hidden_size": 8, "max_position_embeddings": 64}
REVISION = "a" * 40


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def written(directory: Path, shape: tuple[int, ...] = (1000, 140), **config: object) -> Path:
    """A directory with the weights of a model, as far as their headers go."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    save_file({"model.a.weight": np.zeros(shape, np.float16)}, directory / "model.safetensors")
    return directory


def study_of(directory: Path, *models: object) -> Path:
    path = directory / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny.tiny_study(directory) | {"models": list(models)}))
    return path


@pytest.mark.parametrize(
    ("name", "family", "size"),
    [
        ("Qwen2.5-0.5B-Instruct", "qwen2.5-instruct", "0.5B"),
        ("gemma-2-2b-it", "gemma-2-it", "2B"),
        ("my_fine tune", "my-fine-tune", "0.14M"),
        ("b" * 40, "qwen2", "0.14M"),  # a hub's snapshot
        ("7", "qwen2", "0.14M"),
    ],
)
def test_family_and_size_follow_from_name_and_weights(
    tmp_path: Path, name: str, family: str, size: str
):
    stanza = stanza_of_directory(written(tmp_path / name))
    assert (stanza["family"], stanza["size"]) == (family, size)
    assert stanza["parameters"] == 140_000
    assert stanza["nominal_gb"] == {"fp16": 2.8e-4, "int8": 1.4e-4, "int4": 0.7e-4}
    assert stanza["config"] == CONFIG


def test_a_study_takes_a_directory_beside_it(tmp_path: Path):
    written(tmp_path / "first")
    (written(tmp_path / "second") / "README.md").write_text(
        "---\nbase_model: x\nlicense: apache-2.0\n---\n# Second\n"
    )
    study = load_study(study_of(tmp_path, "first", str(tmp_path / "second"), "smollm2-135M"))
    names = [model.name for model in study.models]
    assert names == ["first-0.14M", "second-0.14M", "smollm2-135M"]
    first, second, _ = study.models
    assert (first.source, first.location) == ("local", str(tmp_path / "first"))
    assert (first.licence, second.licence) == ("unknown", "apache-2.0")
    assert study.runs()


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("smolm2-135M", "did you mean 'smollm2-135M'"),
        ("./nothing", "names './nothing', which is not a directory with a config.json"),
        ("quantised", "is quantised already"),
        ("pickled", "safetensors are needed"),
        ("nameless", "names no model_type"),
    ],
)
def test_what_is_no_model_is_refused_in_a_sentence(tmp_path: Path, entry: str, sentence: str):
    written(tmp_path / "quantised", quantization_config={})
    written(tmp_path / "nameless", model_type=None)
    (written(tmp_path / "pickled") / "model.safetensors").rename(
        tmp_path / "pickled" / "pytorch_model.bin"
    )
    with pytest.raises(UserError) as refused:
        load_study(study_of(tmp_path, entry))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_repository_that_the_project_knows_is_its_own_stanza(tmp_path: Path):
    (model,) = load_study(study_of(tmp_path, "Qwen/Qwen2.5-0.5B-Instruct")).models
    assert model == load_study(study_of(tmp_path, "qwen-0.5B")).models[0]


def test_a_repository_is_pinned_when_it_is_first_seen(tmp_path: Path, outputs: Path, monkeypatch):
    import huggingface_hub

    directory = written(tmp_path / "hub")
    info = SimpleNamespace(sha=REVISION, gated=False, card_data={"license": "mit"})
    asked = []
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda *a, **k: asked.append(a) or info
    )
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *a, **k: directory / "config.json"
    )
    counted = SimpleNamespace(parameter_count={"F16": 1_500_000_000})
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda *a, **k: counted)
    path = study_of(tmp_path, "some-one/Falcon-mini")
    (model,) = load_study(path).models
    assert (model.family, model.size) == ("falcon-mini", "1.5B")
    assert (model.revision, model.licence, model.source) == (REVISION, "mit", "hub")
    assert load_study(path).models == [model]
    assert len(asked) == 1
    assert (outputs / "models" / "seen" / "some-one--Falcon-mini.json").is_file()


def test_offline_a_repository_must_lie_in_the_cache(tmp_path: Path):
    snapshot = written(tmp_path / "cache" / "models--some-one--Falcon-7B" / "snapshots" / REVISION)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(REVISION)
    for name, told in (
        ("Falcon-7B", f"falcon-7B {REVISION} unknown"),
        ("Other", "The model some-one/Other lies in no cache here, and the hub cannot be asked"),
    ):
        code = (
            "import sys; from edge_eval_lib.study import load_study\n"
            "try: model = load_study(sys.argv[1]).models[0]\n"
            "except Exception as error: sys.exit(f'{type(error).__name__}: {error}')\n"
            "print(model.name, model.revision, model.licence)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(study_of(tmp_path, f"some-one/{name}"))],
            env={
                "HF_HUB_CACHE": str(tmp_path / "cache"),
                "HF_HUB_OFFLINE": "1",
                "EDGE_EVAL_OUTPUTS": str(tmp_path / "outputs"),
                "PYTHONPATH": str(project_root()),
            },
            capture_output=True,
            text=True,
        )
        assert told in done.stdout + done.stderr
        assert len((done.stdout + done.stderr).splitlines()) == 1


def test_a_study_on_another_model_is_a_file_in_its_outputs(tmp_path: Path, outputs: Path):
    directory = written(tmp_path / "mine")
    path = study_on("embedded", str(directory))
    assert path == outputs / "embedded-mine-0.14M" / "study.yaml"
    study, embedded = load_study(path), load_study("embedded")
    assert [model.location for model in study.models] == [str(directory)]
    assert study.directory == path.parent
    assert study.description == "The study embedded on the model mine-0.14M."  # not SmolLM2's
    changed = {"name", "models", "description"}
    assert study.model_dump(exclude=changed) == embedded.model_dump(exclude=changed)
    before = path.read_text()
    assert study_on("embedded", str(directory)) == path
    assert path.read_text() == before
    other = written(tmp_path / "elsewhere" / "mine")
    with pytest.raises(UserError, match="another model or from another file; remove it"):
        study_on("embedded", str(other))
    with pytest.raises(UserError, match="did you mean"):
        study_on("embedded", "qwen-0.5")


def test_a_study_on_another_model_keeps_what_lies_beside_it(tmp_path: Path):
    prices = (project_root() / "params" / "prices.yaml").read_text()
    (tmp_path / "prices.yaml").write_text(prices.replace("paper:", "ours:"))
    harness = {"tasks": ["x"], "task_directory": "tasks"}
    content = tiny.tiny_study(tmp_path) | {"prices": "ours", "harness": harness}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "tasks").mkdir()
    study = load_study(study_on(tmp_path / "mine.yaml", "smollm2-135M"))
    assert study.name == "tiny-smollm2-135M"
    assert study.task_directory == tmp_path / "tasks"


def test_a_trial_is_a_study_in_memory(tmp_path: Path):
    embedded = load_study("embedded")
    study, model = trial(embedded, "smollm2-135M", "rag", "lora")
    assert (study.name, study.models, study.path) == ("embedded", embedded.models, embedded.path)
    run = study.run("compress", f"{model.name}_rag_lora")
    assert run.precisions == ("fp16", "int8", "int4")
    assert run.settings == embedded.run("compress", run.name).settings
    study, model = trial(embedded, str(written(tmp_path / "mine")), "dialogue", "qlora", "int8")
    assert (study.name, model.name) == ("embedded-mine-0.14M", "mine-0.14M")
    assert study.description == "The study embedded on the model mine-0.14M."
    assert study.run("serve", "mine-0.14M_dialogue_qlora_int8_r01")
    with pytest.raises(UserError, match=r"'tasks.0' is 'ragg'"):
        trial(embedded, "smollm2-135M", "ragg", "lora")
    assert find_study("embedded") == embedded.path


def test_a_slip_in_the_prices_beside_a_study_is_refused_before_anything_runs(tmp_path: Path):
    prices = (project_root() / "params" / "prices.yaml").read_text()
    (tmp_path / "prices.yaml").write_text(prices.replace("electricity_usd_per_kwh", "electricty"))
    path = study_of(tmp_path, "smollm2-135M")
    assert load_study(path)
    with pytest.raises(UserError, match=r"prices\.yaml: the field 'sets.paper.electricity_usd"):
        open_study(str(path))
