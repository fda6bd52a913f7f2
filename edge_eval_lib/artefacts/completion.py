"""Whether a run is done: the record of what it was made with and from, and of what it made.

A record lies in `settings/STAGE/NAME.json` below a study's outputs:

- `settings`: everything that the run's figures depend on
- `code`: identifies the code of the notebook that was executed (artefacts/source.py)
- `made_from`: by `stage/name` of a run that it needed, a digest of what it read of that run
- `artefacts`: the directories and files that it wrote beside its notebook
- `products`: by path, the size in bytes and the SHA-256 of every file that it made

A run is done while its record holds. Content decides, never the date of a file: a copy, another
clock or a touched file changes nothing; a cut, changed or missing file makes its run again, and
so does another adapter or other weights than it was made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from edge_eval_lib.artefacts.place import Key, Place, place, read_json, write_atomically
from edge_eval_lib.artefacts.source import KEPT, accepted_code, code_of, code_of_stage, kept_code
from edge_eval_lib.errors import UserError
from edge_eval_lib.study import (
    EXPERIMENT,
    NOTEBOOKS,
    STAGES,
    Run,
    Study,
    adapter_path,
    hash_of,
    weights_path,
)

if TYPE_CHECKING:
    import pandas as pd

Record = dict[str, Any]
UNMADE = "was not made"
DAMAGED = "is damaged: "
OTHER_CODE = "was made by other code in "
# What a survey reads to its end; of larger files it takes the size, and of weights the header.
SMALL_BYTES = 16 * 2**20
# They are made of the runs that there are, and made again at little cost.
COLLECTING = ("score", "synthesis", "paper", EXPERIMENT)
WEIGHTS = weights_path("")


# --- one record -------------------------------------------------------------------------------


def read(at: Place, outdated: bool = False) -> Record | None:
    """Read a finished run's record, an `outdated` one too; None if none can be read."""
    for path in (at.settings, at.outdated) if outdated else (at.settings,):
        record = read_json(path)
        if {"settings", "made_from", "artefacts", "products"} <= record.keys():
            return record
    return None


def write(study: Study, run: Run, before: Record | None = None) -> None:
    """Record a run whose files are all in their places.

    `before` is the record of the notebook that this one replaces: of weights that were deleted to
    save disk, and were not made again, it still says what they were.
    """
    at = place(study, run.stage, run.name)
    record = {
        "settings": run.settings,
        "code": code_of(at.notebook) if run.stage in STAGES else None,
        "made_from": made_from(study, run),
        "artefacts": list(run.artefacts),
    }
    products: dict[str, Any] = {}
    for path in (at.notebook, *raw_files(at)):
        products |= _files(at.directory, path)
    same = before is not None and before["made_from"] == record["made_from"]
    kept = before["products"] if before is not None and same else {}
    for artefact in run.artefacts:
        files = _files(at.directory, at.directory / artefact)
        if not files:
            files = _below(kept, artefact)
        products |= files
    write_atomically(at.settings, record | {"products": products})
    at.outdated.unlink(missing_ok=True)


def _files(root: Path, path: Path) -> dict[str, list[Any]]:
    """Size and SHA-256 of a file, or of every file below a directory, by path below `root`."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(f.relative_to(root)): [f.stat().st_size, sha256(f)] for f in files}


def raw_files(at: Place) -> list[Path]:
    """List a run's raw data; a glob would take three times as long among thousands of runs."""
    folder, name = at.notebook.parent, f"{at.name}."
    files = os.listdir(folder)
    return [folder / f for f in sorted(files) if f.startswith(name) and f.endswith(".parquet")]


def sha256(path: Path) -> str:
    """Compute the file's SHA-256, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _below(products: dict[str, list[Any]], part: str) -> dict[str, list[Any]]:
    """Select the products that lie at or below `part`, or whose path begins with it."""
    return {path: file for path, file in products.items() if path.startswith(part)}


def digest(products: dict[str, list[Any]], part: str) -> str | None:
    """Identify the content of the products below `part`; None if there are none."""
    digests = sorted((path, file[1]) for path, file in _below(products, part).items())
    return hash_of(digests) if digests else None


def withdraw(at: Place, keep: bool = True) -> None:
    """Have a run made again. With `keep`, what is still good of it may be taken over."""
    if at.settings.is_file() and keep:
        at.settings.rename(at.outdated)
    else:
        at.outdated.parent.mkdir(parents=True, exist_ok=True)
        at.outdated.write_bytes(b"{}")
        at.settings.unlink(missing_ok=True)


def set_aside(at: Place) -> None:
    """Take a damaged run out of the finished ones, and have it made again."""
    withdraw(at)
    at.failed_notebook.parent.mkdir(parents=True, exist_ok=True)
    if at.notebook.is_file():
        at.notebook.rename(at.failed_notebook)


# --- what a run was made from -----------------------------------------------------------------


def made_from(study: Study, run: Run) -> dict[str, str | None]:
    """Return, by `stage/name` of each run that `run` needs, a digest of what it reads of it.

    None where that run has no record, or made nothing that is read.
    """
    digests = dict.fromkeys(map("/".join, run.needs))
    for key in run.needs:
        record, part = read(place(study, *key)), _part_read(run, key)
        if record is not None:
            digests["/".join(key)] = _digest_read(record, key, part)
        elif run.stage not in COLLECTING:
            files = _files(study.directory, study.directory / part)
            digests["/".join(key)] = digest(files, part)
    return digests


def _digest_read(record: Record, key: Key, part: str) -> str | None:
    """Identify what is read of a run; its own files, if it made none of that kind."""
    return digest(record["products"], part) or digest(record["products"], _own(key))


def _own(key: Key) -> str:
    return f"runs/{key[0]}/{key[1]}."


def _part_read(run: Run, needed: Key) -> str:
    """Name where lies what `run` reads of a run that it needs, below the study's outputs."""
    name = needed[1]
    if run.stage == "compress":
        return f"{adapter_path(name)}/"
    if run.stage in ("serve", "harness"):
        return f"{WEIGHTS}{name}_{run.parameters['precision']}/"
    return _own(needed)


def note_rebuilt(study: Study, adapter: str, weights: str) -> None:
    """Take weights that were built again from their adapter into the record of their run.

    Runs that were made from the former weights stay done: what they served was the same adapter,
    merged and quantised in the same way, although another machine may round otherwise.
    """
    at = place(study, "compress", adapter)
    record = read(at)
    if record is None:
        return
    part = f"{weights_path(weights)}/"
    former = digest(record["products"], part)
    kept = {p: file for p, file in record["products"].items() if not p.startswith(part)}
    products = kept | _files(at.directory, at.directory / part)
    if former is not None and digest(products, part) != former:
        earlier = record.setdefault("earlier", {})
        earlier[part] = sorted({*earlier.get(part, []), former})
    write_atomically(at.settings, record | {"products": products})


# --- what is left to do -----------------------------------------------------------------------


def survey(study: Study, runs: Iterable[Run]) -> dict[Key, str]:
    """Find those of `runs` that are not done, in their order, and why in a few words.

    Sizes of all files are compared, headers of weights, and the content of what is small. A run
    whose needed run is not done is judged by its own files alone: whether it was made from the
    same is known when that one is made. (What collects others' figures is not done then.)
    """
    undone: dict[Key, str] = {}
    accepted = accepted_code(study)
    record_at = cache(lambda key: read(place(study, *key)))

    def record_of(key: Key) -> Record | None:
        return None if key in undone else record_at(key)

    for run in runs:
        if why := _why_undone(study, run, record_of, accepted):
            undone[run.stage, run.name] = why
    return undone


def _why_undone(
    study: Study,
    run: Run,
    record_of: Callable[[Key], Record | None],
    accepted: dict[str, set[str | None]],
) -> str | None:
    record = record_of((run.stage, run.name))
    if record is None:
        return UNMADE
    if record["settings"] != orjson.loads(run.settings_json):
        return "was made with other settings"
    if not set(run.artefacts) <= set(record["artefacts"]):
        return "lacks a precision"
    if run.stage in accepted and record.get("code") not in accepted[run.stage]:
        return f"{OTHER_CODE}{NOTEBOOKS[run.stage]}"
    for key in run.needs:
        needed = record_of(key)
        if needed is None and run.stage not in COLLECTING:
            continue
        part = _part_read(run, key)
        known = [None] if needed is None else [_digest_read(needed, key, part)]
        known += (needed or {}).get("earlier", {}).get(part, [])
        if record["made_from"].get("/".join(key)) not in known:
            return f"was made from another {key[0]} run"
    if set(record["made_from"]) != {"/".join(key) for key in run.needs}:
        return "was made from other runs"
    damage = damage_of(place(study, run.stage, run.name), record)
    return None if damage is None else f"{DAMAGED}{damage}"


def damage_of(at: Place, record: Record, part: str = "", whole: bool = False) -> str | None:
    """Say what is wrong with a run's files below `part`; None if they are as they were made.

    With `whole`, every byte is read. Weights of which nothing is there were deleted to save disk,
    which is no damage.
    """
    for path, (size, expected) in _below(record["products"], part).items():
        file = at.directory / path
        try:
            actual = file.stat().st_size
        except OSError:
            if path.startswith(WEIGHTS) and not file.parent.is_dir():
                continue
            return f"{path} is missing"
        if actual != size:
            return f"{path} has {actual:,} bytes, not {size:,}"
        if file.suffix == ".safetensors" and not safetensors_whole(file):
            return f"{path} is not a whole safetensors file"
        if (whole or size <= SMALL_BYTES) and sha256(file) != expected:
            return f"{path} is not what was written"
    return None


def safetensors_whole(file: Path) -> bool:
    """Check that a safetensors file is as long as its header says.

    The format: 8 bytes with the header's length (little-endian), the header as JSON with every
    tensor's `data_offsets`, then the data (huggingface.co/docs/safetensors).
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            size = os.fstat(opened.fileno()).st_size
            if length + 8 > size:
                return False
            header = orjson.loads(opened.read(length))
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0) == size
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False


def adopt(study: Study, run: Run) -> bool:
    """Record a finished run that has no record; whether there was one.

    Its process was killed before it could write it, the file was damaged, or an older version of
    this project made the run. Files that are cut, as their format shows, are not adopted. A record
    of a version that noted no code is taken to be of the code that there is now.
    """
    from edge_eval_lib import scraps

    at = place(study, run.stage, run.name)
    record = read(at)
    if record is not None and "code" not in record and run.stage in STAGES:
        write_atomically(at.settings, record | {"code": code_of_stage(run.stage)})
    if run.stage in COLLECTING or record or at.outdated.is_file() or not at.notebook.is_file():
        return False
    try:
        recorded = scraps.read_scraps(at.notebook)
    except (OSError, ValueError):
        return False
    complete = recorded.get(scraps.RUN_COMPLETE) is True
    if not complete or recorded.get("settings_hash") != run.settings_hash:
        return False
    raw = raw_files(at)
    artefacts = [p for a in run.artefacts for p in (at.directory / a).rglob("*.safetensors")]
    if not all(map(_parquet_whole, raw)) or not all(map(safetensors_whole, artefacts)):
        return False
    at.settings.parent.mkdir(parents=True, exist_ok=True)
    write(study, run)
    return True


def _parquet_whole(file: Path) -> bool:
    """Check that a file begins and ends as Parquet does (parquet.apache.org/docs/file-format)."""
    content = file.read_bytes()
    return content[:4] == content[-4:] == b"PAR1"


# --- code that changed ------------------------------------------------------------------------


def keep_code(study: Study, stage: str) -> int:
    """Keep a stage's runs until its notebook's code changes again; how many runs that concerns.

    Runs that are still to be made again for that reason are among them.
    """
    code, earlier, count = code_of_stage(stage), set(), 0
    for run in study.runs():
        at = place(study, run.stage, run.name)
        record = read(at, outdated=True) if run.stage == stage else None
        if record is None or record.get("code") in (None, code):
            continue
        if record["settings"] == orjson.loads(run.settings_json) and at.notebook.is_file():
            earlier.add(record["code"])
            count += 1
            if not at.settings.is_file():
                at.outdated.rename(at.settings)
    if count:
        kept = {"code": code, "earlier": sorted(earlier), "runs": count}
        kept["at"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_atomically(study.directory / KEPT, kept_code(study) | {stage: kept})
    return count


# --- reading what another run made ------------------------------------------------------------


def require_whole(at: Place, part: str, what: str) -> None:
    """Read every byte of a run's products below `part`; UserError if they are not as made.

    The run is then made again by the next `make all`.
    """
    record = read(at)
    if record is not None and (damage := damage_of(at, record, part, whole=True)):
        set_aside(at) if part.startswith("runs/") else withdraw(at)
        raise UserError(f"{what} is damaged ({damage}); make all makes {at.stage} {at.name} again.")


def read_raw(notebook: str | Path, what: str, columns: list[str] | None = None) -> pd.DataFrame:
    """Read the raw data `RUN.what.parquet` beside a published notebook.

    UserError if they are missing or damaged: their run is then made again by the next `make all`.
    """
    import pandas as pd
    import pyarrow

    notebook = Path(notebook)
    at = Place(notebook.parents[2], notebook.parent.name, notebook.stem)
    path = notebook.with_suffix(f".{what}.parquet")
    problem = "missing"
    if path.is_file():
        require_whole(at, f"runs/{at.stage}/{path.name}", path.name)
        try:
            return pd.read_parquet(path, columns=columns)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            problem = f"damaged ({str(error).splitlines()[0]})"
    with contextlib.suppress(OSError):
        set_aside(at)
    raise UserError(f"{path.name} is {problem}; make all makes {at.stage} {at.name} again.")
