"""Batches as a pure function of (seed, step).

Training: examples are shuffled anew each epoch by (seed, epoch) and dealt to steps in order,
so batch `s` needs nothing but `s`: resuming needs only the step, and the order does not depend
on how many processes read, each its own rows of a batch. The order is numpy's: a cached permutation an epoch, where
grain's own shuffle takes up to milliseconds an example of a small split. Of splits too large for that the order
is grain's, which takes microseconds then, and no memory. grain reads ahead, in threads.
Evaluation: in index order, the last batch padded and masked; of images too many for memory a batch at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import grain
import jax
import numpy as np
from grain.experimental import index_shuffle

from sparsity.config import ConfigError

Batch = dict[str, np.ndarray]

_PERMUTED = 1 << 25  # examples of a split whose order is held in memory, at most: 256 MiB an epoch
_ROUNDS = 4  # of grain's shuffle: its own number
_LARGE = 1 << 14  # numbers of an image from which on it is worth a thread to make it
_HELD = 1 << 31  # bytes of the images of a split that evaluators read at once, at most
_AHEAD = 1 << 32  # bytes of training batches that are read ahead, about, at most


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


class Lazy:
    """Base of the splits whose images are made as they are asked for: `arrays` has those that evaluators see.

    A subclass has `take`, as `Split` has it, and its length, which is that of `labels` if it has these.

    Attributes of a subclass:
      image_shape: height, width and channels of what `take` gives.
      labels: [n], or what gives them by index.
      most: examples that evaluators see at most, from all parts of the split alike; None: all.
    """

    image_shape: tuple[int, int, int]
    labels: Any
    most: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i) -> Batch:
        return self.take(i)

    def take(self, indices) -> Batch:
        """One example, or those of an array of indices, stacked."""
        raise NotImplementedError

    def seen(self) -> np.ndarray:
        """The indices of the examples that evaluators see."""
        taken = min(len(self), self.most or len(self))
        return np.arange(taken) * len(self) // max(taken, 1)

    def arrays(self) -> Batch:
        """The examples that evaluators see, stacked."""
        return self.take(self.seen())


@dataclasses.dataclass(frozen=True)
class Stream:
    """The examples of a split that evaluators see, as the model reads them, a batch at a time."""

    source: Source
    split: Lazy

    def batches(self, size: int) -> Iterator[Batch]:
        """`size` examples after another, in order, the last batch of as many as are left; the next is made ahead."""
        seen = self.split.seen()
        parts = [seen[start : start + size] for start in range(0, len(seen), size)]
        make = lambda part: self.source.model_input(self.split.take(part))
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(make, parts[0])
            for part in parts[1:]:
                ready, coming = coming.result(), ahead.submit(make, part)
                yield ready
            yield coming.result()


def read_whole(source: Source, split: Any) -> Batch | Stream:
    """The examples of a split that evaluators see, as the model reads them: stacked, or a stream if they are many."""
    if isinstance(split, Lazy) and 4 * math.prod(split.image_shape) * len(split.seen()) > _HELD:
        return Stream(source, split)
    return source.model_input(split.arrays())


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "examples")


def in_threads(make: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
    """`make` of each of `items`, by all cores at once, in order; for what lets go of the interpreter, as numpy does.

    `make` itself must not call this: it would wait for itself.
    """
    return list(_threads().map(make, *items))


def stack_images(make: Callable[[int], np.ndarray], indices: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Images of `shape` of an index, or of an array of indices, stacked; large ones are made by all cores at once."""
    each = in_threads if math.prod(shape) >= _LARGE else map
    return np.stack(list(each(make, np.ravel(indices).tolist()))).reshape(*np.shape(indices), *shape)


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

    def load(self, split: str) -> Split | Windows | Lazy:
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

    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the labels, by which published folders of images name them.

        Raises:
          ConfigError: they have none.
        """
        raise ConfigError(f"data: {type(self).__name__} has no names of classes, as ImageNet's (evals.imagenet_c) are")

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
    rows: np.ndarray | None = None,
    threads: int = 2,
) -> Iterator[Batch]:
    """Training batches from step `start` on, for ever.

    Args:
      rows: the places in each batch of the examples to read: those of one process of several. None: all.

    Raises:
      ValueError: an empty split.
    """
    split = source.load("train")
    rows = np.arange(batch) if rows is None else rows
    if not len(split):
        raise ValueError(f"data: the train split of {source!r} is empty")

    def prepared(i: int, position: int) -> Batch:
        return source.model_input(source.augment(split[i], _generator(seed, position)))

    def of_step(step: int) -> Batch:
        positions = step * batch + rows
        indices = shuffled(len(split), seed, positions)
        if not source.augments:
            return source.model_input(split.take(indices))
        examples = iter(zip(indices, positions.tolist(), strict=True))
        first = {name: np.asarray(x) for name, x in prepared(*next(examples)).items()}
        out = {name: np.empty((len(rows), *x.shape), x.dtype) for name, x in first.items()}

        def write(row: int, example: Batch) -> None:
            for name, x in example.items():
                out[name][row] = x

        write(0, first)
        # Each row is written when it is made: a list of them would be a second batch in memory.
        each = in_threads if isinstance(split, Lazy) else map
        list(each(lambda row, of: write(row, prepared(*of)), range(1, len(rows)), examples))
        return out

    size = len(rows) * sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in source.inputs.values())
    ahead = min(4 * max(threads, 1), max(_AHEAD // size, 2))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
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


def eval_batches(examples: Batch | Stream, batch: int) -> Iterator[Batch]:
    """All examples once, in order; the last batch padded with zeros and `weight` 0.

    `examples` are as the model reads them. Every batch has the same shape, so one program serves.
    """
    for part in examples.batches(batch) if isinstance(examples, Stream) else _cut(examples, batch):
        n = len(next(iter(part.values())))
        part = part | {"weight": np.ones(n, np.float32)}
        yield {key: np.concatenate([x, np.zeros((batch - n, *x.shape[1:]), x.dtype)]) for key, x in part.items()}


def _cut(arrays: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(next(iter(arrays.values()))), size):
        yield {key: x[start : start + size] for key, x in arrays.items()}
