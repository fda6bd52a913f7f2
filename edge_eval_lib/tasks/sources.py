"""Where a task's rows come from: the shipped files, a hub, or a local copy of a hub set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from edge_eval_lib import tasks
from edge_eval_lib.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class HubSet:
    """One dataset repository, pinned, and the splits that serve training and evaluation."""

    repository: str
    revision: str
    train_split: str
    evaluation_split: str


def shipped_bytes(name: str) -> bytes:
    """Read a file of `data/` beside the tasks' files."""
    folders = [Path(folder) / "data" for folder in tasks.__path__]
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    raise UserError(f"The task data {name} is missing in {' and '.join(map(str, folders))}.")


def shipped_rows(name: str) -> list[Row]:
    """Read the rows of a JSONL file of `data/`."""
    return [json.loads(line) for line in shipped_bytes(name).decode().splitlines()]


def hub_rows(hub_set: HubSet, split: str, seed: int) -> Iterator[Row]:
    """Yield rows of a hub split, shuffled within a buffer, fetched only as far as they are read."""
    from datasets import load_dataset

    try:
        rows = load_dataset(
            hub_set.repository,
            revision=hub_set.revision,
            split=split,
            streaming=True,
            trust_remote_code=False,
        )
        yield from rows.shuffle(seed=seed, buffer_size=10_000)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"The data set {hub_set.repository} cannot be read from the hub ({_one_line(error)}); "
            "check the network, or give the path of a local copy as the source."
        ) from error


def local_files(path: Path, hub_set: HubSet) -> dict[str, Path]:
    """Return the JSONL file of each split of a local copy; a single file holds both splits.

    A directory must hold `<train_split>.jsonl` and `<evaluation_split>.jsonl`.
    """
    if path.is_file():
        return {hub_set.train_split: path, hub_set.evaluation_split: path}
    split_files = {
        split: path / f"{split}.jsonl" for split in (hub_set.train_split, hub_set.evaluation_split)
    }
    for file in split_files.values():
        if not file.is_file():
            raise UserError(
                f"The task data {file} does not exist; a source is 'embedded', 'hub', or the path "
                f"of a directory with {hub_set.train_split}.jsonl and "
                f"{hub_set.evaluation_split}.jsonl."
            )
    return split_files


def local_rows(file: Path) -> Iterator[Row]:
    """Yield rows of a local JSONL file in file order, read only as far as they are asked for."""
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = orjson.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"{type(row).__name__} in line {number}")
                yield row
    except orjson.JSONDecodeError as error:
        raise _unreadable(file, f"line {number}: {error.msg}") from error
    except (OSError, ValueError) as error:
        raise _unreadable(file, str(error)) from error


def _unreadable(file: Path, why: str) -> UserError:
    return UserError(
        f"The task data {file} could not be read as JSONL ({why}); each line must be one JSON "
        "object."
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
