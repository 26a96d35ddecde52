import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.evals.recording import record_sparsity, recorded
from sparsity.evals.sparsity import merge, nonzero_fraction
from sparsity.layers.sparsify import Context, Sparsify, sparsity_stats
from sparsity.ops.sparsifiers import Relu

X = np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float32)


class Theirs(nn.Module):
    """Calls `nn.relu` by its name in every block, and tells what it makes of it."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = Block()(x)
        return nn.Dense(2)(nn.relu(x))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(16)(x))
        self.sow("intermediates", "h", h)
        return x + nn.Dense(8)(h)


@pytest.fixture(scope="module")
def theirs():
    model = Theirs()
    return model, model.init(jax.random.key(0), X)


def assert_same(stats, z, h):
    """They are the statistics of z and h, but for the flat places, which need a slope."""
    expected = jax.tree.map(np.asarray, sparsity_stats(jnp.asarray(z), jnp.asarray(h)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True), stats, expected)


def test_a_model_that_calls_its_activation_by_name_is_recorded_layer_by_layer(theirs):
    model, variables = theirs
    relu = nn.relu
    out, layers = record_sparsity(jax.jit(model.apply), nn.relu)(variables, X)
    assert nn.relu is relu
    assert jax.nn.relu is relu
    plain, sown = model.apply(variables, X, mutable=["intermediates"])
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-6)
    assert list(layers) == ["Block_0", "Block_1", "activation"]  # the last one stands in no block
    for block in ("Block_0", "Block_1"):
        h = np.asarray(sown["intermediates"][block]["h"][0])
        shares = (h != 0).mean((1, 2))
        mean, se, n = nonzero_fraction(layers[block])
        assert mean == pytest.approx(shares.mean(), rel=1e-6)
        assert se == pytest.approx(shares.std(ddof=1) / 3**0.5, rel=1e-3)  # a difference of float32 sums
        assert n == 3
        np.testing.assert_array_equal(layers[block].fired_F, (h != 0).sum((0, 1)))


def test_several_batches_merge(theirs):
    model, variables = theirs
    record = record_sparsity(jax.jit(model.apply), nn.relu)
    parts = [record(variables, x)[1] for x in (X, -X)]
    for layer, stats in merge(parts).items():
        mean, _, n = nonzero_fraction(stats)
        assert n == 6
        assert mean == pytest.approx(np.mean([nonzero_fraction(part[layer])[0] for part in parts]), rel=1e-9)


def test_an_activation_given_as_an_argument_has_the_statistics_of_our_own_modules():
    z = jnp.asarray(X)
    ours = jax.jit(lambda z: Sparsify(Relu()).apply({}, z, Context(record=True), mutable=["sparsity"])[1])(z)
    _, layers = record_sparsity(recorded(nn.relu))(z)
    (name, found), *_ = layers.items()
    assert name == "activation"
    expected = ours["sparsity"]["stats"].replace(flat_sum=np.nan)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, equal_nan=True), found, expected)


def test_turns_of_a_scan_are_layers_in_their_order_rematerialised_or_not():
    relu, w = recorded(nn.relu), np.random.default_rng(1).normal(size=(3, 8, 8)).astype(np.float32)

    @jax.jit
    def scanned(x):
        layer = jax.checkpoint(lambda x, w: (relu(x @ w), None))
        return jax.lax.scan(layer, x, w)[0]

    out, layers = record_sparsity(scanned)(jnp.asarray(X))
    assert list(layers) == ["activation[0]", "activation[1]", "activation[2]"]
    h = X
    for i in range(3):
        z = h @ w[i]
        h = np.maximum(z, 0)
        assert_same(layers[f"activation[{i}]"], z, h)
    np.testing.assert_allclose(out, h, rtol=1e-5, atol=1e-6)
    # What was compiled while it was recorded records nothing afterwards, and again when it is.
    np.testing.assert_array_equal(scanned(jnp.asarray(X)), out)
    assert list(record_sparsity(scanned)(jnp.asarray(X))[1]) == list(layers)


def test_a_name_of_the_users_own_module_is_replaced_and_put_back(monkeypatch):
    square = lambda z: jnp.maximum(z, 0) ** 2
    monkeypatch.setattr(sys.modules[__name__], "phi", square, raising=False)
    _, layers = record_sparsity(lambda z: phi(phi(z)), square)(jnp.asarray(X))  # noqa: F821
    assert list(layers) == ["activation[0]", "activation[1]"]
    assert sys.modules[__name__].phi is square
    with pytest.raises(ZeroDivisionError):
        record_sparsity(lambda z: 1 / 0, square)(X)
    assert sys.modules[__name__].phi is square


def test_what_records_nothing_says_so_and_how_to_mend_it():
    compiled = jax.jit(recorded(nn.tanh))
    compiled(X)
    for fn, activations in ((nn.gelu, (nn.relu,)), (compiled, ())):
        with pytest.raises(ValueError, match="no activation was computed; give the model recorded"):
            record_sparsity(fn, *activations)(X)
    with pytest.raises(ValueError, match="no activation was computed"):
        jax.jit(lambda z: record_sparsity(recorded(nn.relu))(z)[0])(X)


@pytest.mark.parametrize(("phi", "z", "made"), [(nn.glu, X, "glu makes (3, 4, 4) of"), (nn.relu, X[0, 0], "of (8,);")])
def test_shapes_that_say_nothing_of_units_are_refused(phi, z, made):
    with pytest.raises(ValueError, match="one shape is needed") as error:
        record_sparsity(recorded(phi))(z)
    assert made in str(error.value)


def test_names_that_are_not_functions_of_modules_cost_nothing_outside():
    phi = recorded(nn.relu)
    assert phi.__name__ == "relu"
    assert "callback" not in str(jax.make_jaxpr(phi)(X))
