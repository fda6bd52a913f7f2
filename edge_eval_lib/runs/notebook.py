"""What the stage notebooks share: which run this is, where its artefacts lie, its raw data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_eval_lib import compressions, redaction, scraps
from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import lab_directory, place, run_directory
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle.data import task_examples  # noqa: F401 - for notebooks, until they import it themselves
from edge_eval_lib.machine import host, nvml
from edge_eval_lib.models.weights import is_sound
from edge_eval_lib.runs import runner
from edge_eval_lib.study import Model, Run, Study, Variant, load_study

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Stage:
    """One run of a stage, as its notebook sees it. `model` is None where a run is for all."""

    study: Study
    run: Run
    model: Model | None

    @property
    def by_hand(self) -> bool:
        """Whether somebody runs the notebook, in JupyterLab: it then writes to the lab alone."""
        return "EDGE_EVAL_RUN" not in os.environ

    @property
    def outputs(self) -> Path:
        """Where the run's adapter or weights go: the study's outputs or, by hand, the lab."""
        return lab_directory(self.study) if self.by_hand else self.study.directory

    @property
    def raw(self) -> Path:
        """Where the run's raw data go."""
        return run_directory(self.study)

    @property
    def name(self) -> str:
        """The run's name, which its files carry."""
        return self.run.name

    @property
    def precisions(self) -> tuple[str, ...]:
        """What a compress run is to make."""
        return self.run.precisions

    def record(self, record: Any) -> None:
        """Hand over what the run measured, and end it: a notebook's last line.

        Args:
            record: A model of results/records.py; its `as_scraps()` are what tables read.
        """
        scraps.record_all(record.as_scraps())
        finish(self)

    def keep(self, name: str, table: pd.DataFrame) -> None:
        """Write raw data beside the notebook, as `RUN.name.parquet`."""
        name = f"{self.run.stage}_{self.run.name}.{name}" if self.by_hand else name
        if redaction.secrets():
            texts = table.select_dtypes(["object", "string"]).columns
            table = table.assign(**{c: table[c].map(redaction.redact) for c in texts})
        table.to_parquet(self.raw / f"{name}.parquet", index=False)

    def adapter_target(self) -> Path:
        """Where an adapt run writes its adapter."""
        return self.outputs / "artefacts" / "adapters" / self.run.name

    def weights_target(self, precision: str) -> Path:
        """Where a compress run writes its weights of a precision."""
        return self.outputs / "artefacts" / "models" / f"{self.run.name}_{precision}"

    def adapter(self) -> Path:
        """The adapter that a compress run merges, every byte checked.

        By hand, that of the lab if there is one, else the study's, which is only read; says which.
        """
        in_lab = self._in_lab("adapters", self.run.name)
        if in_lab is not None:
            return in_lab
        runner.require(self.study, "adapt", self.run.name)
        _require_whole_adapter(self.study, self.run.name)
        return self._told(adapter_directory(self.study, self.run.name))

    def weights(self, variant: Variant) -> Path:
        """The weights of a variant to load (`weights_to_serve`).

        By hand, those of the lab if there are some, else the study's, which are only read; says
        which.
        """
        in_lab = self._in_lab("models", str(variant))
        if in_lab is not None:
            return in_lab
        for needed in self.run.needs:
            runner.require(self.study, *needed)
        if not self.by_hand:
            return weights_to_serve(self.study, variant)
        directory = weights_directory(self.study, variant)
        if directory.is_dir() and _damage_of_weights(self.study, variant) is None:
            return self._told(directory)
        target = lab_directory(self.study) / "artefacts" / "models" / str(variant)
        return self._told(_rebuilt(self.study, variant, target))

    def _in_lab(self, kind: str, name: str) -> Path | None:
        found = lab_directory(self.study) / "artefacts" / kind / name
        return self._told(found) if self.by_hand and found.is_dir() else None

    def _told(self, directory: Path) -> Path:
        if self.by_hand:
            print(f"from {directory}")
        return directory

    def carried(self) -> Carried:
        """What a compress run need not make: weights that are whole, made by an earlier run with
        these settings from this adapter. Nothing, if that run made everything and is repeated."""
        at = place(self.study, self.run.stage, self.run.name)
        last = completion.last(at)
        nothing = Carried((), {}, [], [])
        if self.by_hand or last is None or not scraps.is_complete(at.notebook):
            return nothing
        same = last["settings"] == self.run.settings
        if not same or last["made_from"] != completion.made_from(self.study, self.run):
            return nothing
        kept = []
        for precision, artefact in zip(self.run.precisions, self.run.artefacts, strict=True):
            there = artefact in last["artefacts"]
            if there and completion.damage_of(at, last, f"{artefact}/", whole=True) is None:
                kept.append(precision)
        if set(kept) == set(self.run.precisions):
            return nothing
        recorded = scraps.read_scraps(at.notebook)
        own = tuple(f"{precision}_" for precision in kept)
        power = at.notebook.with_name(f"{at.name}.power.parquet")
        return Carried(
            tuple(kept),
            {name: value for name, value in recorded.items() if name.startswith(own)},
            [row for row in recorded.get("artefacts", []) if row["precision"] in kept],
            [power] if power.is_file() else [],
        )


@dataclass(frozen=True)
class Carried:
    """What a compress run takes over of the one before it: the weights of `precisions` stay, and
    so does what making them took: `scraps`, `artefacts` (rows of the table), power samples."""

    precisions: tuple[str, ...]
    scraps: dict[str, Any]
    artefacts: list[dict[str, Any]]
    power: list[Path]

    def with_power(self, samples: pd.DataFrame) -> pd.DataFrame:
        """The power samples of the windows that were carried over, then `samples`."""
        import pandas as pd

        earlier = [pd.read_parquet(path) for path in self.power]
        found = [part for part in (*earlier, samples) if len(part)]
        return pd.concat(found, ignore_index=True) if found else samples


def begin(stage: str, study: str, **parameters: Any) -> Stage:
    """Find the run that a notebook's parameters mean and record which one it is.

    `parameters` are those of the notebook beside `study`: model, task, method, precision,
    repetition. Raises UserError for a run that the study does not hold.
    """
    repetitions = max(parameters.get("repetition", 1), 1)
    loaded = load_study(study)
    loaded = loaded.with_repetitions(
        parameters.get("repetitions") or max(loaded.repetitions, repetitions)
    )
    run = loaded.run(stage, _run_name(stage, parameters))
    told = os.environ.get("EDGE_EVAL_SETTINGS_HASH", run.settings_hash)
    if stage != "score" and told != run.settings_hash:  # a score's settings name all repetitions
        raise UserError(f"{loaded.path} changed while {stage} {run.name} was waiting; start again.")
    model = loaded.model(parameters["model"]) if "model" in parameters else None
    identity = {"stage": stage, "run": run.name, "settings_hash": told}
    identity |= {"started": datetime.now(UTC).isoformat(timespec="seconds")}
    if model:
        identity |= {"family": model.family, "size": model.size}
        identity |= {name: value for name, value in parameters.items() if name != "model"}
    scraps.record_all(identity)
    scraps.record("provenance", host.provenance(loaded.measured_hash))
    found = Stage(loaded, run, model)
    if found.by_hand:
        runner.hold_device(loaded, run)
    return found


def _run_name(stage: str, parameters: dict[str, Any]) -> str:
    if "model" not in parameters:
        return stage
    name = "_".join(parameters[key] for key in ("model", "task", "method"))
    if "precision" in parameters:
        name = f"{name}_{parameters['precision']}"
    if "repetition" in parameters:
        name = f"{name}_r{parameters['repetition']:02d}"
    return name


def finish(stage: Stage) -> None:
    """Record the state that the run left the machine in, and that it is complete."""
    after = host.describe()
    scraps.record("temperature_after_c", [gpu.temperature_c for gpu in after.gpus])
    scraps.complete()
    runner.release_device()


def adapter_directory(study: Study, adapter: str) -> Path:
    """Where the adapter called `family-size_task_method` lies."""
    return study.directory / "artefacts" / "adapters" / adapter


def weights_directory(study: Study, variant: Variant) -> Path:
    """Where a variant's weights lie; for the unadapted base, its model directory."""
    if variant.method == "none":
        from edge_eval_lib.models.load import model_directory

        return model_directory(study.model(variant.model))
    return study.directory / "artefacts" / "models" / str(variant)


def weights_to_serve(study: Study, variant: Variant) -> Path:
    """As `weights_directory`, every byte checked. Weights that were deleted to save disk, or are
    damaged, are built again first."""
    directory = weights_directory(study, variant)
    if damage := _damage_of_weights(study, variant):
        print(f"The weights of {variant} are damaged ({damage}); they are built again.")
        shutil.rmtree(directory)
    sound = variant.method == "none" or is_sound(directory)
    return directory if sound else _rebuilt(study, variant)


def _damage_of_weights(study: Study, variant: Variant) -> str | None:
    """What is wrong with a variant's weights, every byte read; None also if they are not there."""
    at = place(study, "compress", variant.adapter)
    record = None if variant.method == "none" else completion.read(at)
    if record is None:
        return None
    return completion.damage_of(at, record, f"{completion.WEIGHTS}{variant}/", whole=True)


def _rebuilt(study: Study, variant: Variant, target: Path | None = None) -> Path:
    """Weights built again, in their place or in `target`.

    In a process of its own, unmeasured: a cold load needs one without torch.
    """
    command = [sys.executable, "-m", "edge_eval_lib", "rebuild", str(study.path), str(variant)]
    command += [] if target is None else ["--target", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise UserError(lines[-1] if lines else f"Building the weights of {variant} stopped.")
    return target or weights_directory(study, variant)


def _require_whole_adapter(study: Study, adapter: str) -> None:
    at = place(study, "adapt", adapter)
    completion.require_whole(at, f"artefacts/adapters/{adapter}/", f"The adapter {adapter}")


def rebuild_weights(study: Study, variant_name: str, target: Path | None = None) -> None:
    """Merge a variant's adapter into its base again, and quantise the sum as its run did.

    The weights take their place among the study's artefacts, or go to `target`.
    """
    from edge_eval_lib.lifecycle import compress
    from edge_eval_lib.models.load import model_directory

    variant = {str(v): v for v in study.variants()}.get(variant_name)
    if variant is None:
        raise UserError(f"study {study.name} has no variant {variant_name!r}.")
    adapter = adapter_directory(study, variant.adapter)
    if not adapter.is_dir():
        raise UserError(
            f"The adapter {variant.adapter} is missing; "
            f"`make all STUDY={study.argument} RERUN=adapt`."
        )
    _require_whole_adapter(study, variant.adapter)
    directory = target or weights_directory(study, variant)
    base = model_directory(study.model(variant.model))
    if compressions.is_merged(variant.precision):
        made = compress.merge(base, adapter, directory)
    else:
        directory.parent.mkdir(parents=True, exist_ok=True)
        ran = place(study, "compress", variant.adapter).notebook
        recorded = scraps.read_scraps(ran) if ran.is_file() else {}
        with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
            merged = compress.merge(base, adapter, Path(scratch) / "fp16")
            compress.require_answers(merged)
            made = compress.quantize_for_study(
                study,
                variant.task,
                merged.directory,
                variant.precision,
                directory,
                recorded.get(f"{variant.precision}_quantization"),
            )
    compress.require_answers(made)
    compress.verify([made], base)
    if target is None:
        completion.note_rebuilt(study, variant.adapter, str(variant))


def record_outcome(outcome: Any) -> None:
    """Record every field of a dataclass under its own name."""
    scraps.record_all(asdict(outcome))


def instruction_set() -> str:
    """Where the arithmetic runs: the GPU's compute capability, or the CPU's vector instructions."""
    here = host.describe()
    visible = nvml.visible_indices()
    if visible:
        gpu = next(gpu for gpu in here.gpus if gpu.index == visible[0])
        return f"CUDA compute capability {gpu.compute_capability}"
    return ", ".join(here.cpu_flags)


def gpu_count() -> int:
    """How many GPUs this run was given."""
    return len(nvml.visible_indices())
