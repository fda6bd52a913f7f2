"""What each stage hands over: a typed record, the contract between notebooks and tables.

    run.record(AdaptRecord(adapt=window, base_load=loading, imports=imports, ...))

The record's fields are what later stages read of a run, as scraps of its executed notebook. A
measured window `adapt` becomes the scraps `adapt_s`, `adapt_energy_j`, ...; everything else keeps
the name of its field. Which run it was (family, task, ...) is recorded by `notebook.begin`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, InstanceOf

from edge_eval_lib.energy import Measurement
from edge_eval_lib.lifecycle.adapt import TrainingOutcome
from edge_eval_lib.lifecycle.answers import BatchAgreement
from edge_eval_lib.lifecycle.cold_load import Load
from edge_eval_lib.lifecycle.serve import WarmUp
from edge_eval_lib.machine.host import Host

Rows = list[dict[str, Any]]  # a table, row by row
Measured = InstanceOf[Measurement]  # as `monitor.window` gives it
FLAT = "flat"  # marks a field whose own fields are scraps each, without its name before them
BY_NAME = "by name"  # and one whose items are scraps each, with its name after them


class Record(BaseModel):
    """What one run of a stage measured and made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def as_scraps(self) -> dict[str, Any]:
        """The scraps that the record is kept as, by name, with values that JSON can hold."""
        scraps: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Measurement):
                scraps |= value.as_dict(name)
            elif field.annotation == dict[str, Measured]:
                for window, measured in value.items():
                    scraps |= measured.as_dict(window)
            else:
                plain = self.model_dump(include={name})[name]
                if BY_NAME in field.metadata:
                    plain = {f"{key}_{name}": item for key, item in plain.items()}
                flat = FLAT in field.metadata or BY_NAME in field.metadata
                scraps |= plain if flat else {name: plain}
        return scraps


class PreflightRecord(Record):
    """What the machine is, can measure and may set, and whether the study fits on what it declares.

    `left_over` tells settings that a power sweep could not put back.
    """

    host: Host
    energy_source: str | None
    sources: Rows
    knobs: Rows
    left_over: list[str]
    fit: Rows


class AdaptRecord(Record):
    """One adaptation: what loading the base and training took, and what came of it.

    `executed_training` is what was really trained with, whatever the study says.
    """

    adapt: Measured
    base_load: Measured
    imports: Measured
    outcome: Annotated[TrainingOutcome, FLAT]
    instruction_set: str
    rows_passed_over: int
    adapter_bytes: int
    trainable_parameters: int
    heldout_loss_before: float
    heldout_loss_after: float
    idle_power_w: float | None
    executed_training: dict[str, Any] = Field(default_factory=dict)


class CompressRecord(Record):
    """What merging an adapter (`fp16`) and each quantisation took, and what was written.

    `carried` are the scraps of an earlier run whose weights stayed; `quantization` is how each
    precision was really made, kept as `int4_quantization`.
    """

    carried: Annotated[dict[str, Any], FLAT] = Field(default_factory=dict)
    windows: dict[str, Measured]
    imports: Measured
    idle_power_w: float | None
    merge_base: str
    artefacts: Rows
    quantization: Annotated[dict[str, dict[str, Any] | None], BY_NAME] = Field(default_factory=dict)


class ServeRecord(Record):
    """A cold load, the warm-up, and the record and figures of every serving window.

    `executed_workload` is what was really asked, whatever the study says. `roles` are the other
    models that its conversations called, and what loading them took, a row each.
    """

    load: Annotated[Load, FLAT]
    engine: str
    executed_dtype: str | None
    instruction_set: str | None
    gpus: int | None
    memory_nominal_gb: float | None
    idle_bare_power_w: float | None
    idle_loaded_power_w: float | None
    idle_reason: str | None
    warm_up: WarmUp
    serving_order: int | None
    agreement: Annotated[BatchAgreement, FLAT]
    serving_windows: Rows
    serving: Rows
    executed_workload: dict[str, Any] = Field(default_factory=dict)
    roles: Rows = Field(default_factory=list)


class ScoreRecord(Record):
    """How much was scored; the answers themselves lie beside the notebook."""

    scored_runs: int
    unscored_prompts: int


class AblationRecord(Record):
    """What the ablation says of the published ratio; its runs lie beside the notebook."""

    idle_power_w: float | None
    verdict: str
    verdict_reason: str


class PowerSweepRecord(Record):
    """Where the knees of a power sweep lie, and what it says; its runs lie beside the notebook."""

    idle_power_w: float | None
    knob: str
    knees: Rows
    sentences: list[str]


class HarnessRecord(Record):
    """What lm-evaluation-harness measured, a row a task and metric."""

    harness: Rows
