"""What every option costs, takes and emits at a load, for any number of sampled inputs at once.

    evaluated = evaluate(options, inputs.nominal(), inputs.need)
    evaluated.fits, evaluated.figures["usd_per_request"]          # options x draws

A machine takes up to `concurrency` requests at a time and is the faster the fewer it has: a queue
whose speed depends on its batch (steady.steady_state), as fast with a full one as was measured.
Who finds no place waits. Machines are as many as the SLO needs in the busiest hour. Between
requests they idle, warm; serverless ones are given back after a while, and the next request waits
for the model to load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib.economics.advise.inputs import MEASUREMENT, OBJECTIVES, Inputs, Need
from edge_eval_lib.economics.advise.options import API, RENTED, SERVERLESS, TIMED
from edge_eval_lib.economics.capacity import cards_needed, poisson_standby
from edge_eval_lib.economics.carbon import embodied_g_per_hour, operational_g
from edge_eval_lib.economics.cost import api_usd_per_request, rag_usd_per_request
from edge_eval_lib.economics.prices import capital_recovery_factor
from edge_eval_lib.economics.server import Server, capacity_req_s
from edge_eval_lib.economics.steady import highest_steady_rate_req_s, steady_state
from edge_eval_lib.units import HOURS_PER_YEAR, JOULES_PER_KWH, SECONDS_PER_DAY

DRAWS_OF_ERRORS = 256
DAYS_PER_MONTH = 365 / 12
HOURS_PER_MONTH = HOURS_PER_YEAR / 12


@dataclass(frozen=True)
class Evaluation:
    """Options x draws: what each costs, takes and emits, and how each need is met.

    `excess` holds, by constraint, what is taken over what is allowed: above 1 it does not fit.
    """

    figures: dict[str, np.ndarray]
    excess: dict[str, np.ndarray]
    objective: str

    @property
    def fits(self) -> np.ndarray:
        """Whether every constraint holds."""
        shape = np.ones_like(self.figures["usd_per_request"], dtype=bool)
        return np.logical_and.reduce([shape, *(e <= 1 for e in self.excess.values())])

    @property
    def loss(self) -> np.ndarray:
        """What the best has least of; `inf` where an option does not fit."""
        value = self.figures[OBJECTIVES[self.objective]]
        return np.where(self.fits & np.isfinite(value), value, np.inf)

    @property
    def best(self) -> np.ndarray:
        """The best option of each draw; -1 where none fits."""
        loss = self.loss
        return np.where(np.isfinite(loss.min(axis=0)), loss.argmin(axis=0), -1)


def prepared(options: pd.DataFrame, inputs: Inputs) -> pd.DataFrame:
    """Return the options with the tokens of a request that no row recorded, and the score asked.

    `attrs["best_score"]` is what `score_floor_share` is a share of: the best score, or the asked.
    """
    tokens = options["input_tokens_per_request"].fillna(inputs.value("input_tokens"))
    ready = options.assign(input_tokens_per_request=tokens)
    needed = inputs.need.score
    ready.attrs["best_score"] = options["score"].max() if needed is None else needed
    return ready


def evaluate(options: pd.DataFrame, inputs: Mapping[str, np.ndarray], need: Need) -> Evaluation:
    """Compute every figure of every option at every draw of the inputs.

    Args:
        options: Of `prepared`.
        inputs: By name, an array of draws (`Inputs.nominal`, `Inputs.at`).
        need: What must hold.

    Returns:
        Options x draws.
    """
    x, o = inputs, _columns(options, inputs)
    served = _serve(x, o, need)
    fleet_w = _power_w(x, o, served)
    kwh_per_month = fleet_w / 1e3 * HOURS_PER_MONTH * x["pue"]  # of the whole site
    requests_per_month = x["requests_per_day"] * DAYS_PER_MONTH
    parts = _money(x, o, served, kwh_per_month, need.at_hand)
    fixed = parts.pop("fixed")
    running = sum(parts.values())
    parts["once"] = fixed / (12 * x["horizon_years"])
    usd_per_month = running + parts["once"]
    energy = kwh_per_month * JOULES_PER_KWH / requests_per_month
    held = served["machines"] * served["held"]
    carbon_g = _carbon_g(x, held, kwh_per_month) / requests_per_month
    figures = {
        **served,
        "usd_per_request": usd_per_month / requests_per_month,
        "usd_per_month": usd_per_month,
        "running_usd_per_request": running / requests_per_month,
        "fixed_usd": fixed,
        **{f"{name}_usd_per_month": usd for name, usd in parts.items()},
        "energy_per_request_j": np.where(o["is_api"], np.nan, energy),  # not published
        "carbon_g_per_request": np.where(o["is_api"], np.nan, carbon_g),
        "score": o["score"],
    }
    floor = options.attrs["best_score"] * x["score_floor_share"]
    # Of the API no score was measured: it is taken to do.
    excess = {"score": np.where(o["is_api"], 0.0, floor / np.maximum(o["score"], 1e-9))}
    for name, figure, limit in (
        ("first token", "ttft_ms", need.ttft_ms),
        ("time per token", "tpot_ms", need.tpot_ms),
        ("machines", "machines", need.machines),
        ("budget", "usd_per_month", need.budget_usd_per_month),
    ):
        if limit is not None:
            excess[name] = figures[figure] / limit
    shape = np.broadcast_shapes(*(np.shape(values) for values in figures.values()))
    return Evaluation(
        {name: np.broadcast_to(values, shape) for name, values in figures.items()},
        {name: np.broadcast_to(values, shape) for name, values in excess.items()},
        need.objective,
    )


Arrays = dict[str, np.ndarray]


def _columns(options: pd.DataFrame, x: Mapping[str, np.ndarray]) -> Arrays:
    """The options as columns of arrays, their measured figures with their errors."""
    o = {c: options[c].to_numpy(float)[:, None] for c in _COLUMNS}
    o |= _with_errors(options, x[MEASUREMENT])
    for name, deployments in (
        ("is_api", [API]),
        ("is_rented", RENTED),
        ("is_serverless", [SERVERLESS]),
    ):
        o[name] = options["deployment"].isin(deployments).to_numpy()[:, None]
    metered = options["energy_source"].astype(str)
    o["cards_alone"] = metered.str.contains("nvml").to_numpy()[:, None]
    return o


def _serve(x: Mapping[str, np.ndarray], o: Arrays, need: Need) -> Arrays:
    """Machines, and the latencies in the busiest hour, for requests of the length asked for.

    What was measured once serves alike wherever it is deployed: each such row is computed once.
    """
    own = np.flatnonzero(~o["is_api"])
    _, first, row = np.unique(o["measured_row"][own], return_index=True, return_inverse=True)
    served = _serve_own(x, {name: o[name][own][first] for name in _SERVING}, need)
    row_of_all = np.zeros(len(o["is_api"]), int)
    row_of_all[own] = 1 + row.ravel()
    served = {
        name: np.vstack([np.full((1, values.shape[1]), np.nan), values])[row_of_all]
        for name, values in served.items()
    }
    api: dict[str, Any] = {
        "ttft_ms": x["api_ttft_ms"], "tpot_ms": x["api_tpot_ms"], "machines": 0.0,
        "utilisation": np.nan, "at_work": np.nan,
    }  # fmt: skip
    served |= {name: np.where(o["is_api"], value, served[name]) for name, value in api.items()}
    rate_s = x["requests_per_day"] / SECONDS_PER_DAY / np.maximum(served["machines"], 1)
    held, cold = _hold(x, o, rate_s, served["at_work"], served.pop("bunch"))
    late = 1 - need.percentile / 100
    is_late = cold > late  # more requests than may be late find no model loaded
    served["ttft_ms"] = served["ttft_ms"] + np.where(is_late, 1e3 * np.nan_to_num(o["load_s"]), 0.0)
    latency_ms = served["ttft_ms"] + served["tpot_ms"] * (_tokens_out(x) - 1)
    return served | {"latency_s": latency_ms / 1e3, "held": held, "cold_share": cold}


def _tokens_out(x: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.maximum(x["output_tokens"], 1)


def _serve_own(x: Mapping[str, np.ndarray], o: Arrays, need: Need) -> Arrays:
    """The same of what a machine of one's own or a rented one serves."""
    measured_tokens, output_tokens = o["output_tokens_per_request"], _tokens_out(x)
    measured_ms = o["ttft_ms"] + o["tpot_ms"] * (measured_tokens - 1)
    ttft_ms = o["ttft_ms"] * x["input_tokens"] / o["input_tokens_per_request"]
    asked_ms = ttft_ms + o["tpot_ms"] * (output_tokens - 1)
    full_s = measured_tokens / o["throughput_tok_s"] * asked_ms / measured_ms

    # A prompt reads the weights as a step does: no request has its first token before that.
    step_ms = o["step_share"] * o["tpot_ms"]
    prompt_ms = np.maximum(o["prompt_share"] * ttft_ms, np.minimum(step_ms, ttft_ms))
    places = o["concurrency"]
    server = Server(
        prefill_s_per_token=0.0,
        prefill_s=prompt_ms / 1e3,
        step_s=step_ms / 1e3,
        step_s_per_request=(o["tpot_ms"] - step_ms) / places / 1e3,
        max_batch=places,
    )
    asked = (server, 0.0, output_tokens)
    # Load as a share of what was measured: a full machine's throughput is the measured one.
    capacity_s = capacity_req_s(*asked)
    as_modelled = capacity_s * full_s
    ttft_limit_s, tpot_limit_s = (
        1e-3 * (np.inf if ms is None else ms) for ms in (need.ttft_ms, need.tpot_ms)
    )
    share, most = need.percentile / 100, need.utilisation
    highest_s = highest_steady_rate_req_s(
        *asked, ttft_limit_s, tpot_limit_s, share, most, need.variation
    )
    # Where no load keeps the limits, machines are as many as the load takes, and miss them.
    highest_s = np.where(highest_s > 0, highest_s, most * capacity_s)
    rate_s = x["requests_per_day"] / SECONDS_PER_DAY * as_modelled
    machines = cards_needed(rate_s * x["peak_to_mean"], highest_s)
    busiest = steady_state(
        server, rate_s * x["peak_to_mean"] / machines, 0.0, output_tokens, need.variation
    )
    over_day = steady_state(server, rate_s / machines, 0.0, output_tokens, need.variation)
    return {
        "ttft_ms": 1e3 * busiest.ttft_quantile_s(share),
        "tpot_ms": 1e3 * busiest.tpot_s,
        "machines": machines,
        "utilisation": over_day.utilisation,
        "at_work": over_day.busy_share,
        "bunch": over_day.bunch,
    }


def _hold(
    x: Mapping[str, np.ndarray],
    o: Arrays,
    rate_s: np.ndarray,
    at_work: np.ndarray,
    bunch: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of a machine's time that it is held, and of its requests that find no model loaded.

    Idle times are exponential, until the next bunch of requests, the first of which finds the
    machine empty. A serverless machine is held while at work, while it loads, and for
    `keep_warm_s` of an idle time; any other always.
    """
    together = np.maximum(np.nan_to_num(bunch, nan=1.0), 1.0)
    bunches_s = rate_s / together
    standby = poisson_standby(bunches_s, x["keep_warm_s"])
    cold = np.where(o["is_serverless"], (1 - at_work) * standby.cold_share, 0.0)
    held = at_work + (1 - at_work) * bunches_s * standby.warm_s + bunches_s * cold * o["load_s"]
    held = np.where(o["is_serverless"], np.minimum(held, 1.0), 1.0)
    return held, cold / together


def _power_w(x: Mapping[str, np.ndarray], o: Arrays, served: Arrays) -> np.ndarray:
    """Mean watts of all machines: at work while any request is served, else idle while held."""
    power_w = o["power_w"] * x["energy_factor"]
    idle_w = np.where(
        np.isfinite(o["idle_loaded_power_w"]),
        o["idle_loaded_power_w"],
        power_w * x["idle_power_share"],
    )
    at_work, held = served["at_work"], served["held"]
    host_w = np.where(o["cards_alone"], x["host_power_w"], 0.0)
    of_one_w = power_w * at_work + idle_w * np.maximum(held - at_work, 0) + host_w * held
    return np.where(o["is_api"], 0.0, served["machines"] * of_one_w)


def _money(
    x: Mapping[str, np.ndarray], o: Arrays, served: Arrays, kwh_per_month, at_hand: bool
) -> Arrays:
    """USD a month by what they are paid for; `fixed` is USD before the first request."""
    purchase = 0.0 if at_hand else x["hardware_usd"] * x["hardware_factor"]
    recovery = capital_recovery_factor(x["discount_rate"], x["lifetime_years"])
    own = served["machines"] * purchase * recovery / 12
    cloud_usd_per_hour = x.get("cloud_usd_per_hour", np.nan)
    rent = served["machines"] * served["held"] * cloud_usd_per_hour * HOURS_PER_MONTH
    requests_per_month = x["requests_per_day"] * DAYS_PER_MONTH
    tokens = x["input_tokens"], x["output_tokens"]
    listed = api_usd_per_request(*tokens, x["api_input_usd_per_mtok"], x["api_output_usd_per_mtok"])
    api = x["api_price_factor"] * listed * requests_per_month
    usd_per_kwh = x["electricity_usd_per_kwh"]
    once_j = np.nan_to_num(o["adapt_energy_j"] + o["compress_energy_j"]) * x["energy_factor"]
    own_once = once_j / JOULES_PER_KWH * x["pue"] * usd_per_kwh
    cloud_once = np.nan_to_num(o["adapt_s"]) / 3600 * cloud_usd_per_hour
    setup = x["setup_hours"] * x["labour_usd_per_hour"]
    labour = x["people_hours_per_month"] * x["labour_usd_per_hour"]
    is_api, is_rented = o["is_api"], o["is_rented"]
    # The longer prompts that it makes are among the tokens.
    searched = x["retrieval_usd_per_request"], x["index_usd_per_month"], requests_per_month
    retrieval = rag_usd_per_request(0.0, 0.0, *searched) * requests_per_month
    return {
        "machines": np.where(is_api, 0.0, np.where(is_rented, rent, own)),
        "electricity": np.where(is_api | is_rented, 0.0, kwh_per_month * usd_per_kwh),
        "people": np.where(is_api, 0.0, labour),
        "api": np.where(is_api, api, 0.0),
        "retrieval": retrieval,  # whoever answers
        "fixed": np.where(is_api, 0.0, np.where(is_rented, cloud_once, own_once) + setup),
    }


def _carbon_g(x: Mapping[str, np.ndarray], machines: np.ndarray, kwh_per_month) -> np.ndarray:
    """G CO2e a month: of the energy, and of making the machines over their life."""
    making_kg = x["embodied_machine_kg"] + x["embodied_cards_kg"]
    making_g_per_hour = embodied_g_per_hour(1e3 * making_kg, x["lifetime_years"])
    operational = operational_g(kwh_per_month, x["intensity_g_per_kwh"])
    return operational + machines * HOURS_PER_MONTH * making_g_per_hour


_COLUMNS = [*TIMED, *(f"error_{c}" for c in TIMED), "score", "error_score", "concurrency",
            "output_tokens_per_request", "input_tokens_per_request", "idle_loaded_power_w",
            "adapt_energy_j", "adapt_s", "load_s", "compress_energy_j", "measured_row",
            "step_share", "prompt_share"]  # fmt: skip
_SERVING = ["throughput_tok_s", "ttft_ms", "tpot_ms", "concurrency", "output_tokens_per_request",
            "input_tokens_per_request", "step_share", "prompt_share"]  # fmt: skip


def _with_errors(options: pd.DataFrame, draw: np.ndarray) -> dict[str, np.ndarray]:
    """The measured figures with one draw of their own errors for each draw of the inputs.

    Draw 0 is without error. A variant's error is the same wherever it is deployed.
    """
    rows = options["measured_row"].fillna(-1).to_numpy(int) + 1
    number = np.minimum((draw * DRAWS_OF_ERRORS).astype(int), DRAWS_OF_ERRORS - 1)
    measured = {}
    for place, name in enumerate([*TIMED, "score"]):
        z = _errors(int(rows.max()) + 1, place)[rows][:, number]
        value = options[name].to_numpy(float)[:, None]
        error = options[f"error_{name}"].to_numpy(float)[:, None] * z
        measured[name] = value * np.exp(error) if name in TIMED else np.clip(value + error, 0, 1)
    return measured


@lru_cache
def _errors(rows: int, place: int) -> np.ndarray:
    z = np.random.default_rng(2604 + place).standard_normal((rows, DRAWS_OF_ERRORS))
    z[:, 0] = 0
    return z
