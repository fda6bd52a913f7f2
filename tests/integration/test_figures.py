"""Figures: what they draw is what the table says, gaps are told, files are complete."""

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import altair
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from cells import run_cell

from edge_eval_lib.economics import published
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.results import charts, columns, described, figures, narrow, tables
from edge_eval_lib.results.drawn import Drawn

STAMP = "a machine · energy: estimated"
OF_VARIANTS = ["draw", "density", "quality", "lifecycle"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Figures are finished without being laid out, except where a test writes them."""

    def finished(fig, path=None, *arguments, alt=None, **options):
        if path is not None and Path(path).parent.name == "new":
            return finish(fig, path, *arguments, alt=alt, **options)
        figures._foot(fig, *arguments, **options)
        return Drawn(fig, "", alt or "")

    finish = figures.finish
    monkeypatch.setattr(figures, "finish", finished)


@pytest.fixture(scope="module")
def paper() -> pd.DataFrame:
    return tables.variants_table(published.observations(), None, load_price_book().prices("paper"))


@pytest.fixture(scope="module")
def one_model(paper) -> pd.DataFrame:
    table = paper[(paper["family"] == "llama") & (paper["size"] == "1B")].copy()
    for metric in ("rho_sys", "ipw", "q_ret_pct", "score"):
        table[f"{metric}_lo"], table[f"{metric}_hi"] = table[metric] * 0.9, table[metric] * 1.2
    return table


def drawn_by(cell: str, **names):
    """The figure that a cell of notebook 05 draws of these names."""
    space = {"np": np, "figures": figures, "tables": tables, "pictures": Path("pictures")}
    space |= {
        "altair": altair,
        "charts": charts,
        "described": described,
        "digits": 3,
        "results": SimpleNamespace(stamp=STAMP),
        "run": SimpleNamespace(outputs=Path()),
    }
    shown = run_cell("05_synthesis.ipynb", cell, space | names)
    return getattr(shown, "static", shown).figure  # beside its chart, where it has one


def texts(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(plt.Text))


def markers(figure):
    return [
        line for axis in figure.axes for line in axis.lines if line.get_marker() not in ("", "None")
    ]


def latencies(requests):
    overview = SimpleNamespace(requests_alone=lambda _: requests)
    return drawn_by("latencies", overview=overview)


def requests_of(variants: pd.DataFrame) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = [
        dict(row[columns.VARIANT])
        | {
            "variant": columns.variant_name(row),
            "run": columns.variant_name(row),
            "ttft_ms": rng.lognormal(5, 0.2, 10),
            "tpot_ms": rng.lognormal(4, 0.1, 10),
        }
        for _, row in variants.iterrows()
    ]
    return pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)


@pytest.mark.parametrize("cell", OF_VARIANTS)
def test_every_task_has_a_panel_with_units_and_the_stamp(cell, paper):
    few = paper["size"].isin(["1B", "1.5B"]) & paper["precision"].isin(["fp16", "int4"])
    figure = drawn_by(cell, table=paper[few])  # all take seconds to label
    assert [a.get_title(loc="left") for a in figure.axes] == ["rag", "summarization", "dialogue"]
    assert STAMP in texts(figure)
    assert all(any(c in a.get_xlabel() for c in "[,") for a in figure.axes)
    assert "llama-1B" in texts(figure)
    assert figure.number not in plt.get_fignums()


def test_quadrants_draw_every_variant_at_its_figures(one_model):
    figure = drawn_by("draw", table=one_model)
    drawn = {tuple(np.round(line.get_xydata()[0], 6)) for line in markers(figure)}
    pairs = one_model[["ipw", "n_break"]].itertuples(index=False, name=None)
    assert drawn == {tuple(np.round(pair, 6)) for pair in pairs}
    low, high = figure.axes[0].get_ylim()
    assert low > high  # sooner is up


def test_a_variant_that_never_pays_is_still_drawn(one_model):
    table = one_model.assign(n_break=np.where(one_model["method"] == "qlora", np.inf, 5.0))
    figure = drawn_by("draw", table=table)
    heights = [line.get_ydata()[0] for line in markers(figure)]
    assert sorted(heights)[:4] == [5, 5, 5, 5]
    assert max(heights) == 15


def test_less_than_one_request_is_said_so(one_model):
    alone = one_model.assign(n_break=0.004, n_break_full=np.nan)
    figure = drawn_by("draw", table=alone)
    figure.draw_without_rendering()
    assert {line.get_ydata()[0] for line in markers(figure)} == {1}
    heights = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "< 1" in heights
    assert not [text for text in heights if text.startswith("0")]


def test_where_all_pay_within_a_request_everything_is_counted(one_model):
    figure = drawn_by("draw", table=one_model.assign(n_break=0.004))
    heights = sorted(line.get_ydata()[0] for line in markers(figure))
    assert heights == pytest.approx(sorted(one_model["n_break_full"]))
    assert "everything counted [requests, log]" in figure.axes[0].get_ylabel()
    low, high = figure.axes[0].get_ylim()
    assert low > max(heights) > min(heights) > high


def test_density_draws_intervals_where_there_are_any_and_values(one_model, paper):
    def bars(figure):
        return [s for axis in figure.axes for c in axis.collections for s in c.get_segments()]

    figure = drawn_by("density", table=one_model)
    ends = {(round(s[0][0], 3), round(s[-1][0], 3)) for s in bars(figure)}
    row = one_model.iloc[0]
    assert (round(row["rho_sys_lo"], 3), round(row["rho_sys_hi"], 3)) in ends
    assert figures.number(row["rho_sys"]) in texts(figure)
    assert not bars(drawn_by("density", table=paper))


def test_adaptation_labels_its_ratios():
    table = tables.adaptation_table(published.observations())
    shown = texts(drawn_by("adaptation", adaptation=table))
    assert "×8.5" in shown
    assert "×8.51" not in shown  # of one adaptation each
    assert "llama-1B" in shown
    assert "[J, log]" in shown
    assert STAMP in shown


def test_lifecycle_serves_as_many_requests_as_it_says(one_model):
    figure = drawn_by("lifecycle", table=one_model)
    drawn = [line.get_xdata()[0] for line in markers(figure)]
    row = one_model.iloc[0]
    assert any(np.isclose(drawn, row["energy_per_request_j"] * 1000))
    assert any(np.isclose(drawn, row["adapt_energy_j"]))
    assert "1,000 requests" in texts(figure)


def test_latencies_show_every_request(one_model):
    requests = requests_of(one_model)
    figure = latencies(requests)
    dots = [c for c in figure.axes[0].collections if len(c.get_offsets())]
    assert sum(len(c.get_offsets()) for c in dots) == len(requests)
    assert "rag  LoRA INT4" in texts(figure)
    assert "llama-1B  rag" not in texts(figure)  # of one model, which need not be repeated
    assert "[ms]" in figure.axes[0].get_xlabel()


@pytest.mark.parametrize(("count", "boxes"), [(19, False), (20, True)])
def test_few_requests_are_dots_without_a_box(count, boxes):
    key = {"family": "llama", "size": "1B", "task": "rag", "method": "lora", "precision": "fp16"}
    waits = {"ttft_ms": np.arange(count) + 9.0, "tpot_ms": 5.0}
    requests = pd.DataFrame(waits).assign(variant="llama-1B_rag_lora_fp16", run="r", **key)
    figure = latencies(requests)
    assert bool(figure.axes[0].lines) == boxes
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == count
    assert ("whiskers" in texts(figure)) == boxes


def test_a_name_says_the_model_only_where_there_are_several():
    one = ["llama-1B_rag_lora_int4", "llama-1B_dialogue_none_fp16"]
    assert figures.short_names(one) == ["rag  LoRA INT4", "dialogue  base FP16"]
    several = figures.short_names([*one, "qwen-7B_rag_lora_int4"])
    assert several[0] == "llama-1B  rag  LoRA INT4"
    assert figures.short_names(["API"]) == ["API"]
    assert figures.short_names([]) == []


def test_no_requests_is_said():
    empty = pd.DataFrame({"variant": [], "ttft_ms": [], "tpot_ms": []})
    assert "Nothing to draw" in texts(latencies(empty))


@pytest.mark.parametrize("cell", OF_VARIANTS)
def test_nothing_measured_is_said_not_drawn(cell, one_model):
    empty = one_model.copy()
    numbers = empty.select_dtypes("number").columns.difference(["repetitions", "concurrency"])
    empty[numbers] = np.nan
    empty["notes"] = "no energy source: no permission"
    shown = texts(drawn_by(cell, table=empty))
    assert "Nothing to draw" in shown
    assert "no permission" in shown
    assert STAMP in shown


def test_only_the_reasons_of_a_figures_own_columns_are_given(one_model):
    empty = one_model.assign(
        q_ret_pct=np.nan, notes="keep_warm_s: no idle power is known; q_ret_pct: lora/fp16 scored 0"
    )
    shown = texts(drawn_by("quality", table=empty))
    assert "Q_ret: lora/fp16 scored 0" in shown
    assert "idle power" not in shown
    assert "q_ret_pct" not in shown


def test_configurations_beyond_the_papers_are_drawn(one_model):
    other = one_model[one_model["precision"] == "int4"].assign(precision="prune50-int4")
    figure = drawn_by("density", table=pd.concat([one_model, other]))
    assert "LoRA prune50-INT4" in texts(figure)


def test_png_and_svg_are_written_the_same_every_time(tmp_path, one_model):
    target = tmp_path / "new" / "density"
    drawn_by("density", table=one_model, pictures=target.parent)
    path = target.parent / "system_density"
    image = plt.imread(io.BytesIO(path.with_suffix(".png").read_bytes()))
    assert image.shape[0] > 200
    assert image.std() > 0.01
    assert ET.parse(path.with_suffix(".svg")).getroot().tag.endswith("svg")
    first = path.with_suffix(".svg").read_bytes()
    drawn_by("density", table=one_model, pictures=target.parent)
    assert path.with_suffix(".svg").read_bytes() == first


# --- what can be trusted ----------------------------------------------------------------------


@pytest.mark.parametrize("cell", OF_VARIANTS)
def test_doubtful_rows_are_hollow_and_reported(cell, one_model):
    doubtful = one_model["precision"] == "int8"
    validity = np.where(doubtful, "warning: warmed up (serve at 8)", "ok")
    figure = drawn_by(cell, table=one_model.assign(validity=validity))
    hollow = [line for line in markers(figure) if line.get_markerfacecolor() == "white"]
    assert 0 < len(hollow) < len(markers(figure))
    assert "Hollow markers" in texts(figure)
    sound = drawn_by(cell, table=one_model.assign(validity="ok"))
    assert not [line for line in markers(sound) if line.get_markerfacecolor() == "white"]
    assert "Hollow" not in texts(sound)


@pytest.mark.parametrize("cell", OF_VARIANTS)
def test_rows_computed_otherwise_are_reported_under_the_picture(cell, one_model):
    dtypes = np.where(one_model["precision"] == "int4", "bfloat16", "float32")
    shown = texts(drawn_by(cell, table=one_model.assign(executed_dtype=dtypes)))
    assert "Mixed executed dtypes: float32 (FP16, INT8); bfloat16 (INT4)." in shown
    assert "Mixed" not in texts(drawn_by(cell, table=one_model.assign(executed_dtype="float32")))


def test_the_range_of_an_estimate_is_drawn(one_model):
    row = one_model.iloc[:1]
    ends = row.assign(ipw_estimate_lo=row["ipw"] / 3, ipw_estimate_hi=row["ipw"] * 2)
    figure = drawn_by("draw", table=ends)
    (pale,) = [line for line in figure.axes[0].lines if line.get_alpha() == 0.18]
    assert list(pale.get_xdata()) == pytest.approx([row["ipw"].iloc[0] / 3, row["ipw"].iloc[0] * 2])
    assert "range of an estimate" in texts(figure)
    plain = row.drop(columns=[c for c in row if "_estimate_" in c])
    assert "range of an estimate" not in texts(drawn_by("draw", table=plain))


def test_a_log_axis_says_so(one_model):
    assert "log" in drawn_by("density", table=one_model).axes[0].get_xlabel()
    assert "log" in drawn_by("lifecycle", table=one_model).axes[0].get_xlabel()


def test_a_wide_picture_has_a_phones_with_every_panel_labelled(paper):
    fig, parts = figures.panels(paper, ["ipw"], "Which?", "right: better")
    for axis, part in parts:
        figures.mark(axis, part, "ipw", "score")
        axis.set(xlabel="IPW [1/J]", ylabel="score")
        axis.label_outer()
    fig.supxlabel("a foot")
    svg = narrow.narrow_svg(fig)
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    assert width < 72 * narrow.WIDE < height
    assert [axis.get_ylabel() for axis, _ in parts] == ["score"] * 3
    tops = [axis.get_position().y1 for axis, _ in parts]
    assert tops == sorted(tops, reverse=True)
    assert len(set(tops)) == 3
    assert fig.texts[0].get_text() == "Which?"


def test_a_narrow_picture_needs_no_phones():
    assert narrow.narrow_svg(plt.figure(figsize=(4, 3))) is None
