"""The papers' own runs: every hyperparameter that a paper prints, and that its sizes compile.

Nothing here trains. The numbers come from the papers' text, not from the configs.
"""

import csv
import dataclasses
import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from launch.cli import load_study_config
from sparsity import axes
from sparsity.ops.sparsifiers import SPARSIFIERS
from sparsity.run import Engine, cost, run_config
from tests.papers import paper_runs, setting

# Table 2 of Price et al. has two rows above the bifurcation: they warn, and proceed.
pytestmark = pytest.mark.filterwarnings("ignore::sparsity.theory.edge_of_chaos.BifurcationWarning")

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclasses.dataclass(frozen=True)
class Paper:
    """What a paper says of the runs of one config file at the paper's scale.

    Attributes:
      settings: dotted key -> (value, where the paper says so).
      epochs: over `examples`, the training images less those held out; None where `steps` counts instead.
      steps: the length of a run, where the paper prints steps.
      rows: (sparsifier, sparsity, slope) of the runs; seeds: runs of each.
      assumed: what the paper leaves open, by words that an `assumed:` line of the docstring must have.
    """

    settings: dict
    rows: frozenset
    seeds: int
    assumed: tuple[str, ...]
    epochs: int | None = None
    examples: int | None = None
    steps: int | None = None


def price_table2():
    """Price et al. 2024, Table 2, as printed: (sparsifier, s, V') -> (tau, m)."""
    names = {"ReLU_tau": "shifted_relu", "ST_tau": "soft_threshold"}
    names |= {"CReLU_tau_m": "clipped_relu", "CST_tau_m": "clipped_soft_threshold"}
    with open(CONFIGS / "price2024" / "price_table2.csv") as file:
        rows = list(csv.DictReader(file))
    out = {}
    for row in rows:
        name = "relu" if row["activation"] == "ReLU_tau" and float(row["tau"]) == 0 else names[row["activation"]]
        slope = float(row["Vprime"]) if row["m"] else None
        out[name, float(row["s"]), slope] = (float(row["tau"]), float(row["m"]) if row["m"] else None)
    return out


TABLE2 = frozenset(price_table2())
SGD = {
    "optimizer.rule": ({"name": "sgd", "momentum": 0.0}, "Sec. 4: stochastic gradient descent; momentum assumed"),
    "optimizer.schedule": ({"name": "constant", "warmup": 0}, "Sec. 4 prints one learning rate"),
    "optimizer.grad_clip": (None, "none is mentioned"),
    "model.q": (1.0, "Sec. 4: initialised at the EoC using q* = 1"),
    "data.held_out": (0.1, "App. D: 10% of the training set"),
    "evals.split": ("test", "App. D: results on the test set"),
    "evals.names": (["accuracy", "sparsity"], "Table 2: test accuracy and test sparsity"),
}
DNN = SGD | {
    "data.name": ("mnist", "Sec. 4"),
    "model.name": ("deep_mlp", "Sec. 4: feedforward networks"),
    "model.width": (300, "Sec. 4"),
    "model.depth": (100, "Sec. 4"),
    "optimizer.learning_rate": (1e-4, "App. C"),
}
CNN = SGD | {
    "data.name": ("cifar10", "Sec. 4"),
    "model.name": ("deep_cnn", "Sec. 4"),
    "model.channels": (300, "Sec. 4"),
    "model.depth": (50, "Sec. 4"),
    "optimizer.learning_rate": (1e-3, "App. C; Sec. 4's exponent is illegible"),
}
FIG5 = {("clipped_relu", 0.85, 0.9), ("clipped_soft_threshold", 0.85, 0.8)}  # its two panels
TRAIN_WELL = {("relu", 0.5, None), ("clipped_relu", 0.85, 0.7)}  # for comparison
KEY_ROWS = TRAIN_WELL | {
    *(("shifted_relu", s, None) for s in (0.6, 0.7)),
    ("soft_threshold", 0.5, None),
    *(("clipped_relu", 0.85, slope) for slope in (0.5, 0.9)),
    *(("clipped_soft_threshold", s, slope) for s, slope in ((0.7, 0.9), (0.8, 0.9), (0.85, 0.7), (0.85, 0.8))),
}
INPUTS = ("momentum", "inputs of zero mean and unit variance")
NET = (*INPUTS, "first layer's bias", "head on the edge", "inputs of variance .8")
PAPERS = {
    "price2024/table2": Paper(DNN, TABLE2, 5, ("batch 120", *NET), epochs=200, examples=54_000),
    "price2024/table2_cnn": Paper(
        CNN,
        TABLE2,
        1,
        ("batch 120", *INPUTS, "3 x 3 windows", "stride 1", "circular padding", "mean over positions"),
        epochs=200,
        examples=45_000,
    ),
    "price2024/depth100": Paper(DNN, frozenset(KEY_ROWS), 1, ("as table2",), epochs=200, examples=54_000),
    "price2024/fig5": Paper(DNN, frozenset(FIG5 | TRAIN_WELL), 5, ("batch 120",), steps=15),
    "price2024/initial": Paper(DNN, TABLE2, 5, ("batch of step 0",), steps=1),
}


def row(config):
    """(sparsifier, sparsity, slope) of a run's model; ReLU is Table 2's row of sparsity one half."""
    sparsifier = config.model.sparsifier
    (name,) = [n for n, cls in SPARSIFIERS.items() if cls is type(sparsifier)]
    return name, getattr(sparsifier, "sparsity", 0.5), getattr(sparsifier, "slope", None)


def test_every_config_with_runs_at_a_papers_scale_is_in_the_table():
    files = [str(path.relative_to(CONFIGS).with_suffix("")) for path in sorted(CONFIGS.glob("price2024/*.py"))]
    assert [name for name in files if paper_runs(name)] == sorted(PAPERS)


@pytest.mark.parametrize("name", PAPERS)
class TestPaper:
    def test_every_run_has_the_hyperparameters_that_the_paper_prints(self, name):
        paper = PAPERS[name]
        for config in paper_runs(name):
            found = {key: setting(config, key) for key in paper.settings}
            assert found == {key: value for key, (value, _) in paper.settings.items()}, config.name

    def test_the_runs_are_as_long_as_the_papers(self, name):
        paper = PAPERS[name]
        for config in paper_runs(name):
            if paper.epochs:
                assert config.steps * config.batch == paper.epochs * paper.examples, config.name
            else:
                assert config.steps == paper.steps, config.name

    def test_every_row_is_run_with_every_seed_once(self, name):
        paper = PAPERS[name]
        found = [(row(config), config.seed) for config in paper_runs(name)]
        assert len(found) == len(set(found))
        assert set(found) == set(itertools.product(paper.rows, range(paper.seeds)))

    def test_thresholds_and_clips_are_those_of_table_2(self, name):
        printed = price_table2()
        for config in {row(c): c for c in paper_runs(name) if row(c) in printed}.values():
            sparsifier = config.model.sparsifier
            found = (getattr(sparsifier, "tau", 0.0), getattr(sparsifier, "m", None))
            for value, expected in zip(found, printed[row(config)], strict=True):
                assert value == (None if expected is None else pytest.approx(expected, abs=0.00501)), config.name

    def test_unclipped_thresholds_read_inputs_below_the_fixed_point(self, name):
        """App. C: for tau > 0 the input is normalised to a variance below q*; 0.8 is what the text seems to print."""
        for config in paper_runs(name):
            unclipped = row(config)[0] in ("shifted_relu", "soft_threshold")
            assert config.model.input_gain == (0.8 if unclipped else 1.0), config.name

    def test_what_the_paper_leaves_open_is_said_to_be_assumed(self, name):
        text = load_study_config(name).__doc__.partition("assumed:")[2]
        assert "(paper)" in text
        flat = " ".join(text.split())
        for words in PAPERS[name].assumed:
            assert words in flat, words
        # A batch is named only where the runs have it.
        for batch in re.findall(r"\(paper\) batch (\d+)", flat):
            assert {config.batch for config in paper_runs(name)} == {int(batch)}

    def test_every_network_can_be_planned_and_has_the_size_of_the_closed_form(self, name):
        networks = {row(config)[0]: config for config in paper_runs(name)}  # whatever tau and m are
        for config in networks.values():
            found = cost(config, jax.devices()[:1])
            parameters, forward = closed_form(config)
            assert found.parameters == parameters, config.name
            assert found.state_bytes == 4 * (parameters + 2), config.name  # and two counters of steps
            assert found.training_flops == pytest.approx(3 * forward * config.batch * config.steps), config.name


def closed_form(config):
    """Parameters, and FLOPs of one image's products forward, of Price et al.'s networks.

    DNN: 784 N + N, 99 (N^2 + N), 10 N + 10 with N = 300: 9,178,210 parameters. CNN with 3 x 3 windows:
    9 * 3 C + C, 49 (9 C^2 + C), 10 C + 10 with C = 300: 39,716,110.
    """
    if setting(config, "model.name") == "deep_mlp":
        assert (config.model.width, config.model.depth, config.data.image_shape) == (300, 100, (28, 28, 1))
        weights, units = 784 * 300 + 99 * 300**2 + 300 * 10, 100 * 300 + 10
        assert weights + units == 9_178_210
        return weights + units, 2 * weights
    assert (config.model.channels, config.model.depth, config.data.image_shape) == (300, 50, (32, 32, 3))
    windows, head, units = 9 * 3 * 300 + 49 * 9 * 300**2, 300 * 10, 50 * 300 + 10
    assert windows + head + units == 39_716_110
    return windows + head + units, 2 * (1024 * windows + head)


def lowered(config, devices, record=False):
    """The training step of `config` on `devices`, lowered from shapes alone."""
    engine = Engine(config, devices)
    split = jax.sharding.NamedSharding(engine.mesh, axes.spec(("batch",)))
    shapes = {"image": ((config.batch, *config.data.image_shape), np.float32), "label": ((config.batch,), np.int32)}
    batch = {name: jax.ShapeDtypeStruct(*shape, sharding=split) for name, shape in shapes.items()}
    with jax.set_mesh(engine.mesh):
        return engine.step(engine.placed, record).lower(engine.abstract, batch)


def paper_run(name, **changes):
    """The run of CReLU with s = .85 and V' = .7 at the paper's scale, its model changed."""
    config = run_config(load_study_config(name).get_config("paper/crelu_0.85_0.7"))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


BOTH = pytest.mark.parametrize("name", ["price2024/table2", "price2024/table2_cnn"])
RECORD = pytest.mark.parametrize("record", [False, True], ids=["plain", "recording"])


@BOTH
@RECORD
def test_a_deeper_network_is_not_a_longer_program(name, record):
    """Layers are scanned: one loop forward and one backward, whatever the depth."""
    shallow, deep = (lowered(paper_run(name, depth=depth), jax.devices()[:1], record).as_text() for depth in (10, 100))
    assert shallow.count("stablehlo.while") == deep.count("stablehlo.while") == 2
    assert len(deep) == pytest.approx(len(shallow), rel=0.1)


@pytest.mark.aot
@BOTH
@RECORD
def test_the_papers_training_step_compiles_for_four_tpu_chips(name, record, tpu_devices):
    # The product that "auto" takes on a TPU; here it would see the CPU.
    config = paper_run(name) if name.endswith("table2") else paper_run(name, product="convolution")
    compiled = lowered(config, tpu_devices, record).compile()
    assert compiled.as_text().count(" while(") == 2
    assert 4 * closed_form(config)[0] < compiled.memory_analysis().peak_memory_in_bytes < 16 * 2**30  # a v5e chip


@pytest.mark.aot
def test_a_deeper_network_is_not_a_longer_program_for_a_tpu(tpu_devices):
    lengths = [len(lowered(paper_run("price2024/table2", depth=d), tpu_devices).compile().as_text()) for d in (10, 100)]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.1)
