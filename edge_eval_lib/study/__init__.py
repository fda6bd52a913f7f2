"""Studies: params/*.yaml -> Study, its variants, and the runs that measure them.

Pure code: it imports neither torch nor a notebook, so that planning starts at once.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import re
import shlex
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import orjson
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from edge_eval_lib.errors import UserError, nearest
from edge_eval_lib.paths import outputs_root, project_root

Task = Literal["rag", "summarization", "dialogue"]
Method = Literal["lora", "qlora", "none"]
Precision = Literal["fp16", "int8", "int4"]
STAGES = ("preflight", "adapt", "compress", "serve", "harness", "score", "ablation")
NOTEBOOKS = {
    "preflight": "00_preflight.ipynb",
    "adapt": "01_adapt.ipynb",
    "compress": "02_compress.ipynb",
    "serve": "03_serve.ipynb",
    "score": "04_score.ipynb",
    "synthesis": "05_synthesis.ipynb",
    "paper": "06_paper.ipynb",
    "ablation": "08_qlora_ablation.ipynb",
    "harness": "10_harness.ipynb",
}
RESERVED_NAMES = (
    "models",
    "paper",
    "comparison",
    "lab",
)  # directories below outputs/ that belong to no study
# Bounds beyond which a number is a slip: everything that a study asks for must end one day.
MOST_REPETITIONS = 1000
MOST_RUNS = 50_000  # of serving: half a minute each is 17 days; the paper's study has 1,800
MOST = 1_000_000  # examples, tokens, steps; the largest data set of the hub here has 300,000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def _plain_text(value: str) -> str:
    if not value.strip() or len(value) > 1000:
        raise ValueError("it should hold 1 to 1000 characters")
    if _CONTROL.search(value):
        raise ValueError("it should hold no control characters")
    return value


def _line(value: str) -> str:
    if "\n" in value or "\t" in value:
        raise ValueError("it should be one line")
    if any(len(part.encode()) > 255 for part in value.split("/")):
        raise ValueError("no part of it should be longer than a file name may be, 255 bytes")
    return _plain_text(value)


def _name(longest: int, also: str = "", hint: str = "") -> AfterValidator:
    """A name that becomes a file name, or a part of one."""

    def check(value: str) -> str:
        if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9.\-{also}]*", value, re.ASCII):
            raise ValueError(
                f"it should hold letters, digits, dots{', underscores' if also else ''} and "
                f"hyphens only, a letter or digit first{hint}"
            )
        if len(value) > longest:
            raise ValueError(f"it should have at most {longest} characters: it names files")
        return value

    return AfterValidator(check)


Text = Annotated[str, AfterValidator(_plain_text)]
Line = Annotated[str, AfterValidator(_line)]
# Parts of `family-size_task_method_precision_rNN.requests.parquet`, of at most 255 bytes.
Name = Annotated[
    str, _name(64, hint=" (no underscore: it separates the parts of a variant's name)")
]
StudyName = Annotated[str, _name(100, also="_")]
Count = Annotated[int, Field(ge=1, le=MOST)]
Schema = TypeVar("Schema", bound=BaseModel)


class Strict(BaseModel):
    """A part of a study file: no unknown field, no converted value, no infinite number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Model(Strict):
    """Where a model's weights come from and what its model card says.

    `location` is `PACKAGE/FILE.gguf` for source `package`, a directory of safetensors for
    `local` (relative to the study file), a repository name for `hub`; for `random` the place in
    params/shapes.yaml of the model whose shape is filled with random weights. `config` is what a
    model's config.json says of its shape, by default what shapes.yaml has for `location`.
    """

    family: Name
    size: Name
    source: Literal["package", "local", "hub", "random"]
    location: Line
    revision: Line
    licence: Line
    parameters: Annotated[int, Field(ge=1, le=10**15)]
    nominal_gb: dict[Precision, Annotated[float, Field(gt=0, le=1e6)]]
    gated: bool = False
    config: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.family}-{self.size}"

    @model_validator(mode="after")
    def _stays_in_its_place(self) -> Model:
        """A revision and a location become part of paths; `config` is hashed."""
        if not re.fullmatch(r"[A-Za-z0-9][\w.\-+]*(/[\w.\-+]+)*", self.revision) or (
            len(self.revision) > 100
            or ".." in self.revision
            or (self.source == "package" and "/" in self.revision)
        ):
            raise ValueError(
                f"{self.name} has the revision {self.revision[:60]!r}; it is a commit, a tag or a "
                "version, of letters, digits, dots and hyphens"
            )
        shapes = {"package": r"\w+(/[\w.\-]+)+", "hub": r"[\w.\-]+(/[\w.\-]+)?"}
        shape = shapes.get(self.source)
        if shape and (not re.fullmatch(shape, self.location) or ".." in self.location):
            named = {"package": "PACKAGE/FILE.gguf", "hub": "OWNER/NAME"}[self.source]
            raise ValueError(
                f"{self.name} has the location {self.location[:60]!r}; for the source "
                f"{self.source} it is {named}"
            )
        try:
            orjson.dumps(self.config)
        except TypeError:
            raise ValueError(
                f"{self.name} has a config that refers to itself or holds more than numbers, "
                "words, lists and mappings; write it as config.json has it"
            ) from None
        return self


class Configuration(Strict):
    """One cell of the grid beside model and task: how to adapt and at which precision to serve."""

    method: Method
    precision: Precision


class Data(Strict):
    """Which examples a task uses; `source` is `embedded`, `hub` or a path (see tasks.load_task)."""

    source: Line
    train_examples: Count
    heldout_examples: Count
    evaluation_examples: Count

    @property
    def heldout_told(self) -> int:
        """Of how many held-out examples a run tells the loss; all of them are never trained on."""
        return min(self.heldout_examples, 8)


class Training(Strict):
    """LoRA and QLoRA share every one of these: the methods differ in the base's precision alone."""

    lora_rank: Annotated[int, Field(ge=1, le=16_384)]  # no layer is wider
    lora_alpha: Annotated[int, Field(ge=1, le=65_536)]
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    # peft's word: all linear layers but the output head
    target_modules: Annotated[list[Line], Field(min_length=1)] | Literal["all-linear"] = (
        "all-linear"
    )
    learning_rate: Annotated[float, Field(gt=0, le=1e38)]  # float32 holds little more
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    max_tokens: Count
    compute_dtype: Literal["float32", "float16", "bfloat16"]
    gradient_checkpointing: bool


Concurrency = Annotated[int, Field(ge=1, le=10_000)]  # no server holds more requests
Rate = Annotated[float, Field(ge=1e-3, le=1e4)]  # slower, 400 prompts take 5 days


class Workload(Strict):
    """What a serving run does: all evaluation prompts at `headline_concurrency`, and at every other
    concurrency the first `latency_prompts` of them for each of its slots. `warmup_requests` is the
    most that are answered to warm up, if the throughput does not get steady before.

    Where `uncut_tokens` is given, answers that had no end within `output_tokens` are asked again in
    a pass of its own, not measured, with at most that many tokens; those answers are scored.

    What more it may do: powers of two up to `largest_concurrency`, until twice the concurrency
    gives hardly more throughput; every prompt once more at Poisson arrivals of each of
    `arrival_rates_per_s`; and, with `prefix_caching`, every prompt once more at the headline
    concurrency with what prompts have in common computed once.
    """

    engine: Literal["transformers", "vllm", "openai"]
    output_tokens: Annotated[int, Field(ge=2, le=MOST)]
    concurrency: list[Concurrency]
    headline_concurrency: Concurrency
    latency_prompts: Count
    warmup_requests: Count
    idle_seconds: Annotated[float, Field(gt=0, le=3600)]
    uncut_tokens: Annotated[int, Field(ge=2, le=MOST)] | None = None
    largest_concurrency: Concurrency | None = None
    arrival_rates_per_s: list[Rate] = Field(default_factory=list)
    prefix_caching: bool = False

    @model_validator(mode="after")
    def _engine_can(self) -> Workload:
        if self.prefix_caching and self.engine != "vllm":
            raise ValueError(f"workload.prefix_caching needs engine: vllm, not {self.engine}")
        if self.arrival_rates_per_s and self.engine == "transformers":
            raise ValueError(
                "workload.arrival_rates_per_s needs engine: vllm or openai: transformers answers "
                "batch by batch"
            )
        return self

    @model_validator(mode="after")
    def _uncut_is_longer(self) -> Workload:
        if self.uncut_tokens is not None and self.uncut_tokens <= self.output_tokens:
            raise ValueError(
                f"workload.uncut_tokens is {self.uncut_tokens}; it must be more than "
                f"output_tokens, {self.output_tokens}"
            )
        return self

    @model_validator(mode="after")
    def _concurrencies(self) -> Workload:
        for needed, why in (
            (1, "latency is told at 1"),
            (self.headline_concurrency, "it is workload.headline_concurrency"),
        ):
            if needed not in self.concurrency:
                raise ValueError(f"workload.concurrency must contain {needed}: {why}")
        return self

    def prompts_at(self, concurrency: int, prompts: int) -> int:
        """How many of a task's `prompts` are answered at a concurrency."""
        if concurrency == self.headline_concurrency:
            return prompts
        return min(prompts, self.latency_prompts * concurrency)


class Ablation(Strict):
    """Steps of each training run of an ablation: in the measured window, and before it."""

    steps: Count
    warmup_steps: Count


class Harness(Strict):
    """Scoring of every variant by tasks of lm-evaluation-harness, beside the study's own tasks.

    `tasks` are its names, or those of task files in `task_directory` (relative to the study file).
    Each is asked its first `prompts` prompts, with `few_shot` examples before each; by default
    as many as the task has of itself.
    """

    tasks: list[Line]
    prompts: Annotated[int, Field(ge=1, le=10**8)] = 400
    few_shot: Annotated[int, Field(ge=0, le=1000)] | None = None
    task_directory: Line | None = None


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
        return f"{self.family}-{self.size}"

    @property
    def adapter(self) -> str:
        return f"{self.model}_{self.task}_{self.method}"

    @property
    def served_name(self) -> str:
        """What an endpoint is to call it: the unadapted base is the same for every task."""
        return self.model if self.method == "none" else str(self)

    def __str__(self) -> str:
        return f"{self.adapter}_{self.precision}"


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

    @property
    def artefacts(self) -> tuple[str, ...]:
        """What the run writes beside its notebook, below the study's outputs."""
        if self.stage == "adapt":
            return (f"artefacts/adapters/{self.name}",)
        if self.stage == "compress":
            return tuple(f"artefacts/models/{self.name}_{p}" for p in self.precisions)
        if self.stage in ("synthesis", "paper"):
            return ("tables", "figures", "report.html")
        return ()

    @property
    def settings_json(self) -> bytes:
        return orjson.dumps(self.settings, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)

    @property
    def settings_hash(self) -> str:
        return _hash(self.settings)


def _hash(settings: Any) -> str:
    return hashlib.sha256(orjson.dumps(settings, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


class Study(Strict):
    """A validated study file. `outputs` of a run go by `name`.

    With an `ablation` it takes QLoRA apart on its first model and task, `repetitions` times, and
    serves nothing.
    With the engine vllm, llm-compressor quantises: calibrated on the first
    `calibration_examples` training examples, or by rounding to nearest where there are none.
    """

    name: StudyName
    description: Text
    hardware: Line
    models: list[Model]
    tasks: list[Task]
    configurations: list[Configuration]
    data: Data
    training: Training
    workload: Workload
    repetitions: Annotated[int, Field(ge=1, le=MOST_REPETITIONS)]
    prices: Line
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # what every library's generator takes
    ablation: Ablation | None = None
    calibration_examples: Annotated[int, Field(ge=0, le=MOST)] = 0
    harness: Harness | None = Field(default=None, exclude_if=lambda harness: harness is None)

    _path: Path = PrivateAttr()

    @model_validator(mode="after")
    def _name_is_free(self) -> Study:
        if self.name in RESERVED_NAMES:
            raise ValueError(
                f"the name {self.name!r} is taken by outputs/{self.name}; give another"
            )
        return self

    @model_validator(mode="after")
    def _calibration(self) -> Study:
        if self.calibration_examples and self.workload.engine != "vllm":
            raise ValueError(
                f"calibration_examples needs workload.engine: vllm, not {self.workload.engine}"
            )
        if self.calibration_examples > self.data.train_examples:
            raise ValueError(
                f"calibration_examples is {self.calibration_examples}, more than the "
                f"{self.data.train_examples} of data.train_examples"
            )
        return self

    @model_validator(mode="after")
    def _enough_prompts(self) -> Study:
        largest, prompts = self.workload.largest_concurrency, self.data.evaluation_examples
        if largest and largest > prompts:
            raise ValueError(
                f"workload.largest_concurrency is {largest}, more than the {prompts} prompts of "
                "data.evaluation_examples"
            )
        return self

    @model_validator(mode="after")
    def _harness_can(self) -> Study:
        if self.harness is not None and self.workload.engine == "openai":
            raise ValueError(
                "harness needs workload.engine: transformers or vllm, not openai: it loads the "
                "weights itself"
            )
        if self.harness is not None and self.ablation is not None:
            raise ValueError("harness scores served variants, and an ablation serves none")
        return self

    @model_validator(mode="after")
    def _no_repeats(self) -> Study:
        for what, items in {
            "models": [m.name for m in self.models],
            "tasks": self.tasks,
            "configurations": [f"{c.method}/{c.precision}" for c in self.configurations],
            "workload.concurrency": self.workload.concurrency,
            "workload.arrival_rates_per_s": self.workload.arrival_rates_per_s or ["none"],
            "harness.tasks": ["none"] if self.harness is None else self.harness.tasks,
        }.items():
            if not items:
                raise ValueError(f"{what} is empty: a study needs at least one")
            repeated = sorted({str(i) for i in items if items.count(i) > 1})
            if repeated:
                raise ValueError(f"{what} names {', '.join(repeated)} twice")
        return self

    @model_validator(mode="after")
    def _not_endless(self) -> Study:
        runs = len(self.served_variants()) * self.repetitions
        if runs > MOST_RUNS:
            raise ValueError(
                f"repetitions is {self.repetitions}, which makes {runs:,} serving runs; a study "
                f"may have {MOST_RUNS:,}"
            )
        return self

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
        return _pick({m.name: m for m in self.models}, name, "model", f"study {self.name}")

    def variants(self) -> list[Variant]:
        """Every model x task x configuration, in the study's order."""
        return [
            Variant(m.family, m.size, task, c.method, c.precision)
            for m in self.models
            for task in self.tasks
            for c in self.configurations
        ]

    def reference_variants(self) -> list[Variant]:
        """The unadapted base of each model on each task, served at FP16."""
        return [
            Variant(m.family, m.size, task, "none", "fp16")
            for m in self.models
            for task in self.tasks
        ]

    def served_variants(self) -> list[Variant]:
        """Variants and references, each once."""
        return list(dict.fromkeys(self.variants() + self.reference_variants()))

    def harness_variants(self) -> list[Variant]:
        """What the harness scores: served variants whose answers mean something, the unadapted
        base of a model once for all tasks."""
        if self.harness is None:
            return []
        told: dict[tuple[str, str], Variant] = {}
        for variant in self.served_variants():
            if self.model(variant.model).source != "random":
                told.setdefault((variant.served_name, variant.precision), variant)
        return list(told.values())

    @property
    def task_directory(self) -> Path | None:
        """Where the harness finds task files of the study's own."""
        if self.harness is None or self.harness.task_directory is None:
            return None
        return (self.path.parent / self.harness.task_directory).resolve()

    def with_repetitions(self, repetitions: int) -> Study:
        """The same study with another number of serving repetitions; UserError for too many."""
        study = self.model_copy(update={"repetitions": repetitions})
        study._path = self._path
        try:
            return study._not_endless()
        except ValueError as error:
            raise UserError(f"{self.path}: {error}.") from None

    @cached_property
    def measured_hash(self) -> str:
        """Identifies what the study measures: its name aside, everything its runs depend on."""
        return _hash([run.settings for run in self.runs()])

    def runs(self) -> list[Run]:
        """Every run of the grid, in an order in which each comes after what it needs."""
        return _enumerate_runs(self)

    @cached_property
    def serving_order(self) -> dict[str, int]:
        """The place of every serving run in the order in which they are to start, from 0.

        Every repetition serves each variant once, in an order of its own that the study's seed
        draws, so that the machine's drift falls on no configuration more than on another.
        """
        blocks: dict[int, list[str]] = {}
        for run in self.runs():
            if run.stage == "serve":
                blocks.setdefault(run.parameters["repetition"], []).append(run.name)
        order = []
        for repetition, names in sorted(blocks.items()):
            random.Random(f"{self.seed}/{repetition}").shuffle(names)  # text: one stream a block
            order += names
        return {name: place for place, name in enumerate(order)}

    def run(self, stage: str, name: str) -> Run:
        """One run by stage and name; UserError if the grid has none."""
        runs = {r.name: r for r in self.runs() if r.stage == stage}
        return _pick(runs, name, f"{stage} run", f"study {self.name}")


def _pick(mapping: dict[str, Any], name: str, what: str, where: str) -> Any:
    if name in mapping:
        return mapping[name]
    raise UserError(f"{where} has no {what} {shown(name)}; {nearest(name, mapping)}")


def shown(value: Any) -> str:
    """A value as a sentence about it shows it: in short, and never what it holds."""
    if value is None:
        return "empty"
    if isinstance(value, (dict, BaseModel)) and value != {}:
        return "a mapping"
    if isinstance(value, (list, tuple)) and len(value):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    text = repr(value) if not isinstance(value, str) else repr(value[:100])
    return text if len(text) <= 60 else f"{text[:57]}..."


def _enumerate_runs(study: Study) -> list[Run]:
    from edge_eval_lib.tasks import data_fingerprint  # late: reads the data files

    data = study.data
    fingerprints = {
        task: data_fingerprint(
            task,
            data.source,
            data.train_examples + data.heldout_examples,
            data.evaluation_examples,
            study.seed,
        )
        for task in study.tasks
    }
    runs = [_preflight(study)]
    if study.ablation is not None:
        return [*runs, _ablation(study, fingerprints[study.tasks[0]])]
    by_adapter: dict[str, list[Variant]] = {}
    for variant in study.served_variants():
        by_adapter.setdefault(variant.adapter, []).append(variant)
    prepared: dict[str, dict[str, Any]] = {}
    for adapter, variants in by_adapter.items():
        first = variants[0]
        model = study.model(first.model)
        identity = {"family", "size", "source", "location", "revision"}
        if model.source == "random":  # elsewhere the revision decides, and config only foretells
            identity.add("config")
        base = {
            "model": model.model_dump(include=identity),
            "task": first.task,
            "data": {**data.model_dump(), "fingerprint": fingerprints[first.task]},
            "seed": study.seed,
        }
        parameters = {"model": model.name, "task": first.task, "method": first.method}
        prepared[adapter] = base
        if first.method == "none":  # the base itself is served: nothing to adapt or compress
            continue
        adapt = base | {"method": first.method, "training": study.training.model_dump()}
        compressor: dict[str, Any] = {}
        if study.workload.engine == "vllm":
            compressor = {"calibration_examples": study.calibration_examples}
        compress = adapt | compressor
        prepared[adapter] = compress
        runs.append(Run("adapt", adapter, parameters, {"stage": "adapt", **adapt}))
        runs.append(
            Run(
                "compress",
                adapter,
                parameters,
                {"stage": "compress", **compress},
                needs=(("adapt", adapter),),
                # Not a setting: one more leaves the others as they are.
                precisions=tuple(v.precision for v in variants),
            )
        )
    serving = []
    for repetition in range(1, study.repetitions + 1):
        for variant in study.served_variants():
            settings = {
                "stage": "serve",
                **prepared[variant.adapter],
                "method": variant.method,
                "precision": variant.precision,
                # What a study leaves at its default does not make older runs outdated.
                "workload": study.workload.model_dump(exclude_defaults=True),
                "repetition": repetition,
            }
            serving.append(
                Run(
                    "serve",
                    f"{variant}_r{repetition:02d}",
                    {
                        "model": variant.model,
                        "task": variant.task,
                        "method": variant.method,
                        "precision": variant.precision,
                        "repetition": repetition,
                    },
                    settings,
                    needs=() if variant.method == "none" else (("compress", variant.adapter),),
                )
            )
    runs += serving
    runs += [_harness(study, variant, prepared) for variant in study.harness_variants()]
    runs.append(
        Run(
            "score",
            "score",
            {},
            {"stage": "score", "runs": {r.name: r.settings_hash for r in serving}},
            needs=tuple(("serve", r.name) for r in serving),
        )
    )
    return runs


def _harness(study: Study, variant: Variant, prepared: dict[str, dict[str, Any]]) -> Run:
    """The run that scores a variant by the harness's tasks. It depends on the variant's weights,
    how they are loaded, the prompts, and the content of the study's own task files."""
    adapted = prepared[variant.adapter]
    if variant.method == "none":  # the base has seen no task
        adapted = {"model": adapted["model"]}
    directory = study.task_directory
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
    parameters = {
        "model": variant.model,
        "task": variant.task,
        "method": variant.method,
        "precision": variant.precision,
    }
    needs = () if variant.method == "none" else (("compress", variant.adapter),)
    return Run("harness", str(variant), parameters, settings, needs)


def _content_hash(directory: Path) -> str:
    """Identifies the files below a directory and what is in them; UserError without a directory."""
    if not directory.is_dir():
        raise UserError(f"harness.task_directory names {directory}, which is no directory.")
    files = sorted(p for p in directory.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    found = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        found.update(f"{file.relative_to(directory)} {content}\n".encode())
    return found.hexdigest()[:16]


def _preflight(study: Study) -> Run:
    return Run("preflight", "preflight", {}, {"stage": "preflight", "hardware": study.hardware})


def _ablation(study: Study, fingerprint: str) -> Run:
    measured = {"training", "data", "seed", "repetitions", "ablation"}
    settings = {
        "stage": "ablation",
        "model": study.models[0].model_dump(),
        "task": study.tasks[0],
        "fingerprint": fingerprint,
        **study.model_dump(include=measured),
    }
    return Run("ablation", "ablation", {"repetitions": study.repetitions}, settings)


def load_study(path_or_name: str | Path, repetitions: int | None = None) -> Study:
    """Read and check a study.

    `path_or_name` is a file name in params/ without its ending (`embedded`) or the path of a
    YAML file. Models are stanzas in the file itself or names in a `models.yaml` beside it or
    in params/. Raises UserError, in one sentence naming the field, for anything wrong.
    """
    from edge_eval_lib.economics.prices import load_price_book  # late, as below: both build on us
    from edge_eval_lib.machine.declared import declared_names

    path = find_study(path_or_name)
    content = read_yaml(path)
    if not isinstance(content, dict) or "configurations" not in content:
        raise UserError(f"{path} is not a study: it has no field 'configurations'.")
    if isinstance(content.get("models"), list):
        content["models"] = [_resolve_model(entry, path) for entry in content["models"]]
    if repetitions is not None:
        content["repetitions"] = repetitions
    study = validate(Study, content, path)
    study._path = path
    prices = find_beside(path, "prices.yaml")
    _pick(load_price_book(prices).sets, study.prices, "set of prices", str(prices))
    _pick(dict.fromkeys(declared_names()), study.hardware, "hardware", "params/hardware.yaml")
    return study


def find_study(path_or_name: str | Path) -> Path:
    """The study file that a path or a name in params/ means; UserError if there is none."""
    text = str(path_or_name)
    if len(os.fsencode(text)) > 4000 or _CONTROL.search(text) or "\n" in text:
        raise UserError(
            f"The study {shown(text)} can be no file: it is too long, or holds line breaks or "
            "control characters; give a YAML file or a name in params/."
        )
    try:
        if text.endswith((".yaml", ".yml")) or "/" in text:
            path = Path(text).expanduser().resolve()
            if path.is_file():
                return path
            raise UserError(
                f"There is no study file {path}; give a YAML file or a name in params/."
            )
        folder = project_root() / "params"
        path = folder / f"{text}.yaml"
        if path.is_file():
            return path
    except (OSError, RuntimeError) as error:  # too long a name, an unknown ~user, a closed folder
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"The study file {shown(text)} cannot be found: {why}; give a YAML file or a name in "
            "params/."
        ) from error
    studies = sorted(p.stem for p in folder.glob("*.yaml") if "configurations:" in p.read_text())
    raise UserError(f"There is no study {shown(text)} in params/; {nearest(text, studies)}")


def find_beside(study_path: Path, file_name: str) -> Path:
    """`file_name` beside the study file if it is there, else the one in params/."""
    beside = study_path.parent / file_name
    return beside if beside.is_file() else project_root() / "params" / file_name


# --- YAML -------------------------------------------------------------------------------------

LARGEST_FILE = 1_000_000  # bytes; params/ has 20,000 at most
MOST_NODES = 100_000  # with every alias written out
LONGEST_INTEGER = 40  # digits; more is too large for any field, and int() refuses 5,000


def read_yaml(path: Path) -> Any:
    """A YAML file's content; UserError with the line or the field for what cannot be meant.

    Only what YAML 1.2 takes for a number is one (not 010, 0x10, 1:30 or 1_000), a date is text,
    `no` and `on` are words, and a repeated field is an error.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path} has more than {LARGEST_FILE:,} bytes: it is no such file.")
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        _written_out(node, {})
        content = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None)
        raise UserError(
            f"{path} is not valid YAML{line}: {problem or 'it cannot be read'}."
        ) from error
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be meant.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read: it is not text in UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    _refuse_impossible(content, "", path)
    return content


class _Loader(yaml.SafeLoader):
    """YAML 1.2's words and numbers, and no type beyond text, numbers, true, false and null."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                told = f"{shown(key.value)} stands there twice"
                if not isinstance(key, yaml.ScalarNode):
                    told = "a field's name must be a word"
                raise yaml.constructor.ConstructorError(
                    None, None, f"the field {told}", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node)[:LONGEST_INTEGER])


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(null|~|)$", ["n", "~", ""]),
    ("bool", r"^(true|false)$", "tf"),
    ("int", r"^[-+]?(0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"^[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"^([-+]?\.inf|\.nan)$", "-+."),
    ("merge", r"^<<$", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.endswith((":null", ":bool", ":float", ":seq", ":map", ":str"))
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def _written_out(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """How many nodes there are with every alias written out; YAMLError for too many, or a circle.

    `sizes` has those that were counted, None for those that `node` lies in.
    """
    if id(node) in sizes:
        counted = sizes[id(node)]
        if counted is None:
            raise yaml.constructor.ConstructorError(
                None, None, "a value refers to itself", node.start_mark
            )
        return counted
    sizes[id(node)] = None
    inside = [] if isinstance(node, yaml.ScalarNode) else node.value
    if isinstance(node, yaml.MappingNode):
        inside = [part for pair in inside for part in pair]
    size = 1 + sum(_written_out(part, sizes) for part in inside)
    if size > MOST_NODES:
        raise yaml.constructor.ConstructorError(
            None, None, f"it would hold more than {MOST_NODES:,} values", node.start_mark
        )
    sizes[id(node)] = size
    return size


def _refuse_impossible(value: Any, name: str, path: Path) -> None:
    """UserError for what no field may hold: infinities, huge numbers, control characters."""
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_impossible(key, name, path)
            _refuse_impossible(item, f"{name}.{key}" if name else str(key), path)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _refuse_impossible(item, f"{name}.{place}", path)
    wrong = None
    if isinstance(value, float) and not math.isfinite(value):
        wrong = "it should be a finite number"
    elif isinstance(value, int) and abs(value) >= 2**63:
        wrong = "it should be a number of at most 18 digits"
    elif isinstance(value, str) and _CONTROL.search(value):
        wrong = "it should hold no control characters"
    if wrong:
        raise UserError(f"{path}: {_field(name)} is {shown(value)}, but {wrong}.")


def _field(name: str) -> str:
    return f"the field {name!r}" if len(name) <= 80 else f"the field {name[:77]!r}..."


def _resolve_model(entry: Any, study_path: Path) -> Any:
    """A model stanza as it stands, or the one of that name in models.yaml."""
    if isinstance(entry, str):
        stanzas: dict[str, Any] = {}
        for path in dict.fromkeys(
            (project_root() / "params" / "models.yaml", find_beside(study_path, "models.yaml"))
        ):
            stanzas |= {name: (stanza, path) for name, stanza in _mapping(path).items()}
        entry, origin = _pick(stanzas, entry, "model", "models.yaml")
    else:
        origin = study_path
    if not isinstance(entry, dict) or not isinstance(entry.get("location"), str):
        return entry
    location = entry["location"]
    if entry.get("source") == "local":
        try:
            return entry | {"location": str((origin.parent / location).resolve())}
        except (OSError, RuntimeError):  # a circle of links: what reads it says so
            return entry
    if "config" not in entry:
        shapes = _merged("shapes.yaml", study_path)
        if entry.get("source") == "random":
            _pick(shapes, location, "shape", "shapes.yaml")
        entry = entry | {"config": shapes.get(location)}
    return entry


def _mapping(path: Path) -> dict[str, Any]:
    """A YAML file of things by name; UserError if it holds something else."""
    content = _read_yaml_once(path, path.stat().st_mtime_ns)
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path} should hold a mapping of names, but it is {shown(content)}.")
    return content or {}


def _merged(file_name: str, study_path: Path) -> dict[str, Any]:
    """What the file in params/ holds, and what one of that name beside the study adds."""
    content: dict[str, Any] = {}
    # In this order: the study's own replaces what has the same name.
    for path in dict.fromkeys(
        (project_root() / "params" / file_name, find_beside(study_path, file_name))
    ):
        content |= _mapping(path)
    return content


@lru_cache
def _read_yaml_once(path: Path, _changed_ns: int) -> Any:
    return read_yaml(path)


# --- what is refused --------------------------------------------------------------------------


def validate(schema: type[Schema], content: Any, path: Path) -> Schema:
    """`content` as `schema`; UserError naming the field, and the nearest right name, otherwise."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(schema, error.errors())}") from None


# pydantic's words, and what people say.
_WORDS = (
    (r"^Value error, ", ""),
    (r"^Input should be a valid string", "it should be text (in quotes)"),
    (r"^Input should be a valid integer.*", "it should be a whole number, such as 16"),
    (r"^Input should be a valid number.*", "it should be a number, such as 0.5"),
    (r"^Input should be a valid boolean", "it should be true or false"),
    (r"^Input should be a valid list", "it should be a list, such as [a, b]"),
    (r"^Input should be a valid dictionary.*", "it should be a mapping of fields"),
    (r"^Input should be greater than or equal to", "it should be at least"),
    (r"^Input should be less than or equal to", "it should be at most"),
    (r"^(Input|List|Dictionary|Keys|String) should", "it should"),
)


def _explain(schema: type[BaseModel], problems: list[Any]) -> str:
    """The first problem in one sentence; of a field that may be one of several, all it may be."""
    problem = problems[0]
    name = _field_name(problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _fields_at(schema, problem["loc"][:-1])
        hint = nearest(str(problem["loc"][-1]), known)
        return f"unknown {_field(name).removeprefix('the ')}; {hint}"
    if problem["type"] == "missing":
        return f"{_field(name)} is missing."
    if problem["type"] == "value_error" and isinstance(problem["input"], (dict, BaseModel)):
        return f"{problem['msg'].removeprefix('Value error, ')}."  # it names its fields itself
    wanted = list(
        dict.fromkeys(_in_words(p["msg"]) for p in problems if _field_name(p["loc"]) == name)
    )
    return f"{_field(name)} is {shown(problem['input'])}, but {' or '.join(wanted)}."


def _in_words(message: str) -> str:
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    return message


def _field_name(location: tuple[Any, ...]) -> str:
    """Where a problem lies, without pydantic's names of a field's alternatives."""
    alternatives = {"float", "int", "str"}
    parts = [str(part) for part in location if part not in alternatives and "[" not in str(part)]
    return ".".join(parts)


def _fields_at(schema: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names of the fields that the schema has where `location` points."""
    current: Any = schema
    for part in location:
        if part not in current.model_fields:  # a place in a list, or a key that a person chose
            continue
        annotation = current.model_fields[part].annotation
        current = next(
            (a for a in (annotation, *get_args(annotation)) if _is_schema(a)),
            None,
        )
        if current is None:
            return []
    return list(current.model_fields)


def _is_schema(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
