"""Exercises of workshop notebook 3: the five metrics, and how they mislead.

Each takes rows of a table of variants; answers and messages are computed from them.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from edge_eval_lib.metrics import cold_start_tax, intelligence_per_watt
from edge_eval_lib.results.readable import format_number
from edge_eval_lib.workshop.choice import choice
from edge_eval_lib.workshop.exercise import Exercise, Mistake


def ipw(row: pd.Series) -> Exercise:
    """Ask for a variant's intelligence per watt."""
    score, energy_j = row["score"], row["energy_per_request_j"]
    return Exercise(
        answer=intelligence_per_watt(score, energy_j),
        unit="1/J",
        hint_text="the formula has two columns of the row, and neither of them is a power.",
        solution_text="score / energy of a request. Per joule, in spite of its name.",
        mistakes=(
            Mistake(
                score / row["power_w"],
                "That is score per watt, which the name promises. The metric divides by joules.",
            ),
            Mistake(
                score / (energy_j * row["requests"]),
                f"You divided by the energy of all {row['requests']:.0f} requests. Take one's.",
            ),
            Mistake(energy_j / score, "Upside down: that is joules for a score of 1."),
            Mistake(100 * score / energy_j, "The score is a share from 0 to 1, not percent."),
        ),
    )


def statistic(values: pd.Series, printed: float) -> Exercise:
    """Ask which statistic of `values` a table printed."""
    found = {
        "mean": values.mean(),
        "median": values.median(),
        "largest": values.max(),
        "smallest": values.min(),
    }
    right = min(found, key=lambda name: abs(found[name] - printed))
    said = f"and {printed:g} was printed."
    return choice(
        right,
        {name: f"The {name} is {format_number(value)}, {said}" for name, value in found.items()},
        "Sort the values.",
        f"{format_number(found[right])} is printed as {printed:g}. The caption says median, which "
        f"would be {format_number(found['median'])}.",
    )


def requests_in_flight(row: pd.Series) -> Exercise:
    """Ask how many requests were served at once, by Little's law."""
    rate, tpot_ms = row["throughput_tok_s"], row["tpot_ms"]
    alone = 1e3 / tpot_ms
    return Exercise(
        answer=rate * tpot_ms / 1e3,
        unit="requests",
        tolerance=0.03,
        hint_text=f"one request gets a token every {tpot_ms:.2f} ms. How many such requests make "
        f"{rate:,.0f} tokens a second?",
        solution_text=f"a request alone would get {alone:.0f} tokens a second, and the machine "
        f"gave {rate:,.0f}. (Little's law: in flight = rate x time in the system.)",
        mistakes=(
            Mistake(1, f"So says the paper. But one request gets {alone:.0f} tokens a second."),
            Mistake(rate * tpot_ms, "TPOT is in milliseconds, the throughput per second."),
            Mistake(alone, "That is the tokens a second of one request. Go on: how many of them?"),
            Mistake(
                rate / tpot_ms, "You divided: the longer a token takes, the more are in flight."
            ),
            Mistake(row["requests"], "So many were sent in all, but not all at the same time."),
        ),
    )


def cold_start_of_one(row: pd.Series) -> Exercise:
    """Ask for the cold-start tax if one request is served at a time."""
    alone_j = row["power_w"] * row["latency_ms"] / 1e3
    tax = cold_start_tax(row["load_energy_j"], row["energy_per_request_j"])
    changed = row["energy_per_request_j"] / alone_j
    return Exercise(
        answer=cold_start_tax(row["load_energy_j"], alone_j),
        tolerance=0.03,
        hint_text="the load stays as it is. What is the energy of a request that has the machine "
        "to itself: power x its latency?",
        solution_text=f"{format_number(row['load_energy_j'])} J for the load, and a request alone "
        f"takes {format_number(alone_j)} J. The tax fell from {tax:.0f} because each request "
        "became dearer: nothing got better. A metric that divides by waste rewards it.",
        mistakes=(
            Mistake(tax, "That is the published tax, of requests that share the machine."),
            Mistake(
                tax / changed,
                "The wrong way round: a request that is alone takes more energy, not less.",
            ),
            Mistake(
                row["load_energy_j"] / row["latency_ms"] * 1e3,
                "You divided by seconds. Energy is power x time.",
            ),
            Mistake(alone_j, "That is the energy of a request alone. How many of them is a load?"),
        ),
    )


def net_energy(row: pd.Series, idle_w: float) -> Exercise:
    """Ask for a request's energy without what an idle machine draws anyway."""
    gross_j, power_w = row["energy_per_request_j"], row["power_w"]
    return Exercise(
        answer=gross_j * (1 - idle_w / power_w),
        unit="J",
        hint_text=f"of {power_w:.0f} W the idle machine draws {idle_w:.0f} W. Which share is left?",
        solution_text=f"{idle_w / power_w:.0%} of the {format_number(gross_j)} J flowed because "
        "the machine was on, not because it answered.",
        mistakes=(
            Mistake(gross_j, "That is gross: the idle power is still in it."),
            Mistake(gross_j * idle_w / power_w, "That is the idle part. Take it off."),
            Mistake(gross_j * (1 - idle_w / 2 / power_w), "You took off one card. There are two."),
            Mistake(gross_j - idle_w, "You took watts off joules."),
        ),
    )


def pays_back(row: pd.Series, labour_usd: float) -> Exercise:
    """Ask when a variant pays back if the work of setting it up counts.

    The row has n_break, and what the API and serving here ask for a request.
    """
    api, local = row["api_usd_per_request"], row["local_usd_per_request"]
    return Exercise(
        answer=labour_usd / (api - local),
        unit="requests",
        hint_text=f"before the first request {labour_usd:.0f} USD are spent. How much does each "
        "request save?",
        solution_text=f"{labour_usd:.0f} USD / ({api:.5f} - {local:.6f}) USD. The paper's "
        f"{format_number(row['n_break'])} are electricity alone.",
        mistakes=(
            Mistake(row["n_break"], "That is the paper's figure: electricity, and no person."),
            Mistake(labour_usd, "Those are USD, not requests."),
            Mistake(labour_usd / local, "You divided by the price of a request here, not by what "
                    "it saves against the API."),
            Mistake(labour_usd * api, "You multiplied. How many savings fit into what was spent?"),
        ),
    )  # fmt: skip


def does_not_follow(claims: pd.DataFrame) -> Exercise:
    """Ask for the letter of the claim that the figures do not give.

    `claims` has columns letter, statement, recomputed, verdict and note; one row is not
    reproduced.
    """
    (wrong,) = claims[claims["verdict"] == "not reproduced"].to_dict("records")
    others = claims[claims["verdict"] != "not reproduced"].to_dict("records")
    return Exercise(
        answer=wrong["letter"],
        hint_text="hold each against the tables. Four follow; one is a matter of the digits.",
        solution_text=f"'{wrong['statement']}' does not follow: {wrong['note']}.",
        mistakes=tuple(Mistake(claim["letter"], _follows(claim)) for claim in others),
    )


def _follows(claim: dict[str, Any]) -> str:
    try:
        figures = format_number(float(claim["recomputed"]))
    except ValueError:  # such as `17 of 18`
        figures = claim["recomputed"]
    return "; ".join(filter(None, [f"It follows: the figures give {figures}", claim["note"]])) + "."
