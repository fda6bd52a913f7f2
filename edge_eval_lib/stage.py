"""What the stage notebooks share: which run this is, where its artefacts lie, its raw data."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_eval_lib import hardware, scraps
from edge_eval_lib.errors import UserError
from edge_eval_lib.runner import run_directory
from edge_eval_lib.study import Model, Run, Study, Variant, load_study
from edge_eval_lib.tasks import Example, TaskData, load_task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Stage:
    """One run of a stage, as its notebook sees it. `model` is None where a run is for all."""

    study: Study
    run: Run
    model: Model | None

    @property
    def raw(self) -> Path:
        """Where the run's raw data go."""
        return run_directory(self.study)

    def keep(self, name: str, table: pd.DataFrame) -> None:
        """Write raw data beside the notebook, as `RUN.name.parquet`."""
        table.to_parquet(self.raw / f"{name}.parquet", index=False)


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
    scraps.record("provenance", hardware.provenance(loaded.measured_hash))
    return Stage(loaded, run, model)


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
    after = hardware.describe()
    scraps.record("temperature_after_c", [gpu.temperature_c for gpu in after.gpus])
    scraps.complete()


def adapter_directory(study: Study, adapter: str) -> Path:
    """Where the adapter called `family-size_task_method` lies."""
    return study.directory / "artefacts" / "adapters" / adapter


def weights_directory(study: Study, variant: Variant) -> Path:
    """Where a variant's weights lie; for the unadapted base, its model directory."""
    if variant.method == "none":
        from edge_eval_lib.models import model_directory

        return model_directory(study.model(variant.model))
    return study.directory / "artefacts" / "models" / str(variant)


def weights_to_serve(study: Study, variant: Variant) -> Path:
    """As `weights_directory`; weights that were deleted to save disk are built again first.

    That happens in a process of its own, unmeasured: a cold load needs one without torch.
    """
    directory = weights_directory(study, variant)
    if not directory.is_dir():
        command = [sys.executable, "-m", "edge_eval_lib", "rebuild", str(study.path), str(variant)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise UserError(lines[-1] if lines else f"Building the weights of {variant} stopped.")
    return directory


def rebuild_weights(study: Study, variant_name: str) -> None:
    """Merge a variant's adapter into its base again, and quantise the sum as its run did."""
    from edge_eval_lib import compress
    from edge_eval_lib.compress_vllm import quantize_for_engine
    from edge_eval_lib.models import model_directory

    variant = {str(v): v for v in study.variants()}.get(variant_name)
    if variant is None:
        raise UserError(f"study {study.name} has no variant {variant_name!r}.")
    adapter = adapter_directory(study, variant.adapter)
    if not adapter.is_dir():
        raise UserError(
            f"The adapter {variant.adapter} is missing; `make all STUDY={study.name} RERUN=adapt`."
        )
    target = weights_directory(study, variant)
    base = model_directory(study.model(variant.model))
    if variant.precision == "fp16":
        compress.merge(base, adapter, target)
        return
    with tempfile.TemporaryDirectory(dir=adapter.parent) as scratch:
        merged = compress.merge(base, adapter, Path(scratch) / "fp16").directory
        quantize_for_engine(study, variant.task, merged, variant.precision, target)


def task_examples(study: Study, task: str) -> tuple[list[Example], list[Example], TaskData]:
    """Training examples, held-out examples (never trained on), and the whole task.

    Held out are the first that the seed draws, so that they are the same however many are trained
    on: training settings are chosen on them.
    """
    data = study.data
    loaded = load_task(
        task,
        source=data.source,
        train_examples=data.train_examples + data.heldout_examples,
        evaluation_examples=data.evaluation_examples,
        seed=study.seed,
    )
    return loaded.train[data.heldout_examples :], loaded.train[: data.heldout_examples], loaded


def record_outcome(outcome: Any) -> None:
    """Record every field of a dataclass under its own name."""
    scraps.record_all(asdict(outcome))


def instruction_set() -> str:
    """Where the arithmetic runs: the GPU's compute capability, or the CPU's vector instructions."""
    host = hardware.describe()
    visible = hardware.gpu_indices()
    if visible:
        gpu = next(gpu for gpu in host.gpus if gpu.index == visible[0])
        return f"CUDA compute capability {gpu.compute_capability}"
    return ", ".join(host.cpu_flags)


def gpu_count() -> int:
    """How many GPUs this run was given."""
    return len(hardware.gpu_indices())
