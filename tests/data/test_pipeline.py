import dataclasses
from itertools import islice
from typing import ClassVar

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsity.data import pipeline
from sparsity.data.digits import Digits
from sparsity.data.masked_text import MaskedText
from sparsity.data.mock import MockText
from sparsity.data.pipeline import ImageSource, Split, eval_batches, shuffled, train_batches
from sparsity.data.span_corruption import SpanCorruption


@dataclasses.dataclass(frozen=True)
class Numbered(ImageSource):
    """n examples whose label is their index and whose image is index + noise / 2, noise in [0, 1)."""

    n: int = 13
    noisy: bool = True

    augments: ClassVar[bool] = True
    classes: ClassVar[int] = 100
    image_shape: ClassVar[tuple[int, int, int]] = (1, 1, 1)

    def load(self, split):
        index = np.arange(self.n)
        return Split(index.reshape(-1, 1, 1, 1).astype(np.float32), index.astype(np.int32))

    def normalise(self, images):
        return (images / 2).astype(np.float32)

    def augment(self, example, rng):
        noise = rng.random(example["image"].shape) if self.noisy else 0.0
        return example | {"image": (example["image"] + noise).astype(np.float32)}


def take(batches, steps):
    return list(islice(batches, steps))


def assert_equal(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def single(source, batch, seed, start, steps, threads=2):
    return take(train_batches(source, batch, seed, start, threads=threads), steps)


@pytest.mark.parametrize("start", [1, 2, 3, 7, 10])
def test_resuming_at_a_step_gives_the_batches_that_an_uninterrupted_run_would_see(start):
    # 10 batches of 4 from 13 examples: the resumed ones cross epochs.
    assert_equal(single(Numbered(), 4, 0, start, 5), single(Numbered(), 4, 0, 0, start + 5)[start:])


def test_resuming_far_ahead_is_the_same_order_too():
    assert_equal(single(Numbered(), 4, 3, 400, 2), single(Numbered(), 4, 3, 399, 3)[1:])


def test_the_same_seed_gives_the_same_batches_whatever_the_number_of_threads():
    expected = single(Numbered(), 4, 5, 0, 12)
    for threads in (0, 1, 5):
        assert_equal(single(Numbered(), 4, 5, 0, 12, threads), expected)


def test_another_seed_gives_another_order_and_other_noise():
    one, other = single(Numbered(), 13, 0, 0, 1)[0], single(Numbered(), 13, 1, 0, 1)[0]
    assert one["label"].tolist() != other["label"].tolist()
    noise = [np.sort(2 * b["image"].ravel() - b["label"]) for b in (one, other)]
    assert not np.allclose(*noise)


@pytest.mark.parametrize("batch", [1, 4, 13, 20])
def test_every_epoch_covers_each_example_once_in_a_new_order(batch):
    steps = -(-4 * 13 // batch)
    labels = np.concatenate([b["label"] for b in single(Numbered(), batch, 0, 0, steps)])[: 4 * 13].reshape(4, 13)
    for epoch in labels:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(13))
    assert len({tuple(epoch) for epoch in labels}) == 4
    assert tuple(range(13)) not in {tuple(epoch) for epoch in labels}


def test_the_order_of_a_large_split_is_as_random_and_is_not_held_in_memory(monkeypatch):
    in_memory = shuffled(1000, 0, np.arange(3000))
    monkeypatch.setattr(pipeline, "_PERMUTED", 999)
    order = shuffled(1000, 0, np.arange(3000))
    for epoch in order.reshape(3, 1000):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(1000))
        # Neighbours are 333 apart on average, with a standard error of 7.
        assert 290 < np.abs(np.diff(epoch)).mean() < 380
    for other in (order[:1000], in_memory[1000:2000], shuffled(1000, 1, np.arange(1000, 2000))):
        assert (order[1000:2000] == other).mean() < 0.02
    np.testing.assert_array_equal(shuffled(1000, 0, np.arange(990, 1010)), order[990:1010])
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "_order", None)
    found = shuffled(300_000_000, 0, np.arange(299_999_990, 300_000_500))
    assert len(set(found[10:])) == 500
    assert 0 <= found.min() < found.max() < 300_000_000
    assert found.dtype == np.int64


def test_order_and_augmentations_are_the_same_everywhere_and_for_ever():
    """As numbers: a numpy that drew others would change the order of data of every run that is resumed."""
    assert shuffled(10, 0, np.arange(20)).tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1, 9, 1, 3, 8, 7, 6, 0, 4, 2, 5]
    drawn = pipeline._generator(0, 5).random(3)
    np.testing.assert_array_equal(drawn, [0.37339939632417873, 0.9475066405446156, 0.26164189652551895])


def test_batches_are_always_full():
    assert {b["label"].shape for b in single(Numbered(), 4, 0, 0, 12)} == {(4,)}
    assert {b["image"].shape for b in single(Numbered(), 4, 0, 0, 12)} == {(4, 1, 1, 1)}


def joined(source, batch, seed, start, steps, parts, threads=0):
    """The batches of processes that read `parts` of the rows each, the rows put in their places."""
    each = [take(train_batches(source, batch, seed, start, rows=rows, threads=threads), steps) for rows in parts]
    places = np.argsort(np.concatenate(parts))
    return [
        {key: np.concatenate([one[key] for one in step])[places] for key in step[0]} for step in zip(*each, strict=True)
    ]


class Held:
    """A source whose training split is loaded once."""

    def __init__(self, source):
        self.source, self.split = source, source.load("train")

    def load(self, _):
        return self.split

    def __getattr__(self, name):
        return getattr(self.source, name)


@pytest.fixture(scope="module")
def texts():
    """Texts that are cut out whole, and those whose examples are drawn, with one array or five."""
    return [Held(s) for s in (MockText(length=7, classes=9), MaskedText(length=40), SpanCorruption(length=40))]


@hypothesis.settings(max_examples=30)
@given(
    kind=st.integers(0, 4),
    n=st.integers(1, 21).map(lambda i: 2 * i - 1),
    processes=st.sampled_from([1, 2, 4, 8]),
    share=st.integers(1, 3),
    start=st.integers(0, 50),
    order=st.randoms(use_true_random=False),
)
def test_whatever_rows_each_process_reads_together_they_are_the_batch_of_one(
    texts, kind, n, processes, share, start, order
):
    batch = processes * share
    places = list(range(batch))
    order.shuffle(places)  # meshes need not number devices by their processes
    parts = [np.sort(places[i::processes]) for i in range(processes)]
    source = (Numbered(n), Whole(n), *texts)[kind]
    assert_equal(joined(source, batch, 3, start, 2, parts), single(source, batch, 3, start, 2, threads=0))


@hypothesis.settings(max_examples=40)
@given(n=st.integers(1, 300), processes=st.sampled_from([1, 2, 4, 8]), share=st.integers(1, 5), epoch=st.integers(0, 3))
def test_the_union_over_processes_is_the_epoch_each_example_once(n, processes, share, epoch):
    """Of any number of examples: an epoch need neither begin nor end with a batch."""
    batch = processes * share
    begin, end = epoch * n // batch, -(-(epoch + 1) * n // batch)
    rows = [np.arange(p * share, (p + 1) * share) for p in range(processes)]
    read = [shuffled(n, 5, step * batch + r) for step in range(begin, end) for r in rows]
    positions = np.arange(begin * batch, end * batch)
    of_epoch = np.concatenate(read)[positions // n == epoch]
    np.testing.assert_array_equal(np.sort(of_epoch), np.arange(n))


def test_each_visit_of_an_example_has_noise_of_its_own():
    batches = single(Numbered(n=3), 3, 0, 0, 5)
    noise = np.concatenate([2 * b["image"].ravel() - b["label"] for b in batches])
    assert len(np.unique(noise)) == 15
    assert (noise > -1e-6).all()
    assert (noise < 1 + 1e-6).all()


def test_examples_are_augmented_first_and_normalised_after():
    batch = single(Numbered(noisy=False), 13, 0, 0, 1)[0]
    np.testing.assert_array_equal(batch["image"].ravel(), batch["label"] / 2)
    assert batch["image"].dtype == np.float32
    assert batch["label"].dtype == np.int32


def test_the_digits_resume_with_the_same_shifts():
    whole = single(Digits(), 32, 0, 0, 5)
    assert_equal(single(Digits(), 32, 0, 3, 2), whole[3:])


def test_an_epoch_of_the_digits_is_the_train_split():
    split = Digits(shift=0).load("train")
    batches = single(Digits(shift=0), 126, 0, 0, 10)
    images = np.concatenate([b["image"] for b in batches]).reshape(1260, -1)
    expected = Digits().normalise(split.images).reshape(1260, -1)
    np.testing.assert_array_equal(images[np.lexsort(images.T)], expected[np.lexsort(expected.T)])


def test_an_empty_train_split_is_refused():
    with pytest.raises(ValueError, match=r"^data: the train split of Numbered\(.*\) is empty$"):
        train_batches(Numbered(n=0), 4, 0, 0)


def test_evaluation_takes_every_example_once_in_order_and_pads_the_last_batch():
    images, labels = np.arange(14, dtype=np.float32).reshape(7, 2, 1, 1) + 1, np.arange(7, dtype=np.int32) + 1
    batches = list(eval_batches({"image": images, "label": labels}, 3))
    assert len(batches) == 3
    for batch in batches:
        assert {key: (x.shape, x.dtype) for key, x in batch.items()} == {
            "image": ((3, 2, 1, 1), np.float32),
            "label": ((3,), np.int32),
            "weight": ((3,), np.float32),
        }
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches]), [1, 2, 3, 4, 5, 6, 7, 0, 0])
    np.testing.assert_array_equal(np.concatenate([b["weight"] for b in batches]), [1] * 7 + [0] * 2)
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in batches])[:7], images)
    np.testing.assert_array_equal(batches[-1]["image"][1:], np.zeros((2, 2, 1, 1)))


@pytest.mark.parametrize(("n", "batch", "count"), [(6, 3, 2), (3, 3, 1), (2, 5, 1)])
def test_evaluation_makes_no_batch_of_padding_alone(n, batch, count):
    batches = list(eval_batches({"image": np.ones((n, 1, 1, 1), np.float32), "label": np.ones(n, np.int32)}, batch))
    assert len(batches) == count
    assert sum(b["weight"].sum() for b in batches) == n


def test_a_split_is_read_by_index():
    split = Numbered().load("train")
    assert len(split) == 13
    assert split[4]["label"] == 4
    assert split[4]["image"].shape == (1, 1, 1)


def test_without_labels_neither_examples_nor_evaluation_batches_have_one():
    images = np.arange(14, dtype=np.float32).reshape(7, 2, 1, 1) + 1
    split = Split(images, None)
    assert (len(split), split[3].keys()) == (7, {"image"})
    assert repr(split) == "Split((7, 2, 1, 1), None)"
    got, expected = (list(eval_batches(split.arrays(), 3)) for split in (split, Split(images, np.arange(7))))
    assert [b.keys() for b in got] == [{"image", "weight"}] * 3
    for a, b in zip(got, expected, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@dataclasses.dataclass(frozen=True)
class Whole(Numbered):
    """The same without augmentation: its batches are cut out whole."""

    augments: ClassVar[bool] = False


@pytest.mark.parametrize("batch", [1, 4, 13, 20])
def test_batches_that_are_cut_out_whole_are_those_made_example_by_example(batch):
    assert_equal(single(Whole(), batch, 0, 0, 7), single(Numbered(noisy=False), batch, 0, 0, 7))
    assert {b["image"].dtype for b in single(Whole(), batch, 0, 0, 1)} == {np.dtype("float32")}


def test_whole_batches_resume_and_are_shared_among_processes_too():
    expected = single(Whole(), 8, 0, 0, 9)
    assert_equal(single(Whole(), 8, 0, 4, 5), expected[4:])
    assert_equal(joined(Whole(), 8, 0, 0, 9, [np.arange(4), np.arange(4, 8)], threads=2), expected)


@pytest.mark.parametrize("labels", [np.arange(7, dtype=np.int32), None], ids=["labels", "no labels"])
def test_examples_are_taken_by_an_array_of_indices(labels):
    images = np.random.default_rng(0).random((7, 2, 2, 1)).astype(np.float32)
    split = Split(images, labels)
    index = np.array([3, 0, 3])
    taken = split.take(index)
    np.testing.assert_array_equal(taken["image"], images[index])
    assert ("label" in taken) == (labels is not None)
    for i, one in enumerate(index):
        assert all((taken[key][i] == split[one][key]).all() for key in taken)


def test_the_model_reads_normalised_images_and_everything_else_as_it_is():
    arrays = Numbered().load("train").arrays()
    read = Numbered().model_input(arrays)
    np.testing.assert_array_equal(read["image"], arrays["image"] / 2)
    assert read["label"] is arrays["label"]
    assert Numbered().inputs["image"].shape == (1, 1, 1)
    assert Numbered().inputs["image"].dtype == np.float32
