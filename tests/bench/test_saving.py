"""What the suite's arms compute and what its facts say; never their times."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.bench import saving
from sparsity.bench.protocol import Bar
from sparsity.bench.saving import ACTIVATIONS, CLASSES, IMAGE, LAYOUTS, TINY
from sparsity.evals.sparsity import by_layer, nonzero_fraction
from sparsity.layers.sparsify import STATS, Context
from sparsity.ops.sparse_matmul import gathered_matmul
from sparsity.ops.sparsifiers import ClippedRelu, Relu


@pytest.fixture(scope="module")
def start():
    return {name: saving.initial(TINY.config(name), TINY.copies) for name in ACTIVATIONS}


@pytest.fixture(scope="module")
def networks(start):
    return {name: [saving.unstacked(params) for params in copies] for name, copies in start.items()}


@pytest.fixture(scope="module", params=saving.BATCHES)
def inference(request, networks):
    return saving._inference(TINY, request.param, networks)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_product_gives_the_logits_and_zeros_of_the_model(name, start, networks):
    images, config = saving.draw_images(6, seed=0), TINY.config(name)
    apply = config.build(CLASSES).apply
    recorded = jax.jit(lambda params: apply({"params": params}, images, Context(record=True), mutable=[STATS]))
    want, updates = recorded(start[name][1])
    stats = by_layer(updates[STATS])
    products = LAYOUTS | {"gathered": functools.partial(gathered_matmul, capacity=TINY.width)}
    for layout, product in products.items():
        params = networks[name][1] if layout == "gathered" else saving.laid_out(networks[name], layout)[1]
        logits, all_h = jax.jit(lambda p, x, f=product: saving.forward(p, x, ACTIVATIONS[name], f))(params, images)
        np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)
        for h, layer in zip(all_h, config.layers(), strict=True):
            assert np.mean(np.asarray(h) != 0) == pytest.approx(nonzero_fraction(stats[layer])[0], abs=1e-6)


def test_copies_are_different_networks(networks):
    first, second = networks["relu"]
    assert not np.allclose(first[1][0], second[1][0])


def test_images_have_the_mean_square_that_networks_start_from():
    images = np.asarray(saving.draw_images(5, seed=0))
    assert images.shape == (5, *IMAGE)
    np.testing.assert_allclose(np.mean(images**2, axis=(1, 2, 3)), 1, rtol=1e-6)


def test_capacity_is_five_deviations_above_independent_rows():
    crelu = ClippedRelu(sparsity=0.85, slope=0.7)
    assert saving.capacity(Relu(), 300, 1) == 194  # 150 + 5 sqrt(75)
    assert saving.capacity(crelu, 300, 1) == 76  # 45 + 5 sqrt(38.25)
    assert saving.capacity(crelu, 300, 8) == 257  # 218.2 + 5 sqrt(59.5)
    assert saving.capacity(Relu(), 300, 8) == 300


def test_every_size_exceeds_the_caches():
    for shape in saving.SHAPES:
        matrices = (shape.depth - 1) * shape.width**2 * 4 * shape.copies
        assert matrices >= 3 * (32 << 20)


def test_arms_agree_with_their_own_activation(inference):
    assert {bar.arm for bar in inference.bars} | {"relu dense"} == inference.arms.keys()
    for name in ACTIVATIONS:
        facts = inference.facts[name]
        assert facts["largest difference / largest logit"] < 1e-5
        assert facts["fallback share"] <= 0.1
    json.dumps(inference.facts)


def test_facts_count_what_is_read(inference):
    """Bytes and FLOPs of one network, by the numbers of its units."""
    width, inputs = TINY.width, int(np.prod(IMAGE))
    dense = 4 * ((inputs + 1) * width + 2 * (width + 1) * width + (width + 1) * CLASSES)
    for name in ACTIVATIONS:
        facts = inference.facts[name]
        density, active = np.array(facts["density"]), np.array(facts["active"])
        assert ((density > 0) & (density <= active) & (active <= 1)).all()
        gathered = dense - 4 * width**2 * np.sum(1 - active[:2])
        assert facts["bytes"] == {"dense": dense, "gathered": pytest.approx(gathered, rel=1e-3)}
        assert facts["bound"] == pytest.approx(dense / gathered, rel=1e-3)
        flops = 2 * (inputs * width + 2 * width**2 + width * CLASSES)
        kept = 2 * (inputs * width + width**2 * (density[0] + density[1]) + width * CLASSES * density[2])
        assert facts["flops per image"] == {"dense": flops, "zeros skipped": pytest.approx(kept, rel=1e-3)}


def test_density_is_what_the_activation_was_made_for(inference):
    for name, expected in (("relu", 0.5), ("crelu", 0.15), ("cst", 0.15)):
        assert np.mean(inference.facts[name]["density"]) == pytest.approx(expected, abs=0.06)
        if inference.facts["batch"] == 1:
            assert inference.facts[name]["active"] == inference.facts[name]["density"]


def test_fallbacks_are_counted_and_change_nothing(networks, monkeypatch):
    monkeypatch.setattr(saving, "capacity", lambda phi, width, batch: 1)
    facts = saving._inference(TINY, 1, networks).facts
    for name in ACTIVATIONS:
        assert facts[name]["capacity"] == 1
        assert facts[name]["fallback share"] > 0.9
        assert facts[name]["largest difference / largest logit"] < 1e-5


def test_an_input_that_is_not_finite_is_refused(networks, monkeypatch):
    monkeypatch.setattr(saving, "draw_images", lambda count, seed: jnp.full((count, *IMAGE), jnp.nan))
    with pytest.raises(AssertionError, match="logits that are not finite"):
        saving._inference(TINY, 1, networks)


def test_promises_are_made_for_one_image_and_wide_layers_at_85_percent():
    paper, wide, _ = saving.SHAPES
    bar = lambda shape, batch, name: saving._gathered_bar(shape, batch, name, 6.0)
    assert bar(wide, 1, "crelu") == Bar("crelu gathered", "relu dense", 0.5, 0.25)
    for other in ((paper, 1, "crelu"), (wide, 8, "crelu"), (wide, 1, "relu")):
        assert bar(*other).at_most is None
    assert saving._gathered_bar(wide, 8, "relu", 1.0).aim == 1.0  # nothing to skip: no slower


def test_training_takes_steps_and_counts_their_flops(start):
    case = saving._training(TINY, {name: copies[0] for name, copies in start.items()})
    for name, arm in case.arms.items():
        config, facts = TINY.config(name), case.facts[name]
        losses = [float(arm()[1]) for _ in range(3)]
        assert losses[2] < losses[0]
        first, hidden = 2 * int(np.prod(IMAGE)) * TINY.width, sum(config.skippable_flops(IMAGE, CLASSES).values())
        assert facts["flops per image"]["dense"] == 2 * first + 3 * hidden  # images get no gradient
        density = dict(zip(config.layers(), facts["density"], strict=True))
        kept = 2 * config.flops(IMAGE, CLASSES, density) + hidden
        assert facts["flops per image"]["zeros skipped"] == pytest.approx(kept, rel=1e-3)
        assert not start[name][0]["head"]["kernel"].is_deleted()
    assert dataclasses.asdict(TINY).items() <= case.facts.items()
