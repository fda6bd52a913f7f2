"""Any model in one line in a notebook's parameters cell; test_chain.py says it with --model."""

import json
from pathlib import Path

import pandas as pd
import pytest
from hand import by_hand, folder_of
from tiny import make_tiny_model, write_tiny_study

from edge_eval_lib import scraps

pytestmark = pytest.mark.end_to_end

NAME = "granite-tiny-0.14M_rag_lora"  # of a family that the project does not name


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A study of another model, and `Granite_tiny` beside it, which no file names."""
    directory = tmp_path_factory.mktemp("try")
    make_tiny_model(directory / "Granite_tiny", "granite")
    return write_tiny_study(directory, configurations=(("lora", "fp16"), ("lora", "int8")))


@pytest.mark.timeout(1800)
def test_a_model_and_a_rank_are_tried_by_hand_and_set_side_by_side(study, tmp_path, monkeypatch):
    model = {"study": str(study), "model": str(study.parent / "Granite_tiny")}
    first = folder_of(by_hand("01_adapt.ipynb", tmp_path, monkeypatch, **model))
    edits = {"alpha, dropout = training.lora_rank": "alpha, dropout = 2"}
    second = folder_of(by_hand("01_adapt.ipynb", tmp_path, monkeypatch, edits, **model))
    assert first.parent == second.parent == tmp_path / "lab"
    ranks = []
    for folder in (first, second):
        recorded = scraps.read_scraps(folder / "runs" / "adapt" / f"{NAME}.ipynb")
        ranks.append(recorded["executed_training"]["lora_rank"])
        written = folder / "artefacts" / "adapters" / NAME / "adapter_config.json"
        assert json.loads(written.read_text())["r"] == ranks[-1]
    assert ranks == [4, 2]
    printed = by_hand("02_compress.ipynb", tmp_path, monkeypatch, **model)
    assert f"from {second}" in printed  # the newest adapter
    compressed = folder_of(printed)
    for served in ({"precision": "int8"}, {"precision": "fp16", "method": "none"}):
        printed = by_hand("03_serve.ipynb", tmp_path, monkeypatch, **model, **served)
        assert f"from {compressed}" in printed or served["precision"] == "fp16"
    by_hand("05_synthesis.ipynb", tmp_path, monkeypatch, study="lab")
    variants = pd.read_csv(tmp_path / "lab" / "tables" / "variants.csv")
    assert set(variants["family"]) == {"granite-tiny"}
    assert variants["energy_per_request_j"].gt(0).all()
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("lab", "models")] == []
