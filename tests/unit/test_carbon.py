"""Carbon of requests, years and training: published accounts and how figures move."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib.economics import carbon
from edge_eval_lib.errors import UserError

positive = st.floats(1e-3, 1e6)
share = st.floats(0.01, 1)
factor = st.floats(1.01, 100)

# g/kWh in codecarbon 3.3.2 (codecarbon/data/private_infra/global_energy_mix.json, year 2023).
CODECARBON = {
    "FRA": 56.039,
    "SWE": 40.695,
    "USA": 369.473,
    "DEU": 380.95,
    "CHN": 582.317,
    "POL": 661.926,
    "IND": 713.441,
    "GBR": 237.589,
    "NOR": 30.08,
    "AUS": 548.692,
    "JPN": 485.392,
    "BRA": 98.348,
    "CAN": 170.043,
}


def test_published_carbon():
    # GPT-3: 10,000 GPUs x 14.8 days x 330 W, PUE 1.1, 429 g/kWh (arXiv 2104.10350).
    gpt3 = carbon.operational_g(10_000 * 14.8 * 24 * 0.33, 429, pue=1.1) / 1e6
    assert gpt3 == pytest.approx(552.1, rel=0.003)
    assert gpt3 == pytest.approx(553.34, rel=0.003)
    mix = carbon.mix_intensity_g_per_kwh([0.25, 0.35, 0.26, 0.14], [995, 816, 743, 29])
    assert mix == pytest.approx(731.59)


def test_software_carbon_intensity():
    embodied = carbon.embodied_g(164_000, time_share=1 / 43_800, resource_share=0.5)
    assert embodied == pytest.approx(164_000 / 43_800 / 2)
    sci = carbon.software_carbon_intensity_g(0.7, 400, embodied, functional_units=10_000)
    assert sci == pytest.approx((280 + embodied) / 10_000)


@given(positive, positive, st.floats(1, 3), factor)
def test_operational_carbon_moves_as_it_must(energy, intensity, pue, more):
    grams = carbon.operational_g(energy, intensity, pue)
    assert grams >= carbon.operational_g(energy, intensity)
    assert carbon.operational_g(energy * more, intensity, pue) == pytest.approx(grams * more)
    assert carbon.operational_g(energy, intensity * more, pue) == pytest.approx(grams * more)
    assert carbon.operational_g(np.array([energy]), intensity, pue)[0] == grams


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), positive)
def test_a_mix_lies_between_its_sources(weights, least):
    shares = np.array(weights) / sum(weights)
    intensities = least * np.arange(1, len(weights) + 1)
    mix = carbon.mix_intensity_g_per_kwh(shares, intensities)
    assert least * (1 - 1e-9) <= mix <= intensities[-1] * (1 + 1e-9)


def test_blooms_account_to_a_thousandth():
    """Luccioni et al., arXiv 2211.02001: 24.69 t dynamic, 14.6 idle, 11.2 embodied, 50.5 in all."""
    hours, years, utilisation = 1_082_990, 6, 0.85
    gpus, servers = (
        carbon.embodied_g_per_hour(kg * 1000, years, utilisation) for kg in (150, 2500)
    )
    training = carbon.training_footprint(
        hours, 0.4, 57, embodied_g_per_device_hour=gpus + servers / 8
    )
    idle_g = carbon.operational_g(256_646, 57)
    assert training.operational_g / 1e6 == pytest.approx(24.69, rel=1e-3)
    assert gpus * hours / 1e6 == pytest.approx(3.64, rel=2e-3)
    assert servers / 8 * hours / 1e6 == pytest.approx(7.57, rel=1e-3)
    assert (training.total_g + idle_g) / 1e6 == pytest.approx(50.5, rel=1e-3)


def test_gpt3_by_its_operations():
    """LLMCarbon's way: 6 P D operations; Patterson et al. (arXiv 2104.10350) have 3.14e23."""
    hours = carbon.training_hours(175e9, 300e9, 125e12, 24.6 / 125)
    assert hours * 3600 * 24.6e12 == pytest.approx(3.15e23, rel=1e-3)
    assert hours == pytest.approx(10_000 * 14.8 * 24, rel=0.005)
    grams = carbon.training_footprint(hours, 0.33, 429, pue=1.1).operational_g
    assert grams / 1e6 == pytest.approx(552.1, rel=0.01)


def test_boundaries_of_sci_for_ai():
    # The draft's own example: 6,500 kg over 50e9 tokens, which it prints as 0.13 g.
    assert carbon.consumer_sci_g(6500e3, 50e9) == pytest.approx(130)
    assert carbon.consumer_sci_g(6500e3, 50e9, 1e9) == pytest.approx(130e3)
    assert carbon.provider_sci_g(200_000e3, 5e22) == pytest.approx(4)


def test_a_request_is_the_sci_of_one_unit():
    found = carbon.serving_footprint(36.0, 0.5, 400, 1.5, 100e3, 5, 0.5)
    assert found.operational_g == pytest.approx(1e-5 * 1.5 * 400)
    hours = 5 * 8760 * 0.5
    assert found.embodied_g == pytest.approx(100e3 / hours * 0.5 / 3600)
    sci = carbon.software_carbon_intensity_g(
        1e-5 * 1.5, 400, carbon.embodied_g(100e3, 0.5 / 3600 / hours), 1
    )
    assert found.total_g == pytest.approx(sci)
    assert carbon.yearly_g(found.total_g, 1000) == pytest.approx(365_000 * found.total_g)


@given(positive, positive, positive, st.floats(1, 3), positive, st.floats(1, 10), share)
def test_footprints_move_as_they_must(energy, seconds, grid, pue, making, years, use):
    found = carbon.serving_footprint(energy, seconds, grid, pue, making, years, use)
    cleaner = carbon.serving_footprint(energy, seconds, grid / 2, pue, making, years, use)
    assert cleaner.operational_g == pytest.approx(found.operational_g / 2)
    assert cleaner.embodied_g == found.embodied_g
    longer = carbon.serving_footprint(energy, seconds, grid, pue, making, 2 * years, use)
    assert longer.embodied_g == pytest.approx(found.embodied_g / 2)
    idler = carbon.serving_footprint(energy, seconds, grid, pue, making, years, use / 2)
    assert idler.total_g >= found.total_g
    both = carbon.serving_footprint(np.array([energy, 0]), seconds, grid, pue, making, years, use)
    assert both.total_g[0] == pytest.approx(found.total_g)
    assert both.operational_g[1] == 0


def test_intensities_agree_with_another_librarys():
    book = carbon.load_carbon_book()
    assert book.intensities.year == 2023
    for region, g_per_kwh in CODECARBON.items():
        assert book.intensity_g_per_kwh(region) == pytest.approx(g_per_kwh, abs=0.5)


def test_what_making_emits_is_a_range_with_its_source():
    book = carbon.load_carbon_book()
    least, typical, most = book.embodied_g("t4")
    assert 0 < least < typical < most
    assert "none is published" in book.embodied_kg["t4"].source
    assert book.embodied_g("h100")[1] == 164e3
    assert book.embodied_g("a100")[1] == 181e3


def test_a_wrong_book_or_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="no region 'FRB'; did you mean 'FRA'"):
        carbon.load_carbon_book().intensity_g_per_kwh("FRB")
    with pytest.raises(UserError, match="no device 'abacus'; there is: t4"):
        carbon.load_carbon_book().embodied_g("abacus")
    path = tmp_path / "carbon.yaml"
    path.write_text(
        "intensities: {year: 2023, source: x, g_per_kwh: {FRA: 56}}\n"
        "embodied_kg: {t4: {range: [3, 2, 1], source: x}}\n"
    )
    with pytest.raises(UserError, match=r"least, typical, most"):
        carbon.load_carbon_book(path)
