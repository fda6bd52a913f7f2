"""Prices: the sets that studies name, the two accountings' costs, and scenarios."""

from datetime import date

import pytest
import yaml

from edge_eval_lib.economics.prices import api_usd_per_request, load_price_book
from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import project_root

BOOK = load_price_book()
PAPER = BOOK.prices("paper")


def test_the_papers_prices():
    assert PAPER.electricity_usd_per_kwh == 0.12
    assert PAPER.api_usd_per_request == 0.00125
    # 0.00125 USD is the input price of 500 tokens, without any output.
    listed = PAPER.api_input_usd_per_mtok, PAPER.api_output_usd_per_mtok
    assert api_usd_per_request(500, 0, *listed) == pytest.approx(PAPER.api_usd_per_request)
    assert api_usd_per_request(500, 150, *listed) == pytest.approx(0.00275)
    assert PAPER.electricity_usd(3.6e6) == pytest.approx(0.12)


def test_hardware_by_the_hour_of_use():
    rate, years = 0.05, 5
    recovery = rate * (1 + rate) ** years / ((1 + rate) ** years - 1)
    assert PAPER.hardware_usd_per_hour == pytest.approx(5000 * recovery / 8760 / 0.5)
    free_money = PAPER.model_copy(update={"discount_rate": 0.0, "utilisation": 1.0})
    assert free_money.hardware_usd_per_hour == pytest.approx(5000 / 5 / 8760)
    assert free_money.hardware_usd_per_hour < PAPER.hardware_usd_per_hour


def test_an_hour_of_the_machine_costs_hardware_and_electricity_with_pue():
    assert PAPER.machine_usd(0.0, 3600) == pytest.approx(PAPER.hardware_usd_per_hour)
    assert PAPER.machine_usd(3.6e6, 0.0) == pytest.approx(0.12 * 1.56)


def test_scenarios_reach_every_end():
    scenarios = BOOK.scenario_prices(PAPER)
    assert {s.setup_hours for s in scenarios} == {0.0, 80.0}
    assert {s.electricity_usd_per_kwh for s in scenarios} == {0.03, 0.40}
    assert len({s.api_output_usd_per_mtok for s in scenarios}) > 5
    assert {s.hardware_usd for s in scenarios} == {PAPER.hardware_usd}


def test_api_prices_are_dated_and_sourced():
    for price in BOOK.api_prices:
        assert date(2023, 1, 1) < price.valid_from < date.today()
        assert price.source.startswith("https://")
        assert 0 < price.input_usd_per_mtok <= price.output_usd_per_mtok


def test_an_unknown_set_is_refused():
    with pytest.raises(UserError, match="'papier'; there is: paper"):
        BOOK.prices("papier")


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("pue", 0.9, "pue"),
        ("electricity_usd_per_kwh", -0.1, "electricity_usd_per_kwh"),
        ("utilisation", "half", "utilisation"),
        ("setup_hours", None, "setup_hours"),
        ("electricty_usd_per_kwh", 0.1, "did you mean 'electricity_usd_per_kwh'"),
    ],
)
def test_a_wrong_price_is_refused_by_name(tmp_path, field, value, complaint):
    content = yaml.safe_load((project_root() / "params" / "prices.yaml").read_text())
    content["sets"]["paper"][field] = value
    path = tmp_path / "prices.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=complaint):
        load_price_book(path)


@pytest.mark.parametrize("value", [[2, 1], [-1, 1], [1]])
def test_a_wrong_price_of_a_cloud_is_refused_by_name(tmp_path, value):
    content = yaml.safe_load((project_root() / "params" / "prices.yaml").read_text())
    content["cloud_gpus"][0]["usd_per_hour"] = value
    path = tmp_path / "prices.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"cloud_gpus.*usd_per_hour"):
        load_price_book(path)
