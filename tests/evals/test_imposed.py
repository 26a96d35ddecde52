import dataclasses
import re

import jax
import numpy as np
import pytest

from sparsity import recipes
from sparsity.config import ConfigError
from sparsity.evals.imposed import check_imposable, imposed, with_top_k
from sparsity.evals.result import Predictions
from sparsity.models.vit import ViTConfig
from sparsity.ops.sparsifiers import ClippedRelu, Gelu, Relu, TopK
from sparsity.run import Engine, run_config


def with_phi(phi):
    model = run_config(recipes.vit_digits()).model
    return dataclasses.replace(model, mlp=dataclasses.replace(model.mlp, sparsifier=phi))


def test_the_network_is_asked_with_top_k_and_from_all_its_units_on_with_relu(make_subject, make_stats):
    """Four units; what is predicted depends on the units that are kept."""
    asked = []

    def predict_as(model: ViTConfig):
        asked.append(model.mlp.sparsifier)
        wrong = asked[-1] == TopK(3)
        return lambda arrays, noisy=False: Predictions(
            np.eye(3, dtype=np.float32)[np.full(len(arrays["image"]), int(wrong))],
            arrays,
            None,
            {"block_0": make_stats(np.ones((1, 1, 4)))},
        )

    subject = make_subject(np.zeros((2, 3)), np.zeros(2, np.int32), imposed_k=(3, 4, 9))
    result = imposed(dataclasses.replace(subject, predict_as=predict_as))
    assert asked == [TopK(3), Relu(), Relu()]
    measures = {m.name: m for m in result.measures}
    accuracies = [measures[f"imposed.{k}.accuracy"].value for k in (3, 4, 9)]
    assert accuracies == [0.0, 1.0, 1.0]
    assert [measures[f"imposed.{k}.robustness.mean"].value for k in (3, 4, 9)] == accuracies
    assert {"imposed.3.ece", "imposed.3.robustness.shot.5", "imposed.3.nonzero.block_0"} <= measures.keys()
    assert measures["imposed.3.accuracy"].definition.startswith("with the 3 largest of every MLP's positive units kept")


def test_top_k_put_on_is_the_network_of_top_k_with_the_same_weights_and_taken_off_it_is_relu(tiny_config):
    """Two networks made by their own configs, from the same parameters."""
    engines = [Engine(run_config(c)) for c in (tiny_config, recipes.with_top_k(tiny_config, 4))]
    state = engines[0].new_state()[0]
    # The head starts at 0: with it all logits are equal.
    shifted = lambda p: p + 0.3 * np.sin(np.arange(p.size, dtype=np.float32)).reshape(p.shape)
    state = state.replace(params=jax.tree.map(shifted, state.params))
    dense, top_k = (engine.subject(state, "validation") for engine in engines)
    np.testing.assert_array_equal(with_top_k(dense, 4).clean.logits, top_k.clean.logits)
    np.testing.assert_array_equal(with_top_k(top_k, 32).clean.logits, dense.clean.logits)
    assert np.abs(dense.clean.logits - top_k.clean.logits).max() > 0.01


@pytest.mark.parametrize("phi", [Gelu(), TopK(4, act="gelu"), ClippedRelu(tau=1.0, m=1.0)])
def test_activations_that_are_not_relus_are_refused(phi):
    with pytest.raises(ValueError, match=f"Top-k of it; the model has {type(phi).__name__}$"):
        check_imposable(with_phi(phi))


def test_networks_without_mlps_and_evaluations_without_k_are_refused_before_training(make_subject):
    config = recipes.resnet_digits()
    config.evals.imposed_k = (4,)
    with pytest.raises(ConfigError, match=r"the model has no MLPs of one setting$"):
        run_config(config)
    for names, ks in ((("imposed",), ()), (("accuracy",), (0,))):
        config = recipes.vit_digits()
        config.evals.names, config.evals.imposed_k = names, ks
        with pytest.raises(ConfigError, match=re.escape("evals.imposed_k: numbers of units from 1 on are needed")):
            run_config(config)
    with pytest.raises(ConfigError, match=r"^evals.imposed_k: the evaluator imposed needs numbers of units"):
        imposed(make_subject())
