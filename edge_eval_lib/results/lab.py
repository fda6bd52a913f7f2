"""Runs made by hand, side by side: the lab's serving runs as if they were one study's.

Each serving run comes with the adaptation and compression that its weights came from, in the lab
or in a study's outputs. Where several adapters or runs would have one name, the size carries the
folder's hash: `135M 1a2b3c4d`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from edge_eval_lib import scraps
from edge_eval_lib.artefacts.lab import lab_root, lab_runs
from edge_eval_lib.economics.published import ADAPTER
from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import outputs_root
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.results.observations import Results, results_of
from edge_eval_lib.study import load_study

LAB = "lab"


def load_lab() -> Results:
    """Collect every serving run of the lab, each with the runs that made its weights.

    Settings such as prices are those of the newest run's study. UserError if there is no run.
    """
    places = lab_runs("serve")
    if not places:
        raise UserError(
            f"There is no serving run in {lab_root()}; run 03_serve by hand first, or 01 and 02 "
            "before it."
        )
    study = load_study(places[0].directory / "study.yaml")
    chains = [_chain(at.notebook) for at in places]
    labels = _labels(chains)
    runs: dict[str, dict[str, Any]] = {}
    for chain, label in zip(chains, labels, strict=True):
        for run in chain:
            row = run | {"size": label}
            # Runs of one adapter share it; its folder's hash marks others of the same name.
            runs.setdefault(f"{run['notebook']} {label}", row)
    study = study.model_copy(
        update={"name": LAB, "description": f"{len(places)} serving runs made by hand"}
    )
    table = pd.DataFrame(runs.values())
    failures = pd.DataFrame(columns=["stage", "run", "reason"])
    return results_of(study, table, failures, [], [])


def _chain(serve: Path) -> list[dict[str, Any]]:
    """A serving run and the runs that made its weights, as rows of scraps."""
    chain = [_row(serve)]
    for stage in ("compress", "adapt"):
        directory = _origin(chain[-1]) or Path(chain[-1]["notebook"]).parents[2]
        family, size, *adapter = (chain[0][column] for column in ADAPTER)
        name = "_".join([f"{family}-{size}", *adapter])
        notebook = directory / "runs" / stage / f"{name}.ipynb"
        if chain[0]["method"] == "none" or not scraps.is_complete(notebook):
            break
        chain.append(_row(notebook))
    return chain


def _origin(run: dict[str, Any]) -> Path | None:
    """The outputs that a run read from: a folder of the lab, or a study's."""
    path = run.get("executed_from")
    if not isinstance(path, str):
        return None
    parts = Path(path).parts
    return outputs_root().joinpath(*parts[: 2 if parts[0] == LAB else 1])


def _row(notebook: Path) -> dict[str, Any]:
    place = {"notebook": str(notebook), "stage": notebook.parent.name}
    folder = notebook.parents[2].name
    return scraps.read_scraps(notebook) | place | {"run": f"{notebook.stem} ({folder})"}


def _labels(chains: list[list[dict[str, Any]]]) -> list[str]:
    """The size of each chain's model, with folders' hashes where names would be the same.

    First that of the adapter, so that variants of one adapter stay together, then the run's own.
    """
    adapters: dict[tuple, set[str]] = {}
    for chain in chains:
        adapters.setdefault(tuple(chain[0][c] for c in ADAPTER), set()).add(_hash(chain[-1]))
    labels = []
    for chain in chains:
        run, own = chain[0], adapters[tuple(chain[0][c] for c in ADAPTER)]
        several = len(own) > 1 and run["method"] != "none"
        labels.append(f"{run['size']} {_hash(chain[-1])}" if several else run["size"])
    keys = [
        (label, *(chain[0][c] for c in [*VARIANT, "repetition"]))
        for label, chain in zip(labels, chains, strict=True)
    ]
    return [
        f"{key[0]} {_hash(chain[0])}" if keys.count(key) > 1 else key[0]
        for key, chain in zip(keys, chains, strict=True)
    ]


def _hash(run: dict[str, Any]) -> str:
    return Path(run["notebook"]).parents[2].name.rpartition("-")[2]
