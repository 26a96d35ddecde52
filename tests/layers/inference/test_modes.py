"""Every mode against the training path, for every sparsifier that it permits; what is refused; what is compiled."""

import dataclasses
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.config import ConfigError, build, config_hash, to_dict
from sparsity.layers.inference import INFERENCE, Dense, DenseMask, GatherOut, LowRank, QuantizedSearch, Threshold
from sparsity.layers.mlp import MLPConfig, SparseMLP
from sparsity.layers.sparsify import STATS, Context
from sparsity.layers.tail import LEAST, TAIL
from sparsity.ops.sparse_matmul import Tiled
from sparsity.ops.sparsifiers import SPARSIFIERS, Gelu, Relu, Silu, SoftThreshold, TopK
from tests.ops.sparsifiers.examples import EXAMPLES

D, F, T, K = 6, 40, 3, 5
RNG = np.random.default_rng(0)
# Sums of these are exact in float32, in any order, and many are equal: sets of units must agree, ties included.
X = jnp.asarray(RNG.integers(-3, 4, (1, T, D)), jnp.float32)
TOP_K = {
    "top_k": TopK(k=K),
    "top_k of gelu": TopK(k=K, act="gelu"),
    "approx": TopK(k=K, method="approx"),
    "statistical": TopK(k=K, method="statistical"),
    "group": TopK(k=K, method="group"),
}
ENTRIES = {name: example.sparsifier for name, example in EXAMPLES.items() if name != "top_k"} | TOP_K
SEARCHES = {
    "low_rank": LowRank(rank=D, candidates=25),
    "8 bits": QuantizedSearch(bits=8, candidates=12),
    "4 bits": QuantizedSearch(bits=4, candidates=12),
}


def parameters(mlp, seed=1):
    shapes = flax.core.meta.unbox(jax.eval_shape(mlp.init, jax.random.key(0), X, Context()))
    rng = np.random.default_rng(seed)
    # Multiples of 1/8, as the sparsifiers' settings are.
    return jax.tree.map(lambda p: jnp.asarray(rng.integers(-6, 7, p.shape) / 8, jnp.float32), shapes)["params"]


def in_mode(mode, config, params, dtype="float32", least=None):
    """The module in this mode, and its parameters."""
    module = SparseMLP(dataclasses.replace(config, inference=mode), dtype)
    return module, mode.lay_out(params, config, dtype, least) if mode.lays_out else params


def outputs(config, modes, dtype="float32", x=X):
    """What training writes, and what each mode does, these in one program."""
    plain, x = SparseMLP(config, dtype), x.astype(dtype)
    params = parameters(plain)
    arms = {name: in_mode(mode, config, params, dtype) for name, mode in modes.items()}
    weights = {name: {"params": w} for name, (_, w) in arms.items()}
    program = jax.jit(lambda weights, x: {n: m.apply(weights[n], x, Context()) for n, (m, _) in arms.items()})
    wide = lambda y: np.asarray(y, np.float64)
    training = jax.jit(lambda params, x: plain.apply({"params": params}, x, Context()))
    return wide(training(params, x)), jax.tree.map(wide, program(weights, x))


def check(expected, found, rtol=2e-6):
    for name, y in found.items():
        np.testing.assert_allclose(y, expected, rtol, rtol * np.nanmax(np.abs(expected)), err_msg=name)


def permitted(sparsifier):
    if not isinstance(sparsifier, TopK):
        return {"dense": Dense()} | ({"threshold": Threshold(capacity=F)} if sparsifier.zeros else {})
    # Searches rank what exact Top-k does, and are not compiled for every other method too.
    return {"gather_out": GatherOut()} | (SEARCHES if sparsifier.method == "exact" else {})


@pytest.mark.filterwarnings("ignore:approx top-k.* is an exact search")
@pytest.mark.parametrize("name", ENTRIES)
def test_every_mode_writes_what_training_does(name):
    check(*outputs(MLPConfig(F, ENTRIES[name]), permitted(ENTRIES[name])))


@pytest.mark.parametrize("capacity", [4, F])
def test_with_more_active_units_than_the_capacity_the_product_is_dense(capacity):
    modes = {"dense_mask": DenseMask(), "threshold": Threshold(capacity)}
    check(*outputs(MLPConfig(F, Relu()), modes, x=X[:, :1]))


def test_a_token_alone_is_computed_as_among_others():
    check(*outputs(MLPConfig(F, TopK(k=K)), {"dense": Dense(), "gather_out": GatherOut(), **SEARCHES}, x=X[:, :1]))


def test_the_tables_are_walked_whole():
    assert {type(entry) for entry in ENTRIES.values()} == set(SPARSIFIERS.values())
    tried = {type(mode) for entry in ENTRIES.values() for mode in permitted(entry).values()}
    assert tried | {DenseMask} == set(INFERENCE.values())


@pytest.mark.parametrize("capacity", [3, F])
def test_of_a_gated_mlp_the_gates_rows_are_gathered_too(capacity):
    config = MLPConfig(F, Relu(), gated=True, gate=SoftThreshold(0.5))
    check(*outputs(config, {"dense": Dense(), "threshold": Threshold(capacity)}))
    assert not np.allclose(*(outputs(c, {})[0] for c in (config, dataclasses.replace(config, gate=None))))


def test_many_tokens_share_one_product():
    x = jnp.asarray(RNG.integers(-3, 4, (1, 12, D)), jnp.float32)
    # A search that would miss most units of a token alone.
    blind = LowRank(rank=1, candidates=K)
    modes = {"dense": Dense(), "gather_out": GatherOut(), "group": GatherOut("group"), "low_rank": blind}
    expected, found = outputs(MLPConfig(F, TopK(k=K), gated=True, use_bias=False), modes, x=x)
    other = found.pop("group")
    check(expected, found)
    few = outputs(MLPConfig(F, TopK(k=K), gated=True, use_bias=False), {"low_rank": blind}, x=x[:, :8])
    assert not np.allclose(few[1]["low_rank"], few[0])
    assert not np.allclose(other, expected)
    check(outputs(MLPConfig(F, TopK(k=K, method="group"), gated=True, use_bias=False), {}, x=x)[0], {"group": other})


def test_a_shared_bias_is_one_of_all_units():
    modes = {"gather_out": GatherOut(), "low_rank": SEARCHES["low_rank"]}
    check(*outputs(MLPConfig(F, TopK(k=K), gated=True, shared_bias=True), modes))


def test_in_bfloat16_pre_activations_are_rounded_as_in_training():
    x = jnp.asarray(RNG.integers(-30, 31, (1, T, D)), jnp.float32)  # z needs more than 8 bits: most units tie
    modes = {"gather_out": GatherOut(), "low_rank": SEARCHES["low_rank"], "8 bits": SEARCHES["8 bits"]}
    # The second sum is rounded once more in training.
    check(*outputs(MLPConfig(F, TopK(k=K)), modes, "bfloat16", x), rtol=2**-7)


def test_thresholds_found_beforehand_cut_the_tail_that_the_training_path_does():
    config = MLPConfig(F, Gelu())
    plain = SparseMLP(config)
    params = parameters(plain)
    least = jnp.asarray(RNG.uniform(0, 2, F), jnp.float32)
    cut = plain.apply({"params": params, TAIL: {LEAST: least}}, X, Context(tail="cut"), mutable=[STATS])[0]
    for capacity in (F, 3):
        module, weights = in_mode(Threshold(capacity), config, params, least=least)
        y = module.apply({"params": weights}, X, Context())
        np.testing.assert_allclose(y, cut, rtol=2e-6, atol=2e-6 * np.abs(cut).max())
        together = module.apply({"params": weights}, jnp.tile(X, (3, 1, 1)), Context())
        np.testing.assert_allclose(together, jnp.tile(cut, (3, 1, 1)), rtol=2e-6, atol=2e-6 * np.abs(cut).max())
    assert not np.allclose(cut, plain.apply({"params": params}, X, Context()), rtol=0.1)


def test_thresholds_of_a_gated_mlp_are_of_the_first_factor():
    """CATS: |silu(z)|, not its product with the gate."""
    config = MLPConfig(F, Silu(), gated=True, use_bias=False)
    params = parameters(SparseMLP(config))
    least = np.full(F, 0.75, np.float32)
    module, weights = in_mode(Threshold(F), config, params, least=least)
    x, w = np.asarray(X, np.float64), {name: np.asarray(layer["kernel"], np.float64) for name, layer in params.items()}
    z = x @ w["wi"]
    h = z / (1 + np.exp(-z))
    expected = (np.where(np.abs(h) < 0.75, 0, h) * (x @ w["wi_gate"])) @ w["wo"]
    np.testing.assert_allclose(module.apply({"params": weights}, X, Context()), expected, rtol=1e-5, atol=1e-5)


def test_rows_that_lie_as_tpus_read_them_give_the_same(monkeypatch):
    config = MLPConfig(F, TopK(k=K), gated=True)
    plain = SparseMLP(config)
    params = parameters(plain)
    expected = plain.apply({"params": params}, X, Context())
    by_row = {"gather_out": {"wi_gate", "wo"}, "low_rank": {"wi", "wi_gate", "wo"}, "8 bits": {"wi", "wi_gate", "wo"}}
    for name, mode in {"gather_out": GatherOut(), **SEARCHES}.items():
        with monkeypatch.context() as on_tpu:
            on_tpu.setattr(jax, "default_backend", lambda: "tpu")
            module, weights = in_mode(mode, config, params)
        tiled = {
            key for key, layer in weights.items() if isinstance(layer, dict) and isinstance(layer.get("rows"), Tiled)
        }
        assert tiled == by_row.get(name, {"wi", "wi_gate", "wo"})
        for x in (X, jnp.tile(X, (4, 1, 1))):
            y = module.apply({"params": weights}, x, Context())
            np.testing.assert_allclose(
                y, jnp.broadcast_to(expected, y.shape), 2e-6, 2e-6 * np.abs(expected).max(), err_msg=name
            )
    statistical = MLPConfig(F, TopK(k=K, method="statistical"))
    assert GatherOut().read_by_row(statistical) == Threshold(3).read_by_row(config) == Dense().read_by_row(config) == ()


@pytest.mark.parametrize("name", ["top_k", "relu"])
def test_nan_reaches_the_output_of_its_token_alone(name):
    modes = {"low_rank": SEARCHES["low_rank"], "8 bits": SEARCHES["8 bits"], "gather_out": GatherOut()}
    modes = modes if name == "top_k" else {"dense": Dense(), "threshold": Threshold(30)}
    expected, found = outputs(MLPConfig(F, ENTRIES[name]), modes, x=X.at[0, 1, 2].set(jnp.nan))
    assert np.isnan(expected).all(-1).tolist() == [[False, True, False]]
    check(expected, found)


def test_recording_says_what_was_read():
    config = MLPConfig(F, Relu())
    params = parameters(SparseMLP(config))
    z = np.asarray(X[0] @ params["wi"]["kernel"] + params["wi"]["bias"])
    active = (z > 0).sum(-1)
    capacity = int(np.sort(active)[1])
    module, weights = in_mode(Threshold(capacity), config, params)
    _, new = module.apply({"params": weights}, X, Context(record=True), mutable=[STATS])
    said = new[STATS]["inference"]
    np.testing.assert_array_equal(said.read, np.where(active > capacity, F, active))
    np.testing.assert_array_equal(said.candidates, F)
    assert said.certified.all()


REFUSED = {
    "gather_out of relu": (GatherOut(), Relu(), "GatherOut of Relu: it keeps no number of units"),
    "low_rank of relu": (LowRank(rank=2, candidates=9), Relu(), "LowRank of Relu: it keeps no number"),
    "quantized_search of gelu": (QuantizedSearch(candidates=9), Gelu(), "QuantizedSearch of Gelu: it keeps no number"),
    "threshold of top_k": (Threshold(4), TopK(k=2), "Threshold of TopK: its threshold is another one for every token"),
    "capacity": (Threshold(41), Relu(), "Threshold of Relu: capacity 41 is more than the d_ff 40 units there are"),
    "annealed": (GatherOut(), TopK(k=2, anneal=3), "GatherOut of TopK: its k is still annealed"),
    "few candidates": (QuantizedSearch(candidates=4), TopK(k=5), "candidates must be in 5..40, k and the .*: 4"),
    "statistical": (LowRank(rank=2, candidates=9), TopK(k=5, method="statistical"), "keeps other units than the k"),
    "group": (GatherOut("group"), TopK(k=3), "k: method group keeps one of each of k equal blocks"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_sparsifier_does_not_permit_is_refused_with_the_reason(name):
    mode, sparsifier, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^inference: .*{message}") as error:
        MLPConfig(F, sparsifier, inference=mode)
    assert "\n" not in str(error.value)


def test_a_gate_that_needs_all_units_is_refused():
    with pytest.raises(ValueError, match="Threshold of Relu: its gate TopK acts on a whole token"):
        MLPConfig(F, Relu(), gated=True, gate=TopK(k=3), inference=Threshold(4))


def test_settings_of_no_use_and_uses_without_settings_are_refused():
    config = MLPConfig(F, Gelu())
    params = parameters(SparseMLP(config))
    with pytest.raises(ValueError, match="Threshold of Gelu: it has no zeros, and no thresholds are given"):
        Threshold(3).lay_out(params, config, "float32")
    with pytest.raises(ValueError, match="thresholds are given, which Dense has no use for"):
        Dense().lay_out(params, config, "float32", np.ones(F))
    with pytest.raises(ValueError, match=r"rank must be in 1\.\.6, W_i's sizes: 7"):
        LowRank(rank=7, candidates=9).lay_out(params, MLPConfig(F, TopK(k=3)), "float32")
    module, weights = in_mode(Dense(), config, params)
    with pytest.raises(ValueError, match="Dense neither trains nor hands out"):
        module.apply({"params": weights}, X, Context(train=True))
    with pytest.raises(ValueError, match=r"decode\.weights\.prepared lays out trained ones"):
        module.init(jax.random.key(0), X, Context())


def test_modes_are_chosen_by_name_and_leave_the_hash_of_training_alone():
    section = {"d_ff": F, "sparsifier": {"name": "top_k", "k": 5}}
    trained = build(MLPConfig, section)
    assert "inference" not in to_dict(trained)
    assert config_hash(trained) == config_hash(build(MLPConfig, section | {"inference": None}))
    asked = build(MLPConfig, section | {"inference": {"name": "low_rank", "rank": 2, "candidates": 9}})
    assert asked.inference == LowRank(rank=2, candidates=9)
    with pytest.raises(ConfigError, match='unknown name "gather_ou"; did you mean "gather_out"'):
        build(MLPConfig, section | {"inference": {"name": "gather_ou"}})


BIG_F, BIG_D = 512, 384
COMPILED = {
    "dense": (TopK(k=16), Dense(), "float32"),
    "gather_out": (TopK(k=16), GatherOut(), "float32"),
    "gather_out, bfloat16": (TopK(k=16), GatherOut(), "bfloat16"),
    "low_rank": (TopK(k=16), LowRank(rank=8, candidates=32), "float32"),
    "quantized_search": (TopK(k=16), QuantizedSearch(candidates=32), "float32"),
    "threshold": (Relu(), Threshold(capacity=64), "float32"),
}


@pytest.mark.parametrize("name", COMPILED)
def test_nothing_of_a_matrix_size_is_copied_and_nothing_is_sorted(name, as_users):
    """In the one program of a token, on a CPU."""
    sparsifier, mode, dtype = COMPILED[name]
    config = MLPConfig(BIG_F, sparsifier)
    layer = lambda n, m: {"kernel": jnp.zeros((n, m)), "bias": jnp.zeros(m)}
    params = {"wi": layer(BIG_D, BIG_F), "wo": layer(BIG_F, BIG_D)}
    module, weights = in_mode(mode, config, params, dtype)
    run = jax.jit(lambda weights, x: module.apply({"params": weights}, x, Context()))
    text = run.lower(weights, jnp.zeros((1, 1, BIG_D), dtype)).compile(as_users).as_text()
    assert re.search(r"f32\[512,384\]\S* parameter\(", text)
    made = re.findall(r"= \w+\[(?:512,384|384,512)\]\S* (?!parameter|get-tuple-element|bitcast)(\S+)\(", text)
    # The copy in 8 bits is converted before it is multiplied: on a CPU this mode is for its numbers, not its speed.
    assert set(made) <= ({"convert", "fusion"} if name == "quantized_search" else set())
    sorted_ = re.findall(r"= \(?\w+\[([\d,]+)\]\S*[^=]* sort\(", text)
    assert set(sorted_) <= {"1,32"}, "candidates alone are put in order"
    if isinstance(sparsifier, TopK) and name != "dense":
        assert "TopK" in text
