"""Pictures that the reports of `test_runner.py` do not show."""

import numpy as np
import pytest

from sparsity.run import Outcome
from sparsity.studies import draw


def drawn(*args, **kwargs):
    """The picture's pixels."""
    (image,) = draw.receptive_fields(*args, **kwargs).figure.axes[0].images
    return np.asarray(image.get_array()), image


@pytest.mark.parametrize("c", [1, 3])
def test_fields_are_drawn_by_activity_row_by_row_and_each_to_its_own_scale(c):
    fields = np.random.default_rng(0).normal(size=(5, 2, 3, c)) * np.array([1, 10, 1e-3, 1, 1]).reshape(5, 1, 1, 1)
    pixels, image = drawn(fields, [0.1, 0.5, 0.3, 0.5, 0.0], columns=2)
    pixels = pixels.reshape(8, 7, c)
    assert (image.norm.vmin, image.norm.vmax, image.get_cmap().name) == (0, 1, "gray")
    for i, unit in enumerate([1, 3, 2, 0, 4]):  # of the equally active 1 and 3 the first
        row, column = 3 * (i // 2), 4 * (i % 2)
        expected = 0.5 * fields[unit] / np.abs(fields[unit]).max() + 0.5
        np.testing.assert_allclose(pixels[row : row + 2, column : column + 3], expected, rtol=1e-12)
    between = [pixels[2], pixels[5], pixels[:, 3], pixels[6:, 4:]]  # lines, and the place of a sixth
    assert all((b == 1).all() for b in between)


def test_a_row_has_25_fields_and_a_short_one_as_many_as_there_are():
    fields = np.ones((26, 4, 4, 1))
    assert drawn(fields, np.arange(26))[0].shape == (2 * 5 - 1, 25 * 5 - 1)
    assert drawn(fields[:3], np.arange(3))[0].shape == (4, 3 * 5 - 1)


def test_a_network_whose_activations_are_all_zero_is_drawn_on_the_log_scale_too():
    layers = {"block_0": {"nonzero": 0.0, "se": 0.0}}
    view = draw.RunView(None, [{"kind": "sparsity", "step": step, "layers": layers} for step in (0, 1)], {})
    (axis,) = draw.nonzero_by_step({"shifted": view}).figure.axes
    assert (axis.get_yscale(), axis.get_ylim()) == ("log", (1, 100))


def test_runs_of_different_depth_stand_side_by_side():
    counts = np.ones(len(draw.HISTOGRAM_EDGES) + 1).tolist()

    def of_depth(layers):
        record = {f"block_{i}": {"nonzero": 0.5, "se": None, "histogram": counts} for i in range(layers)}
        return draw.RunView(Outcome("finished", 1), [{"kind": "sparsity", "step": 0, "layers": record}], {})

    runs = {f"run_{i}": of_depth(layers) for i, layers in enumerate((1, 3, 2, 1))}
    assert list(draw.drawable(runs)) == ["Nonzero activations", "Pre-activations"]
    histograms = draw.pre_activations(runs).figure.axes
    assert [sum(axis.get_visible() for axis in histograms[3 * i : 3 * i + 3]) for i in range(4)] == [1, 3, 2, 1]
    panels = [axis for axis in draw.nonzero_by_step(runs).figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == list(runs)
    assert [bool(axis.get_ylabel()) for axis in panels] == [True, False, False, True]  # three in a row


def test_a_unit_without_weights_is_grey():
    np.testing.assert_array_equal(drawn(np.zeros((1, 4, 4, 1)), [0.0])[0], 0.5)


def test_the_same_fields_give_the_same_picture():
    fields, activity = np.random.default_rng(0).normal(size=(7, 4, 4, 3)), np.arange(7)
    one, other = (draw.receptive_fields(fields, activity) for _ in range(2))
    assert one.svg() == other.svg()
    assert one.png() == other.png()


@pytest.mark.parametrize(("low", "high", "ticks"), [(31, 52, {"30", "40", "50"}), (0.5, 100, {"1", "10", "100"})])
def test_logarithmic_axes_have_plain_numbers(low, high, ticks):
    figure, (axis,) = draw.panels(1, 1)
    axis.plot([0, 1], [low, high])
    draw.log_y(axis)
    draw.done(figure).png()
    labels = {label.get_text() for label in axis.get_yticklabels(which="both")} - {""}
    assert ticks <= labels
    assert all(float(label) for label in labels)


@pytest.mark.parametrize(
    ("shape", "activities", "columns", "message"),
    [
        ((3, 4, 4), 3, 25, r"^fields: expected \[n, h, w, 1 or 3\], at least one, got \[3, 4, 4\]$"),
        ((3, 4, 4, 2), 3, 25, r"^fields: .* got \[3, 4, 4, 2\]$"),
        ((0, 4, 4, 1), 0, 25, r"^fields: .* got \[0, 4, 4, 1\]$"),
        ((3, 4, 4, 1), 2, 25, r"^activity: expected \[3\], one of each field, got \[2\]$"),
        ((3, 4, 4, 1), 3, 0, r"^columns: must be at least 1, got 0$"),
    ],
)
def test_what_cannot_be_drawn_is_refused(shape, activities, columns, message):
    with pytest.raises(ValueError, match=message):
        draw.receptive_fields(np.zeros(shape), np.zeros(activities), columns)
