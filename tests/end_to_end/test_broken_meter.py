"""A meter that fails in the middle of a run costs the energy that it would have told, no more."""

import json
import os
import shutil

import pytest
from tiny import make_tiny_study

from edge_eval_lib import scraps
from edge_eval_lib.artefacts.place import place
from edge_eval_lib.paths import project_root
from edge_eval_lib.results import observations, tables
from edge_eval_lib.runs import runner
from edge_eval_lib.study import load_study

pytestmark = pytest.mark.end_to_end

# Stands where RAPL would be readable: 20 W, until `broken`.
METER = """
import time
from edge_eval_lib.energy import checks
from edge_eval_lib.energy.meter import Check, Meter, MeterError, Reading, register

# A crowded machine has no idle baseline, which is not what is tested here.
checks.interference = lambda *_, **__: Check("interference", "ok")

@register
class Breaking(Meter):
    name, device, devices, resolution_s = "rapl", "cpu", ["package-0"], 0.001
    broken = False

    def begin(self):
        return time.monotonic()

    def end(self):
        if self.broken:
            raise MeterError("the counters were taken away")
        return time.monotonic()

    def reading(self, begin, end):
        return Reading(20.0 * (end - begin))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study whose serving run lost its meter while it served; its study and its outputs."""
    directory = tmp_path_factory.mktemp("broken_meter")
    study = make_tiny_study(directory, configurations=(("lora", "fp16"),))
    notebooks = directory / "notebooks"
    shutil.copytree(project_root() / "notebooks", notebooks)
    _insert(notebooks / "03_serve.ipynb", before="from edge_eval_lib.energy import", code=METER)
    _insert(notebooks / "03_serve.ipynb", before="driver.serve_all(", code="Breaking.broken = True")
    before = dict(os.environ)
    os.environ |= {
        "EDGE_EVAL_OUTPUTS": str(directory / "outputs"),
        "EDGE_EVAL_NOTEBOOKS": str(notebooks),
    }
    try:
        loaded = load_study(study)
        runs = [run for run in loaded.runs() if run.stage in ("adapt", "compress", "serve")]
        runner.ensure(loaded, [run for run in runs if run.parameters["method"] == "lora"])
        yield loaded, observations.load_results(loaded)
    finally:
        os.environ.clear()
        os.environ.update(before)


def variants_of(results):
    _, prices = observations.prices_of(results.study)
    return tables.variants_table(results.headline, results.answers, prices)


def _insert(notebook, before, code):
    """Put a code cell before the one that holds `before`."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    cells = content["cells"]
    (place,) = (
        i
        for i, c in enumerate(cells)
        if c["cell_type"] == "code" and before in "".join(c["source"])
    )
    cell = {"cell_type": "code", "id": f"inserted-{place}", "metadata": {}, "outputs": []}
    cells.insert(place, cell | {"execution_count": None, "source": code.strip()})
    notebook.write_text(json.dumps(content), encoding="utf-8")


def test_the_run_completes_with_its_other_figures(made):
    study, results = made
    (run,) = results.runs[results.runs["stage"] == "serve"].to_dict("records")
    assert scraps.is_complete(place(study, "serve", run["run"]).notebook)
    assert run["load_energy_source"] == "rapl"
    assert 15 * run["load_s"] < run["load_energy_j"] < 25 * run["load_s"]
    row = variants_of(results).iloc[0]
    for figure in ("throughput_tok_s", "ttft_ms", "tpot_ms", "memory_gb", "load_energy_j"):
        assert row[figure] > 0, figure


def test_what_it_would_have_measured_is_empty_with_its_reason_everywhere(made):
    _, results = made
    row = variants_of(results).iloc[0]
    empty = ["energy_per_request_j", "energy_per_request_net_j", "energy_per_token_j", "c_tax"]
    assert row[[*empty, "n_break", "ipw", "power_w"]].isna().all()
    assert "energy_per_request_j: rapl: the counters were taken away" in row["notes"]
    assert "invalid: meter (serve at 4)" in row["validity"]
    failed = results.checks[results.checks["check"].eq("meter")]
    failed = failed[failed["verdict"] == "invalid"]
    assert set(failed["window"]) == {"serve at 1", "serve at 4"}
    assert failed["detail"].str.contains("the counters were taken away").all()


def test_the_idle_baselines_were_taken_before_it_broke(made):
    _, results = made
    (run,) = results.runs[results.runs["stage"] == "serve"].to_dict("records")
    assert run["idle_bare_power_w"] == pytest.approx(20, rel=0.01)
    assert run["idle_loaded_power_w"] == pytest.approx(20, rel=0.01)
    table = tables.cold_start_table(results.runs)
    assert len(table) == 1
