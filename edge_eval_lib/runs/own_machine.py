"""What notebook 07 shows of the best option on one's own machine: speed, waits, carbon, cost."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from edge_eval_lib import compressions
from edge_eval_lib.economics import calibration, cost, fit, published, roofline, speed, under_load
from edge_eval_lib.economics.advise.options import ON_PREMISES, SERVERLESS, VARIANT
from edge_eval_lib.economics.form import Calibration
from edge_eval_lib.economics.server import fit_server
from edge_eval_lib.machine.declared import load_hardware
from edge_eval_lib.results import outlook
from edge_eval_lib.runs.planner import LIKE_PUBLISHED, Planner
from edge_eval_lib.study import load_study
from edge_eval_lib.units import HOURS_PER_YEAR, JOULES_PER_KWH, SECONDS_PER_DAY

NO_LIMIT_MS = 3.6e6  # where none is asked: an hour
# What a loaded card draws beyond a bare one where that was not measured: the least that a CUDA
# context alone was found to take (arXiv 2605.23918).
EXTRA_IDLE_W = 26.0


def best_of(question: Planner) -> pd.Series | None:
    """Return the best option on a machine of one's own, of those that fit if any does."""
    own = question.choice.table[question.choice.table["deployment"] == ON_PREMISES]
    return None if own.empty else own.iloc[0]


def day(question: Planner) -> pd.DataFrame:
    """Simulate a day of the best own option: what one machine holds, and how many a day takes.

    A server is fitted to what was measured of the variant at every concurrency; where no limit is
    asked, one that nothing misses stands for it. Empty where no option is one's own.
    """
    option = best_of(question)
    if option is None:
        return pd.DataFrame()
    options, value = question.options, question.inputs.value
    alike = (options["deployment"] == ON_PREMISES) & (options[VARIANT] == option[VARIANT]).all(
        axis=1
    )
    rows = options[alike]
    prompt_tokens = rows["input_tokens_per_request"].fillna(value("input_tokens")).mean()
    server = fit_server(
        rows["concurrency"].to_numpy(float),
        rows["tpot_ms"].to_numpy(float) / 1e3,
        rows["ttft_ms"].to_numpy(float) / 1e3,
        prompt_tokens,
        max_batch=rows["concurrency"].max(),
    )
    # A prompt reads the weights as a step does: it takes no less.
    least_s = float(server.step_s - server.prefill_s_per_token * prompt_tokens)
    server = replace(server, prefill_s=max(float(server.prefill_s), least_s))
    need = question.need
    return under_load.day_table(
        server,
        value("requests_per_day"),
        round(value("input_tokens")),
        round(value("output_tokens")),
        (need.ttft_ms or NO_LIMIT_MS) / 1e3,
        (need.tpot_ms or NO_LIMIT_MS) / 1e3,
        target=need.percentile / 100,
    )


def between_requests(question: Planner) -> pd.DataFrame:
    """Compare keeping the best own option warm with loading it again, at the load's mean rate.

    On the machine of one's own, which is paid for anyway, and serverless, where an hour of such a
    machine has a price. Requests come as is asked for. Empty where a load's or a request's energy,
    or the power of idling loaded, is not known.
    """
    option = best_of(question)
    if option is None:
        return pd.DataFrame()
    row, value = question.options.loc[option.name], question.inputs.value
    extra_w = row["idle_loaded_power_w"] - row["idle_bare_power_w"]
    if pd.isna(extra_w) and question.hardware.gpus:
        extra_w = EXTRA_IDLE_W * row["gpus"]
    measured = ("energy_per_request_j", "load_s", "load_energy_j")
    known = {name: float(row[name]) for name in measured} | {"extra_idle_power_w": extra_w}
    if pd.isna(list(known.values())).any():
        return pd.DataFrame()
    price = value("electricity_usd_per_kwh")
    # USD an hour, a request and a kWh on top.
    paid = {ON_PREMISES: (0.0, row["energy_per_request_j"] / JOULES_PER_KWH * price, price)}
    if "cloud_usd_per_hour" in question.inputs.ranges:
        hour = value("cloud_usd_per_hour")
        seconds = row["output_tokens_per_request"] / row["throughput_tok_s"]
        paid[SERVERLESS] = (hour, cost.usd_per_request(hour, seconds), 0.0)
    rate_req_s = value("requests_per_day") / SECONDS_PER_DAY
    tables = [
        under_load.standby_table(
            rate_req_s,
            **known,
            usd_per_hour=hourly,
            usd_per_request=own,
            electricity_usd_per_kwh=per_kwh,
            variation=question.need.variation,
        ).assign(at=at)
        for at, (hourly, own, per_kwh) in paid.items()
        if own > 0
    ]
    return pd.concat(tables).set_index("at").reset_index() if tables else pd.DataFrame()


def token_traces(question: Planner) -> pd.DataFrame:
    """Tabulate what readers of the best own option's measured answers waited for, token by token.

    Due as is asked for, else as a reader at leisure wants it. Empty where no raw times are at hand.
    """
    option = best_of(question)
    if option is None or question.study is None:
        return pd.DataFrame()
    requests = outlook.read_requests(question.study.directory, option["name"])
    need, asked = question.need, {}
    if need.ttft_ms is not None:
        asked["ttft_limit_s"] = need.ttft_ms / 1e3
    if need.tpot_ms is not None:
        asked["tpot_limit_s"] = need.tpot_ms / 1e3
    return outlook.token_traces(requests, **asked)


def carbon_of(question: Planner) -> pd.DataFrame:
    """Divide the best own option's carbon by whose it is; empty where none is one's own."""
    option = best_of(question)
    if option is None:
        return pd.DataFrame()
    step = f"adapt by {option['method']}"
    steps = question.requirements
    of_model = steps[steps["model"] == f"{option['family']}-{option['size']}"]
    flop = of_model.loc[of_model["step"].str.startswith(step), "flop"].dropna()
    study = question.study or load_study(LIKE_PUBLISHED)
    adapted_on, cards = load_hardware(study.hardware), 1
    flop_of_study = float(flop.iloc[0]) if len(flop) else None
    if question.study is None and flop_of_study:  # trained on more examples than that study asks
        rows = published.read().adaptation
        alike = rows[(rows[published.ADAPTER] == option[published.ADAPTER]).all(axis=1)].iloc[0]
        flop_of_study *= alike["train_examples"] / study.data.train_examples
        cards = int(alike["gpus"])
    index, peak, limit_w = int(str(option.name)), adapted_on.fp16_tflops, adapted_on.power_limit_w
    if not (adapted_on.gpus and peak and limit_w):
        return outlook.carbon_of(question.choice, index, flop_of_study)
    together = cards * 1e12 * peak, cards * limit_w
    return outlook.carbon_of(question.choice, index, flop_of_study, *together)


def against_speed(question: Planner) -> pd.DataFrame:
    """Set a token's cost beside its speed as the best own option's model serves more at once.

    Predicted, from the study's own runs where they are enough. Empty where none is one's own.
    """
    option = best_of(question)
    if option is None:
        return pd.DataFrame()
    study = question.study or load_study(LIKE_PUBLISHED)
    shape = fit.shape_of(study.model(f"{option['family']}-{option['size']}"))
    precision = compressions.estimated_as(option["precision"])
    month = option["machines_usd_per_month"] + option["electricity_usd_per_month"]
    usd_per_hour = month / option["machines"] * 12 / HOURS_PER_YEAR
    return speed.cost_against_speed(
        shape, precision, roofline.device_of(question.hardware), usd_per_hour,
        prompt_tokens=question.inputs.value("input_tokens"),
        output_tokens=round(question.inputs.value("output_tokens")),
        calibration=_calibration(question),
    )  # fmt: skip


def _calibration(question: Planner) -> Calibration | None:
    """Fit the study's own serving rows, where it was asked of what they were measured on."""
    study = question.study
    serving = None if study is None else study.directory / "tables" / "serving.csv"
    if study is None or serving is None or not serving.is_file():
        return None
    if question.hardware != load_hardware(study.hardware):
        return None
    shapes = {(m.family, m.size): fit.shape_of(m) for m in study.models}
    device = roofline.device_of(question.hardware)
    try:
        return calibration.calibrate(pd.read_csv(serving), shapes, device)
    except ValueError:  # too few rows
        return None
