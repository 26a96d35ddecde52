"""T5 against what torch made of the same checkpoints, without torch; test_hf_t5.py keeps the file true."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.convert import hf
from sparsity.data.vocabularies import EOS
from sparsity.decode.generate import make_generate
from sparsity.layers.sparsify import Context
from sparsity.train.losses import language
from tests.convert import golden


@pytest.fixture(scope="module", params=golden.CASES)
def case(request):
    return request.param


def test_logits_hidden_states_loss_and_gradients(case):
    config, module, _ = golden.model(case)
    params, batch, expected = golden.parameters(case), golden.batch(), golden.golden(case)

    def forward(params):
        arrays = (batch[name] for name in config.inputs)
        logits, kept = module.apply({"params": params}, *arrays, Context(), mutable=["intermediates"])
        sums = jax.tree.map(jnp.sum, language(logits, batch))
        return sums.loss / sums.count, (logits, kept["intermediates"])

    (loss, (logits, hidden)), grads = jax.jit(jax.value_and_grad(forward, has_aux=True))(params)
    # Both are float32: sums of some hundred terms in another order. The file has 7 digits.
    close = lambda ours, theirs, relative: np.abs(ours - np.asarray(theirs)).max() < relative * np.abs(theirs).max()
    assert close(logits[0, -1], expected["logits"], 5e-6)
    assert close(hidden["encoder"]["layers"]["x"][0, 0, 5], expected["encoder_0"], 5e-6)
    assert close(hidden["decoder"]["layers"]["x"][0, 0, 5], expected["decoder_0"], 5e-6)
    assert float(loss) == pytest.approx(expected["loss"], rel=2e-6)
    norms = {
        path.removeprefix("['").removesuffix("']").replace("']['", "/"): float(jnp.linalg.norm(leaf.ravel()))
        for path, leaf in ((jax.tree_util.keystr(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(grads))
    }
    assert set(norms) == set(expected["gradient_norms"]) == set(hf.t5_tensors(config))
    for path, norm in expected["gradient_norms"].items():
        assert norms[path] == pytest.approx(norm, rel=2e-5), path


def test_greedy_tokens(case):
    _, module, _ = golden.model(case)
    batch, expected = golden.batch(), golden.golden(case)["greedy"]
    generate = make_generate(module, golden.GENERATED, EOS)
    got = np.asarray(generate(golden.parameters(case), batch["inputs"], batch["input_segments"]))
    np.testing.assert_array_equal(got, expected)
    assert len(set(got.ravel().tolist())) > 8  # it does not repeat itself
