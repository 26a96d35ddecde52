import math

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import sem

from sparsity.evals.accuracy import accuracy


def test_accuracy_and_loss_by_hand(make_subject):
    # Softmax of (log 2, 0, 0) is (1/2, 1/4, 1/4).
    logits = [[math.log(2), 0, 0]] * 4
    measures = {m.name: m for m in accuracy(make_subject(logits, [0, 0, 0, 1])).measures}
    assert list(measures) == ["accuracy", "nll"]
    share, nll = measures["accuracy"], measures["nll"]
    assert (share.value, share.n, share.unit) == (0.75, 4, "share")
    assert share.se == pytest.approx(math.sqrt(0.75 * 0.25 / 3), rel=1e-15)
    # Logits are float32: log 2 is rounded to 2e-8.
    assert nll.value == pytest.approx((3 * math.log(2) + math.log(4)) / 4, abs=1e-7)
    assert nll.se == pytest.approx(math.log(2) / 4, abs=1e-7)
    assert (nll.n, nll.unit) == (4, "nats")


def test_both_are_means_over_examples_of_numpys_numbers(make_subject, check_by_example):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (200, 3)).astype(np.float32), rng.integers(0, 3, 200)
    result = accuracy(make_subject(logits, labels))
    check_by_example(result, "accuracy", "nll")
    share, nll = result.measures
    correct = (logits.argmax(-1) == labels).astype(float)
    nats = -log_softmax(logits.astype(np.float64), -1)[np.arange(200), labels]
    assert (share.value, share.se) == pytest.approx((correct.mean(), sem(correct)), rel=1e-13)
    assert (nll.value, nll.se) == pytest.approx((nats.mean(), sem(nats)), rel=1e-12)
    np.testing.assert_allclose(result.by_example["nll"].values, nats, rtol=1e-12)


def test_the_definitions_name_the_split(make_subject):
    for measure in accuracy(make_subject(split="validation")).measures:
        assert "validation examples" in measure.definition


def test_nan_logits_are_wrong_and_make_the_loss_nan(make_subject):
    share, nll = accuracy(make_subject([[np.nan, 0, 0], [1, 0, 0]], [0, 0])).measures
    assert share.value == 0.5
    assert math.isnan(nll.value)
    assert str(nll) == "nan ± nan nats"
