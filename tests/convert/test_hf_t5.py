"""T5s of `transformers`, whose torch implementation is the reference."""

import json

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity import spmd
from sparsity.convert import hf
from sparsity.convert.tensors import check, load
from sparsity.layers.sparsify import Context
from sparsity.train.losses import language
from tests.convert import golden

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peer

V, LENGTH, TARGETS = 100, 300, 40
CASES = {
    "v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
SIZES = {"d_model": 48, "d_kv": 8, "d_ff": 96, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}


@pytest.fixture(scope="module", params=CASES)
def peer(request):
    """A T5 of random weights in torch, its norms' scales too."""
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=V, decoder_start_token_id=0, **SIZES, **CASES[request.param])
    model = transformers.T5ForConditionalGeneration(config).eval()
    if not config.scale_decoder_outputs:  # v1.1's logits have weights of their own, which transformers 5 ties
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def saved(peer, tmp_path_factory):
    """Its directory, in several files."""
    path = tmp_path_factory.mktemp("t5")
    peer.save_pretrained(path, max_shard_size="100KB")
    assert (path / hf.INDEX).is_file()
    return path


@pytest.fixture(scope="module")
def converted(saved):
    """(settings, module, parameters) of ours."""
    reader = hf.HuggingFace(saved)
    config, classes = hf.t5_config(reader.config)
    module = config.build(classes)
    zeros = [jnp.zeros((1, 4), jnp.int32)] * 4
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), *zeros, Context()))["params"]
    mesh = spmd.make_mesh(spmd.MeshConfig(data=2, model=4))
    placed = spmd.shardings(mesh, spmd.param_specs(boxed))
    shapes = flax.core.meta.unbox(boxed)
    abstract = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)
    head = "lm_head.weight" if "lm_head.weight" in reader.shapes() else "shared.weight"
    tensors = hf.t5_tensors(config, head)
    flat = {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()}
    check(tensors, flat, reader.shapes(), hf.t5_ignored(config.tied).fullmatch)
    return config, module, jax.device_get(load(tensors, abstract, reader))


@pytest.fixture(scope="module")
def batch():
    """Random tokens; the second row has 50 of padding."""
    return golden.batch(V, LENGTH, TARGETS, padding=50)


def of_torch(peer, batch, **settings):
    read = {"input_ids": "inputs", "attention_mask": "input_segments", "labels": "targets"}
    return peer(**{theirs: torch.tensor(batch[ours]).long() for theirs, ours in read.items()}, **settings)


def of_ours(converted, params, batch):
    config, module, _ = converted
    arrays = (batch[name] for name in config.inputs)
    return module.apply({"params": params}, *arrays, Context(), mutable=["intermediates"])


def assert_close(ours, theirs, what, relative):
    theirs = theirs.detach().numpy()
    assert np.abs(ours - theirs).max() < relative * np.abs(theirs).max(), what


def test_logits_and_hidden_states_are_those_of_torch(peer, converted, batch):
    with torch.no_grad():
        expected = of_torch(peer, batch, output_hidden_states=True)
    logits, kept = jax.jit(lambda p: of_ours(converted, p, batch))(converted[2])
    # Float32 throughout; the bar of the project is 2e-4, both are exact to 1e-6 or so.
    assert_close(logits, expected.logits, "logits", 5e-6)
    real = batch["input_segments"] > 0
    for stack, states, rows in (
        ("encoder", expected.encoder_hidden_states, real),
        ("decoder", expected.decoder_hidden_states, slice(None)),
    ):
        ours = kept["intermediates"][stack]["layers"]["x"]
        for i in range(len(ours) - 1):  # the last of theirs is after the norm
            assert_close(np.asarray(ours[i])[rows], states[i + 1][rows], f"{stack}_{i}", 5e-6)


def test_gradients_of_the_loss_are_those_of_torch(peer, converted, batch):
    peer.zero_grad()
    loss = of_torch(peer, batch).loss
    loss.backward()

    def ours(params):
        sums = jax.tree.map(jnp.sum, language(of_ours(converted, params, batch)[0], batch))
        return sums.loss / sums.count

    value, grads = jax.jit(jax.value_and_grad(ours))(converted[2])
    assert float(value) == pytest.approx(loss.item(), rel=1e-6)
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters()}
    flat = flax.traverse_util.flatten_dict(grads, sep="/")
    for path, tensor in hf.t5_tensors(converted[0]).items():
        for i, name in enumerate(tensor.names):
            one = flat[path][i] if tensor.stacked else flat[path]
            assert_close(one.T if tensor.order else one, theirs[name], name, 1e-4)


def test_there_and_back_is_the_same_to_the_byte(peer, converted, saved, tmp_path):
    from safetensors.numpy import load_file

    config, _, params = converted
    hf.write_t5(params, config, V, tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    there = {name: tensor for file in saved.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert set(back) == {name for name in there if not hf.t5_ignored(config.tied).fullmatch(name)}
    for name, tensor in back.items():
        assert (tensor.dtype, tensor.tobytes()) == (there[name].dtype, there[name].tobytes()), name
    again = dict(transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "back").named_parameters())
    for name, one in peer.named_parameters():
        assert torch.equal(one, again[name]), name


@pytest.mark.parametrize("case", golden.CASES)
def test_golden_values_are_those_of_torch(case):
    """To make the file anew: python -m tests.convert.test_hf_t5."""
    expected, found = golden.golden(case), golden_values(case)
    assert found.pop("greedy") == expected.pop("greedy")
    norms, theirs = (values.pop("gradient_norms") for values in (found, expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), norms, theirs)
    for name, values in found.items():
        # Of the largest: a number near 0 is what is left of float32 sums of larger ones, which torch's versions round.
        assert np.abs(np.subtract(values, expected[name])).max() < 1e-5 * np.abs(expected[name]).max(), name


def golden_values(case):
    """What golden_t5.json has of a case."""
    config = transformers.T5Config(decoder_start_token_id=0, **golden.CASES[case])
    peer = transformers.T5ForConditionalGeneration(config).eval()
    tensors = {name: torch.tensor(tensor) for name, tensor in golden.checkpoint(case).items()}
    if "lm_head.weight" in tensors:  # transformers 5 ties them
        peer.lm_head.weight = torch.nn.Parameter(tensors["lm_head.weight"].clone())
    left = peer.load_state_dict(tensors, strict=False)
    assert not left.unexpected_keys
    assert all("embed_tokens" in name or name == "lm_head.weight" for name in left.missing_keys), left.missing_keys
    batch = golden.batch()
    out = of_torch(peer, batch, output_hidden_states=True)
    out.loss.backward()
    norms = {}
    of = dict(peer.named_parameters())
    for path, tensor in hf.t5_tensors(hf.t5_config(golden.CASES[case])[0]).items():
        norms[path] = float(torch.sqrt(sum((of[name].grad.double() ** 2).sum() for name in tensor.names)))
    mask = torch.tensor(batch["input_segments"]).long()
    tokens = peer.generate(
        torch.tensor(batch["inputs"]).long(), attention_mask=mask, max_new_tokens=golden.GENERATED, do_sample=False
    )[:, 1:]
    digits = lambda x: [float(f"{v:.7g}") for v in x.detach().numpy()]
    return {
        "logits": digits(out.logits[0, -1]),
        "encoder_0": digits(out.encoder_hidden_states[1][0, 5]),
        "decoder_0": digits(out.decoder_hidden_states[1][0, 5]),
        "loss": out.loss.item(),
        "gradient_norms": norms,
        "greedy": np.pad(tokens.numpy(), ((0, 0), (0, golden.GENERATED - tokens.shape[1]))).tolist(),
    }


if __name__ == "__main__":
    golden.FILE.write_text(json.dumps({case: golden_values(case) for case in golden.CASES}, indent=1) + "\n")
