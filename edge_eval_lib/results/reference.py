"""docs/study.md and docs/tables.md, made of the study's schema and the columns' registry.

python -m edge_eval_lib docs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_eval_lib import tasks
from edge_eval_lib.paths import project_root
from edge_eval_lib.results import columns
from edge_eval_lib.results.columns import MODEL, VARIANT
from edge_eval_lib.results.harness import COLUMNS as HARNESS
from edge_eval_lib.results.meanings import ENDINGS, PREFIXES, groups, unit
from edge_eval_lib.study import Study

_MADE = "<!-- Made by `.venv/bin/python -m edge_eval_lib docs`; change what it is made of. -->"
_SERVED = ["repetitions", "engine", "executed_dtype", "gpus", *columns.LOAD, *columns.SERVING,
           *columns.CALLS, "batch_agreement", "energy_source", "window", "validity", "host",
           "instruction_set", "notes"]  # fmt: skip
_ADAPTED = ["energy_j", "s", "peak_memory_gb", "power_w", "train_energy_j", "train_s",
            "train_peak_memory_gb", "with_merge_energy_j", "executed_dtype"]  # fmt: skip
_RATIOS = ["energy_ratio", "seconds_ratio", "power_ratio", "memory_ratio",
           "with_merge_energy_ratio", "train_energy_ratio", "train_seconds_ratio"]  # fmt: skip
_CACHED = ["energy_per_request_j", "throughput_tok_s", "ttft_ms"]


def _figures() -> list[str]:
    """What of an answer is measured beside its score, in the order of the tasks."""
    of_tasks = [name for task in tasks.names() for name in tasks.find(task).figures]
    others = ["content", "answer_tokens", "gold_nll", "limit_reached", "still_cut", "mean_logprob",
              "mean_margin", "top1_agreement"]  # fmt: skip
    return [f for f in dict.fromkeys([*of_tasks, *others]) if f not in VARIANT]


def tables() -> dict[str, tuple[str, list[str]]]:
    """What a row of each table of a study is, and its columns without their bounds."""
    measured = [c for c in columns.MIDDLE if c not in columns.RANGES]
    return {
        "variants": (
            "an adapted variant, at the headline concurrency",
            [*VARIANT, *columns.FIRST, *measured, *_figures(), *columns.LAST],
        ),
        "frontier": (
            "a model: the best of its INT4 variants by the paper's rule for each metric",
            ["model", *MODEL, *columns.METRICS, "int4_variants", "validity", "prices",
             "not_ordered", "notes"],
        ),
        "adaptation": (
            "a model and task: LoRA beside QLoRA",
            [*MODEL, "task", *(f"{m}_{c}" for c in _ADAPTED for m in ("lora", "qlora")), *_RATIOS,
             "energy_source", "merge_base", "host", "executed_dtype", "instruction_set",
             "rows_passed_over", "notes"],
        ),
        "serving": (
            "a variant, the unadapted base among them, and concurrency",
            [*VARIANT, "concurrency", *_SERVED],
        ),
        "arrivals": (
            "a variant and arrival rate (studies with `workload.arrival_rates_per_s`)",
            [*VARIANT, "rate_per_s", *_SERVED],
        ),
        "prefix_caching": (
            "a variant (studies with `workload.prefix_caching`)",
            [*VARIANT, "repetitions", "prefix_cache_hit_rate",
             *(f"{c}{end}" for c in _CACHED for end in ("", "_with_caching", "_ratio"))],
        ),
        "reference": (
            "a task answered by rules without a model, the unadapted base, and each variant "
            "beside both",
            [*VARIANT, "prompts", "score", *_figures(), *columns.LOAD, "energy_per_request_j",
             "energy_per_request_net_j", "energy_per_token_j", "throughput_tok_s", "ttft_ms",
             "tpot_ms", "memory_gb", "energy_source", "host", "notes"],
        ),
        "cold_starts": (
            "a configuration: what a cold start is made of",
            [*columns.CONFIGURATION, *columns.COLD_START, *columns.IDLE, "loads", "keep_warm_s"],
        ),
        "harness": ("a variant, task and metric of lm-evaluation-harness", HARNESS),
        "checks": (
            "a validity check of a window of a run",
            ["run", "stage", "window", "check", "verdict", "detail"],
        ),
    }  # fmt: skip


def tables_page() -> str:
    """Return docs/tables.md."""
    parts = [
        "# The tables' columns",
        _MADE,
        "A study's tables lie in `outputs/STUDY/tables/` as CSV, values not rounded. An empty cell "
        "is a figure that was not measured or does not apply; `notes` says why. It is never 0. "
        "Units are in the names: `_j` joules, `_s` seconds, `_ms` milliseconds, `_gb` 10^9 bytes, "
        "`_w` watts, `_pct` percent.",
        "The planner's tables (`advice*.csv`) are explained in [advise.md](advise.md), "
        "`requirements.csv` and `prediction_errors.csv` in [predictions.md](predictions.md), those "
        "of the experiments (`arms*.csv`, `routing_*.csv`, `agents_*.csv`, ...) in "
        "[experiments.md](experiments.md).",
        "## Endings",
        "What a name begins or ends with says what of the figure it is.",
        _table(["part", "meaning"], [[f"`{p}`", t] for p, t in (PREFIXES | ENDINGS).items()]),
    ]
    parts += ["## Which table has which columns", "Without their bounds and differences."]
    for name, (row, names) in tables().items():
        listed = ", ".join(f"`{column}`" for column in dict.fromkeys(names))
        parts += [f"### {name}.csv", f"A row is {row}.", listed]
    parts += ["## What they mean"]
    for title, group in groups().items():
        rows = [[f"`{column}`", unit(column), text] for column, text in group.items()]
        parts += [f"### {title}", _table(["column", "unit", "meaning"], rows)]
    return "\n\n".join(parts) + "\n"


def study_page() -> str:
    """Return docs/study.md."""
    schema = Study.model_json_schema()
    parts = [
        "# The study file",
        _MADE,
        "A study is one YAML file: what is asked, of which models, how often. Those that come with "
        "the project lie in `params/`; yours may lie anywhere: `make plan STUDY=/path/mine.yaml` "
        "checks it and says what it takes, `make all STUDY=/path/mine.yaml` runs it. A field that "
        "is unknown, missing or of a wrong kind is refused by name before anything starts.",
        "The shortest way to one of your own is a copy of `params/embedded.yaml` with another "
        "`name`:",
        "```yaml\n" + (project_root() / "params" / "embedded.yaml").read_text().strip() + "\n```",
    ]
    names = ["Study"]
    for name in names:  # grows by the sections that sections name
        section = schema if name == "Study" else schema["$defs"][name]
        rows = []
        for field, what in section["properties"].items():
            names += [n for n in _references(what) if n not in names]
            needed = field in section["required"]
            rows.append([f"`{field}`", _kind(what), "needed" if needed else _default(what),
                         what["description"].replace("\n", " ")])  # fmt: skip
        title = "The file" if name == "Study" else name
        head = ["field", "holds", "by default", "meaning"]
        parts += [f"## {title}", section["description"], _table(head, rows)]
    return "\n\n".join(parts) + "\n"


def _references(what: Any) -> list[str]:
    if isinstance(what, dict):
        if "$ref" in what:
            return [what["$ref"].rpartition("/")[2]]
        what = list(what.values())
    return [n for part in what for n in _references(part)] if isinstance(what, list) else []


def _kind(what: dict[str, Any]) -> str:
    """Say in words what a field's JSON schema allows."""
    if "$ref" in what:
        name = what["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in what:
        return " or ".join(_kind(w) for w in what["anyOf"] if w.get("type") != "null")
    if "enum" in what or "const" in what:
        return ", ".join(f"`{value}`" for value in what.get("enum", [what.get("const")]))
    if what["type"] == "array":
        least = f", at least {what['minItems']}" if "minItems" in what else ""
        return f"list of {_kind(what['items'])}{least}"
    if what["type"] == "object":
        values = what.get("additionalProperties")
        return f"mapping to {_kind(values)}" if isinstance(values, dict) else "mapping"
    words = {"integer": "whole number", "number": "number", "boolean": "true or false"}
    return words.get(what["type"], "text") + _bounds(what)


def _bounds(what: dict[str, Any]) -> str:
    low, high = what.get("minimum"), what.get("maximum")
    above, below = what.get("exclusiveMinimum"), what.get("exclusiveMaximum")
    words = [
        f"{word} {value:,g}" if abs(value) < 1e7 else f"{word} {value:.0e}"
        for word, value in (("from", low), ("above", above), ("to", high), ("below", below))
        if value is not None
    ]
    return f" {' '.join(words)}" if words else ""


def _default(what: dict[str, Any]) -> str:
    value = what.get("default")
    if value is None:
        return "-"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
                     for row in lines)  # fmt: skip


PAGES = {"study.md": study_page, "tables.md": tables_page}


def write(directory: Path) -> list[Path]:
    """Write both pages into a directory of docs."""
    paths = [directory / name for name in PAGES]
    for path in paths:
        path.write_text(PAGES[path.name](), encoding="utf-8")
    return paths
