"""Small fake subjects, so that an evaluator meets logits and statistics that were made by hand."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.data.pipeline import ImageSource, Split
from sparsity.evals.result import EvalConfig, Predictions, Subject
from sparsity.evals.sparsity import merge
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import sparsity_stats
from sparsity.models.vit import ViTConfig
from sparsity.ops.sparsifiers import Relu
from sparsity.spmd import MeshConfig, make_mesh


@dataclasses.dataclass(frozen=True)
class FakeSource(ImageSource):
    """Images of 4x4 pixels; the model's input is the image less one half."""

    classes: ClassVar[int] = 3
    image_shape: ClassVar[tuple[int, int, int]] = (4, 4, 1)

    def normalise(self, images):
        return images - np.float32(0.5)

    @property
    def std(self):
        return 1.0


@jax.jit
def relu_stats(z):
    return sparsity_stats(z, jnp.maximum(z, 0))


def stats_of(z):
    """The statistics of ReLU on pre-activations [B, L, F], merged as an evaluation merges them."""
    return merge([{"layer": relu_stats(jnp.asarray(z, jnp.float32))}])["layer"]


@pytest.fixture
def make_stats():
    return stats_of


@pytest.fixture
def check_by_example():
    """Checks that a result has these measures by example, and that the examples make what was measured of them."""

    def check(result, *names):
        values = {m.name: m.value for m in result.measures}
        assert sorted(result.by_example) == sorted(names)
        for name, found in result.by_example.items():
            counts = np.ones(len(found.values)) if found.counts is None else found.counts
            assert np.sum(found.values, dtype=np.float64) / counts.sum() == pytest.approx(values[name], rel=1e-6), name

    return check


@pytest.fixture
def make_subject():
    def make(logits=None, labels=None, stats=None, predict=None, images=None, seed=0, **config):
        logits = np.zeros((2, 3), np.float32) if logits is None else np.asarray(logits, np.float32)
        labels = np.zeros(len(logits), np.int32) if labels is None else np.asarray(labels, np.int32)
        images = np.full((len(labels), *FakeSource.image_shape), 0.5, np.float32) if images is None else images
        return Subject(
            predict=predict or (lambda arrays, noisy: Predictions(logits, arrays, None, stats or {})),
            source=FakeSource(),
            load=lambda split: Split(images, labels),
            model=ViTConfig(MLPConfig(4, Relu()), d_model=2, layers=2, heads=1, patch=2, pool="gap"),
            params={"w": np.zeros(123)},
            mesh=make_mesh(MeshConfig(1, 1), jax.devices()[:1]),
            noise=None,
            config=EvalConfig(**{"names": (), "corruptions": "imagenet_c"} | config),
            seed=seed,
        )

    return make
