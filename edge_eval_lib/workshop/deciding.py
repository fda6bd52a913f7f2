"""Exercises of workshop notebook 4: decide. Answers are computed from a choice of `advise`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from edge_eval_lib.economics.advise import choice as advise_choice
from edge_eval_lib.economics.advise.choice import Choice
from edge_eval_lib.economics.advise.evaluation import evaluate
from edge_eval_lib.errors import UserError
from edge_eval_lib.results.decision import in_words, short_name
from edge_eval_lib.results.readable import format_number
from edge_eval_lib.units import SECONDS_PER_DAY
from edge_eval_lib.workshop.choice import choice as one_of
from edge_eval_lib.workshop.exercise import Exercise, Mistake

BILL = ("machines", "electricity", "people", "once")
ASKED_OF = ("requests_per_day", "api_price_factor", "hardware_factor", "electricity_usd_per_kwh")
NOTHING = "nothing"  # in its range flips the choice
LEAST_PART = 0.005  # of the flip


def on_the_front(front: pd.Series) -> Exercise:
    """Ask how many rows nothing else beats; `front` says of each whether it is one."""
    kept, rows = int(front.sum()), len(front)
    return Exercise(
        answer=kept,
        tolerance=0.0,
        hint_text="go along the picture from left to right: a dot counts if it lies higher than "
        "all dots on its left.",
        solution_text=f"of {rows} variants {rows - kept} are beaten by another that scores at "
        "least as well and takes no more. Nobody needs to look at them again.",
        mistakes=(
            Mistake(rows, "All of them? Then no variant would be as good for less energy."),
            Mistake(rows - kept, "Those are the ones that are beaten."),
            Mistake(1, "One alone would have to score best and take least, too."),
        ),
    )


def largest_part(row: pd.Series) -> Exercise:
    """Ask what most of a month's bill is for."""
    part = {name: float(row[f"{name}_usd_per_month"]) for name in BILL}
    right = max(part, key=lambda name: part[name])
    total = row["usd_per_month"]
    said = {name: f"{usd:,.0f} of {total:,.0f} USD a month" for name, usd in part.items()}
    return one_of(
        right,
        {name: f"{text}: something else takes more." for name, text in said.items()},
        "What is paid for whether or not a request comes?",
        f"{said[right]}. Joules decide what a machine emits, seldom what it costs.",
    )


def energy_in_service(row: pd.Series, at_work_j: float, requests_per_day: float) -> Exercise:
    """Ask what a request takes of a machine that also waits, J.

    Args:
        row: The option, of a choice's table.
        at_work_j: Of a request as it was measured, one after the other without a pause.
        requests_per_day: The load.
    """
    energy_j, busy = row["energy_per_request_j"], row["utilisation"]
    return Exercise(
        answer=energy_j,
        unit="J",
        tolerance=0.2,
        hint_text="the machine draws its idle watts day and night. How many joules is that a day, "
        "and how many a request?",
        solution_text=f"{format_number(energy_j / at_work_j)} times what was measured: all "
        f"requests of a day would keep the machine busy for {busy:.1%} of it, and it waits for the "
        "rest. More requests, or fewer machines, save more than any quantisation.",
        mistakes=(
            Mistake(at_work_j, "That is a request's energy while the machine works without pause."),
            Mistake(
                at_work_j / busy,
                "As if it drew as much while it waits. Take its idle power, and the computer "
                "around the cards.",
            ),
            Mistake(energy_j * requests_per_day, "Those are the joules of a whole day."),
            Mistake(
                energy_j * requests_per_day / SECONDS_PER_DAY,
                "Those are watts. How many joules is that a day, and how many a request?",
            ),
        ),
    )  # fmt: skip


def pays_from(choice: Choice, n_break: float) -> Exercise:
    """Ask from which load a day a machine of one's own is the best.

    Args:
        choice: A choice in which one is.
        n_break: What the paper's accounting says.

    Raises:
        UserError: No smaller load makes another option the best.
    """
    at = advise_choice.flip(choice, "requests_per_day").below
    if at is None:
        raise UserError("No smaller load makes another option the best; ask of a larger one.")
    asked = choice.inputs.value("requests_per_day")
    return Exercise(
        answer=at,
        unit="requests a day",
        tolerance=0.15,
        hint_text="move the load's slider down until the first sentence names another option, or "
        "try question.asking(requests_per_day=...).",
        solution_text=f"below {at:,.0f} requests a day the bill of a machine that waits is larger "
        "than the API's.",
        mistakes=(
            Mistake(asked, "At this load it pays already. Go down."),
            Mistake(
                n_break,
                "That is N_break, and requests in all: it counts the electricity of adapting, but "
                "no machine and no people.",
            ),
            Mistake(at * 365 / 12, "That is about the load of a month."),
        ),
    )


def api_must_cost(choice: Choice) -> Exercise:
    """Ask to which share of its price the API must fall to be the best.

    Raises:
        UserError: At no lower price it is.
    """
    at = advise_choice.flip(choice, "api_price_factor").below
    if at is None:
        raise UserError("No lower price of the API makes it the best; ask of a smaller load.")
    return Exercise(
        answer=at,
        tolerance=0.15,
        hint_text="1 is today's price. Move the slider `API price ×` down until the first sentence "
        "names the API.",
        solution_text="listed prices for the same tokens differ by more than that: choosing the "
        "API to compare with decides more than choosing the model.",
        mistakes=(
            Mistake(1 / at, "As a share: 1 is today's price, 0.5 is half of it."),
            Mistake(1, "At today's price it is dearer."),
            Mistake(0, "It need not be free: your machine costs money as well."),
        ),
    )


def dearer_by(cheapest: pd.Series, best: pd.Series, energy_ratio: float) -> Exercise:
    """Ask how much more the option of the best score costs, percent.

    Args:
        cheapest: An option, of a choice's table.
        best: Another one.
        energy_ratio: How many times as much energy a request of `best` takes at work.
    """
    ratio = best["usd_per_request"] / cheapest["usd_per_request"]
    return Exercise(
        answer=100 * (ratio - 1),
        unit="%",
        tolerance=0.25,
        hint_text="divide the two costs of a request.",
        solution_text=f"a request of {short_name(best)} takes {energy_ratio:.1f} times the energy "
        "at work, but the machine and the people are paid anyway. At a small load the better "
        "model is nearly free.",
        mistakes=(
            Mistake(100 * ratio, "That is its cost in percent of the cheapest's. How much more?"),
            Mistake(100 * (energy_ratio - 1), "That is how much more energy it takes at work."),
            Mistake(ratio - 1, "As a share; in percent it is 100 times that."),
        ),
    )


def most_able(flips: pd.DataFrame) -> Exercise:
    """Ask which input is most able to flip a choice; `flips` is of `choice.flips`."""
    part = flips.set_index("input")["total_order"].reindex(ASKED_OF).fillna(0.0)
    right = str(part.idxmax()) if part.max() > LEAST_PART else NOTHING
    said = {
        name: f"The part of '{in_words(name)}' in the flip is {value:.0%}"
        for name, value in part.items()
    }
    more = "" if right == NOTHING else "; another one has more"
    says = {word: f"{text}{more}." for word, text in said.items()}
    says[NOTHING] = f"{said[str(part.idxmax())]}."
    return one_of(
        right,
        says,
        "Which of them are you least sure of?",
        "none of these flips it within what they may be."
        if right == NOTHING
        else f"{said[right]}. Find that one out before anything else.",
    )


def chosen_at(choice: Choice, loads: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Tell which option is the best at each load and least score, all else as in the choice.

    Args:
        choice: The choice.
        loads: Requests a day.
        scores: Least scores that will do, 0 to 1.

    Returns:
        The option's number, -1 where none fits: a row a score, a column a load.
    """
    load, score = (grid.ravel() for grid in np.meshgrid(loads, scores))
    inputs = {name: np.full(len(load), r.value) for name, r in choice.inputs.ranges.items()}
    share = score / choice.options.attrs["best_score"]
    asked = inputs | {"requests_per_day": load, "score_floor_share": share}
    best = evaluate(choice.options, asked, choice.inputs.need).best
    return pd.DataFrame(best.reshape(len(scores), len(loads)), index=scores, columns=loads)
