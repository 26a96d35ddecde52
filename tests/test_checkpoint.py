import gc
import json
import random
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity import spmd
from sparsity.checkpoint import CheckpointError, Checkpoints, digests
from sparsity.run import Engine, run_config


def test_the_last_ones_are_kept_and_the_latest_is_restored(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest() is None
        for step in (0, 1, 2):
            checkpoints.save(step, {"x": jnp.full(3, float(step))}, {"note": step})
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest() == 2
        target = {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}
        np.testing.assert_array_equal(checkpoints.restore(target)["x"], [2, 2, 2])
        np.testing.assert_array_equal(checkpoints.restore(target, step=1)["x"], [1, 1, 1])
    assert {p.name for p in (tmp_path / "c").iterdir() if p.is_dir()} == {"1", "2"}


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(3, {"x": jnp.ones(2)}, {})
        checkpoints.save(3, {"x": jnp.zeros(2)}, {})
    with Checkpoints(tmp_path / "c") as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore({"x": jax.ShapeDtypeStruct((2,), jnp.float32)})["x"], [1, 1])


def test_a_reader_leaves_a_save_under_way_alone(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)}, {})
    half = tmp_path / "c" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "c" / "1", half)
    with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.restore({"x": jax.ShapeDtypeStruct((2,), jnp.float32)})
    assert half.exists()
    with Checkpoints(tmp_path / "c") as checkpoints:  # the run itself, after a kill
        assert checkpoints.latest() == 1
        deadline = time.monotonic() + 30
        while half.exists() and time.monotonic() < deadline:  # orbax cleans up in the background
            time.sleep(0.05)
    assert not half.exists()


def test_restoring_nothing_raises(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoints.restore({})


def test_a_state_saved_on_8_devices_is_restored_exactly_on_one_and_on_another_mesh(tmp_path, tiny_config):
    tiny_config.mesh.data, tiny_config.mesh.model = 4, 2
    engine = Engine(run_config(tiny_config))
    state, placed = engine.new_state()
    batch = {"image": np.ones((32, 8, 8, 1), np.float32), "label": np.zeros(32, np.int32)}
    with jax.set_mesh(engine.mesh):  # one recorded step: what was sown must not end in the state
        state, _, _ = engine.step(placed, record=True)(state, spmd.place_batch(engine.mesh, batch))
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state, {})
    for data, model in ((1, 1), (1, 8), (2, 2)):
        tiny_config.mesh.data, tiny_config.mesh.model = data, model
        tiny_config.model.heads = 2
        with Checkpoints(tmp_path / "c") as checkpoints:
            restored = Engine(run_config(tiny_config)).restore(checkpoints)
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
        assert len(restored.params["block_0"]["mlp"]["wi"]["kernel"].sharding.device_set) == data * model


KINDS = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool")


def hashed(x):
    """Both sums of an array by Python's integers."""
    x = np.asarray(x)
    data = x.astype(np.uint32).tobytes() if x.dtype == bool else x.tobytes()
    width = 4 if x.dtype == bool else x.dtype.itemsize
    sums = []
    for step in (0x85EBCA77, 0xC2B2AE3D):
        total = 0
        for place in range(len(data) // width):
            word = int.from_bytes(data[place * width : (place + 1) * width], "little")
            word = (word * 0x9E3779B1 + place * step + step) % 2**32
            word = (word ^ (word >> 16)) * 0x85EBCA6B % 2**32
            word = (word ^ (word >> 13)) * 0xC2B2AE35 % 2**32
            total += word ^ (word >> 16)
        sums.append(f"{total % 2**32:08x}")
    return "".join(sums)


@pytest.mark.parametrize("dtype", KINDS)
def test_a_digest_is_the_same_by_numpy_by_xla_and_by_python(dtype, monkeypatch):
    x = jnp.asarray(np.random.default_rng(0).normal(0, 50, (3, 4, 5))).astype(dtype)
    state = {"x": x, "step": jnp.int32(7)}
    found = digests(state)
    assert found == {"x": f"{dtype}[3,4,5] {hashed(x)}", "step": f"int32[] {hashed(state['step'])}"}
    mesh = spmd.make_mesh(spmd.MeshConfig(2, 4))
    spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "model")))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # where arrays are read where they lie
    assert digests(state) == found
    with jax.set_mesh(mesh), jax.transfer_guard("disallow"):  # as in the loop
        assert digests({"x": spread})["x"] == found["x"]


def test_a_digest_tells_changed_bits_swapped_numbers_and_shapes():
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    found = {digests({"x": x})["x"]}
    for i in range(32):
        other = x.copy()
        other.view(np.uint32)[2, 3] ^= np.uint32(1 << i)
        found.add(digests({"x": other})["x"])
    found |= {digests({"x": y})["x"] for y in (x[::-1], x.T, x.reshape(6, 4), -x, np.zeros_like(x))}
    assert len(found) == 1 + 32 + 5
    assert digests({"x": np.float32(0.0)}) != digests({"x": np.float32(-0.0)})


STATE = {"dense": jnp.asarray(np.random.default_rng(0).normal(size=(40, 50)), jnp.float32), "step": jnp.int32(0)}
STATE["sparse"] = jnp.where(STATE["dense"] > 1.5, STATE["dense"], 0).astype("bfloat16")
TARGET = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), STATE)


def at(step):
    return jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), STATE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with the checkpoints 1 and 2."""
    directory = tmp_path_factory.mktemp("saved") / "c"
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, at(step), {"note": step})
    return directory


def harm(file, how, rng):
    """Damages a file. Its bytes are rewritten in place, as a bad disk would have them."""
    data = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
    elif how == "truncate":
        file.write_bytes(data[: len(data) // 2])
    elif how == "zero":
        start = rng.randrange(len(data))
        file.write_bytes(data[:start] + bytes(len(data[start : start + 64])) + data[start + 64 :])
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)


def same(state, step):
    bits = lambda x: np.asarray(x).tobytes()
    return all(bits(a) == bits(b) for a, b in zip(*map(jax.tree.leaves, (state, at(step))), strict=True))


@pytest.fixture
def abandoned_reads():
    """Of a restore or a save that fails orbax abandons what is under way: it says so when collected, so here."""
    yield
    gc.collect()


def abandons(test):
    mark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    return mark(pytest.mark.usefixtures("abandoned_reads")(test))


@abandons
@pytest.mark.parametrize("how", ["flip", "truncate", "zero", "delete"])
def test_whatever_file_is_damaged_a_saved_state_is_restored_and_the_damage_is_named(how, saved, tmp_path):
    """Every file of the last checkpoint, one at a time: what comes back is bit-equal to a saved state."""
    files = [file.relative_to(saved) for file in sorted((saved / "2").rglob("*")) if file.is_file()]
    assert len(files) >= 8
    rng, fell_back = random.Random(0), 0
    for i, file in enumerate(files):
        for trial in range(3 if how == "flip" else 1):
            said, directory = [], tmp_path / f"{i}-{trial}"
            shutil.copytree(saved, directory)
            harm(directory / file, how, rng)
            with Checkpoints(directory, say=said.append) as checkpoints:
                state = checkpoints.restore(TARGET)
            step = next(s for s in (2, 1) if same(state, s))
            assert (step == 1) == bool(said), file
            aside = [p.name for p in directory.iterdir() if p.name.startswith("damaged")]
            assert aside == (["damaged-2"] if said else []), file
            fell_back += step == 1
    assert fell_back >= 3, "damage to the arrays' own files at least is seen"


@abandons
def test_a_damaged_checkpoint_is_named_set_aside_and_its_step_saved_anew(saved, tmp_path):
    directory, said = tmp_path / "c", []
    shutil.copytree(saved, directory)
    for file in (directory / "2" / "state").rglob("d/*"):
        harm(file, "truncate", random.Random(0))
    with Checkpoints(directory, read_only=True, say=said.append) as checkpoints:
        assert same(checkpoints.restore(TARGET), 1)
        with pytest.raises(CheckpointError, match=r"the one asked for is damaged \(2: it cannot be read"):
            checkpoints.restore(TARGET, step=2)
    assert {p.name for p in directory.iterdir()} >= {"1", "2"}, "a reader changes nothing"
    with Checkpoints(directory, say=said.append) as checkpoints:
        assert same(checkpoints.restore(TARGET), 1)
        assert checkpoints.latest() == 1
        checkpoints.save(2, at(2), {})
    assert len(said) == 2
    assert "2 is damaged (it cannot be read" in said[1]
    assert said[1].endswith("; 1 is used")
    with Checkpoints(directory, say=said.append) as checkpoints:
        assert same(checkpoints.restore(TARGET), 2)
    assert (directory / "damaged-2").exists()


@abandons
def test_where_all_are_damaged_nothing_is_restored_and_nothing_is_touched(saved, tmp_path):
    directory = tmp_path / "c"
    shutil.copytree(saved, directory)
    for step in (1, 2):
        harm(directory / str(step) / "meta" / "metadata", "truncate", random.Random(0))
    with (
        Checkpoints(directory) as checkpoints,
        pytest.raises(CheckpointError, match=r"all of them are damaged \(2: .*; 1: ") as error,
    ):
        checkpoints.restore(TARGET)
    assert "\n" not in str(error.value)
    assert {p.name for p in directory.iterdir() if p.name.isdigit() or "damaged" in p.name} == {"1", "2"}


def test_a_checkpoint_of_another_model_is_refused_and_stays(saved):
    other = TARGET | {"dense": jax.ShapeDtypeStruct((40, 51), jnp.float32)}
    for target, text in ((other, r"dense: float32\[40,50\] there, float32\[40,51\] asked for"), ({}, "none asked for")):
        with (
            Checkpoints(saved) as checkpoints,
            pytest.raises(CheckpointError, match=rf"2 is of another model, .*{text}"),
        ):
            checkpoints.restore(target)
    assert {p.name for p in saved.iterdir() if p.is_dir()} == {"1", "2"}


def test_checkpoints_of_before_there_were_digests_are_taken_as_they_are(saved, tmp_path):
    directory = tmp_path / "c"
    shutil.copytree(saved, directory)
    meta = directory / "2" / "meta" / "metadata"
    assert json.loads(meta.read_text()).keys() == {"note", "digests", "seal"}  # neither of which there was
    meta.write_text('{"note": 2}')
    with Checkpoints(directory) as checkpoints:
        assert same(checkpoints.restore(TARGET), 2)


@abandons
def test_a_full_disk_is_said_in_a_line_and_what_was_saved_stays(saved, tmp_path, full_disk):
    directory = tmp_path / "c"
    shutil.copytree(saved, directory)
    with (
        full_disk(2000),
        pytest.raises(CheckpointError, match=r"one cannot be written \(.*File too large.*\); those before it") as error,
        Checkpoints(directory) as checkpoints,
    ):
        checkpoints.save(3, at(3), {})
    assert "\n" not in str(error.value)
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest() == 2
        assert same(checkpoints.restore(TARGET), 2)
        checkpoints.save(3, at(3), {})  # now that there is room
    with Checkpoints(directory) as checkpoints:
        assert same(checkpoints.restore(TARGET), 3)


@pytest.mark.parametrize("key", ["digests", "seal", "note"])
def test_what_stands_beside_a_state_has_a_checksum_of_its_own(key, saved, tmp_path):
    """A key that is no longer called what it was does not turn verification off."""
    directory, said = tmp_path / "c", []
    shutil.copytree(saved, directory)
    meta = directory / "2" / "meta" / "metadata"
    stored = json.loads(meta.read_text())
    stored[key[:-1] + "x"] = stored.pop(key)
    meta.write_text(json.dumps(stored))
    with Checkpoints(directory, say=said.append) as checkpoints:
        assert same(checkpoints.restore(TARGET), 1)
    assert "2 is damaged (not as they were saved: config and digests)" in said[0]


def test_a_state_in_the_place_of_another_is_told_by_its_digests(saved, tmp_path):
    directory, said = tmp_path / "c", []
    shutil.copytree(saved, directory)
    shutil.rmtree(directory / "2" / "state")
    shutil.copytree(directory / "1" / "state", directory / "2" / "state")
    with Checkpoints(directory, say=said.append) as checkpoints:
        assert same(checkpoints.restore(TARGET), 1)
    assert "2 is damaged (not as it was saved: dense and 2 more); 1 is used" in said[0]


@pytest.mark.parametrize(
    "error",
    [
        OSError(24, "Too many open files"),
        ValueError("UNAVAILABLE: try again"),
        MemoryError(),
        PermissionError(13, "no"),
    ],
)
def test_what_may_pass_sets_nothing_aside(error, saved, tmp_path, monkeypatch):
    directory = tmp_path / "c"
    shutil.copytree(saved, directory)
    with Checkpoints(directory) as checkpoints:

        def restore(*_, **__):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(checkpoints._manager, "restore", restore)
            with pytest.raises(type(error)):
                checkpoints.restore(TARGET)
        assert same(checkpoints.restore(TARGET), 2)


def test_a_step_that_was_never_saved_is_not_damaged(saved):
    with Checkpoints(saved) as checkpoints, pytest.raises(FileNotFoundError, match="no checkpoint 7 in"):
        checkpoints.restore(TARGET, step=7)


def test_a_state_being_saved_is_waited_for(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, at(1), {})
        assert same(checkpoints.restore(TARGET), 1)


def test_digests_of_keys_and_of_what_has_none():
    keys = jax.random.split(jax.random.key(0), 3)
    assert digests({"k": keys})["k"].endswith(digests({"k": jax.random.key_data(keys)})["k"].split()[1])
    for dtype in ("int4", "complex64"):
        with pytest.raises(TypeError, match=f"no digest of {dtype} arrays"):
            digests({"x": jnp.zeros(3, dtype)})
