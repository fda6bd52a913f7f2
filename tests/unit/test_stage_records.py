"""The records that stages hand over, and the scraps that they are kept as."""

import pytest
from pydantic import ValidationError

from edge_eval_lib import scraps
from edge_eval_lib.energy import Monitor
from edge_eval_lib.lifecycle.adapt import TrainingOutcome
from edge_eval_lib.lifecycle.answers import BatchAgreement
from edge_eval_lib.lifecycle.cold_load import Load
from edge_eval_lib.results import records
from edge_eval_lib.results.records import AdaptRecord, CompressRecord


@pytest.fixture(scope="module")
def window():
    with Monitor("cpu") as monitor, monitor.window("adapt") as window:
        sum(range(10_000))
    return window


def adapt_record(window, **changes):
    outcome = TrainingOutcome([2.0, 1.5], 2, 80, 20, "float32")
    fields = {"adapt": window, "base_load": window, "imports": window, "outcome": outcome}
    fields |= {"instruction_set": "avx2", "rows_passed_over": 0, "adapter_bytes": 9}
    fields |= {"trainable_parameters": 4, "heldout_loss_before": 2.0, "heldout_loss_after": 1.0}
    return AdaptRecord(**(fields | {"idle_power_w": None} | changes))


def test_a_window_is_kept_under_its_name_as_it_tells_of_itself(window):
    kept = adapt_record(window).as_scraps()
    for name in ("adapt", "base_load", "imports"):
        expected = window.as_dict(name)
        assert {key: kept[key] for key in expected} == expected
    assert kept["losses"] == [2.0, 1.5]
    assert kept["executed_dtype"] == "float32"
    assert scraps._plain(kept, "kept") == kept  # of types that a scrap can keep


def test_precisions_that_were_carried_over_keep_their_scraps(window):
    record = CompressRecord(
        carried={"int8_s": 3.0},
        windows={"int4": window},
        imports=window,
        idle_power_w=None,
        merge_base="fp16",
        artefacts=[],
    )
    kept = record.as_scraps()
    assert kept["int8_s"] == 3.0
    assert kept["int4_s"] == window.seconds
    assert not {"carried", "windows"} & set(kept)


def test_a_load_and_the_agreement_are_kept_field_by_field():
    kept = records.ServeRecord(
        load=Load(load_s=1.5),
        engine="transformers",
        executed_dtype="float32",
        instruction_set="avx2",
        gpus=0,
        memory_nominal_gb=None,
        idle_bare_power_w=None,
        idle_loaded_power_w=None,
        idle_reason="no idle power",
        warm_up={
            "seconds": 1.0,
            "requests": 8,
            "throughput_tok_s": [4.0],
            "steady": False,
            "trend_share": None,
            "p_value": None,
            "judged": 0,
        },
        serving_order=3,
        agreement=BatchAgreement(0.5, 4, 2),
        serving_windows=[{"window": "serve at 1"}],
        serving=[],
    ).as_scraps()
    assert kept["load_s"] == 1.5
    assert kept["batch_agreement"] == 0.5
    assert kept["warm_up"]["throughput_tok_s"] == [4.0]
    assert kept["load_energy_j"] is None


@pytest.mark.parametrize(
    "wrong", [{"heldout_loss_after": float("nan")}, {"adapter_bytes": "many"}, {"extra": 1}]
)
def test_what_no_table_could_read_is_refused(window, wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        adapt_record(window, **wrong)
