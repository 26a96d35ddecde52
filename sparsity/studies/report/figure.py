"""Figures as parts of a page: in its colours, light and dark, with the values of their curves for a pointer to read."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter

from sparsity.studies.draw import Drawing

PAPERS = {"light": "#ffffff", "dark": "#14171c"}  # what the page is printed on, by colour scheme
CONTRAST = 3.0  # of a curve with the paper: WCAG 2.1, 1.4.11
POINTS = 6000  # of one figure whose values can be read: more are thinned out
_DOT = 72  # SVG units an inch


@dataclasses.dataclass(frozen=True)
class Inline:
    """A figure in a page.

    Attributes:
      svg: the <svg> element. Its black is the page's ink, its white the paper, any other colour a CSS variable.
      colours: those colours, "#rrggbb": the page declares their variables, see `variables`.
      panels: of each panel with curves its `box` [left, top, right, bottom] in units of the SVG, the labels of its axes
        `x` and `y`, and its `curves`: `name`, `colour` (of CSS) and `points`, each [left, top, x as text, y as text].
    """

    svg: str
    colours: frozenset[str]
    panels: list[dict[str, Any]]


def inline(drawing: Drawing, key: str, label: str) -> Inline:
    """`drawing` as part of a page: called `label`, its ids prefixed with `key`, described by the element `key`-caption.

    What can be read are lines and dots in data coordinates by their labels; "_name" names one that is in no legend.
    """
    svg = drawing.svg()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
    svg = re.sub(r' font-family: [^;"]*;?', "", svg)  # the page's own
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", svg.replace("xlink:href", "href"))
    svg = re.sub(r"(fill|stroke): (#[0-9a-f]{6})", lambda found: f"{found[1]}: {css(found[2])}", svg)
    said = f'role="img" aria-label="{html.escape(label)}" aria-describedby="{key}-caption"'
    panels = list(_panels(drawing.figure))
    used = [svg, *(curve["colour"] for panel in panels for curve in panel["curves"])]
    colours = frozenset(f"#{c}" for text in used for c in re.findall(r"var\(--c-(\w+)\)", text))
    return Inline(svg.replace("<svg", f"<svg {said}", 1), colours, panels)


def css(colour: str) -> str:
    """What a style sheet calls a figure's colour."""
    return {"#000000": "currentColor", "#ffffff": "var(--paper)"}.get(colour, f"var(--c-{colour[1:]})")


def variables(colours: frozenset[str], scheme: str) -> str:
    """Declarations of the paper and of every colour, as it is readable on the paper of a colour scheme."""
    paper = PAPERS[scheme]
    return f"--paper: {paper}; " + " ".join(f"--c-{c[1:]}: {readable(c, paper)};" for c in sorted(colours))


def readable(colour: str, paper: str) -> str:
    """`colour` mixed with as little black, or white on a dark `paper`, as gives it `CONTRAST` with that."""
    own, end = np.array(to_rgb(colour)), float(luminance(paper) < 0.18)
    mixed = (to_hex((1 - share) * own + share * end) for share in np.linspace(0, 1, 41))
    return next(c for c in mixed if contrast(c, paper) >= CONTRAST)


def contrast(one: str, other: str) -> float:
    """Ratio of two colours' luminances, each + 0.05, from 1 to 21 (WCAG 2.1)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour, 0 to 1: 0.2126 R + 0.7152 G + 0.0722 B, these linear (WCAG 2.1)."""
    c = np.array(to_rgb(colour))
    return float(np.dot([0.2126, 0.7152, 0.0722], np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)))


def _panels(figure: Figure) -> Iterator[dict[str, Any]]:
    """The panels of a figure that was drawn as SVG just now (its layout is that of the last drawing)."""
    series = {axis: list(_series(axis)) for axis in figure.axes if axis.get_visible()}
    most = max(20, POINTS // max(sum(map(len, series.values())), 1))
    scale, height = _DOT / figure.dpi, _DOT * figure.get_figheight()
    place = lambda at: np.stack([scale * at[:, 0], height - scale * at[:, 1]], 1)
    for axis, of_axis in series.items():
        (left, bottom), (right, top) = place(axis.bbox.get_points())
        curves = []
        for name, colour, data in of_axis:
            at = place(axis.transData.transform(data))
            inside = np.all((at >= (left - 1, top - 1)) & (at <= (right + 1, bottom + 1)), 1)  # never where it is NaN
            if not inside.any():
                continue
            kept = np.flatnonzero(inside)
            kept = kept[np.linspace(0, len(kept) - 1, min(most, len(kept))).round().astype(int)]
            words = zip(_texts(axis.xaxis, data[kept, 0]), _texts(axis.yaxis, data[kept, 1]), strict=True)
            points = [[*np.round(xy, 1).tolist(), *text] for xy, text in zip(at[kept], words, strict=True)]
            curves.append({"name": name, "colour": css(colour), "points": points})
        if curves:
            box = [round(float(x), 1) for x in (left, top, right, bottom)]
            yield {"box": box, "x": _label(axis, "x"), "y": _label(axis, "y"), "curves": curves}


def _series(axis: Axes) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, colour, points [n, 2]) of every line and every set of dots that is of data."""
    bars = [c for c in axis.containers if isinstance(c, ErrorbarContainer)]
    of_errorbars, caps = {c.lines[0]: c.get_label() for c in bars}, {cap for c in bars for cap in c.lines[1]}
    for line in axis.lines:
        of_data = all(line.get_transform().contains_branch_seperately(axis.transData))  # no axhline
        if of_data and line not in caps:
            yield _name(axis, of_errorbars.get(line, line.get_label())), to_hex(line.get_color()), line.get_xydata()
    for dots in axis.collections:
        if isinstance(dots, PathCollection):
            yield (
                _name(axis, dots.get_label()),
                to_hex([*dots.get_facecolor(), *dots.get_edgecolor()][0]),
                np.asarray(dots.get_offsets()),
            )


def _name(axis: Axes, label: str) -> str:
    """A curve's label after its panel's title; without one that alone."""
    label = "" if re.match(r"_(child|container)\d+$|_nolegend_$", label) else label.removeprefix("_")
    return ", ".join(filter(None, dict.fromkeys([" ".join(axis.get_title().split()), label])))


def _label(axis: Axes, which: str) -> str:
    """The label of an axis, its own or that of a panel that it is shared with."""
    shared = getattr(axis, f"get_shared_{which}_axes")()
    siblings = [a for a in axis.figure.axes if a in shared.get_siblings(axis)]
    labels = (getattr(a, f"get_{which}label")() for a in (axis, *siblings))
    return next(filter(None, labels), which)


def _texts(axis: Any, values: np.ndarray) -> list[str]:
    """Values as words: what the axis calls them, or numbers of five digits, whole ones whole."""
    formatter, called = axis.get_major_formatter(), {}
    if isinstance(axis.get_major_locator(), FixedLocator) and isinstance(formatter, FixedFormatter | FuncFormatter):
        called = dict(zip(axis.get_majorticklocs(), formatter.format_ticks(axis.get_majorticklocs()), strict=True))
    number = lambda v: f"{v:,.0f}" if v == round(v) and abs(v) < 1e15 else f"{v:.5g}"
    return [called.get(v) or number(v) for v in values.tolist()]
