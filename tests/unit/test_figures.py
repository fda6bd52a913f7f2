"""Figures: what they draw is what the table says, gaps are told, files are complete."""

import io
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.economics import published
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.results import figures, tables

STAMP = "a machine · energy: estimated"
OF_VARIANTS = [
    figures.roi_ipw_quadrants,
    figures.system_density,
    figures.quality_stability,
    figures.lifecycle_energy,
]


@pytest.fixture(scope="module")
def paper() -> pd.DataFrame:
    return tables.variants_table(published.observations(), None, load_price_book().prices("paper"))


@pytest.fixture(scope="module")
def one_model(paper) -> pd.DataFrame:
    table = paper[(paper["family"] == "llama") & (paper["size"] == "1B")].copy()
    for metric in ("rho_sys", "ipw", "q_ret_pct", "score"):
        table[f"{metric}_lo"], table[f"{metric}_hi"] = table[metric] * 0.9, table[metric] * 1.2
    return table


def texts(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(plt.Text))


def requests_of(variants: pd.DataFrame) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "variant": tables.variant_name(row),
                    "ttft_ms": rng.lognormal(5, 0.2, 10),
                    "tpot_ms": rng.lognormal(4, 0.1, 10),
                }
            )
            for _, row in variants.iterrows()
        ]
    )


@pytest.mark.parametrize("draw", OF_VARIANTS, ids=lambda f: f.__name__)
def test_every_task_has_a_panel_with_units_and_the_stamp(draw, paper):
    figure = draw(paper, stamp=STAMP)
    assert [a.get_title(loc="left") for a in figure.axes] == ["rag", "summarization", "dialogue"]
    assert STAMP in texts(figure)
    assert all(any(c in a.get_xlabel() for c in "[,") for a in figure.axes)
    assert "llama-1B" in texts(figure)
    assert figure.number not in plt.get_fignums()


def test_quadrants_draw_every_variant_at_its_figures(one_model):
    figure = figures.roi_ipw_quadrants(one_model)
    drawn = {
        tuple(np.round(line.get_xydata()[0], 6))
        for axis in figure.axes
        for line in axis.lines
        if line.get_marker() not in ("", "None")
    }
    expected = {
        tuple(np.round(pair, 6))
        for pair in one_model[["ipw", "n_break"]].itertuples(index=False, name=None)
    }
    assert drawn == expected
    low, high = figure.axes[0].get_ylim()
    assert low > high  # sooner is up


def test_a_variant_that_never_pays_is_still_drawn(one_model):
    table = one_model.assign(n_break=np.where(one_model["method"] == "qlora", np.inf, 5.0))
    figure = figures.roi_ipw_quadrants(table)
    heights = [
        line.get_ydata()[0]
        for line in figure.axes[0].lines
        if line.get_marker() not in ("", "None")
    ]
    assert sorted(heights) == [5, 5, 5, 15]


def test_density_draws_intervals_where_there_are_any(one_model, paper):
    def bars(figure):
        return [s for axis in figure.axes for c in axis.collections for s in c.get_segments()]

    drawn = bars(figures.system_density(one_model))
    ends = {(round(s[0][0], 3), round(s[-1][0], 3)) for s in drawn}
    row = one_model.iloc[0]
    assert (round(row["rho_sys_lo"], 3), round(row["rho_sys_hi"], 3)) in ends
    assert not bars(figures.system_density(paper))


def test_adaptation_labels_its_ratios():
    table = tables.adaptation_table(published.observations())
    shown = texts(figures.adaptation_energy(table, STAMP))
    assert "×8.5" in shown
    assert "×8.51" not in shown  # of one adaptation each
    assert "llama-1B  rag" in shown
    assert "[MJ]" in shown
    assert STAMP in shown


def test_lifecycle_serves_as_many_requests_as_it_says(one_model):
    figure = figures.lifecycle_energy(one_model, requests=500)
    drawn = [line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata())]
    row = one_model.iloc[0]
    assert any(np.isclose(drawn, row["energy_per_request_j"] * 500))
    assert any(np.isclose(drawn, row["adapt_energy_j"]))
    assert "500 requests" in texts(figure)


def test_latencies_show_every_request(one_model):
    requests = requests_of(one_model)
    figure = figures.latency_distributions(requests, STAMP)
    dots = [c for c in figure.axes[0].collections if len(c.get_offsets())]
    assert sum(len(c.get_offsets()) for c in dots) == len(requests)
    assert "llama-1B  rag  LoRA INT4" in texts(figure)
    assert "[ms]" in figure.axes[0].get_xlabel()


def test_loss_curve_shows_every_step_and_both_heldout_losses():
    figure = figures.loss_curve([4.0, 3.0, 2.5], 4.1, 2.2, "a run")
    training, before, after = figure.axes[0].lines
    assert list(training.get_xdata()) == [1, 2, 3]
    assert list(training.get_ydata()) == [4.0, 3.0, 2.5]
    assert (before.get_ydata()[0], after.get_ydata()[0]) == (4.1, 2.2)
    assert "a run" in texts(figure)


def test_compression_tells_what_was_not_measured():
    table = pd.DataFrame(
        {"precision": ["fp16", "int4"], "disk_mb": [270.0, 90.0], "energy_j": [50.0, None]}
    )
    figure = figures.compression(table, "a run")
    assert [bar.get_width() for bar in figure.axes[0].patches] == [270, 90]
    assert "not measured" in texts(figure)
    assert "[MB]" in figure.axes[0].get_xlabel()


def test_token_times_start_at_submission():
    requests = pd.DataFrame(
        {"concurrency": [1, 8], "submitted_s": [5.0, 6.0], "token_times_s": [[5.5, 5.75], [7.0]]}
    )
    figure = figures.token_times(requests, "a run")
    assert [a.get_title(loc="left") for a in figure.axes] == [
        "1 request at a time", "8 requests at a time",
    ]  # fmt: skip
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [0, 0.5, 0.75]
    assert list(line.get_ydata()) == [0, 1, 2]


def test_score_distribution_draws_every_scored_prompt_and_the_mean():
    answers = pd.DataFrame(
        [
            {"family": "llama", "size": "1B", "task": "rag", "method": m, "precision": "fp16"}
            | {"score": score}
            for m in ("none", "lora")
            for score in (0.0, 0.5, 1.0, np.nan)
        ]
    )
    (axis,) = figures.score_distribution(answers).axes
    dots = np.concatenate([c.get_offsets() for c in axis.collections])
    assert sorted(dots[:, 0]) == [0, 0, 0.5, 0.5, 1, 1]
    assert [line.get_xdata()[0] for line in axis.lines] == [0.5, 0.5]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["base FP16", "LoRA FP16"]


@pytest.mark.parametrize("draw", OF_VARIANTS, ids=lambda f: f.__name__)
def test_nothing_measured_is_said_not_drawn(draw, one_model):
    empty = one_model.copy()
    numbers = empty.select_dtypes("number").columns.difference(["repetitions", "concurrency"])
    empty[numbers] = np.nan
    empty["notes"] = "no energy source: no permission"
    shown = texts(draw(empty, stamp=STAMP))
    assert "Nothing to draw" in shown
    assert "no permission" in shown
    assert STAMP in shown


def test_no_requests_is_said():
    empty = pd.DataFrame({"variant": [], "ttft_ms": [], "tpot_ms": []})
    assert "Nothing to draw" in texts(figures.latency_distributions(empty))


def test_configurations_beyond_the_papers_are_drawn(one_model):
    other = one_model[one_model["precision"] == "int4"].assign(precision="prune50-int4")
    figure = figures.system_density(pd.concat([one_model, other]))
    assert "LoRA PRUNE50-INT4" in texts(figure)


def test_png_and_svg_are_written_the_same_every_time(tmp_path, one_model):
    paths = figures.save_figure(figures.system_density(one_model), tmp_path / "new" / "density")
    assert [p.name for p in paths] == ["density.png", "density.svg"]
    image = plt.imread(io.BytesIO(paths[0].read_bytes()))
    assert image.shape[0] > 200
    assert image.std() > 0.01
    assert ET.parse(paths[1]).getroot().tag.endswith("svg")
    first = paths[1].read_bytes()
    figures.save_figure(figures.system_density(one_model), tmp_path / "new" / "density")
    assert paths[1].read_bytes() == first


# --- what can be trusted ----------------------------------------------------------------------


def markers(figure):
    return [
        line for axis in figure.axes for line in axis.lines if line.get_marker() not in ("", "None")
    ]


@pytest.mark.parametrize("draw", OF_VARIANTS, ids=lambda f: f.__name__)
def test_doubtful_rows_are_hollow_and_told(draw, one_model):
    doubtful = one_model["precision"] == "int8"
    validity = np.where(doubtful, "warning: warmed up (serve at 8)", "ok")
    figure = draw(one_model.assign(validity=validity))
    hollow = [line for line in markers(figure) if line.get_markerfacecolor() == "white"]
    assert 0 < len(hollow) < len(markers(figure))
    assert "Hollow markers" in texts(figure)
    sound = draw(one_model.assign(validity="ok"))
    assert not [line for line in markers(sound) if line.get_markerfacecolor() == "white"]
    assert "Hollow" not in texts(sound)


@pytest.mark.parametrize("draw", OF_VARIANTS, ids=lambda f: f.__name__)
def test_rows_computed_otherwise_are_told_under_the_picture(draw, one_model):
    dtypes = np.where(one_model["precision"] == "int4", "bfloat16", "float32")
    shown = texts(draw(one_model.assign(executed_dtype=dtypes), stamp=STAMP))
    assert "Mixed executed dtypes: float32 (FP16, INT8); bfloat16 (INT4)." in shown
    assert "Mixed" not in texts(draw(one_model.assign(executed_dtype="float32")))


def test_the_range_of_an_estimate_is_drawn(one_model):
    row = one_model.iloc[:1]
    ends = row.assign(ipw_estimate_lo=row["ipw"] / 3, ipw_estimate_hi=row["ipw"] * 2)
    figure = figures.roi_ipw_quadrants(ends)
    (pale,) = [line for line in figure.axes[0].lines if line.get_alpha() == 0.18]
    assert list(pale.get_xdata()) == pytest.approx([row["ipw"].iloc[0] / 3, row["ipw"].iloc[0] * 2])
    assert "range of an estimate" in texts(figure)
    assert "range of an estimate" not in texts(figures.roi_ipw_quadrants(row))


def test_less_than_one_request_is_said_so(one_model):
    figure = figures.roi_ipw_quadrants(one_model.assign(n_break=0.004))
    figure.draw_without_rendering()
    assert {line.get_ydata()[0] for line in markers(figure)} == {1}
    heights = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "< 1" in heights
    assert not [text for text in heights if text.startswith("0")]
    assert "late" not in texts(figure)


@pytest.mark.parametrize(("count", "boxes"), [(19, False), (20, True)])
def test_few_requests_are_dots_without_a_box(count, boxes):
    requests = pd.DataFrame({"variant": "llama-1B_rag_lora_fp16", "ttft_ms": np.arange(count) + 9.0,
                             "tpot_ms": 5.0})  # fmt: skip
    figure = figures.latency_distributions(requests)
    assert bool(figure.axes[0].lines) == boxes
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == count
    assert ("whiskers" in texts(figure)) == boxes


def test_a_log_axis_says_so(one_model):
    assert "log" in figures.system_density(one_model).axes[0].get_xlabel()
    assert "log" in figures.lifecycle_energy(one_model).axes[0].get_xlabel()


def test_only_the_reasons_of_a_figures_own_columns_are_given(one_model):
    empty = one_model.assign(
        q_ret_pct=np.nan, notes="keep_warm_s: no idle power is known; q_ret_pct: lora/fp16 scored 0"
    )
    shown = texts(figures.quality_stability(empty))
    assert "Q_ret: lora/fp16 scored 0" in shown
    assert "idle power" not in shown
    assert "q_ret_pct" not in shown
