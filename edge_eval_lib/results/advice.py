"""The choice in words and tables: what notebook 07, the command and the reports show of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from edge_eval_lib.economics import advise_choice
from edge_eval_lib.economics.advise_choice import Choice
from edge_eval_lib.economics.advise_options import API
from edge_eval_lib.economics.prices import PriceBook
from edge_eval_lib.results.columns import configuration_name
from edge_eval_lib.results.readable import Prose, format_number, readable

SUPERLATIVES = {
    "cost": "the cheapest",
    "energy": "the one of least energy",
    "carbon": "the one of least carbon",
    "latency": "the fastest",
}
CONSTRAINTS = {
    "first token": ("the first token may take {} ms", "{} ms to the first token"),
    "time per token": ("a token may take {} ms", "{} ms a token"),
    "score": ("a score of {} will do", "a score of {}"),
    "budget": ("{} USD a month may be spent", "{} USD a month"),
    "machines": ("there are {} machines", "{} machines"),
}
SHOWN = ["rank", "option", "usd_per_1000_requests", "ttft_ms", "tpot_ms", "energy_per_request_j",
         "carbon_g_per_request", "score", "best_in_pct", "fits_in_pct", "regret_pct", "binding",
         "remark"]  # fmt: skip
HEADINGS = {
    "usd_per_1000_requests": "USD per 1,000 requests",
    "carbon_g_per_request": "g CO2e a request",
    "best_in_pct": "best in [%]",
    "fits_in_pct": "fits in [%]",
    "regret_pct": "mean regret [%]",
    "energy_per_request_j": "J a request",
    "ttft_ms": "first token [ms]",
}


NEAR = 1.05  # how many times the least cost is called hardly more
_WORDS = {
    "measurement": "the measuring errors",
    "ttft_ms": "first token",
    "tpot_ms": "time per token",
    "throughput_tok_s": "throughput",
    "power_w": "power",
    "api_price_factor": "the API's price, as a factor",
    "hardware_factor": "the machine's price, as a factor",
    "energy_factor": "the energy's estimate, as a factor",
    "peak_to_mean": "busiest hour over the mean",
    "score_floor_share": "least score, of the best",
    "idle_power_share": "idle power, of that at work",
    "host_power_w": "power of the machine around the cards",
    "api_ttft_ms": "the API's first token",
    "api_tpot_ms": "the API's time per token",
    "people_hours_per_month": "hours of people a month",
    "electricity_usd_per_kwh": "electricity",
    "cloud_usd_per_hour": "the cloud's price an hour",
    "api_input_usd_per_mtok": "the API's price, tokens in",
    "api_output_usd_per_mtok": "the API's price, tokens out",
    "labour_usd_per_hour": "labour an hour",
    "hardware_usd": "the machine's price",
    "pue": "PUE",
    "intensity_g_per_kwh": "electricity's carbon",
    "embodied_cards_kg": "carbon of making the cards",
    "embodied_machine_kg": "carbon of making the machine around",
}


def option_name(row) -> str:
    """`llama-1B LoRA INT4, on premises`."""
    if row["deployment"] == API:
        return "the API"
    return f"{short_name(row)}, {row['deployment']}"


def short_name(row) -> str:
    """`llama-1B LoRA INT4`; `API` for the API."""
    if row["deployment"] == API:
        return API
    model = f"{row['family']}-{row['size']}"
    return f"{model} {configuration_name(row['method'], row['precision'])}"


def at_once(row) -> str:
    """`, 8 at once`; nothing for the API."""
    return "" if row["deployment"] == API else f", {row['concurrency']:.0f} at once"


def answer(choice: Choice, machine: str, flips: pd.DataFrame | None = None) -> list[str]:
    """Say the choice, a sentence an item; the first alone is an answer.

    Args:
        choice: The choice.
        machine: What a machine is, as a person calls it.
        flips: Of `advise_choice.flips`, for the inputs most able to flip it.
    """
    if choice.best is None:
        return _none(choice, machine)
    row = choice.table.loc[choice.best]
    value = choice.inputs.value
    number = format_number
    usd = 1e3 * row["usd_per_request"]
    ends = 1e3 * row["usd_per_request_least"], 1e3 * row["usd_per_request_most"]
    deployed = choice.p_best_of("deployment").get(row["deployment"], 0.0)
    sentences = [
        f"{question(choice, machine)}: take **{option_name(row)}**{at_once(row)}, "
        f"{SUPERLATIVES[choice.inputs.need.objective]} of what fits.",
        f"It costs {number(usd, 2)} USD per 1,000 requests ({number(ends[0], 2)} to "
        f"{number(ends[1], 2)} in 90 % of what the inputs may be), "
        f"{number(row['usd_per_month'], 2)} USD a month{_machines(row)}.",
        f"It is the best in {100 * row['p_best']:.0f} % of what the inputs may be; some option "
        f"{_where(row['deployment'])} is in {100 * deployed:.0f} %."
        + (f" In {100 * choice.p_none:.0f} % none fits." if choice.p_none >= 0.005 else ""),
    ]
    tied = choice.table[choice.table["tied"]]
    if len(tied):
        names = [option_name(other) for _, other in tied.head(3).iterrows()]
        more = f" and {len(tied) - 3} more" if len(tied) > 3 else ""
        sentences.append(
            f"The measuring errors do not tell it from {'; '.join(names)}{more}: take which you "
            "like."
        )
    sentences += _alike(choice, row)
    sentences += _pays(choice) + _flips_at_api_price(choice)
    if np.isfinite(row["carbon_g_per_request"]):
        sentences.append(
            f"It emits {number(row['carbon_g_per_request'], 2)} g CO2e a request and takes "
            f"{number(row['energy_per_request_j'], 2)} J."
        )
    if flips is not None:
        sentences += _most_able(flips)
    if row["doubtful"]:
        sentences.append(f"A validity check of its measurement is not ok: {row['validity']}.")
    if value("energy_factor") == 1 and "energy_factor" in choice.inputs.varied():
        sentences.append("Energies are estimated; their range is among the inputs.")
    return sentences


def question(choice: Choice, machine: str) -> str:
    """`For 30,000 rag requests a day, first token within 1,000 ms, on machines like ...`."""
    value, need = choice.inputs.value, choice.inputs.need
    task = choice.options["task"].iloc[0]
    asked = [f"For {value('requests_per_day'):,.0f} {task} requests a day"]
    asked[0] += f" of {value('input_tokens'):.0f} tokens in and {value('output_tokens'):.0f} out"
    if need.ttft_ms is not None:
        asked.append(f"first token within {need.ttft_ms:,g} ms for {need.percentile:g} % of them")
    if need.tpot_ms is not None:
        asked.append(f"{need.tpot_ms:g} ms a token")
    if need.score is not None:
        asked.append(f"a score of {need.score:g}")
    if need.budget_usd_per_month is not None:
        asked.append(f"{need.budget_usd_per_month:,g} USD a month")
    if need.machines is not None:
        asked.append(f"at most {need.machines:g} machine{'s' * (need.machines > 1)}")
    return ", ".join(asked) + f", on {machine}"


def _machines(row) -> str:
    if row["deployment"] == API:
        return ""
    many = "one machine" if row["machines"] == 1 else f"{row['machines']:.0f} machines"
    return f", on {many} busy {100 * row['utilisation']:.2g} % of the day"


def _where(deployment: str) -> str:
    return {API: "of an API", "cloud": "in the cloud"}.get(deployment, deployment)


def _alike(choice: Choice, row: pd.Series) -> list[str]:
    """What a little more money buys: the best score among options that cost hardly more."""
    usd = choice.table["usd_per_request"]
    near = choice.table[choice.table["fits"] & (usd <= NEAR * usd[choice.best])]
    better = near.sort_values("score", ascending=False).iloc[0]
    if len(near) < 3 or not better["score"] > row["score"]:
        return []
    return [
        f"{len(near) - 1} others cost at most {100 * (NEAR - 1):.0f} % more; of these "
        f"{option_name(better)} scores best, {better['score']:.2f} instead of {row['score']:.2f}."
    ]


def _pays(choice: Choice) -> list[str]:
    assert choice.best is not None
    requests = advise_choice.pays_after_requests(choice, choice.best)
    if np.isnan(requests):
        return []
    if np.isinf(requests):
        return ["Against the API it never pays."]
    days = requests / choice.inputs.value("requests_per_day")
    after = f"{format_number(days, 2)} days" if days < 90 else f"{days / 365 * 12:.0f} months"
    return [f"It pays after {format_number(requests, 2)} requests, {after} of this load."]


def _flips_at_api_price(choice: Choice) -> list[str]:
    at = advise_choice.flip(choice, "api_price_factor")
    now = advise_choice.api_usd_per_request(choice)
    texts = []
    for factor, verb, best in (
        (at.below, "falls below", at.below_best),
        (at.above, "rises above", at.above_best),
    ):
        if factor is not None:
            then = "none fits" if best is None else option_name(choice.options.loc[best])
            price = advise_choice.api_usd_per_request(choice, factor)
            texts.append(
                f"It stops being right when the API {verb} {1e3 * price:.3g} USD per 1,000 "
                f"requests, now {1e3 * now:.3g}: then {then}."
            )
    return texts or ["No price of the API makes another option the best."]


def _most_able(flips: pd.DataFrame) -> list[str]:
    able = flips[flips["total_order"] > 0].head(3)
    if able.empty:
        return ["Nothing in the inputs' ranges makes another option the best."]
    named = [f"{in_words(row.input)} ({100 * row.total_order:.0f} %)" for row in able.itertuples()]
    return [f"Most able to flip it, by their part in the flip: {', '.join(named)}."]


def in_words(name: str) -> str:
    """An input's name for people."""
    return _WORDS.get(name) or name.replace("_", " ")


def _none(choice: Choice, machine: str) -> list[str]:
    sentences = [
        f"{question(choice, machine)}: **none** of the {len(choice.table)} options fits"
        + (
            f" (in {100 * choice.p_none:.0f} % of what the inputs may be)."
            if choice.p_none
            else "."
        )
    ]
    needed = advise_choice.remedies(choice)
    table = choice.table.sort_index()
    together = needed["option_index"].nunique() == 1 and len(needed) > 1
    parts = []
    for row in needed.itertuples():
        words, _ = CONSTRAINTS[row.constraint]
        parts.append((words.format(_allowed(row)), option_name(table.loc[row.option_index])))
    if together:
        sentences.append(f"{parts[0][1]} would fit if {' and '.join(text for text, _ in parts)}.")
    else:
        sentences += [f"{name} would fit if {text}." for text, name in parts]
    return sentences


def _allowed(row) -> str:
    """A limit that would do, rounded to the side on which it does."""
    digits = 3 - 1 - int(np.floor(np.log10(max(row.would_fit_at, 1e-9))))
    up = row.constraint != "score"
    scaled = row.would_fit_at * 10.0**digits
    return f"{(np.ceil(scaled - 1e-9) if up else np.floor(scaled + 1e-9)) / 10.0**digits:,g}"


# --- tables -----------------------------------------------------------------------------------


def sentences(texts: Sequence[str]) -> Prose:
    """Show an answer in a notebook: its first sentence as a paragraph, the rest as items."""
    first, *rest = texts
    return Prose(first + "\n\n" + "\n".join(f"- {text}" for text in rest))


def table(choice: Choice, machine: str) -> pd.DataFrame:
    """Return advice.csv: every option, ranked, with all its figures and what was asked."""
    return choice.table.assign(question=question(choice, machine))


def for_people(advice: pd.DataFrame, most: int = 20) -> Prose:
    """Show the first rows of an advice table; options that share a rank have an `=`."""
    rows = advice.head(most).copy()
    rows["option"] = [option_name(row) + at_once(row) for _, row in rows.iterrows()]
    for end in ("", "_least", "_most"):
        rows[f"usd_per_1000_requests{end}"] = 1e3 * rows[f"usd_per_request{end}"]
    rows["best_in_pct"], rows["fits_in_pct"] = 100 * rows["p_best"], 100 * rows["p_fits"]
    several = advice["rank"].value_counts() > 1
    rows["rank"] = ["–" if pd.isna(r) else f"{r:.0f}{'=' * bool(several[r])}" for r in rows["rank"]]
    broken = [f"breaks: {name}" for name in rows["binding"]]
    rows["binding"] = np.where(rows["fits"], rows["binding"], broken)
    rows["remark"] = np.where(rows["doubtful"], "doubtful measurement", "")
    columns = [c for c in SHOWN if c in rows and not (rows[c].isna() | (rows[c] == "")).all()]
    only = rows[[*columns, "usd_per_1000_requests_least", "usd_per_1000_requests_most"]]
    text = readable(only, columns, digits=2)
    text.columns = [HEADINGS.get(c, h) for c, h in zip(columns, text.columns, strict=True)]
    numeric = [pd.api.types.is_numeric_dtype(rows[c]) for c in columns]
    align = ["right" if is_number else "left" for is_number in numeric]
    shown = text.to_markdown(index=False, colalign=align, disable_numparse=True)
    left = len(advice) - len(rows)
    return Prose(shown + (f"\n\nAnd {left} more in `tables/advice.csv`." if left > 0 else ""))


def inputs_for_people(flips: pd.DataFrame) -> pd.DataFrame:
    """The inputs with their ranges and sources, as a notebook shows them."""
    rows = flips[flips["value"].notna()].sort_index()
    return pd.DataFrame(
        {
            "input": [in_words(name) for name in rows["input"]],
            "value": rows["value"],
            "least": rows["least"],
            "most": rows["most"],
            "unit": rows["unit"],
            "source": rows["source"],
        }
    )


def flips_for_people(flips: pd.DataFrame) -> pd.DataFrame:
    """Where each input flips the choice; only those that do or have a part in it."""
    at = ["flips_below", "flips_above"]
    rows = flips[flips[at].notna().any(axis=1) | (flips["total_order"] > 0.005)]
    return pd.DataFrame(
        {
            "input": [in_words(name) for name in rows["input"]],
            "part in the flip [%]": 100 * rows["total_order"],
            "value": rows["value"],
            "flips below": rows["flips_below"],
            "to": rows["then_below"].map(_plain_option),
            "flips above": rows["flips_above"],
            "to ": rows["then_above"].map(_plain_option),
        }
    )


def _plain_option(name) -> str | None:
    """`llama-1B_rag_lora_int4, cloud` as people call it."""
    if not isinstance(name, str) or name == "none":
        return name if isinstance(name, str) else None
    variant, _, deployment = name.partition(", ")
    parts = variant.split("_")
    if deployment == API or len(parts) != 4:
        return "the API" if deployment == API else name
    return f"{parts[0]} {configuration_name(*parts[2:])}, {deployment}"


def against_listed(choice: Choice, book: PriceBook) -> pd.DataFrame:
    """Return what each listed API asks per 1,000 requests, and whether the choice stands there."""
    value = choice.inputs.value
    nominal = advise_choice.api_usd_per_request(choice) / max(value("api_price_factor"), 1e-12)
    usd = [
        api.input_usd_per_mtok * value("input_tokens") / 1e6
        + api.output_usd_per_mtok * value("output_tokens") / 1e6
        for api in book.api_prices
    ]
    factors = np.array(usd) / nominal
    best = advise_choice.best_at(choice, "api_price_factor", factors)
    stands = ["stands" if b == choice.best else f"then {_option(choice, b)}" for b in best]
    return pd.DataFrame(
        {
            "API": [f"{api.provider} {api.model}" for api in book.api_prices],
            "in force from": [f"{api.valid_from:%Y-%m}" for api in book.api_prices],
            "USD per 1,000 requests": 1e3 * np.array(usd),
            "the choice": stands,
        }
    ).sort_values("USD per 1,000 requests", ascending=False, ignore_index=True)


def _option(choice: Choice, index: int) -> str:
    return "none fits" if index < 0 else option_name(choice.options.loc[index])


def cards_needed(requirements: pd.DataFrame) -> pd.DataFrame:
    """A row a model and step, a column a hardware: the cards that it takes, empty where none do."""
    rows = requirements.dropna(subset=["verdict"]).assign(cards=lambda t: t["cards"].astype(str))
    rows.loc[rows["verdict"] == "offload", "cards"] += ", offloading"
    rows.loc[rows["verdict"] == "does not fit", "cards"] = None
    order = {name: list(dict.fromkeys(rows[name])) for name in ("model", "step", "hardware")}
    wide = rows.pivot_table(
        index=["model", "step"], columns="hardware", values="cards", aggfunc="first", sort=False
    )
    return wide.reindex(columns=order["hardware"]).reset_index()


def errors_for_people(errors: pd.DataFrame) -> pd.DataFrame:
    """The predictors that are used, and the ladder's for comparison, each with its error."""
    columns = ["quantity", "predictor", "direction", "rows", "mean_ape_pct", "worst_ape_pct",
               "coverage_pct"]  # fmt: skip
    rows = errors[columns].assign(coverage_pct=pd.to_numeric(errors["coverage_pct"]))
    headings = {"mean_ape_pct": "mean error [%]", "worst_ape_pct": "worst error [%]",
                "coverage_pct": "in 90 % intervals [%]"}  # fmt: skip
    return rows.rename(columns=headings)


def of(outputs: Path, page: str = "planner.html") -> Prose:
    """Show the choice that was made for these outputs, or how to make one: for the reports."""
    file = outputs / "tables" / "advice.csv"
    if not file.is_file():
        return Prose("Nothing was chosen yet: `make advise` does, for a load and needs of yours.")
    advice = pd.read_csv(file)
    asked = str(advice["question"].iloc[0])
    more = f"What it stands on, how sure it is and what would change it: `{page}`."
    return Prose(f"{asked}.\n\n{for_people(advice, 10)}\n\n{more}")
