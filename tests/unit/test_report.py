"""Reports: one file, everything within, nothing that a reader must trust blindly left out."""

import base64
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.results.report import Report, Section, render_report
from edge_eval_lib.results.tables import format_number, heading, readable

TABLE = pd.DataFrame(
    {
        "model": ["llama-1B", "<b>other</b>"],
        "n_break": [2.4567, np.inf],
        "ipw": [0.318222, np.nan],
        "ipw_lo": [0.30, np.nan],
        "ipw_hi": [0.34, np.nan],
        "load_energy_j": [92122.3, 12.0],
        "repetitions": [3, 1],
        "notes": [None, "ipw: no energy source"],
    }
)


def report(**parts) -> Report:
    fig, axis = plt.subplots(figsize=(2, 1))
    axis.plot([1, 2])
    plt.close(fig)
    sections = [
        Section("A table", ["How to read it."], table=TABLE, caption="Rows.", csv="tables/t.csv"),
        Section("A picture", figure=fig, caption="Up is better."),
    ]
    return Report(
        **{
            "title": "A study",
            "summary": "What was run.",
            "facts": {"host": "2 cores & no GPU"},
            "sections": sections,
            "warnings": ["This is not a T4."],
            "links": [("The paper", "../paper/report.html"), ("Variants", "tables/variants.csv")],
        }
        | parts
    )


def rendered(tmp_path, **parts) -> str:
    return render_report(tmp_path / "out" / "report.html", report(**parts)).read_text()


def test_everything_is_in_the_one_file(tmp_path):
    html = rendered(tmp_path)
    assert "<script" not in html
    for reference in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert reference.startswith(("data:", "#", "tables/")), reference
    (encoded,) = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", html)
    assert b"<svg" in base64.b64decode(encoded)


def test_stamp_facts_captions_and_anchors_are_there(tmp_path):
    html = rendered(tmp_path)
    assert "This is not a T4." in html
    assert "2 cores &amp; no GPU" in html
    assert "Up is better." in html
    for anchor in re.findall(r'href="#([^"]+)"', html):
        assert f'id="{anchor}"' in html


def test_text_from_tables_cannot_become_markup(tmp_path):
    html = rendered(tmp_path)
    assert "<b>other</b>" not in html
    assert "&lt;b&gt;other&lt;/b&gt;" in html


def test_numbers_stand_to_the_right_and_text_to_the_left(tmp_path):
    html = rendered(tmp_path)
    assert '<td class="number">0.318 [0.300, 0.340]</td>' in html
    assert "<td>llama-1B</td>" in html
    assert "<td>ipw: no energy source</td>" in html


def test_links_lead_only_to_files_that_exist(tmp_path):
    assert "The paper" not in rendered(tmp_path)
    paper = tmp_path / "paper" / "report.html"
    paper.parent.mkdir()
    paper.write_text("x")
    html = rendered(tmp_path)
    assert '<a href="../paper/report.html">The paper</a>' in html
    assert "tables/variants.csv" not in html


def test_without_warnings_there_is_no_band(tmp_path):
    assert 'class="warnings"' not in rendered(tmp_path, warnings=[])
    assert 'class="warnings"' in rendered(tmp_path)


def test_a_failed_rendering_leaves_the_old_report(tmp_path):
    path = tmp_path / "out" / "report.html"
    rendered(tmp_path)
    before = path.read_text()
    broken = Section("broken", table=TABLE, columns=["no_such_column"])
    with pytest.raises(KeyError):
        render_report(path, report(sections=[broken]))
    assert path.read_text() == before


def test_readable_merges_bounds_and_tells_gaps():
    text = readable(TABLE)
    assert list(text) == [
        "model", "N_break [requests]", "IPW [1/J]", "load energy [J]", "repetitions", "notes",
    ]  # fmt: skip
    assert text["N_break [requests]"].tolist() == ["2.46", "never"]
    assert text["IPW [1/J]"].tolist() == ["0.318 [0.300, 0.340]", "–"]
    assert text["load energy [J]"].tolist() == ["92,122", "12.0"]
    assert text["repetitions"].tolist() == ["3", "1"]
    assert text["notes"].tolist() == ["–", "ipw: no energy source"]


def test_an_unbounded_interval_is_called_so():
    table = pd.DataFrame({"c_tax": [2.0], "c_tax_lo": [-np.inf], "c_tax_hi": [np.inf]})
    assert readable(table).iloc[0, 0] == "2.00 [unbounded]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.318222, "0.318"), (6768.83, "6,769"), (149.76, "150"), (0.0, "0"), (-1.5, "−1.50"),
        (1.2e-7, "1.20e−07"), (np.nan, "–"), (np.inf, "never"), (999.7, "1,000"),
        (0.99999, "1.00"), (92122.3, "92,122"),
    ],
)  # fmt: skip
def test_numbers_for_people(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("ttft_ms", "TTFT [ms]"), ("load_energy_j", "load energy [J]"),
        ("throughput_tok_s", "throughput [tok/s]"),
        ("ipw_median", "IPW, median [1/J]"), ("score_difference", "score, difference [0–1]"),
        ("merge_base", "merge base"),
    ],
)  # fmt: skip
def test_headings_name_the_unit(column, name):
    assert heading(column) == name
