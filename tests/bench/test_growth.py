"""What the suite's arms compute and promise; never their times."""

import pytest

from sparsity.bench import growth


def test_each_size_is_doubled_alone():
    plain = growth.sized(smoke=False)
    read = {
        "batch": lambda config: config.batch,
        "length": lambda config: config.data.length,
        "d_ff": lambda config: config.model.mlp.d_ff,
        "k": lambda config: config.model.mlp.sparsifier.k,
        "layers": lambda config: (config.model.layers, config.model.decoder_layers),
    }
    assert read.keys() == growth.GROWN.keys()
    for what, (_, size) in growth.GROWN.items():
        grown = growth.sized(smoke=False, **{what: 2 * size})
        changed = {name for name, get in read.items() if get(grown) != get(plain)}
        assert changed == {what}


def test_a_doubled_batch_doubles_the_products_and_the_promise_leaves_room():
    case = growth._case("batch", smoke=True)
    flops = list(case.facts["flops"].values())
    assert flops[2] == pytest.approx(2 * flops[1], rel=1e-2) == pytest.approx(4 * flops[0], rel=2e-2)
    assert [(bar.arm, bar.base) for bar in case.bars] == [("batch 16", "batch 8"), ("batch 32", "batch 16")]
    for bar in case.bars:
        assert bar.at_most == pytest.approx(1.25 * bar.aim) == pytest.approx(2.5, rel=1e-2)
    losses = [float(case.arms["batch 8"]()[1].loss) for _ in range(6)]
    assert losses[-1] < losses[0]
