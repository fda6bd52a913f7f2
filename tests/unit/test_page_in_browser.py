"""A page in a browser, on phone and desk, light and dark: nothing loaded, nothing cut off."""

import os
import shutil

import nbformat
import pytest
from nbformat import v4

from edge_eval_lib.economics import published
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.results import figures, page, tables
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
    fig, panels = figures.panels(rows, ["ipw"], "How good is a joule?", "right: better")
    for axis, part in panels:
        axis.scatter(part["ipw"], part["score"])
        axis.set(xlabel="IPW [1/J]", ylabel="score")
    columns = ["model", "task", "configuration", "score", *tables.METRICS]
    cells = [v4.new_markdown_cell("# A page\n\n## Figures")]
    for shown in (page.fold("All variants", show(rows, columns)), figures.finish(fig)):
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

    def open_page(width, scheme="light", script=True):
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme=scheme,
            java_script_enabled=script,
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_loaded_nor_wider_than_the_page(opened, report, width, scheme):
    view = opened(width, scheme)
    view.click("summary:has-text('All variants')")
    assert view.locator("table").is_visible()
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


def test_text_of_a_picture_is_in_the_pages_typeface_and_turns_light_in_the_dark(opened):
    colours = set()
    for scheme in ("light", "dark"):
        text = opened(1280, scheme).locator(".picture .wide text").first
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
