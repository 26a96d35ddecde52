import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sparsity.decode.sampling import Sampling, nucleus

RNG = np.random.default_rng(0)
LOGITS = RNG.permutation(np.linspace(0, 2, 12)).astype(np.float32)
DRAWS = 4096
nucleus_of = jax.jit(nucleus)


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64))
    return weights / weights.sum()


def by_sorting(p, top_p):
    """The set of the definition, one entry after the other, with all that are as probable as its last."""
    order = np.argsort(-p)
    last = order[np.searchsorted(np.cumsum(p[order]), top_p)]
    return p >= p[last]


@functools.cache
def sampler(**settings):
    return jax.jit(Sampling(**settings).__call__)


def draws(seed=0, rows=None, place=3, **settings):
    rows = np.arange(DRAWS) if rows is None else np.asarray(rows)
    logits = np.broadcast_to(LOGITS, (len(rows), len(LOGITS)))
    return np.asarray(sampler(**settings)(logits, np.uint32(seed), rows, np.int32(place)))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_are_as_frequent_as_softmax_says(temperature):
    found = np.bincount(draws(temperature=temperature), minlength=len(LOGITS))
    expected = DRAWS * softmax(LOGITS / temperature)
    assert expected.min() > 5
    assert stats.chisquare(found, expected).pvalue > 0.01


def test_a_nucleus_is_drawn_from_as_if_there_were_nothing_else():
    p = softmax(LOGITS)
    inside = by_sorting(p, 0.7)
    assert 2 < inside.sum() < 8
    found = np.bincount(draws(top_p=0.7), minlength=len(LOGITS))
    assert not found[~inside].any()
    assert stats.chisquare(found[inside], DRAWS * p[inside] / p[inside].sum()).pvalue > 0.01


def test_at_the_smallest_temperature_it_is_the_likeliest():
    assert (draws(rows=np.arange(64), temperature=1e-39, top_p=0.9) == LOGITS.argmax()).all()


def test_a_draw_is_a_function_of_seed_row_and_place():
    rows = [5, 900, 2]
    np.testing.assert_array_equal(draws()[rows], draws(rows=[*rows, 7])[:3])
    for other in ({"seed": 1}, {"place": 4}, {"rows": np.arange(DRAWS) + DRAWS}):
        # Independent draws agree as often as two of softmax do; five standard errors.
        agree, p = (draws() == draws(**other)).mean(), (softmax(LOGITS) ** 2).sum()
        assert abs(agree - p) < 5 * (p * (1 - p) / DRAWS) ** 0.5


def test_the_nucleus_by_hand():
    p = jnp.array([[0.05, 0.5, 0.1, 0.25, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2], [0.0, 0.0, 1.0, 0.0, 0.0]])
    expected = {
        0.4: [[0, 1, 0, 0, 0], [1] * 5, [0, 0, 1, 0, 0]],
        0.7: [[0, 1, 0, 1, 0], [1] * 5, [0, 0, 1, 0, 0]],
        0.76: [[0, 1, 1, 1, 1], [1] * 5, [0, 0, 1, 0, 0]],  # of two as probable both are in
        0.97: [[1, 1, 1, 1, 1], [1] * 5, [0, 0, 1, 0, 0]],
    }
    for top_p, kept in expected.items():
        np.testing.assert_array_equal(nucleus_of(p, top_p), np.array(kept, bool), err_msg=str(top_p))


def test_the_nucleus_is_that_of_sorting_and_nothing_is_sorted():
    p = np.stack([softmax(RNG.normal(0, scale, 500)) for scale in (0.1, 1, 3, 10)]).astype(np.float32)
    for top_p in (0.3, 0.9, 0.999):
        expected = [by_sorting(row.astype(np.float64), top_p) for row in p]
        np.testing.assert_array_equal(nucleus_of(p, top_p), expected)
    text = sampler(top_p=0.7).lower(p, np.uint32(0), np.arange(4), np.int32(0)).as_text()
    assert not re.search(r"\b(stablehlo|chlo)\.(sort|top_k)", text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"temperature": 0.0}, "temperature: must be positive"), ({"top_p": 0.0}, r"top_p: must be in \(0, 1\], got 0")],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)
