import dataclasses
import time

import numpy as np
import pytest

from sparsity.evals.receptive_fields import (
    FREQUENCY_EDGES,
    ORIENTATION_EDGES,
    fit_fields,
    rephased,
    score_fields,
    shuffled,
)


def grid(h, w, *parameters):
    """Rows and columns [h, w], and the parameters as [n, 1, 1]."""
    return *np.mgrid[:h, :w], *(np.asarray(p, float)[:, None, None] for p in parameters)


def gabor(h, w, x, y, orientation, frequency, width, length, phase, amplitude):
    """[n, h, w, c], by the formula of `Gabors`."""
    rows, columns, x, y, angle, frequency, width, length, phase = grid(
        h, w, x, y, np.radians(orientation), frequency, width, length, np.radians(phase)
    )
    u = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    v = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    wave = np.exp(-(u**2) / (2 * width**2) - v**2 / (2 * length**2)) * np.cos(2 * np.pi * frequency * u + phase)
    return wave[..., None] * np.asarray(amplitude)[:, None, None, :]


def centre_surround(h, w, x, y, centre, surround, weight, amplitude):
    """[n, h, w, c], by the formula of `CentreSurrounds`."""
    rows, columns, x, y, centre, surround, weight = grid(h, w, x, y, centre, surround, weight)
    r2 = (columns - x) ** 2 + (rows - y) ** 2
    inner, outer = np.exp(-r2 / (2 * centre**2)), np.exp(-r2 / (2 * surround**2))
    return (inner - weight * (centre / surround) ** 2 * outer)[..., None] * np.asarray(amplitude)[:, None, None, :]


def some_gabors(n, h, w, c, seed=0):
    rng = np.random.default_rng(seed)
    width = rng.uniform(1, min(h, w) / 5, n)
    cycles = np.minimum(rng.uniform(0.3, 1, n), 0.45 * width)
    return {
        "x": rng.uniform(2, w - 3, n),
        "y": rng.uniform(2, h - 3, n),
        "orientation": rng.uniform(0, 180, n),
        "frequency": cycles / width,
        "width": width,
        "length": width * rng.uniform(0.8, 2, n),
        "phase": rng.uniform(0, 180, n),
        "amplitude": rng.normal(size=(n, c)),
    }


def some_centre_surrounds(n, h, w, c, seed=0):
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0.9, min(h, w) / 8, n)
    return {
        "x": rng.uniform(2, w - 3, n),
        "y": rng.uniform(2, h - 3, n),
        "centre": centre,
        "surround": centre * rng.uniform(1.4, 2.5, n),
        "weight": rng.uniform(0.3, 1.5, n),
        "amplitude": rng.normal(size=(n, c)),
    }


SHAPES = pytest.mark.parametrize(("h", "w", "c"), [(12, 12, 1), (9, 14, 3)])


@SHAPES
def test_gabors_are_recovered(h, w, c):
    made = some_gabors(200, h, w, c)
    offset = np.random.default_rng(1).normal(size=(200, 1, 1, c))
    fits = fit_fields(gabor(h, w, **made) + offset)
    # Steps end once they gain under 1e-7 of the variance; the one that follows such a step is far below that.
    assert fits.gabor.explained.min() > 1 - 1e-6
    got = dataclasses.asdict(fits.gabor)
    for name in ("x", "y", "frequency", "width", "length"):
        np.testing.assert_allclose(got[name], made[name], atol=2e-3, err_msg=name)
    assert (got["orientation"] >= 0).all()
    assert (got["orientation"] < 180).all()
    turn = (got["orientation"] - made["orientation"] + 90) % 180 - 90
    np.testing.assert_allclose(turn, 0, atol=0.1)
    del got["explained"]
    # Phase and amplitude: what is printed is what was made, by the formula of the docstring.
    np.testing.assert_allclose(gabor(h, w, **got), gabor(h, w, **made), atol=2e-3)
    assert (got["phase"] >= 0).all()
    assert (got["phase"] < 180).all()


@SHAPES
def test_centre_surrounds_are_recovered(h, w, c):
    made = some_centre_surrounds(200, h, w, c)
    offset = np.random.default_rng(1).normal(size=(200, 1, 1, c))
    fits = fit_fields(centre_surround(h, w, **made) + offset)
    assert fits.centre_surround.explained.min() > 1 - 1e-6
    for name, expected in made.items():
        # Width and weight of a wide surround trade against the offset: their errors are the largest.
        tolerance = 0.02 if name in ("surround", "weight", "amplitude") else 2e-3
        np.testing.assert_allclose(getattr(fits.centre_surround, name), expected, atol=tolerance, err_msg=name)


def test_vertical_stripes_by_hand():
    even = {"x": [5], "y": [6], "orientation": [0], "frequency": [0.2], "width": [2], "length": [3], "phase": [0]}
    field = gabor(12, 12, **even, amplitude=[[2.0]])
    np.testing.assert_allclose(field[0, 3], field[0, 9])  # up and down alike
    assert field[0, 6, 5, 0] == field.max() == 2
    found = fit_fields(np.concatenate([field, field.swapaxes(1, 2), -field])).gabor
    np.testing.assert_allclose(found.x, [5, 6, 5], atol=1e-4)
    np.testing.assert_allclose(found.y, [6, 5, 6], atol=1e-4)
    np.testing.assert_allclose((found.orientation + 45) % 180 - 45, [0, 90, 0], atol=1e-2)
    np.testing.assert_allclose((found.phase + 90) % 180 - 90, 0, atol=1e-2)
    np.testing.assert_allclose(np.abs(found.amplitude[:, 0]), 2, atol=1e-3)


def test_a_fit_is_never_worse_than_the_function_beneath_the_noise():
    rng = np.random.default_rng(2)
    clean = gabor(12, 12, **some_gabors(150, 12, 12, 1, seed=3))
    clean /= clean.std((1, 2, 3), keepdims=True)
    fields = clean + rng.normal(0, 0.5, clean.shape)
    truth = [np.corrcoef(a.ravel(), b.ravel())[0, 1] ** 2 for a, b in zip(clean, fields, strict=True)]
    found = fit_fields(fields).gabor.explained
    # 1 of 1.25 is signal; seven parameters more can take 7 of the 143 degrees of freedom of the rest, and some luck.
    assert np.mean(truth) == pytest.approx(0.8, abs=0.01)
    assert (found > np.array(truth) - 1e-6).mean() > 0.99
    assert np.mean(found - truth) < 0.2 * 2 * 7 / 143


@pytest.fixture(scope="module")
def noise():
    """Fits of 1,000 heavy-tailed fields without structure and of their null, and the processor time they took."""
    fields = np.random.default_rng(0).laplace(size=(1000, 12, 12, 1)).astype(np.float32)
    start = time.process_time()
    fits = fit_fields(fields)
    return fits, fit_fields(shuffled(fields, 1)), time.process_time() - start


def test_noise_exceeds_the_thresholds_as_often_as_the_level_says(noise):
    fits, null, _ = noise
    level = 0.05
    measures = {m.name: m for m in score_fields(fits, null, level).measures}
    # Two samples of 1,000: three errors of their difference. Shuffled noise is noise.
    bound = 3 * np.sqrt(level * (1 - level) * (1 / 1000 + 1 / 1000))
    for name, fit in (("gabor", fits.gabor), ("centre_surround", fits.centre_surround)):
        threshold = measures[f"{name}.threshold"].value
        assert np.mean(fit.explained > threshold) == pytest.approx(level, abs=bound)
        assert measures[f"{name}.above_null"].value <= level + bound  # those the other does not explain better
        assert measures[f"{name}.above"].value == 0
        assert 0.05 < threshold < 0.5


def test_noise_is_explained_by_what_its_parameters_can_take(noise):
    fits, _, _ = noise
    # More than linear parameters would, 7 of 143 degrees of freedom, and 4 of 143: places and widths are searched for.
    assert 7 / 143 < fits.gabor.explained.mean() < 0.25
    assert 4 / 143 < fits.centre_surround.explained.mean() < fits.gabor.explained.mean()


def test_a_thousand_fields_take_seconds(noise):
    # Two thousand fits of both functions: 10 s of one core of an AMD EPYC.
    assert noise[2] < 40


def test_structure_is_told_from_noise_and_one_kind_from_the_other():
    made = some_gabors(40, 12, 12, 1) | {"orientation": np.full(40, 37.0), "frequency": np.full(40, 0.17)}
    made |= {"width": np.full(40, 2.2), "length": np.full(40, 2.5)}
    fields = np.concatenate(
        [
            gabor(12, 12, **made),
            centre_surround(12, 12, **some_centre_surrounds(30, 12, 12, 1)),
            np.random.default_rng(0).normal(size=(20, 12, 12, 1)),
            np.zeros((10, 12, 12, 1)),
        ]
    )
    result = score_fields(fit_fields(fields), fit_fields(shuffled(fields, 0)))
    measures = {m.name: m for m in result.measures}
    assert (measures["gabor.above"].value, measures["centre_surround.above"].value) == (0.4, 0.3)
    assert measures["gabor.above"].n == 100
    assert measures["gabor.above"].se == pytest.approx(np.sqrt(0.4 * 0.6 / 100))
    assert 0.3 <= measures["centre_surround.above_null"].value < 0.35
    counts = np.array(result.arrays["gabor_orientations"])
    assert counts[np.searchsorted(ORIENTATION_EDGES, 37) - 1] == counts.sum() == 40
    counts = np.array(result.arrays["gabor_frequencies"])
    assert counts[np.searchsorted(FREQUENCY_EDGES, 0.17) - 1] == counts.sum() == 40
    assert len(result.arrays["gabor_explained"]) == len(result.arrays["centre_surround_explained_null"]) == 100


def test_the_stricter_threshold_counts():
    fields = gabor(12, 12, **some_gabors(60, 12, 12, 1))
    rng = np.random.default_rng(0)
    fields = fields / fields.std((1, 2, 3), keepdims=True) + rng.normal(size=fields.shape)  # half is noise
    fits, null = fit_fields(fields), fit_fields(shuffled(fields, 0))
    low, high = ({m.name: m.value for m in score_fields(fits, null, explained=e).measures} for e in (0.01, 0.9))
    assert low["gabor.above"] == low["gabor.above_null"] == high["gabor.above_null"] > 0.8
    assert high["gabor.above"] == 0


def test_flat_fields_have_nothing_to_explain_and_disturb_nobody():
    fields = gabor(12, 12, **some_gabors(4, 12, 12, 3)).astype(np.float32)
    fields[1] = 0
    fields[2] = np.float32([0.1, -3.7, 1e-3])  # a colour of its own
    fits = fit_fields(fields)
    assert fits.flat.tolist() == [False, True, True, False]
    alone = fit_fields(fields[[0, 3]])
    for fit, other in ((fits.gabor, alone.gabor), (fits.centre_surround, alone.centre_surround)):
        assert fit.explained[[1, 2]].tolist() == [0, 0]
        assert np.isnan(fit.x[[1, 2]]).all()
        assert np.isnan(fit.amplitude[[1, 2]]).all()
        np.testing.assert_allclose(fit.explained[[0, 3]], other.explained, rtol=1e-6)
    measures = {m.name: m.value for m in score_fields(fits, fits, explained=0.9).measures}
    assert measures["gabor.above_null"] + measures["centre_surround.above_null"] <= 0.5


@pytest.mark.parametrize("factor", [1e-30, -1.0, 1e30])
def test_the_share_explained_has_no_units(factor):
    fields = np.random.default_rng(4).normal(size=(10, 8, 8, 2))
    one, other = fit_fields(fields), fit_fields(factor * fields)
    # The same numbers but for the rounding of one product.
    np.testing.assert_allclose(other.gabor.explained, one.gabor.explained, rtol=1e-6)
    np.testing.assert_allclose(other.centre_surround.explained, one.centre_surround.explained, rtol=1e-6)
    np.testing.assert_allclose(other.centre_surround.amplitude, factor * one.centre_surround.amplitude, rtol=1e-3)


def test_the_same_fields_give_the_same_fits():
    fields = np.random.default_rng(5).normal(size=(20, 8, 8, 1))
    one, other, reverse = fit_fields(fields), fit_fields(fields.copy()), fit_fields(fields[::-1])
    for kind in ("gabor", "centre_surround"):
        for name, values in dataclasses.asdict(getattr(one, kind)).items():
            np.testing.assert_array_equal(values, getattr(getattr(other, kind), name))
        # Their order enters by the rounding of one float32 product.
        there = getattr(reverse, kind).explained[::-1]
        np.testing.assert_allclose(there, getattr(one, kind).explained, rtol=1e-6)


def test_shuffling_keeps_the_pixels_of_each_field_and_nothing_of_their_places():
    fields = np.random.default_rng(6).normal(size=(5, 6, 7, 3))
    got, same, other = shuffled(fields, 0), shuffled(fields, 0), shuffled(fields, 1)
    np.testing.assert_array_equal(got, same)
    assert (got != other).any((1, 2, 3)).all()
    for a, b in zip(fields.reshape(5, 42, 3), got.reshape(5, 42, 3), strict=True):
        # The channels of a pixel stay together.
        np.testing.assert_array_equal(a[np.lexsort(a.T)], b[np.lexsort(b.T)])
        assert (a != b).any(1).mean() > 0.8
    places = shuffled(np.tile(np.arange(42.0).reshape(1, 6, 7, 1), (5, 1, 1, 1)), 0).reshape(5, 42)
    assert len({tuple(p) for p in places}) == 5  # each field its own order


def test_rephasing_keeps_the_spectrum_of_each_field_and_of_its_channels_together():
    fields = np.random.default_rng(6).normal(size=(5, 6, 7, 3))
    got, same, other = rephased(fields, 0), rephased(fields, 0), rephased(fields, 1)
    np.testing.assert_array_equal(got, same)
    assert (got != other).any((1, 2, 3)).all()
    before, after = (np.fft.fft2(f, axes=(1, 2)) for f in (fields, got))
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=1e-12)
    # One turn of each frequency, whatever the channel.
    np.testing.assert_allclose(after[..., 1] * before[..., 0], after[..., 0] * before[..., 1], atol=1e-10)
    turns = np.angle(after / before)[..., 0].reshape(5, 42)
    assert np.abs(np.exp(1j * turns).mean(0)).max() < 1  # each field its own


def test_smooth_noise_exceeds_the_null_of_shuffled_pixels_but_not_that_of_its_own_smoothness():
    rng = np.random.default_rng(7)
    pixels = np.fft.fftfreq(12)
    # White noise smoothed by a Gaussian of two pixels, edges joined.
    smooth = np.exp(-2 * (2 * np.pi) ** 2 * (pixels[:, None] ** 2 + pixels**2))
    fields = np.fft.ifft2(np.fft.fft2(rng.normal(size=(400, 12, 12))) * smooth).real[..., None]
    fits = fit_fields(fields)
    easy, strict = (
        {m.name: m.value for m in score_fields(fits, fit_fields(null(fields, 0))).measures}
        for null in (shuffled, rephased)
    )
    assert easy["gabor.above"] == pytest.approx(0.86, abs=0.05)  # as its docstring says
    # Three errors of the difference of two samples of 400 at the level of 5%.
    bound = 3 * np.sqrt(0.05 * 0.95 * 2 / 400)
    for kind, fit in (("gabor", fits.gabor), ("centre_surround", fits.centre_surround)):
        assert np.mean(fit.explained > strict[f"{kind}.threshold"]) == pytest.approx(0.05, abs=bound)


def test_gabors_exceed_the_null_of_their_own_frequencies():
    fields = gabor(12, 12, **some_gabors(100, 12, 12, 1))
    measures = {m.name: m.value for m in score_fields(fit_fields(fields), fit_fields(rephased(fields, 0))).measures}
    assert measures["gabor.threshold"] < 0.97
    assert measures["gabor.above"] > 0.99


def test_a_pattern_that_neither_function_has_is_neither():
    rows, columns = np.mgrid[:12, :12]
    checks = (np.where((rows // 3 + columns // 3) % 2, 1.0, -1.0) + np.zeros((1, 12, 12)))[..., None]
    fits = fit_fields(checks)
    assert fits.gabor.explained[0] < 0.5
    assert fits.centre_surround.explained[0] < 0.3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (np.zeros((3, 12, 12)), r"^fields: expected \[n, h, w, c\] with n >= 1, h and w >= 4, got \[3, 12, 12\]$"),
        (np.zeros((0, 12, 12, 1)), r"^fields: expected .* got \[0, 12, 12, 1\]$"),
        (np.zeros((3, 12, 3, 1)), r"^fields: expected .* got \[3, 12, 3, 1\]$"),
        (np.stack([np.zeros((5, 5, 1)), np.full((5, 5, 1), np.nan)]), r"^fields: 1 of 2 hold a NaN or infinity$"),
    ],
)
def test_what_are_no_fields_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        fit_fields(fields)


def test_impossible_thresholds_are_refused():
    fits = fit_fields(np.zeros((2, 5, 5, 1)))
    with pytest.raises(ValueError, match=r"^level: must be in \(0, 1\), got 0$"):
        score_fields(fits, fits, level=0)
    with pytest.raises(ValueError, match=r"^explained: must be in \(0, 1\), got 1$"):
        score_fields(fits, fits, explained=1)
