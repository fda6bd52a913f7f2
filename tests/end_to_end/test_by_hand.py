"""A finished study of tiny real models: notebooks that are run by hand leave it as it is, and
further precisions, one of which the library does not know, make what is missing alone."""

import fcntl
import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from hand import by_hand, folder_of
from nbclient.exceptions import CellExecutionError
from tiny import make_all, make_tiny_study, runs_started

from edge_eval_lib import models, scraps
from edge_eval_lib.study import adapter_path, weights_path

pytestmark = [pytest.mark.end_to_end, pytest.mark.usefixtures("_tables_alone")]

TWO = (("lora", "fp16"), ("lora", "int8"))
ADAPTER = "tinyllama-0.1M_rag_lora"
FURTHER = ("int4", "prune50-int4")
MODELS = "tiny/artefacts/models"
COMPRESS = f"tiny/runs/compress/{ADAPTER}.ipynb"
PRUNE50 = '''
"""Magnitude pruning: the smaller half of every linear layer's weights becomes zero."""


def apply(model):
    import torch

    head = model.get_output_embeddings()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            half = layer.weight.abs().flatten().kthvalue(layer.weight.numel() // 2).values
            layer.weight[layer.weight.abs() <= half] = 0
'''


def started(path: Path, outputs: Path, **variables: str) -> list[str]:
    """`make all`; the runs that it started, as stage/name."""
    done = make_all(path, outputs, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs_started(done.stdout)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """A study of two precisions that was run to its end: its file and its outputs."""
    directory = tmp_path_factory.mktemp("by_hand")
    path = make_tiny_study(directory, configurations=TWO, unadapted_base=False)
    started(path, directory / "outputs")
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
    assert started(path, outputs) == []


@pytest.fixture(scope="module")
def waited(finished, tmp_path_factory) -> tuple[str, Path]:
    """Notebook 01 with other settings in its cells, while somebody had the machine: what it said,
    and the machine's lock."""
    path, outputs = finished
    directory = tmp_path_factory.mktemp("locks")
    lock = directory / f"edge-eval-{os.getuid()}" / "machine.lock"
    lock.parent.mkdir(mode=0o700)
    file = lock.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write("other serve run (process 1)")
    file.flush()
    threading.Thread(target=lambda: (time.sleep(15), file.close())).start()
    edits = {
        "    r=rank,": "    r=2,",
        "    learning_rate=learning_rate,": "    learning_rate=0.02,",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(directory))
        said = tiny_by_hand("01_adapt.ipynb", path, outputs, patch, edits=edits)
    return said, lock


@pytest.mark.timeout(900)
def test_a_notebook_run_by_hand_waits_for_the_machine_and_says_for_whom(waited):
    said, lock = waited
    assert f"adapt  {ADAPTER} waits: other serve run (process 1) has the machine" in said
    with lock.open() as again:  # released
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.timeout(1800)
def test_what_is_changed_in_a_cell_is_executed_and_recorded(finished, waited, monkeypatch):
    path, outputs = finished
    folder = folder_of(waited[0])
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


# --- further precisions: one that is known, and one that is a file outside the library -----------


@dataclass(frozen=True)
class Further:
    """How two precisions were added to the finished study."""

    refused: str  # without the file that one of them needs
    started: list[str]
    weights: dict[str, str]  # before
    recorded: dict[str, Any]  # before
    extensions: str


@pytest.fixture(scope="module")
def further(finished, tmp_path_factory) -> Further:
    path, outputs = finished
    weights = content(outputs / MODELS)
    recorded = scraps.read_scraps(outputs / COMPRESS)
    study = yaml.safe_load(path.read_text())
    study["configurations"] += [{"method": "lora", "precision": word} for word in FURTHER]
    path.write_text(yaml.safe_dump(study))
    refused = make_all(path, outputs)
    assert refused.returncode != 0
    mine = tmp_path_factory.mktemp("mine")
    (mine / "compressions").mkdir()
    (mine / "compressions" / "prune50.py").write_text(PRUNE50)
    runs = started(path, outputs, EDGE_EVAL_EXTENSIONS=str(mine))
    return Further(refused.stderr, runs, weights, recorded, str(mine))


@pytest.mark.timeout(1800)
def test_further_precisions_make_what_is_missing_alone(finished, further):
    _, outputs = finished
    assert further.started[0] == f"compress/{ADAPTER}"
    assert sorted(further.started[1:-2]) == [f"serve/{ADAPTER}_{word}_r01" for word in FURTHER]
    assert further.started[-2:] == ["score/score", "synthesis/synthesis"]
    assert further.weights.items() <= content(outputs / MODELS).items()
    again = scraps.read_scraps(outputs / COMPRESS)
    kept = {name for name in further.recorded if name.startswith(("fp16_", "int8_"))}
    assert kept
    assert {name: again[name] for name in kept} == {n: further.recorded[n] for n in kept}
    assert again["int4_s"] > 0
    made = [row["precision"] for row in again["artefacts"]]
    assert made == ["fp16", "int8", "int4", "prune50-fp16", "prune50-int4"]


def zeros(directory: Path) -> float:
    """The share of zeros in the quantised layers' weights."""
    import bitsandbytes as bnb

    model = models.load_model(directory, "float32")
    values = [
        bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).flatten()
        for layer in model.modules()
        if isinstance(layer, bnb.nn.Linear4bit)
    ]
    return float((torch.cat(values) == 0).float().mean())


@pytest.mark.timeout(1800)
def test_a_compression_is_one_file_and_a_word_in_a_study(finished, further):
    assert "there is no compression 'prune50'; there are depthNN, distil, fp16" in further.refused
    _, outputs = finished
    # NF4 has a level for 0, which but a few random weights are nearest to.
    assert zeros(outputs / MODELS / f"{ADAPTER}_prune50-int4") > 0.5
    tables = outputs / "tiny" / "tables"
    variants = pd.read_csv(tables / "variants.csv").set_index("precision")
    assert set(variants.index) == {"fp16", "int8", *FURTHER}
    pruned = variants.loc["prune50-int4"]
    assert pruned["memory_nominal_gb"] == 0.7e-4  # as INT4's
    assert pruned["compress_energy_j"] > 0
    scored_nothing = "q_ret_pct: lora/fp16 scored 0" in pruned["notes"]  # so small a model may
    assert pruned["q_ret_pct"] >= 0 or scored_nothing
    checks = pd.read_csv(tables / "checks.csv")
    assert "prune50-int4" in set(checks["window"])
    recorded = scraps.read_scraps(outputs / COMPRESS)
    assert recorded["prune50-int4_quantization"]["bnb_4bit_quant_type"] == "nf4"


@pytest.mark.timeout(1800)
def test_cut_weights_are_found_and_made_again_alone(finished, further):
    path, outputs = finished
    whole = content(outputs / MODELS)
    cut = outputs / MODELS / f"{ADAPTER}_int4" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    runs = started(path, outputs, EDGE_EVAL_EXTENSIONS=further.extensions)
    assert runs == [f"compress/{ADAPTER}", "synthesis/synthesis"]
    assert content(outputs / MODELS) == whole


@pytest.mark.timeout(1800)
def test_fewer_precisions_are_another_score_and_report(finished, further):
    path, outputs = finished
    study = yaml.safe_load(path.read_text())
    study["configurations"] = study["configurations"][:2]
    path.write_text(yaml.safe_dump(study))
    assert started(path, outputs) == ["score/score", "synthesis/synthesis"]
    assert further.weights.items() <= content(outputs / MODELS).items()
