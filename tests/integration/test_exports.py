"""Exports: what other tools read of a study, checked by those tools' own schema or library."""

import json
import re
import socket

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from llmd_benchmark_report import BenchmarkReportV021, load_benchmark_report
from lm_eval.result_schema import EvalResults
from lm_eval.utils import make_table
from pydantic import TypeAdapter
from scipy import stats
from test_synthesis import STUDY, tabled

from edge_eval_lib.economics.carbon import load_carbon_book
from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import project_root
from edge_eval_lib.results import exchange, exports
from edge_eval_lib.results.exports import benchmark_report, lm_eval, model_card
from edge_eval_lib.results.harness import COLUMNS

NAME = "smollm2-135M_rag_lora_int4"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study with tables, where its outputs are, and its results file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        tabled()
        yield exchange.make(STUDY)


@pytest.fixture
def row(finished):
    return next(row for row in finished.variants if row.name == NAME)


def changed(results, row, **changes):
    """The results file of this row alone, with other content."""
    return results.model_copy(update={"variants": [row.model_copy(update=changes)]})


def without(row, *names):
    figures = {name: value for name, value in row.figures.items() if name not in names}
    return {"figures": figures, "notes": "; ".join(f"{name}: no meter here" for name in names)}


# --- all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("to", exports.FORMATS)
def test_every_variant_is_exported_without_path_host_or_secret(finished, to, monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "SmolLM2-135M-Instruct")  # stands in the description
    paths = exports.export(STUDY, to)
    assert len(paths) == len(finished.variants) == 12
    texts = [path.read_text() for path in paths]
    for text in texts:
        assert not re.search(r"/(?:home|root|tmp|usr|work|opt)/", text)
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
        assert str(project_root()) not in text
        assert "SmolLM2-135M-Instruct" not in text
        assert "NaN" not in text


@pytest.mark.parametrize(
    ("to", "region", "sentence"),
    [
        ("lm_eval", None, "There is no format 'lm_eval' to export to; did you mean 'lm-eval'"),
        ("report", "DEU", "A region is of model-card's carbon; report has none."),
        ("model-card", "XXX", "params/carbon.yaml has no region 'XXX'"),
    ],
)
def test_what_there_is_not_is_refused_in_a_sentence(finished, to, region, sentence):
    with pytest.raises(UserError) as refused:
        exports.export(STUDY, to, region)
    assert str(refused.value).startswith(sentence)


# --- lm-evaluation-harness --------------------------------------------------------------------


def lm_eval_of(results, harness=None, name=NAME):
    files = lm_eval.files(results, harness)
    (text,) = [text for path, text in files.items() if path.startswith(f"{name}/results_")]
    content = json.loads(text)
    TypeAdapter(EvalResults).validate_python(content, strict=True)  # the library's own schema
    return content


def test_lm_evals_own_schema_and_table_take_the_scores(finished, row):
    content = lm_eval_of(finished)
    scored = content["results"]["edge_eval_rag"]
    assert scored["f1,none"] == row.figures["score"]
    low, high = row.intervals["score"]
    n = int(row.figures["scored_prompts"])
    error = (high - low) / 2 / stats.t.ppf(0.975, n - 1)
    assert scored["f1_stderr,none"] == pytest.approx(error)
    assert content["n-samples"]["edge_eval_rag"] == {"original": 24, "effective": n}
    assert content["config"]["model_args"]["precision"] == "int4"
    table = make_table(content)
    assert re.search(rf"\|f1 .*\| *{scored['f1,none']:.2f}\|± *\| *{error:.4f}\|", table)
    assert "edge_eval_rag" in table


def test_a_standard_error_is_that_of_the_prompts(finished, row):
    values = np.array([0.0, 0.5, 1.0, 0.25])
    error, mean = stats.sem(values), values.mean()
    half = error * stats.t.ppf(0.975, 3)
    figures = row.figures | {"score": mean, "scored_prompts": 4.0}
    intervals = row.intervals | {"score": [mean - half, mean + half]}
    content = lm_eval_of(changed(finished, row, figures=figures, intervals=intervals))
    assert content["results"]["edge_eval_rag"]["f1_stderr,none"] == pytest.approx(error)


def test_the_librarys_own_tasks_stand_beside_ours(finished):
    key = {"family": "smollm2", "size": "135M", "precision": "int4", "method": "lora"}
    of = {"metric": "acc", "filter": "none", "prompts": 400, "lm_eval": "0.4.13"}
    of |= {"harness_task": "arc_easy", "value": 0.5, "stderr": 0.025, "higher_is_better": True}
    base = key | {"task": None, "method": "none", "precision": "fp16"} | of | {"stderr": np.nan}
    rows = [key | {"task": "rag"} | of, base, key | {"task": "dialogue"} | of | {"value": np.nan}]
    harness = pd.DataFrame(rows).reindex(columns=COLUMNS)
    content = lm_eval_of(finished, harness)
    assert content["results"]["arc_easy"]["acc,none"] == 0.5
    assert content["results"]["arc_easy"]["acc_stderr,none"] == 0.025
    assert "edge_eval_rag" in content["results"]
    assert content["lm_eval_version"] == "0.4.13"
    assert "±" in make_table(content)
    alone = lm_eval_of(finished, harness, "smollm2-135M_none_fp16")
    assert list(alone["results"]) == ["arc_easy"]
    assert "acc_stderr,none" not in alone["results"]["arc_easy"]
    assert (
        "arc_easy" not in lm_eval_of(finished, harness, NAME.replace("rag", "dialogue"))["results"]
    )


def test_what_was_not_scored_is_no_result(finished, row):
    with pytest.raises(UserError, match=r"No variant of embedded has a score \(no meter here\)"):
        lm_eval.files(changed(finished, row, **without(row, "score")))


# --- model cards ------------------------------------------------------------------------------


def test_a_card_reads_back_with_scores_and_carbon(finished, row):
    card = ModelCard(model_card.files(finished, "DEU")[f"{NAME}.md"], ignore_metadata_errors=False)
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("f1", row.figures["score"])
    assert result.dataset_type == "edge-eval-rag"
    assert card.data.model_name == NAME
    assert card.data.license == "apache-2.0"
    emitted = card.data.co2_eq_emissions
    joules = row.figures["adapt_energy_j"] + row.figures["compress_energy_j"]
    grams = joules / 3.6e6 * load_carbon_book().intensity_g_per_kwh("DEU")
    assert emitted["emissions"] == pytest.approx(grams, rel=1e-3)
    assert emitted["geographical_location"] == "DEU"
    assert emitted["hardware_used"] == row.host
    assert "381 g CO2e per kWh (DEU" in emitted["source"]
    for heading in ("energy per request", "J", row.host, "requests in flight"):
        assert heading in card.text


def test_no_place_is_claimed_that_nobody_said(finished):
    card = ModelCard(model_card.files(finished)[f"{NAME}.md"])
    assert "geographical_location" not in card.data.co2_eq_emissions
    assert "481 g CO2e per kWh (WORLD" in card.data.co2_eq_emissions["source"]


def test_what_is_not_known_is_left_out_with_its_reason(finished, row):
    lacking = changed(finished, row, **without(row, "adapt_energy_j", "score"))
    card = ModelCard(model_card.files(lacking)[f"{NAME}.md"])
    assert card.data.get("co2_eq_emissions") is None
    assert card.data.eval_results is None
    left_out = card.text.split("Left out:")[1]
    assert "- adapt_energy_j: no meter here" in left_out
    assert "- co2_eq_emissions: the energy of adapting or compressing is not known" in left_out
    assert "| adapt energy |" not in card.text


# --- llm-d's benchmark report -----------------------------------------------------------------


def test_llmds_own_library_takes_every_report_and_its_units(finished, row):
    for text in benchmark_report.files(finished).values():
        assert isinstance(load_benchmark_report(json.loads(text)), BenchmarkReportV021)
    content = json.loads(benchmark_report.files(finished)[f"{NAME}.json"])
    report = load_benchmark_report(content)
    measured = report.results.request_performance.aggregate
    assert measured.latency.time_to_first_token.mean == row.figures["ttft_ms"]
    assert measured.latency.time_to_first_token.units.value == "ms"
    assert measured.throughput.output_token_rate.units.value == "tokens/s"
    assert report.scenario.load.standardized.concurrency == row.concurrency
    own = content["results"]["observability"]["edge_eval"]
    energy = own["figures"]["energy_per_request_j"]
    assert (energy["value"], energy["units"]) == (row.figures["energy_per_request_j"], "J")
    assert all(figure["units"] for figure in own["figures"].values())
    assert own["energy_source"] == row.energy_source
    assert set(row.reasons) - set(row.figures) == set(own["missing"])


def test_a_report_of_an_endpoint_claims_no_hardware_and_no_energy(finished, row):
    names = ("energy_per_request_j", "ttft_ms", "power_w", "input_tokens_per_request", "requests")
    lacking = changed(finished, row, gpus=None, engine="openai", energy_source=None,
                      **without(row, *names))  # fmt: skip
    content = json.loads(benchmark_report.files(lacking)[f"{NAME}.json"])
    report = load_benchmark_report(content)
    assert report.scenario.load is None
    assert report.scenario.stack[0].standardized.kind == "generic"
    assert report.results.request_performance.aggregate.latency.time_to_first_token is None
    assert report.results.observability.components is None
    own = content["results"]["observability"]["edge_eval"]
    assert own["missing"]["energy_per_request_j"] == "no meter here"
    assert own["energy_source"] == "not measured"
