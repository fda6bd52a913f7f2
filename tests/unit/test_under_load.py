"""A server under a day's load, and between requests: what the tables say and how it moves."""

from __future__ import annotations

import numpy as np
import pytest

from edge_eval_lib.economics.server import Server, capacity_req_s
from edge_eval_lib.economics.under_load import day_table, standby_table

T4 = Server(2e-4, 8e-3, 2e-4, 1e-7, max_batch=32)
DAY = {"requests_per_day": 300_000, "prompt_tokens": 300, "output_tokens": 150}


def test_a_day_takes_so_many_servers_and_bursts_take_more():
    table = day_table(T4, **DAY, ttft_limit_s=1.0, tpot_limit_s=0.02).set_index("arrivals")
    random, bursts = table.loc["random"], table.loc["bursty"]
    assert bursts["highest_rate_req_s"] < random["highest_rate_req_s_lo"]
    assert random["highest_rate_req_s"] < capacity_req_s(T4, 300, 150)
    assert bursts["cards"] >= random["cards"] >= 2
    # They are as many as the limits take, so that the limits hold.
    assert (table["share_in_time"] >= 0.88).all()
    assert (table["ttft_p95_ms"] > table["ttft_ms"]).all()
    assert (table["idle_share"] > table["idle_share_by_hour"]).all()
    tighter = day_table(T4, **DAY, ttft_limit_s=1.0, tpot_limit_s=0.012)
    assert (tighter["cards"].to_numpy() > table["cards"].to_numpy()).all()


def test_limits_that_no_rate_holds_leave_the_rest_empty():
    table = day_table(T4, **DAY, ttft_limit_s=0.05, tpot_limit_s=0.02, patterns={"a clock": 0.0})
    assert table.to_dict("records") == [
        {
            "arrivals": "a clock",
            "highest_rate_req_s": 0.0,
            "highest_rate_req_s_lo": 0.0,
            "highest_rate_req_s_hi": 0.0,
        }
    ]


def test_between_requests():
    given = {"energy_per_request_j": 50, "load_s": 10, "load_energy_j": 7630.5}
    given["usd_per_request"] = 0.001
    rare, often = (
        standby_table(rate, **given, extra_idle_power_w=26, usd_per_hour=1.0).set_index("way")
        for rate in (1e-4, 0.1)
    )
    assert rare["standby_j"].idxmin() == "scale to zero"
    assert often["standby_j"].idxmin() == "keep warm"
    # Every request a cold start: C_tax of the energies.
    assert rare.loc["scale to zero", "standby_tax"] == pytest.approx(7630.5 / 50)
    assert rare.loc["scale to zero", "standby_usd"] == pytest.approx(10 / 3600)
    for table in (rare, often):
        middle = table.loc["unload after the keep-warm time"]
        assert middle["keep_s"] == pytest.approx(293.5, abs=0.1)
        assert middle["standby_j"] <= 2 * table["standby_j"].min()
    dearer = standby_table(
        0.1, **given, extra_idle_power_w=26, usd_per_hour=1.0, electricity_usd_per_kwh=0.3
    )
    assert (dearer["standby_usd"].to_numpy() > often["standby_usd"].to_numpy()).all()
    with pytest.raises(ValueError, match=r"^rate_req_s must be above 0"):
        standby_table(0.0, **given, extra_idle_power_w=26, usd_per_hour=1.0)
    assert np.isinf(often.loc["keep warm", "keep_s"])


def test_the_cold_start_tax_in_money():
    # 18 s and 7,200 J of a load against a tenth of a cent a request, so rare that each is cold.
    for price, tax in ((0.12, (0.01 + 0.002 * 0.12) / 0.001), (0.0, 10)):
        table = standby_table(1e-6, 10, 18, 7200, 26, 2.0, 0.001, price)
        assert table["standby_tax_usd"][0] == pytest.approx(tax)


def test_between_bursts_fewer_requests_find_it_unloaded():
    given = (0.01, 50, 10, 7630.5, 26, 1.0, 0.001)
    steady, random, bursty = (
        standby_table(*given, variation=v).set_index("way") for v in (0.0, 1.0, 3.0)
    )
    unload = "unload after the keep-warm time"
    assert random["cold_share"][unload] == pytest.approx(np.exp(-2.935), rel=0.01)
    assert 0.9 < bursty["cold_share"]["scale to zero"] < 1  # some come at once
    # By a clock the next one comes after 100 s, before the time is up.
    assert steady["cold_share"][unload] == 0
    for table in (steady, random, bursty):
        assert table["cold_share"].is_monotonic_decreasing
        assert table["warm_s"]["keep warm"] == pytest.approx(100, rel=0.05)
    drawn = standby_table(*given, variation=1 + 1e-9).set_index("way")
    assert drawn["standby_j"].to_numpy() == pytest.approx(random["standby_j"].to_numpy(), rel=0.05)
