"""report.html is the executed notebook: everything within, nothing that a reader must miss."""

import base64
import copy
import re

import nbformat
import pytest
from nbformat import v4

from edge_eval_lib.results.report import render

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
TABLE = """<table border="1" class="dataframe"><thead><tr style="text-align: right;">
<th></th><th>model</th><th>IPW [1/J]</th><th>notes</th></tr></thead><tbody>
<tr><th>0</th><td>llama-1B</td><td>0.318 [0.300, 0.340]</td><td>–</td></tr>
<tr><th>1</th><td>&lt;b&gt;other&lt;/b&gt;</td><td>–</td><td>a note that is long enough to be
wrapped in its cell</td></tr></tbody></table>"""


def shown(source="", tags=(), **data):
    """A code cell with one output."""
    data = {name.replace("_", "/", 1): value for name, value in data.items()}
    cell = v4.new_code_cell(source, metadata={"tags": list(tags)})
    cell.outputs = [v4.new_output("display_data", data)] if data else []
    return cell


@pytest.fixture
def rendered(tmp_path):
    def write(*cells, study=None) -> str:
        notebook = v4.new_notebook(cells=list(cells))
        if study:
            notebook.metadata["papermill"] = {"parameters": {"study": study}}
        nbformat.write(notebook, tmp_path / "n.ipynb")
        return render(tmp_path / "n.ipynb", tmp_path / "out" / "report.html").read_text()

    return write


CELLS = [
    v4.new_markdown_cell("# What was found\n\nFrom `tables/t.csv` and `tables/absent.csv`."),
    shown("study = 'x < y'"),
    v4.new_markdown_cell("## When does it pay?"),
    shown("draw()", image_png=PNG),
    v4.new_markdown_cell("## Every variant & all"),
    shown("table", text_html=TABLE),
    shown("warn()", ["warnings"], text_markdown="Not a T4."),
    shown("js()", text_html="<script>alert(1)</script>", application_javascript="alert(2)"),
]


def test_everything_is_in_the_one_file_without_a_script(rendered, tmp_path):
    (tmp_path / "out" / "tables").mkdir(parents=True)
    (tmp_path / "out" / "tables" / "t.csv").write_text("a")
    html = rendered(*CELLS)
    assert "<script" not in html
    assert "alert(" not in html
    for reference in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert reference.startswith(("data:", "#", "tables/t.csv")), reference
    assert '<a href="tables/t.csv">' in html
    assert f"data:image/png;base64,{PNG}" in html
    assert '<html lang="en">' in html


def test_code_is_folded_and_contents_come_from_headings(rendered):
    html = rendered(*CELLS)
    assert re.search(r"<details class=\"code\">.*study = .x &lt; y", html)
    anchors = re.findall(r'<li><a href="#([^"]+)">([^<]+)</a>', html)
    assert [text for _, text in anchors] == ["When does it pay?", "Every variant &amp; all"]
    for anchor, _ in anchors:
        assert f'id="{anchor}"' in html


def test_a_picture_is_described_by_its_heading(rendered):
    assert 'alt="When does it pay?"' in rendered(*CELLS)


def test_warnings_stand_in_a_band_below_the_title_and_without_one_there_is_none(rendered):
    html = rendered(*CELLS)
    assert html.index("What was found</h1>") < html.index("Not a T4.") < html.index("<nav")
    assert html.count("Not a T4.") == 1
    assert 'class="warnings"' not in rendered(*CELLS[:6])


def test_numbers_stand_to_the_right_and_long_texts_wrap(rendered):
    html = rendered(*CELLS)
    assert '<td class="number">0.318 [0.300, 0.340]</td>' in html
    assert '<th class="number">IPW [1/J]</th>' in html
    assert "<td>llama-1B</td>" in html
    assert '<td class="long">a note' in html
    assert "&lt;b&gt;other" in html


def test_the_title_names_the_study(rendered):
    assert "<title>mine: What was found</title>" in rendered(*CELLS, study="/x/mine.yaml")
    assert "<title>What was found</title>" in rendered(*CELLS)


def test_a_cell_that_somebody_adds_is_in_the_report(rendered):
    added = shown("mine", text_plain="only I know 42")
    assert "only I know 42" in rendered(*CELLS[:4], added)


def test_secrets_are_masked(rendered, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdefghij")
    html = rendered(CELLS[0], shown("ask()", text_plain="hf_0123456789abcdefghij"))
    assert "0123456789abcdefghij" not in html


def test_a_failed_rendering_leaves_the_old_report(rendered, tmp_path):
    before = rendered(*CELLS)
    (tmp_path / "n.ipynb").write_text('{"cells": 1}')
    with pytest.raises(Exception, match=r".+"):
        render(tmp_path / "n.ipynb", tmp_path / "out" / "report.html")
    assert (tmp_path / "out" / "report.html").read_text() == before


def test_the_same_results_give_the_same_report(rendered):
    def fresh():
        for cell in CELLS:
            copied = copy.deepcopy(cell)
            copied.id = v4.new_markdown_cell().id  # of its own, as an injected cell's is
            yield copied

    assert rendered(*fresh()) == rendered(*fresh())
