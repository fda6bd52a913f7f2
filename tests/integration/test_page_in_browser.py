"""A page in a browser, on phone and desk, light and dark: nothing loaded, nothing cut off.

Its chart answers the pointer and a finger, its table sorts and filters, and without script both
stand as a picture and a plain table.
"""

import os
import re
import shutil

import altair as alt
import nbformat
import pytest
from nbformat import v4

from edge_eval_lib.economics import published
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.paths import project_root
from edge_eval_lib.results import charts, figures, page, pictures, tables
from edge_eval_lib.results.readable import show
from edge_eval_lib.results.report import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail("REQUIRE_BROWSER is set, and there is no chromium on the PATH.")
        pytest.skip("there is no chromium on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with a wide folded table and a picture of three panels, of the published figures."""
    rows = tables.variants_table(published.observations(), None, load_price_book().prices("paper"))
    rows = rows.assign(ipw_lo=0.9 * rows["ipw"], ipw_hi=1.2 * rows["ipw"])
    fig, panels = figures.panels(rows, ["ipw"], "How good is a joule?", "right: better")
    for axis, part in panels:
        axis.scatter(part["ipw"], part["score"])
        axis.set(xlabel="IPW [1/J]", ylabel="score")
    x, y = alt.X("ipw:Q").title("IPW [1/J]").scale(type="log"), alt.Y("score:Q").title("score")
    chart = charts.points(rows, x, y, "How good is a joule?", "right: better", lines=["score"])
    columns = ["model", "task", "configuration", "score", *tables.METRICS]
    table = page.sortable(show(rows, columns))
    cells = [v4.new_markdown_cell("# A page\n\n## Figures")]
    for shown in (page.fold("All variants", table), charts.beside(figures.finish(fig), chart)):
        data = (
            {"text/markdown": str(shown)} if isinstance(shown, str) else shown._repr_mimebundle_()
        )
        outputs = [v4.new_output("display_data", data)]
        cells.append(v4.new_code_cell("show()", outputs=outputs))
    directory = tmp_path_factory.mktemp("page")
    nbformat.write(v4.new_notebook(cells=cells), directory / "n.ipynb")
    return render(directory / "n.ipynb", directory / "report.html")


@pytest.fixture
def opened(browser, report):
    """Open the report in a window; what it asked for and complained of is noted."""
    contexts = []

    def open_page(width, scheme="light", script=True, touch=False):
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme=scheme,
            java_script_enabled=script,
            has_touch=touch,
        )
        contexts.append(context)
        view = context.new_page()
        view.asked, view.errors = [], []
        view.on("request", lambda request: view.asked.append(request.url))
        view.on("console", lambda m: view.errors.append(m.text) if m.type == "error" else None)
        view.on("pageerror", lambda error: view.errors.append(str(error)))
        view.goto(report.as_uri())
        return view

    yield open_page
    for context in contexts:
        context.close()


def marks(view):
    return view.locator(".plot .mark-symbol.role-mark path")


def shown(view):
    seen = "paths => paths.filter(p => p.getAttribute('opacity') == 1).length"
    return marks(view).evaluate_all(seen)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_loaded_nor_wider_than_the_page(opened, report, width, scheme):
    view = opened(width, scheme)
    view.click("summary:has-text('All variants')")
    assert view.locator(".sortable table").is_visible()
    marks(view).first.wait_for()
    chart = view.locator(".plot svg").bounding_box()
    assert chart["width"] <= width - chart["x"]
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert view.asked == [report.as_uri()]
    assert view.errors == []


@pytest.mark.parametrize(
    ("width", "seen", "hidden"), [(390, "phone", "wide"), (1280, "wide", "phone")]
)
def test_each_width_has_its_picture_also_without_script(opened, width, seen, hidden):
    view = opened(width, script=False)
    assert view.locator(f".picture .{seen} svg").is_visible()
    assert not view.locator(f".picture .{hidden} svg").is_visible()


@pytest.mark.parametrize("width", [390, 1280])
def test_without_script_the_table_is_plain_and_nothing_of_a_chart_is_seen(opened, width):
    view = opened(width, script=False)
    view.click("summary:has-text('All variants')")
    assert view.locator(".sortable tbody tr").count() == 72
    assert pictures.HOW not in view.inner_text("body")
    assert view.locator(".tools, .plot, .legend").count() == 0


def test_on_paper_the_picture_stands_in_place_of_the_chart(opened):
    view = opened(1280)
    marks(view).first.wait_for()
    assert not view.locator(".picture .wide").is_visible()
    view.emulate_media(media="print")
    assert view.locator(".picture .wide").is_visible()
    assert not view.locator(".plot").is_visible()


def test_on_paper_no_column_of_a_wide_table_is_cut_off(opened):
    view = opened(720)  # about as many pixels as a page of A4 has
    view.click("summary:has-text('All variants')")
    view.emulate_media(media="print")
    assert view.locator(".sortable table").is_visible()
    assert view.evaluate("document.documentElement.scrollWidth") <= 720


def test_on_paper_every_table_of_a_whole_report_is_within_the_page(browser):
    view = browser.new_page(viewport={"width": 720, "height": 800})
    view.goto((project_root() / "docs" / "example-report.html").as_uri())
    view.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    view.emulate_media(media="print")
    frames = view.locator(".scroll")
    assert frames.count() > 10
    cut = "all => all.filter(frame => frame.scrollWidth > frame.clientWidth).length"
    assert frames.evaluate_all(cut) == 0
    view.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "touch"), [(390, True), (1280, False)])
def test_a_mark_tells_its_variant_with_the_interval(opened, width, scheme, touch):
    view = opened(width, scheme, touch=touch)
    mark = marks(view).first
    mark.scroll_into_view_if_needed()
    if touch:  # beside it, as a finger does
        box = mark.bounding_box()
        view.touchscreen.tap(box["x"] - 3, box["y"] + box["height"] / 2)
    else:
        mark.hover()
    told = view.locator("#vg-tooltip-element.visible")
    told.wait_for()
    words = told.inner_text()
    assert re.search(r"variant\s+\S+-\S+ +rag +LoRA FP16", words)
    assert re.search(r"IPW \[1/J\]\s+0\.\d+ \[0\.\d+, 0\.\d+\]", words)
    box = told.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    paper = told.evaluate("t => getComputedStyle(t).backgroundColor")
    assert paper == view.evaluate("getComputedStyle(document.body).backgroundColor")
    assert view.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_click_on_a_name_hides_its_marks_and_another_shows_them(opened, width, scheme):
    view = opened(width, scheme)
    marks(view).first.wait_for()
    counts = [shown(view)]
    for _ in range(2):
        view.click(".legend button:has-text('LoRA INT8')")
        view.wait_for_timeout(200)
        counts.append(shown(view))
    assert counts == [72, 54, 72]
    assert view.errors == []


def test_a_name_is_reached_and_pressed_by_keys_alone(opened):
    view = opened(1280)
    marks(view).first.wait_for()
    view.focus("summary:has-text('All variants')")
    for _ in range(20):
        view.keyboard.press("Tab")
        if view.evaluate("document.activeElement.value") == "LoRA INT8":
            break
    name = view.locator(".legend button:focus-visible")
    assert name.inner_text() == "LoRA INT8"
    assert name.evaluate("b => getComputedStyle(b).outlineStyle") == "solid"
    counts = []
    for key, pressed in (("Enter", "false"), ("Space", "true")):
        view.keyboard.press(key)
        assert name.get_attribute("aria-pressed") == pressed
        view.wait_for_timeout(200)
        counts.append(shown(view))
    assert counts == [54, 72]


def test_what_was_taken_away_stays_away_when_the_width_changes(opened):
    view = opened(1280)
    marks(view).first.wait_for()
    view.click(".legend button:has-text('LoRA INT8')")
    for width in (390, 1280):
        view.set_viewport_size({"width": width, "height": 800})
        view.wait_for_timeout(600)
        drawn = view.locator(".plot svg").bounding_box()
        assert width / 2 < drawn["width"] <= width
        assert shown(view) == 54
    view.click(".legend button:has-text('LoRA INT8')")
    view.wait_for_timeout(200)
    assert shown(view) == 72
    assert view.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_table_sorts_by_value_and_filters_by_words(opened, width, scheme):
    view = opened(width, scheme)
    view.click("summary:has-text('All variants')")
    heading = view.locator(".sortable th", has_text="N_break")
    column = f".sortable td:nth-child({1 + heading.evaluate('cell => cell.cellIndex')})"
    orders = []
    for way in ("ascending", "descending"):
        heading.click()
        view.locator(f".sortable th[aria-sort={way}]", has_text="N_break").wait_for()
        texts = view.locator(column).all_inner_texts()
        orders.append([float(text.split()[0].replace(",", "")) for text in texts])
    assert orders[0] == sorted(orders[0])
    assert orders[1] == orders[0][::-1]
    assert len(set(orders[0])) > 20
    view.fill(".tools input", "int4 rag llama")
    rows = view.locator(".sortable tbody tr").all_inner_texts()
    assert rows
    assert all("INT4" in row and "rag" in row and "llama" in row for row in rows)
    assert view.inner_text(".tools output") == f"{len(rows)} of 72 rows"
    assert view.errors == []


def test_text_of_a_picture_is_in_the_pages_typeface_and_turns_light_in_the_dark(opened):
    colours = set()
    for scheme in ("light", "dark"):
        text = opened(1280, scheme, script=False).locator(".picture .wide text").first
        colours.add(text.evaluate("t => getComputedStyle(t).fill"))
        family = text.evaluate("t => getComputedStyle(t).fontFamily")
        assert family == text.evaluate("t => getComputedStyle(document.body).fontFamily")
    assert len(colours) == 2


def test_what_a_row_is_of_stays_in_view_while_a_table_scrolls(opened):
    view = opened(390)
    view.click("summary:has-text('All variants')")
    view.locator(".scroll").evaluate("frame => frame.scrollLeft = 200")
    frame, key = (view.locator(at).first.bounding_box() for at in (".scroll", "td.key1"))
    assert key["x"] == pytest.approx(frame["x"], abs=1)


def test_the_page_is_small(report):
    assert report.stat().st_size <= 3e6
