"""What the paper claims, judged by rule from its own published figures.

`judge(evidence(figures))` gives one row a claim. Each rule is a function of the claim and the
evidence; the verdict is computed, so that other figures or another printed value give another one.
A printed value is met when the recomputed one, rounded to the digits that were printed, is the
same.
"""

from __future__ import annotations

import pandas as pd

from edge_eval_lib.paper.evidence import STATISTICS, Evidence, digits_of
from edge_eval_lib.paper.finding import VERDICT_LOOKS, VERDICTS, verdict_of
from edge_eval_lib.paper.rules import RULES


def judge(proof: Evidence) -> pd.DataFrame:
    """Judge every claim, a row each in the order of claims.csv.

    paper_value is as printed; statistic is what meets it where it is not what the claim says;
    other_choices are other readings, each with its verdict; hinges says whether one of them gives
    another verdict. ValueError for a claim that names no known rule.
    """
    rows = []
    for _, claim in proof.figures.claims.iterrows():
        if claim["rule"] not in RULES:
            raise ValueError(f"claim {claim['claim_id']} names no known rule: {claim['rule']!r}")
        finding = RULES[claim["rule"]](claim, proof)
        others = {how: verdict_of(holds) for how, holds in finding.choices.items()}
        rows.append(
            {
                **claim[["claim_id", "kind", "statement", "source"]],
                "paper_value": claim["value"],
                "unit": claim["unit"],
                "recomputed": finding.recomputed,
                "rule": finding.rule,
                "verdict": finding.verdict,
                "statistic": finding.statistic,
                "coincidence": finding.coincidence,
                "other_choices": "; ".join(f"{how}: {verdict}" for how, verdict in others.items()),
                "hinges": finding.holds is not None
                and bool({*others.values()} - {finding.verdict}),
                "note": finding.note,
            }
        )
    return pd.DataFrame(rows)


def for_people(judged: pd.DataFrame) -> pd.DataFrame:
    """Return the judged claims as text: `claim` holds the statement and its argument below it.

    `recomputed` has four significant digits, `verdict` a sign and what the value is instead.
    """
    arguments = {"Rule": "rule", "Found": "note", "By another choice": "other_choices"}
    claim, verdict = [], []
    for _, row in judged.iterrows():
        lines = [f"{name}: {row[column]}." for name, column in arguments.items() if row[column]]
        claim.append("\n".join([row["statement"], *lines]))
        words = f"{VERDICT_LOOKS[row['verdict']][1]} {row['verdict']}"
        words += f": {row['statistic']}" if row["statistic"] else ""
        words += ", by coincidence" if row["coincidence"] else ""
        verdict.append(words + (", by this choice" if row["hinges"] else ""))
    recomputed = [f"{v:.4g}" if isinstance(v, float) else v for v in judged["recomputed"]]
    values = pd.Series(recomputed, index=judged.index, dtype=object)
    return judged.assign(claim=claim, recomputed=values, verdict=verdict)


def cells_for_people(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the headline cells as text: recomputed to the printed digits, others to one more."""
    digits = cells["printed"].map(digits_of)
    more = dict.fromkeys([*STATISTICS, "mean, QLoRA-INT4 alone"], 1) | {"recomputed": 0}
    text = {
        column: [f"{v:,.{n + extra}f}" for v, n in zip(cells[column], digits, strict=True)]
        for column, extra in more.items()
    }
    return cells.assign(**text)


def tally(judged: pd.DataFrame) -> str:
    """Count verdicts in words: how many stand, by another statistic, and not at all."""
    counts = judged["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    chance = int(judged["coincidence"].sum())
    return (
        f"{counts['reproduced']} reproduced as stated"
        + f" ({chance} of them by coincidence)" * bool(chance)
        + f", {counts['other statistic']} by another statistic, "
        f"{counts['not reproduced']} not reproduced"
        + f", {counts['not checkable']} cannot be checked from what was published"
        * bool(counts["not checkable"])
    )
