"""The QLoRA ablation on a tiny real model: equal work in every cell, and results from raw data."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from peft import prepare_model_for_kbit_training
from tiny import make_tiny_model, make_tiny_study

from edge_eval_lib import models, scraps
from edge_eval_lib.lifecycle import ablation, adapt
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import load_study

pytestmark = pytest.mark.end_to_end


def command(*arguments, outputs):
    return subprocess.run(
        [sys.executable, "-m", "edge_eval_lib", *map(str, arguments)],
        env={**os.environ, "EDGE_EVAL_OUTPUTS": str(outputs)},
        cwd=project_root(),
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny_study(
        tmp_path_factory.mktemp("ablation"),
        name="tiny-ablation",
        repetitions=2,
        training={"gradient_checkpointing": True},
        ablation={"steps": 2, "warmup_steps": 1},
    )


@pytest.fixture(scope="module")
def outputs(path):
    done = command("all", path, outputs=path.parent / "outputs")
    assert done.returncode == 0, done.stdout + done.stderr
    return path.parent / "outputs" / "tiny-ablation"


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the cells of a CPU")
def test_every_cell_did_the_same_work_in_every_repetition(outputs):
    runs = pd.read_parquet(outputs / "runs" / "ablation" / "ablation.runs.parquet")
    assert len(runs) == 2 * 4
    assert runs.groupby("repetition")["cell"].nunique().tolist() == [4, 4]
    assert runs["tokens"].nunique() == 1
    assert (runs["steps"] == 2).all()
    assert set(runs["executed_dtype"]) == {"float32"}
    assert (runs[["seconds", "peak_memory_gb", "cpu_s"]] > 0).all(axis=None)
    # In float32 the casts change nothing, and every repetition starts from the same adapter.
    assert (runs.groupby("base")["loss_last"].nunique() == 1).all()
    fp16, nf4 = (runs[runs["base"] == base]["loss_first"].iloc[0] for base in ("fp16", "nf4"))
    assert fp16 != nf4
    assert fp16 == pytest.approx(nf4, rel=0.05)


def test_tables_figure_and_report_are_there_and_come_again_from_the_raw_data(outputs, path):
    report = outputs / "report.html"
    assert "The verdict on the published ratio: open." in report.read_text(encoding="utf-8")
    assert scraps.read_scraps(outputs / "runs/ablation/ablation.ipynb")["verdict"] == "open"
    effects = outputs / "tables" / "ablation_effects.csv"
    before = effects.read_bytes()
    for made in (effects, report, outputs / "figures" / "ablation_effects.png"):
        made.unlink()
    done = command("report", path, outputs=outputs.parent)
    assert done.returncode == 0, done.stderr
    assert effects.read_bytes() == before
    assert report.is_file()
    assert (outputs / "figures" / "ablation_effects.png").is_file()


def test_a_finished_ablation_is_not_run_again(outputs, path):
    notebook = outputs / "runs" / "ablation" / "ablation.ipynb"
    made = notebook.stat().st_mtime_ns
    done = command("all", path, outputs=outputs.parent)
    assert done.returncode == 0, done.stderr
    assert notebook.stat().st_mtime_ns == made


def test_the_casts_are_those_that_peft_makes(tmp_path):
    directory = make_tiny_model(tmp_path / "qwen2", "qwen2")  # with biases
    ours, pefts = (models.load_model(directory, "float16", adapt.nf4("float16")) for _ in range(2))
    ablation.cast_all_but_layers(ours)
    prepare_model_for_kbit_training(pefts, use_gradient_checkpointing=False)
    expected = {name: p.dtype for name, p in pefts.named_parameters()}
    assert {name: p.dtype for name, p in ours.named_parameters()} == expected
    assert {torch.float32, torch.uint8} == set(expected.values())
    # The same casts on an FP16 base leave the layers that would be quantised as they are.
    plain = models.load_model(directory, "float16")
    ablation.cast_all_but_layers(plain)
    for name, parameter in plain.named_parameters():
        cast = expected[name] == torch.float32
        assert parameter.dtype == (torch.float32 if cast else torch.float16), name


@pytest.mark.parametrize("base", ["fp16", "nf4"])
def test_half_precision_autocast_trains_with_and_without_casts(base, path):
    """What a GPU runs, in bfloat16 on the CPU: a finite loss, and gradients."""
    study = load_study(path)
    directory = models.model_directory(study.models[0])
    tokenizer = models.load_tokenizer(directory)
    for casts in ("with", "without"):
        model = ablation.load_cell(directory, ablation.Cell(base, "bfloat16", casts), study)
        batch = tokenizer(["one two three four"], return_tensors="pt")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        assert torch.isfinite(loss)
        trained = [p for p in model.parameters() if p.requires_grad]
        assert trained
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
        assert {p.dtype for p in trained} == {torch.float32}
