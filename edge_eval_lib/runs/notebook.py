"""What the stage notebooks share: which run this is, where its artefacts lie, its raw data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_eval_lib import compressions, redaction, scraps
from edge_eval_lib.artefacts import completion, lab
from edge_eval_lib.artefacts.place import place
from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import host, nvml
from edge_eval_lib.paths import outputs_root
from edge_eval_lib.runs import devices, runner, weights
from edge_eval_lib.study import (
    Model,
    Run,
    Study,
    Variant,
    adapter_path,
    load_study,
    trial,
    weights_path,
)

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
    def name(self) -> str:
        """The run's name, which its files carry."""
        return self.run.name

    @property
    def precisions(self) -> tuple[str, ...]:
        """What a compress run is to make."""
        return self.run.precisions

    @property
    def outputs(self) -> Path:
        """Where the run's adapter or weights go: the study's outputs or, by hand, the lab."""
        return lab.running_folder() if self.by_hand else self.study.directory

    @property
    def raw(self) -> Path:
        """Where the run's raw data go, from where the runner publishes them."""
        given = os.environ.get("EDGE_EVAL_RUN_DIRECTORY")
        directory = Path(given) if given else self.outputs / "runs" / self.run.stage
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def keep(self, name: str, table: pd.DataFrame) -> None:
        """Write raw data beside the notebook, as `RUN.name.parquet`."""
        name = f"{self.name}.{name}" if self.by_hand else name  # the runner adds its name
        if redaction.secrets():
            texts = table.select_dtypes(["object", "string"]).columns
            table = table.assign(**{c: table[c].map(redaction.redact) for c in texts})
        table.to_parquet(self.raw / f"{name}.parquet", index=False)

    def record(self, record: Any) -> None:
        """Hand over what the run measured, and end it: a notebook's last line.

        By hand, the run gets a folder of its own in the lab (artefacts/lab.py); says which.

        Args:
            record: A model of results/records.py; its `as_scraps()` are what tables read.
        """
        # JupyterLab hides what a cell says after 50 outputs, such as where the run is kept.
        scraps.record_all(record.as_scraps(), shown=not self.by_hand)
        finish(self)

    def adapter_target(self) -> Path:
        """Return where an adapt run writes its adapter."""
        return self.outputs / adapter_path(self.name)

    def weights_target(self, precision: str) -> Path:
        """Return where a compress run writes its weights of a precision."""
        return self.outputs / weights_path(f"{self.name}_{precision}")

    def adapter(self) -> Path:
        """Return the adapter that a compress run merges, every byte checked.

        By hand, the newest of the lab if there is one, else the study's, which is only read; says
        which.
        """
        newest = lab.lab_runs("adapt", self.name) if self.by_hand else []
        if newest:
            return self._named(newest[0].directory / adapter_path(self.name))
        self._require("adapt", self.name)
        weights.require_whole_adapter(self.study, self.name)
        return self._named(weights.adapter_directory(self.study, self.name))

    def weights(self, variant: Variant) -> Path:
        """Return the weights of a variant to load (`runs.weights.weights_to_serve`).

        By hand, those of the lab that were made last, if there is an adapter or weights of it
        there, else the study's, which are only read; says which.
        """
        if self.by_hand and variant.method != "none":
            made = _newest_in_lab(variant)
            if made is not None:
                return self._named(made)
        for needed in self.run.needs:
            self._require(*needed)
        if not self.by_hand or variant.method == "none":
            return weights.weights_to_serve(self.study, variant)
        directory = weights.weights_directory(self.study, variant)
        if directory.is_dir() and weights.damage_of_weights(self.study, variant) is None:
            return self._named(directory)
        return self._named(
            weights.rebuilt(self.study, variant, self.outputs / weights_path(variant))
        )

    def _require(self, stage: str, name: str) -> None:
        """Have a run that this one needs, executed first if it is one of the study's file."""
        at = place(self.study, stage, name)
        of_file = load_study(self.study.path)
        in_file = self.study.name == of_file.name and (stage, name) in {
            (run.stage, run.name) for run in of_file.runs()
        }
        if self.by_hand and not at.notebook.is_file() and not in_file:
            number, act = {"adapt": ("01", "adapted"), "compress": ("02", "compressed")}[stage]
            raise UserError(
                f"{name} was not {act} yet, in the lab or in {self.study.directory}: run notebook "
                f"{number} with this model first."
            )
        runner.require(self.study, stage, name)

    def _named(self, directory: Path) -> Path:
        """Say and record what a run by hand reads: part of what it executes."""
        if self.by_hand:
            print(f"from {directory}")
            scraps.record("executed_from", os.path.relpath(directory, outputs_root()))
        return directory

    def carried(self) -> Carried:
        """Return what a compress run need not make.

        Weights that are whole, made by an earlier run with these settings from this adapter.
        Nothing, if that run made everything and is repeated.
        """
        at = place(self.study, self.run.stage, self.run.name)
        last = completion.read(at, outdated=True)
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
        made = {p for precision in kept for p in compressions.path(precision)}
        own = tuple(f"{precision}_" for precision in made)
        power = at.notebook.with_name(f"{at.name}.power.parquet")
        return Carried(
            tuple(kept),
            {name: value for name, value in recorded.items() if name.startswith(own)},
            [row for row in recorded.get("artefacts", []) if row["precision"] in kept],
            [power] if power.is_file() else [],
        )


@dataclass(frozen=True)
class Carried:
    """What a compress run takes over of the one before it.

    The weights of `precisions` stay, and so does what making them took: `scraps`, `artefacts` (rows
    of the table), power samples.
    """

    precisions: tuple[str, ...]
    scraps: dict[str, Any]
    artefacts: list[dict[str, Any]]
    power: list[Path]

    def with_power(self, samples: pd.DataFrame) -> pd.DataFrame:
        """Return the power samples of the windows that were carried over, then `samples`."""
        import pandas as pd

        earlier = [pd.read_parquet(path) for path in self.power]
        parts = [part for part in (*earlier, samples) if len(part)]
        return pd.concat(parts, ignore_index=True) if parts else samples


def begin(stage: str, study: str, **parameters: Any) -> Stage:
    """Find the run that a notebook's parameters mean, and record which one it is.

    By hand, in JupyterLab, `model` may be any: a model of the study, a name of params/models.yaml,
    a directory, or a repository of the hub. The machine is then held until the run ends.

    Args:
        stage: `adapt`, `compress`, `serve`, ...
        study: A name in params/ or a path.
        **parameters: Those of the notebook beside `study`: model, task, method, precision,
            repetition.

    Returns:
        The run; end it with `record`.

    Raises:
        UserError: For a run that the study does not hold.
    """
    loaded = load_study(study)
    by_hand = "EDGE_EVAL_RUN" not in os.environ
    scraps.recorded.clear()
    if by_hand:
        lab.remove_abandoned()
        if "model" in parameters:
            chosen = {k: parameters[k] for k in ("task", "method", "precision") if k in parameters}
            loaded, model = trial(loaded, parameters["model"], **chosen)
            parameters["model"] = model.name
    name = _run_name(stage, parameters)
    if parameters.get("repetitions"):
        loaded = loaded.with_repetitions(parameters["repetitions"])
    elif name not in {run.name for run in loaded.runs()}:  # one more than the file says
        loaded = loaded.with_repetitions(max(parameters.get("repetition", 1), loaded.repetitions))
    run = loaded.run(stage, name)
    settings_hash = os.environ.get("EDGE_EVAL_SETTINGS_HASH", run.settings_hash)
    # A score's settings name all repetitions.
    if stage != "score" and settings_hash != run.settings_hash:
        raise UserError(f"{loaded.path} changed while {stage} {run.name} was waiting; start again.")
    identity: dict[str, Any] = {"stage": stage, "run": run.name, "settings_hash": settings_hash}
    identity["started"] = datetime.now(UTC).isoformat(timespec="seconds")
    begun = Stage(loaded, run, loaded.model(parameters["model"]) if "model" in parameters else None)
    if begun.model is not None:
        identity |= {"family": begun.model.family, "size": begun.model.size}
        identity |= {name: value for name, value in parameters.items() if name != "model"}
    scraps.record_all(identity)
    scraps.record("provenance", host.provenance(loaded.measured_hash))
    if by_hand:
        devices.hold_device(loaded, run)
    return begun


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
    devices.release_device()
    if stage.by_hand:
        at = lab.publish(stage.study, stage.run, scraps.recorded)
        print(f"kept in {at.directory}")


def _newest_in_lab(variant: Variant) -> Path | None:
    """Return the variant's weights that the lab made last; UserError for an adapter without."""
    adapted = lab.lab_runs("adapt", variant.adapter)
    made = [
        at
        for at in lab.lab_runs("compress", variant.adapter)
        if (at.directory / weights_path(variant)).is_dir()
    ]
    if adapted and (not made or lab.ended(made[0]) < lab.ended(adapted[0])):
        raise UserError(
            f"{adapted[0].directory} was trained last and is not there as {variant.precision}: run "
            "notebook 02 with it first."
        )
    return made[0].directory / weights_path(variant) if made else None


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
