import dataclasses

import numpy as np
import pytest
from scipy.stats import sem

from sparsity.evals.cost import cost
from sparsity.models.deep_cnn import DeepCNNConfig
from sparsity.models.deep_mlp import DeepMLPConfig
from sparsity.ops.sparsifiers import Relu

# The fake model: D = 2, F = 4, two blocks, four patches of 2x2x1 pixels, mean pooling, three classes.
SECOND = 2 * (2 * 2 * 4)  # both second matrices, per token
WHOLE = 2 * (4 * 4 * 2 + 2 * 3) / 4 + 2 * (2 * 4 * 2 * 2 + 2 * 2 * 4 * 2 + 2 * 2 * 2 * 4)


def random_z(seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(rng.normal(shift, 1, (20, 1, 1)), 1.0, (20, 4, 4)).astype(np.float32)


def measures(subject):
    return {m.name: m for m in cost(subject).measures}


def test_dense_flops_and_parameters_are_exact(make_subject, make_stats):
    found = measures(make_subject(stats={f"block_{i}": make_stats(random_z(i)) for i in range(2)}))
    assert found["flops.second_layer.dense"].value == SECOND
    assert found["flops.model.dense"].value == pytest.approx(WHOLE, rel=1e-15)
    assert found["parameters"].value == 123
    for name in ("flops.second_layer.dense", "flops.model.dense", "parameters"):
        assert found[name].se is None


def test_skipping_zeros_saves_each_layers_own_share(make_subject, make_stats):
    z = [random_z(0), random_z(1, shift=-1)]
    found = measures(make_subject(stats={f"block_{i}": make_stats(x) for i, x in enumerate(z)}))
    shares = [(x > 0).mean((1, 2)) for x in z]
    assert shares[1].mean() < shares[0].mean() < 1
    sparse = SECOND / 2 * sum(s.mean() for s in shares)
    # Recorded sums are float32.
    assert found["flops.second_layer.sparse"].value == pytest.approx(sparse, rel=1e-6)
    assert found["flops.model.sparse"].value == pytest.approx(WHOLE - SECOND + sparse, rel=1e-6)
    bound = SECOND / 2 * sum(sem(s) for s in shares)
    per_example = SECOND / 2 * sum(shares)
    for name in ("flops.second_layer.sparse", "flops.model.sparse"):
        assert found[name].se == pytest.approx(bound, rel=1e-5)
        assert found[name].se > sem(per_example)
        assert found[name].n == 20


def test_without_zeros_nothing_is_saved(make_subject, make_stats):
    stats = dict.fromkeys(("block_0", "block_1"), make_stats(np.ones((3, 4, 4))))
    found = measures(make_subject(stats=stats))
    assert found["flops.second_layer.sparse"].value == found["flops.second_layer.dense"].value
    assert found["flops.model.sparse"].value == found["flops.model.dense"].value
    assert found["flops.second_layer.sparse"].se == 0


def test_all_zeros_leave_nothing_of_the_second_layer(make_subject, make_stats):
    stats = dict.fromkeys(("block_0", "block_1"), make_stats(-np.ones((3, 4, 4))))
    found = measures(make_subject(stats=stats))
    assert found["flops.second_layer.sparse"].value == 0
    assert found["flops.model.sparse"].value == pytest.approx(WHOLE - SECOND, rel=1e-15)


def test_a_nan_layer_claims_no_saving_at_all(make_subject, make_stats):
    broken = random_z(0)
    broken[0, 0, 0] = np.nan
    found = measures(make_subject(stats={"block_0": make_stats(broken), "block_1": make_stats(random_z(1))}))
    assert found.keys() == {"flops.second_layer.dense", "flops.model.dense", "parameters"}


def test_one_example_gives_a_saving_of_unknown_error(make_subject, make_stats):
    stats = dict.fromkeys(("block_0", "block_1"), make_stats(random_z(0)[:1]))
    assert measures(make_subject(stats=stats))["flops.second_layer.sparse"].se is None


def test_every_measure_prints_with_its_unit(make_subject, make_stats):
    stats = {f"block_{i}": make_stats(random_z(i)) for i in range(2)}
    printed = {name: str(m) for name, m in measures(make_subject(stats=stats)).items()}
    assert printed["flops.second_layer.dense"] == "32 FLOPs"
    assert printed["parameters"] == "123"
    assert all(text.endswith(" FLOPs") for name, text in printed.items() if name.startswith("flops."))


def test_a_model_that_recorded_nothing_claims_no_saving(make_subject):
    names = {m.name for m in cost(make_subject()).measures}
    assert "parameters" in names
    assert not any(name.endswith(".sparse") for name in names)


@pytest.mark.parametrize("config", [DeepMLPConfig(4, 3, Relu()), DeepCNNConfig(4, 3, Relu())], ids=["mlp", "cnn"])
def test_zeros_of_a_deep_network_save_in_the_matrix_that_reads_them(make_subject, make_stats, config):
    stats = {name: make_stats(random_z(i)) for i, name in enumerate(config.layers())}
    subject = dataclasses.replace(make_subject(stats=stats), model=config)
    found, shape = measures(subject), (4, 4, 1)
    skippable = config.skippable_flops(shape, 3)
    saved = sum((1 - (random_z(i) > 0).mean()) * skippable[name] for i, name in enumerate(config.layers()))
    for which in ("flops.second_layer", "flops.model"):
        assert found[f"{which}.dense"].value - found[f"{which}.sparse"].value == pytest.approx(saved, rel=1e-5)
    assert found["flops.model.dense"].value == config.flops(shape, 3)
