"""GPT-2, BERT and Llama of `transformers`, whose torch implementations are the reference."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from sparsity.convert import hf_text
from tests.convert import images, texts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peer

KINDS = {
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
    "bert": (transformers.BertConfig, transformers.BertForMaskedLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}
LARGER = {
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": 96},
    "bert": {
        "vocab_size": 96,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    },
    "llama": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 96,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
}


def of_torch(module, tokens):
    with torch.no_grad():
        return module.eval()(torch.tensor(tokens.astype(np.int64))).logits.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_a_random_checkpoint(kind, tmp_path):
    torch.manual_seed(0)
    config, model = KINDS[kind]
    module = model(config(**LARGER[kind]))
    with torch.no_grad():
        for parameter in module.parameters():  # norms and biases too, which start at 1 and 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    module.save_pretrained(tmp_path)
    found = texts.OPEN[kind](tmp_path)
    tokens = np.random.default_rng(0).integers(0, 90, (2, 100)).astype(np.int32)
    ours, theirs = texts.logits_of(found, tokens), of_torch(module, tokens)
    # Issue and tests of T5: below 2e-4 of the logits' scale, float32.
    assert np.abs(ours - theirs).max() < 2e-4 * np.abs(theirs).max()


def test_both_heads_of_a_random_bert(tmp_path):
    torch.manual_seed(1)
    module = transformers.BertForPreTraining(transformers.BertConfig(**LARGER["bert"])).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    module.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    tokens, segments = rng.integers(0, 90, (3, 50)), np.repeat([0, 1], [20, 30]) * np.ones((3, 1), int)
    with torch.no_grad():
        theirs = module(torch.tensor(tokens), token_type_ids=torch.tensor(segments))
    found = hf_text.open_bert(tmp_path, next_sentence=True)
    ours = texts.outputs_of(found, tokens.astype(np.int32), segments.astype(np.int32))
    for mine, other in ((ours.tokens, theirs.prediction_logits), (ours.next_sentence, theirs.seq_relationship_logits)):
        assert np.abs(mine - other.numpy()).max() < 2e-4 * np.abs(other.numpy()).max()


def golden_values():
    """What golden_texts.json has."""
    out = {}
    for case in texts.CONFIGS:
        with tempfile.TemporaryDirectory() as path:
            images.write_safetensors(Path(path), texts.tensors_of(case), texts.CONFIGS[case])
            module = KINDS[case.split()[0]][1].from_pretrained(path)
        out[case] = [[[float(f"{x:.7g}") for x in row] for row in one] for one in of_torch(module, texts.TOKENS)]
    return out


def test_golden_values_are_those_of_torch():
    """To make the file anew: python -m tests.convert.test_peer_text."""
    found = golden_values()
    assert set(found) == set(json.loads(texts.FILE.read_text()))
    for case, logits in found.items():
        np.testing.assert_allclose(np.asarray(logits), texts.golden(case), rtol=2e-5, atol=1e-6)


if __name__ == "__main__":
    texts.FILE.write_text(json.dumps(golden_values()) + "\n")
