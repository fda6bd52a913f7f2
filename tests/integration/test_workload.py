"""Serving runs from their raw data: warm-up, steady state, and figures computed again."""

import itertools
import math
import time
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
from finished import serving_record
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edge_eval_lib.energy import Monitor
from edge_eval_lib.engines.base import Generation, KvCache
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import answers as answers_of
from edge_eval_lib.lifecycle import cold_load
from edge_eval_lib.lifecycle import serve as workload
from edge_eval_lib.models.likelihood import NOT_READ, Reading
from edge_eval_lib.results import serving
from edge_eval_lib.study import Workload, load_study
from edge_eval_lib.tasks import Example

# --- cold loads -------------------------------------------------------------------------------


def test_a_first_token_counts_only_beyond_the_spread_of_warm_ones():
    warm = [0.10, 0.11, 0.09, 0.10, 0.12, 0.08, 0.10, 0.10]
    beyond, reason = cold_load.beyond_warm(0.5, warm)
    assert (beyond, reason) == (pytest.approx(0.4), None)
    for cold in (0.11, 0.10, 0.05, 0.12):  # within the noise, or faster
        beyond, reason = cold_load.beyond_warm(cold, warm)
        assert beyond is None
        assert "no difference is resolved" in reason
    # Student's t: mean 0.1, s = 0.01195, 1.895 x s x sqrt(9/8) = 0.02402
    assert cold_load.beyond_warm(0.1241, warm)[0] == pytest.approx(0.0241)
    assert cold_load.beyond_warm(0.1239, warm)[0] is None
    assert cold_load.beyond_warm(0.5, [0.1])[0] is None


class ColdEngine:
    """Computes for as long as it is told; its first answer takes `cold_s` longer."""

    remote = False

    def __init__(self, cold_s=0.0):
        self.cold_s = cold_s

    def import_libraries(self):
        spin(0.05)

    def load(self):
        spin(0.02)

    def encode(self, messages):
        return [1]

    def serve(self, prompts, output_tokens, concurrency):
        spin(0.01 + self.cold_s)
        self.cold_s = 0.0
        return [Generation(prompt, 0.0, [1.0], [5]) for prompt in prompts]


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def load_parts(load):
    parts = [getattr(load, f"load_{part}_s") for part in ("interpreter", "import", "read")]
    parts += [load.load_place_s, load.load_first_token_s]
    return [part for part in parts if part is not None]


@pytest.mark.parametrize("cold_s", [0.0, 1.0])
@pytest.mark.parametrize("cached", [True, False])
def test_a_cold_load_is_the_sum_of_its_known_parts(tmp_path, monkeypatch, cold_s, cached):
    monkeypatch.setattr(cold_load, "HEAVY", ())
    if not cached:
        monkeypatch.setattr(cold_load, "CACHED_SHARE", 0.0)
    (tmp_path / "model.safetensors").write_bytes(bytes(100_000))
    with Monitor(device="cpu") as monitor:
        load = cold_load.cold_load(ColdEngine(cold_s), tmp_path, [], monitor)
    assert sum(load_parts(load)) == pytest.approx(load.load_s, abs=0.02)
    assert min(load_parts(load)) > 0
    if cold_s:
        assert load.load_first_token_s > 0.5  # more where others take the core
    assert (load.load_first_token_s is None) == bool(load.load_first_token_reason)
    assert (load.load_read_s is not None) == cached
    assert bool(load.load_read_reason) == (not cached)
    if monitor.energy_source == "cpu-model":
        assert 0 < load.load_import_energy_lo_j < load.load_import_energy_j < load.load_energy_j
        assert load.load_import_energy_j < load.load_import_energy_hi_j
    names = [check["name"] for check in load.load_checks]
    assert names.count("interference") == 1


# --- warm-up ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("throughput", "steady"),
    [
        ([10.0, 60.0, 100.0], False),  # still getting faster
        ([100.0, 90.0, 80.0], False),  # and slower: a GPU that heats up
        ([100.0, 101.0, 99.0], True),
        ([10.0, 100.0, 101.0, 99.0, 100.0, 100.0], True),  # the slow start is left behind
        ([100.0, 120.0, 80.0, 115.0, 92.0], True),  # noise without a trend, told by five
        ([100.0, 104.0, 108.0, 112.0, 116.0], False),  # a slow trend that is no noise
        ([64.0, 64.0, 64.0], True),
        ([100.0, 100.0], False),  # two points are no trend
    ],
)
def test_throughput_is_steady_when_its_last_values_have_no_trend(throughput, steady):
    assert workload.throughput_trend(throughput)[0] is steady


def test_a_trend_is_the_change_over_the_values_as_a_share_of_their_mean():
    _, trend, p_value, judged = workload.throughput_trend([90.0, 95.0, 100.0, 105.0, 110.0])
    assert trend == pytest.approx(0.2)
    assert p_value < 1e-6
    assert judged == 5
    assert workload.throughput_trend([1.0, 2.0]) == (False, None, None, 0)
    values = [26.0, 37.0, 36.5, 37.2, 30.1]
    line = stats.linregress(range(5), values)
    _, trend, p_value, _ = workload.throughput_trend(values)
    assert trend == pytest.approx(4 * line.slope / np.mean(values))
    assert p_value == pytest.approx(line.pvalue)


def test_a_slow_start_is_left_behind_as_soon_as_three_pieces_agree():
    assert workload.throughput_trend([26.0, 37.0, 36.5, 37.2]) == (
        True, pytest.approx(0.0054, abs=1e-4), pytest.approx(0.82, abs=0.01), 3,
    )  # fmt: skip
    assert workload.throughput_trend([26.0, 37.0, 36.5])[0] is False


class Engine:
    """Answers at the speeds that it is told, one a batch."""

    name = "simulated"
    continuous_batching = False

    def __init__(self, monkeypatch, speeds_tok_s):
        self.speeds, self.batches, self.now = list(speeds_tok_s), [], 0.0
        monkeypatch.setattr(workload.time, "monotonic", lambda: self.now)

    def serve(self, prompts, output_tokens, concurrency):
        assert len(prompts) == concurrency
        self.batches.append((len(prompts), output_tokens))
        speed = self.speeds[min(len(self.batches), len(self.speeds)) - 1]
        self.now += len(prompts) * output_tokens / speed


def settings(**changes):
    fields = {"headline_concurrency": 4, "concurrency": [1, 4], "output_tokens": 16}
    return load_study("embedded").workload.model_copy(update=fields | changes)


def test_warming_up_ends_when_the_throughput_is_steady(monkeypatch):
    engine = Engine(monkeypatch, [20, 90, 100, 101, 99])
    done = workload.warm_up(engine, [[1], [2]], settings(warmup_requests=100))
    assert done.steady
    assert done.check.verdict == "ok"
    # With the first two among those judged there is a trend; the last three have none.
    assert len(engine.batches) == done.requests / 4 == 5
    assert done.judged == 3
    assert set(engine.batches) == {(4, 2)}  # the same work each time, an eighth as long
    assert done.throughput_tok_s[:5] == pytest.approx([20, 90, 100, 101, 99])


def test_warming_up_that_never_gets_steady_ends_at_the_limit_and_says_so(monkeypatch):
    engine = Engine(monkeypatch, 100 * 1.2 ** np.arange(50))
    done = workload.warm_up(engine, [[1]], settings(warmup_requests=24))
    assert not done.steady
    assert done.requests == 24
    assert done.check.verdict == "warning"
    assert "over the last 5 of 6 pieces" in done.check.detail


def test_a_limit_below_three_pieces_still_lets_a_trend_be_seen(monkeypatch):
    engine = Engine(monkeypatch, [100, 150, 200])
    done = workload.warm_up(engine, [[1]], settings(warmup_requests=1))
    assert len(engine.batches) == 3
    assert done.trend_share == pytest.approx(100 / 150)


# --- steady state -----------------------------------------------------------------------------


def test_steady_state_is_from_all_slots_taken_to_the_last_time_that_they_are():
    # Two slots, ten requests of 2 s, one started every second: from the 2nd first token until
    # 10 - 2 - 1 = 7 are finished.
    first = [float(i) for i in range(10)]
    last = [i + 2.0 for i in range(10)]
    assert serving.steady_state(first, last, slots=2) == (1.0, 8.0)
    assert serving.steady_state(first[::-1], last[::-1], slots=2) == (1.0, 8.0)  # in any order


def test_without_five_requests_a_slot_or_any_overlap_there_is_no_steady_state():
    first, last = [float(i) for i in range(9)], [i + 2.0 for i in range(9)]
    assert serving.steady_state(first, last, slots=2) is None
    # One static batch: all begin, and all end, together.
    assert serving.steady_state([0.0] * 10, [1.0] * 10, slots=2) == (0.0, 1.0)
    assert serving.steady_state([1.0] * 10, [1.0] * 10, slots=2) is None
    with pytest.raises(ValueError, match="last_token_s"):
        serving.steady_state([1.0], [], slots=1)


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 2)), min_size=30, max_size=60),
)
def test_all_slots_are_taken_throughout_the_steady_state(slots, work):
    """First come, first served by a simulated engine: at no time within is a slot empty."""
    free = [0.0] * slots
    spans = []
    for prefill, decode in work:
        free.sort()
        begin = free[0]
        spans.append((begin, begin + prefill, begin + prefill + decode))
        free[0] = begin + prefill + decode
    begin, end = serving.steady_state([s[1] for s in spans], [s[2] for s in spans], slots)
    for at in np.linspace(begin, end, 50)[1:-1]:
        assert sum(start <= at < stop for start, _, stop in spans) == slots


# --- figures from raw data --------------------------------------------------------------------


def requests(count=10, tokens=4, slots=2):
    """`count` requests of `tokens` tokens a second, `slots` at a time, a new one when one ends."""
    table = []
    for i in range(count):
        begin = (i // slots) * tokens + (i % slots) * 0.5
        times = [begin + 1.0 + k for k in range(tokens)]
        generation = Generation([7] * (10 + i), begin, [5] * tokens, times)
        table.append(
            {
                "window": f"serve at {slots}",
                "concurrency": slots,
                "prompt_id": f"p{i}",
                "submitted_s": begin,
                "token_times_s": times,
                "token_ids": generation.token_ids,
                "input_tokens": 10 + i,
                "output_tokens": tokens,
                "natural_tokens": 2,
                "ttft_ms": generation.ttft_ms,
                "tpot_ms": generation.tpot_ms,
            }
        )
    return pd.DataFrame(table)


def power(watts=lambda t: 20.0, seconds=25.0, devices=(0,)):
    times = np.arange(0, seconds + 0.05, 0.1)
    return pd.concat(
        [
            pd.DataFrame({"monotonic_s": 1000 + times, "device": device})
            .assign(power_w=[watts(t) for t in times])
            .assign(window="serve at 2")
            for device in devices
        ],
        ignore_index=True,
    )


NO_POWER = power().iloc[:0]


P95_NOTE = "ttft_p95_ms: of 10 requests; it takes 20; tpot_p95_ms: of 10 requests; it takes 20"


def test_the_whole_window_of_static_batches():
    figures = serving.serving_figures(serving_record(), requests(), power())
    assert figures["window"] == "whole"
    assert figures["throughput_tok_s"] == 40 / 25
    assert figures["energy_per_request_j"] == 50
    assert figures["energy_per_request_lo_j"] == 25
    assert figures["energy_per_request_net_j"] == pytest.approx(40)
    assert figures["energy_per_token_j"] == 12.5
    assert figures["power_w"] == 20
    assert figures["ttft_ms"] == pytest.approx(1000)
    assert figures["tpot_ms"] == pytest.approx(1000)
    assert figures["input_tokens_per_request"] == 14.5
    assert figures["verdict"] == "ok"
    assert figures["notes"] == P95_NOTE


def test_a_steady_state_has_its_own_seconds_tokens_and_energy():
    continuous = serving_record(continuous_batching=True)
    # From 1.5 s (second first token) until 7 are finished, at 16.0 s: 14.5 s. Power is 10 W until
    # 12.5 s, 30 W after: 110 J and 105 J of 125 J + 375 J.
    step = power(lambda t: 10.0 if t < 12.45 else 30.0)
    figures = serving.serving_figures(continuous, requests(), step)
    assert figures["window"] == "steady-state"
    assert figures["seconds"] == 14.5
    within = sum(1.5 < t <= 16.0 for times in requests()["token_times_s"] for t in times)
    assert figures["throughput_tok_s"] == pytest.approx(within / 14.5)
    assert figures["energy_per_token_j"] == pytest.approx(215 / within, rel=0.01)
    assert figures["energy_per_request_j"] == pytest.approx(4 * 215 / within, rel=0.01)
    # Idle takes (500 - 400) / 25 = 4 W.
    assert figures["energy_per_request_net_j"] == pytest.approx(
        4 * (215 - 4 * 14.5) / within, rel=0.01
    )
    assert figures["ttft_ms"] == pytest.approx(1000)  # of all requests


@pytest.mark.parametrize(
    ("changes", "samples", "label"),
    [
        ({"on_gpu": True}, power(), "whole"),  # 14.5 s are too short on a GPU
        ({}, NO_POWER, "whole"),  # a known energy that cannot be shared out
        ({"energy_j": None, "energy_net_j": None}, NO_POWER, "steady-state"),
        ({"continuous_batching": False}, power(), "whole"),
    ],
)
def test_a_window_is_labelled_by_what_its_figures_are_of(changes, samples, label):
    window = serving_record(continuous_batching=True, energy_lo_j=None, energy_hi_j=None) | changes
    figures = serving.serving_figures(window, requests(), samples)
    assert figures["window"] == label
    if window["energy_j"] is None:
        assert figures["energy_per_token_j"] is None
        assert figures["throughput_tok_s"] > 40 / 25  # filling and draining are left out


def test_unknown_energy_stays_empty_with_its_reason():
    window = serving_record(
        energy_j=None, energy_lo_j=None, energy_hi_j=None, energy_net_j=None,
        energy_reason="meter: the counter was lost", energy_net_reason="meter: lost",
    )  # fmt: skip
    figures = serving.serving_figures(window, requests(), NO_POWER)
    assert [figures[n] for n in ("energy_per_request_j", "energy_per_token_j", "power_w")] == [
        None,
        None,
        None,
    ]
    assert "energy_per_request_j: meter: the counter was lost" in figures["notes"]
    assert figures["throughput_tok_s"] == 40 / 25


@given(st.floats(0, 20), st.floats(0.5, 5), st.integers(1, 3))
def test_shares_of_the_power_add_up(begin, length, devices):
    samples = power(lambda t: 50 + 20 * math.sin(t), devices=range(devices))
    first, last = 1000.0, 1025.0
    cuts = [first, 1000 + begin, 1000 + begin + length - 0.25, last]
    shares = [serving.power_share(samples, a, b) for a, b in itertools.pairwise(cuts)]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert serving.power_share(samples, first, last) == pytest.approx(1)


def test_every_concurrency_is_computed_from_its_own_requests():
    both = pd.concat([requests(), requests(count=3, slots=1)], ignore_index=True)
    windows = [serving_record(), serving_record(window="serve at 1", concurrency=1, s=12.0)]
    figures = serving.recomputed(windows, both, power())
    assert [f["requests"] for f in figures] == [10, 3]
    assert figures[1]["throughput_tok_s"] == 1


def test_what_was_reserved_and_not_used_is_not_needed_to_serve():
    window = serving_record(kv_cache={"reserved_gb": 1.2, "used_gb": 0.3})
    figures = serving.serving_figures(window, requests(), power())
    assert figures["memory_gb"] == pytest.approx(2.0 - 1.2 + 0.3)
    assert figures["reserved_gb"] == 1.2
    unknown = window | {"peak_memory_gb": None, "peak_memory_reason": "no device tells"}
    assert serving.serving_figures(unknown, requests(), power())["memory_gb"] is None


def test_failed_requests_are_counted_with_their_reasons():
    window = serving_record(failures={"HTTP 503: busy": 2, "ended after 1 of 4 tokens": 1})
    figures = serving.serving_figures(window, requests(), power())
    assert figures["requests"] == 10
    assert figures["failed_requests"] == 3
    assert figures["energy_per_request_j"] == 50  # what failed took energy, and answered nobody
    told = "failed_requests: 2 x HTTP 503: busy, 1 x ended after 1 of 4 tokens"
    assert figures["notes"] == f"{P95_NOTE}; {told}"


def test_an_open_loop_has_no_steady_state():
    window = serving_record(concurrency=None, rate_per_s=2.0, continuous_batching=True)
    assert serving.serving_figures(window, requests(), power())["window"] == "whole"


# --- every window of a run --------------------------------------------------------------------


class Measured:
    """A window that measures nothing but its name and its engine's time."""

    def __init__(self, name, engine):
        self.name, self.engine, self.start_monotonic_s = name, engine, 0.0

    def __enter__(self):
        self.begin = self.engine.now
        return self

    def __exit__(self, *error):
        self.seconds = self.engine.now - self.begin

    def as_dict(self):
        return {"s": self.seconds, "checks": []}


class Batching:
    """Answers up to `most` requests at once, each in a second; prompt [13] is never answered."""

    name = "simulated"
    continuous_batching = True
    remote = False
    prefix_caching = True
    share_prefixes = False
    token = 5

    def __init__(self, most):
        self.most, self.now, self.calls = most, 0.0, []
        self.prefix_cache_hit_rate = None

    def window(self, name):
        return Measured(name, self)

    def serve(self, prompts, output_tokens, concurrency, until_end=False):
        if until_end:  # ends after five tokens, but for prompt [99], which rambles
            self.uncut = (prompts, output_tokens, concurrency)
            return [
                self.answer(p, output_tokens)
                if p[0] in (13, 99)
                else Generation(p, 0.0, [0], [1.0])
                for p in prompts
            ]
        self.calls.append((len(prompts), concurrency))
        self.now += math.ceil(len(prompts) / min(concurrency, self.most))
        self.prefix_cache_hit_rate = 0.5 if self.share_prefixes else 0.0
        return [self.answer(prompt, output_tokens) for prompt in prompts]

    def serve_arrivals(self, prompts, output_tokens, arrivals_s):
        assert arrivals_s == sorted(arrivals_s)
        self.now += arrivals_s[-1]
        return [self.answer(prompt, output_tokens) for prompt in prompts]

    def answer(self, prompt, output_tokens):
        times = [1.0 + i for i in range(output_tokens)]
        if prompt == [13]:
            return Generation(prompt, 0.0, [5], times[:1], failure="HTTP 503: busy")
        return Generation(prompt, 0.0, [self.token] * output_tokens, times)

    def kv_cache(self):
        return KvCache(1.0, 0.25)

    def natural_length(self, token_ids):
        return len(token_ids)

    def ended(self, token_ids):
        return 0 in token_ids

    def decode(self, token_ids):
        return "x" * len(token_ids)

    def encode(self, messages):
        return [len(messages)]

    def encode_answer(self, answer):
        return [len(answer)]

    unmeasured = nullcontext

    def read(self, prompts, texts, batch_size):
        self.texts = texts
        return [[self.reading(text) for text in of_prompt] for of_prompt in texts]

    def reading(self, text):
        return Reading(1.0, list(text))


def table_of_answers(served, engine, examples, asked):
    read = answers_of.read_answers(served, engine, examples, asked)
    return answers_of.answer_table(served, engine, examples, asked, read)


def vllm_settings(**changes):
    return settings(engine="vllm", **({"latency_prompts": 2} | changes))


def test_a_run_has_a_window_for_everything_that_its_workload_asks_for():
    engine = Batching(most=8)
    prompts = [[i] for i in range(12)]
    asked = vllm_settings(largest_concurrency=12, prefix_caching=True, arrival_rates_per_s=[2.0])
    served = workload.serve_all(engine, prompts, asked, 7, engine)
    assert [one.window.name for one in served] == [
        "serve at 1", "serve at 4", "serve at 2", "serve at 8", "serve at 4 with prefix caching",
        "open loop at 2 requests/s",
    ]  # fmt: skip
    # Two prompts a slot, all of them at the headline concurrency.
    assert engine.calls == [(2, 1), (12, 4), (4, 2), (12, 8), (12, 4)]
    assert [one.prefix_cache_hit_rate for one in served] == [None, None, None, None, 0.5, None]
    assert served[-1].rate_per_s == 2.0
    warm = workload.WarmUp(1.0, 8, [1.0], True, 0.0, 1.0, 3)
    told = workload.window_record(served[4], engine, warm)
    assert told["prefix_caching"] is True
    assert told["kv_cache"] == {"reserved_gb": 1.0, "used_gb": 0.25}


def test_a_failed_request_has_no_row_and_no_answer():
    engine = Batching(most=8)
    examples = [Example(f"p{i}", [{"role": "user", "content": "?"}], "gold") for i in range(4)]
    prompts = [[1], [13], [2], [3]]
    served = workload.serve_all(engine, prompts, vllm_settings(), 7, engine)
    headline = served[1]
    assert headline.failures == {"HTTP 503: busy": 1}
    table = workload.request_table(headline, engine, examples)
    assert table["prompt_id"].tolist() == ["p0", "p2", "p3"]
    answers = table_of_answers(served, engine, examples, vllm_settings())
    assert answers["answer"].isna().tolist() == [False, True, False, False]
    assert answers["failure"][1] == "HTTP 503: busy"
    assert math.isnan(answers["answer_tokens"][1])


def test_answers_that_reached_the_limit_go_on_until_their_end():
    engine = Batching(most=8)
    examples = [Example(f"p{i}", [{"role": "user", "content": "?"}], "gold") for i in range(5)]
    prompts = [[1], [13], [2], [99], [3]]
    asked = vllm_settings(output_tokens=4, uncut_tokens=9)
    served = workload.serve_all(engine, prompts, asked, 7, engine)
    served[1].generations[4].token_ids[:] = [5, 5, 0, 5]  # this one ended by itself
    calls = list(engine.calls)
    measured = table_of_answers(served, engine, examples, asked)
    assert measured["limit_reached"].tolist()[0::2] == [1, 1, 0]
    assert math.isnan(measured["limit_reached"][1])  # failed: no answer, no limit
    uncut = answers_of.uncut_answers(measured, served, engine, asked)
    assert engine.calls == calls  # nothing that was measured changed
    given = [5, 5, 5, 5]
    went_on = [[1, *given], [2, *given], [99, *given]]
    assert engine.uncut == (went_on, 5, asked.headline_concurrency)
    assert uncut["uncut"].tolist() == [True, False, True, True, False]
    assert uncut["still_cut"].tolist()[::2] == [0, 0, 0]
    assert uncut["still_cut"][3] == 1
    assert uncut["answer_tokens"].tolist()[::2] == [5, 5, 4]
    assert uncut["answer"].tolist()[::2] == ["x" * 5, "x" * 5, "x" * 4]
    assert uncut["limit_reached"].equals(measured["limit_reached"])
    assert uncut["answer_tokens"][3] == 9


def test_an_endpoint_without_tokens_is_asked_again_from_the_prompt():
    engine = Batching(most=8)
    engine.token = -1  # a piece of text
    examples = [Example("p0", [{"role": "user", "content": "?"}], "gold")]
    asked = vllm_settings(output_tokens=4, uncut_tokens=9)
    served = workload.serve_all(engine, [[1]], asked, 7, engine)
    measured = table_of_answers(served, engine, examples, asked)
    uncut = answers_of.uncut_answers(measured, served, engine, asked)
    assert engine.uncut == ([[1]], 9, asked.headline_concurrency)
    assert uncut["answer_tokens"].tolist() == [1]


def test_without_a_cap_for_uncut_answers_nothing_is_asked_again():
    engine = Batching(most=8)
    examples = [Example("p0", [{"role": "user", "content": "?"}], "gold")]
    asked = vllm_settings(uncut_tokens=None)
    served = workload.serve_all(engine, [[1]], asked, 7, engine)
    measured = table_of_answers(served, engine, examples, asked)
    kept = answers_of.uncut_answers(measured, served, engine, asked)
    assert not hasattr(engine, "uncut")
    assert kept["answer"].equals(measured["answer"])
    assert not kept["uncut"].any()
    assert kept["still_cut"].tolist() == [1]


def test_a_cap_for_uncut_answers_is_longer_than_the_limit():
    with pytest.raises(ValueError, match=r"uncut_tokens is 4; it must be more than"):
        Workload.model_validate(settings().model_dump() | {"output_tokens": 4, "uncut_tokens": 4})


def test_a_window_in_which_nothing_was_answered_ends_the_run():
    with pytest.raises(UserError, match=r"No request of 'serve at 1' was answered .*HTTP 503"):
        workload.serve_all(Batching(most=1), [[13]], vllm_settings(), 7, Batching(most=1))


def read_of(requests_table, likeliest):
    """What was read of the batched answers: `likeliest(prompt id, tokens)`, or None."""
    return [
        answers_of.AnswersRead(name, NOT_READ, tokens and Reading(1.0, tokens))
        for name, ids in requests_table.groupby("prompt_id")["token_ids"].last().items()
        for tokens in [likeliest(name, list(ids))]
    ]


def test_every_batched_answer_is_compared_with_the_one_alone():
    alone, batched = requests(count=2, slots=1), requests(count=4, slots=2)
    table = pd.concat([alone, batched], ignore_index=True)
    same = read_of(batched[2:], lambda _, tokens: tokens)
    assert answers_of.batch_agreement(table, 2, same) == answers_of.BatchAgreement(1.0, 4, 2)
    last = batched["prompt_id"].iloc[-1]
    other = read_of(batched[2:], lambda name, tokens: [9] * len(tokens) if name == last else tokens)
    assert answers_of.batch_agreement(table, 2, other).batch_agreement == 0.75
    table.at[0, "token_ids"] = [6, 6, 6, 6]
    assert answers_of.batch_agreement(table, 2, other).batch_agreement == 0.5


def test_batches_that_cannot_be_compared_have_no_agreement():
    batched = requests(count=4, slots=2)
    mute = read_of(batched, lambda *_: None)
    assert answers_of.batch_agreement(batched, 2, mute).batch_agreement is None
    alone = requests(count=2, slots=1)
    partly = pd.concat([alone, batched], ignore_index=True)
    agreement = answers_of.batch_agreement(partly, 2, mute)
    assert agreement == answers_of.BatchAgreement(1.0, 2, 2)
    assert answers_of.batch_agreement(alone, 1, mute).batch_agreement is None


def test_answers_are_read_unless_they_failed_or_were_served_elsewhere():
    engine = Batching(most=8)
    engine.encode = lambda messages: messages
    examples = [Example(f"p{i}", prompt, "gold") for i, prompt in enumerate(([1], [2], [13], [3]))]
    prompts = [example.messages for example in examples]
    asked = vllm_settings(output_tokens=2)
    served = workload.serve_all(engine, prompts, asked, 7, engine)
    read = answers_of.read_answers(served, engine, examples, asked)
    # The third failed; every gold answer is read.
    assert engine.texts == [[[4], [5, 5]], [[4], [5, 5]], [[4]], [[4], [5, 5]]]
    known = Reading(1.0, [5, 5])
    assert [answer.batched for answer in read] == [known, known, None, known]
    for unread in ({"batched": False}, {}):
        engine.remote = not unread
        read = answers_of.read_answers(served, engine, examples, asked, **unread)
        assert engine.texts == [[[4]]] * 4
        assert [answer.gold.nll for answer in read] == [1.0] * 4
    engine.remote = False
    engine.reading = lambda text: NOT_READ
    read = answers_of.read_answers(served, engine, examples, asked)
    assert read[3].batched is None


@pytest.mark.parametrize(("count", "known"), [(19, False), (20, True)])
def test_a_95th_percentile_takes_twenty_requests(count, known):
    figures = serving.serving_figures(serving_record(), requests(count=count), power())
    assert (figures["ttft_p95_ms"] is not None) == known
    assert (figures["tpot_p95_ms"] is not None) == known
    assert ("ttft_p95_ms: of 19 requests; it takes 20" in (figures["notes"] or "")) != known
    assert figures["ttft_ms"] > 0
