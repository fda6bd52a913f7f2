"""Pictures for pages: names lie on no mark, words follow the numbers, the README's are current."""

import re
from functools import cache
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Annotation, Text
from nbformat import v4

from edge_eval_lib import paper
from edge_eval_lib.paper import pictures, pictures_of_variants, published
from edge_eval_lib.paper.__main__ import README
from edge_eval_lib.paper.finding import VERDICT_LOOKS
from edge_eval_lib.paper.published import tables_of
from edge_eval_lib.results import labels, page
from edge_eval_lib.results.report import render

NO_EMBEDDED = Path("nowhere.csv")
DRAWN = [pictures.verdicts, pictures.statistics, pictures.paradox, pictures.accountings,
         pictures.api_prices, pictures_of_variants.quadrants, pictures_of_variants.density,
         pictures_of_variants.quality, pictures_of_variants.pareto]  # fmt: skip
NAMED = [pictures_of_variants.quadrants, pictures_of_variants.pareto]
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def study():
    return paper.build(embedded=NO_EMBEDDED)


@pytest.fixture(scope="module")
def drawn(study):
    """Each picture once, wide or for a phone."""
    return cache(lambda draw, phone=False: draw(study, phone))


@pytest.fixture(scope="module")
def other():
    """Every fine-tuning by QLoRA at 1.1 times the power."""
    raw = tables_of(published.load())
    rows = raw["adaptation"]
    for column in ("adapt_energy_j", "adapt_power_w"):
        rows.loc[rows["method"] == "qlora", column] *= 1.1
    return paper.build(published.check(**raw), embedded=NO_EMBEDDED)


@pytest.mark.parametrize("phone", [False, True], ids=["wide", "phone"])
@pytest.mark.parametrize("draw", NAMED, ids=lambda d: d.__name__)
def test_names_lie_on_no_mark_and_on_no_other_name(drawn, draw, phone):
    figure = drawn(draw, phone).figure
    figure.draw_without_rendering()
    for axis in figure.axes:
        names = [text for text in axis.texts if isinstance(text, Annotation)]
        boxes = [Text.get_window_extent(text) for text in names]
        assert names
        assert not [a.x0 for a, b in combinations(boxes, 2) if a.overlaps(b)]
        for text, box in zip(names, boxes, strict=True):
            assert not any(box.overlaps(mark) for mark in labels.mark_boxes(axis)), text
            assert axis.get_window_extent().padded(1).count_contains(box.corners()) == 4, text


@pytest.mark.parametrize("draw", DRAWN, ids=lambda d: d.__name__)
def test_a_phones_picture_is_narrow_and_no_text_leaves_it(drawn, draw):
    wide, phone = drawn(draw), drawn(draw, True)
    for picture, inches in ((wide, 13.2), (phone, 4.3)):
        box = picture.figure.get_tightbbox()
        assert box.width <= inches
    assert (wide.title, wide.alt) == (phone.title, phone.alt)


@pytest.mark.parametrize("draw", DRAWN, ids=lambda d: d.__name__)
def test_a_logarithmic_axis_says_so(drawn, draw):
    for axis in drawn(draw).figure.axes:
        for scale, label in ((axis.get_xscale(), axis.get_xlabel()),
                             (axis.get_yscale(), axis.get_ylabel())):  # fmt: skip
            assert scale == "linear" or not label or "log" in label
    reversed_y = draw is pictures_of_variants.quadrants
    if reversed_y:
        assert "reversed" in drawn(draw).figure.axes[0].get_ylabel()


def test_words_hold_the_numbers_and_follow_them(study, other, drawn):
    energies = study.adaptation["energy_ratio"]
    said = drawn(pictures.paradox).alt
    assert f"{energies.min():.3g} to {energies.max():.3g} times" in said
    assert pictures.paradox(other).alt != said
    counts = study.judged["verdict"].value_counts()
    assert f"{counts['reproduced']} are reproduced" in drawn(pictures.verdicts).alt


@pytest.mark.parametrize("draw", README, ids=lambda d: d.__name__)
def test_the_readmes_pictures_are_of_todays_figures(drawn, draw):
    file = DOCS / f"{draw.__name__}.png"
    assert file.stat().st_size <= 200_000
    assert imread(file).shape[1] > 1000
    how = "python -m edge_eval_lib.paper docs draws it anew"
    assert drawn(draw).alt.encode() in file.read_bytes(), how


def test_a_crowd_of_marks_is_named_beside_them():
    figure, axis = plt.subplots(figsize=(4, 3))
    places = np.random.default_rng(0).uniform(0.2, 0.8, (14, 2))
    axis.scatter(*places.T, s=40)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    named = labels.place(axis, [(x, y, f"name {n}") for n, (x, y) in enumerate(places)])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in named]
    marks = labels.mark_boxes(axis)
    assert len(marks) == len(places)
    assert not [1 for a, b in combinations(boxes, 2) if a.overlaps(b)]
    assert not [1 for box in boxes for mark in marks if box.overlaps(mark)]
    plt.close(figure)


def test_a_picture_is_words_in_the_readers_typeface_and_has_a_phones_twin(study):
    shown = paper.shown(pictures.accountings, study)
    bundle = shown._repr_mimebundle_()
    beside = bundle[page.PICTURE]
    for text in (bundle["image/svg+xml"], beside["narrow"]):
        assert "requests to break even" in "".join(ET.fromstring(text).itertext())
    assert beside["alt"].startswith("After how many requests")
    assert bundle["image/svg+xml"] == paper.shown(pictures.accountings, study).svg


def test_a_claims_verdict_has_a_sign_and_a_colour_and_its_argument_below(study):
    text = paper.show(study.judged, paper.CLAIM_COLUMNS, fold="All of them").data
    assert "<summary>All of them</summary>" in text
    for verdict, (colour, sign) in VERDICT_LOOKS.items():
        shown = re.findall(rf"background: {colour}[^>]*>{re.escape(sign)}</span> {verdict}", text)
        assert len(shown) == (study.judged["verdict"] == verdict).sum()
    assert text.count("<small>Rule: ") == len(study.judged)


def test_a_pages_answer_stands_below_its_title(tmp_path):
    answer = v4.new_markdown_cell("## What follows\n\nIt pays.", metadata={"tags": ["answer"]})
    cells = [v4.new_markdown_cell("# Does it pay?"), v4.new_markdown_cell("## How"), answer]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    text = render(tmp_path / "n.ipynb", tmp_path / "n.html").read_text()
    order = [text.index(words) for words in ("Does it pay?</h1>", "It pays.", "<nav", "How</h2>")]
    assert order == sorted(order)
    assert text.count("It pays.") == 1
