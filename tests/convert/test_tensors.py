"""What a parameter is made of, by hand, and every part of it."""

import itertools
import re

import jax
import numpy as np
import pytest

from sparsity.config import ConfigError
from sparsity.convert.tensors import MATRIX, WINDOW, Tensor, _part, check, load, unload
from tests.convert.golden import Tensors

RNG = np.random.default_rng(0)
drawn = lambda *shape: RNG.standard_normal(shape).astype(np.float32)
ONE, FUSED, KERNEL, STACK = drawn(4, 6), drawn(12, 5), drawn(8, 3, 2, 2), drawn(3, 4, 2, 3)
# Of a description: the tensors, and the parameter in plain numpy.
CASES = {
    "whole": (Tensor(("a",)), {"a": ONE}, ONE),
    "a matrix of torch": (Tensor(("a",), MATRIX), {"a": ONE}, ONE.T),
    "layers": (Tensor(("a", "b"), MATRIX, stacked=True), {"a": ONE, "b": -ONE}, np.stack([ONE.T, -ONE.T])),
    "the second of three": (Tensor(("a",), MATRIX, part=(1, 3)), {"a": FUSED}, FUSED[4:8].T),
    "a window": (Tensor(("a",), WINDOW), {"a": KERNEL}, KERNEL.transpose(2, 3, 1, 0)),
    "patches": (
        Tensor(("a",), WINDOW, ((2, 2, -1), (-1,))),
        {"a": KERNEL},
        np.stack([KERNEL[:, c, i, j] for i in (0, 1) for j in (0, 1) for c in (0, 1, 2)]),
    ),
    "heads": (
        Tensor(("a",), split=((-1,), (2, -1))),
        {"a": STACK[0]},
        np.concatenate([STACK[0, :, 0], STACK[0, :, 1]], axis=1),
    ),
    "heads of one layer of three": (
        Tensor(("a",), split=((1, -1), (2, -1)), part=(2, 3)),
        {"a": STACK},
        np.concatenate([STACK[2, :, 0], STACK[2, :, 1]], axis=1),
    ),
    "one axis more": (Tensor(("a",), split=((1, -1), (-1,))), {"a": ONE[None]}, ONE),
    "zeros in front": (
        Tensor(("a",), split=((1, -1), (-1,)), zeros=2),
        {"a": ONE[None]},
        np.concatenate([np.zeros((2, 6), np.float32), ONE]),
    ),
    "nothing": (Tensor(()), {}, np.zeros((4, 6), np.float32)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_parameter_is_made_of_its_tensors(case):
    tensor, tensors, expected = CASES[case]
    shapes = {name: x.shape for name, x in tensors.items()}
    check({"x": tensor}, {"x": expected.shape}, shapes, lambda name: False)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {"x": jax.ShapeDtypeStruct(expected.shape, np.float32, sharding=device)}
    np.testing.assert_array_equal(load({"x": tensor}, abstract, Tensors(tensors))["x"], expected)


@pytest.mark.parametrize("case", CASES)
def test_every_piece_of_it_is_that_of_the_whole(case):
    tensor, tensors, expected = CASES[case]
    leaf = jax.ShapeDtypeStruct(expected.shape, np.float32)
    cuts = [[slice(None), slice(0, n // 2), slice(n // 2, n), slice(1, 3)] for n in expected.shape]
    for index in itertools.product(*cuts):
        np.testing.assert_array_equal(_part(tensor, Tensors(tensors), index, leaf), expected[index])


@pytest.mark.parametrize("case", [case for case, (t, _, _) in CASES.items() if t.names and not t.part and not t.zeros])
def test_it_goes_back_to_its_tensors(case):
    tensor, tensors, expected = CASES[case]
    back = dict(unload({"x": tensor}, {"x": expected}))
    assert set(back) == set(tensors)
    for name, x in tensors.items():
        assert back[name].flags.c_contiguous
        np.testing.assert_array_equal(back[name], x)


def test_a_part_of_a_tensor_does_not_go_back():
    with pytest.raises(ValueError, match="a part of a tensor is not written"):
        dict(unload({"x": Tensor(("a",), part=(0, 3))}, {"x": np.zeros((2, 2))}))


class Asked(Tensors):
    """A checkpoint that keeps what was asked for."""

    def read(self, name, index):
        part = super().read(name, index)
        self.asked = part.shape
        return part


def test_no_more_is_read_than_encloses_the_piece():
    leaf = jax.ShapeDtypeStruct((5, 4), np.float32)
    fused, heads = Asked({"a": FUSED}), Asked({"a": STACK[0]})
    _part(Tensor(("a",), MATRIX, part=(1, 3)), fused, (slice(None), slice(1, 2)), leaf)
    assert fused.asked == (1, 5)
    leaf = jax.ShapeDtypeStruct((4, 6), np.float32)
    _part(Tensor(("a",), split=((-1,), (2, -1))), heads, (slice(0, 2), slice(3, 5)), leaf)
    assert heads.asked == (2, 1, 3)  # the second head alone


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a": (12, 4)}, "checkpoint: a has shape (12, 4), and x needs (12, 5)"),
        ({"b": (12, 5)}, "checkpoint: has no tensor a, which x is made of; valid: b"),
        ({"a": (12, 5), "b": (1,)}, "checkpoint: nothing is made of its tensor b, of shape (1,)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(found, message):
    tensors = {"x": Tensor(("a",), MATRIX, part=(0, 3)), "y": Tensor(("a",), MATRIX, part=(1, 3)), "z": Tensor(())}
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        check(tensors, {"x": (5, 4), "y": (5, 4), "z": (9,)}, found, lambda name: False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", ["layers", "zeros in front", "the second of three"])
def test_numbers_that_are_not_finite_are_refused_by_the_name_of_their_tensor(case, value):
    tensor, tensors, expected = CASES[case]
    name = tensor.names[-1]
    bad = tensors | {name: tensors[name].copy()}
    bad[name].reshape(-1)[bad[name].size // 2] = value
    leaf = jax.ShapeDtypeStruct(expected.shape, np.float32)
    with pytest.raises(ConfigError, match=rf"^checkpoint: {name} has numbers that are not finite in float32"):
        _part(tensor, Tensors(bad), (slice(None),) * expected.ndim, leaf)


def test_a_parameter_that_memory_cannot_hold_is_one_line():
    leaf = jax.ShapeDtypeStruct((1 << 40, 1 << 10), np.float32)
    with pytest.raises(ConfigError, match=r"^checkpoint: there is no memory for 4,503,599,627,370,496 bytes"):
        _part(Tensor(("a",)), Tensors({"a": np.zeros((1, 1))}), (slice(None),) * 2, leaf)
