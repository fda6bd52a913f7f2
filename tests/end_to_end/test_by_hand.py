"""A finished study of tiny real models: notebooks that are run by hand leave it as it is, and one
more precision makes what is missing alone."""

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hand import by_hand, folder_of
from nbclient.exceptions import CellExecutionError
from tiny import make_tiny_study

from edge_eval_lib import scraps
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import adapter_path, weights_path

pytestmark = pytest.mark.end_to_end

TWO = (("lora", "fp16"), ("lora", "int8"))
ADAPTER = "tinyllama-0.1M_rag_lora"


def make_all(path: Path, outputs: Path) -> list[str]:
    """`make all`; the runs that it started, as stage/name."""
    done = subprocess.run(
        [sys.executable, "-m", "edge_eval_lib", "all", str(path)],
        env={**os.environ, "EDGE_EVAL_OUTPUTS": str(outputs)},
        cwd=project_root(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(
        r"^(?:run \d+ of \d+|report(?!  paper))  (\S+)(?:  (\S+))?  \(", done.stdout, re.MULTILINE
    )
    return [f"{stage}/{name or stage}" for stage, name in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """A study of two precisions that was run to its end: its file and its outputs."""
    directory = tmp_path_factory.mktemp("by_hand")
    path = make_tiny_study(directory, configurations=TWO)
    make_all(path, directory / "outputs")
    return path, directory / "outputs"


def content(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def tiny_by_hand(file_name: str, path: Path, outputs: Path, monkeypatch, **changed) -> str:
    changed = {"study": str(path), "model": "tinyllama-0.1M", **changed}
    return by_hand(file_name, outputs, monkeypatch, **changed)


@pytest.mark.timeout(1800)
def test_a_notebook_run_by_hand_leaves_the_study_as_it_is(finished, monkeypatch):
    path, outputs = finished
    before = content(outputs / "tiny")
    said = tiny_by_hand("02_compress.ipynb", path, outputs, monkeypatch)
    assert f"from {outputs / 'tiny' / 'artefacts' / 'adapters' / ADAPTER}" in said
    compressed = folder_of(said)
    assert (compressed / weights_path(f"{ADAPTER}_int8") / "model.safetensors").is_file()
    adapted = folder_of(tiny_by_hand("01_adapt.ipynb", path, outputs, monkeypatch))
    assert (adapted / adapter_path(ADAPTER) / "adapter_model.safetensors").is_file()
    with pytest.raises(CellExecutionError, match="run notebook 02 with it first"):
        tiny_by_hand("03_serve.ipynb", path, outputs, monkeypatch, precision="int8")
    said = tiny_by_hand("02_compress.ipynb", path, outputs, monkeypatch)
    assert f"from {adapted / adapter_path(ADAPTER)}" in said
    assert folder_of(said) != compressed  # made from another adapter
    compressed = folder_of(said)
    said = tiny_by_hand("03_serve.ipynb", path, outputs, monkeypatch, precision="int8")
    assert f"from {compressed / weights_path(ADAPTER)}_int8" in said
    runs = scraps.collect(outputs / "lab")
    assert set(runs["run"]) == {ADAPTER, f"{ADAPTER}_int8_r01"}
    assert set(runs["stage"]) == {"adapt", "compress", "serve"}
    tiny_by_hand("05_synthesis.ipynb", path, outputs, monkeypatch, model=None)
    assert (outputs / "lab" / "tiny" / "tables" / "variants.csv").is_file()
    tiny_by_hand("05_synthesis.ipynb", path, outputs, monkeypatch, model=None, study="lab")
    variants = pd.read_csv(outputs / "lab" / "tables" / "variants.csv")
    assert variants["precision"].tolist() == ["int8"]
    assert content(outputs / "tiny") == before
    assert make_all(path, outputs) == []


@pytest.mark.timeout(900)
def test_a_notebook_run_by_hand_waits_for_the_machine_and_says_for_whom(
    finished, monkeypatch, tmp_path
):
    path, outputs = finished
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    lock = tmp_path / f"edge-eval-{os.getuid()}" / "machine.lock"
    lock.parent.mkdir(mode=0o700)
    file = lock.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write("other serve run (process 1)")
    file.flush()
    threading.Thread(target=lambda: (time.sleep(15), file.close())).start()
    said = tiny_by_hand("01_adapt.ipynb", path, outputs, monkeypatch)
    assert f"adapt  {ADAPTER} waits: other serve run (process 1) has the machine" in said
    with lock.open() as again:  # released
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.timeout(1800)
def test_one_more_precision_makes_what_is_missing_alone(finished):
    path, outputs = finished
    study = yaml.safe_load(path.read_text())
    more = study | {
        "configurations": [*study["configurations"], {"method": "lora", "precision": "int4"}]
    }
    models = outputs / "tiny" / "artefacts" / "models"
    notebook = outputs / "tiny" / "runs" / "compress" / f"{ADAPTER}.ipynb"
    weights, recorded = content(models), scraps.read_scraps(notebook)
    path.write_text(yaml.safe_dump(more))
    assert make_all(path, outputs) == [
        f"compress/{ADAPTER}",
        f"serve/{ADAPTER}_int4_r01",
        "score/score",
        "synthesis/synthesis",
    ]
    assert weights.items() <= content(models).items()
    again = scraps.read_scraps(notebook)
    kept = {name for name in recorded if name.startswith(("fp16_", "int8_"))}
    assert kept
    assert {name: again[name] for name in kept} == {name: recorded[name] for name in kept}
    assert again["int4_s"] > 0
    assert [row["precision"] for row in again["artefacts"]] == ["fp16", "int8", "int4"]

    path.write_text(yaml.safe_dump(study))
    assert make_all(path, outputs) == ["score/score", "synthesis/synthesis"]
    assert weights.items() <= content(models).items()

    # Cut weights are found, and made again alone.
    path.write_text(yaml.safe_dump(more))
    make_all(path, outputs)
    whole = content(models)
    cut = models / f"{ADAPTER}_int4" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    assert make_all(path, outputs) == [f"compress/{ADAPTER}", "synthesis/synthesis"]
    assert content(models) == whole


@pytest.mark.timeout(1800)
def test_what_is_changed_in_a_cell_is_executed_and_recorded(finished, monkeypatch):
    path, outputs = finished
    edits = {
        "    r=rank,": "    r=2,",
        "    learning_rate=learning_rate,": "    learning_rate=0.02,",
    }
    folder = folder_of(tiny_by_hand("01_adapt.ipynb", path, outputs, monkeypatch, edits=edits))
    adapter = json.loads((folder / adapter_path(ADAPTER) / "adapter_config.json").read_text())
    assert adapter["r"] == 2
    (run,) = scraps.collect(folder).to_dict("records")
    executed = run["executed_training"]
    assert (executed["lora_rank"], executed["learning_rate"]) == (2, 0.02)
    assert executed["lora_alpha"] == 8  # the study's

    edits = {"BitsAndBytesConfig(load_in_8bit=True)": "BitsAndBytesConfig(load_in_8bit=True, "
             "llm_int8_threshold=3.0)"}  # fmt: skip
    folder = folder_of(tiny_by_hand("02_compress.ipynb", path, outputs, monkeypatch, edits=edits))
    (run,) = scraps.collect(folder).to_dict("records")
    assert run["int8_quantization"]["llm_int8_threshold"] == 3.0
    written = json.loads((folder / weights_path(f"{ADAPTER}_int8") / "config.json").read_text())
    assert written["quantization_config"]["llm_int8_threshold"] == 3.0
