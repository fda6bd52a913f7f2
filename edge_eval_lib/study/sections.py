"""The sections of a study file, and what a field may hold.

A part of a study takes no unknown field, converts no value and knows its bounds.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from edge_eval_lib import compressions, tasks
from edge_eval_lib.errors import nearest
from edge_eval_lib.study.yaml_file import CONTROL

# Bounds beyond which a number is a slip: everything that a study asks for must end one day.
MOST_REPETITIONS = 1000
MOST_RUNS = 50_000  # of serving: half a minute each is 17 days; the paper's study has 1,800
MOST = 1_000_000  # examples, tokens, steps; the largest data set of the hub here has 300,000


def _plain_text(value: str) -> str:
    if not value.strip() or len(value) > 1000:
        raise ValueError("it should hold 1 to 1000 characters")
    if CONTROL.search(value):
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


def engines() -> Any:
    """Return the room of engines, above this one: a study asks it what the engine it names can."""
    return importlib.import_module("edge_eval_lib.engines")


def _is_engine(value: str) -> str:
    known = engines().names()
    if value not in known:
        raise ValueError(f"there is no such engine; {nearest(value, known)}")
    return value


Text = Annotated[str, AfterValidator(_plain_text)]
Line = Annotated[str, AfterValidator(_line)]
# Parts of `family-size_task_method_precision_rNN.requests.parquet`, of at most 255 bytes.
Name = Annotated[
    str, _name(64, hint=" (no underscore: it separates the parts of a variant's name)")
]
StudyName = Annotated[str, _name(100, also="_")]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-1e38, le=1e38)]
Count = Annotated[int, Field(ge=1, le=MOST)]


def _task(value: str) -> str:
    if value not in tasks.names():
        raise ValueError(f"it should be {_listed(tasks.names())}")
    return value


def _precision(value: str) -> str:
    """Take what compressions/ has a file for, or a chain of them joined by hyphens."""
    problem = compressions.problem(value)
    if problem:
        known = f"it should be {_listed(compressions.storages())}"
        raise ValueError(known if value.isalnum() else problem)
    return value


def _listed(names: Iterable[str]) -> str:
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}"


Task = Annotated[str, AfterValidator(_task)]
Method = Literal["lora", "qlora", "none"]
Precision = Annotated[str, AfterValidator(_precision)]


class Strict(BaseModel):
    """A part of a study file: no unknown field, no converted value, no infinite number."""

    # What a field means stands below it, and goes from there into docs/study.md.
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Model(Strict):
    """Where a model's weights come from and what its model card says."""

    family: Name
    """Its family in lower case, such as `llama`; no underscore."""
    size: Name
    """Its size as the model card says it, such as `1B`."""
    source: Literal["package", "local", "hub", "random"]
    """Where the weights are; `random` fills the model's shape with random ones."""
    location: Line
    """`PACKAGE/FILE.gguf` of a `package`; the directory of safetensors of a `local` model, relative
    to the study file; the repository of the `hub`; of `random` the name in params/shapes.yaml."""
    revision: Line
    """Commit, tag or version; `none` of a local directory."""
    licence: Line
    """As the model card says it."""
    parameters: Annotated[int, Field(ge=1, le=10**15)]
    """How many weights it has."""
    nominal_gb: dict[Precision, Annotated[float, Field(gt=0, le=1e6)]]
    """The model card's size in GB (10^9 bytes) by precision."""
    gated: bool = False
    """Whether the hub wants its licence accepted (then `HF_TOKEN` is needed)."""
    config: dict[str, Any] | None = None
    """What its config.json says of its shape; by default what params/shapes.yaml has."""

    @property
    def name(self) -> str:
        """`family-size`."""
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
    """How it is adapted: `none` serves the base as it is."""
    precision: Precision
    """`fp16`, `int8` or `int4`, or a chain of compressions before it, such as `depth50-int4`."""
    tasks: list[Task] | None = Field(default=None, exclude_if=lambda tasks: tasks is None)
    """Those of the study's tasks that it is served on; by default all."""
    models: list[Line] | None = Field(default=None, exclude_if=lambda models: models is None)
    """Those of the study's models, as `family-size`, that it is served of; by default all."""
    repetitions: Annotated[int, Field(ge=1, le=MOST_REPETITIONS)] | None = Field(
        default=None, exclude_if=lambda repetitions: repetitions is None
    )
    """How often it is served, where that is more than the study's."""


class Role(Strict):
    """A model that conversations may call beside the run's own."""

    model: Line | None = None
    """One of the study's models, as `family-size`; by default the run's."""
    method: Method
    """Whose adapter of the task it answers with."""
    precision: Precision
    """The precision it is served at."""
    engine: Annotated[str, AfterValidator(_is_engine)] | None = None
    """What serves it; by default the run's engine."""


class Data(Strict):
    """Which examples a task uses."""

    source: Line
    """`embedded` (they come with the project), `hub`, or the path of a local copy of the sets."""
    train_examples: Count
    """How many an adapter is trained on."""
    heldout_examples: Count
    """How many are kept for choosing the training; never trained on, never scored."""
    evaluation_examples: Count
    """How many prompts are served and scored."""

    @property
    def heldout_measured(self) -> int:
        """How many held-out examples a run reports the loss of; none is ever trained on."""
        return min(self.heldout_examples, 8)


class Training(Strict):
    """LoRA and QLoRA share every one of these: the methods differ in the base's precision alone."""

    lora_rank: Annotated[int, Field(ge=1, le=16_384)]  # no layer is wider
    """Rank of the adapter's two matrices."""
    lora_alpha: Annotated[int, Field(ge=1, le=65_536)]
    """The adapter counts alpha / rank times."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    """Share of the adapter's inputs dropped while training."""
    target_modules: Annotated[list[Line], Field(min_length=1)] | Literal["all-linear"] = (
        "all-linear"
    )
    """Names of the layers that get an adapter; `all-linear` is every linear one but the head."""
    adapted_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, exclude_if=lambda share: share == 1
    )
    """Share of the layers that carry the adapter, the last ones: the backward pass ends there."""
    learning_rate: Annotated[float, Field(gt=0, le=1e38)]  # float32 holds little more
    """Of the optimiser, at its highest."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    """Training examples a step."""
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    """Passes over the training examples."""
    max_tokens: Count
    """Training rows of more tokens are passed over, and counted."""
    compute_dtype: Literal["float32", "float16", "bfloat16"]
    """What training and serving compute in, where the hardware can."""
    gradient_checkpointing: bool
    """Whether activations are computed again instead of kept: less memory, more time."""


Concurrency = Annotated[int, Field(ge=1, le=10_000)]  # no server holds more requests
Rate = Annotated[float, Field(ge=1e-3, le=1e4)]  # slower, 400 prompts take 5 days


class Workload(Strict):
    """What a serving run does."""

    engine: Annotated[str, AfterValidator(_is_engine)]
    """`transformers`, `vllm`, `openai`, or one of your own (docs/vllm.md)."""
    output_tokens: Annotated[int, Field(ge=2, le=MOST)]
    """Tokens generated for every request, whether or not the answer ended before."""
    concurrency: list[Concurrency]
    """Requests in flight, a window each; 1 and the headline's are among them."""
    headline_concurrency: Concurrency
    """The one at which all evaluation prompts are served, and of which variants.csv tells."""
    latency_prompts: Count
    """Prompts a slot that are served at every other concurrency."""
    warmup_requests: Count
    """The most that are answered to warm up, if the throughput does not get steady before."""
    idle_seconds: Annotated[float, Field(gt=0, le=3600)]
    """How long each idle baseline is measured."""
    uncut_tokens: Annotated[int, Field(ge=2, le=MOST)] | None = None
    """Answers without an end within `output_tokens` go on, not measured, to at most this many; then
    those are scored."""
    largest_concurrency: Concurrency | None = None
    """Also powers of two up to this, until twice the concurrency gives hardly more throughput."""
    arrival_rates_per_s: list[Rate] = Field(default_factory=list)
    """Also every prompt at Poisson arrivals of each of these rates."""
    prefix_caching: bool = False
    """Also every prompt once more, what prompts have in common computed once."""

    @property
    def engine_kind(self) -> Any:
        """The engine's class, which says what it can."""
        return engines().kind(self.engine)

    @model_validator(mode="after")
    def _engine_can(self) -> Workload:
        if self.prefix_caching and not self.engine_kind.supports_prefix_caching:
            able = engines().able("supports_prefix_caching")
            raise ValueError(f"workload.prefix_caching needs engine: {able}, not {self.engine}")
        if self.arrival_rates_per_s and not self.engine_kind.continuous_batching:
            able = engines().able("continuous_batching")
            raise ValueError(
                f"workload.arrival_rates_per_s needs engine: {able}: {self.engine} answers batch "
                "by batch"
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
            (1, "latency is taken at 1"),
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
    """Training with and without each part of QLoRA, one at a time."""

    steps: Count
    """Training steps in each measured window."""
    warmup_steps: Count
    """Training steps before it."""


class PowerSweep(Strict):
    """Serving at several settings of a GPU's knob, in the unit that its name ends with."""

    knob: Literal["sm_clock_mhz", "power_limit_w"]
    """What is turned."""
    points: Annotated[list[Annotated[float, Field(gt=0, le=10_000)]], Field(min_length=3)]
    """Its settings, rising."""
    settle_seconds: Annotated[float, Field(ge=0, le=600)]
    """What passes before a setting is warmed up."""
    exclusive: bool = False
    """That nobody else uses the GPU: nothing is turned without it."""
    locked_mhz: (
        Annotated[list[Annotated[int, Field(gt=0, le=10_000)]], Field(min_length=2, max_length=2)]
        | None
    ) = None
    """[lowest, highest] of what an administrator has locked the SM clock to, which a driver cannot
    tell: put back at the end."""

    @model_validator(mode="after")
    def _rising(self) -> PowerSweep:
        if sorted(set(self.points)) != self.points:
            raise ValueError("power_sweep.points must rise: each setting once, the lowest first")
        if self.locked_mhz and self.knob != "sm_clock_mhz":
            raise ValueError(f"power_sweep.locked_mhz is of sm_clock_mhz, and knob is {self.knob}")
        return self


class Harness(Strict):
    """Scoring of every variant by tasks of lm-evaluation-harness, beside the study's own tasks."""

    tasks: list[Line]
    """Its names of tasks or groups, or those of task files in `task_directory`."""
    prompts: Annotated[int, Field(ge=1, le=10**8)] = 400
    """The first so many of each task."""
    few_shot: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Examples before each prompt; by default as many as the task has."""
    task_directory: Line | None = None
    """Where task files of your own lie, relative to the study file."""
