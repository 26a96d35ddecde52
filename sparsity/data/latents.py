"""Latents: pooled features of a ConvMixer, the stand-in for a layer inside a network (Bricken et al. 2023, Sec. 3)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsity.config import ConfigError, later, lookup, one_of, path_of
from sparsity.data.arrays import Archive
from sparsity.data.digits import Digits
from sparsity.data.mock import Mock
from sparsity.data.pipeline import ImageSource, Split, eval_batches, train_batches
from sparsity.data.tfds_sources import CIFAR10
from sparsity.layers.sparsify import Context
from sparsity.models.convmixer import ConvMixerConfig
from sparsity.ops.sparsifiers import Gelu

RMS = 0.17  # of a coordinate of the paper's latents, whose norms are about 2.7
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Latents(ImageSource):
    """Vectors with the labels of the images they were made from, shaped [1, 1, hidden].

    A ConvMixer is trained on the training split of `of` to classify, by Adam, the first time that latents are asked
    for (seconds for digits); they are its pooled features. All are multiplied by one number, so that the root mean
    square of a coordinate of the training split is .17, the paper's: only then does a sigma mean the same. The
    training loop here is a plain one, because data stand before training in this code; a network trained elsewhere
    comes in by `file`.

    Attributes:
      of: the images, by name.
      hidden, depth, kernel, patch: of the ConvMixer, see `ConvMixerConfig`; the paper's is 256, 8, 5, 2.
      steps, batch, learning_rate: of its training.
      seed: of its training, and of the draw of `count`.
      file: an .npz with `train`, `validation`, `test` [n, hidden] and `train_label`, ... [n], instead of training.
      count: training latents, drawn from all of them without replacement; None for all.
    """

    of: Any = one_of({"digits": Digits, "cifar10": CIFAR10}, Digits(shift=0))
    hidden: int = 256
    depth: int = 2
    kernel: int = 3
    patch: int = 2
    steps: int = 300
    batch: int = 128
    learning_rate: float = 1e-3
    seed: int = 0
    file: str | None = None
    count: int | None = later(None)

    std: ClassVar[float] = RMS  # as noise sees it: about the mean, latents deviate by less

    def __post_init__(self):
        for field in ("steps", "batch"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        for field in ("learning_rate", "seed"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}: must be at least 0, got {getattr(self, field)}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count: must be at least 1 or None, got {self.count}")
        _ = self.network

    @property
    def network(self) -> ConvMixerConfig:
        """The ConvMixer."""
        return ConvMixerConfig(self.hidden, self.depth, Gelu(), self.kernel, self.patch)

    @property
    def classes(self) -> int:
        """Those of the images."""
        return self.of.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """A vector, as an image of one position."""
        return (1, 1, self.hidden)

    def load(self, split: str) -> Split:
        """Latents and labels of the named split.

        Raises:
          ConfigError: a split that does not exist, a file that is not as it should be, or fewer latents than `count`.
        """
        lookup(dict.fromkeys(SPLITS), split, "split")
        vectors, labels = _latents(dataclasses.replace(self, count=None))[split]
        if split == "train" and self.count is not None:
            if self.count > len(labels):
                raise ConfigError(f"data.count: there are {len(labels)} training latents, not {self.count}")
            chosen = np.random.default_rng(self.seed).permutation(len(labels))[: self.count]
            vectors, labels = vectors[chosen], labels[chosen]
        return Split(vectors.reshape(-1, *self.image_shape), labels)

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """As they are."""
        return images

    def mock(self) -> Mock:
        """Noise in the shape of latents."""
        return Mock(self.image_shape, self.classes)


@functools.lru_cache(maxsize=4)
def _latents(source: Latents) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split -> (vectors [n, hidden], labels [n]), scaled."""
    raw = _read(source) if source.file else _made(source)
    scale = np.float32(RMS / np.sqrt(np.mean(np.square(raw["train"][0], dtype=np.float64))))
    return {split: (vectors * scale, labels) for split, (vectors, labels) in raw.items()}


def _read(source: Latents) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    stored = Archive(path_of(source.file, "data.file"), "data.file")
    for name in (*SPLITS, *(f"{split}_label" for split in SPLITS)):
        if name not in stored.headers:
            raise ConfigError(f'data.file: {stored.path} has no array "{name}"')
    found = {}
    for split in SPLITS:
        (shape, kind), (of, labels) = stored.headers[split], stored.headers[f"{split}_label"]
        if len(of) != 1 or not of[0]:
            raise ConfigError(f'data.file: "{split}_label" of {stored.path} is {list(of)}, expected [n]')
        if shape != (*of, source.hidden):
            raise ConfigError(
                f'data.file: "{split}" of {stored.path} is {list(shape)}, expected {[*of, source.hidden]}'
            )
        if not (np.issubdtype(kind, np.floating) and np.issubdtype(labels, np.integer)):
            raise ConfigError(f'data.file: "{split}" of {stored.path} is of {kind}, and its labels of {labels}')
        vectors, label = stored.read(split).astype(np.float32), stored.read(f"{split}_label")
        if not np.isfinite(vectors).all() or not vectors.any():
            raise ConfigError(f'data.file: "{split}" of {stored.path} has numbers that are not finite, or none but 0')
        if label.min() < 0 or label.max() >= source.classes:
            raise ConfigError(f'data.file: labels of "{split}" of {stored.path} are not in 0..{source.classes - 1}')
        found[split] = vectors, label.astype(np.int32)
    return found


def _made(source: Latents) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The features of a ConvMixer trained here."""
    module = source.network.build(source.of.classes)
    tx = optax.adam(source.learning_rate)
    batches = train_batches(source.of, source.batch, source.seed, 0)
    variables = nn.meta.unbox(
        module.init(jax.random.key(source.seed), jnp.zeros((1, *source.of.image_shape)), Context())
    )
    state = (variables, tx.init(variables["params"]))

    @jax.jit
    def step(state, batch):
        variables, slots = state

        def loss(params):
            given = {"params": params, "batch_stats": variables["batch_stats"]}
            logits, new = module.apply(given, batch["image"], Context(train=True), mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), new

        grads, new = jax.grad(loss, has_aux=True)(variables["params"])
        updates, slots = tx.update(grads, slots)
        return ({"params": optax.apply_updates(variables["params"], updates), **new}, slots)

    for _ in range(source.steps):
        state = step(state, next(batches))
    embed = jax.jit(lambda variables, images: module.apply(variables, images, Context(), method="pooled"))
    out = {}
    for split in SPLITS:
        arrays = source.of.model_input(source.of.load(split).arrays())
        parts = [embed(state[0], part["image"]) for part in eval_batches(arrays, source.batch)]
        out[split] = np.concatenate([np.asarray(p) for p in parts])[: len(arrays["label"])], arrays["label"]
    return out
