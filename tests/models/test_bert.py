import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from sparsity import recipes
from sparsity.config import ConfigError, build
from sparsity.evals.sparsity import by_layer
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import STATS, Context
from sparsity.models.bert import BERTConfig, Pretraining
from sparsity.ops.sparsifiers import Relu, TopK
from sparsity.recipes import li2022

V, L = 11, 6
TOKENS = np.random.default_rng(0).integers(0, V, (3, L)).astype(np.int32)
SEGMENTS = np.int32([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1]])


def bert(**changes):
    settings = {"mlp": MLPConfig(24, Relu()), "d_model": 8, "layers": 2, "heads": 2, "positions": 9, "dropout": 0.0}
    return BERTConfig(**settings | changes)


def read(config, tokens=TOKENS):
    return (tokens, SEGMENTS) if config.next_sentence else (tokens,)


def randomised(config):
    """Random parameters of every leaf, those included that start at zero or one."""
    shapes = flax.core.meta.unbox(jax.eval_shape(config.build(V).init, jax.random.key(0), *read(config), Context()))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes)


def forward(config, variables, tokens=TOKENS, **ctx):
    apply, context, rngs = config.build(V).apply, Context(**ctx), {"dropout": jax.random.key(0)}
    return jax.jit(lambda v, x: apply(v, *x, context, mutable=[STATS], rngs=rngs))(variables, read(config, tokens))


def linear(p, x):
    return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)


def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return scaled * np.asarray(p["scale"]) + np.asarray(p["bias"])


def attention(p, x, heads):
    split = lambda y: y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)
    q, k, v = (split(linear(p[name], x)) for name in ("query", "key", "value"))
    scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))
    out = scores / scores.sum(-1, keepdims=True) @ v
    return linear(p["out"], out.swapaxes(1, 2).reshape(x.shape))


def reference(config, variables):
    """The whole forward pass in numpy float64, after Devlin et al.'s description."""
    p = variables["params"]
    table = {name: np.asarray(p[name], np.float64) for name in ("embedding", "position", "type", "head_bias")}
    segments = SEGMENTS if config.next_sentence else 0
    x = norm(p["norm_embedding"], table["embedding"][TOKENS] + table["position"][:L] + table["type"][segments])
    for i in range(config.layers):
        block = p[f"block_{i}"]
        x = norm(block["norm_attention"], x + attention(block["attention"], x, config.heads))
        h = np.maximum(linear(block["mlp"]["wi"], x), 0)
        x = norm(block["norm_mlp"], x + linear(block["mlp"]["wo"], h))
    z = linear(p["head"], x)
    y = norm(p["norm_head"], z * (1 + erf(z / np.sqrt(2))) / 2)
    logits = y @ table["embedding"].T + table["head_bias"]
    if not config.next_sentence:
        return logits
    return Pretraining(logits, linear(p["next_sentence"], np.tanh(linear(p["pooler"], x[:, 0]))))


@pytest.mark.parametrize("next_sentence", [False, True])
def test_the_logits_are_the_formula(next_sentence):
    config = bert(next_sentence=next_sentence)
    variables = randomised(config)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, forward(config, variables)[0], reference(config, variables))


PUBLISHED = [("base", False, 109_514_298), ("large", False, 335_174_458), ("base", True, 110_106_428)]


@pytest.mark.parametrize(("size", "next_sentence", "count"), PUBLISHED)
def test_sizes_have_the_parameters_of_the_published_ones(size, next_sentence, count):
    """Hugging Face's BertForMaskedLM and BertForPreTraining of bert-base-uncased (and -large-), 30,522 tokens."""
    section = {k: v for k, v in recipes.bert_model(size).items() if k != "name"}
    config = build(BERTConfig, section | {"next_sentence": next_sentence})
    tokens = [jax.ShapeDtypeStruct((1, 8), jnp.int32)] * len(config.inputs)
    params = jax.eval_shape(config.build(30_522).init, jax.random.key(0), *tokens, Context())
    assert sum(p.size for p in jax.tree.leaves(params)) == count


def test_every_token_sees_every_other():
    config = bert()
    variables = randomised(config)
    changed = TOKENS.copy()
    changed[:, -1] = (changed[:, -1] + 1) % V
    first, other = (forward(config, variables, tokens)[0][:, 0] for tokens in (TOKENS, changed))
    assert (np.abs(first - other) > 1e-6).any(-1).all()


def test_a_token_beyond_the_vocabulary_makes_its_examples_logits_nan():
    config = bert()
    tokens = TOKENS.copy()
    tokens[1, 2] = V
    logits = forward(config, randomised(config), tokens)[0]
    np.testing.assert_array_equal(np.isnan(logits).all((1, 2)), [False, True, False])


def test_dropout_acts_in_training_only():
    config = bert(dropout=0.5)
    variables = randomised(config)
    plain = forward(bert(), variables)[0]
    np.testing.assert_array_equal(forward(config, variables)[0], plain)
    assert not np.allclose(forward(config, variables, train=True)[0], plain)


def test_records_are_named_as_the_mlps():
    config = bert()
    stats = by_layer(forward(config, randomised(config), record=True)[1][STATS])
    assert list(stats) == list(config.mlps()) == ["block_0", "block_1"]
    assert float(stats["block_0"].tokens) == 3 * L


def test_dense_flops_are_those_that_xla_counts():
    config, classes, batch, length = bert(d_model=128, mlp=MLPConfig(512, Relu()), positions=32), 256, 8, 32
    model, tokens = config.build(classes), jax.ShapeDtypeStruct((batch, length), jnp.int32)
    variables = flax.core.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens, Context()))
    lowered = jax.jit(lambda v, x: model.apply(v, x, Context())).lower(variables, tokens)
    counted = lowered.cost_analysis()["flops"] / (batch * length)
    # Ours are matrix products only; XLA adds biases, norms, activations, softmax and residuals.
    assert 1 < counted / config.flops((length,), classes) < 1.03


def test_flops_by_hand():
    config = bert()
    block = 2 * (4 * 64 + 2 * L * 8 + 2 * 8 * 24)
    assert config.flops((L,), V) == pytest.approx(2 * (64 + 8 * V) + 2 * block)
    assert bert(next_sentence=True).flops((L, L), V) - config.flops((L,), V) == pytest.approx(2 * (64 + 2 * 8) / L)
    saved = config.flops((L,), V) - config.flops((L,), V, {"block_0": 0.25, "block_1": 1.0})
    assert saved == pytest.approx(0.75 * 2 * 8 * 24)


def test_a_reduced_bert_is_small_and_of_the_same_kind():
    big = bert(mlp=MLPConfig(3072, TopK(k=96)), d_model=768, layers=12, heads=12, dropout=0.1)
    expected = {"mlp": MLPConfig(32, TopK(k=1)), "d_model": 16, "layers": 2, "heads": 2}
    assert big.reduced(1) == dataclasses.replace(big, **expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "config.heads: 3 does not divide d_model 8"),
        ({"layers": 0}, "config.layers: must be at least 1, got 0"),
        ({"dropout": 1.0}, "config.dropout: must be in [0, 1), got 1.0"),
        ({"position": 4}, 'config.position: unknown key; did you mean "positions"?'),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    section = {"d_model": 8, "layers": 1, "heads": 2, "mlp": {"d_ff": 8, "sparsifier": {"name": "relu"}}}
    with pytest.raises(ConfigError) as caught:
        build(BERTConfig, section | changes)
    assert str(caught.value).startswith(message)


def test_sequences_that_are_too_long_and_sizes_that_do_not_exist_are_refused():
    bert().check_input((9,))
    with pytest.raises(ValueError, match=r"^positions: 9 are too few for sequences of 10 tokens$"):
        bert().check_input((10,))
    with pytest.raises(ValueError, match='unknown size of BERT "small"; valid: base, large'):
        li2022.bert_model("small")
