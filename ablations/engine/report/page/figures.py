"""Figures within a page: inline SVG in the colors of the page, wide and, for phones, narrow."""

import re
from dataclasses import dataclass

from markupsafe import Markup

from resnet_core.fields import printable

THEME_COLORS = {"#1f2328": "var(--ink)", "#57606a": "var(--muted)", "#d8dee4": "var(--grid)", "#ffffff": "var(--paper)"}
"""Colors in figures that the page replaces by the colors of its theme."""


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report with its texts."""

    name: str
    """Unique name of letters, digits, `-` and `_`."""
    title: str
    text: str
    """Caption: an explanation of the figure's marks."""
    alt: str
    """Alternative text: what the figure shows."""
    svg: str
    narrow_svg: str = ""
    """The same figure for a phone; empty if it has only one form."""


def inline_figure(picture: ReportFigure) -> Markup:
    """Return a figure as inline SVG, and its form for phones, of which the page shows one."""
    wide = inline_svg(picture.svg, picture.name, picture.alt)
    if not picture.narrow_svg:
        return wide
    narrow = inline_svg(picture.narrow_svg, f"{picture.name}-narrow", picture.alt)
    return Markup('<div class="on-wide">{}</div>\n<div class="on-narrow">{}</div>').format(wide, narrow)


def inline_svg(text: str, name: str, alt: str) -> Markup:
    """Return a figure as inline SVG with an alternative text, the colors of the page's theme, and IDs unique within the page."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    opening, drawing = svg.split(">", 1)
    name = f"figure-{name}"
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', drawing))
    drawing = re.sub(r' id="([^"]*)"', lambda id_: f' id="{name}-{id_[1]}"' if id_[1] in used else "", drawing)
    drawing = re.sub(r'(href="|url\()#', rf"\1#{name}-", drawing)
    drawing = re.sub(r"(<style[^>]*>)\s*\*", rf"\1#{name} *", drawing)
    drawing = re.sub(
        r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), drawing
    )  # two decimals are finer than any screen
    for color, variable in THEME_COLORS.items():
        drawing = re.sub(color, variable, drawing, flags=re.IGNORECASE)
    shape = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', opening)
    assert shape, "matplotlib writes the size of a figure"
    head = Markup('<svg id="{}" role="img" aria-label="{}" style="--width: {}" ').format(name, printable(alt), shape[1])
    return head + Markup(f"{shape[0]}>{drawing}")  # noqa: S704 - drawn by this project, from text that matplotlib escapes
