"""How long is left: expectations of runs that finished ones correct, one by one.

What a run takes is its expectation times a factor of the machine, one of its stage and one of its
kind, each near 1. The logarithms of these factors are estimated from the runs that were seen
(Gaussian effects, shrunken towards 0), so that one odd run moves little and many move much. A run
that takes longer than expected counts while it is under way, and what is left of it never ends at
0: it is what such runs, having gone on for so long, go on for on average.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edge_eval_lib.artefacts.place import Key, place
from edge_eval_lib.runs import estimate
from edge_eval_lib.runs.finished import Finished, finished_runs, read_finished
from edge_eval_lib.study import Study

# Standard deviations of logarithms: how far expectations were off in this project's own studies.
MACHINE_SPREAD = 0.2
STAGE_SPREAD = 0.35  # of stages that none of the study's runs has told of
KNOWN_SPREAD = 0.1  # of stages that finished runs have told of
KIND_SPREAD = 0.15
RUN_SPREAD = 0.15
OVERHEAD_S = 1.6  # a run's process and Snakemake's choice of the next: measured on two cores
REPORT_S = 15.0  # a report where none was made yet: measured on two cores


@dataclass(frozen=True)
class Expected:
    """What a run is expected to take.

    Attributes:
        seconds: From the start of one run to that of the next.
        stage: Runs of one stage are off alike.
        kind: And those of one kind (model, precision) even more so.
        known: Whether finished runs of the study told it.
        fixed: Whether it stands for a process's start alone, which tells of no other run.
        devices: How many it has to itself.
    """

    seconds: float
    stage: str
    kind: Hashable = None
    known: bool = False
    fixed: bool = False
    devices: int = 1


def expected_runs(
    study: Study, keys: Collection[Key], finished: dict[Key, Finished] | None = None
) -> dict[Key, Expected]:
    """Return what runs are expected to take, those of reports among them.

    By the study's finished runs where there are any of the kind, else by the plan's estimate.

    Args:
        study: The study.
        keys: The runs.
        finished: Those of the study that are done, where they are known.
    """
    runs = study.runs()
    left = [run for run in runs if (run.stage, run.name) in keys]
    costs: dict[Key, estimate.RunCost] = {}
    if left:
        if finished is None:
            finished = finished_runs(study, [run for run in runs if run not in left])
        costs = estimate.costs(study, runs, finished)
    expected = {}
    for run in left:
        cost, p = costs[run.stage, run.name], run.parameters
        expected[run.stage, run.name] = Expected(
            cost.seconds + OVERHEAD_S,
            run.stage,
            (p.get("model"), p.get("method"), p.get("precision")),
            cost.basis == estimate.FINISHED,
            cost.basis == estimate.START,
            cost.gpus,
        )
    for key in keys:
        if key not in expected:  # a report
            earlier = read_finished(place(study, *key).notebook)
            seconds = (earlier.seconds if earlier else REPORT_S) + OVERHEAD_S
            expected[key] = Expected(seconds, key[0], fixed=True)
    return expected


@dataclass
class Remaining:
    """The time that is left of `runs`, of which some are `measured` already.

    Attributes:
        runs: What each was expected to take.
        at_once: How many devices there are for them.
        measured: Seconds of those that have ended.
    """

    runs: Mapping[Key, Expected]
    at_once: int = 1
    measured: dict[Key, float] = field(default_factory=dict)

    def left_s(self, under_way: Mapping[Key, float] | None = None) -> float:
        """Estimate the seconds until the last run ends.

        Args:
            under_way: Seconds since the start of each run that is being made.

        Returns:
            Seconds; 0.0 if nothing is left.
        """
        under_way = under_way or {}
        left = {key: run for key, run in self.runs.items() if key not in self.measured}
        seconds = self._corrected(left, under_way)
        for key in under_way.keys() & left.keys():
            seconds[key] = still_s(seconds[key], under_way[key])
        busy = sum(left[key].devices for key in under_way.keys() & left.keys())
        at_once = max(self.at_once, busy)
        together = sum(s * min(left[key].devices, at_once) for key, s in seconds.items()) / at_once
        return max([together, *seconds.values()], default=0.0)

    def _corrected(
        self, left: Mapping[Key, Expected], under_way: Mapping[Key, float]
    ) -> dict[Key, float]:
        """Correct the seconds of runs by those of the runs that were seen."""
        overdue = {key: s for key, s in under_way.items() if key in left and s > left[key].seconds}
        seen = {key: s for key, s in (self.measured | overdue).items() if not self.runs[key].fixed}
        effects = _effects([run for run in self.runs.values() if not run.fixed])
        if not seen or not effects:
            return {key: run.seconds for key, run in left.items()}
        places = {effect: place for place, effect in enumerate(effects)}
        weights = np.diag([spread**-2 for spread in effects.values()])
        sums = np.zeros(len(effects))
        for key, seconds in seen.items():
            at = [places[effect] for effect in _effects_of(self.runs[key])]
            weights[np.ix_(at, at)] += RUN_SPREAD**-2
            sums[at] += math.log(max(seconds, 0.1) / self.runs[key].seconds) / RUN_SPREAD**2
        found = np.linalg.solve(weights, sums)
        return {
            key: run.seconds * math.exp(sum(found[places[e]] for e in _effects_of(run)))
            for key, run in left.items()
        }


def _effects_of(run: Expected) -> list[Hashable]:
    return ["machine"] if run.fixed else ["machine", (run.stage,), (run.stage, run.kind)]


def _effects(runs: list[Expected]) -> dict[Hashable, float]:
    """Return every effect and how far it is from 0, as a standard deviation."""
    spreads: dict[Hashable, float] = {}
    for run in runs:
        stage_spread = KNOWN_SPREAD if run.known else STAGE_SPREAD
        for effect, spread in zip(
            _effects_of(run), (MACHINE_SPREAD, stage_spread, KIND_SPREAD), strict=False
        ):
            spreads[effect] = min(spread, spreads.get(effect, spread))
    return spreads


def still_s(expected_s: float, elapsed_s: float, spread: float = 0.2) -> float:
    """Estimate how long a run goes on that has gone on for `elapsed_s`: a log-normal's mean rest.

    Args:
        expected_s: What it takes, as the median.
        elapsed_s: Since its start.
        spread: Standard deviation of its logarithm.

    Returns:
        Seconds, never 0.
    """
    if elapsed_s <= 0:
        return expected_s
    z = math.log(elapsed_s / expected_s) / spread
    if z > 5:  # far in the tail, where the quotient below is lost to rounding
        return spread / z * elapsed_s
    beyond = math.erfc(z / math.sqrt(2))
    rest_s = expected_s * math.exp(spread**2 / 2) * math.erfc((z - spread) / math.sqrt(2)) / beyond
    return rest_s - elapsed_s
