"""A whole study file: what contradicts itself, and which variants and runs it means."""

from __future__ import annotations

import shlex
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, model_validator

from edge_eval_lib import compressions, tasks
from edge_eval_lib.errors import pick
from edge_eval_lib.paths import outputs_root, project_root
from edge_eval_lib.study import grid
from edge_eval_lib.study.grid import Run, Variant
from edge_eval_lib.study.refusal import validate
from edge_eval_lib.study.sections import (
    MOST,
    MOST_REPETITIONS,
    MOST_RUNS,
    Ablation,
    Configuration,
    Data,
    Harness,
    Line,
    Model,
    Name,
    Number,
    PowerSweep,
    Role,
    Share,
    Strict,
    StudyName,
    Task,
    Text,
    Training,
    Workload,
    engines,
)

# Directories below outputs/ that belong to no study.
RESERVED_NAMES = ("models", "paper", "comparison", "lab")


class Study(Strict):
    """A validated study file: what is asked, of which models, how often."""

    name: StudyName
    """Its outputs go to outputs/NAME."""
    description: Text
    """One sentence for people; it stands in the report."""
    hardware: Line
    """A name of params/hardware.yaml: what the plan judges by; `this-machine` is found out."""
    models: list[Model]
    """Each a name of params/models.yaml, a directory, a repository of the hub, or a stanza."""
    tasks: list[Task]
    """Names of files in edge_eval_lib/tasks/."""
    configurations: list[Configuration]
    """Method and precision, each on every model and task."""
    data: Data
    """Which examples."""
    training: Training
    """How adapters are trained."""
    workload: Workload
    """How variants are served."""
    repetitions: Annotated[int, Field(ge=1, le=MOST_REPETITIONS)]
    """How often each variant is served, each time in a cold process; intervals over runs need 2."""
    prices: Line
    """A set of params/prices.yaml: `paper`, `desktop`, ..."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # what every library's generator takes
    """Of everything that is drawn: batches, the order of serving, arrivals."""
    ablation: Ablation | None = None
    """Instead of the grid: QLoRA taken apart on the first model and task (measurement.md)."""
    calibration_examples: Annotated[int, Field(ge=0, le=MOST)] = 0
    """Training examples that llm-compressor calibrates on (for vLLM); 0 rounds to nearest."""
    power_sweep: PowerSweep | None = Field(
        default=None, exclude_if=lambda power_sweep: power_sweep is None
    )
    """Instead of the grid: the first model, unadapted, on the first task, at several settings of a
    GPU."""
    harness: Harness | None = Field(default=None, exclude_if=lambda harness: harness is None)
    """Also score every variant by lm-evaluation-harness (harness.md)."""
    unadapted_base: bool = Field(default=True, exclude_if=bool)
    """Whether the models are also served unadapted, at FP16."""
    notebook: StudyName | None = Field(default=None, exclude_if=lambda notebook: notebook is None)
    """An experiment's own notebook, one of notebooks/: its page, executed once all is scored."""
    correct_from: dict[Task, Share] = Field(
        default_factory=dict, exclude_if=lambda tasks: not tasks
    )
    """By task: the least score, of the content where that is told apart, of a correct answer."""
    task_settings: dict[Task, dict[Line, Number]] = Field(
        default_factory=dict, exclude_if=lambda tasks: not tasks
    )
    """By task: the numbers that its conversations go by."""
    roles: dict[Name, Role] = Field(default_factory=dict, exclude_if=lambda roles: not roles)
    """By name: the other models that a task's conversations call."""

    _path: Path = PrivateAttr()

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        """Refuse what contradicts itself, in words that name the fields."""
        engine, largest = self.workload.engine_kind, self.workload.largest_concurrency
        if self.name in RESERVED_NAMES:
            raise ValueError(
                f"the name {self.name!r} is taken by outputs/{self.name}; give another"
            )
        if self.calibration_examples and engine.compressor != "llm-compressor":
            able = engines().able("compressor", "llm-compressor")
            raise ValueError(
                f"calibration_examples needs workload.engine: {able}, not {engine.name}"
            )
        if self.calibration_examples > self.data.train_examples:
            raise ValueError(
                f"calibration_examples is {self.calibration_examples}, more than the "
                f"{self.data.train_examples} of data.train_examples"
            )
        if largest and largest > self.data.evaluation_examples:
            raise ValueError(
                f"workload.largest_concurrency is {largest}, more than the "
                f"{self.data.evaluation_examples} prompts of data.evaluation_examples"
            )
        for precision in (c.precision for c in self.configurations):
            if compressions.changes_quantised(precision) and engine.compressor != "bitsandbytes":
                able = engines().able("compressor", "bitsandbytes")
                raise ValueError(
                    f"{precision} changes quantised weights, which needs workload.engine: {able}, "
                    f"not {engine.name}"
                )
        if self.harness is not None and engine.remote:
            raise ValueError(
                f"harness needs workload.engine: {engines().able('remote', False)}, not "
                f"{engine.name}: it loads the weights itself"
            )
        if self.harness is not None and self.ablation is not None:
            raise ValueError("harness scores served variants, and an ablation serves none")
        if self.power_sweep is not None and engine.remote:
            raise ValueError(
                f"power_sweep needs workload.engine: {engines().able('remote', False)}, not "
                f"{engine.name}: it turns this machine's GPU"
            )
        besides = [n for n in ("ablation", "harness", "notebook") if getattr(self, n) is not None]
        if self.power_sweep is not None and besides:
            raise ValueError(f"power_sweep is a study by itself, without {' or '.join(besides)}")
        return self

    @model_validator(mode="after")
    def _tasks_of_the_study(self) -> Study:
        """Refuse a part that names a task which the study does not hold."""
        named = {
            "correct_from": list(self.correct_from),
            "task_settings": list(self.task_settings),
        }
        for c in self.configurations:
            named[f"configurations {c.method}/{c.precision} tasks"] = c.tasks or []
        for where, names in named.items():
            _refuse_foreign(where, names, "tasks", self.tasks)
        return self

    @model_validator(mode="after")
    def _models_of_the_study(self) -> Study:
        """Refuse a configuration of a model that the study does not hold."""
        own = [m.name for m in self.models]
        for c in self.configurations:
            where = f"configurations {c.method}/{c.precision} models"
            _refuse_foreign(where, c.models or [], "models", own)
        return self

    @model_validator(mode="after")
    def _conversations(self) -> Study:
        """Refuse what conversations cannot do, or call and the study does not hold."""
        for role, called in self.roles.items():
            if called.model is not None and called.model not in [m.name for m in self.models]:
                raise ValueError(
                    f"roles {role} names the model {called.model!r}; the study's are "
                    f"{', '.join(m.name for m in self.models)}"
                )
        for name in self.tasks:
            task = tasks.find(name)
            if missing := [role for role in task.roles if role not in self.roles]:
                raise ValueError(
                    f"the task {name} calls {', '.join(missing)}; say under roles which model "
                    "that is, by its method and precision"
                )
            given = sorted(self.task_settings.get(name, {}))
            if given != sorted(task.settings):
                raise ValueError(
                    f"task_settings of {name} gives {', '.join(given) or 'nothing'}; the task "
                    f"takes {', '.join(task.settings) or 'nothing'}"
                )
            if task.converse is not None and self.workload.arrival_rates_per_s:
                raise ValueError(
                    f"workload.arrival_rates_per_s: the task {name} asks several times for one "
                    "answer, and its calls do not come when they like"
                )
        return self

    @model_validator(mode="after")
    def _no_repeats(self) -> Study:
        lists: dict[str, list] = {
            "models": [m.name for m in self.models],
            "tasks": self.tasks,
            "configurations": [f"{c.method}/{c.precision}" for c in self.configurations],
            "workload.concurrency": self.workload.concurrency,
            "workload.arrival_rates_per_s": self.workload.arrival_rates_per_s or ["none"],
            "harness.tasks": ["none"] if self.harness is None else self.harness.tasks,
        }
        for field, items in lists.items():
            if not items:
                raise ValueError(f"{field} is empty: a study needs at least one")
            repeated = sorted({str(i) for i in items if items.count(i) > 1})
            if repeated:
                raise ValueError(f"{field} names {', '.join(repeated)} twice")
        return self

    @model_validator(mode="after")
    def _not_endless(self) -> Study:
        runs = sum(map(self.repetitions_of, self.served_variants()))
        if runs > MOST_RUNS:
            raise ValueError(
                f"repetitions is {self.repetitions}, which makes {runs:,} serving runs; a study "
                f"may have {MOST_RUNS:,}"
            )
        return self

    @property
    def alone(self) -> str | None:
        """The stage of the only run of a study that has but one; None of one with a grid."""
        return next((s for s in ("ablation", "power_sweep") if getattr(self, s) is not None), None)

    @property
    def path(self) -> Path:
        """The study file."""
        return self._path

    @property
    def argument(self) -> str:
        """What a person says for STUDY to mean this study: its name in params/, else its path."""
        if self.path.parent == project_root() / "params":
            return self.path.stem
        return shlex.quote(str(self.path))

    @property
    def directory(self) -> Path:
        """Where everything that this study's runs make goes."""
        return outputs_root() / self.name

    def model(self, name: str) -> Model:
        """The model stanza called `family-size`; UserError if the study has none."""
        return pick({m.name: m for m in self.models}, name, "model", f"study {self.name}")

    def variants(self) -> list[Variant]:
        """Every model x task x configuration, in the study's order."""
        return [
            Variant(m.family, m.size, task, c.method, c.precision)
            for m in self.models
            for task in self.tasks
            for c in self.configurations
            if (c.tasks is None or task in c.tasks) and (c.models is None or m.name in c.models)
        ]

    def reference_variants(self) -> list[Variant]:
        """The unadapted base of each model on each task, served at FP16, unless it is not to be."""
        return [
            Variant(m.family, m.size, task, "none", "fp16")
            for m in self.models
            for task in self.tasks
            if self.unadapted_base
        ]

    def served_variants(self) -> list[Variant]:
        """Variants and references, each once."""
        return list(dict.fromkeys(self.variants() + self.reference_variants()))

    def called_variants(self, variant: Variant) -> dict[str, Variant]:
        """What a variant's conversations call beside it, by role."""
        called = {}
        for role in tasks.find(variant.task).roles:
            stanza = self.roles[role]
            model = self.model(stanza.model or variant.model)
            called[role] = Variant(
                model.family, model.size, variant.task, stanza.method, stanza.precision
            )
        return called

    def evaluation_examples_of(self, task: str) -> int:
        """How many evaluation examples of a task are loaded, and so kept out of training.

        A task that only lends its adapter is not asked: no more than it ships.
        """
        asked = self.data.evaluation_examples
        if task in self.tasks or self.data.source != "embedded":
            return asked
        return min(asked, len(tasks.find(task).shipped()[1]))

    def engine_of(self, role: str) -> Any:
        """The kind of engine that serves what a conversation calls."""
        return engines().kind(self.roles[role].engine or self.workload.engine)

    def prepared_variants(self) -> list[Variant]:
        """Served variants, and those that are only called."""
        served = self.served_variants()
        called = [other for variant in served for other in self.called_variants(variant).values()]
        return list(dict.fromkeys(served + called))

    def harness_variants(self) -> list[Variant]:
        """Served variants with trained weights, a model's unadapted base once for all tasks."""
        if self.harness is None:
            return []
        distinct: dict[tuple[str, str], Variant] = {}
        for variant in self.served_variants():
            if self.model(variant.model).source != "random":
                distinct.setdefault((variant.served_name, variant.precision), variant)
        return list(distinct.values())

    @property
    def task_directory(self) -> Path | None:
        """Where the harness finds task files of the study's own."""
        if self.harness is None or self.harness.task_directory is None:
            return None
        return (self.path.parent / self.harness.task_directory).resolve()

    def repetitions_of(self, variant: Variant) -> int:
        """How often a variant is served."""
        own = [
            c.repetitions or 1
            for c in self.configurations
            if (c.method, c.precision) == (variant.method, variant.precision)
        ]
        return max([self.repetitions, *own])

    def covering(self, repetition: int) -> Study:
        """The same study, with so many repetitions that one of its runs has that number."""
        most = max(map(self.repetitions_of, self.served_variants()), default=self.repetitions)
        return self if repetition <= most else self.with_repetitions(repetition)

    def with_repetitions(self, repetitions: int) -> Study:
        """The same study with another number of serving repetitions; UserError for too many."""
        return self.changed(repetitions=repetitions)

    def changed(self, **fields: Any) -> Study:
        """The same study with other fields, checked as those of a file are."""
        study = validate(Study, self.model_dump() | fields, self.path)
        study._path = self._path
        return study

    @cached_property
    def measured_hash(self) -> str:
        """Identifies what the study measures: its name aside, everything its runs depend on."""
        return grid.hash_of([run.settings for run in self.runs()])

    def runs(self) -> list[Run]:
        """Return every run of the grid, in an order in which each comes after what it needs."""
        return grid.enumerate_runs(self)

    @cached_property
    def serving_order(self) -> dict[str, int]:
        """The place of every serving run in the order in which they are to start, from 0."""
        return grid.serving_order(self)

    def run(self, stage: str, name: str) -> Run:
        """Return one run by stage and name; UserError if the grid has none."""
        runs = {r.name: r for r in self.runs() if r.stage == stage}
        return pick(runs, name, f"{stage} run", f"study {self.name}")


def _refuse_foreign(where: str, names: list[str], what: str, own: list[str]) -> None:
    """Raise ValueError where a part of a study names something that the study does not hold."""
    if foreign := [name for name in names if name not in own]:
        raise ValueError(
            f"{where} names {', '.join(foreign)}, which is not among the study's {what} "
            f"({', '.join(own)})"
        )
