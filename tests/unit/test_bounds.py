"""What pure functions refuse: every bounded argument, by its name, in one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from edge_eval_lib import metrics, uncertainty
from edge_eval_lib.bounds import NonNegative, Whole, checked, require
from edge_eval_lib.economics import capacity, carbon, cost, latency, memory, roofline
from edge_eval_lib.economics.prices import capital_recovery_factor

# Arguments that a function takes, in their order.
METRICS = {
    metrics.break_even: (1.0, 1.0, 0.2, 0.1),
    metrics.intelligence_per_watt: (0.5, 2.0, 1.0),
    metrics.system_density: (10.0, 2.0),
    metrics.cold_start_tax: (10.0, 2.0),
    metrics.quantization_fidelity: (0.4, 0.5),
}
GOOD = METRICS | {
    memory.kv_cache_bytes_per_token: (2, 2, 8, 2),
    memory.kv_cache_bytes: (10, 4, 5),
    latency.latency_s: (0.1, 0.01, 5),
    latency.deadline_miss_rate: ([0.1, 0.1], 0.1, 0.1),
    latency.quality_of_experience: ([0.1, 0.2], 0.1, 5),
    latency.attainment: ([1.0], [1.0], 1, 1),
    latency.quantile_interval: ([1.0, 2.0], 0.5, 0.95),
    latency.erlang_c: (2, 1.0),
    latency.queue_wait_s: (1.0, 0.5, 2),
    latency.share_served_within: (1.0, 1.0, 0.5, 2),
    latency.processor_sharing_s: (1.0, 0.5),
    roofline.prefill_s: (1e9, 10, 1e12, 0.5),
    roofline.decode_step_s: (1e9, 1e9, 1e9, 1e12, 1, 1, 1, 0.5),
    roofline.compute_bound_concurrency: (1e12, 1e9, 2.0),
    capital_recovery_factor: (0.05, 5),
    cost.usd_per_hour: (1, 0.05, 5, 1, 0.1, 1.2, 0),
    cost.usd_per_million_tokens: (2, 10, 0.5),
    cost.break_even_api_price: (1, 1, 1),
    cost.break_even_electricity_price: (1, 1, 0, 1),
    cost.order_flip_api_price: (1, 1, 1, 1),
    cost.rag_usd_per_request: (1, 1, 1, 1, 1),
    cost.usd_per_request: (2, 1, 0.5),
    cost.api_usd_per_request: (1, 1, 1, 1, 0.5, 1, 0.5),
    cost.break_even_months: (1, 2, 1, 1),
    cost.tco_usd: (1, 1, 0.05, 3),
    cost.saving_share: (2, 1),
    capacity.cards_needed: (1, 1, 0.1),
    capacity.standby: ([1.0], 1),
    capacity.standby_j: (0.5, 1, 1, 1),
    capacity.standby_usd: (0.5, 1, 1, 1),
    cost.keep_warm_s: (1, 2, 1),
    carbon.operational_g: (1, 1, 1.1),
    carbon.embodied_g: (1, 0.5, 0.5),
    carbon.software_carbon_intensity_g: (1, 1, 1, 1),
    carbon.mix_intensity_g_per_kwh: ([1.0], [1.0]),
    carbon.embodied_g_per_hour: (1, 1, 0.5),
    carbon.serving_footprint: (1, 1, 1, 1.1, 1, 1, 0.5),
    carbon.yearly_g: (1, 1),
    carbon.consumer_sci_g: (1, 1, 1),
    carbon.provider_sci_g: (1, 1, 1),
    carbon.training_hours: (1, 1, 1, 0.5, 6),
    carbon.training_footprint: (1, 1, 1, 1.1, 1),
}
# Their other arguments are no numbers; what they refuse is tested beside what they do.
ELSEWHERE = {
    cost.paper_costs,
    cost.full_costs,
    memory.serving_memory,
    memory.training_memory,
    latency.trace_latencies,
}
EACH_ARGUMENT = [(f, name) for f in GOOD for name in inspect.signature(f).parameters]
EACH_OF_A_METRIC = [(f, name) for f, name in EACH_ARGUMENT if f in METRICS]


def arguments(function: Callable[..., object]) -> dict[str, object]:
    return dict(zip(inspect.signature(function).parameters, GOOD[function], strict=True))


@pytest.mark.parametrize("module", [metrics, memory, latency, cost, capacity, carbon])
def test_no_checked_function_is_forgotten(module: ModuleType):
    functions = {
        f
        for f in vars(module).values()
        if inspect.isfunction(f) and hasattr(f, "__wrapped__") and f.__module__ == module.__name__
    }
    assert functions <= {*GOOD, *ELSEWHERE}


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, None, "3", True])
@pytest.mark.parametrize(("function", "name"), EACH_ARGUMENT)
def test_refuses_impossible_input_by_name(function, name, bad):
    good = arguments(function)
    function(**good)
    if bad is None and inspect.signature(function).parameters[name].default is None:
        return
    value = [bad] if isinstance(good[name], list) else bad
    with pytest.raises(ValueError, match=rf"^{name} must"):
        function(**{**good, name: value})


@pytest.mark.parametrize("bad", [-1.0, np.nan])
@pytest.mark.parametrize(("function", "name"), EACH_OF_A_METRIC)
@pytest.mark.parametrize("kind", [np.array, pd.Series])
def test_refuses_one_bad_number_among_good_ones(function, name, bad, kind):
    good = arguments(function)
    with pytest.raises(ValueError, match=rf"^{name} must"):
        function(**{**good, name: kind([good[name], bad])})


@pytest.mark.parametrize("function", METRICS)
def test_refuses_series_of_different_rows(function):
    first, second, *_ = good = arguments(function)
    series = {name: pd.Series([good[name]] * 2, [i, i + 1]) for i, name in enumerate(good)}
    with pytest.raises(ValueError, match=f"^{second} must have the same index as {first}"):
        function(**{**good, **{name: series[name] for name in (first, second)}})


@pytest.mark.parametrize(
    ("function", "change", "message"),
    [
        (metrics.intelligence_per_watt, {"energy_per_request_j": 0.0}, "must be above 0"),
        (metrics.intelligence_per_watt, {"score": 7.5}, "must lie between 0 and 1, but is 7.5"),
        (metrics.system_density, {"memory_gb": 0.0}, "must be above 0, but is 0.0"),
        (metrics.cold_start_tax, {"energy_per_request_j": 0.0}, "must be above 0"),
        (metrics.quantization_fidelity, {"score_fp16": 0.0}, "must be above 0"),
        (memory.kv_cache_bytes, {"window": 0}, "must be a whole number"),
        (memory.kv_cache_bytes_per_token, {"layers": 1.5}, "must be a whole number of at least 1"),
        (latency.latency_s, {"output_tokens": 0}, "must be a whole number"),
        (latency.deadline_miss_rate, {"tbt_s": 0}, "must be above 0"),
        (latency.deadline_miss_rate, {"intervals_s": []}, "must be a sequence"),
        (latency.quality_of_experience, {"token_times_s": [2, 1]}, "must ascend"),
        (latency.quality_of_experience, {"tok_s": 0}, "must be above 0"),
        (latency.attainment, {"tpot_ms": [1, 2]}, "must have one number a request"),
        (roofline.prefill_s, {"utilisation": 1.5}, "must lie between 0 and 1"),
        (cost.usd_per_million_tokens, {"utilisation": 0}, "must be above 0"),
        (cost.usd_per_million_tokens, {"utilisation": 2}, "must lie between"),
        (cost.usd_per_hour, {"pue": 0.9}, "must be at least 1"),
        (carbon.operational_g, {"pue": 0.9}, "must be at least 1, but is 0.9"),
        (carbon.embodied_g, {"time_share": 1.1}, "must lie between 0 and 1"),
        (carbon.mix_intensity_g_per_kwh, {"shares": [0.4]}, "must add up to 1"),
        (carbon.mix_intensity_g_per_kwh, {"shares": [0.5, 0.5]}, "must be a sequence as"),
    ],
)
def test_refuses_what_cannot_be(function, change, message):
    (name,) = change
    with pytest.raises(ValueError, match=f"^{name} {message}"):
        function(**arguments(function) | change)


def test_a_share_may_be_rounded_to_above_one():
    assert metrics.intelligence_per_watt(1 + 1e-7, 1.0) == 1 + 1e-7


def test_a_sequence_reaches_its_function_as_an_array():
    for intervals in ([0.1, 0.2], (0.1, 0.2), pd.Series([0.1, 0.2], index=[7, 9])):
        assert latency.deadline_miss_rate(intervals, 0.3, 0.3) == 0
    for wrong in (0.1, [[0.1]]):
        with pytest.raises(ValueError, match=r"^intervals_s must be a sequence of at least one"):
            latency.deadline_miss_rate(wrong, 0.3, 0.3)
    assert uncertainty.mean_interval(pd.Series([1, 2, 3], index=list("abc")))[0] == 2


def test_bounds_of_one_call_that_no_signature_names():
    require(NonNegative, **{"spread['x']": 0.1})
    with pytest.raises(ValueError, match=r"^spread\['x'\] must not be negative, but is -0.1$"):
        require(NonNegative, **{"spread['x']": [0.1, -0.1]})


def test_defaults_and_what_has_no_bound_pass():
    @checked
    def function(text: str, count: Whole[int] | None = None, *, scale: NonNegative = 2.0):
        return text, count, scale

    assert function("a") == ("a", None, 2.0)
    assert function("a", 3, scale=0) == ("a", 3, 0)
    with pytest.raises(ValueError, match=r"^count must be a whole number of at least 1, not 2\.5"):
        function("a", 2.5)
    with pytest.raises(TypeError, match="text"):
        function()
