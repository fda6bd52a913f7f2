"""What a device measured of one or more studies, as a page of docs/ and tables for others to use.

    python -m edge_eval_lib device-report gpu_slice gpu_slice_vllm

The hardware's part of the figures alone, which notebook 05 tags `device`: throughput, latency,
memory, load and energy. Scores are not the device's.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from edge_eval_lib.artefacts.place import place
from edge_eval_lib.errors import UserError
from edge_eval_lib.study import Study

TABLES = ("variants", "adaptation", "serving", "arrivals", "prefix_caching")


def write(studies: Sequence[Study], docs: Path, data: Path) -> Path:
    """Write `docs`/results-DEVICE.md, and the tables as `data`/DEVICE/STUDY_TABLE.csv.

    UserError if a study has no tables yet, or they were not all made on one kind of host.
    """
    for study in studies:
        if not place(study, "synthesis", "synthesis").notebook.is_file():
            raise UserError(
                f"{study.name} has no tables yet; run `make all STUDY={study.argument}` first."
            )
    serving = [pd.read_csv(study.directory / "tables" / "serving.csv") for study in studies]
    hosts = sorted({host for table in serving for host in table["host"].dropna()})
    if len(hosts) != 1:
        raise UserError(f"The studies were made on {' and '.join(hosts)}; a page is of one device.")
    device = re.sub(r"[^A-Za-z0-9]+", "-", hosts[0]).strip("-")
    (data / device).mkdir(parents=True, exist_ok=True)
    parts = [
        f"# Measured on {hosts[0]}\n\nWritten by `python -m edge_eval_lib device-report "
        f"{' '.join(study.name for study in studies)}`. Values in brackets are 95 % intervals over "
        "cold serving runs; a dash is a figure that was not measured."
    ]
    for study in studies:
        parts.append(f"## {study.name}\n\n{study.description}")
        parts.append(_measured(place(study, "synthesis", "synthesis").notebook))
        for name in TABLES:
            table = study.directory / "tables" / f"{name}.csv"
            if table.is_file():
                shutil.copyfile(table, data / device / f"{study.name}_{name}.csv")
    page = docs / f"results-{device}.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _measured(notebook: Path) -> str:
    """The results of the cells tagged `device`, each below the heading that it stands under."""
    import nbformat
    from nbconvert import MarkdownExporter

    node = nbformat.read(notebook, as_version=4)
    kept, heading = [], ""
    for cell in node.cells:
        if cell.cell_type == "markdown":
            heading = next((line for line in cell.source.splitlines() if line[:2] == "##"), heading)
        elif "device" in cell.metadata.get("tags", []) and cell.outputs:
            kept += [nbformat.v4.new_markdown_cell(heading), cell]
    node.cells = kept
    exporter = MarkdownExporter(exclude_input=True)
    exporter.display_data_priority = ["text/markdown", "text/plain"]
    text, _ = exporter.from_notebook_node(node)
    return re.sub(r"^##", "###", text.strip(), flags=re.MULTILINE)
