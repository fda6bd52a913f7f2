"""What is made again, and why: what changed, what is damaged, what a person asks for."""

from __future__ import annotations

from collections.abc import Iterable

from edge_eval_lib import scraps
from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import Key, place
from edge_eval_lib.errors import UserError
from edge_eval_lib.runs import catalogue
from edge_eval_lib.runs.finished import read_finished
from edge_eval_lib.study import NOTEBOOKS, STAGES, Run, Study
from edge_eval_lib.units import duration

REPEATED_S = 30 * 60  # more than that is not repeated for another code before a person says so


def stages_given(rerun: str | None, keep: str | None) -> tuple[set[str], set[str]]:
    """Read RERUN and KEEP: stages with commas between them, or all; UserError for anything else."""
    given = []
    for option, text in (("RERUN", rerun), ("KEEP", keep)):
        stages = set((text or "").replace(",", " ").split())
        if (text is not None and not stages) or not stages <= {"all", *STAGES}:
            raise UserError(
                f"{option}={text} is not a stage; give all or one of {', '.join(STAGES)}."
            )
        given.append(set(STAGES) | {"all"} if "all" in stages else stages)
    again, kept = given
    if both := sorted((again & kept) - {"all"}, key=STAGES.index):
        raise UserError(
            f"RERUN={rerun} and KEEP={keep} both name {both[0]}: its runs are made again or kept."
        )
    return again, kept


def forget(study: Study, stages: set[str]) -> None:
    """Have the runs of stages made again, or of `all` the report, too.

    What an interrupted RERUN left undone is made by the next `make all`.
    """
    for run in catalogue.all_runs(study) if stages else []:
        at = place(study, run.stage, run.name)
        if ("all" in stages or run.stage in stages) and at.notebook.is_file():
            completion.withdraw(at, keep=False)


def put_away(study: Study) -> dict[Key, str]:
    """Return the runs that are not done, and why; their records are put away, if they have any."""
    runs = catalogue.all_runs(study)
    for run in runs:
        completion.adopt(study, run)
    undone = completion.survey(study, runs)
    for key, why in undone.items():
        at = place(study, *key)
        broken = at.notebook.is_file() and not scraps.is_complete(at.notebook)
        if why.startswith(completion.DAMAGED) or broken:
            damage = why if why.startswith(completion.DAMAGED) else "is damaged"
            print(f"{key[0]}  {key[1]} {damage}; it is made again", flush=True)
        if broken or why.startswith(f"{completion.DAMAGED}runs/"):  # its figures are not to be read
            completion.set_aside(at)
        elif at.settings.is_file():
            completion.withdraw(at)
    return undone


# --- said before anything starts --------------------------------------------------------------


def reasons(study: Study, runs: Iterable[Run], undone: dict[Key, str]) -> list[str]:
    """Say which finished runs are out of date and how long they take, by stage and reason.

    Of a notebook's code that changed, also what else may have to be made again.
    """
    groups: dict[tuple[str, str], list[Key]] = {}
    for key, why in undone.items():
        if key[0] in STAGES and why != completion.UNMADE and not why.startswith(completion.DAMAGED):
            groups.setdefault((key[0], why), []).append(key)
    sentences = []
    for (stage, why), keys in groups.items():
        count = len(keys)
        many = f"{count:,} {stage} run" + ("s are" if count > 1 else " is") + " out of date"
        text = f"{many}: {'each ' if count > 1 else 'it '}{why} (about "
        text += f"{duration(_took_s(study, keys))} to make again)"
        if why.startswith(completion.OTHER_CODE) and (others := _dependents(runs, keys, undone)):
            text += (
                f"; {len(others):,} runs that need {'them' if count > 1 else 'it'} are made again "
                f"where what they read comes out otherwise (about "
                f"{duration(_took_s(study, others))})"
            )
        sentences.append(f"{text}.")
    return sentences


def unconfirmed(
    study: Study, runs: Iterable[Run], undone: dict[Key, str], again: set[str]
) -> str | None:
    """Say that much would be repeated for another code of stages not in `again`; None if not."""
    changed = {
        key: why
        for key, why in undone.items()
        if why.startswith(completion.OTHER_CODE) and key[0] not in again
    }
    seconds = _took_s(study, [*changed, *_dependents(runs, changed, undone)])
    if seconds <= REPEATED_S:
        return None
    stages = list(dict.fromkeys(stage for stage, _ in changed))
    ways = "; ".join(f"RERUN={stage} or KEEP={stage}" for stage in stages)
    named = " and ".join(NOTEBOOKS[stage] for stage in stages)
    return (
        f"The code of {named} changed after {len(changed):,} runs were made. To make them and what "
        f"needs them again takes about {duration(seconds)}, so that make all starts nothing "
        f"without {ways}. RERUN makes them again; KEEP keeps them until that code changes again, "
        "and the report says so."
    )


def _dependents(runs: Iterable[Run], keys: Iterable[Key], undone: dict[Key, str]) -> list[Key]:
    """Find the finished runs that need one of `keys`, directly or through others."""
    needed, dependent = set(keys), []
    for run in runs:  # each comes after what it needs
        key = (run.stage, run.name)
        if key not in needed and not needed.isdisjoint(run.needs):
            needed.add(key)
            if key not in undone:
                dependent.append(key)
    return dependent


def _took_s(study: Study, keys: Iterable[Key]) -> float:
    """Sum the seconds that the runs took when they were made."""
    finished = (read_finished(place(study, *key).notebook) for key in keys)
    return sum(run.seconds for run in finished if run is not None)
