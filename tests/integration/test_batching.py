"""Continuous batching: step by step against queueing theory and a queueing library."""

from __future__ import annotations

import ciw
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_eval_lib.economics import batching, latency, server, steady
from edge_eval_lib.economics.batching import arrivals_s, simulate
from edge_eval_lib.economics.server import Server, capacity_req_s, fit_server
from edge_eval_lib.economics.steady import steady_state

# A step of a T4 with a model of 1 billion parameters, about.
T4 = Server(2e-4, 8e-3, 2e-4, 1e-7, max_batch=32)
PROMPT, ANSWER = 300, 150
STEP_S = 1e-3


def queue_library(arrivals, service_s, servers, node_class=None) -> np.ndarray:
    """Waits and stays of each request, as ciw simulates the same arrivals and services."""
    gaps = [*np.diff(arrivals, prepend=0.0), np.inf]
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Sequential(gaps)],
        service_distributions=[ciw.dists.Sequential(list(service_s))],
        number_of_servers=[servers],
    )
    run = ciw.Simulation(network, node_class=node_class)
    run.simulate_until_max_customers(len(arrivals))
    records = sorted(run.get_all_records(), key=lambda record: record.id_number)
    return np.array([(r.waiting_time, r.exit_date - r.arrival_date) for r in records]).T


def test_a_batch_of_constant_steps_is_a_queue_with_servers_request_by_request():
    arrivals = arrivals_s(3.6, 2000, seed=1)
    tokens = np.random.default_rng(1).geometric(STEP_S, 2000)
    ours = simulate(Server(0, STEP_S, max_batch=4), arrivals, 0, tokens)
    waits, _ = queue_library(arrivals[0], (ours.latency_s - ours.wait_s)[0], 4)
    assert waits.mean() > 0.3
    assert ours.wait_s[0] == pytest.approx(waits, abs=1.001 * STEP_S)


def test_steps_as_long_as_the_batch_share_the_server_request_by_request():
    arrivals = arrivals_s(0.9, 2000, seed=1)
    tokens = np.random.default_rng(1).geometric(STEP_S, 2000)
    ours = simulate(Server(0, 0, STEP_S, max_batch=np.inf), arrivals, 0, tokens + 1)
    _, stays = queue_library(arrivals[0], tokens * STEP_S, np.inf, ciw.PSNode)
    # A request joins with a step, which is as long as the batch is large.
    assert np.abs(ours.latency_s[0] - stays).mean() < 2 * STEP_S * ours.batch[0]
    assert ours.latency_s.mean() == pytest.approx(stays.mean(), rel=0.01)


@pytest.mark.parametrize(("servers", "load"), [(4, 0.5), (4, 0.9), (16, 0.9)])
def test_waits_are_those_of_erlang_c(servers, load):
    rate, step_s = servers * load, 0.01
    arrivals = arrivals_s(rate, 40_000, 12, seed=2)
    tokens = np.random.default_rng(12).geometric(step_s, arrivals.shape)
    run = simulate(Server(0, step_s, max_batch=servers), arrivals, 0, tokens)
    waiting = latency.erlang_c(servers, rate)
    # Who finds a free server beside busy ones joins with the next step: half a step later.
    joining = step_s / 2 * (run.busy_share.mean() - waiting)
    _, lo, hi = run.interval(run.wait_s, confidence=0.99)
    assert lo <= latency.queue_wait_s(rate, 1.0, servers) + joining <= hi
    _, lo, hi = run.interval(run.wait_s <= step_s, confidence=0.99)
    assert lo <= latency.share_served_within(step_s, rate, 1.0, servers) <= hi


@pytest.mark.parametrize("load", [0.5, 0.9])
@pytest.mark.parametrize("answers", ["all alike", "geometric", "short and long"])
def test_stays_are_those_of_processor_sharing_whatever_the_answers(answers, load):
    rng = np.random.default_rng(13)
    arrivals = arrivals_s(load, 100_000 if load == 0.9 else 40_000, 12, seed=113)
    mean_tokens = 100 if answers == "all alike" else 50
    tokens = {
        "all alike": np.full(arrivals.shape, mean_tokens),
        "geometric": rng.geometric(1 / mean_tokens, arrivals.shape),
        "short and long": mean_tokens * rng.choice([4, 64], arrivals.shape, p=[0.9, 0.1]) // 10,
    }[answers]
    run = simulate(Server(0, 0, 1 / mean_tokens, max_batch=np.inf), arrivals, 0, tokens + 1)
    # 99 % for all six cases together (Bonferroni).
    mean, lo, hi = run.interval(run.latency_s, confidence=1 - 0.01 / 6)
    assert lo <= latency.processor_sharing_s(1.0, load) <= hi
    assert (hi - lo) / 2 < 0.15 * mean


def test_the_closed_form_holds_both_limits_exactly():
    load = np.array([0.1, 0.5, 0.9, 0.99])
    for servers in (1, 7, 40):
        fixed = steady_state(Server(0, 0.01, max_batch=servers), load * servers, 0, 101)
        assert fixed.wait_s == pytest.approx(latency.queue_wait_s(load * servers, 1.0, servers))
        assert fixed.waiting_share == pytest.approx(latency.erlang_c(servers, load * servers))
        assert fixed.tpot_s == pytest.approx(0.01)
    shared = steady_state(Server(0, 0, 0.01, max_batch=np.inf), load, 0, 101)
    assert shared.tpot_s * 100 == pytest.approx(latency.processor_sharing_s(1.0, load), rel=1e-6)
    assert shared.busy_share == pytest.approx(load)


@pytest.mark.parametrize("load", [0.05, 0.3, 0.5, 0.65, 0.8])
def test_the_closed_form_is_near_the_simulation(load):
    """Of a T4: the errors that docs/economics.md states."""
    rate = load * capacity_req_s(T4, PROMPT, ANSWER)
    run = simulate(T4, arrivals_s(rate, 20_000, 4, seed=4), PROMPT, ANSWER)
    model = steady_state(T4, rate, PROMPT, ANSWER)
    assert model.tpot_s == pytest.approx(run.tpot_s.mean(), rel=0.03)
    assert model.ttft_s == pytest.approx(run.ttft_s.mean(), rel=0.05 if load < 0.7 else 0.15)
    assert model.batch == pytest.approx((run.batch * run.busy_share).mean(), rel=0.04)
    assert model.busy_share == pytest.approx(run.busy_share.mean(), abs=0.02)
    met = (run.ttft_s <= 0.2).mean()
    assert model.share_ttft_within(0.2) == pytest.approx(met, abs=0.06)


@pytest.mark.parametrize("variation", [1.0, 2.0, 3.0])
def test_bunches_wait_as_their_queue_is_known_to(variation):
    bunch = (variation**2 + 1) / 2
    for load in (0.1, 0.5, 0.9):
        busy, batch, waiting, queue = steady._queue(load, 0.0, 1.0, 1 - 1 / bunch)
        # M^X/M/1 with geometric bunches: load x mean bunch / (1 - load) requests in the mean.
        assert batch + queue == pytest.approx(load * bunch / (1 - load))
        assert (busy, batch) == pytest.approx((load, load))
        # The first of a bunch waits as the machine is busy, each later one for certain.
        assert waiting == pytest.approx(1 - (1 - load) / bunch)


def test_a_bunch_is_what_comes_while_a_request_is_served():
    gaps = np.diff(arrivals_s(1.0, 200_000, variation=3.0)[0])
    # Rare requests, each over soon: the share of gaps that are shorter than it takes.
    more = 1 - 1 / steady.bunch_of(1.0, 0.01, 3.0)
    assert more == pytest.approx((gaps < 0.01).mean(), abs=0.01)
    assert steady.bunch_of(1.0, 100.0, 3.0) == pytest.approx(5)
    assert steady.bunch_of(1.0, 0.01, 1.0) == 1
    assert steady.bunch_of(1.0, 0.01, 0.0) == 0.5


@pytest.mark.parametrize("load", [0.01, 0.2, 0.4, 0.6, 0.8])
def test_the_closed_form_of_bursts_is_near_their_simulation(load):
    rate = load * capacity_req_s(T4, PROMPT, ANSWER)
    run = simulate(T4, arrivals_s(rate, 8000, 8, 3.0, seed=5), PROMPT, ANSWER)
    model = steady_state(T4, rate, PROMPT, ANSWER, 3.0)
    assert model.tpot_s == pytest.approx(run.interval(run.tpot_s)[0], rel=0.1)
    ttft = run.interval(run.ttft_s)[0]
    assert 0.7 < model.ttft_s / ttft < 1.5
    alike = steady_state(T4, rate, PROMPT, ANSWER)
    assert abs(model.ttft_s - ttft) < abs(alike.ttft_s - ttft) / 2


@given(
    st.floats(0, 1e-3),
    st.floats(1e-4, 0.1),
    st.floats(0, 1e-2),
    st.integers(1, 100),
    st.floats(0.01, 0.95),
    st.integers(2, 300),
    st.floats(0, 4),
    st.floats(0, 2),
)
def test_burstier_requests_are_never_faster_nor_more(
    prefill, step, per_request, max_batch, load, answer, variation, more
):
    served = Server(prefill, step, per_request, max_batch=max_batch)
    rate = load * capacity_req_s(served, 200, answer)
    variations = np.array([variation, variation + more])
    found = steady_state(served, rate, 200, answer, variations)
    for times in (found.wait_s, found.ttft_s, found.tpot_s, found.latency_s):
        assert (np.diff(times) >= -1e-9 * times[:-1] - 1e-12).all()
    limits = 2 * found.ttft_quantile_s(0.9)[0], 2 * found.tpot_s[0]
    assert found.share_ttft_within(found.ttft_quantile_s(0.9)) == pytest.approx([0.9, 0.9])
    rates = steady.highest_steady_rate_req_s(served, 200, answer, *limits, variation=variations)
    assert rates[1] <= rates[0] * 1.002


def test_the_highest_rate_of_the_closed_form_is_the_last_that_keeps_the_limits():
    given_ = {"ttft_limit_s": 0.3, "tpot_limit_s": 0.018, "share": 0.9}
    highest = steady.highest_steady_rate_req_s(T4, PROMPT, ANSWER, **given_)

    def keeps(rate):
        found = steady_state(T4, rate, PROMPT, ANSWER)
        return found.share_ttft_within(0.3) >= 0.9 and found.tpot_s <= 0.018

    assert keeps(highest)
    assert not keeps(1.003 * highest)
    none = given_ | {"ttft_limit_s": 0.05}
    assert steady.highest_steady_rate_req_s(T4, PROMPT, ANSWER, **none) == 0
    free = given_ | {"ttft_limit_s": np.inf, "tpot_limit_s": np.inf, "most": 0.9}
    full = capacity_req_s(T4, PROMPT, ANSWER)
    assert steady.highest_steady_rate_req_s(T4, PROMPT, ANSWER, **free) == pytest.approx(0.9 * full)


def test_a_request_alone_takes_its_prompt_and_its_steps():
    run = simulate(T4, [5.0], PROMPT, ANSWER, keep_steps=True)
    assert run.ttft_s[0, 0] == pytest.approx(PROMPT * T4.prefill_s_per_token)
    # Cached while it decodes: the prompt and the tokens so far.
    context = PROMPT + np.arange(1, ANSWER)
    steps = T4.step_s + T4.step_s_per_request + T4.step_s_per_cached_token * context
    assert run.latency_s[0, 0] == pytest.approx(run.ttft_s[0, 0] + steps.sum())
    times = run.token_times_s(0, 0, ANSWER)
    assert np.diff(times) == pytest.approx(steps)
    # A reader of 5 tokens a second is served in full, one of 200 who begins at once is not.
    assert latency.quality_of_experience(times - 5.0, 1.0, 5) == 1
    assert latency.quality_of_experience(times - 5.0, 0.06, 200) < 1
    assert latency.deadline_miss_rate(np.diff(times, prepend=5.0), 1.0, 0.02) == 0
    assert times[-1] - 5.0 == pytest.approx(run.latency_s[0, 0])
    assert run.steps == ANSWER
    idle = steady_state(T4, 0.0, PROMPT, ANSWER)
    assert idle.tpot_s == pytest.approx(run.tpot_s[0, 0], rel=1e-3)
    assert idle.ttft_s == pytest.approx(run.ttft_s[0, 0])


def test_a_server_is_fitted_to_what_was_measured_with_it():
    made = Server(1e-4, 8e-3, 3e-4, prefill_s=5e-3)
    measured = [simulate(made, np.zeros(c), PROMPT, ANSWER) for c in (1, 8, 32)]
    tpot, ttft = ([getattr(run, name).mean() for run in measured] for name in ("tpot_s", "ttft_s"))
    found = fit_server([1, 8, 32], tpot, ttft, PROMPT)
    names = ("prefill_s_per_token", "step_s", "step_s_per_request", "prefill_s")
    assert [getattr(found, n) for n in names] == pytest.approx([getattr(made, n) for n in names])
    lone = fit_server([32], tpot[2:], ttft[2:], PROMPT)
    assert (lone.step_s, lone.step_s_per_request, lone.prefill_s) == pytest.approx((tpot[2], 0, 0))
    assert lone.prefill_s_per_token == pytest.approx(ttft[2] / 32 / PROMPT)
    with pytest.raises(ValueError, match=r"^concurrency must have one number a measurement"):
        fit_server([1, 2], [1.0], [1.0], PROMPT)


def test_all_at_once_run_in_full_batches():
    run = simulate(Server(1e-3, 0.1, max_batch=2), [0.0] * 4, 100, 11)
    # Two prompts together, ten steps, then the other two.
    assert run.ttft_s[0] == pytest.approx([0.2, 0.2, 1.4, 1.4])
    assert run.latency_s[0] == pytest.approx([1.2, 1.2, 2.4, 2.4])
    assert run.batch[0] == pytest.approx(2)
    assert run.busy_share[0] == pytest.approx(1)
    # Room for the tokens of a single request does the same as a batch of one.
    small = simulate(Server(1e-3, 0.1, max_batch=2, kv_tokens=200), [0.0] * 4, 100, 11)
    single = simulate(Server(1e-3, 0.1, max_batch=1), [0.0] * 4, 100, 11)
    assert (small.latency_s == single.latency_s).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 40),
    st.floats(0, 1e-3),
    st.floats(1e-4, 0.05),
    st.floats(0, 1e-3),
    st.floats(0, 1e-6),
    st.floats(1.1, 10),
)
def test_whatever_the_server_no_request_beats_physics_and_crowds_are_slower(
    seed, max_batch, prefill, step, per_request, per_cached, closer
):
    rng = np.random.default_rng(seed)
    arrivals = arrivals_s(5.0, 60, seed=seed)
    prompts, answers = rng.integers(0, 500, 60), rng.integers(1, 80, 60)
    server = Server(prefill, step, per_request, per_cached, max_batch, kv_tokens=2000)
    run = simulate(server, arrivals, prompts, answers, keep_steps=True)
    assert (run.wait_s >= 0).all()
    assert (run.ttft_s >= run.wait_s + prefill * prompts - 1e-9).all()
    assert (run.tpot_s[0, answers > 1] >= step + per_request - 1e-9).all()
    assert run.batch[0] <= max_batch + 1e-9
    last = [run.token_times_s(0, i, n)[-1] for i, n in enumerate(answers)]
    assert last - arrivals[0] == pytest.approx(run.latency_s[0])
    crowd = simulate(server, arrivals / closer, prompts, answers)
    assert crowd.latency_s.mean() >= run.latency_s.mean() - 2 * step


@given(
    st.floats(0, 1e-3),
    st.floats(1e-4, 0.1),
    st.floats(0, 1e-2),
    st.floats(0, 1e-6),
    st.integers(1, 300),
    st.floats(0.01, 0.98),
    st.integers(2, 500),
)
def test_more_load_or_a_smaller_batch_is_never_faster(
    prefill, step, per_request, per_cached, max_batch, load, answer
):
    server = Server(prefill, step, per_request, per_cached, max_batch)
    rate = load * capacity_req_s(server, 200, answer)
    rates = rate * np.array([0.5, 0.9, 1.0])
    found = steady_state(server, rates, 200, answer)
    for times in (found.wait_s, found.ttft_s, found.tpot_s, found.latency_s):
        assert (np.diff(times) >= -1e-9 * times[:-1] - 1e-12).all()
    assert found.utilisation == pytest.approx(load * np.array([0.5, 0.9, 1.0]))
    assert (np.diff(found.share_ttft_within(0.5)) <= 1e-9).all()
    wider = Server(prefill, step, per_request, per_cached, max_batch + 1)
    assert capacity_req_s(wider, 200, answer) >= capacity_req_s(server, 200, answer) * (1 - 1e-12)
    assert steady_state(wider, rate, 200, answer).wait_s <= found.wait_s[-1] * (1 + 1e-9)
    over = steady_state(server, 1.01 * rate / load, 200, answer)
    assert over.latency_s == over.ttft_s == np.inf
    assert over.share_ttft_within(10.0) == 0


def test_servers_and_loads_broadcast():
    servers = Server(2e-4, np.array([[8e-3], [16e-3]]), 2e-4, max_batch=np.array([[32], [8]]))
    found = steady_state(servers, np.array([0.1, 1.0, 2.0]), PROMPT, ANSWER)
    assert found.tpot_s.shape == found.ttft_s.shape == (2, 3)
    lone = steady_state(Server(2e-4, 16e-3, 2e-4, max_batch=8), 1.0, PROMPT, ANSWER)
    assert found.tpot_s[1, 1] == lone.tpot_s
    assert isinstance(lone.tpot_s, float)
    assert steady_state(Server(0, 1, kv_tokens=100), 1.0, 100, 1).latency_s == np.inf


def test_arrivals_have_their_rate_their_bursts_and_their_day():
    poisson = np.diff(arrivals_s(4.0, 200_000, seed=5)[0])
    assert poisson.mean() == pytest.approx(1 / 4, rel=0.01)
    assert poisson.std() / poisson.mean() == pytest.approx(1, rel=0.01)
    bursts = np.diff(arrivals_s(4.0, 200_000, variation=3, seed=5)[0])
    assert bursts.mean() == pytest.approx(1 / 4, rel=0.03)
    assert bursts.std() / bursts.mean() == pytest.approx(3, rel=0.03)
    assert arrivals_s(4.0, 4, variation=0)[0] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    profile = [0] * 8 + [3] * 4 + [1] * 8 + [0] * 4
    day = arrivals_s(1.0, 10 * 86_400, profile=profile, seed=5)[0]
    assert np.bincount(day.astype(int) // 86_400)[:9].mean() == pytest.approx(86_400, rel=0.01)
    hours = np.bincount((day % 86_400 // 3600).astype(int), minlength=24)
    assert hours / hours.sum() == pytest.approx(np.array(profile) / sum(profile), abs=2e-3)
    assert arrivals_s(2.0, 50, 3, seed=1) == pytest.approx(arrivals_s(1.0, 50, 3, seed=1) / 2)


def test_the_highest_rate_keeps_the_limits_and_bursts_lower_it():
    def rate(**changes):
        given_ = {"ttft_limit_s": 1.0, "tpot_limit_s": 0.02, "requests": 1000} | changes
        return batching.highest_rate_req_s(T4, PROMPT, ANSWER, **given_)

    mean, lo, hi = rate()
    assert lo <= mean <= hi
    assert mean < capacity_req_s(T4, PROMPT, ANSWER)
    at = simulate(T4, arrivals_s(mean, 20_000, 4, seed=9), PROMPT, ANSWER)
    met = (at.ttft_s <= 1.0) & (at.tpot_s <= 0.02)
    assert met.mean() == pytest.approx(0.9, abs=0.04)
    assert rate(variation=3.0)[0] < lo
    assert rate(tpot_limit_s=0.03)[0] > hi
    assert rate(target=0.5)[0] > mean
    # Below what a request takes alone no rate holds.
    assert rate(ttft_limit_s=0.05) == (0, 0, 0)
    assert rate(tpot_limit_s=0.008) == (0, 0, 0)


def test_where_nothing_can_be_kept_it_compiles_anew(monkeypatch):
    def njit(cache):
        raise RuntimeError("cannot cache function")

    assert server.may_cache()
    monkeypatch.setattr(server.numba, "njit", njit)
    assert not server.may_cache()


def test_what_cannot_be_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^max_batch must be a whole number of at least 1"):
        Server(0, 1, max_batch=0)
    with pytest.raises(ValueError, match=r"^step_s must not be negative"):
        Server(0, -1)
    with pytest.raises(ValueError, match=r"^kv_tokens must hold the longest request: 111 tokens"):
        simulate(Server(0, 1, kv_tokens=110), [0.0], 100, 11)
    with pytest.raises(ValueError, match=r"^arrivals_s must not be negative"):
        simulate(T4, [1.0, 0.5], 1, 1)
    with pytest.raises(ValueError, match=r"^output_tokens must be a whole number"):
        simulate(T4, [1.0], 1, 0)
    with pytest.raises(ValueError, match=r"^prompt_tokens must be a whole number"):
        simulate(T4, [1.0], 0.5, 1)
    with pytest.raises(ValueError, match=r"^rate_req_s must not be negative"):
        steady_state(T4, -1, 1, 1)
    with pytest.raises(ValueError, match=r"^output_tokens must be at least 1"):
        steady_state(T4, 1, 1, 0.5)
    with pytest.raises(ValueError, match=r"^profile must be 24 weights"):
        arrivals_s(1.0, 1, profile=[1.0] * 23)
    with pytest.raises(ValueError, match="keep_steps=True"):
        simulate(T4, [0.0], 1, 1).token_times_s(0, 0, 1)
    with pytest.raises(ValueError, match=r"^tpot_limit_s must be above 0"):
        batching.highest_rate_req_s(T4, 1, 1, 1.0, 0.0)
