import re

import numpy as np
import pytest

from sparsity.studies import draw
from sparsity.studies.report.figure import CONTRAST, PAPERS, contrast, inline, luminance, readable, variables


@pytest.fixture(scope="module")
def shown():
    """A figure of two panels that share y: one logarithmic with lines, one of dots and bars between words."""
    figure, (log, words) = draw.panels(1, 2, sharey=True)
    log.set(xlabel="step", ylabel="loss", xlim=(0, 100), ylim=(0.1, 1000), yscale="log", title="a\nrun")
    log.plot([0, 50, 100], [1000, 10, 0.1], color="#440154", label="down")
    log.plot([0, 50, 100, 150], [0.0, np.nan, 1, 1], color="k", label="_in no legend")
    log.axhline(1, color="C1")
    log.legend()
    words.set_xticks([1, 2], ["left", "right"])
    words.errorbar([1, 2], [1.234567, 12345], [0.1, 0.1], fmt="o", capsize=2, color="C2", label="bars")
    words.scatter([1], [2], color="#ff00ff")
    words.scatter([1.5], [2], facecolors="none", edgecolors="#00ff00", label="ring")
    words.set_ylim(0.1, 100000)
    return inline(draw.done(figure), "f7", 'a "name" <b>')


def test_a_point_is_where_it_is_drawn(shown):
    log, _ = shown.panels
    left, top, right, bottom = log["box"]
    corners = re.search(r'id="f7-patch_2">\s*<path d="M (\S+) (\S+) \nL (\S+) \S+ \nL \S+ (\S+)', shown.svg)
    drawn = [float(x) for x in corners.groups()]
    assert drawn == pytest.approx([left, bottom, right, top], abs=0.06)
    down = np.array([point[:2] for point in log["curves"][0]["points"]])
    y = lambda v: bottom + (top - bottom) * np.log10(v / 0.1) / 6  # [0.1, 100000]: shared with the other panel
    np.testing.assert_allclose(down, [[left, y(1000)], [(left + right) / 2, y(10)], [right, y(0.1)]], atol=0.11)


def test_what_is_read_has_names_words_and_the_labels_of_its_axes(shown):
    log, words = shown.panels
    assert [(p["x"], p["y"]) for p in shown.panels] == [("step", "loss"), ("x", "loss")]
    assert [c["name"] for c in log["curves"]] == ["a run, down", "a run, in no legend"]
    assert [p[2:] for p in log["curves"][0]["points"]] == [["0", "1,000"], ["50", "10"], ["100", "0.1"]]
    assert [p[2:] for p in log["curves"][1]["points"]] == [["100", "1"]]  # neither 0 of a log axis, NaN, nor beyond it
    assert [(c["name"], [p[2:] for p in c["points"]]) for c in words["curves"]] == [
        ("bars", [["left", "1.2346"], ["right", "12,345"]]),
        ("", [["left", "2"]]),
        ("ring", [["1.5", "2"]]),
    ]
    assert [c["colour"] for p in shown.panels for c in p["curves"]] == [
        *("var(--c-440154)", "currentColor", "var(--c-2ca02c)", "var(--c-ff00ff)", "var(--c-00ff00)")
    ]


def test_its_colours_and_ids_are_the_pages_own(shown):
    assert re.search(r"(fill|stroke): #", shown.svg) is None
    assert {"#440154", "#ff7f0e", "#2ca02c", "#ff00ff", "#00ff00"} <= shown.colours
    assert shown.colours.isdisjoint({"#000000", "#ffffff"})
    assert set(re.findall(r"var\(--c-(\w+)\)", shown.svg)) == {c[1:] for c in shown.colours}
    ids = re.findall(r'\bid="([^"]*)"', shown.svg)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', shown.svg)
    assert {a or b for a, b in used} <= set(ids)
    assert all(name.startswith("f7-") for name in ids)
    assert shown.svg.startswith(
        '<svg role="img" aria-label="a &quot;name&quot; &lt;b&gt;" aria-describedby="f7-caption" viewBox="0 0 684 '
    )
    assert "://" not in shown.svg
    assert "font-family" not in shown.svg


def test_a_figure_of_much_is_thinned_and_keeps_its_ends():
    figure, (axis,) = draw.panels(1, 1)
    for i in range(12):
        axis.plot(np.arange(3072), np.arange(3072) * i, label=f"{i}")
    (panel,) = inline(draw.done(figure), "f", "much").panels
    points = [curve["points"] for curve in panel["curves"]]
    assert [len(p) for p in points] == [500] * 12
    assert {(p[0][2], p[-1][2]) for p in points} == {("0", "3,071")}


def test_a_picture_has_nothing_to_read():
    assert inline(draw.receptive_fields(np.ones((2, 4, 4, 1)), np.arange(2)), "f", "fields").panels == []


def test_contrast_is_that_of_the_standard():
    assert luminance("#ffffff") == pytest.approx(1)
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # WCAG's example of almost 4.5
    assert contrast("#ffff00", "#ffffff") == contrast("#ffffff", "#ffff00") == pytest.approx(1.07, abs=0.005)


@pytest.mark.parametrize("paper", PAPERS.values())
def test_every_colour_is_readable_and_none_is_changed_for_nothing(paper):
    for colour in (*(f"#{i:02x}{j:02x}{k:02x}" for i in (0, 128, 255) for j in (0, 128, 255) for k in (0, 128, 255)),):
        found = readable(colour, paper)
        assert contrast(found, paper) >= CONTRAST
        assert (found == colour) == (contrast(colour, paper) >= CONTRAST)


def test_variables_are_declared_once_in_order():
    assert (
        variables(frozenset({"#b00000", "#0000b0"}), "light")
        == "--paper: #ffffff; --c-0000b0: #0000b0; --c-b00000: #b00000;"
    )
