"""What the arms compute and the bytes that they are said to read; never their times."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from sparsity.bench import latency
from sparsity.bench.latency import GreedySteps, MLPs, Way, active_units, layers_that_fit, slopes
from sparsity.layers.inference import Dense, DenseMask, GatherOut, LowRank, QuantizedSearch, Threshold
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import Context
from sparsity.models.t5 import T5Config
from sparsity.ops.sparsifiers import Relu, ShiftedRelu, TopK

D, F, K, C = 16, 64, 4, 12
CONFIG = T5Config(mlp=MLPConfig(F, Relu(), use_bias=False), d_model=D, layers=1, decoder_layers=2, heads=2, head_dim=4)


@pytest.fixture(scope="module")
def mlps():
    return MLPs(D, F, smoke=True)


def test_every_way_computes_what_numpy_does(mlps):
    x = np.asarray(mlps.inputs[0], np.float64)[0, 0]
    normalised = lambda x: x / np.sqrt((x**2).mean() + 1e-6)

    def expected(phi):
        y = x
        for p in mlps.params:
            y = normalised(y + phi(y @ p["wi"]["kernel"].astype(np.float64)) @ p["wo"]["kernel"])
        return y

    relu = expected(lambda z: np.maximum(z, 0))
    top_k = expected(lambda z: np.where(z >= np.sort(z)[-K], np.maximum(z, 0), 0))
    ways = {
        "dense": (Way(Relu(), Dense()), relu),
        "gather_out": (Way(TopK(K), GatherOut()), top_k),
        "low_rank": (Way(TopK(K), LowRank(rank=D, candidates=C)), top_k),
        "dense_mask": (Way(TopK(K), DenseMask()), top_k),
    }
    for name, (way, y) in ways.items():
        run, _, quality = mlps.run(way)
        np.testing.assert_allclose(run()[0, 0], y, rtol=1e-5, atol=1e-5, err_msg=name)
        assert not np.allclose(run()[0, 0], y), "the next input is another"
        assert quality["recall"] == 1
    for axes in (("df", "fd"), ("df", "df"), ("fd", "fd")):
        np.testing.assert_allclose(mlps.dense(*axes)[0]()[0, 0], relu, rtol=1e-5, atol=1e-5)


def test_bytes_are_those_of_the_rows_that_are_read(mlps):
    reads = lambda way: mlps.run(way)[1] / mlps.layers
    assert reads(Way(Relu(), Dense())) == 4 * 2 * D * F
    assert reads(Way(TopK(K), GatherOut())) == 4 * D * (F + K)
    assert reads(Way(TopK(K), LowRank(rank=3, candidates=C))) == 4 * (3 * (D + F) + D * (C + K))
    assert reads(Way(TopK(K), QuantizedSearch(candidates=C))) == F * (D + 8) + 4 * D * (C + K)
    sparse = ShiftedRelu(sparsity=1 - K / F, q=1.0)
    assert reads(Way(sparse, Threshold(capacity=8))) == pytest.approx(4 * D * (F + K))
    assert reads(Way(sparse, Threshold(capacity=2))) == 4 * 2 * D * F  # more are active: the product is dense
    assert active_units(TopK(K), F) == K


def test_no_cache_holds_what_an_arm_goes_through(monkeypatch):
    assert latency.WORKING_SET >= 3 * 105 << 20  # of the largest caches at hand
    monkeypatch.setattr(latency, "WORKING_SET", 5 * 8 * D * F - 1)
    assert MLPs(D, F).layers == 5
    assert len(MLPs(D, F).params) == 5


@pytest.fixture(scope="module")
def steps():
    ways = {"dense": Way(Relu(), Dense()), "top_k": Way(TopK(K), GatherOut())}
    steps = GreedySteps(CONFIG, 40, 6, (2, 4), ways)
    return steps, steps.arms()


def test_the_longer_arm_says_more_of_the_same(steps):
    steps, arms = steps
    assert arms.keys() == {"dense, 2", "dense, 4", "top_k, 2", "top_k, 4"}
    said = {name: np.asarray(run()) for name, run in arms.items()}
    for name, (longer, shorter) in steps.slopes.items():
        assert said[longer].shape == (1, 4)
        np.testing.assert_array_equal(said[longer][:, :2], said[shorter], err_msg=name)
    assert slopes(["a"], (32, 160)) == {"a": ("a, 160", "a, 32")}


def test_bytes_of_a_step_are_attention_mlps_and_the_vocabulary(steps):
    moved = steps[0].moved()
    inner, more = 8, 2
    attention = 4 * D * inner + 2 * D * inner + 2 * 6 * inner  # self; cross query and out; the inputs' keys and values
    assert moved["dense"] == more * 4 * (2 * (attention + 2 * D * F) + D * 40)
    assert moved["top_k"] == more * 4 * (2 * (attention + D * (F + K)) + D * 40)


def test_a_decoder_has_as_many_layers_as_memory_holds(monkeypatch):
    deep = dataclasses.replace(CONFIG, decoder_layers=24)
    params = jax.eval_shape(lambda: deep.build(40).init(jax.random.key(0), *(np.zeros((1, 1), int),) * 4, Context()))
    size = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    tree = params["params"]
    norms = 24 * 3 * D + 2 * 32 * 2 + D  # and the distances' biases, which nobody counts
    one, rest = (size(tree["decoder"]) - norms) / 24, size(tree["encoder"]) + size(tree["embedding"])
    for layers, found in ((0.5, 1), (7.5, 7), (30, 24)):
        needs = 4 * 2 * (layers * one + rest)
        monkeypatch.setattr(latency, "memory", lambda needs=needs: needs / latency.MEMORY)
        assert layers_that_fit(deep, 40, 1) == found
    mlp = 2 * D * F
    monkeypatch.setattr(latency, "memory", lambda: 4 * (7.5 * (one + 9 * mlp) + rest) / latency.MEMORY)
    assert layers_that_fit(deep, 40, 9) == 7
    monkeypatch.undo()
    assert latency.memory() > 1 << 28
    assert jax.default_backend() == "cpu"
