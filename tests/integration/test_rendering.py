"""report.html is the executed notebook: everything within, nothing that a reader must miss."""

import base64
import copy
import re

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat import v4

from edge_eval_lib.results import page
from edge_eval_lib.results.readable import show
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


def test_contents_are_in_the_pages_order_the_answer_first(rendered):
    heading = v4.new_markdown_cell("## Is it worth it?", metadata={"tags": ["answer"]})
    html = rendered(*CELLS, heading, shown("say()", ["answer"], text_markdown="No."))
    order = ["What was found</h1>", "Is it worth it?</h2>", "No.", "Not a T4.", "<nav"]
    assert [html.index(part) for part in order] == sorted(html.index(part) for part in order)
    listed = re.findall(r'<li><a href="#[^"]+">([^<]+)</a>', html)
    assert listed == ["Is it worth it?", "When does it pay?", "Every variant &amp; all"]


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


SVG = """<?xml version="1.0"?><!DOCTYPE svg><svg height="9pt" width="720pt"
 viewBox="0 0 720 9" xmlns="http://www.w3.org/2000/svg"><g id="figure_1">
<path id="m0" style="fill: #ffffff"/><use href="#m0"/>
<text style="font: bold 9.5px 'DejaVu Sans', sans-serif">ρ</text></g></svg>"""


def drawn(**beside):
    cell = v4.new_code_cell("draw()")
    data = {"image/svg+xml": SVG, page.PICTURE: {"alt": 'Is "it" so?'} | beside}
    cell.outputs = [v4.new_output("display_data", data)]
    return cell


def test_a_picture_stands_in_the_page_in_its_typeface_and_described(rendered):
    html = BeautifulSoup(rendered(drawn(), drawn()), "html.parser")
    one, other = html.select("figure.picture svg")
    assert one["aria-label"] == 'Is "it" so?'
    assert one["role"] == "img"
    assert "DejaVu" not in str(one)
    assert "font-weight: bold" in one.find("text")["style"]
    assert one.use["href"] == f"#{one.path['id']}"
    assert one.path["id"] != other.path["id"]  # names of one page


def test_greys_turn_round_in_the_dark_and_old_browsers_keep_the_light(rendered):
    style = BeautifulSoup(rendered(drawn()), "html.parser").select_one("figure path")["style"]
    assert style == "fill: #ffffff; fill: light-dark(#ffffff, #16181c)"


def test_a_phone_has_its_own_picture_where_the_wide_one_would_be_illegible(rendered):
    html = BeautifulSoup(rendered(drawn(), drawn(narrow=SVG)), "html.parser")
    kinds = [[part["class"][0] for part in f.find_all("div")] for f in html.select("figure")]
    assert kinds == [["only"], ["wide", "phone"]]


def test_a_folded_table_is_a_table_below_its_summary(rendered):
    table = show(pd.DataFrame({"model": ["a"], "x_j": [1.0]}))
    cell = shown("t", text_markdown=str(page.fold("All <1> rows", table)))
    html = BeautifulSoup(rendered(cell), "html.parser")
    folded = html.select_one("details:not(.code)")
    assert folded.summary.text == "All <1> rows"
    assert [cell.text for cell in folded.find_all("td")] == ["a", "1.00"]
    assert folded.select_one(".scroll")["aria-label"] == "Table: All <1> rows"
    cells = v4.new_markdown_cell("## Variants"), cell, shown("u", text_markdown=str(table))
    plain = BeautifulSoup(rendered(*cells), "html.parser")
    assert plain.select(".scroll")[-1]["aria-label"] == "Table: Variants"


def test_a_wide_table_says_that_it_scrolls_and_holds_its_words_in_view(rendered):
    wide = pd.DataFrame({"model": ["a"], "task": ["rag"], "x": [1.0], "y": [1.0], "z": [1.0]})
    html = BeautifulSoup(rendered(shown("t", text_markdown=str(show(wide)))), "html.parser")
    assert "5 columns" in html.select_one(".hint").text
    assert [cell.text for cell in html.select("td.key1, td.key2")] == ["a", "rag"]
    assert html.select_one(".scroll")["tabindex"] == "0"
    narrow = rendered(shown("t", text_markdown=str(show(wide[["model", "x"]]))))
    assert not BeautifulSoup(narrow, "html.parser").select(".hint, td.key1")


def test_a_few_columns_of_long_numbers_scroll_too_and_of_short_ones_do_not(rendered):
    ends = {"": [0.123, 0.234], "_lo": [0.111, 0.222], "_hi": [0.135, 0.246]}
    bounds = {f"{name}{end}": values for name in ("x", "y") for end, values in ends.items()}
    rows = pd.DataFrame({"model": ["a", "b"], "configuration": ["base FP16", "LoRA FP16"]})
    wide = []
    for table in (rows.assign(**bounds), rows.assign(x=[1.0, 2.0], y=[1.0, 2.0])):
        html = rendered(shown("t", text_markdown=str(show(table))))
        wide.append(bool(BeautifulSoup(html, "html.parser").select(".hint")))
    assert wide == [True, False]


def test_as_many_columns_of_words_stay_in_view_as_a_phone_has_room_for(rendered):
    numbers = {f"x{n}": [1.0, 2.0] for n in range(4)}
    short = {"family": ["a", "b"], "size": ["1B", "2B"], "task": ["rag", "dialogue"]}
    long = {"signal": ["the router", "some other signal"], "known": ["long before it", "after"]}
    kept = []
    for words in (short, long | {"more": ["p", "q"]}, {"configuration": ["a b", "c d"]}):
        text = str(show(pd.DataFrame(words | numbers)))
        html = BeautifulSoup(rendered(shown("t", text_markdown=text)), "html.parser")
        kept.append([cell.text for cell in html.select("th.key")])
        widths = re.findall(r"--w\d: ([\d.]+)rem", html.table["style"])
        assert len(widths) == len(kept[-1])
        assert sum(map(float, widths)) <= 14.3
    assert kept == [["family", "size", "task"], ["signal", "known"], ["configuration"]]


def test_words_that_every_row_shares_are_said_above_a_wide_table_on_a_phone(rendered):
    wide = pd.DataFrame({"model": ["a", "a"], "task": ["rag", "dialogue"]})
    wide = wide.assign(**{f"x{n}": [1.0, 2.0] for n in range(4)}, why=["same", "same"])
    html = BeautifulSoup(rendered(shown("t", text_markdown=str(show(wide)))), "html.parser")
    assert html.select_one(".hint .same").text == "model: a. "
    assert [cell.text for cell in html.select("th.same, td.same")] == ["model", "a", "a"]
    assert [cell.text for cell in html.select("td.key1")] == ["rag", "dialogue"]
    assert "always" not in html.select_one(".hint")["class"]
    wider = wide.assign(**{f"y{n}": [1e6, 2e6] for n in range(12)})
    html = BeautifulSoup(rendered(shown("t", text_markdown=str(show(wider)))), "html.parser")
    assert "always" in html.select_one(".hint")["class"]
