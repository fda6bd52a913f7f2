"""What a device measured of one or more studies, as a page of docs/ and tables for others to use.

    python -m edge_eval_lib device-report gpu_slice gpu_slice_vllm

The hardware's part of the figures alone: throughput, latency, memory, load and energy. Scores are
not the device's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from edge_eval_lib.errors import UserError
from edge_eval_lib.results import synthesis, tables
from edge_eval_lib.study import Study

SHOWN = {
    "variants": [
        "throughput_tok_s", "ttft_ms", "tpot_ms", "energy_per_request_j",
        "energy_per_request_net_j", "memory_gb", "reserved_gb", "rho_sys", "load_s",
        "load_energy_j", "c_tax", "validity",
    ],
    "adaptation": [
        "lora_energy_j", "qlora_energy_j", "energy_ratio", "lora_s", "qlora_s",
        "lora_peak_memory_gb", "qlora_peak_memory_gb",
    ],
    "serving": ["concurrency", "throughput_tok_s", "ttft_p95_ms", "tpot_ms", "energy_per_token_j"],
    "arrivals": ["rate_per_s", "throughput_tok_s", "ttft_p95_ms", "tpot_ms", "failed_requests"],
    "prefix_caching": [
        "prefix_cache_hit_rate", "energy_per_request_j_ratio", "throughput_tok_s_ratio",
        "ttft_ms_ratio",
    ],
}  # fmt: skip
HEADINGS = {
    "variants": "Every variant at the headline concurrency",
    "adaptation": "LoRA beside QLoRA",
    "serving": "By concurrency",
    "arrivals": "By arrival rate",
    "prefix_caching": "Prefix caching, with over without",
}


def write(studies: Sequence[Study], docs: Path, data: Path) -> Path:
    """Write `docs`/results-DEVICE.md, and the tables as `data`/DEVICE/STUDY_TABLE.csv.

    Returns the page. UserError if the studies were not all made on one kind of host.
    """
    found = [synthesis.load_results(study) for study in studies]
    hosts = sorted({host for results in found for host in results.hosts})
    if len(hosts) != 1:
        raise UserError(f"The studies were made on {' and '.join(hosts)}; a page is of one device.")
    device = re.sub(r"[^A-Za-z0-9]+", "-", hosts[0]).strip("-")
    lines = [
        f"# Measured on {hosts[0]}",
        "",
        "Written by `python -m edge_eval_lib device-report "
        f"{' '.join(study.name for study in studies)}`. Values in brackets are 95 % intervals over "
        "cold serving runs; a dash is a figure that was not measured.",
    ]
    for results in found:
        written = synthesis.result_tables(results)
        lines += ["", f"## {results.study.name}", "", results.study.description, ""]
        lines += [f"- {name}: {text}" for name, text in synthesis.facts_of(results).items()]
        for name, columns in SHOWN.items():
            table = written.get(name)
            if table is None or table.empty:
                continue
            tables.write_table(table, data / device / f"{results.study.name}_{name}.csv")
            kept = [c for c in [*tables.VARIANT, *columns] if c in table]
            shown = tables.readable(table, kept).to_markdown(index=False)
            lines += ["", f"### {HEADINGS[name]}", "", shown]
    page = docs / f"results-{device}.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page
