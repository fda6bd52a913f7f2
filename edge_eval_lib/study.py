"""Studies: params/*.yaml -> Study, its variants, and the runs that measure them.

Pure code: it imports neither torch nor a notebook, so that planning starts at once.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import random
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import orjson
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from edge_eval_lib.errors import UserError

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
# Names become file names and parts of `family-size_task_method_precision`.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.\-]*$")]
StudyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]*$")]
RESERVED_NAMES = (
    "models",
    "paper",
    "comparison",
)  # directories below outputs/ that belong to no study
Count = Annotated[int, Field(ge=1)]
Schema = TypeVar("Schema", bound=BaseModel)


def project_root() -> Path:
    """The directory that holds notebooks/, params/ and outputs/."""
    return Path(__file__).resolve().parents[1]


def outputs_root() -> Path:
    """Where runs write: outputs/, or the directory that EDGE_EVAL_OUTPUTS names."""
    return Path(os.environ.get("EDGE_EVAL_OUTPUTS") or project_root() / "outputs").resolve()


class Strict(BaseModel):
    """A part of a study file: unknown fields are refused, values are never converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


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
    location: str
    revision: str
    licence: str
    parameters: Count
    nominal_gb: dict[Precision, Annotated[float, Field(gt=0)]]
    gated: bool = False
    config: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.family}-{self.size}"


class Configuration(Strict):
    """One cell of the grid beside model and task: how to adapt and at which precision to serve."""

    method: Method
    precision: Precision


class Data(Strict):
    """Which examples a task uses; `source` is `embedded`, `hub` or a path (see tasks.load_task)."""

    source: str
    train_examples: Count
    heldout_examples: Count
    evaluation_examples: Count

    @property
    def heldout_told(self) -> int:
        """Of how many held-out examples a run tells the loss; all of them are never trained on."""
        return min(self.heldout_examples, 8)


class Training(Strict):
    """LoRA and QLoRA share every one of these: the methods differ in the base's precision alone."""

    lora_rank: Count
    lora_alpha: Count
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: list[str] | Literal["all-linear"]  # peft's word: all but the output head
    learning_rate: Annotated[float, Field(gt=0)]
    batch_size: Count
    epochs: Count
    max_tokens: Count
    compute_dtype: Literal["float32", "float16", "bfloat16"]
    gradient_checkpointing: bool


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
    output_tokens: Annotated[int, Field(ge=2)]
    concurrency: list[Count]
    headline_concurrency: Count
    latency_prompts: Count
    warmup_requests: Count
    idle_seconds: Annotated[float, Field(gt=0)]
    uncut_tokens: Count | None = None
    largest_concurrency: Count | None = None
    arrival_rates_per_s: list[Annotated[float, Field(gt=0)]] = Field(default_factory=list)
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
        for needed in (1, self.headline_concurrency):
            if needed not in self.concurrency:
                raise ValueError(
                    f"workload.concurrency must contain {needed}: latency is told at 1"
                )
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

    tasks: list[str]
    prompts: Count = 400
    few_shot: Annotated[int, Field(ge=0)] | None = None
    task_directory: str | None = None


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
    description: str
    hardware: str
    models: list[Model]
    tasks: list[Task]
    configurations: list[Configuration]
    data: Data
    training: Training
    workload: Workload
    repetitions: Count
    prices: str
    seed: int
    ablation: Ablation | None = None
    calibration_examples: Annotated[int, Field(ge=0)] = 0
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

    @property
    def path(self) -> Path:
        """The study file."""
        return self._path

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
        """The same study with another number of serving repetitions."""
        study = self.model_copy(update={"repetitions": repetitions})
        study._path = self._path
        return study

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
    near = difflib.get_close_matches(name, list(mapping), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there is: {', '.join(mapping) or 'none'}."
    raise UserError(f"{where} has no {what} {name!r}; {hint}")


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
        precisions = [v.precision for v in variants]
        compressor: dict[str, Any] = {}
        if study.workload.engine == "vllm":
            compressor = {"calibration_examples": study.calibration_examples}
        compress = adapt | {"precisions": precisions} | compressor
        prepared[adapter] = adapt | compressor
        runs.append(Run("adapt", adapter, parameters, {"stage": "adapt", **adapt}))
        runs.append(
            Run(
                "compress",
                adapter,
                parameters,
                {"stage": "compress", **compress},
                needs=(("adapt", adapter),),
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
    path = find_study(path_or_name)
    content = read_yaml(path)
    if not isinstance(content, dict) or "configurations" not in content:
        raise UserError(f"{path} is not a study: it has no field 'configurations'.")
    if isinstance(content.get("models"), list):
        content["models"] = [_resolve_model(entry, path) for entry in content["models"]]
    study = validate(Study, content, path)
    study._path = path
    return study if repetitions is None else study.with_repetitions(repetitions)


def find_study(path_or_name: str | Path) -> Path:
    """The study file that a path or a name in params/ means; UserError if there is none."""
    text = str(path_or_name)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        path = Path(text).expanduser().resolve()
        if not path.is_file():
            raise UserError(
                f"There is no study file {path}; give a YAML file or a name in params/."
            )
        return path
    folder = project_root() / "params"
    path = folder / f"{text}.yaml"
    if not path.is_file():
        studies = sorted(
            p.stem for p in folder.glob("*.yaml") if "configurations:" in p.read_text()
        )
        near = difflib.get_close_matches(text, studies, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is: {', '.join(studies)}."
        raise UserError(f"There is no study {text!r} in params/; {hint}")
    return path


def find_beside(study_path: Path, file_name: str) -> Path:
    """`file_name` beside the study file if it is there, else the one in params/."""
    beside = study_path.parent / file_name
    return beside if beside.is_file() else project_root() / "params" / file_name


def read_yaml(path: Path) -> Any:
    """A YAML file's content; UserError with the line for a broken or unreadable file."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise UserError(f"{path} is not valid YAML{line}: {problem}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, no and on are words, a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the field {key.value!r} stands there twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if not pair[0].endswith((":bool", ":float"))]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = r"^[-+]?(\d[\d_]*\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$"


def _add_resolvers() -> None:
    import re

    _Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), "tf")
    _Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), "-+.0123456789")


_add_resolvers()


def _resolve_model(entry: Any, study_path: Path) -> Any:
    """A model stanza as it stands, or the one of that name in models.yaml."""
    if isinstance(entry, str):
        stanzas: dict[str, Any] = {}
        for path in dict.fromkeys(
            (project_root() / "params" / "models.yaml", find_beside(study_path, "models.yaml"))
        ):
            stanzas |= {name: (stanza, path) for name, stanza in read_yaml(path).items()}
        entry, origin = _pick(stanzas, entry, "model", "models.yaml")
    else:
        origin = study_path
    if not isinstance(entry, dict) or "location" not in entry:
        return entry
    if entry.get("source") == "local":
        return entry | {"location": str((origin.parent / str(entry["location"])).resolve())}
    if "config" not in entry:
        shapes = _merged("shapes.yaml", study_path)
        if entry.get("source") == "random":
            _pick(shapes, str(entry["location"]), "shape", "shapes.yaml")
        entry = entry | {"config": shapes.get(entry["location"])}
    return entry


def _merged(file_name: str, study_path: Path) -> dict[str, Any]:
    """What the file in params/ holds, and what one of that name beside the study adds."""
    content: dict[str, Any] = {}
    # In this order: the study's own replaces what has the same name.
    for path in dict.fromkeys(
        (project_root() / "params" / file_name, find_beside(study_path, file_name))
    ):
        content |= _read_yaml_once(path, path.stat().st_mtime_ns)
    return content


@lru_cache
def _read_yaml_once(path: Path, _changed_ns: int) -> Any:
    return read_yaml(path)


def validate(schema: type[Schema], content: Any, path: Path) -> Schema:
    """`content` as `schema`; UserError naming the field, and the nearest right name, otherwise."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(schema, error.errors()[0])}") from None


def _explain(schema: type[BaseModel], problem: Any) -> str:
    field_name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _fields_at(schema, problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is: {', '.join(known)}."
        return f"unknown field {field_name!r}; {hint}"
    if problem["type"] == "missing":
        return f"the field {field_name!r} is missing."
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    if not field_name:
        return f"{message}."
    return f"the field {field_name!r} is {problem['input']!r}, but {message}."


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
