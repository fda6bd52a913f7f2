"""The whole lifecycle on tiny real models, through the command that people run."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hand import complaints
from tiny import (
    VARIANT_COLUMNS,
    make_tiny_model,
    make_tiny_study,
    runs_started,
    write_tiny_study,
)

from edge_eval_lib import scraps
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import NOTEBOOKS, load_study

pytestmark = [pytest.mark.end_to_end, pytest.mark.quick]

FIGURES = 6


def command(*arguments: str, outputs: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_eval_lib", *arguments],
        env={**os.environ, "EDGE_EVAL_OUTPUTS": str(outputs)},
        cwd=project_root(),
        capture_output=True,
        text=True,
        timeout=900,
    )


def run_study(*arguments: str, outputs: Path) -> None:
    done = command("all", *arguments, outputs=outputs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny study that was run: its outputs and its file."""
    directory = tmp_path_factory.mktemp("llama")
    path = make_tiny_study(directory)
    run_study(str(path), outputs=directory / "outputs")
    return directory / "outputs" / "tiny", path


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """Another tiny study, run on a model that no file names."""
    directory = tmp_path_factory.mktemp("qwen2")
    configurations = (("lora", "fp16"), ("qlora", "int4"))
    path = write_tiny_study(directory, tasks=("dialogue",), configurations=configurations)
    model = make_tiny_model(directory / "Other_tiny", "qwen2")
    run_study(f"--model={model}", str(path), outputs=directory / "outputs")
    (outputs,) = (directory / "outputs").glob("tiny-*")
    return outputs, outputs / "study.yaml"


@pytest.fixture(params=["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def study(request):
    return request.getfixturevalue(request.param)


def test_every_variant_has_its_row_and_no_figure_is_zero(study):
    outputs, path = study
    table = pd.read_csv(outputs / "tables" / "variants.csv")
    assert set(table.columns) >= VARIANT_COLUMNS
    found = set(table[["task", "method", "precision"]].itertuples(index=False, name=None))
    assert found == {(v.task, v.method, v.precision) for v in load_study(path).variants()}
    measured = [
        "adapt_s",
        "load_s",
        "throughput_tok_s",
        "ttft_ms",
        "tpot_ms",
        "memory_gb",
        "rho_sys",
    ]
    assert (table[measured] > 0).all(axis=None)
    for column in table.select_dtypes("number").filter(regex="_j$|_usd$"):
        assert not (table[column] == 0).any(), column
    assert (table["repetitions"] == 1).all()
    assert table["ipw_lo"].isna().all()  # one run: no interval over runs


def test_figures_follow_from_their_own_row(llama):
    table = pd.read_csv(llama[0] / "tables" / "variants.csv")
    assert (table["rho_sys"] - table["throughput_tok_s"] / table["memory_gb"]).abs().max() < 1e-6
    expected = table["load_energy_j"] / table["energy_per_request_j"]
    assert (table["c_tax"] / expected - 1).abs().max() < 1e-9


def test_fidelity_is_reported_against_fp16_or_says_why_not(study):
    table = pd.read_csv(study[0] / "tables" / "variants.csv")
    fp16 = table[table["precision"] == "fp16"].iloc[0]
    if fp16["score"] > 0:
        assert fp16["q_ret_pct"] == 100
        assert table["q_ret_pct"].notna().all()
    else:  # an untrained model may score nothing: there is no ratio to nothing
        assert table["q_ret_pct"].isna().all()
        assert table["notes"].str.contains("q_ret_pct: lora/fp16 scored 0").all()


def test_an_estimate_says_so_everywhere(llama):
    table = pd.read_csv(llama[0] / "tables" / "variants.csv")
    if set(table["energy_source"]) == {"cpu-model"}:
        assert table["energy_per_request_net_j"].isna().all()
        assert table["notes"].str.contains("energy_per_request_net_j").all()
        assert "estimate" in (llama[0] / "report.html").read_text(encoding="utf-8").lower()


def test_the_base_is_served_and_scored_beside_them(study):
    reference = pd.read_csv(study[0] / "tables" / "reference.csv")
    assert {"rule", "none"} <= set(reference["method"])
    assert reference["content"].between(0, 1).all()
    assert (reference.loc[reference["method"] != "rule", "limit_reached_share"] >= 0).all()
    assert "none" not in set(pd.read_csv(study[0] / "tables" / "variants.csv")["method"])


def test_lora_stands_beside_qlora(llama):
    adaptation = pd.read_csv(llama[0] / "tables" / "adaptation.csv")
    assert len(adaptation) == 1
    assert len(pd.read_csv(llama[0] / "tables" / "frontier.csv")) == 1
    serving = pd.read_csv(llama[0] / "tables" / "serving.csv")
    assert sorted(set(serving["concurrency"])) == [1, 4]


def test_pictures_and_report_stand_alone(study):
    figures = study[0] / "figures"
    names = {path.stem for path in figures.glob("*.png")}
    assert len(names) >= FIGURES
    assert names == {path.stem for path in figures.glob("*.svg")}
    html = (study[0] / "report.html").read_text(encoding="utf-8")
    page = BeautifulSoup(html, "html.parser")
    linked = [element["href"].partition("#")[0] for element in page.select("[href]")]
    linked = [target for target in linked if not target.startswith(("data:", "https://"))]
    linked = [target for target in linked if target]  # of this page
    assert "tables/variants.csv" in linked
    for target in linked:
        assert (study[0] / target).is_file(), target
    assert all(element["src"].startswith("data:") for element in page.select("[src]"))
    assert page.select("link, iframe") == []


def test_the_report_complains_of_nothing(study):
    report = nbformat.read(study[0] / "runs" / "synthesis" / "synthesis.ipynb", as_version=4)
    assert complaints(report) == ""


def test_every_stage_notebook_was_executed_and_keeps_its_raw_data(study):
    outputs, path = study
    runs = load_study(path).runs()
    for run in runs:
        notebook = outputs / "runs" / run.stage / f"{run.name}.ipynb"
        recorded = scraps.read_scraps(notebook)
        assert recorded["run_complete"] is True
        assert recorded["settings_hash"] == run.settings_hash
        assert {"study_hash", "git_commit", "packages", "load_average"} <= set(
            recorded["provenance"]
        )
    not_asked_for = {"synthesis", "paper", "planner", "ablation", "power_sweep", "harness"}
    assert {run.stage for run in runs} == set(NOTEBOOKS) - not_asked_for
    serve = next(run for run in runs if run.stage == "serve")
    raw = outputs / "runs" / "serve" / f"{serve.name}.requests.parquet"
    requests = pd.read_parquet(raw)
    recorded = scraps.read_scraps(raw.with_name(f"{serve.name}.ipynb"))
    headline = recorded["serving"][-1]
    part = requests[requests["concurrency"] == headline["concurrency"]]
    assert part["ttft_ms"].mean() == pytest.approx(headline["ttft_ms"])
    tokens = part["token_times_s"].map(len).sum()
    assert tokens / headline["seconds"] == pytest.approx(headline["throughput_tok_s"])
    assert not list((outputs / "running").rglob("*.ipynb"))


def test_in_float32_batched_answers_are_those_given_alone(study):
    outputs, _ = study
    for notebook in (outputs / "runs" / "serve").glob("*_fp16_r01.ipynb"):
        assert scraps.read_scraps(notebook)["batch_agreement"] == 1.0


def test_nothing_runs_again_when_nothing_changed(llama):
    outputs, path = llama
    before = {p: p.stat().st_mtime_ns for p in (outputs / "runs").rglob("*")}
    done = command("all", str(path), outputs=outputs.parent)
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in (outputs / "runs").rglob("*")} == before


@pytest.mark.slow
def test_a_study_is_run_on_another_model(qwen2):
    outputs, _ = qwen2
    directory = outputs.parents[1]
    assert outputs.name.startswith("tiny-other-tiny-")
    assert set(pd.read_csv(outputs / "tables" / "variants.csv")["family"]) == {"other-tiny"}
    arguments = (f"--model={directory / 'Other_tiny'}", str(directory / "tiny.yaml"))
    status = command("status", *arguments, outputs=outputs.parent)
    assert "9 of 9 runs are done" in status.stdout
    again = command("all", *arguments, outputs=outputs.parent)
    assert again.returncode == 0, again.stderr
    assert runs_started(again.stdout) == []


def test_a_price_changes_the_tables_alone(llama):
    _, path = llama
    copy = path.with_name("other_prices.yaml")
    copy.write_text(path.read_text().replace("prices: paper", "prices: desktop"))
    runs = {run.name: run.settings_hash for run in load_study(path).runs()}
    assert {run.name: run.settings_hash for run in load_study(copy).runs()} == runs
