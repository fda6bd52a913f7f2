"""The choice in words: what notebook 07 and the command answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from edge_eval_lib.economics.advise import choice as advise_choice
from edge_eval_lib.economics.advise.choice import Choice
from edge_eval_lib.economics.advise.options import API, CLOUD
from edge_eval_lib.results.columns import configuration_name
from edge_eval_lib.results.readable import Prose, format_number

SUPERLATIVES = {
    "cost": "the cheapest",
    "energy": "the one of least energy",
    "carbon": "the one of least carbon",
    "latency": "the fastest",
}
CONSTRAINTS = {
    "first token": "the first token may take {} ms",
    "time per token": "a token may take {} ms",
    "score": "a score of {} will do",
    "budget": "{} USD a month may be spent",
    "machines": "there are {} machines",
}
COMING = {"steady": ", coming evenly", "random": "", "bursty": ", coming in bursts"}
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
    "keep_warm_s": "kept warm",
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
        flips: Of `choice.flips`, for the inputs most able to flip it.
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
        f"It is the best in {100 * row['p_best']:.0f} % of what the inputs may be"
        + (
            "."
            if row["deployment"] == API
            else f"; some option {_where(row['deployment'])} is in {100 * deployed:.0f} %."
        )
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
    asked[0] += COMING[need.arrivals]
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
    many = "one machine" if row["machines"] == 1 else f"{row['machines']:,.0f} machines"
    return f", on {many} busy {100 * row['utilisation']:.2g} % of the day"


def _where(deployment: str) -> str:
    return {CLOUD: "in the cloud"}.get(deployment, deployment)


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
    if days < 1:
        after = "less than a day"
    return [f"It pays after {format_number(requests, 2)} requests, {after} of this load."]


def _flips_at_api_price(choice: Choice) -> list[str]:
    if not (choice.options["deployment"] == API).any():
        return []
    if choice.inputs.need.objective in ("energy", "carbon"):
        return ["The API is not compared: its energy and carbon are not published."]
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
    return _WORDS.get(name) or name.replace("_", " ").replace("usd", "USD")


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
        words = CONSTRAINTS[row.constraint].format(_allowed(row))
        parts.append((words, option_name(table.loc[row.option_index])))
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


def sentences(texts: Sequence[str]) -> Prose:
    """Show an answer in a notebook: its first sentence as a paragraph, the rest as items."""
    first, *rest = texts
    return Prose(first + "\n\n" + "\n".join(f"- {text}" for text in rest))
