import numpy as np
import pytest
from scipy import stats

from sparsity.config import ConfigError
from sparsity.data.corruptions import CORRUPTIONS, SEVERITIES, constants, corrupt

# The constants of Hendrycks & Dietterich's make_imagenet_c.py, make_tinyimagenet_c.py, make_cifar_c.py.
PUBLISHED = {
    ("cifar_c", "gaussian"): (0.04, 0.06, 0.08, 0.09, 0.10),
    ("cifar_c", "shot"): (500, 250, 100, 75, 50),
    ("cifar_c", "impulse"): (0.01, 0.02, 0.03, 0.05, 0.07),
    ("tiny_imagenet_c", "gaussian"): (0.04, 0.08, 0.12, 0.15, 0.18),
    ("tiny_imagenet_c", "shot"): (250, 100, 50, 30, 15),
    ("tiny_imagenet_c", "impulse"): (0.01, 0.02, 0.05, 0.08, 0.14),
    ("imagenet_c", "gaussian"): (0.08, 0.12, 0.18, 0.26, 0.38),
    ("imagenet_c", "shot"): (60, 25, 12, 5, 3),
    ("imagenet_c", "impulse"): (0.03, 0.06, 0.09, 0.17, 0.27),
}
LEVELS = ("cifar_c", "tiny_imagenet_c", "imagenet_c")
GREY = 0.4
IMAGES = np.full((100, 40, 50, 1), GREY, np.float32)  # 200,000 values
X = float(IMAGES[0, 0, 0, 0])

every_severity = pytest.mark.parametrize("severity", SEVERITIES)
every_level = pytest.mark.parametrize("level", LEVELS)


def noisy(name, severity, level, seed=0):
    return corrupt(IMAGES, name, severity, seed, level).ravel().astype(np.float64)


def assert_mean(sample, expected, deviation):
    """The sample's mean lies within five standard errors of the expected one."""
    assert abs(sample.mean() - expected) < 5 * deviation / np.sqrt(sample.size) + 1e-7


@pytest.mark.parametrize(("level", "name"), PUBLISHED)
def test_the_constants_are_the_published_ones(level, name):
    assert constants(name, level, 8) == PUBLISHED[level, name]


def test_the_constants_table_has_every_noise_and_five_severities_that_grow_worse():
    assert {name for _, name in PUBLISHED} == set(CORRUPTIONS)
    assert SEVERITIES == (1, 2, 3, 4, 5)
    for (_, name), values in PUBLISHED.items():
        assert len(values) == 5
        assert (np.diff(values) * (-1 if name == "shot" else 1) > 0).all()


@pytest.mark.parametrize(
    ("pixels", "level"),
    [(8, "cifar_c"), (32, "cifar_c"), (33, "tiny_imagenet_c"), (64, "tiny_imagenet_c"), (65, "imagenet_c")],
)
def test_auto_takes_the_benchmark_whose_resolution_covers_the_image(pixels, level):
    assert constants("gaussian", "auto", pixels) == PUBLISHED[level, "gaussian"]
    images = np.full((2, 4, pixels, 1), GREY, np.float32)
    np.testing.assert_array_equal(corrupt(images, "shot", 3, 0), corrupt(images, "shot", 3, 0, level))


@every_level
@every_severity
def test_gaussian_noise_has_the_mean_and_second_moment_of_a_clipped_gaussian(severity, level):
    c = PUBLISHED[level, "gaussian"][severity - 1]
    sample = noisy("gaussian", severity, level)
    law = stats.norm(X, c)
    # E f(clip(Z)) = f(0) P(Z<0) + E[f(Z); 0<Z<1] + f(1) P(Z>1), from truncated moments.
    inside = stats.truncnorm(-X / c, (1 - X) / c, X, c)
    share = law.cdf(1) - law.cdf(0)
    mean = share * inside.mean() + law.sf(1)
    second = share * (inside.var() + inside.mean() ** 2) + law.sf(1)
    assert_mean(sample, mean, sample.std())
    assert_mean(sample**2, second, (sample**2).std())
    assert_mean(sample == 0, law.cdf(0), np.sqrt(law.cdf(0)))
    assert_mean(sample == 1, law.sf(1), np.sqrt(law.sf(1)))


@every_level
@every_severity
def test_shot_noise_is_a_poisson_count_over_its_constant_clipped_at_white(severity, level):
    c = PUBLISHED[level, "shot"][severity - 1]
    sample = noisy("shot", severity, level)
    counts = np.arange(c + 200)
    probability = stats.poisson(X * c).pmf(counts)
    values = np.minimum(counts / c, 1)
    mean, second = probability @ values, probability @ values**2
    assert_mean(sample, mean, np.sqrt(second - mean**2))
    assert_mean(sample**2, second, np.sqrt(probability @ values**4 - second**2))
    # Whole counts, to float32.
    np.testing.assert_allclose(sample * c, np.round(sample * c), atol=1e-4)


@every_level
@every_severity
def test_impulse_noise_replaces_its_share_by_black_or_white_with_equal_odds(severity, level):
    c = PUBLISHED[level, "impulse"][severity - 1]
    sample = noisy("impulse", severity, level)
    assert set(np.unique(sample)) == {0.0, X, 1.0}
    deviation = np.sqrt(c / 2 * (1 - c / 2))
    assert_mean(sample == 0, c / 2, deviation)
    assert_mean(sample == 1, c / 2, deviation)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_noise_is_independent_from_value_to_value(name):
    image = corrupt(IMAGES, name, 3, 0, "imagenet_c")[..., 0].astype(np.float64)
    for a, b in ((image[:-1], image[1:]), (image[:, :-1], image[:, 1:]), (image[..., :-1], image[..., 1:])):
        # A correlation of independent values has standard error 1 / sqrt(n).
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_channel_has_noise_of_its_own(name):
    image = corrupt(np.full((10, 64, 64, 3), GREY, np.float32), name, 5, 0, "imagenet_c")
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (image[..., a] != image[..., b]).mean() > 0.3


def test_two_channels_that_are_both_hit_by_impulses_take_black_or_white_independently():
    image = corrupt(np.full((10, 64, 64, 2), GREY, np.float32), "impulse", 5, 0, "imagenet_c")
    hit = image[(image != X).all(-1)]
    assert len(hit) > 2000  # 27% of 27% of 40,960
    # Equal with probability one half: five standard errors.
    assert abs((hit[:, 0] == hit[:, 1]).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(hit))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_noise_is_a_function_of_the_seed_the_name_and_the_severity(name):
    np.testing.assert_array_equal(noisy(name, 2, "imagenet_c"), noisy(name, 2, "imagenet_c"))
    assert (noisy(name, 2, "imagenet_c", seed=1) != noisy(name, 2, "imagenet_c", seed=0)).any()


def test_two_severities_do_not_share_their_random_numbers():
    weak, strong = (noisy("gaussian", s, "cifar_c") - X for s in (1, 5))
    assert abs(np.corrcoef(weak, strong)[0, 1]) < 5 / np.sqrt(weak.size)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_results_are_float32_in_the_unit_interval_and_the_input_is_left_alone(name):
    images = np.random.default_rng(0).random((4, 8, 8, 3)).astype(np.float32)
    before = images.copy()
    got = corrupt(images, name, 5, 0, "imagenet_c")
    assert (got.shape, got.dtype) == (images.shape, np.float32)
    assert 0 <= got.min() <= got.max() <= 1
    assert (got != images).any()
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_a_severity_outside_1_to_5_is_refused(severity):
    with pytest.raises(ValueError, match=rf"^severity: must be in 1\.\.5, got {severity}$"):
        corrupt(IMAGES[:1], "gaussian", severity, 0)


def test_unknown_noises_and_levels_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match='unknown corruption "gausian"; did you mean "gaussian"'):
        corrupt(IMAGES[:1], "gausian", 1, 0)
    with pytest.raises(ConfigError, match='unknown corruption level "imagenet"; did you mean "imagenet_c"'):
        corrupt(IMAGES[:1], "gaussian", 1, 0, "imagenet")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_with_their_numbers_images_have_the_same_noise_whatever_they_are_given_with(name):
    images = np.full((6, 8, 8, 3), GREY, np.float32)
    together = corrupt(images, name, 5, 0, "imagenet_c", np.arange(6))
    few = corrupt(images[:2], name, 5, 0, "imagenet_c", np.array([4, 1]))
    np.testing.assert_array_equal(few, together[[4, 1]])
    assert len({image.tobytes() for image in together}) == 6
    assert (corrupt(images, name, 5, 1, "imagenet_c", np.arange(6)) != together).any()
    large = np.full((40, 40, 50, 1), GREY, np.float32)
    numbered, plain = (corrupt(large, name, 3, 0, "imagenet_c", n).astype(float) for n in (np.arange(40), None))
    # The same law: five standard errors of the difference of two means and of two mean squares.
    for power in (1, 2):
        a, b = numbered.ravel() ** power, plain.ravel() ** power
        assert abs(a.mean() - b.mean()) < 5 * (2 * b.var() / b.size) ** 0.5
