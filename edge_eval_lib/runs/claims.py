"""Whose a study's outputs are: the study file that made them, and the `make` at work on them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator

from edge_eval_lib.artefacts.place import read_json, write_atomically
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.errors import UserError
from edge_eval_lib.machine.declared import load_hardware_file
from edge_eval_lib.runs.devices import owner_of, try_lock
from edge_eval_lib.study import Study, find_beside, load_study


def open_study(path_or_name: str, repetitions: int | None = None) -> Study:
    """Load a study with the repetitions that its outputs are to have.

    These are the given ones, else those asked for last time (so that what was repeated stays in
    the report), else the study file's own. A slip in its prices or in the declared hardware is
    refused here, before anything runs.
    """
    study = load_study(path_or_name, repetitions)
    load_price_book(find_beside(study.path, "prices.yaml"))
    load_hardware_file()
    last = read_json(study.directory / "study.json").get("repetitions")
    return study.with_repetitions(last) if last and repetitions is None else study


@contextlib.contextmanager
def claimed(study: Study, repetitions: int | None = None) -> Iterator[None]:
    """Work on a study's outputs, alone, and note which study file they belong to.

    UserError if another invocation does, they are another study's, or they cannot be written.
    """
    with locked(study):
        made_by = read_json(study.directory / "study.json")
        path, measured = str(study.path), study.with_repetitions(1).measured_hash
        known = {"path", "measured_hash"} <= made_by.keys()
        if known and made_by["path"] != path and made_by["measured_hash"] != measured:
            raise UserError(
                f"{study.directory} was made by {made_by['path']}, which measures something else "
                f"than {path}; give one of the two studies another name."
            )
        kept = repetitions or made_by.get("repetitions")
        content = {"path": path, "measured_hash": measured, "repetitions": kept}
        if content != made_by:
            try:
                write_atomically(study.directory / "study.json", content)
            except OSError as error:
                raise _unwritable(study, error) from error
        yield


@contextlib.contextmanager
def locked(study: Study) -> Iterator[None]:
    """One invocation a study at a time; UserError if another one is at work on it."""
    file = study.directory / ".lock"
    try:
        study.directory.mkdir(parents=True, exist_ok=True)
        lock = try_lock(file, str(os.getpid()))
    except OSError as error:
        raise _unwritable(study, error) from error
    if lock is None:
        raise UserError(
            f"Another `make` is at work on {study.name} (process {owner_of(file)}); wait for it "
            "or stop it."
        )
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(no_space(study)) from error
        raise
    finally:
        lock.release()


def remove_outputs(study: Study) -> str:
    """Delete what a study's runs made; says what was deleted."""
    if not study.directory.is_dir():
        return f"There is nothing to delete: no {study.directory}."
    with locked(study):
        shutil.rmtree(study.directory)
    return f"Deleted: {study.directory}"


def no_space(study: Study) -> str:
    """Say that the disk of a study's outputs is full."""
    return f"There is no space left on the disk of {study.directory}."


def _unwritable(study: Study, error: OSError) -> UserError:
    if error.errno == errno.ENOSPC:
        return UserError(no_space(study))
    return UserError(f"{study.directory} cannot be written: {error.strerror}.")
