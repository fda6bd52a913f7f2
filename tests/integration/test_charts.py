"""Charts of a page: what they hold is the table's; their script is of installed packages."""

import json
import re
import sys

import altair as alt
import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.results import charts, figures, page, pictures, scripts

X, Y = alt.X("ipw:Q").title("IPW [1/J]"), alt.Y("score:Q").title("score")


@pytest.fixture
def rows():
    table = pd.DataFrame(
        [("rag", "fp16", 0.2, 0.6), ("rag", "int4", 0.4, 0.5), ("dialogue", "fp16", np.nan, 0.7)],
        columns=["task", "precision", "ipw", "score"],
    )
    same = {"family": "llama", "size": "1B", "method": "lora", "energy_per_request_j": 2.0}
    bounds = {"score_lo": table["score"] - 0.1, "score_hi": table["score"] + 0.1}
    estimate = {"ipw_estimate_lo": 0.1, "ipw_estimate_hi": [0.5, np.inf, 0.5]}
    return table.assign(
        validity=["ok", "warning: warmed up (x)", "ok"], **same, **bounds, **estimate
    )


def held(chart) -> list[dict]:
    return chart.to_dict()["data"]["values"]


def test_a_mark_is_a_variant_with_its_bounds_and_what_it_tells(rows):
    first, second = held(charts.points(rows, X, Y, "Good?", "right: better", digits=2))
    assert first["variant"] == "llama-1B  rag  LoRA FP16"
    assert (first["ipw"], first["score_lo"], first["ipw_most"]) == (0.2, 0.5, 0.5)
    assert first["t1"] == "0.60 [0.50, 0.70]"
    assert "doubtful" not in first
    assert second["doubtful"] is True
    assert "ipw_most" not in second  # infinity is no place


def test_what_is_told_may_be_another_table_than_what_is_drawn(rows):
    drawn = rows.assign(ipw=rows["ipw"].clip(upper=0.3))
    marks = held(charts.points(drawn, X, Y, "Good?", "right", told=rows, digits=1))
    assert [mark["ipw"] for mark in marks] == [0.2, 0.3]
    assert marks[1]["t0"].startswith("0.4")


def test_where_nothing_is_known_the_picture_stands_alone(rows):
    static = charts.Both("picture", {})
    assert charts.points(rows.assign(ipw=np.nan), X, Y, "Good?", "right") is None
    assert charts.waits(pd.DataFrame({"ttft_ms": [], "tpot_ms": []}), "How long?") is None
    assert charts.beside(static, None) is static


def test_every_series_is_shown_and_has_a_name_that_takes_it_away(rows):
    chart = charts.points(rows, X, Y, "Good?", "right").to_dict()
    assert {"name": "hidden", "value": []} in chart["params"]
    marks = chart["spec"]["layer"][-1]["encoding"]["opacity"]
    assert "indexof(hidden, datum.series) < 0" in marks["condition"]["test"]
    assert [name for name, *_ in chart["usermeta"]["series"]] == ["LoRA FP16", "LoRA INT4"]
    text = pictures.inline({"alt": "words"}, SVG, 0, chart)
    buttons = re.findall(r'<button type="button" aria-pressed="true" value="([^"]+)">', text)
    assert buttons == ["LoRA FP16", "LoRA INT4"]


def test_the_median_is_of_all_panels(rows):
    known = rows.assign(ipw=[0.2, 0.4, 0.9])
    marks = held(charts.points(known, X, Y, "Good?", "right", lines=["ipw"]))
    assert {mark["ipw_middle"] for mark in marks} == {0.4}


def test_along_a_row_stands_a_mark_for_each_column(rows):
    series = {"energy_per_request_j": ("serve", "#333333", "o"), "score": ("score", "#0173b2", "s")}
    x = alt.X("value:Q").title("energy [J, log]").scale(type="log")
    marks = held(charts.strips(rows, series, x, "Where?", "log"))
    assert [mark["series"] for mark in marks] == ["serve"] * 3 + ["score"] * 3
    assert {mark["panel"] for mark in marks} == {"rag", "dialogue"}


@pytest.mark.parametrize("count", [figures.BOX_REQUESTS, figures.BOX_REQUESTS - 1])
def test_a_wait_is_a_median_with_what_so_many_requests_allow(count):
    key = {"family": "llama", "size": "1B", "task": "rag", "method": "lora", "precision": "fp16"}
    times = np.arange(count, dtype=float) + 1
    requests = pd.DataFrame({"ttft_ms": times, "tpot_ms": times, "run": "a"}).assign(**key)
    mark = held(charts.waits(requests, "How long?"))[0]
    assert mark["value"] == np.median(times)
    many = count == figures.BOX_REQUESTS
    assert ("value_least" in mark) == many
    ends = np.quantile(times, [0.05, 0.95]) if many else (1, count)
    assert (mark["value_lo"], mark["value_hi"]) == pytest.approx(tuple(ends))
    assert f"{count} requests" in mark["told"]


SVG = '<svg height="9pt" width="9pt" viewBox="0 0 9 9" xmlns="x"></svg>'


def test_a_chart_stands_unseen_beside_its_picture_and_turns_in_the_dark(rows):
    chart = charts.points(rows.assign(family="</script>"), X, Y, "So <good>?", "right").to_dict()
    text = pictures.inline({"alt": "words"}, SVG, 0, chart)
    unseen = text[text.index("<template") : text.index("</template>")]
    assert "<b>So &lt;good&gt;?</b>" in unseen
    assert unseen.count("</script>") == 1
    written = unseen.partition('<script type="application/json">')[2].partition("</script>")[0]
    assert json.loads(written)["description"] == "words"
    assert '"light-dark(#' in written
    assert "<template" not in pictures.inline({"alt": "words"}, SVG, 0, None)


def test_a_script_is_of_installed_packages_once_and_only_where_it_is_needed(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert scripts.inline(None, tables=False) == ""
    assert "window.DataTable=" in scripts.inline(None, tables=True)
    text = scripts.inline("6.4", tables=True)
    assert text.count("window.vegaEmbed=") == 1
    assert scripts.VEGA_NOTICE in text
    assert text.count("</script>") == text.count('<script type="module">') == 3
    assert "<!--" not in text
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert scripts.inline("6.4", tables=True) == text  # kept: not put together again


def test_a_bundle_without_a_table_is_refused(monkeypatch, tmp_path):
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "dt_bundle.js").write_text("export{a as b};")
    monkeypatch.setattr(scripts, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="exports no table"):
        scripts.datatables()


def test_nothing_to_sort_is_no_table_that_sorts():
    assert page.sortable("Nothing to show.") == "Nothing to show."


@pytest.mark.parametrize(
    ("highest", "ticks"), [(0.6, [0.2, 0.5]), (8.0, [0.2, 0.5, 1, 2, 5, 10]), (80, [1, 10, 100])]
)
def test_a_logarithmic_axis_has_few_plain_ticks(rows, highest, ticks):
    x = alt.X("ipw:Q").title("IPW [1/J, log]").scale(type="log")
    known = rows.drop(columns=["ipw_estimate_lo", "ipw_estimate_hi"])
    known = known.assign(ipw=[0.2, highest, 0.3])
    chart = charts.points(known, x, Y, "Good?", "right").to_dict()
    axis = chart["spec"]["layer"][-1]["encoding"]["x"]
    assert axis["axis"]["values"] == pytest.approx(ticks)
    low, high = axis["scale"]["domain"]
    assert low < 0.2
    assert high > highest
