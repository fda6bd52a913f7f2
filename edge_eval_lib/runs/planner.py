"""What notebook 07 begins and ends with: whose options it chooses among, and where it writes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from edge_eval_lib import scraps
from edge_eval_lib.artefacts.lab import lab_root
from edge_eval_lib.economics import (
    ladder,
    prediction_errors,
    published,
    requirements,
)
from edge_eval_lib.economics.advise import choice as advise_choice
from edge_eval_lib.economics.advise import elsewhere as advise_elsewhere
from edge_eval_lib.economics.advise import inputs as advise_inputs
from edge_eval_lib.economics.advise import options as advise_options
from edge_eval_lib.economics.advise.inputs import Inputs, Limits, Need
from edge_eval_lib.economics.carbon import load_carbon_book
from edge_eval_lib.economics.prices import PriceBook, Prices, load_price_book
from edge_eval_lib.errors import UserError, nearest
from edge_eval_lib.machine.declared import Hardware, load_hardware, load_hardware_file
from edge_eval_lib.paths import outputs_root
from edge_eval_lib.results import decision
from edge_eval_lib.results.readable import Prose
from edge_eval_lib.study import PUBLISHED, Study, find_beside, load_study

LIKE_PUBLISHED = "paper_t4"  # the study that measures what was published
INPUT_TOKENS = 500.0  # of a published request, the paper's assumption
NEEDS = [name for name in Need.__dataclass_fields__ if name not in Limits.model_fields]


@dataclass(frozen=True)
class Planner:
    """A question: the options, what is asked of them, and where the answer goes.

    `study` is None for the published figures.
    """

    study: Study | None
    options: pd.DataFrame
    inputs: Inputs
    book: PriceBook
    hardware: Hardware
    machine: str
    outputs: Path
    remarks: tuple[str, ...] = ()

    @property
    def need(self) -> Need:
        """What must hold."""
        return self.inputs.need

    @property
    def task(self) -> str:
        """The task whose variants are the options."""
        return str(self.options["task"].iloc[0])

    @cached_property
    def choice(self) -> advise_choice.Choice:
        """The choice, evaluated once."""
        return advise_choice.choose(self.options, self.inputs)

    @cached_property
    def requirements(self) -> pd.DataFrame:
        """What every step of every model needs, on this and other hardware."""
        return requirements.requirements(self.study or load_study(LIKE_PUBLISHED))

    @cached_property
    def prediction_errors(self) -> pd.DataFrame:
        """How far predictions are off, beside measured figures."""
        return prediction_errors.prediction_errors(self.study)

    def asking(self, **asked: Any) -> advise_choice.Choice:
        """Choose again with other inputs or needs, quickly: for sliders."""
        need = Need(**{**vars(self.need), **{k: v for k, v in asked.items() if k in NEEDS}})
        ranges = {**self.inputs.ranges, **advise_inputs.of_score(need)}
        for name, value in asked.items():
            if name not in NEEDS:
                ranges[name] = advise_inputs.parse(name, value, ranges[name])
        return advise_choice.choose(self.options, Inputs(ranges, need), draws=512)

    @property
    def stamp(self) -> str:
        """What stands at a picture's foot."""
        source = self.options["energy_source"].dropna()
        energy = f"; energy from {source.iloc[0]}" if len(source) else ""
        return f"Measured on {self.machine}{energy}; prices and loads as listed in the page"

    def finish(self, answer: Sequence[str]) -> None:
        """Record the answer, and that the notebook came to its end."""
        scraps.record("settings_hash", os.environ.get("EDGE_EVAL_SETTINGS_HASH"))
        scraps.record("answer", list(answer))
        scraps.complete()
        if by_hand():  # a path of this machine stays out of the page
            print(f"Tables and figures: {self.outputs}")


def by_hand() -> bool:
    """Whether somebody runs the notebook, in JupyterLab."""
    return "EDGE_EVAL_RUN" not in os.environ


def begin(
    study: str,
    task: str | None = None,
    inputs: Mapping[str, str | float] | None = None,
    need: Mapping[str, Any] | None = None,
    deployments: Sequence[str] | None = None,
    region: str | None = None,
    prices: str | None = None,
    hardware: str | None = None,
) -> Planner:
    """Put the question together.

    Args:
        study: A name in params/ or the path of a study that was run, or `published` for the T4
            figures that come with the project.
        task: Whose variants to choose among; by default the study's first.
        inputs: By name, a value or `least:value:most`; the rest as in params/advice.yaml.
        need: What must hold: `ttft_ms`, `tpot_ms`, `score`, `budget_usd_per_month`, `machines`,
            `at_hand`; the `objective`: cost, energy, carbon or latency; and how requests come,
            `arrivals`: steady, random or bursty.
        deployments: Some of on premises, cloud, API; by default all.
        region: Whose electricity's carbon counts, as in params/carbon.yaml.
        prices: A set of prices of params/prices.yaml; by default the study's.
        hardware: Other than what was measured on, a name of params/hardware.yaml: speed and power
            are then predicted.

    Raises:
        UserError: An input that cannot be, or nothing to choose among.
    """
    for name in need or {}:
        if name not in NEEDS:
            raise UserError(f"There is no need {name!r}; {nearest(name, NEEDS)}")
    limits = advise_inputs.load_assumptions().limits
    needed = Need(**{**limits.model_dump(), **(need or {})})
    loaded = None if study == PUBLISHED else load_study(study)
    variants, serving = _tables(loaded)
    book, of_study = _prices(loaded, prices)
    measured_on = "t4x2" if loaded is None else loaded.hardware
    declared = load_hardware(hardware or measured_on)
    known = advise_inputs.of_place(
        book, load_carbon_book(), region, _card(declared), max(declared.gpus, 1)
    )
    wanted = tuple(deployments or advise_options.DEPLOYMENTS)
    remarks = []
    if "cloud_usd_per_hour" not in known and {*wanted} & {*advise_options.RENTED}:
        wanted = tuple(name for name in wanted if name not in advise_options.RENTED)
        remarks.append("No cloud is among the options: no price of such a machine is listed.")
    options = advise_options.of_study(variants, serving, task, wanted)
    asked = dict(inputs or {})
    if hardware in (None, measured_on):
        machine = _name_of(options["host"])
    else:
        machine = f"{declared.gpus or 1}x {hardware}, predicted"
        like = loaded or load_study(LIKE_PUBLISHED)
        options = advise_elsewhere.on_hardware(options, like, hardware, INPUT_TOKENS)
        if declared.purchase_usd is not None:
            asked.setdefault("hardware_usd", declared.purchase_usd + advise_elsewhere.AROUND_USD)
        remarks.append(
            f"Speed and power on {hardware} are predicted from the published T4 rows "
            f"(`tables/prediction_errors.csv`)"
            + (", beyond what that was checked on." if options["extrapolated"].any() else ".")
        )
    options = _with_floor(options, declared)
    gathered = advise_inputs.gather(options, book, of_study, needed, asked, known=known)
    advise_choice.require_physical(options, gathered)
    return Planner(
        loaded, options, gathered, book, declared, machine, _outputs(loaded), tuple(remarks)
    )


def _name_of(host: pd.Series) -> str:
    known = host.dropna()
    return str(known.iloc[0]).removesuffix(" (published)") if len(known) else "the machine"


def _tables(study: Study | None) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    if study is None:
        return _doubted(published.observations()), None
    folder = study.directory / "tables"
    if not (folder / "variants.csv").is_file():
        raise UserError(
            f"{study.name} has no table of variants yet: `make all STUDY={study.argument}` first. "
            f"The published T4 figures need none: STUDY={PUBLISHED}."
        )
    variants = pd.read_csv(folder / "variants.csv", float_precision="round_trip")
    serving = folder / "serving.csv"
    known = pd.read_csv(serving, float_precision="round_trip") if serving.is_file() else None
    return variants, known


def _doubted(rows: pd.DataFrame) -> pd.DataFrame:
    """Mark published rows whose speed would need nearly all of the cards' bandwidth."""
    near = ladder.near_peak_bandwidth()
    share = rows[published.VARIANT].merge(near, how="left", on=published.VARIANT)["share"]
    said = [f"warning: bandwidth ({s:.0%} of the cards' peak)" for s in share.fillna(0)]
    return rows.assign(validity=pd.Series(said, rows.index).where(share.notna().to_numpy()))


def _prices(study: Study | None, name: str | None) -> tuple[PriceBook, Prices]:
    book = load_price_book(None if study is None else find_beside(study.path, "prices.yaml"))
    return book, book.prices(name or ("paper" if study is None else study.prices))


def _card(hardware: Hardware) -> str | None:
    """The name in params/hardware.yaml of one of the cards; None for a CPU, or an unknown card."""
    if hardware.gpus == 0 or hardware.bandwidth_gb_s is None:
        return None
    figures = (hardware.bandwidth_gb_s, hardware.fp16_tflops)
    declared = load_hardware_file().devices.items()
    alike = (n for n, d in declared if (d.bandwidth_gb_s, d.fp16_tflops) == figures)
    return next(alike, None)


def _with_floor(options: pd.DataFrame, hardware: Hardware) -> pd.DataFrame:
    """Add the time of reading every weight once, where the memory's bandwidth is known."""
    if hardware.bandwidth_gb_s is None or options["memory_nominal_gb"].isna().all():
        return options
    bandwidth = hardware.bandwidth_gb_s * options["gpus"].clip(lower=1)
    return options.assign(floor_ms=1e3 * options["memory_nominal_gb"] / bandwidth)


def _outputs(study: Study | None) -> Path:
    if study is None:
        return outputs_root() / "paper"
    return study.directory if not by_hand() else lab_root() / study.name


def sliders(question: Planner) -> None:
    """Show sliders that ask the same question at other loads, deadlines and prices."""
    import ipywidgets as widgets
    from IPython.display import display
    from nbconvert.filters import markdown2html

    value = question.inputs.value
    look = {"style": {"description_width": "9rem"}, "layout": {"width": "32rem"}}
    log = partial(widgets.FloatLogSlider, **look)
    controls = {
        "requests_per_day": log(
            value("requests_per_day"), min=1, max=7, description="requests a day",
            readout_format=",.0f",
        ),
        "api_price_factor": log(
            value("api_price_factor"), min=-3, max=1, description="API price ×",
            readout_format=".3f",
        ),
        "electricity_usd_per_kwh": widgets.FloatSlider(
            value("electricity_usd_per_kwh"), min=0, max=1, step=0.01, description="USD/kWh", **look
        ),
        "ttft_ms": log(
            question.need.ttft_ms or 1000, min=1, max=4, description="first token, ms",
            readout_format=",.0f",
        ),
    }  # fmt: skip

    answer = widgets.HTML()  # no widget of outputs, which asks its notebook's client back

    def again(_: object = None) -> None:
        asked = {name: control.value for name, control in controls.items()}
        try:
            said = decision.sentences(decision.answer(question.asking(**asked), question.machine))
        except UserError as error:
            said = Prose(str(error))
        answer.value = markdown2html(str(said))

    for control in controls.values():
        control.observe(again, names="value")
    again()
    display(widgets.VBox([*controls.values(), answer]))
