"""The QLoRA ablation: its design, its effects, and when it may give a verdict."""

import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.lifecycle import ablation
from edge_eval_lib.results import ablation as found_by
from edge_eval_lib.study import load_study

T4 = "1 x Tesla T4"


def factors(on_gpu):
    return ablation.FACTORS | ({} if on_gpu else {"autocast": (None,)})


def made(on_gpu=True, repetitions=5, host=T4, model="llama-1B", source="nvml-counter", **factor):
    """Runs of known effects: each level multiplies time; drift multiplies a whole repetition."""
    effect = {"nf4": 1.3, "bfloat16": 4.0, "with": 1.1} | factor
    noise = np.random.default_rng(1)
    rows = []
    for repetition, cell in ablation.blocks(
        ablation.factorial(factors(on_gpu)), repetitions, seed=3
    ):
        size = np.prod([effect.get(level, 1.0) for level in vars(cell).values()])
        seconds = 10 * size * 1.5**repetition * noise.normal(1, 0.002)
        rows.append(
            {
                "repetition": repetition,
                "cell": str(cell),
                "base": cell.base,
                "autocast": cell.autocast or "none",
                "casts": cell.casts,
                "seconds": seconds,
                "energy_j": None if source is None else 60 * seconds,
                "energy_source": source,
                "peak_memory_gb": 2.0 if cell.base == "nf4" else 5.0,
                "host": host,
                "model": model,
            }
        )
    return pd.DataFrame(rows)


def test_every_combination_once():
    cells = ablation.factorial(ablation.FACTORS)
    assert len(set(cells)) == len(cells) == 8
    on_cpu = ablation.factorial(factors(on_gpu=False))
    assert [cell.autocast for cell in on_cpu] == [None] * 4
    assert {(cell.base, cell.casts) for cell in on_cpu} == {
        (cell.base, cell.casts) for cell in cells
    }


def test_every_repetition_holds_each_cell_once_in_an_order_of_its_own():
    cells = ablation.factorial(ablation.FACTORS)
    order = ablation.blocks(cells, 3, seed=1)
    assert [repetition for repetition, _ in order] == [1] * 8 + [2] * 8 + [3] * 8
    held = [[cell for r, cell in order if r == repetition] for repetition in (1, 2, 3)]
    assert all(set(block) == set(cells) for block in held)
    assert held[0] != held[1] != held[2]
    assert order == ablation.blocks(cells, 3, seed=1)
    assert order != ablation.blocks(cells, 3, seed=2)


def test_effects_are_detected_through_drift_that_dwarfs_them():
    found = found_by.effects(made())
    seconds = found[(found["quantity"] == "seconds") & (found["given"] != "all")]
    truth = {"base": 1.3, "autocast": 4.0, "casts": 1.1}
    assert len(seconds) == 3 * 4
    for row in seconds.itertuples():
        assert row.ratio_lo < truth[row.factor] < row.ratio_hi
        assert row.ratio_hi - row.ratio_lo < 0.05 * row.ratio
        assert row.pairs == 5
    whole = found[(found["quantity"] == "seconds") & (found["given"] == "all")]
    assert whole["pairs"].tolist() == [20, 20, 20]
    assert whole["ratio"].tolist() == pytest.approx([1.3, 4.0, 1.1], rel=0.01)
    memory = found[(found["quantity"] == "peak_memory_gb") & (found["factor"] == "base")]
    assert memory["ratio"].tolist() == pytest.approx([0.4] * 5)
    assert set(found["quantity"]) == {"seconds", "energy_j", "peak_memory_gb"}


def test_a_cpu_tells_time_of_two_factors_and_no_energy():
    found = found_by.effects(made(on_gpu=False, source="cpu-model"))
    assert set(found["factor"]) == {"base", "casts"}
    assert set(found["quantity"]) == {"seconds", "peak_memory_gb"}
    assert set(found[found["factor"] == "base"]["given"]) == {"all", "with casts", "without casts"}


def test_one_repetition_has_no_interval():
    found = found_by.effects(made(on_gpu=False, repetitions=1))
    alone = found[found["given"] != "all"]
    assert alone[["ratio_lo", "ratio_hi"]].isna().all(axis=None)
    assert alone["ratio"].notna().all()


def test_cells_are_compared_with_plain_lora_of_the_same_repetition():
    compared = found_by.against_plain_lora(made())
    seconds = compared[compared["quantity"] == "seconds"].set_index("cell")["ratio"]
    assert len(seconds) == 7
    assert seconds["nf4 base, bfloat16, with casts"] == pytest.approx(1.3 * 4 * 1.1, rel=0.01)
    assert seconds["nf4 base, float16, without casts"] == pytest.approx(1.3, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"host": "A CPU, 2 logical CPUs", "on_gpu": False, "source": "cpu-model"}, "No T4"),
        ({"host": "1 x NVIDIA H100"}, "No T4 has run it yet.*H100"),
        ({"repetitions": 1}, "no measured energy with an interval"),
        ({"source": None}, "no measured energy"),
        ({"model": "smollm2-135M"}, "No ratio was published for smollm2-135M"),
    ],
)
def test_the_verdict_stays_open_until_a_t4_has_measured_energy(changes, reason):
    runs = made(**changes)
    judged, why = found_by.verdict(runs, found_by.against_plain_lora(runs))
    assert judged == "open"
    assert pd.Series([why]).str.contains(reason).all(), why


def test_published_ratios_are_those_of_the_models_tasks():
    # LLaMA-1B: 784066.12 / 92122.30, 636260.08 / 74995.85, 1278476.99 / 248645.76 J.
    assert found_by.published_ratios("llama-1B") == pytest.approx((5.1418, 8.5111), abs=1e-3)
    assert found_by.published_ratios("smollm2-135M") is None


def test_on_a_t4_the_cells_that_reach_the_published_ratio_explain_it():
    runs = made()  # NF4 and bfloat16: 5.2 times, with casts 5.72; LLaMA-1B: 5.1 to 8.5
    judged, why = found_by.verdict(runs, found_by.against_plain_lora(runs))
    assert judged == "explained"
    assert "nf4 base, bfloat16, with casts (5.7" in why
    assert "float16, with casts" not in why.replace("bfloat16", "")
    runs = made(bfloat16=1.0)
    judged, why = found_by.verdict(runs, found_by.against_plain_lora(runs))
    assert judged == "not reproduced"
    assert "the most is 1.4" in why


def test_the_picture_has_a_panel_a_quantity_and_a_row_a_comparison():
    found = found_by.effects(made())
    figure = found_by.draw(found, "a machine")
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["time", "energy", "peak memory"]
    assert len(figure.axes[0].get_yticklabels()) == 15
    empty = found_by.draw(found.iloc[:0])
    assert "Nothing to draw" in empty.axes[0].get_title(loc="left")


def test_warnings_and_tables_say_what_the_runs_are_of(tmp_path):
    runs = made(on_gpu=False, host="A CPU", source="cpu-model").assign(
        steps=3, tokens=100, place=1, executed_dtype="float32", loss_last=2.0, validity="ok"
    )
    verdict, limits = found_by.warnings(runs, found_by.against_plain_lora(runs))
    assert verdict.startswith("The verdict on the published ratio: open.")
    assert limits.startswith("On a CPU: time only.")
    assert len(found_by.warnings(made(), found_by.against_plain_lora(made()))) == 1
    found_by.write_results(runs, tmp_path)
    written = {path.name for path in (tmp_path / "tables").iterdir()}
    assert written == {"ablation_runs.csv", "ablation_effects.csv", "ablation_cells.csv"}
    assert (tmp_path / "figures" / "ablation_effects.png").is_file()
    assert found_by.stamp_of(runs) == "llama-1B · A CPU · energy: cpu-model"


@pytest.mark.parametrize("name", ["qlora_ablation", "qlora_ablation_t4"])
def test_the_study_is_one_run_with_gradient_checkpointing(name):
    study = load_study(name)
    assert [run.stage for run in study.runs()] == ["preflight", "ablation"]
    assert study.training.gradient_checkpointing
    more = study.with_repetitions(study.repetitions + 1).run("ablation", "ablation")
    assert more.settings_hash != study.run("ablation", "ablation").settings_hash
    assert more.parameters == {"repetitions": study.repetitions + 1}


@pytest.mark.parametrize("name", ["embedded", "paper_t4"])
def test_the_papers_studies_hold_the_papers_configurations_alone(name):
    study = load_study(name)
    assert study.ablation is None
    assert {(c.method, c.precision) for c in study.configurations} == {
        ("lora", "fp16"),
        ("lora", "int8"),
        ("lora", "int4"),
        ("qlora", "int4"),
    }
