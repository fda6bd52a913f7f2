"""Writes the paper's tables, pictures and report.html."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from edge_eval_lib.errors import UserError
from edge_eval_lib.paper import claims, prose
from edge_eval_lib.paper.analysis import SPREADS, TABLES, Paper, build
from edge_eval_lib.paper.pictures import FIGURES, draw
from edge_eval_lib.paths import outputs_root
from edge_eval_lib.results import figures, report, tables

# A claim with its argument below it, and short columns beside: all of it fits a screen and paper.
CLAIM_COLUMNS = ("claim", "paper_value", "recomputed", "verdict")


def output_directory(directory: str | Path | None = None) -> Path:
    """Where the paper's tables and figures go: outputs/paper of the project unless told."""
    return Path(directory) if directory else outputs_root() / "paper"


def write_tables(
    directory: str | Path | None = None,
    study: Paper | None = None,
    names: Iterable[str] | None = None,
) -> list[Path]:
    """Write tables/<name>.csv under `directory`; `names` picks some of TABLES.

    UserError for a name that is no table.
    """
    names = _chosen(names, list(TABLES), "table")
    study = study or build()
    folder = output_directory(directory) / "tables"
    return [tables.write_table(TABLES[name](study), folder / f"{name}.csv") for name in names]


def write_figures(
    directory: str | Path | None = None,
    study: Paper | None = None,
    names: Iterable[str] | None = None,
) -> list[Path]:
    """Write figures/<name>.png and .svg under `directory`; `names` picks some of FIGURES.

    UserError for a name that is no figure.
    """
    names = _chosen(names, list(FIGURES), "figure")
    study = study or build()
    folder = output_directory(directory) / "figures"
    return [
        path for name in names for path in figures.save_figure(draw(study, name), folder / name)
    ]


def _chosen(names: Iterable[str] | None, known: Sequence[str], what: str) -> list[str]:
    names = list(known) if names is None else list(names)
    for name in names:
        if name not in known:
            raise UserError(f"There is no {what} {name!r}; there is: {', '.join(known)}.")
    return names


def write_report(directory: str | Path | None = None, study: Paper | None = None) -> Path:
    """Write report.html under `directory`, linked with the embedded study's report."""
    study = study or build()

    def section(
        title: str,
        text: str,
        table: str,
        columns: Sequence[str],
        figure: str | None = None,
        caption: str | None = None,
    ) -> report.Section:
        rows = TABLES[table](study)
        return report.Section(
            title,
            _paragraphs(text),
            figure=draw(study, figure) if figure else None,
            table=_for_people(rows),
            columns=columns,
            caption=caption,
            csv=f"tables/{table}.csv",
        )

    metrics = list(tables.METRICS)
    variant = list(tables.VARIANT)
    model_task = [*tables.MODEL, "task"]
    shares = [f"{kind}_{case}" for kind in ("technical", "economic") for case in SPREADS]
    sections = [
        section(
            "Every claim, judged",
            prose.verdicts_text(study),
            "claims",
            CLAIM_COLUMNS,
            "verdicts",
        ),
        section(
            "The headline table",
            prose.headline_text(study),
            "headline",
            [*tables.MODEL, "metric", "printed", "recomputed", "statistic", "median", "mean",
             "mean, LoRA-INT4 alone", "mean, QLoRA-INT4 alone"],
            "statistics",
        ),
        section(
            "The same table with one statistic",
            "One statistic for every column, LoRA-INT4 and QLoRA-INT4 together and apart.",
            "headline_consistent",
            ["statistic", "over", "model", *metrics],
        ),
        section(
            "The QLoRA energy table",
            prose.qlora_energy_text(study),
            "qlora_energy",
            CLAIM_COLUMNS,
        ),
        section(
            "The QLoRA paradox",
            prose.paradox_text(study),
            "qlora_decomposition",
            [*model_task, "energy_ratio", "seconds_ratio", "power_ratio", "time_share_pct",
             "card_seconds_ratio", "lora_gpus", "lora_watts_per_card", "qlora_watts_per_card"],
            "paradox",
        ),
        section(
            "Beside the embedded study's pair",
            prose.embedded_text(study),
            "qlora_beside_embedded",
            ["study", *model_task, "energy_ratio", "seconds_ratio", "power_ratio"],
        ),
        section(
            "What QLoRA saves in memory",
            prose.memory_text(study),
            "qlora_memory",
            [*tables.MODEL, "lora_gb", "qlora_gb", "saved_pct", "basis"],
        ),
        section(
            "Two accountings",
            prose.accounting_text(study),
            "break_even",
            [*variant, "n_break", "n_break_per_1000_examples", "n_break_full_0h",
             "n_break_full_8h", "n_break_full_80h", "electricity_share_pct"],
            "accountings",
        ),
        section(
            "At which price it never pays",
            "Each published API price against each LoRA-INT4 variant. Below the least utilisation "
            "the machine's hours cost more than the API for ever.",
            "api_prices",
            [*model_task, "provider", "api", "valid_from", "api_usd_per_request", "n_break_full",
             "least_utilisation", "pays", "pays_alone"],
            "api_prices",
        ),
        section(
            "Return and intelligence",
            "The quadrant chart of all 72 variants, on the paper's accounting.",
            "variants",
            [*variant, *metrics],
            "quadrants",
        ),
        section(
            "Density and cold start",
            prose.density_text(study),
            "density",
            [*variant, "nominal_gb", "weights_gb", "cache_gb", "rho_sys_nominal",
             "rho_sys_modelled"],
            "density",
        ),
        section(
            "Quality against stability",
            prose.fidelity_text(study),
            "fidelity",
            [*variant, "q_ret_pct", "passes_lo", "passes_hi", "visible_by_passes",
             "sampling_points"],
            "quality_stability",
        ),
        section(
            "Code against figures",
            prose.code_text(study),
            "code_against_figures",
            ["topic", "code_or_paper", "figures", "agrees", "bears_on"],
        ),
        section(
            "The frontier",
            prose.front_text(study),
            "fronts",
            ["task", "objectives", "on_front", "small_on_front", "hypervolume",
             "hypervolume_small"],
            "pareto",
        ),
        section(
            "How firm the frontier is",
            prose.robustness_text(study),
            "model_robustness",
            ["task", *tables.MODEL, *shares],
            "robustness",
        ),
        section(
            "Does “below 2B wins” survive?",
            prose.small_models_text(study),
            "best_scores",
            ["task", "best_small", "score_small", "best_larger", "score_larger", "difference",
             "error_passes", "error_prompts", "larger_above", "larger_beyond_passes",
             "larger_beyond_prompts"],
        ),
    ]  # fmt: skip
    prices = study.prices
    page = report.Report(
        title="The paper, cell by cell",
        summary=[text.replace("**", "") for text in prose.findings(study)],
        facts={
            "figures": "published with arXiv 2604.19342 (ACL 2026 Industry Track): one row a "
            "variant, two Tesla T4",
            "energy": "from NVML power; load energy estimated, load seconds × mean serving power",
            "memory": "nominal size of the weights, the paper's",
            "API": f"{prices.api_input_usd_per_mtok:g} USD per million input tokens, "
            f"{prices.api_output_usd_per_mtok:g} output; input of "
            f"{prices.api_input_tokens_per_request:g} tokens a request assumed",
            "machine": f"{prices.hardware_usd:,.0f} USD over "
            f"{prices.hardware_lifetime_years:g} years, busy {prices.utilisation:.0%} of the time, "
            f"{prices.electricity_usd_per_kwh:g} USD/kWh, PUE {prices.pue:g} (assumed)",
            "set-up": f"{prices.setup_hours:g} hours at {prices.labour_usd_per_hour:g} USD",
        },
        sections=sections,
        links=[("The embedded study's report", "../embedded/report.html")],
    )
    return report.render_report(output_directory(directory) / "report.html", page)


def show(table: pd.DataFrame, columns: Sequence[str] | None = None) -> Styler:
    """A table of TABLES as a notebook shows it: rounded, in words, without the index."""
    text = tables.readable(_for_people(table), columns).style.hide(axis="index")
    left = [
        ("text-align", "left"), ("vertical-align", "top"), ("white-space", "pre-line")
    ]  # fmt: skip
    return text.set_table_styles([{"selector": "th, td", "props": left}])


def _for_people(table: pd.DataFrame) -> pd.DataFrame:
    if "verdict" in table:
        return claims.for_people(table)
    if "printed" in table:
        return claims.cells_for_people(table)
    truths = table.select_dtypes(bool)
    return table.assign(**{c: truths[c].map({True: "yes", False: "no"}) for c in truths})


def _paragraphs(markdown: str) -> list[str | list[str]]:
    """Paragraphs and lists of the little Markdown that `prose` writes, without its marks."""
    found: list[str | list[str]] = []
    in_list = False
    for line in markdown.replace("**", "").split("\n"):
        item = line.strip().removeprefix("- ")
        if line.startswith("- "):
            if not in_list:
                found.append([])
            found[-1].append(item)
        elif item:
            found.append(item)
        in_list = line.startswith("- ")
    return found
