"""Docs: references follow from the code, links lead somewhere, quoted messages are said."""

import ast
import re
from pathlib import Path

import pytest
from documented import PAGES, ROOT, inline, parsed

from edge_eval_lib.metrics import METRICS
from edge_eval_lib.results import meanings, reference

# --- what is made of the code -----------------------------------------------------------------


@pytest.mark.parametrize("name", reference.PAGES)
def test_references_are_those_of_the_code(name):
    """Stale? `python -m edge_eval_lib docs` writes them again."""
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == reference.PAGES[name]()


def test_every_column_of_a_table_has_a_meaning_and_a_figure_a_unit():
    for _, columns in reference.tables().values():
        assert not [column for column in columns if not meanings.meaning(column)]
    assert {meanings.unit(c) for c in ("ttft_p95_ms", "energy_per_request_j_lo")} == {"ms", "J"}
    assert meanings.unit("adapt_energy_lo_j") == "J"
    assert meanings.unit("rate_per_s") == "1/s"
    assert (meanings.unit("precision"), meanings.unit("recall")) == ("", "0–1")
    assert meanings.meaning("no_such_column") is None


def test_the_page_of_the_metrics_has_the_registrys_words():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    direction = {"min": "lower", "max": "higher"}
    for m in METRICS.values():
        better = direction[m.better]
        assert f"| {m.symbol} | `{m.name}` | {m.unit} | {better} | {m.formula} |" in text
        assert f"## {m.symbol}:" in text
    flat = " ".join(text.split())
    assert set(meanings.EXPLANATIONS) == set(METRICS)
    for words in meanings.EXPLANATIONS.values():
        assert f"**Meaning.** {words.meaning}" in flat
        assert f"**Good.** {words.good}" in flat
        assert f"**How it lies.** {words.lies} In detail:" in flat


# --- links ------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    tokens = parsed(path)
    titles = [tokens[n + 1].content for n, t in enumerate(tokens) if t.type == "heading_open"]
    plain = [re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


def links(path: Path) -> list[str]:
    parts = inline(path)
    return [str(t.attrs[key]) for t in parts for key in ("href", "src") if key in t.attrs]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_what_is_there(page):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            form = r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(/[\w\-./~%+:@()]*)?(\?[\w=&]+)?(#[\w-]+)?"
            assert re.fullmatch(form, link) or link.startswith("mailto:"), link
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    dangling = [t.content for t in inline(page) if re.search(r"\]\[|\]\(", t.content)]
    assert not [text for text in dangling if text.count("](")], "a link that is none"


def test_every_page_is_reached_from_the_readme():
    reached, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        reached.add(page)
        targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page)]
        left += [t for t in targets if t.suffix == ".md" and t.is_file() and t not in reached]
    assert {page for page in PAGES if page.parent.name == "docs"} <= reached


# --- messages ---------------------------------------------------------------------------------


def said() -> list[str]:
    """Every text of the code, with `…` where a value is put in."""
    texts = (ROOT / "Makefile").read_text().splitlines()
    for path in (ROOT / "edge_eval_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_quoted_messages_are_messages_of_the_code():
    page = ROOT / "docs" / "troubleshooting.md"
    tokens = parsed(page)
    titles = [tokens[n + 1] for n, t in enumerate(tokens) if t.type == "heading_open"]
    quoted = [p.content for t in titles for p in t.children or [] if p.type == "code_inline"]
    assert len(quoted) >= 20
    code = said()
    for message in quoted:
        pieces = [piece for piece in re.split("…", message) if len(piece.strip()) > 3]
        assert pieces, message
        whole = re.compile(".*".join(map(re.escape, pieces)), re.DOTALL)
        assert any(whole.search(text) for text in code), f"no code says {message!r}"
