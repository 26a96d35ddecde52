"""Products with chosen rows against NumPy in float64, interpreted, and what TPUs get, compiled ahead of time."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import SingleDeviceSharding

from sparsity.layers.inference import GatherOut, LowRank
from sparsity.layers.mlp import MLPConfig, SparseMLP
from sparsity.layers.sparsify import Context
from sparsity.ops.kernels import gather_tpu
from sparsity.ops.kernels.gather_tpu import rows_dot_tpu, tile_rows, weighted_rows_tpu
from sparsity.ops.sparsifiers import TopK

F, D = 40, 256


def arrays(tokens, k, dtype, lists):
    """h [T, K], x [T, D] and W [F, D] of `dtype`, and indices [K] or [T, K]: some repeat, two are none of W's."""
    rng = np.random.default_rng(0)
    h, x, w = (jnp.asarray(rng.normal(size=size), dtype) for size in ((tokens, k), (tokens, D), (F, D)))
    index = rng.integers(0, F, (lists, k) if lists else k)
    index[..., :4] = -5, 7, F + 5, 7
    return h, x, w, jnp.asarray(index)


def exact(h, x, w, index, used):
    """Both products in float64, of the places that are used."""
    h, x, w = (np.asarray(a, np.float64) for a in (h, x, w))
    rows = w[np.clip(np.broadcast_to(index, h.shape), 0, F - 1)]
    y = np.einsum("tk,tkd->td", np.where(used, h, 0), rows)
    return y, np.where(used, np.einsum("td,tkd->tk", x, rows), -np.inf)


# On this simulated TPU what nobody wrote is NaN. A slot that is filled too early shows if DMAs run at
# once, one that is read too early if they run when they are awaited.
@pytest.mark.parametrize(
    ("tokens", "k", "lists", "count", "dtype", "mode"),
    [
        (1, 9, 0, None, "bfloat16", "on_wait"),
        (3, 20, 0, 17, "float32", "on_wait"),
        (2, 20, 2, (20, 0), "bfloat16", "eager"),
    ],
    ids=["one", "shared", "each its own"],
)
def test_both_are_the_products_with_the_rows_that_count(tokens, k, lists, count, dtype, mode, monkeypatch):
    monkeypatch.setattr(gather_tpu, "RING", 2)  # less than three groups, and less to simulate
    h, x, w, index = arrays(tokens, k, dtype, lists)
    number = None if count is None else jnp.asarray(count)
    used = np.arange(k) < np.reshape(k if count is None else count, (-1, 1))
    want_y, want_z = exact(h, x, w, index, used)
    # Whatever is not used is broken: places behind, rows of W.
    needed = np.clip(np.broadcast_to(index, used.shape)[used], 0, F - 1)
    w = jnp.full_like(w, jnp.nan).at[needed].set(w[needed])
    h, index = jnp.where(used, h, jnp.nan), jnp.where(used.reshape(used.shape[-index.ndim :]), index, 10**6)
    interpret = pltpu.InterpretParams(dma_execution_mode=mode)
    y = weighted_rows_tpu(h, index, tile_rows(w), number, interpret=interpret)
    z = rows_dot_tpu(x, tile_rows(w), index, number, interpret=interpret)
    assert y.dtype == z.dtype == jnp.float32
    assert not y[:, D:].any()
    np.testing.assert_allclose(y[:, :D], want_y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(z, want_z, rtol=1e-5, atol=1e-5)


def test_a_program_for_every_platform_holds_the_kernel_for_the_tpu_alone():
    def product(h, index, w):
        take = lambda h, index, w: jnp.einsum("tk,tksl->tsl", h, jnp.take(w, index, axis=0, mode="clip")).reshape(
            len(h), -1
        )
        return lax.platform_dependent(h, index, w, tpu=weighted_rows_tpu, default=take)

    h, x, w, index = arrays(2, 9, "float32", 2)
    traced = jax.jit(product).trace(h, index, tile_rows(w))
    lowered = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda", "tpu")}
    assert [p for p, text in lowered.items() if "tpu_custom_call" in text] == ["tpu"]
    # There is a rule for vmap even where the kernel does not run.
    y = jax.jit(jax.vmap(product, in_axes=(0, 0, None)))(h[:, None], index[:, None], tile_rows(w))
    np.testing.assert_allclose(y[:, 0, :D], exact(h, x, w, index, True)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"w": jnp.ones((4, 256))},
            r"w must be float32 or bfloat16 in the shape of tile_rows, got float32 \(4, 256\)",
        ),
        ({"w": jnp.ones((4, 8, 128), jnp.int8)}, "got int8"),
        ({"w": jnp.ones((4, 6, 128))}, "tile_rows, got"),
        ({"h_TxK": jnp.ones((2, 4))}, r"h must be \[T, K\] with K 3, got shape \(2, 4\)"),
        (
            {"index": jnp.zeros((3, 3), int)},
            r"index must be \[K\] or \[T, K\] with T 2 and K at least 1, got shape \(3, 3\)",
        ),
        ({"index": jnp.zeros((2, 0), int)}, "K at least 1"),
        ({"index": jnp.zeros(3)}, "index must be of integers, got float32"),
    ],
)
def test_refuses_in_one_line(changes, match):
    good = {"h_TxK": jnp.ones((2, 3)), "index": jnp.zeros(3, int), "w": jnp.ones((4, 8, 128))}
    with pytest.raises(ValueError, match=match) as error:
        weighted_rows_tpu(**good | changes, interpret=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(2, 1025), (2, 0), (1024,)])
def test_refuses_an_x_of_another_width(shape):
    with pytest.raises(ValueError, match=r"x must be \[T, D\] with the D that tile_rows makes 1024, got shape"):
        rows_dot_tpu(jnp.ones(shape), jnp.ones((4, 8, 128)), jnp.zeros(3, int))


def test_rows_are_filled_up_to_whole_tiles():
    w = np.random.default_rng(0).normal(size=(3, 1030)).astype(np.float32)
    tiled = tile_rows(w)
    assert tiled.shape == (3, 16, 128)
    np.testing.assert_array_equal(tiled.reshape(3, -1), np.pad(w, ((0, 0), (0, 2048 - 1030))))
    with pytest.raises(ValueError, match=r"w must be \[F, D\], got shape \(4,\)"):
        tile_rows(jnp.ones(4))


K, D_MODEL = 128, 1024


@pytest.fixture(scope="module")
def compiled(tpu_slice):
    """compiled(f, chip, *shapes): the program of `f` of bfloat16 arrays for one described chip."""

    def compile_for(f, chip, *shapes):
        one = SingleDeviceSharding(tpu_slice(chip)[0])
        return jax.jit(f).lower(*(jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=one) for s in shapes)).compile()

    return compile_for


def hidden(x, wi):
    return jnp.maximum(jnp.dot(x, wi, preferred_element_type=jnp.float32), 0)


def dense_mlp(x, wi, wo):
    return hidden(x, wi).astype(x.dtype) @ wo


def sparse_mlp(x, wi, wo):
    h, index = lax.approx_max_k(hidden(x, wi), K)
    return weighted_rows_tpu(h, index, wo).astype(x.dtype)


def readers(text, shape):
    """The instructions of a compiled program that name its one argument of this shape."""
    text = text[text.index("\nENTRY") :]
    [name] = re.findall(rf"(%\S+) = bf16\[{','.join(map(str, shape))}\]\S* parameter\(", text)
    return [line for line in text.splitlines() if re.search(re.escape(name) + r"[,)]", line)]


def read_from_hbm(text, *matrices):
    """Bytes of `matrices`: all of one for each instruction that names it, but for the kernel what it says it reads."""
    total = 0
    for shape in matrices:
        for reader in readers(text, shape):
            estimate = re.search(r'"tpu_custom_call".*"bytes_accessed":"(\d+)"', reader)
            total += int(estimate[1]) if estimate else 2 * math.prod(shape)
    return total


@pytest.mark.aot
@pytest.mark.parametrize("d_ff", [16384, 65536])
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v5e:2x2", "v6e:2x2"])
def test_half_of_the_mlps_bytes_are_left(chip, d_ff, compiled):
    """Bytes of the matrices that leave HBM; all else is in VMEM or CMEM or small.

    The compiler's own count holds too. It is no measure: of the dense MLP's W_o of 16384 units, which is first copied
    into VMEM or CMEM, it counts the copy twice. What the kernel reads it cannot see and takes from the kernel's
    estimate, K rows; that these are all that is read is what interpret mode shows.
    """
    w_in, w_out, tiled = (D_MODEL, d_ff), (d_ff, D_MODEL), (d_ff, D_MODEL // 128, 128)
    dense = compiled(dense_mlp, chip, (1, D_MODEL), w_in, w_out)
    sparse = compiled(sparse_mlp, chip, (1, D_MODEL), w_in, tiled)
    all_of_both, left = read_from_hbm(dense.as_text(), w_in, w_out), read_from_hbm(sparse.as_text(), w_in, tiled)
    assert all_of_both == 2 * (2 * D_MODEL * d_ff)
    estimate = left - 2 * D_MODEL * d_ff
    assert 2 * K * D_MODEL <= estimate <= 1.05 * 2 * K * D_MODEL
    counted = [c.cost_analysis()["bytes accessed"] for c in (sparse, dense)]
    print(f"{chip} {d_ff}: {left / 1e6:.1f} of {all_of_both / 1e6:.1f} MB, as XLA counts {counted}")
    assert left <= 0.53 * all_of_both
    assert counted[0] <= 0.53 * counted[1]
    [reader] = readers(sparse.as_text(), tiled)  # no copy, no slice, no prefetch
    assert 'custom_call_target="tpu_custom_call"' in reader
    assert "PartialReduce" in sparse.as_text()


@pytest.mark.aot
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v5e:2x2"])
def test_no_layer_is_sliced_out_of_stacked_weights(chip, compiled):
    layers, d_ff = 3, 16384

    def stack(x, wi, wo):
        flat = wo.reshape(-1, *wo.shape[2:])

        def layer(x, scanned):
            w, number = scanned
            h, index = lax.approx_max_k(hidden(x, w), K)
            return x + weighted_rows_tpu(h, index + number * d_ff, flat).astype(x.dtype), None

        return lax.scan(layer, x, (wi, jnp.arange(layers)))[0]

    shapes = (1, D_MODEL), (layers, D_MODEL, d_ff), (layers, d_ff, 8, 128)
    text = compiled(stack, chip, *shapes).as_text()
    of_its_size = rf"= bf16\[(?:{layers},{d_ff}|{layers * d_ff}|{d_ff}|1,{d_ff}),8,128\]\S* ([\w-]+)\("
    assert set(re.findall(of_its_size, text)) <= {"parameter", "get-tuple-element", "bitcast"}
    assert text.count('custom_call_target="tpu_custom_call"') == 1


@pytest.mark.aot
@pytest.mark.parametrize("d_model", [1024, 768])
def test_a_search_compiles_and_reads_neither_matrix_whole(d_model, compiled):
    def search(x, candidates, wi, wo):
        candidates = candidates.astype(jnp.int32)
        h, place = lax.top_k(jnp.maximum(rows_dot_tpu(x, wi, candidates), 0), K)
        return weighted_rows_tpu(h, jnp.take_along_axis(candidates, place, axis=1), wo)

    tiles = (8, 128)
    text = compiled(search, "v5e:2x2", (2, d_model), (2, 300), (16384, *tiles), (16385, *tiles)).as_text()
    for units in (16384, 16385):
        [reader] = readers(text, (units, *tiles))
        assert 'custom_call_target="tpu_custom_call"' in reader


@pytest.mark.aot
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize(
    ("mode", "least"),
    [(GatherOut("approx"), 0.5), (LowRank(rank=64, candidates=256), 0.0)],
    ids=["gather_out", "low_rank"],
)
def test_an_mlp_in_a_mode_of_inference_reads_rows_alone(mode, least, chip, tpu_slice, monkeypatch):
    """The layout that `lay_out` makes on a TPU: each gathered matrix is named by its kernel and by nothing else."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    d_ff = 16_384
    config = MLPConfig(d_ff, TopK(k=K), use_bias=False, inference=mode)
    layer = lambda *shape: {"kernel": jnp.zeros(shape)}
    params = {"wi": layer(D_MODEL, d_ff), "wo": layer(d_ff, D_MODEL)}
    params["predictor"] = {"read": jnp.zeros((D_MODEL, 64)), "write": jnp.zeros((64, d_ff))}  # no SVD is needed
    weights = mode.lay_out(params, config, "bfloat16")
    module = SparseMLP(config, "bfloat16")
    one = SingleDeviceSharding(tpu_slice(chip)[0])
    described = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
        (weights, jnp.zeros((1, 1, D_MODEL), "bfloat16")),
    )
    program = jax.jit(lambda weights, x: module.apply({"params": weights}, x, Context()))
    text = program.lower(*described).compile().as_text()
    entry = text[text.index("\nENTRY") :]
    tiled = re.findall(rf"(%\S+) = bf16\[{d_ff},8,128\]\S* parameter\(", entry)
    assert len(tiled) == (1 if least else 2)
    for name in tiled:
        reading = [line for line in entry.splitlines() if re.search(re.escape(name) + r"[,)]", line)]
        assert len(reading) == 1
        assert 'custom_call_target="tpu_custom_call"' in reading[0]
    assert not re.findall(rf"= bf16\[{d_ff},1024\]\S* (?!parameter)([\w-]+)\(", text)
