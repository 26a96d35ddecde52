"""Batches as a pure function of (seed, step).

Training: examples are shuffled anew each epoch by (seed, epoch) and dealt to steps in order,
so batch `s` needs nothing but `s`: resuming needs only the step, and the order does not depend
on how many processes read. The order is numpy's: a cached permutation an epoch, where grain's own
shuffle takes up to milliseconds an example of a small split. Of splits too large for that the order
is grain's, which takes microseconds then, and no memory. grain reads ahead, in threads.
Evaluation: in index order, the last batch padded and masked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Protocol

import grain
import jax
import numpy as np
from grain.experimental import index_shuffle

Batch = dict[str, np.ndarray]

_PERMUTED = 1 << 25  # examples of a split whose order is held in memory, at most: 256 MiB an epoch
_ROUNDS = 4  # of grain's shuffle: its own number


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split, in memory.

    Attributes:
      images: [n, height, width, channels], float32 in the source's units [0, 1].
      labels: [n], int32; None where the data has none: then neither have its batches.
    """

    images: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Split({self.images.shape}, {None if self.labels is None else int(self.labels.sum())})"

    def __getitem__(self, i) -> Batch:
        return self.take(i)

    def take(self, indices) -> Batch:
        """One example, or those of an array of indices, stacked."""
        return example_of(self.images[indices], None if self.labels is None else self.labels[indices])

    def arrays(self) -> Batch:
        """All examples, stacked."""
        return example_of(self.images, self.labels)


def example_of(images: np.ndarray, labels: np.ndarray | None) -> Batch:
    """One example, or many stacked, by name; without labels there is no `label`."""
    return {"image": images} if labels is None else {"image": images, "label": labels}


@dataclasses.dataclass(frozen=True)
class Windows:
    """Examples of one split of a text: windows of it, cut out as they are asked for.

    Attributes:
      text: [N], integers.
      positions: [n], where the windows start.
      length: tokens L of an example; a window has one more, the last one's target.
    """

    text: np.ndarray
    positions: np.ndarray
    length: int

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return f"Windows({len(self)}, {self.length}, {int(self.positions.sum())})"

    def __getitem__(self, i) -> Batch:
        return self.take(i)

    def take(self, indices) -> Batch:
        """One example, or those of an array of indices, stacked: `tokens` [..., L] and `targets`, those one later."""
        window = self.text[self.positions[indices][..., None] + np.arange(self.length + 1)].astype(np.int32)
        return {"tokens": window[..., :-1], "targets": window[..., 1:]}

    def arrays(self) -> Batch:
        """All examples, stacked."""
        return self.take(slice(None))


class Source(Protocol):
    """A dataset: settings that load to splits.

    Attributes:
      classes: what a label or a token may be, in 0..classes - 1; None where there are neither.
      inputs: shape and dtype of what one example offers a model to read, by name.
      augments: `augment` changes examples; otherwise batches are cut out whole, a hundred times as fast.
    """

    classes: int | None
    inputs: Mapping[str, jax.ShapeDtypeStruct]
    augments: bool

    def load(self, split: str) -> Split | Windows:
        """The named split: train, validation or test."""

    def model_input(self, arrays: Batch) -> Batch:
        """An example, or many stacked, from the source's units to the model's."""

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """A training example, randomly changed by `rng` alone."""

    def mock(self) -> Source:
        """A source of the same shapes and classes that needs no files: what `--smoke` trains on."""


class ImageSource:
    """What sources of images share.

    A subclass has `image_shape` (height, width, channels) and `normalise`, from [0, 1] to the model's input.
    """

    image_shape: tuple[int, int, int]
    augments: bool = False

    @property
    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """`image` [height, width, channels], float32."""
        return {"image": jax.ShapeDtypeStruct(self.image_shape, np.float32)}

    def model_input(self, arrays: Batch) -> Batch:
        """The images normalised, the rest as it is."""
        return arrays | {"image": self.normalise(arrays["image"])}

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """The example as it is."""
        return example


class TextSource:
    """What sources of text share. A subclass has `length`, the tokens of an example, and `classes`."""

    length: int
    augments: bool = False

    @property
    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """`tokens` [length], int32."""
        return {"tokens": jax.ShapeDtypeStruct((self.length,), np.int32)}

    def model_input(self, arrays: Batch) -> Batch:
        """The tokens as they are."""
        return arrays

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """The example as it is."""
        return example


def train_batches(
    source: Source,
    batch: int,
    seed: int,
    start: int,
    *,
    process: int | None = None,
    processes: int | None = None,
    threads: int = 2,
) -> Iterator[Batch]:
    """Training batches from step `start` on, for ever; this process's share of each.

    Raises:
      ValueError: a batch that the number of processes does not divide, or an empty split.
    """
    process = jax.process_index() if process is None else process
    processes = jax.process_count() if processes is None else processes
    if batch % processes:
        raise ValueError(f"batch: {batch} is not divisible by {processes} processes")
    split, share = source.load("train"), batch // processes
    if not len(split):
        raise ValueError(f"data: the train split of {source!r} is empty")

    def of_step(step: int) -> Batch:
        first = step * batch + process * share
        indices = shuffled(len(split), seed, np.arange(first, first + share))
        if not source.augments:
            return source.model_input(split.take(indices))
        examples = (source.augment(split[i], _generator(seed, first + p)) for p, i in enumerate(indices))
        prepared = [source.model_input(example) for example in examples]
        return {name: np.stack([example[name] for example in prepared]) for name in prepared[0]}

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * max(threads, 1))
    return iter(grain.MapDataset.range(start, np.iinfo(np.int32).max).map(of_step).to_iter_dataset(options))


def shuffled(n: int, seed: int, positions: np.ndarray) -> np.ndarray:
    """Which of `n` examples are read at `positions`, counted from the start of training: every epoch has its own order.

    >>> np.sort(shuffled(4, 0, np.arange(4))), np.sort(shuffled(4, 0, np.arange(4, 8)))
    (array([0, 1, 2, 3]), array([0, 1, 2, 3]))
    """
    epochs = positions // n
    chosen = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        if n <= _PERMUTED:
            chosen[here] = _order(n, seed, int(epoch))[positions[here] % n]
        else:
            key = int(np.random.SeedSequence((seed, int(epoch))).generate_state(1)[0])
            order = functools.partial(index_shuffle, max_index=n - 1, seed=key, rounds=_ROUNDS)
            chosen[here] = [order(int(i)) for i in positions[here] % n]
    return chosen


@functools.lru_cache(maxsize=4)  # neighbouring batches share an epoch
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)


def _generator(seed: int, position: int) -> np.random.Generator:
    """Of what `augment` does to the example read at `position`."""
    return np.random.default_rng((seed, position, 1))


def eval_batches(arrays: Batch, batch: int) -> Iterator[Batch]:
    """All examples once, in order; the last batch padded with zeros and `weight` 0.

    `arrays` are stacked examples as the model reads them. Every batch has the same shape, so one program serves.
    """
    n = len(next(iter(arrays.values())))
    whole = arrays | {"weight": np.ones(n, np.float32)}
    for start in range(0, n, batch):
        part = {key: x[start : start + batch] for key, x in whole.items()}
        missing = batch - len(part["weight"])
        yield {key: np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)]) for key, x in part.items()}
