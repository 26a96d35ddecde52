"""T5 at the sizes of Li et al. 2022: every hyperparameter that is printed, and that its largest size compiles.

Nothing here trains. The numbers come from the paper's App. A.1 and from T5X's `base_c4_pretrain`, not from the configs.
"""

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding

from launch.cli import load_study_config
from sparsity import axes, recipes, spmd
from sparsity.run import Machine, plan_step, run_config
from sparsity.studies.li2022.runs import Arm, arm_and_seed
from sparsity.train.state import init_fn, state_specs
from tests.papers import paper_runs, setting

CONFIGS = Path(__file__).parents[1] / "configs"
C4 = {
    "steps": (100_000, "A.1"),
    "batch": (256, "A.1"),
    "z_loss": (1e-4, "T5X"),
    "model.name": ("t5", "A.1"),
    "model.dropout": (0.1, "A.1: 0.1, as T5 had it"),
    "model.mlp.dropout": (0.1, "T5X: inside the MLP too, after the activation"),
    "model.mlp.gated": (False, "v1.0"),
    "model.mlp.use_bias": (False, "T5 has no biases"),
    "model.mlp.init": ("t5", "T5X"),
    "model.tied": (True, "v1.0"),
    "data.name": ("prepared_text", "A.1: C4"),
    "data.length": (512, "A.1"),
    "optimizer.rule.name": ("adafactor", "A.1"),
    "optimizer.learning_rate": (0.01, "A.1: 1 / sqrt(10,000)"),
    "optimizer.schedule": ({"name": "inverse_square_root", "warmup": 10_000}, "A.1"),
    "optimizer.grad_clip": (None, "none is mentioned"),
}
BASE, LARGE, THREE_B = Arm(768, 12, 3072), Arm(1024, 24, 4096), Arm(1024, 24, 16_384)
STUDIES = {
    "li2022/t5_prevalence": ({Arm(512, 6, 2048), BASE, LARGE, THREE_B}, ("800 texts", "multi-task")),
    "li2022/t5_scale": (
        {BASE._replace(layers=n) for n in (4, 8, 12, 16, 24, 32)}
        | {BASE._replace(d_ff=n) for n in (768, 1536, 3072, 6144, 12_288)},
        ("neither the depths nor the widths",),
    ),
    "li2022/t5_top_k": (
        {arm._replace(k=k) for arm in (BASE, LARGE, THREE_B) for k in (None, 16, 32, 64, 128, 256, 512)},
        ("padding left out", "(paper) k of 16 to 512"),
    ),
    "li2022/t5_no_skip": ({LARGE, LARGE._replace(without="encoder_6")}, ("encoder layer 6, counted from 0",)),
}


def test_every_t5_study_with_runs_at_the_papers_scale_is_in_the_table():
    files = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.glob("li2022/t5_*.py")}
    assert {name for name in files if paper_runs(name)} == set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
class TestStudy:
    def test_every_arm_is_run_once(self, name):
        found = [arm_and_seed(config.name) for config in paper_runs(name)]
        assert len(found) == len(set(found))
        assert set(found) == {(arm, 0) for arm in STUDIES[name][0]}

    def test_every_run_has_the_hyperparameters_and_is_what_its_name_says(self, name):
        for config in paper_runs(name):
            assert {key: setting(config, key) for key in C4} == {key: value for key, (value, _) in C4.items()}
            arm, seed = arm_and_seed(config.name)
            model, k = config.model, getattr(config.model.mlp.sparsifier, "k", None)
            (removed,) = model.without_skip or (None,)
            assert Arm(model.d_model, model.layers, model.mlp.d_ff, k, removed) == arm
            assert (model.depth("decoder"), config.seed) == (arm.layers, seed)

    def test_what_the_paper_leaves_open_is_said_to_be_assumed(self, name):
        flat = " ".join(load_study_config(name).__doc__.partition("assumed:")[2].split())
        for words in STUDIES[name][1]:
            assert words in flat, words


def eleven_billion(k=None):
    """T5-11B as a slice of 32 chips trains it: 4 x 8 devices, 16 rows, layers computed again when needed."""
    config = recipes.t5_c4("11b")
    if k is not None:
        config = recipes.with_top_k(config, k)
        config.model.mlp.sparsifier.method = "statistical"
    config.model.remat, config.mesh, config.batch = "full", {"data": 4, "model": 8}, 16
    return run_config(config)


def test_of_eleven_billion_parameters_each_of_4_x_8_devices_has_an_eighth():
    """Hidden units, heads and vocabulary are split 8 ways; 4 devices hold the same, of other rows of the batch."""
    config, mesh = eleven_billion(), AbstractMesh((4, 1, 1, 8), axes.MESH_AXES)
    model, (tx, _) = config.model.build(config.data.classes), config.optimizer.build(config.steps)
    inputs = [np.zeros((1, *config.data.inputs[n].shape), config.data.inputs[n].dtype) for n in config.model.inputs]
    state, specs = jax.eval_shape(init_fn(model, tx, 0, inputs)), state_specs(model, tx, inputs)
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(state.params)) == pytest.approx(11.3e9, rel=5e-3)
    spmd.check_divisible(state.params, specs.params, mesh)
    of_shard = lambda leaf, spec: math.prod(NamedSharding(mesh, spec).shard_shape(leaf.shape))
    shards = jax.tree.map(of_shard, state, specs)
    for (path, leaf), shard in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(shards), strict=True):
        if math.prod(leaf.shape) > 2**22:
            assert shard == math.prod(leaf.shape) // 8, jax.tree_util.keystr(path)
    # Adafactor's factors are a thousandth of what they stand for.
    total = sum(jax.tree.leaves(shards.params))
    assert total == pytest.approx(11.3e9 / 8, rel=5e-3)
    assert sum(jax.tree.leaves(shards.opt_state)) < 1e-2 * total


@pytest.mark.aot
@pytest.mark.parametrize(("topology", "k"), [("v5e:4x8", None), ("v4:2x4x4", 128)])
def test_a_training_step_of_11b_fits_32_chips(tpu_slice, capsys, topology, k):
    plan = plan_step(eleven_billion(k), Machine.of(topology))
    with capsys.disabled():
        print(f"\n{plan.text()}")
    assert plan.fits
    assert plan.program.peak < plan.machine.memory
    # Each chip adds up the gradients of its eighth with the three others that have it, in the model's bfloat16.
    kinds = ("all-reduce", "reduce-scatter")
    added = sum(c.times * c.bytes for c in plan.program.exchanged if c.devices == 4 and c.kind in kinds)
    assert added == pytest.approx(plan.parameter_bytes / 2, rel=0.01)
