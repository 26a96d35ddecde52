"""Batches as a pure function of (seed, step).

Training: examples are shuffled anew each epoch by (seed, epoch) and dealt to steps in order,
so batch `s` needs nothing but `s`: resuming needs only the step, and the order does not depend
on how many processes read. Evaluation: in index order, the last batch padded and masked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import grain
import jax
import numpy as np

Batch = dict[str, np.ndarray]


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
        example = {"image": self.images[i]}
        return example if self.labels is None else example | {"label": self.labels[i]}


class Source(Protocol):
    """A dataset: settings that load to splits. `classes` is None where examples have no labels."""

    classes: int | None
    image_shape: tuple[int, int, int]

    def load(self, split: str) -> Split:
        """The named split: train, validation or test."""

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Images in the source's units [0, 1] as the model's input."""

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """A training example, randomly changed by `rng` alone."""


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
    split = source.load("train")
    if not len(split):
        raise ValueError(f"data: the train split of {source!r} is empty")

    def prepare(example: Batch, rng: np.random.Generator) -> Batch:
        example = source.augment(example, rng)
        return example | {"image": source.normalise(example["image"])}

    dataset = grain.MapDataset.source(split).seed(seed).shuffle().repeat().random_map(prepare)
    dataset = dataset.batch(batch // processes, drop_remainder=True)[process::processes]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * max(threads, 1))
    iterator = iter(dataset.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator


def eval_batches(images: np.ndarray, labels: np.ndarray | None, batch: int) -> Iterator[Batch]:
    """All examples once, in order; the last batch padded with zeros and `weight` 0.

    `images` are model inputs (normalised). Every batch has the same shape, so one program serves. Without labels
    (None) there is no `label`.
    """
    whole = {"image": images, "weight": np.ones(len(images), np.float32)}
    if labels is not None:
        whole["label"] = labels
    for start in range(0, len(images), batch):
        part = {key: x[start : start + batch] for key, x in whole.items()}
        missing = batch - len(part["image"])
        yield {key: np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)]) for key, x in part.items()}
