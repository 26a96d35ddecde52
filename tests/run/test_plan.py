"""What is planned against what is: bytes by hand, collectives of a real program, and pods that are not there."""

import dataclasses

import pytest

from sparsity import recipes
from sparsity.config import ConfigError
from sparsity.run import Engine, Machine, plan_step, run_config
from sparsity.run.plan import Program, _refused, batch_shapes, kept_bytes
from sparsity.run.topology import CHIPS

PIXELS, UNITS, BATCH = 12 * 12, 64, 64


def autoencoder(**mesh):
    config = recipes.autoencoder_photos(UNITS)
    config.mesh = {"data": 4, "model": 2} | mesh
    return run_config(config)


@pytest.fixture(scope="module")
def planned():
    return plan_step(autoencoder(), Machine.of("local"))


def test_the_state_is_split_over_the_model_axis_alone(planned):
    """W_e [D, F], b [F] and W_d [F, D] are split in two, the second bias [D] is not; Adam has two of each."""
    split, whole = 4 * (2 * PIXELS * UNITS + UNITS), 4 * PIXELS
    assert planned.parameters == (split + whole) // 4
    assert planned.parameter_bytes == split // 2 + whole
    assert planned.optimizer_bytes == pytest.approx(2 * planned.parameter_bytes, abs=16)  # and three counters
    assert planned.mesh == Engine(autoencoder()).mesh.shape
    assert planned.flops == 3 * 2 * 2 * PIXELS * UNITS * BATCH


def test_the_compiler_s_peak_holds_the_state_and_the_exchange_is_that_of_the_gradients(planned):
    program = planned.program
    images = BATCH // 4 * PIXELS * 4
    assert program.given == planned.state_bytes + images
    assert program.peak > program.given
    assert planned.activation_bytes == program.peak - program.given
    gradients = sum(t.bytes for t in planned.exchanged if t.kind == "all-reduce")
    # Those of every parameter, and the partial sums of what the decoder makes of each half of the units.
    assert gradients == pytest.approx(planned.parameter_bytes + images, rel=0.1)


def test_what_is_kept_are_inputs_activations_and_the_error(planned):
    """Per image: x and y - x [D], z and h [F], and where z > 0, a byte a unit; as if each device had all units."""
    rows = BATCH // 4
    assert planned.kept_bytes == 4 * rows * (2 * PIXELS + 2 * UNITS) + rows * UNITS
    twice = kept_bytes(Engine(autoencoder(data=2, model=1), 2))
    assert twice == pytest.approx(2 * planned.kept_bytes, rel=0.02)


def test_the_text_says_how_each_figure_is_known(planned):
    text = planned.text()
    assert "mesh: data 4 x model 2" in text
    assert "from the compiler" in text
    assert "compiled in" in text
    assert "all-reduce" in text
    only = dataclasses.replace(planned, program=None, machine=Machine.of(None))
    assert "estimated: what the traced program keeps" in only.text()
    assert "exchanged       not known: --topology=local compiles" in only.text()


def test_batches_are_those_of_training(tiny_config):
    shapes = batch_shapes(run_config(tiny_config))
    assert {name: (x.shape, str(x.dtype)) for name, x in shapes.items()} == {
        "image": ((32, 8, 8, 1), "float32"),
        "label": ((32,), "int32"),
    }


def test_a_config_that_does_not_fit_is_refused_before_anything_is_compiled():
    with pytest.raises(ConfigError, match="does not fit 64 devices"):
        plan_step(autoencoder(data=-1, model=6), Machine("64", 64, None, None, None, "none"))


@pytest.fixture(scope="module")
def eleven():
    """T5-11B with Top-k on 64 v4 chips: known without libtpu, and on any laptop."""
    config = recipes.with_top_k(recipes.t5_c4("11b"), 128)
    config.model.remat, config.batch, config.mesh = "full", 64, {"data": 4, "model": 16}
    chip = CHIPS["v4"]
    return plan_step(run_config(config), Machine("64 x TPU v4", 64, chip.memory, chip, None, "no libtpu"))


def test_each_chip_holds_a_sixteenth_of_the_parameters(eleven):
    assert eleven.parameters == pytest.approx(11.3e9, rel=5e-3)
    assert eleven.parameter_bytes == pytest.approx(4 * 11.3e9 / 16, rel=5e-3)
    assert eleven.optimizer_bytes < 1e-2 * eleven.parameter_bytes


def test_a_rematerialised_layer_keeps_its_input(eleven):
    """Beside these the loss keeps two arrays of the logits' size, in float32; all else is of a layer's size."""
    rows, tokens = 64 // 4, 512 + 114
    layers, logits = rows * 24 * tokens * 1024 * 2, rows * 114 * 32_128 * 4
    assert layers + 2 * logits < eleven.kept_bytes < 1.4 * (layers + 2 * logits)


def test_the_flops_are_six_for_each_parameter_and_token_but_the_embedding_s(eleven):
    """Inputs meet half of the parameters and targets the other (and inputs the decoder's keys and values)."""
    half = (eleven.parameters - 32_128 * 1024) / 2
    assert eleven.flops == pytest.approx(6 * 64 * (512 + 114) * half, rel=0.25)


def test_it_fits_as_estimated_and_says_what_is_missing(eleven):
    assert eleven.fits
    assert "of 32 GiB: it fits (estimated" in eleven.text()
    assert "not known: no libtpu" in eleven.text()
    small = dataclasses.replace(eleven, machine=dataclasses.replace(eleven.machine, memory=4 << 30))
    assert small.fits is False


def test_a_compiler_s_refusal_is_a_figure():
    said = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    found = _refused(f"{said}Used 74.53G of 15.75G hbm. Exceeded hbm capacity by 58.78G.", 1.0)
    assert found.peak == int(74.53 * 2**30)
    assert found.refusal == "a program has 15.75 GiB"
    assert _refused(f"{said}Something else", 1.0) == Program(None, None, None, 1.0, f"{said}Something else")
