"""Pictures of a page: SVG within it, in its typeface, its colours for light and dark."""

from __future__ import annotations

import json
import re
from html import escape
from typing import Any

_COLOUR = re.compile(r"(fill|stroke): (#[0-9a-fA-F]{6})")
_QUOTED = re.compile(r'"(#[0-9a-fA-F]{6})"')
_FONT = re.compile(r"font: (?:(italic|oblique) )?(?:(bold|\d+) )?([\d.]+px) [^;\"]+")
_HEAD = re.compile(r"<svg [^>]*?width=\"([\d.]+)pt\"[^>]*?viewBox=\"([^\"]+)\"[^>]*>", re.DOTALL)
_ROOM = re.compile(r"^.*?(?=<svg )", re.DOTALL)
_ID = re.compile(r'(id="|href="#|url\(#)([^")]+)')
HOW = "Hover or tap a mark for its values; a name below hides its marks, or shows them again."
_PAPER, _INK = (0x16, 0x18, 0x1C), (0xE4, 0xE6, 0xEA)


def inline(picture: dict[str, Any], svg: str, number: int, chart: dict[str, Any] | None) -> str:
    """A figure element with the picture, the phone's version and the data of its chart.

    Args:
        picture: `alt`, and where there is one, `narrow`.
        svg: The wide version.
        number: Of the picture on its page: keeps the names within two pictures apart.
        chart: In Vega-Lite: what takes the picture's place where there is script.
    """
    alt = picture.get("alt", "")
    versions = {"wide": svg, "phone": picture.get("narrow")}
    several = versions["phone"] is not None
    parts = [
        f'<div class="{name if several else "only"}">'
        f"{themed(text, alt, f'p{number}{name[0]}-')}</div>"
        for name, text in versions.items()
        if text
    ]
    charted = _chart(chart, alt) if chart else ""
    return f'<figure class="picture">{"".join(parts)}{charted}</figure>'


def _chart(chart: dict[str, Any], alt: str) -> str:
    """A chart, which stands in a page unseen until a script draws it."""
    title = chart["title"]
    reading, *foot = title["subtitle"]
    reading = reading[:1].upper() + reading[1:]
    written = json.dumps(chart | {"description": alt}, ensure_ascii=False, separators=(",", ":"))
    written = _QUOTED.sub(lambda m: f'"light-dark({m[1]}, {_dark(m[1])})"', written)
    written = written.replace("<", "\\u003c")  # no text of it ends the element
    series = "".join(_button(*each) for each in chart["usermeta"]["series"])
    return (
        f'<template class="chart"><p><b>{escape(title["text"])}</b><br>{escape(reading)}. '
        f'<span class="how">{HOW}</span></p>'
        f'<div class="legend" role="group" aria-label="Shown">{series}</div>'
        '<div class="plot"></div>'
        f"<p><small>{'<br>'.join(map(escape, foot))}</small></p>"
        f'<script type="application/json">{written}</script></template>'
    )


def _button(name: str, colour: str, shape: str) -> str:
    """A series in a chart's legend: pressed as long as its marks are shown."""
    mark = f'<path d="{shape}" style="fill: light-dark({colour}, {_dark(colour)})"/>'
    return (
        f'<button type="button" aria-pressed="true" value="{escape(name)}">'
        f'<svg viewBox="-1.1 -1.1 2.2 2.2" aria-hidden="true">{mark}</svg>{escape(name)}</button>'
    )


def themed(svg: str, alt: str, prefix: str = "") -> str:
    """SVG as it stands in a page: no frame of its own, colours that follow light and dark."""
    svg = _ROOM.sub("", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[a-z]+(?:_?\d+)+">', "<g>", svg)  # matplotlib's counters, used by nothing
    svg = _ID.sub(lambda m: m[1] + prefix + m[2], svg)
    svg = _COLOUR.sub(lambda m: f"{m[1]}: {m[2]}; {m[1]}: light-dark({m[2]}, {_dark(m[2])})", svg)
    svg = svg.replace('<text style="', '<text style="fill: currentColor; ')
    svg = _FONT.sub(
        lambda m: f"font-size: {m[3]}" + (f"; font-weight: {m[2]}" if m[2] else ""), svg
    )
    svg = re.sub(r"font-family: [^;\">]+;? ?", "", svg.replace("&quot;", "'"))
    head = (
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="\\2" '
        'style="max-width: \\1pt" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return _HEAD.sub(head.replace("\\1pt", "\\g<1>pt"), svg, count=1).strip()


def _dark(colour: str) -> str:
    """The same on dark paper: greys turned round, between paper and ink, colours lighter."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    if max(parts) - min(parts) < 16:
        share = sum(parts) / 3 / 255
        parts = [round(share * p + (1 - share) * i) for p, i in zip(_PAPER, _INK, strict=True)]
    else:
        parts = [round(part + 0.25 * (255 - part)) for part in parts]
    return "#" + "".join(f"{part:02x}" for part in parts)
