"""The static edition of a report: small, without script, and without a word of the machine."""

import socket

import pytest
from bs4 import BeautifulSoup

from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import project_root
from edge_eval_lib.results.static import LARGEST_BYTES, static_edition

PAGE = """<html lang="en"><body><h1 id="top">R</h1><script>draw()</script>
<noscript><img alt="energy" src="data:image/png;base64,AAAA"/></noscript>
<details class="code"><summary>code</summary><pre>run()</pre></details>
<details><summary>rows</summary><table><tr><td>1 tok/s/GB</td></tr></table></details>
<a href="tables/variants.csv">variants.csv</a> <a href="#top">up</a>
<a href="https://arxiv.org/abs/2604.19342">paper</a> {}</body></html>"""


def edition(tmp_path, added=""):
    (tmp_path / "report.html").write_text(PAGE.format(added))
    return static_edition(tmp_path / "report.html", tmp_path / "docs" / "page.html")


def test_what_a_reader_sees_stays_and_what_needs_the_study_goes(tmp_path):
    page = BeautifulSoup(edition(tmp_path).read_text(), "html.parser")
    assert not page.find_all(["script", "noscript"])
    assert page.img["alt"] == "energy"
    assert "run()" not in page.text
    assert "1 tok/s/GB" in page.text
    assert "variants.csv" in page.text
    assert [a["href"] for a in page.find_all("a")] == ["#top", "https://arxiv.org/abs/2604.19342"]


@pytest.mark.parametrize(
    ("added", "sentence"),
    [
        ("<p>/home/me/outputs/embedded</p>", "names the path /home/me/outputs/embedded"),
        ("<img title='/tmp/x.png'/>", "names the path /tmp/x.png"),
        ("<p>on a-host-of-mine here</p>", "names the host a-host-of-mine"),
        (f"<p>{'x' * LARGEST_BYTES}</p>", "would have 1.00 MB, more than 1"),
    ],
)
def test_what_is_not_for_others_is_refused(tmp_path, monkeypatch, added, sentence):
    monkeypatch.setattr(socket, "gethostname", lambda: "a-host-of-mine")
    with pytest.raises(UserError, match=sentence):
        edition(tmp_path, added)
    assert not (tmp_path / "docs").exists()


def test_a_phone_s_pictures_go_where_they_make_it_too_large(tmp_path):
    both = '<figure class="picture"><div class="wide">w</div><div class="phone">{}</div></figure>'
    assert "phone" in edition(tmp_path, both.format("small")).read_text()
    text = edition(tmp_path, both.format("x" * LARGEST_BYTES)).read_text()
    assert '<figure class="picture"><div class="only">w</div></figure>' in text


def test_without_a_report_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"There is no .*report\.html; run make all first"):
        static_edition(tmp_path / "report.html", tmp_path / "page.html")


def test_the_example_in_docs_is_such_an_edition(tmp_path):
    example = project_root() / "docs" / "example-report.html"
    text = example.read_text(encoding="utf-8")
    page = BeautifulSoup(text, "html.parser")
    assert page.h1.text
    assert len(page.find_all(["img", "svg"])) >= 5
    assert len(text.encode()) <= LARGEST_BYTES
    assert not page.find_all(["script", "noscript"]) + page.select("details.code")
    assert all(a["href"].startswith(("#", "https://")) for a in page.find_all("a", href=True))
    static_edition(example, tmp_path / "again.html")  # names neither a path nor this host
