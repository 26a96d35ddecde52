"""Runs of networks of other kinds than the quickstart's ViT."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from sparsity import recipes
from sparsity.config import ConfigError, differences, to_dict
from sparsity.run import Workdir, run, run_config, smoke
from sparsity.studies import report
from sparsity.writer import read_metrics
from tests.run.runs import Quiet, network_measures

DEEP = {
    "deep_mlp": {"width": 16, "depth": 5, "sparsifier": {"name": "clipped_relu", "sparsity": 0.7, "slope": 0.6}},
    "deep_cnn": {"channels": 4, "depth": 3, "sparsifier": {"name": "soft_threshold", "sparsity": 0.5}},
}


@pytest.mark.parametrize("name", DEEP)
def test_a_deep_network_is_trained_evaluated_and_resumed_like_any_other(name, tiny_config, tmp_path):
    config = tiny_config
    config.model = ConfigDict({"name": name} | DEEP[name])
    config.optimizer = ConfigDict({"learning_rate": 1e-2, "rule": {"name": "sgd"}, "grad_clip": None})
    config.steps, config.evals.names = 3, ("accuracy", "sparsity", "cost")
    outcome = run(run_config(config), tmp_path, Quiet())
    found = network_measures(outcome)
    layers = Workdir(tmp_path).saved_config().model.layers()
    assert [m for m in found if m.startswith("nonzero.")] == ["nonzero.mean", *(f"nonzero.{n}" for n in layers)]
    assert found["flops.model.sparse"].value < found["flops.model.dense"].value
    assert list(read_metrics(tmp_path / "metrics.jsonl")[1]["layers"]) == list(layers)
    config.steps = 4
    assert run(run_config(config), tmp_path, Quiet()).step == 4


def test_a_language_model_is_trained_on_text_evaluated_and_reported(tiny_config, tmp_path):
    config = tiny_config
    noise = {"name": "gaussian", "sigma": 0.5, "schedule": {"name": "removed_at", "step": 1}}
    mlp = {"d_ff": 16, "init": "gpt2", "sparsifier": {"name": "relu"}, "noise": noise}
    config.model = ConfigDict({"name": "gpt2", "d_model": 8, "layers": 1, "heads": 2, "positions": 32, "mlp": mlp})
    config.data = ConfigDict({"name": "text", "length": 32, "stride": 256})
    config.steps, config.every.record, config.every.eval = 2, 1, 1
    config.evals.names = ("language", "sparsity", "neurons", "units", "cost")
    outcome = run(run_config(config), tmp_path, Quiet())
    found = network_measures(outcome)
    # After one update it knows no more than how often a byte comes, at best: 4 nats; at worst all are as likely.
    assert 4 < found["nll"].value < np.log(256) + 0.01
    assert found["perplexity"].value == pytest.approx(np.exp(found["nll"].value))
    assert 0 <= found["accuracy"].value < 0.25
    assert found["flops.model.sparse"].value < found["flops.model.dense"].value
    examples = len(Workdir(tmp_path).saved_config().data.load("test"))
    assert found["nll"].n == found["nonzero.block_0"].n == examples
    assert f"over the {32 * examples} tokens of n test examples" in found["nll"].definition
    validation = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "validation"]
    assert [r["step"] for r in validation] == [0, 1]
    assert {"nll", "accuracy", "nonzero.block_0", "dead.mean"} <= validation[-1].keys()
    report.write_run_report(Workdir(tmp_path))
    assert "perplexity" in Workdir(tmp_path).report.read_text()


def test_a_smoke_run_of_a_language_model_needs_no_text(tiny_config, tmp_path):
    mlp = {"d_ff": 64, "sparsifier": {"name": "relu"}}
    model = {"name": "gpt2", "d_model": 64, "layers": 3, "heads": 8, "positions": 16, "mlp": mlp}
    data = {"name": "wikitext", "path": str(tmp_path / "nothing"), "length": 16}
    config = tiny_config.to_dict() | {"model": model, "data": data, "evals": {"names": ("language",)}}
    small = smoke(run_config(config))
    assert run_config(to_dict(small)) == small
    outcome = run(small, tmp_path / "w", Quiet())
    # 256 equally likely tokens cannot be guessed.
    assert network_measures(outcome)["nll"].value > np.log(256) - 0.1
    with pytest.raises(ConfigError, match=r"^data: no wiki\.train\.raw, wiki\.valid\.raw, wiki\.test\.raw in "):
        run(run_config(config), tmp_path / "real", Quiet())


def test_a_bert_learns_and_is_measured_by_both_of_its_tasks(tmp_path):
    plain = recipes.bert_text()
    plain.model.layers, plain.evals.names = 1, ("language",)
    config = run_config(recipes.with_next_sentence(plain))
    changed = differences(to_dict(run_config(plain)), to_dict(config))
    assert set(changed) == {"name", "model.next_sentence", "data.next_sentence"}
    outcome = run(smoke(config), tmp_path, Quiet())
    found = network_measures(outcome)
    assert found["next_sentence.nll"].value == pytest.approx(np.log(2), abs=0.05)
    assert found["next_sentence.accuracy"].n == found["nll"].n == 16
    train = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["penalty"] for line in train] == pytest.approx([np.log(2)] * 2, abs=0.05)
    assert run_config(to_dict(smoke(config))) == smoke(config)
