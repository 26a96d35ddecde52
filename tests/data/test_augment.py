import numpy as np
import pytest
from PIL import Image
from scipy.stats import chisquare, kstest

from sparsity.config import ConfigError, build
from sparsity.data import augment
from sparsity.data.augment import OPERATIONS, RandAugment, inception_box, padded_crop

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(20, 220, (24, 36, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)
GREY = 128


def applied(name, s):
    return np.asarray(OPERATIONS[name](IMAGE, s))


def moved(pixels, a, b, c, d, e, f):
    """The pixel nearest to the affine map of every place, grey outside; centres of pixels are at halves."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    u, v = np.floor(a * x + b * y + c).astype(int), np.floor(d * x + e * y + f).astype(int)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return np.where(inside[..., None], pixels[np.clip(v, 0, height - 1), np.clip(u, 0, width - 1)], GREY)


def blended(of, factor):
    """of + factor (pixels - of), clipped; pillow cuts the fraction off."""
    return np.clip(of + factor * (PIXELS - of.astype(float)), 0, 255)


def test_the_operations_are_the_papers_fourteen():
    told = "identity auto_contrast equalize rotate solarize color posterize contrast brightness sharpness"
    assert list(OPERATIONS) == [*told.split(), "shear_x", "shear_y", "translate_x", "translate_y"]


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"auto_contrast", "equalize"}))
def test_without_strength_an_image_stays_as_it_is(name):
    np.testing.assert_array_equal(applied(name, 0.0), PIXELS)


@pytest.mark.parametrize("s", [-1.0, -0.4, 0.7, 1.0])
def test_shears_translations_and_rotations_move_pixels_by_their_affine_maps(s):
    angle, height, width = np.radians(30 * s), *PIXELS.shape[:2]
    cos, sin = np.cos(angle), np.sin(angle)
    # Counterclockwise about the centre: what is at p comes from R p.
    x, y = width / 2, height / 2
    maps = {
        "shear_x": (1, 0.3 * s, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * s, 1, 0),
        "translate_x": (1, 0, 150 / 331 * s * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 150 / 331 * s * height),
        "rotate": (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y),
    }
    for name, inverse in maps.items():
        same = (applied(name, s) == moved(PIXELS, *inverse)).all(-1)
        # Places that fall on the border of two pixels, or within rounding of it.
        assert same.mean() > 0.97, name


@pytest.mark.parametrize(("s", "threshold", "bits"), [(0.5, 128, 6), (-0.5, 128, 6), (1.0, 0, 4), (0.3, 179, 7)])
def test_solarize_inverts_and_posterize_keeps_bits(s, threshold, bits):
    np.testing.assert_array_equal(applied("solarize", s), np.where(threshold > PIXELS, PIXELS, 255 - PIXELS))
    np.testing.assert_array_equal(applied("posterize", s), PIXELS >> (8 - bits) << (8 - bits))


@pytest.mark.parametrize("s", [-1.0, -0.3, 0.5, 1.0])
def test_enhancements_go_from_a_degenerate_image_to_beyond_the_image(s):
    factor = 1 + 0.9 * s
    luma = (PIXELS @ np.array([0.299, 0.587, 0.114])).round()[..., None] * np.ones(3)
    smooth = PIXELS.astype(float)
    window = np.ones((3, 3)) + 4 * (np.arange(9).reshape(3, 3) == 4)
    for y in range(1, 23):
        for x in range(1, 35):
            smooth[y, x] = np.tensordot(window, PIXELS[y - 1 : y + 2, x - 1 : x + 2], 2) / 13
    degenerate = {
        "color": luma,
        "contrast": np.full(PIXELS.shape, round(luma.mean())),
        "brightness": np.zeros(PIXELS.shape),
        "sharpness": smooth,
    }
    for name, of in degenerate.items():
        # Two roundings, the first one times |1 - factor| <= 0.9.
        np.testing.assert_allclose(applied(name, s), blended(of, factor), atol=2, err_msg=name)


def test_auto_contrast_stretches_each_channel_to_the_whole_range():
    low, high = PIXELS.min((0, 1)).astype(float), PIXELS.max((0, 1)).astype(float)
    expected = (PIXELS - low) * 255 / (high - low)
    np.testing.assert_allclose(applied("auto_contrast", 1.0), expected, atol=1)
    assert applied("auto_contrast", 1.0).min() == 0


def test_equalize_maps_each_channel_by_its_cumulative_histogram():
    got = applied("equalize", 1.0)
    for c in range(3):
        below = np.searchsorted(np.sort(PIXELS[..., c].ravel()), PIXELS[..., c], "left")
        # pillow's step is a whole number of pixels: (864 less those of the brightest) / 255.
        counts = np.bincount(PIXELS[..., c].ravel())
        step = (PIXELS[..., c].size - counts[np.nonzero(counts)[0][-1]]) // 255
        np.testing.assert_array_equal(got[..., c], np.minimum((below + step // 2) // step, 255))


def test_operations_are_drawn_uniformly_with_random_signs(monkeypatch):
    seen = []
    record = {name: (lambda image, s, name=name: seen.append((name, s)) or image) for name in OPERATIONS}
    monkeypatch.setattr(augment, "OPERATIONS", record)
    change = RandAugment(layers=2, magnitude=7)
    for i in range(3000):
        change(IMAGE, np.random.default_rng(i))
    names, strengths = zip(*seen, strict=True)
    assert chisquare([names.count(name) for name in OPERATIONS]).pvalue > 1e-3
    # 6,000 signs: four standard errors of their mean are 4 / sqrt(6000).
    assert abs(np.mean(np.sign(strengths))) < 4 / 6000**0.5
    assert set(np.abs(strengths)) == {0.7}


def test_rand_augment_is_a_function_of_its_generator():
    change = RandAugment(layers=3, magnitude=10)
    images = [np.asarray(change(IMAGE, np.random.default_rng(i))) for i in (0, 0, 1, 2, 3)]
    np.testing.assert_array_equal(images[0], images[1])
    assert len({i.tobytes() for i in images}) > 2
    assert {i.shape for i in images} == {PIXELS.shape}


def test_boxes_have_the_area_the_aspect_and_the_places_that_are_stated():
    width, height = 4000, 4000  # so large that rounding does not count and that few draws do not fit
    left, top, right, bottom = np.array([inception_box(width, height, np.random.default_rng(i)) for i in range(4000)]).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width).all()
    assert (bottom <= height).all()
    w, h = right - left, bottom - top
    area, aspect = w * h / (width * height), np.log(w / h) / np.log(4 / 3)
    assert area.min() > 0.079
    assert abs(aspect).max() < 1.01
    # A square takes in every aspect up to an area of 3/4: until there both are as drawn.
    free = area < 0.7
    assert kstest((area[free] - 0.08) / 0.62, "uniform").pvalue > 1e-3
    assert kstest((aspect[free] + 1) / 2, "uniform").pvalue > 1e-3
    across, down = (left + 0.5) / (width - w + 1), (top + 0.5) / (height - h + 1)
    assert kstest(across[free], "uniform").pvalue > 1e-3
    assert kstest(down[free], "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(across[free], down[free])[0, 1]) < 4 / free.sum() ** 0.5


@pytest.mark.parametrize(
    ("size", "box"),
    # 600 x 6: the widest of aspect 4/3 is 8 x 6, in the middle; 6 x 600: 6 x 8.
    [((600, 6), (296, 0, 304, 6)), ((6, 600), (0, 296, 6, 304))],
)
def test_after_ten_draws_that_do_not_fit_the_central_part_is_taken(size, box):
    boxes = [inception_box(*size, np.random.default_rng(i)) for i in range(20)]
    assert boxes == [box] * 20


def test_a_padded_crop_has_every_shift_and_mirrors_half_of_the_time():
    image = np.arange(1, 26, dtype=np.float32).reshape(5, 5, 1)
    fill = np.float32([-1.0])
    around = np.full((9, 9, 1), -1.0, np.float32)
    around[2:7, 2:7] = image
    expected = {}
    for down in range(5):
        for right in range(5):
            cut = around[down : down + 5, right : right + 5]
            expected[cut.tobytes()], expected[cut[:, ::-1].tobytes()] = (down, right, 0), (down, right, 1)
    assert len(expected) == 50
    found = [expected[padded_crop(image, 2, fill, np.random.default_rng(i)).tobytes()] for i in range(5000)]
    counts = np.zeros((5, 5, 2))
    np.add.at(counts, tuple(np.array(found).T), 1)
    assert chisquare(counts.ravel()).pvalue > 1e-3


@pytest.mark.parametrize(("section", "message"), [({"layers": 0}, "layers: must"), ({"magnitude": 11}, "magnitude: m")])
def test_impossible_settings_are_refused(section, message):
    with pytest.raises(ConfigError, match=rf"^config\.{message}"):
        build(RandAugment, section)
