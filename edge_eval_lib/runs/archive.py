"""A study's outputs as one zip file, so that a session that ends can go on elsewhere."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from edge_eval_lib.artefacts import completion
from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import outputs_root
from edge_eval_lib.study import Study

# Left out: what is built again when it is needed (weights), and what belongs to one machine.
LEFT_OUT = ("artefacts/models", "running", "lab", ".snakemake", ".lock")


def pack(study: Study, target: Path) -> Path:
    """Zip the study's outputs, its weights left out; returns `target`. UserError if there are none.

    The file appears when it is whole: a session that ends meanwhile leaves the last one.
    """
    if not (study.directory / "runs").is_dir():
        raise UserError(f"{study.directory} holds no run yet; run the study first.")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as file:
            for path in sorted(study.directory.rglob("*")):
                inside = path.relative_to(study.directory)
                if path.is_file() and not any(inside.is_relative_to(part) for part in LEFT_OUT):
                    file.write(path, Path(study.name) / inside)
        return temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def unpack(study: Study, source: Path) -> int:
    """Take over outputs of the study from a zip file, or from a directory it was unpacked into.

    Returns how many finished runs came. UserError if the study has runs here, or none there.
    """
    if (study.directory / "runs").is_dir():
        raise UserError(
            f"{study.directory} holds runs already; move it away, or set EDGE_EVAL_OUTPUTS to "
            "another directory."
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = source
        if not source.is_dir():
            folder = Path(scratch)
            try:
                with zipfile.ZipFile(source) as file:
                    file.extractall(folder)
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(f"{source} cannot be unpacked: {error}.") from error
        packed = next((p.parent for p in sorted(folder.rglob(f"{study.name}/runs"))), None)
        if packed is None:
            raise UserError(f"{source} holds no runs of the study {study.name}.")
        outputs_root().mkdir(parents=True, exist_ok=True)
        shutil.copytree(packed, study.directory, dirs_exist_ok=True)
    runs = study.runs()
    return len(runs) - len(completion.survey(study, runs))
