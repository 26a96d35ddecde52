"""Language models of random parameters as evaluators see them."""

import flax
import jax
import numpy as np

from sparsity.evals.predict import make_predict
from sparsity.evals.result import EvalConfig, Subject
from sparsity.layers.sparsify import Context
from sparsity.spmd import MeshConfig, make_mesh
from sparsity.train.losses import language


def predict_of(source, model):
    """The compiled forward pass, for any parameters."""
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    return make_predict(model.build(source.classes), model.inputs, language, mesh, 16, keep_outputs=False)


def language_subject(source, model, predict, broken=False, **config):
    """A subject of random parameters, large enough that a cut costs something; broken ones are not numbers."""
    inputs = [np.zeros((1, *source.inputs[name].shape), np.int32) for name in model.inputs]
    init = lambda: model.build(source.classes).init(jax.random.key(0), *inputs, Context())
    rng = np.random.default_rng(0)
    draw = lambda p: rng.normal(0, 0.5, p.shape).astype(p.dtype)
    variables = jax.tree.map(draw, flax.core.meta.unbox(jax.eval_shape(init)))
    if broken:
        variables["params"]["embedding"][:] = np.nan
    return Subject(
        predict=lambda arrays, **settings: predict(variables, arrays, **settings),
        source=source,
        load=source.load,
        model=model,
        params=variables["params"],
        mesh=None,
        noise=None,
        config=EvalConfig(names=(), **config),
        seed=0,
    )
