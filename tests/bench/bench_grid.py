"""What the grid adds to its runs, and how fast many runs are read.

    python tests/bench/bench_grid.py [STUDY]

Overhead is read off the last `make all` of STUDY that executed something; reading is timed on
1,440 synthetic notebooks, with scrapbook's own reader beside ours.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import nbformat
import orjson

from edge_eval_lib import scraps
from edge_eval_lib.artefacts.place import place
from edge_eval_lib.runs.claims import open_study
from edge_eval_lib.runs.finished import read_finished
from edge_eval_lib.study import Study

OVERHEAD_TARGET = 1.10
READING_TARGET = 50.0
RUNS = 1440


def overhead(study: Study) -> None:
    """Wall time of the grid over the seconds that its runs' cells took."""
    try:
        last = orjson.loads((study.directory / "grid.json").read_bytes())
    except FileNotFoundError:
        print(f"grid overhead: no `make all STUDY={study.name}` has been timed yet")
        return
    found = {
        (stage, name): read_finished(place(study, stage, name).notebook)
        for stage, name in last["runs"]
    }
    own_s = sum(finished.own_seconds for finished in found.values() if finished)
    gone = sum(finished is None for finished in found.values())
    if gone:
        print(f"grid overhead: {gone} runs of the last `make all` are no longer there")
        return
    wall_s = last["wall_s"]
    print(
        f"grid overhead: {wall_s:.1f} s for {len(found)} runs whose cells took {own_s:.1f} s: "
        f"{wall_s / own_s:.3f} (target <= {OVERHEAD_TARGET}), "
        f"{(wall_s - own_s) / len(found):.2f} s a run"
    )


def reading() -> None:
    """Our reader beside scrapbook's, on the same notebooks, in one run."""
    import pandas  # first: neither reader is to pay for its import
    import scrapbook

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for i in range(RUNS):
            nbformat.write(synthetic(i), directory / f"run_{i:04d}.ipynb")
        begin = time.perf_counter()
        table = scraps.collect(directory)
        ours_s = time.perf_counter() - begin
        begin = time.perf_counter()
        book = scrapbook.read_notebooks(str(directory))
        theirs = pandas.DataFrame([notebook.scraps.data_dict for notebook in book.notebooks])
        theirs_s = time.perf_counter() - begin
        if not table.drop(columns="notebook").equals(theirs):
            raise SystemExit("the two readers disagree")
    print(
        f"tables of {RUNS} runs: {ours_s:.2f} s, scrapbook {theirs_s:.2f} s: "
        f"{theirs_s / ours_s:.0f} times faster (target >= {READING_TARGET:.0f})"
    )


def synthetic(i: int) -> nbformat.NotebookNode:
    """An executed notebook with twenty scraps."""
    values = {"energy_j": 100.0 + i, scraps.RUN_COMPLETE: True}
    values |= {f"value_{k}": k * 1.5 for k in range(18)}
    outputs = [
        nbformat.v4.new_output(
            "display_data",
            data={scraps.SCRAP_MIMES[0]: {"name": n, "data": v, "encoder": "json", "version": 1}},
            metadata={"scrapbook": {"name": n, "data": True, "display": False}},
        )
        for n, v in values.items()
    ]
    cells = [nbformat.v4.new_code_cell("record(...)", outputs=[output]) for output in outputs]
    cells += [nbformat.v4.new_markdown_cell("What a cell does, in a sentence.") for _ in range(10)]
    return nbformat.v4.new_notebook(cells=cells)


if __name__ == "__main__":
    overhead(open_study(sys.argv[1] if len(sys.argv) > 1 else "embedded"))
    reading()
