"""A compression that the library does not know: one file outside it, and a word in a study."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import make_tiny_study

from edge_eval_lib import models, scraps
from edge_eval_lib.paths import project_root

pytestmark = pytest.mark.end_to_end

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
ADAPTER = "tinyllama-0.1M_rag_lora"


def call(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_eval_lib", *map(str, arguments)],
        env={**os.environ, **environment},
        cwd=project_root(),
        capture_output=True,
        text=True,
        timeout=1700,
    )


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
def test_a_compression_is_one_file_and_a_word_in_a_study(tmp_path):
    words = ("fp16", "prune50-int4")
    configurations = [("lora", word) for word in words]
    path = make_tiny_study(tmp_path, configurations=configurations, unadapted_base=False)
    outputs = tmp_path / "outputs"
    refused = call("all", path, EDGE_EVAL_OUTPUTS=str(outputs))
    assert refused.returncode != 0
    assert "there is no compression 'prune50'; there are depthNN, distil, fp16" in refused.stderr

    (tmp_path / "mine" / "compressions").mkdir(parents=True)
    (tmp_path / "mine" / "compressions" / "prune50.py").write_text(PRUNE50)
    done = call(
        "all", path, EDGE_EVAL_OUTPUTS=str(outputs), EDGE_EVAL_EXTENSIONS=str(tmp_path / "mine")
    )
    assert done.returncode == 0, done.stdout + done.stderr

    made = outputs / "tiny" / "artefacts" / "models"
    # NF4 has a level for 0, which but a few random weights are nearest to.
    assert zeros(made / f"{ADAPTER}_prune50-int4") > 0.5
    tables = outputs / "tiny" / "tables"
    variants = pd.read_csv(tables / "variants.csv").set_index("precision")
    assert set(variants.index) == set(words)
    pruned = variants.loc["prune50-int4"]
    assert pruned["memory_nominal_gb"] == 0.7e-4  # as INT4's
    assert pruned["compress_energy_j"] > 0
    scored_nothing = "q_ret_pct: lora/fp16 scored 0" in pruned["notes"]  # so small a model may
    assert pruned["q_ret_pct"] >= 0 or scored_nothing
    checks = pd.read_csv(tables / "checks.csv")
    assert "prune50-int4" in set(checks["window"])
    recorded = scraps.read_scraps(outputs / "tiny" / "runs" / "compress" / f"{ADAPTER}.ipynb")
    assert recorded["prune50-int4_quantization"]["bnb_4bit_quant_type"] == "nf4"
