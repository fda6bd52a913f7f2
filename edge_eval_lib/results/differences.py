"""What keeps two results from being compared: what differs, and which figures it touches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_eval_lib.results.columns import ESTIMATED_SOURCE
from edge_eval_lib.results.exchange import ResultRow

SPEED = ("throughput_tok_s", "energy_per_request_j")
SERVED = (*SPEED, "load_s", "memory_gb")
ALL = (*SERVED, "score")
# Of a row, which figures a difference touches. Host and GPUs are what is compared.
OF_ROWS = {
    "engine": SERVED,
    "concurrency": (*SPEED, "memory_gb"),
    "executed_dtype": ALL,
    "energy_source": ("energy_per_request_j",),
}
# Of a study's settings, likewise; a section's own fields stand after a dot.
OF_SETTINGS = {
    "data.source": ALL,
    "data.evaluation_examples": ALL,
    "seed": ALL,
    "task_settings": ALL,
    "data.train_examples": ("score",),
    "training": ("score",),
    "workload.output_tokens": (*SPEED, "memory_gb"),
    "workload.uncut_tokens": ("score",),
    "workload.prefix_caching": (*SPEED, "memory_gb"),
}


@dataclass(frozen=True)
class Difference:
    """Something that two results do not share, and the figures that it touches."""

    what: str
    a: str
    b: str
    figures: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """`engine transformers, vllm`: A's, then B's."""
        return f"{self.what} {self.a} (A), {self.b} (B)"


def of_rows(a: ResultRow, b: ResultRow) -> list[Difference]:
    """List what two rows of one variant do not share; what one does not say is not known."""
    found = []
    for name, figures in OF_ROWS.items():
        one, other = getattr(a, name), getattr(b, name)
        if one != other:
            found.append(Difference(name.replace("_", " "), _said(one), _said(other), figures))
    if (a.family, a.size) != (b.family, b.size):
        models = f"{a.family}-{a.size}", f"{b.family}-{b.size}"
        found.append(Difference("model", *models, ALL))
    if a.host != b.host and ESTIMATED_SOURCE in (a.energy_source or ""):
        what = "energy estimated by the same watts of a core:"
        found.append(Difference(what, a.host, b.host, ("energy_per_request_j",)))
    return found


def of_settings(a: dict[str, Any] | None, b: dict[str, Any] | None) -> list[Difference]:
    """List what two studies do not share of prompts and task settings; unknown where one is."""
    if a is None or b is None:
        sides = ("not known" if a is None else "known", "not known" if b is None else "known")
        return [Difference("prompts and task settings", *sides, ALL)]
    found = []
    for name, figures in OF_SETTINGS.items():
        one, other = _field(a, name), _field(b, name)
        if isinstance(one, dict) and isinstance(other, dict):
            for key in sorted(one.keys() | other.keys()):
                if one.get(key) != other.get(key):
                    said = _said(one.get(key)), _said(other.get(key))
                    found.append(Difference(f"{name}.{key}", *said, figures))
        elif one != other:
            found.append(Difference(name, _said(one), _said(other), figures))
    return found


def _field(settings: dict[str, Any], name: str) -> Any:
    section, _, field = name.partition(".")
    value = settings.get(section)
    return value.get(field) if field and isinstance(value, dict) else value


def _said(value: Any) -> str:
    return "not known" if value is None else str(value)
