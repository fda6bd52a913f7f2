"""What the figures say of a claim, its verdict, and what words without a number are taken to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["reproduced", "other statistic", "not reproduced", "not checkable"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "other statistic", "not reproduced", "not checkable")
# A colour, and a sign beside the words, so that no colour is needed.
VERDICT_LOOKS: dict[str, tuple[str, str]] = {
    "reproduced": ("#1b7f79", "✓"),
    "other statistic": ("#96620f", "≈"),
    "not reproduced": ("#c0392b", "✗"),
    "not checkable": ("#6b7178", "?"),
}
# What words without a number are taken to mean.
ABOUT = 0.01  # "about", relative
ABOUT_POINTS = 5.0  # "about 60 %", points
GENERALLY = 0.9  # share of cases
OFTEN = 0.5  # share of cases
EQUAL_QUALITY_POINTS = 1.0  # of Q_ret
EQUAL_COMPUTE = 1.25  # largest over smallest


def verdict_of(holds: bool | None) -> Verdict:
    """Return the verdict on a claim that holds, does not, or (None) cannot be checked."""
    return "not checkable" if holds is None else "reproduced" if holds else "not reproduced"


@dataclass(frozen=True)
class Finding:
    """What the figures say of a claim.

    `recomputed` is the value by the claim's own words; `statistic` what met the printed one
    instead; `note` says in words what the figures show. `choices` are other readings of the claim,
    and whether it holds by them. A `coincidence` meets the printed value although the rest of its
    column shows that it was computed otherwise.
    """

    holds: bool | None
    recomputed: float | str | None
    rule: str
    note: str = ""
    choices: Mapping[str, bool] = field(default_factory=dict)
    statistic: str = ""
    coincidence: bool = False

    @property
    def verdict(self) -> Verdict:
        """The verdict in words."""
        return "other statistic" if self.statistic else verdict_of(self.holds)


def sentences(*parts: str) -> str:
    """Join what is not empty by semicolons."""
    return "; ".join(filter(None, parts))


def by_statistic(
    candidates: Mapping[str, float],
    meets: Callable[[float], bool],
    rule: str,
    note: str = "",
    choices: Mapping[str, bool] | None = None,
) -> Finding:
    """Judge by the first of `candidates`, as the claim says, or else by another that meets it."""
    stated, value = next(iter(candidates.items()))
    name = next((name for name, other in candidates.items() if meets(other)), None)
    if name is None:
        shown = ", ".join(f"{name} {v:.4g}" for name, v in candidates.items())
        note = sentences(f"the figures give {shown}", note)
    elif name != stated:
        other = f"the {name}, {candidates[name]:.4g}, gives the printed value"
        note = sentences(f"the {stated} is {value:.4g}; {other}", note)
    instead = name if name and name != stated else ""
    return Finding(name == stated, value, rule, note, choices or {}, statistic=instead)
