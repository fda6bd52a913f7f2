"""The grid: a study's variants, and the runs that measure them."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from edge_eval_lib.errors import UserError
from edge_eval_lib.tasks import data_fingerprint, trained_as

if TYPE_CHECKING:
    from edge_eval_lib.study.schema import Study

NOTEBOOKS = {
    "preflight": "00_preflight.ipynb",
    "adapt": "01_adapt.ipynb",
    "compress": "02_compress.ipynb",
    "serve": "03_serve.ipynb",
    "harness": "10_harness.ipynb",
    "score": "04_score.ipynb",
    "ablation": "08_qlora_ablation.ipynb",
    "power_sweep": "15_power_sweep.ipynb",
    "synthesis": "05_synthesis.ipynb",
    "paper": "06_paper.ipynb",
    "planner": "07_planner.ipynb",
}
STAGES = tuple(stage for stage in NOTEBOOKS if stage not in ("synthesis", "paper", "planner"))
EXPERIMENT = "experiment"  # the stage of a study's own notebook, which its name says
# What a study's only run measures, by its stage.
MEASURED_ALONE = {
    "ablation": {"training", "data", "seed", "repetitions", "ablation"},
    "power_sweep": {"workload", "data", "seed", "repetitions", "power_sweep"},
}
PUBLISHED = "published"  # what stands for a study where the published T4 figures are meant


@dataclass(frozen=True)
class Variant:
    """One model adapted to one task by one method and served at one precision."""

    family: str
    size: str
    task: str
    method: str
    precision: str

    @property
    def model(self) -> str:
        """The model's name, `family-size`."""
        return f"{self.family}-{self.size}"

    @property
    def trained_as(self) -> str:
        """The task that its adapter was trained on."""
        return trained_as(self.task)

    @property
    def adapter(self) -> str:
        """The adapter's name: one is served at several precisions, and to several tasks."""
        return f"{self.model}_{self.trained_as}_{self.method}"

    @property
    def weights(self) -> str:
        """The name of its weights."""
        return f"{self.adapter}_{self.precision}"

    @property
    def served_name(self) -> str:
        """What an endpoint is to call it: the unadapted base is the same for every task."""
        return self.model if self.method == "none" else self.weights

    def __str__(self) -> str:
        return f"{self.model}_{self.task}_{self.method}_{self.precision}"


def adapter_path(adapter: str) -> str:
    """Where an adapter lies below the outputs of a study, or a folder of the lab."""
    return f"artefacts/adapters/{adapter}"


def weights_path(variant: Variant | str) -> str:
    """Where a variant's weights lie below the outputs of a study, or a folder of the lab."""
    name = variant.weights if isinstance(variant, Variant) else variant
    return f"artefacts/models/{name}"


@dataclass(frozen=True)
class Run:
    """One stage notebook executed once in a process of its own.

    `settings` is everything that the run's figures depend on (a change re-runs it);
    `needs` are the (stage, name) of the runs whose artefacts it reads.
    """

    stage: str
    name: str
    parameters: dict[str, Any]
    settings: dict[str, Any] = field(compare=False, repr=False)
    needs: tuple[tuple[str, str], ...] = ()
    precisions: tuple[str, ...] = ()  # what a compress run is to make
    gpus: int = field(default=1, compare=False)  # how many it needs (runs/catalogue.py)

    @property
    def artefacts(self) -> tuple[str, ...]:
        """What the run writes beside its notebook, below the study's outputs."""
        if self.stage == "adapt":
            return (adapter_path(self.name),)
        if self.stage == "compress":
            return tuple(weights_path(f"{self.name}_{p}") for p in self.precisions)
        if self.stage in ("synthesis", "paper"):
            return ("tables", "figures", "report.html")
        if self.stage in ("planner", EXPERIMENT):
            return (f"{self.stage}.html",)
        return ()

    @property
    def settings_json(self) -> bytes:
        """The settings as they are recorded."""
        return orjson.dumps(self.settings, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)

    @property
    def settings_hash(self) -> str:
        """Identifies the settings."""
        return hash_of(self.settings)


def hash_of(settings: Any) -> str:
    """Identify what JSON can hold; the order of its fields does not count."""
    return hashlib.sha256(orjson.dumps(settings, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def enumerate_runs(study: Study) -> list[Run]:
    """Return every run of a study, in an order in which each comes after what it needs."""
    runs = [Run("preflight", "preflight", {}, {"stage": "preflight", "hardware": study.hardware})]
    asked = [*study.tasks, *map(trained_as, study.tasks)]
    fingerprints = {task: _fingerprint(study, task) for task in dict.fromkeys(asked)}
    if study.alone is not None:
        return [*runs, _only_run(study, study.alone, fingerprints[study.tasks[0]])]
    prepared: dict[str, dict[str, Any]] = {}  # the settings that an adapter's weights depend on
    precisions: dict[str, list[str]] = {}
    for variant in study.prepared_variants():
        made = precisions.setdefault(variant.adapter, [])
        made += [] if variant.precision in made else [variant.precision]
    for variant in study.prepared_variants():
        if variant.adapter in prepared:
            continue
        base = _base(study, variant.model, variant.trained_as, fingerprints)
        prepared[variant.adapter] = base
        if variant.method == "none":  # the base itself is served: nothing to adapt or compress
            continue
        name = variant.adapter
        parameters = {"model": variant.model, "task": variant.trained_as, "method": variant.method}
        adapt = base | {"method": variant.method, "training": study.training.model_dump()}
        compress = dict(adapt)
        if study.workload.engine_kind.compressor == "llm-compressor":
            compress["calibration_examples"] = study.calibration_examples
        prepared[name] = compress
        runs.append(Run("adapt", name, parameters, {"stage": "adapt", **adapt}))
        kept = tuple(precisions[name])  # not a setting: one more leaves the others as they are
        settings = {"stage": "compress", **compress}
        runs.append(Run("compress", name, parameters, settings, (("adapt", name),), kept))
    for variant in study.served_variants():
        if variant.task != variant.trained_as:  # its questions are another task's, asked otherwise
            asks = _base(study, variant.model, variant.task, fingerprints)
            served = {**prepared[variant.adapter], "asks": asks}
            prepared[f"{variant.adapter}/{variant.task}"] = served
    most = max(map(study.repetitions_of, study.served_variants()), default=0)
    serving = [
        _serve(study, variant, prepared, repetition)
        for repetition in range(1, most + 1)
        for variant in study.served_variants()
        if repetition <= study.repetitions_of(variant)
    ]
    harness = [_harness(study, variant, prepared) for variant in study.harness_variants()]
    settings = {"stage": "score", "runs": {run.name: run.settings_hash for run in serving}}
    needs = tuple(("serve", run.name) for run in serving)
    return [*runs, *serving, *harness, Run("score", "score", {}, settings, needs)]


def _fingerprint(study: Study, task: str) -> str:
    data = study.data
    asked = data.train_examples + data.heldout_examples
    return data_fingerprint(task, data.source, asked, data.evaluation_examples, study.seed)


def _base(study: Study, model_name: str, task: str, fingerprints: dict[str, str]) -> dict[str, Any]:
    """Return the settings of every run on a model and a task."""
    model = study.model(model_name)
    identity = {"family", "size", "source", "location", "revision"}
    if model.source == "random":  # elsewhere the revision decides, and config only foretells
        identity.add("config")
    return {
        "model": model.model_dump(include=identity),
        "task": task,
        "data": {**study.data.model_dump(), "fingerprint": fingerprints[task]},
        "seed": study.seed,
    }


def _serve(
    study: Study, variant: Variant, prepared: dict[str, dict[str, Any]], repetition: int
) -> Run:
    asked = f"{variant.adapter}/{variant.task}"
    settings = {
        "stage": "serve",
        **prepared[asked if asked in prepared else variant.adapter],
        "method": variant.method,
        "precision": variant.precision,
        # What a study leaves at its default does not make older runs outdated.
        "workload": study.workload.model_dump(exclude_defaults=True),
        "repetition": repetition,
    }
    called = study.called_variants(variant)
    if called:
        settings["roles"] = {
            role: prepared[other.adapter] | study.roles[role].model_dump()
            for role, other in called.items()
        }
    if given := study.task_settings.get(variant.task):
        settings["task_settings"] = given
    parameters = _parameters(variant) | {"repetition": repetition}
    needs = (need for served in (variant, *called.values()) for need in _weights_of(served))
    name = f"{variant}_r{repetition:02d}"
    return Run("serve", name, parameters, settings, tuple(dict.fromkeys(needs)))


def _parameters(variant: Variant) -> dict[str, Any]:
    return {
        "model": variant.model,
        "task": variant.task,
        "method": variant.method,
        "precision": variant.precision,
    }


def _weights_of(variant: Variant) -> tuple[tuple[str, str], ...]:
    return () if variant.method == "none" else (("compress", variant.adapter),)


def _harness(study: Study, variant: Variant, prepared: dict[str, dict[str, Any]]) -> Run:
    """Return the run that scores a variant by the harness's tasks.

    It depends on the variant's weights, how they are loaded, the prompts, and the content of the
    study's own task files.
    """
    adapted = prepared[variant.adapter]
    if variant.method == "none":  # the base has seen no task
        adapted = {"model": adapted["model"]}
    directory = study.task_directory
    assert study.harness is not None
    settings = {
        "stage": "harness",
        **adapted,
        "method": variant.method,
        "precision": variant.precision,
        "engine": study.workload.engine,
        "compute_dtype": study.training.compute_dtype,
        "batch_size": study.workload.headline_concurrency,
        "harness": study.harness.model_dump(exclude={"task_directory"}),
        "task_files": None if directory is None else _content_hash(directory),
    }
    return Run("harness", str(variant), _parameters(variant), settings, _weights_of(variant))


def _content_hash(directory: Path) -> str:
    """Identify the files below a directory and what is in them; UserError without a directory."""
    if not directory.is_dir():
        raise UserError(f"harness.task_directory names {directory}, which is not a directory.")
    files = sorted(p for p in directory.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    digest = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(directory)} {content}\n".encode())
    return digest.hexdigest()[:16]


def _only_run(study: Study, stage: str, fingerprint: str) -> Run:
    settings = {
        "stage": stage,
        "model": study.models[0].model_dump(),
        "task": study.tasks[0],
        "fingerprint": fingerprint,
        **study.model_dump(include=MEASURED_ALONE[stage]),
    }
    return Run(stage, stage, {"repetitions": study.repetitions}, settings)


def serving_order(study: Study) -> dict[str, int]:
    """Return the place of every serving run in the order in which they are to start, from 0.

    Every repetition serves each variant once, in an order of its own that the study's seed draws,
    so that the machine's drift falls on no configuration more than on another.
    """
    blocks: dict[int, list[str]] = {}
    for run in study.runs():
        if run.stage == "serve":
            blocks.setdefault(run.parameters["repetition"], []).append(run.name)
    order = []
    for repetition, names in sorted(blocks.items()):
        random.Random(f"{study.seed}/{repetition}").shuffle(names)  # text: one stream a block
        order += names
    return {name: place for place, name in enumerate(order)}
