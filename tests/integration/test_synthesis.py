"""Synthesis: executed notebooks become observations; notebook 05 makes tables and a report."""

import re
import shutil
from types import SimpleNamespace

import nbformat
import orjson
import pandas as pd
import pytest
import yaml
from cells import run_cells
from finished import serving_record
from matplotlib.text import Text
from tiny import VARIANT_COLUMNS

from edge_eval_lib.artefacts.place import place
from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import host
from edge_eval_lib.paths import project_root
from edge_eval_lib.results import columns, device_report, figures, observations, overview, tables
from edge_eval_lib.results.drawn import Drawn
from edge_eval_lib.results.lab import load_lab
from edge_eval_lib.results.report import render
from edge_eval_lib.scraps import MISSING, SCRAP_MIMES, read_scraps
from edge_eval_lib.study import load_study

STUDY = load_study("embedded")
FINISH = figures.finish  # the fixture `whole` has it replaced while it lives
PROMPTS = 6
CHECK = {"name": "resolution", "verdict": "ok", "detail": "edges ±1 %"}
WARNING = {"name": "temperature", "verdict": "warning", "detail": "it rose by 20 °C"}


def notebook(path, **scraps) -> None:
    """An executed notebook that recorded these scraps and ran to its end."""
    outputs = [
        {
            "output_type": "display_data",
            "data": {SCRAP_MIMES[0]: {"name": name, "data": MISSING if value is None else value}},
            "metadata": {},
        }
        for name, value in (scraps | {"run_complete": True}).items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps({"cells": [{"cell_type": "code", "outputs": outputs}]}))


def window(prefix, energy=100.0, seconds=10.0, reason=None, checks=(CHECK,)) -> dict:
    figures = {
        "s": seconds,
        "energy_j": energy,
        "energy_lo_j": None if energy is None else energy / 2,
        "energy_hi_j": None if energy is None else energy * 2,
        "energy_source": None if energy is None else "cpu-model (estimated)",
        "energy_reason": reason,
        "power_w": 10.0,
        "peak_memory_gb": 3.3,
        "checks": list(checks),
    }
    return {f"{prefix}_{name}": value for name, value in figures.items()}


def serving(concurrency, energy=4.0) -> dict:
    """A window's record: 6 requests of 16 tokens at 8 (two at 1), 8 tok/s for each at a time."""
    requests = PROMPTS if concurrency > 1 else 2
    record = window("x", None if energy is None else energy * requests, requests * 2 / concurrency)
    figures = {name.removeprefix("x_"): value for name, value in record.items()}
    return serving_record(**figures) | {
        "window": f"serve at {concurrency}",
        "concurrency": concurrency,
        "start_monotonic_s": 5000.0,
        "energy_net_j": None,
        "energy_net_reason": "a model of CPU time has no idle baseline",
        "cpu_s": 3.0,
        "peak_memory_gb": 0.6,
        "checks": [CHECK, WARNING],
    }


def asked_for(study) -> list[dict]:
    """The windows of what only some workloads ask for."""
    windows = []
    if study.workload.prefix_caching:
        changes = {"prefix_caching": True, "prefix_cache_hit_rate": 0.4}
        windows.append(serving(8, energy=3.0) | {"window": "serve at 8, caching"} | changes)
    for rate_per_s in study.workload.arrival_rates_per_s:
        changes = {"concurrency": None, "rate_per_s": rate_per_s, "failures": {"HTTP 503": 1}}
        windows.append(serving(8) | {"window": f"open loop at {rate_per_s}"} | changes)
    return windows


def common(run, **scraps) -> dict:
    return {
        "settings_hash": run.settings_hash,
        "started": "2026-01-02T03:04:05",
        "provenance": {
            "host": "A CPU, 2 logical CPUs",
            "git_commit": "abc",
            "packages": {"torch": "2.13.0", "vllm": None},
        },
    } | scraps


def make_study(root, energy=100.0, reason=None, study=STUDY, provenance=None) -> None:
    answers = []
    for run in study.runs():
        path = root / "runs" / run.stage / f"{run.name}.ipynb"
        key = {"family": "smollm2", "size": "135M"}
        key |= {k: v for k, v in run.parameters.items() if k != "model"}
        scraps = common(run, **key)
        scraps |= {"provenance": provenance} if provenance else {}
        if run.stage == "adapt":
            factor = 1.2 if run.parameters["method"] == "qlora" else 1.0
            value = None if energy is None else energy * factor
            loading = None if energy is None else 30.0
            notebook(
                path,
                **scraps,
                **window("adapt", value, reason=reason),
                **window("base_load", loading, 2.0, reason=reason),
                executed_dtype="float32",
                instruction_set="AVX2",
            )
        elif run.stage == "compress":
            windows = window("fp16", 5.0, 1.0) | window("int8", 2.0, 0.5) | window("int4", 3.0, 0.5)
            notebook(path, **scraps, merge_base="fp16", **windows)
        elif run.stage == "serve":
            notebook(
                path,
                **scraps,
                engine="transformers",
                gpus=0,
                memory_nominal_gb=0.27,
                executed_dtype="bfloat16" if key["precision"] == "int4" else "float32",
                instruction_set="AVX2",
                batch_agreement=0.75 if key["precision"] == "int4" else 1.0,
                **window("load", 80.0, 3.0),
                load_import_energy_j=50.0,
                load_import_energy_lo_j=25.0,
                load_import_energy_hi_j=100.0,
                load_import_s=2.0,
                load_place_s=1.0,
                idle_bare_power_w=10.0,
                idle_loaded_power_w=14.0 if key["precision"] == "fp16" else None,
                idle_reason=None if key["precision"] == "fp16" else "no idle power is known",
                serving_windows=[serving(1), serving(8), *asked_for(study)],
            )
            names = [each["window"] for each in (serving(8), *asked_for(study))]
            pd.DataFrame(
                {
                    "window": ["serve at 1"] * 2 + [n for n in names for _ in range(PROMPTS)],
                    "input_tokens": 70,
                    "output_tokens": 16,
                    "natural_tokens": 9,
                    "ttft_ms": [300.0 + i for i in range(PROMPTS * len(names) + 2)],
                    "tpot_ms": 100.0,
                }
            ).to_parquet(path.with_suffix(".requests.parquet"))
            gain = 0.0 if key["method"] == "none" else 0.2
            answers += [
                {k: key[k] for k in ("family", "size", "task", "method", "precision")}
                | {"repetition": key["repetition"], "prompt_id": f"p{i}"}
                | {"score": 0.1 * i + gain, "score_reason": "", "gold_nll": 3.0 - gain - 0.1 * i}
                | {"answer": f"answer {i}", "reference": f"gold {i}"}
                | {"recall": 0.5, "answer_tokens": 5, "top1_agreement": 1.0 - gain}
                for i in range(PROMPTS)
            ]
        elif run.stage == "score":
            notebook(path, **scraps)
            pd.DataFrame(answers).to_parquet(path.with_suffix(".answers.parquet"))
        else:
            notebook(path, **scraps)


def written(root, monkeypatch, study=STUDY, pictures=False, added=()):
    """What notebook 05 leaves of the study below `root`: its namespace, report, and figures."""
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(root))
    monkeypatch.setenv("EDGE_EVAL_RUN", "synthesis/synthesis")
    drawn = {}

    def finished(fig, path=None, *arguments, alt=None, **options):
        if not pictures:  # laying them out takes most of the time
            figures._foot(fig, *arguments, **options)
            result = Drawn(fig, "<svg/>", alt or "")
        else:
            result = FINISH(fig, path, *arguments, alt=alt, **options)
        drawn[path.name] = result.figure
        return result

    monkeypatch.setattr(figures, "finish", finished)
    shown = []
    space = run_cells("05_synthesis.ipynb", f"study = {str(study.path)!r}", added, shown)
    directory = root / study.name
    nbformat.write(nbformat.v4.new_notebook(cells=shown), directory / "executed.ipynb")
    html = render(directory / "executed.ipynb", directory / "report.html").read_text()
    return space, html, drawn


def tabled() -> pd.DataFrame:
    """Make the study where its outputs go, with what real runs record; its table of variants."""
    make_study(STUDY.directory, provenance=host.provenance("x"))
    table = variants_of(observations.load_results(STUDY))
    tables.write_table(table, STUDY.directory / "tables" / "variants.csv")
    return table


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("study") / "embedded"
    make_study(root)
    return root


@pytest.fixture(scope="module")
def results(directory):
    return observations.load_results(STUDY, directory)


@pytest.fixture(scope="module")
def whole(directory):
    """Notebook 05 of the whole study; its pictures are drawn and not laid out."""
    with pytest.MonkeyPatch.context() as patch:
        yield written(directory.parent, patch)


def variants_of(results):
    book, prices = observations.prices_of(results.study)
    return tables.variants_table(
        results.headline, results.answers, prices, book.scenario_prices(prices)
    )


def test_every_serving_run_is_an_observation_a_concurrency(results):
    assert len(results.observations) == 15 * 2
    assert len(results.headline) == 15
    row = results.headline[results.headline["run"] == "smollm2-135M_rag_qlora_int4_r01"].iloc[0]
    assert row["adapt_energy_j"] == 120 + 30  # training, and loading the base
    assert (row["adapt_energy_lo_j"], row["adapt_energy_hi_j"]) == (75, 300)
    assert (row["adapt_train_energy_j"], row["adapt_train_s"]) == (120, 10)
    assert (row["adapt_s"], row["adapt_power_w"]) == (12, 150 / 12)
    assert (row["compress_energy_lo_j"], row["compress_energy_hi_j"]) == (4, 16)
    assert row["load_model_energy_j"] == 80 - 50
    assert (row["executed_dtype"], row["instruction_set"]) == ("bfloat16", "AVX2")
    assert row["batch_agreement"] == 0.75
    assert row["adapt_peak_memory_gb"] == 3.3
    assert row["compress_energy_j"] == 5 + 3
    assert row["compress_s"] == 1.5
    assert row["load_energy_j"] == 80
    assert row["throughput_tok_s"] == 64
    assert row["energy_per_request_j"] == 4
    assert row["ttft_ms"] == 300 + 2 + 2.5  # from the requests of this concurrency
    assert row["host"] == "A CPU, 2 logical CPUs"
    assert row["merge_base"] == "fp16"
    fp16 = results.headline[results.headline["run"] == "smollm2-135M_rag_lora_fp16_r01"].iloc[0]
    assert fp16["compress_energy_j"] == 5  # the merge alone


def test_the_base_has_neither_adaptation_nor_compression(results):
    base = results.headline[results.headline["method"] == "none"]
    assert len(base) == 3
    assert base[["adapt_energy_j", "compress_energy_j", "merge_base"]].isna().all(axis=None)


def test_nothing_is_missing_from_a_whole_study(results):
    assert results.missing == []
    assert results.failures.empty
    assert len(results.answers) == 15 * PROMPTS
    assert set(results.checks["verdict"]) == {"ok", "warning"}


def test_tables_are_those_of_the_design(whole, results):
    space = whole[0]
    assert {name: len(table) for name, table in space["written"].items()} == {
        "variants": 12, "frontier": 1, "adaptation": 3, "serving": 30, "reference": 15,
        "cold_starts": 5, "checks": len(results.checks),
    }  # fmt: skip
    adaptation = space["adaptation"]
    assert adaptation["energy_ratio"].tolist() == pytest.approx([150 / 130] * 3)
    assert adaptation["train_energy_ratio"].tolist() == pytest.approx([1.2] * 3)
    assert set(adaptation["executed_dtype"]) == {"float32"}
    adapted = space["reference"][space["reference"]["method"] != "none"]
    assert adapted["score_difference"].tolist() == pytest.approx([0.2] * 12)
    assert adapted["gold_nll_difference"].tolist() == pytest.approx([-0.2] * 12)
    variants = space["table"]
    assert (variants["c_tax"] == 20).all()
    assert (variants["c_tax_model"] == 30 / 4).all()
    assert set(variants["prices"]) == set(space["frontier"]["prices"]) == {STUDY.prices}
    for table in (variants, space["serving"]):
        assert {"executed_dtype", "instruction_set", "batch_agreement"} <= set(table)
    assert (variants["q_ret_pct"] == 100).all()


def test_the_notebooks_variants_are_the_librarys(whole, results):
    book, prices = observations.prices_of(results.study)
    by_library = tables.variants_table(
        results.headline, results.answers, prices, book.scenario_prices(prices),
        price_set=results.study.prices,
    )  # fmt: skip
    pd.testing.assert_frame_equal(whole[0]["table"], by_library, check_exact=True)


@pytest.fixture(scope="module")
def edited(directory, tmp_path_factory):
    """What notebook 05 leaves that somebody edited, with another formula and one cell more: the
    study's outputs, its page and its pictures, which were laid out too."""
    root = tmp_path_factory.mktemp("edited")
    shutil.copytree(directory, root / "embedded")
    notebook = orjson.loads((project_root() / "notebooks" / "05_synthesis.ipynb").read_bytes())
    (cell,) = [c for c in notebook["cells"] if c["id"] == "rho"]
    cell["source"] = ["".join(cell["source"]).replace("metrics.system_density", "difference")]
    cell["source"].insert(0, "def difference(speed, memory):\n    return speed - memory\n\n\n")
    (root / "notebooks").mkdir()
    (root / "notebooks" / "05_synthesis.ipynb").write_bytes(orjson.dumps(notebook))
    added = "show(table[['task']].assign(mine=42).head(1))"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cells.project_root", lambda: root)
        _, html, drawn = written(root, patch, pictures=True, added=[added])
    return root / "embedded", html, drawn


@pytest.mark.slow  # executes the whole notebook
def test_another_formula_in_a_cell_is_what_the_tables_hold(edited):
    outputs, _, _ = edited
    variants = pd.read_csv(outputs / "tables" / "variants.csv")
    expected = variants["throughput_tok_s"] - variants["memory_gb"]
    assert variants["rho_sys"].tolist() == pytest.approx(expected.tolist())
    frontier = pd.read_csv(outputs / "tables" / "frontier.csv")
    int4 = variants["precision"] == "int4"
    assert frontier["rho_sys"].tolist() == pytest.approx([variants.loc[int4, "rho_sys"].mean()])


@pytest.mark.slow  # executes the whole notebook
def test_a_cell_that_somebody_adds_to_it_is_in_the_report(edited):
    _, html, _ = edited
    assert "<td>42</td>" in html.replace(' class="number"', "")


def test_answers_that_did_not_change_bound_nothing(whole, results):
    space, html, _ = whole
    variants = space["table"]
    assert variants[["q_ret_pct_lo", "q_ret_pct_hi"]].isna().all(axis=None)
    fp16 = (variants["method"] == "lora") & (variants["precision"] == "fp16")
    assert variants.loc[~fp16, "notes"].str.contains("q_ret_pct: no answer changed").all()
    assert variants.loc[fp16, "notes"].str.contains("q_ret_pct: 100 by definition").all()
    assert overview.resolution(results.answers)["coverage"].isna().all()
    assert "where no answer changed: there nothing bounds Q_ret" in html


def test_coverage_is_that_of_the_studys_own_answers(results):
    answers = results.answers.copy()
    changed = (answers["precision"] == "int4") & (answers["prompt_id"] == "p5")
    answers.loc[changed, "score"] = 0.1
    table = overview.resolution(answers).set_index(["task", "method", "precision"])
    row = table.loc["rag", "lora", "int4"]
    assert row["prompts"] == 6
    assert (row["same"], row["worse"], row["zero"]) == pytest.approx((5 / 6, 1 / 6, 0))
    assert 0 < row["coverage"] < 1
    assert row["needed_prompts"] > 6
    assert pd.isna(table.loc[("rag", "lora", "int8"), "coverage"])


def test_a_comparison_of_two_dtypes_says_so_in_table_figure_and_sentence(whole, results):
    space, _, drawn = whole
    int4 = space["table"][space["table"]["precision"] == "int4"]
    note = "q_ret_pct: executed dtype bfloat16, that of lora/fp16 float32"
    assert int4["notes"].str.contains(note, regex=False).all()
    assert any("bfloat16 (INT4)" in t for t in overview.warnings(results, space["table"]))
    for name in ("roi_ipw_quadrants", "system_density", "lifecycle_energy",
                 "latency_distributions"):  # fmt: skip
        shown = [text.get_text() for text in drawn[name].findobj(Text)]
        assert any("Mixed executed dtypes" in text for text in shown), name
    shown = [text.get_text() for text in drawn["adaptation_energy"].findobj(Text)]
    assert not any("Mixed" in text for text in shown)


@pytest.mark.slow  # executes the whole notebook
def test_the_scatter_of_one_run_is_reported_and_numbers_are_rounded_to_it(tmp_path, monkeypatch):
    make_study(tmp_path / "embedded")
    for path in (tmp_path / "embedded/runs/serve").glob("*_qlora_int4_*.requests.parquet"):
        requests = pd.read_parquet(path)
        requests.assign(tpot_ms=122.14).to_parquet(path)  # a fifth more, in logarithms
    space, html, _ = written(tmp_path, monkeypatch)
    (text,) = [w for w in overview.warnings(space["results"], space["table"]) if "alike" in w]
    # Three pairs of INT4 a fifth apart, three of FP16 the same: sqrt(0.2^2 / 2 / 2) = 10 %.
    assert "TPOT 10 %" in text
    assert "64.0" not in html
    assert "122" not in html.split("Serving at every concurrency</h2>")[-1].split("</table>")[0]


def test_doubtful_rows_are_named_first_and_the_frontier_shows_them(whole, results):
    space, _, drawn = whole
    expected = ["warning: 6 of 6 INT4 variants (temperature)"]
    assert space["frontier"]["validity"].tolist() == expected
    texts = overview.warnings(results, space["table"])
    assert any("12 of 12 variants are doubtful" in t and "temperature" in t for t in texts)
    shown = [t.get_text() for t in drawn["roi_ipw_quadrants"].findobj(Text)]
    assert any("Hollow" in text for text in shown)


def test_the_five_metrics_are_explained_with_their_prices(whole):
    _, html, _ = whole
    section = html.split("The five metrics</h2>")[1].split("<h2")[0]
    for name in ("N_break =", "IPW =", "ρ_sys =", "Q_ret =", "C_tax ="):
        assert name in section
    assert STUDY.prices in section
    texts = re.sub(r"<details.*?</details>", "", html, flags=re.DOTALL)
    assert "keep_warm_s:" not in texts
    assert "q_ret_pct:" not in texts


@pytest.mark.parametrize(
    ("base", "rule", "says"),
    [
        (0.5, 0.2, "content"),
        (0.5, 0.05, "the form: no more content than rules"),
        (0.05, 0.2, "the form: no gain"),
        (-0.3, -0.3, "the form: no gain"),
    ],
)
def test_what_adapting_taught_is_judged_by_the_intervals(whole, base, rule, says):
    row = {"content_difference_lo": base - 0.1, "content_difference_no_model_lo": rule - 0.1}
    assert whole[0]["taught"](row).startswith(says)


def test_what_adapting_taught_is_not_judged_without_rules(whole):
    assert whole[0]["lora"].empty


@pytest.mark.slow  # executes the whole notebook
def test_answers_without_a_model_and_cut_ones_stand_in_table_and_report(
    directory, tmp_path, monkeypatch
):
    shutil.copytree(directory, tmp_path / "embedded")
    (score,) = (tmp_path / "embedded" / "runs" / "score").glob("*.ipynb")
    rows = [
        {"task": task, "prompt_id": f"p{i}", "score": 0.5, "content": 0.2, "rule": "echoes",
         "content_rule": "echoes"}
        for task in STUDY.tasks
        for i in range(PROMPTS)
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(score.with_suffix(".no_model.parquet"))
    answers = pd.read_parquet(score.with_suffix(".answers.parquet"))
    cut = (answers["method"] == "none").astype(float)
    answers = answers.assign(limit_reached=cut, still_cut=0.0, content=answers["score"])
    answers.to_parquet(score.with_suffix(".answers.parquet"))
    space, html, _ = written(tmp_path, monkeypatch)
    reference = space["reference"]
    assert reference["method"].tolist()[:3] == ["rule"] * 3
    assert reference["task"].tolist()[:3] == ["rag", "summarization", "dialogue"]
    named = columns.named(reference)
    assert named["model"].tolist()[0] == "no model"
    assert named["configuration"].tolist()[0].strip() == "rule"
    assert len(reference) == 18
    by_method = reference.groupby("method")["limit_reached_share"].mean()
    assert (by_method["none"], by_method["lora"]) == (1, 0)
    assert "limit reached [share]" in html
    assert len(space["lora"]) == 3
    assert "adapting taught" in html


@pytest.mark.slow  # executes the whole notebook
def test_without_scores_everything_else_is_there(tmp_path, monkeypatch):
    make_study(tmp_path / "embedded")
    (tmp_path / "embedded" / "runs" / "score" / "score.ipynb").unlink()
    space, html, _ = written(tmp_path, monkeypatch)
    assert space["results"].missing == ["score/score"]
    variants = pd.read_csv(tmp_path / "embedded" / "tables" / "variants.csv")
    assert variants[["score", "ipw", "q_ret_pct"]].isna().all(axis=None)
    assert variants[["c_tax", "n_break", "rho_sys"]].notna().all(axis=None)
    assert variants["notes"].str.contains("score: not measured").all()
    assert "No answer was scored" in html


def test_everything_is_written_and_stamped(whole, directory):
    _, html, _ = whole
    for text in ("Not a T4", "A CPU, 2 logical CPUs", "estimated from CPU time", "One repetition",
                 "it rose by 20 °C", "No run failed", "torch 2.13.0"):  # fmt: skip
        assert text in html
    assert html.index("Not a T4") < html.index("<nav")
    assert html.count('<figure class="picture">') == 8
    assert html.count('<template class="chart">') == 4
    assert html.count('<script type="module">') == 3  # charts, tables, and what sets them up
    assert html.count('<div class="sortable">') == 2
    assert {p.stem for p in (directory / "tables").glob("*.csv")} == {
        "variants", "frontier", "adaptation", "serving", "reference", "cold_starts",
        "checks",
    }  # fmt: skip
    assert set(pd.read_csv(directory / "tables" / "variants.csv")) >= VARIANT_COLUMNS


@pytest.mark.slow  # lays out every picture
def test_every_picture_is_written_for_the_page_and_for_print(edited):
    outputs, html, drawn = edited
    assert html.count('<figure class="picture">') == len(drawn) == 8
    pictures = sorted(p.name for p in (outputs / "figures").iterdir())
    assert len(pictures) == 16
    assert {p.rsplit(".", 1)[1] for p in pictures} == {"png", "svg"}


@pytest.mark.slow  # executes the whole notebook
def test_failed_and_missing_runs_are_named(tmp_path, monkeypatch):
    root = tmp_path / "embedded"
    make_study(root)
    failed = "smollm2-135M_rag_lora_int8_r01"
    absent = "smollm2-135M_dialogue_lora_int4_r01"
    for name in (failed, absent):
        (root / "runs" / "serve" / f"{name}.ipynb").unlink()
    (root / "failed" / "serve").mkdir(parents=True)
    (root / "failed" / "serve" / f"{failed}.json").write_bytes(
        orjson.dumps({"reason": "the kernel was killed: out of memory"})
    )
    space, html, _ = written(tmp_path, monkeypatch)
    assert space["results"].missing == [f"serve/{absent}"]
    assert space["results"].failures["run"].tolist() == [failed]
    assert "out of memory" in html
    assert absent in html
    assert "runs failed: 1; runs not made: 1" in html
    assert len(pd.read_csv(root / "tables" / "variants.csv")) == 10


@pytest.mark.slow  # executes the whole notebook
def test_unknown_energy_stays_empty_with_its_reason(tmp_path, monkeypatch):
    reason = "no permission to read the counter"
    make_study(tmp_path / "embedded", energy=None, reason=reason)
    space, _, drawn = written(tmp_path, monkeypatch)
    assert space["table"]["n_break"].isna().all()
    assert space["table"]["notes"].str.contains("adapt_energy_j: no permission").all()
    texts = drawn["adaptation_energy"].findobj(Text)
    assert any("Nothing to draw" in text.get_text() for text in texts)


def test_a_run_that_did_not_record_the_libraries_part_says_so(tmp_path):
    make_study(tmp_path)
    for path in (tmp_path / "runs" / "serve").glob("*.ipynb"):
        path.write_bytes(path.read_bytes().replace(b"load_import_energy", b"an_older_name"))
    for path in (tmp_path / "runs" / "adapt").glob("*.ipynb"):
        path.write_bytes(path.read_bytes().replace(b"base_load_", b"an_older_name_"))
    variants = variants_of(observations.load_results(STUDY, tmp_path))
    assert variants[["c_tax_model", "load_model_energy_j"]].isna().all(axis=None)
    assert variants["c_tax"].notna().all()
    assert variants["notes"].str.contains("load_model_energy_j: this run did not record").all()
    assert variants["adapt_energy_j"].isna().all()
    assert (variants["adapt_train_energy_j"] > 0).all()
    assert variants["notes"].str.contains("adapt_energy_j: this run did not record the load").all()


def test_keeping_warm_pays_for_as_long_as_a_load_lasts_it(results):
    table = tables.cold_start_table(results.runs).set_index(["method", "precision"])
    assert table.loc[("lora", "fp16"), "keep_warm_s"] == 80 / (14 - 10)
    assert pd.isna(table.loc[("lora", "int8"), "keep_warm_s"])
    assert table.loc[("lora", "int8"), "loads"] == 3
    assert table.loc[("lora", "int8"), "load_import_s"] == 2


def test_first_tokens_have_a_mean_only_where_every_token_was_timed(results):
    serve = results.runs["stage"] == "serve"
    runs = results.runs.assign(load_first_token_s=results.runs["stage"].map({"serve": 0.5}))
    some = runs.index[serve & (runs["precision"] == "fp16") & (runs["method"] == "lora")][0]
    runs.loc[some, "load_first_token_s"] = None
    table = tables.cold_start_table(runs)
    table = table.set_index(["method", "precision"])["load_first_token_s"]
    assert pd.isna(table["lora", "fp16"])
    assert table["lora", "int8"] == 0.5


def test_keep_warm_time_stands_beside_each_variant_or_says_why_not(results):
    table = variants_of(results).set_index(["task", "method", "precision"])
    row = table.loc[("rag", "lora", "fp16")]
    assert row["keep_warm_s"] == 80 / (14 - 10)
    assert pd.isna(table.loc[("rag", "lora", "int8"), "keep_warm_s"])
    assert "keep_warm_s: no idle power is known" in table.loc[("rag", "lora", "int8"), "notes"]


def test_the_verdict_of_every_check_stands_in_the_tables(results, tmp_path):
    variants = variants_of(results)
    serving = tables.serving_table(results.closed_loop)
    expected = "warning: temperature (serve at 8)"
    assert set(variants["validity"]) == {expected}
    alone = serving[serving["concurrency"] == 1]
    assert set(alone["validity"]) == {"warning: temperature (serve at 1)"}
    doubtful = results.checks[results.checks["verdict"] == "warning"]
    assert len(doubtful) == 15 * 2
    assert set(doubtful["detail"]) == {WARNING["detail"]}
    assert set(variants["window"]) == {"whole"}


def test_serving_figures_are_made_from_the_raw_data_each_time(tmp_path):
    make_study(tmp_path)
    path = tmp_path / "runs" / "serve" / "smollm2-135M_rag_lora_int8_r01.requests.parquet"
    requests = pd.read_parquet(path)
    requests["tpot_ms"] = 50.0
    requests.to_parquet(path)
    found = observations.load_results(STUDY, tmp_path).headline.set_index("run")["tpot_ms"]
    assert found["smollm2-135M_rag_lora_int8_r01"] == 50
    assert found["smollm2-135M_rag_lora_int4_r01"] == 100


def test_repetitions_beyond_the_study_file_count(tmp_path):
    make_study(tmp_path, study=STUDY.with_repetitions(3))
    results = observations.load_results(STUDY, tmp_path)
    assert results.missing == []
    assert results.study.repetitions == 3
    variants = variants_of(results)
    assert (variants["repetitions"] == 3).all()
    assert variants["energy_per_request_j_lo"].notna().all()
    assert not any("One repetition" in w for w in overview.warnings(results, variants))


def test_runs_made_with_other_settings_are_left_out(tmp_path):
    make_study(tmp_path)
    name = "smollm2-135M_rag_lora_int8_r01"
    path = tmp_path / "runs" / "serve" / f"{name}.ipynb"
    run = STUDY.run("serve", name)
    path.write_bytes(path.read_bytes().replace(run.settings_hash.encode(), b"0123456789abcdef"))
    results = observations.load_results(STUDY, tmp_path)
    assert results.missing == [f"serve/{name}"]
    assert name not in set(results.observations["run"])


def test_without_a_run_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no completed serving run"):
        observations.load_results(STUDY, tmp_path)


def test_missing_raw_data_are_named(tmp_path):
    make_study(tmp_path)
    next((tmp_path / "runs" / "serve").glob("*.requests.parquet")).unlink()
    with pytest.raises(UserError, match=r"requests\.parquet is missing"):
        observations.load_results(STUDY, tmp_path)


# --- what only some studies ask for -----------------------------------------------------------


def study_with(tmp_path, configurations=None, **workload):
    """The embedded study with another workload or other configurations, as a file of its own."""
    content = yaml.safe_load(STUDY.path.read_text()) | {"name": "other", "repetitions": 2}
    content["training"]["learning_rate"] = 2e-3  # which YAML 1.1 reads as text
    content["workload"] |= workload
    if configurations:
        content["configurations"] = configurations
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_study(path)


@pytest.mark.slow  # executes the whole notebook
def test_arrivals_and_prefix_caching_have_tables_of_their_own(tmp_path, monkeypatch):
    study = study_with(tmp_path, engine="vllm", prefix_caching=True, arrival_rates_per_s=[1.0, 4.0])
    make_study(tmp_path / "other", study=study)
    _, html, drawn = written(tmp_path, monkeypatch, study)
    read = {
        name: pd.read_csv(tmp_path / "other" / "tables" / f"{name}.csv")
        for name in ("variants", "serving", "arrivals", "prefix_caching")
    }
    assert len(read["variants"]) == 12
    assert set(read["serving"]["concurrency"]) == {1, 8}  # closed loops, nothing else
    assert read["serving"].groupby(["task", "method", "precision"]).size().eq(2).all()
    assert set(read["arrivals"]["rate_per_s"]) == {1.0, 4.0}
    assert set(read["arrivals"]["failed_requests"]) == {1}
    assert set(read["variants"]["failed_requests"]) == {0}
    caching = read["prefix_caching"].iloc[0]
    assert caching["prefix_cache_hit_rate"] == pytest.approx(0.4)
    assert caching["energy_per_request_j_ratio"] == pytest.approx(0.75)
    assert caching["energy_per_request_j_ratio_lo"] <= 0.75
    assert "arrivals" in drawn
    assert "Serving at every arrival rate</h2>" in html
    assert "1 x HTTP 503" in read["arrivals"]["notes"][0]


@pytest.mark.slow  # executes the whole notebook
def test_a_study_of_the_unadapted_base_alone_has_a_report(tmp_path, monkeypatch):
    study = study_with(tmp_path, configurations=[{"method": "none", "precision": "fp16"}])
    make_study(tmp_path / "other", study=study)
    _, html, _ = written(tmp_path, monkeypatch, study)
    assert "Serving at every concurrency" in html
    serving_csv = pd.read_csv(tmp_path / "other" / "tables" / "serving.csv")
    assert serving_csv["method"].eq("none").all()


def test_a_device_report_is_a_page_and_its_data(whole, directory, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(directory.parent))
    notebook = place(STUDY, "synthesis", "synthesis").notebook
    notebook.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(directory / "executed.ipynb", notebook)
    (tmp_path / "docs").mkdir()
    page = device_report.write([STUDY], tmp_path / "docs", tmp_path / "measured")
    assert page.name == "results-A-CPU-2-logical-CPUs.md"
    text = page.read_text()
    assert "throughput [tok/s]" in text
    assert "### LoRA beside QLoRA" in text
    assert "score" not in text
    data = pd.read_csv(tmp_path / "measured" / "A-CPU-2-logical-CPUs" / "embedded_variants.csv")
    assert len(data) == 12


# --- the lab ----------------------------------------------------------------------------------


def by_hand(outputs, folder, stage, name, **changes):
    """A run of the study below `outputs` as if it had been made by hand in a folder of the lab."""
    run = outputs / "embedded" / "runs" / stage / f"{name}.ipynb"
    path = outputs / "lab" / folder / "runs" / stage / run.name
    notebook(path, **(read_scraps(run) | changes))
    shutil.copyfile(STUDY.path, outputs / "lab" / folder / "study.yaml")
    for raw in run.parent.glob(f"{name}.*.parquet"):
        shutil.copyfile(raw, path.with_name(raw.name))
    return f"lab/{folder}/artefacts/x"


@pytest.mark.slow  # executes the whole notebook
def test_runs_made_by_hand_stand_side_by_side(directory, tmp_path, monkeypatch):
    shutil.copytree(
        directory, tmp_path / "embedded", ignore=shutil.ignore_patterns("tables", "fig*")
    )
    adapter, base = "smollm2-135M_rag_lora", "smollm2-135M_rag_none_fp16_r01"
    for number, energy in ((1, 500.0), (2, 900.0)):
        adapted = by_hand(
            tmp_path, f"{adapter}-aaaa{number}", "adapt", adapter, adapt_energy_j=energy
        )
        merged = by_hand(
            tmp_path, f"{adapter}-cccc{number}", "compress", adapter, executed_from=adapted
        )
        served = f"{adapter}_fp16_r01"
        by_hand(tmp_path, f"{served}-eeee{number}", "serve", served, executed_from=merged)
    served = f"{adapter}_int8_r01"
    by_hand(tmp_path, f"{served}-f", "serve", served, executed_from="embedded/artefacts/models/x")
    by_hand(tmp_path, f"{base}-0", "serve", base)
    space, html, _ = written(tmp_path, monkeypatch, SimpleNamespace(path="lab", name="lab"))
    energies = space["table"].set_index(["size", "precision"])["adapt_energy_j"]
    # With loading the base; the hash tells two adapters of one name apart.
    assert energies["135M aaaa1", "fp16"] == 530
    assert energies["135M aaaa2", "fp16"] == 930
    assert energies.xs("int8", level="precision").tolist() == [130]
    assert "4 serving runs made by hand" in html
    assert (tmp_path / "lab" / "tables" / "variants.csv").is_file()
    assert set(space["serving"]["method"]) == {"none", "lora"}


def test_an_empty_lab_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    with pytest.raises(UserError, match=r"no serving run in .*lab; run 03_serve by hand"):
        load_lab()


def test_the_page_opens_with_the_answer_and_explains_each_metric(whole):
    _, html, _ = whole
    text = re.sub(r"<[^>]+>", "", html)
    top = text[text.index("Is this model worth running on your own hardware?") :]
    parts = ["Quality.", "Energy.", "Break-even.", "Memory.", "Cold start.", "Verdict:",
             "Not a T4", "What failed, and why", "After how many requests adapting"]  # fmt: skip
    places = [top.index(part) for part in parts]
    assert places == sorted(places)
    assert "every variant scores 0" not in text.lower()
    assert text.count("How it lies.") == len(tables.METRICS)
    assert html.count("<summary>") > 10


def test_tables_are_folded_below_their_sizes_and_three_answers_are_shown(whole):
    _, html, _ = whole
    for line in ("N_break of 12 variants: ", "The frontier: 1 models", "LoRA beside QLoRA: 3 pairs",
                 "Serving: 30 rows", "Cold starts: 5 configurations"):  # fmt: skip
        assert f"<summary>{line}" in html, line
    section = html.split("Three answers</h2>")[1].split("<h2")[0]
    assert re.findall(r"<strong>(\w+), score", section) == ["Best", "Middle", "Worst"]
    assert "Of 72 scored answers" in section


@pytest.mark.parametrize(
    ("validity", "begins"),
    [
        (["warning: interference (serve)"], "The one variant is doubtful by"),
        (["warning: interference (serve)", "ok"], "1 of 2 variants are doubtful by"),
    ],
)
def test_how_many_variants_are_doubtful_is_said_in_words(validity, begins):
    (text,) = overview._doubtful(pd.DataFrame({"validity": validity}))
    assert text.startswith(begins)
