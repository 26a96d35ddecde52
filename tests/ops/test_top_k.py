"""Top-k against `lax.top_k` and NumPy, its gradient, its meshes, and what it compiles to."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sparsity.ops import top_k, top_k_threshold
from sparsity.ops.kernels import top_k_tpu
from sparsity.ops.sparsifiers import Gelu, Relu, TopK

DTYPES = ("float32", "bfloat16", "float16")
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-40, -1e-40, 3e-8, 1.0, 1.0, -1.0], np.float32)

# k is traced: one program serves every k of a shape.
mask_of = jax.jit(top_k.top_k_mask)
keep_of = jax.jit(top_k.keep_top_k)
relu_of = jax.jit(lambda x, k: top_k.keep_top_k(x, k, relu=True))
relu = jax.jit(Relu())


def lax_mask(x, k):
    """The set of `lax.top_k`, row by row."""
    index = np.asarray(jax.lax.top_k(x, k)[1]).reshape(-1, k)
    mask = np.zeros((index.shape[0], x.shape[-1]), bool)
    np.put_along_axis(mask, index, True, axis=1)
    return mask.reshape(x.shape)


def numpy_mask(x, k):
    """The same set by a stable sort of the bits, without jax."""
    width = x.dtype.itemsize * 8
    bits = np.asarray(x).view(f"i{width // 8}").astype(np.int64)
    order = np.where(bits < 0, bits ^ (2 ** (width - 1) - 1), bits)
    index = np.argsort(-order, axis=-1, kind="stable")[..., :k]
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, index, True, axis=-1)
    return mask


def make_rows(kind, shape, rng):
    normal = rng.normal(size=shape)
    match kind:
        case "gaussian":
            return normal
        case "negative":
            return -np.abs(normal) - 1
        case "equal":
            return np.broadcast_to(normal[:, :1], shape)
        case "ties":
            return np.round(normal * 2) / 2
        case "heavy":
            return rng.standard_t(1.2, size=shape)
        case "student_3":
            return rng.standard_t(3, size=shape)
        case "bimodal":
            return np.where(rng.random(shape) < 0.1, 3 + 0.3 * normal, 0.3 * normal - 1)
        case "lognormal":
            return np.exp(5 * normal)
        case "few_positive":
            return np.where(rng.random(shape) < 0.02, normal, -np.abs(normal))
        case "special":
            return rng.choice(SPECIAL, size=shape)
        case "some_special":
            return np.where(rng.random(shape) < 0.1, rng.choice(SPECIAL, size=shape), normal)
        case "denormal":
            return normal * 1e-39


KINDS = ("gaussian", "negative", "equal", "ties", "heavy", "bimodal", "lognormal", "few_positive", "special")
KINDS += ("some_special", "denormal")
# Shapes with dtypes: each is compiled.
ARRAYS = (*(((40, 200), dtype) for dtype in DTYPES), ((9, 131), "float32"), ((3, 1), "bfloat16"))


def array(kind, shape, dtype, seed=0):
    with np.errstate(over="ignore", under="ignore"):
        return jnp.asarray(make_rows(kind, shape, np.random.default_rng(seed)).astype(np.float32).astype(dtype))


@settings(max_examples=100)
@given(st.sampled_from(KINDS), st.sampled_from(ARRAYS), st.integers(0, 99), st.data())
def test_exact_is_the_set_of_a_stable_sort(kind, of, seed, data):
    shape, dtype = of
    k = data.draw(st.sampled_from((0, 1, shape[1])) | st.integers(0, shape[1]))
    x = array(kind, shape, dtype, seed)
    np.testing.assert_array_equal(np.asarray(mask_of(x, k)), numpy_mask(x, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_that_is_the_set_of_lax_top_k(kind, dtype):
    """Of few k only: `lax.top_k` is compiled for each."""
    x = array(kind, (40, 200), dtype)
    for k in (1, 30, 200):
        np.testing.assert_array_equal(numpy_mask(x, k), lax_mask(x, k))
        np.testing.assert_array_equal(mask_of(x, k), lax_mask(x, k))


@settings(max_examples=20)
@given(st.sampled_from(KINDS), st.sampled_from(ARRAYS), st.integers(0, 99), st.data())
def test_ranking_before_relu_gives_the_values_of_ranking_after(kind, of, seed, data):
    shape, dtype = of
    k = data.draw(st.integers(1, shape[1]))
    x = array(kind, shape, dtype, seed)
    x = jnp.where(jnp.isnan(x), 0, x)  # a NaN stays with its row's others zero or not: see below
    after = keep_of(relu(x), k)
    np.testing.assert_array_equal(np.asarray(relu_of(x, k)), np.asarray(after))


def test_any_leading_shape_and_static_k():
    x = array("ties", (40, 200), "float32")
    want = np.asarray(top_k.keep_top_k(x, 7))
    np.testing.assert_array_equal(top_k.keep_top_k(x.reshape(2, 4, 5, 200), 7).reshape(40, 200), want)
    np.testing.assert_array_equal(top_k.keep_top_k(x[3], 7), want[3])
    np.testing.assert_array_equal(want, np.where(lax_mask(x, 7), x, 0))


def test_float64(enable_x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 100)))
    assert x.dtype == jnp.float64
    np.testing.assert_array_equal(top_k.top_k_mask(x, 9), lax_mask(x, 9))


@pytest.fixture
def enable_x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("method", ["exact", "statistical", "group"])
def test_nan_stays_nan_and_counts_as_kept(method):
    x = np.array(array("gaussian", (6, 64), "float32"))
    x[0, 5], x[1] = np.nan, np.nan
    x[2, 7] = -np.float32(np.nan)  # ranks last, and still is not masked away
    h = np.asarray(top_k.keep_top_k(jnp.asarray(x), 8, method, relu=True))
    np.testing.assert_array_equal(np.isnan(h), np.isnan(x))
    assert (np.asarray(top_k.kept_count(h))[1]) == 64
    np.testing.assert_array_equal(h[3:], np.asarray(top_k.keep_top_k(jnp.asarray(x[3:]), 8, method, relu=True)))


@pytest.mark.parametrize(
    ("k", "method", "match"),
    [
        (9, "exact", r"k: must be a whole number in 0..8, the row's length, got 9"),
        (-1, "exact", "got -1"),
        (2.5, "exact", "got 2.5"),
        (3, "group", "3 does not divide 8"),
        (2, "exactt", 'unknown method "exactt"; did you mean "exact"'),
    ],
)
def test_refuses_in_one_line(k, method, match):
    with pytest.raises(ValueError, match=match):
        top_k.keep_top_k(jnp.ones((2, 8)), k, method)


def test_refuses_other_mistakes():
    with pytest.raises(ValueError, match="ranks floats, got int32"):
        top_k.top_k_mask(jnp.ones((2, 8), jnp.int32), 1)
    with pytest.raises(ValueError, match="method group needs it when compiling"):
        top_k.keep_top_k(jnp.ones((2, 8)), jnp.int32(2), "group")
    with pytest.raises(ValueError, match="steps: must be at least 0"):
        TopK(k=2, steps=-1)
    with pytest.raises(ValueError, match="recall_target"):
        TopK(k=2, recall_target=0.0)
    with pytest.raises(ValueError, match="5 does not divide 8"):
        TopK(k=5, method="group").check_width(8)


def test_annealed_k_compiles_once():
    traces = []

    @jax.jit
    def f(x, k):
        traces.append(k)
        return top_k.keep_top_k(x, k), top_k.keep_top_k(x, k, "statistical")

    x = array("gaussian", (40, 200), "float32")
    for k in (1, 20, 200, 300, -1):
        exact, _ = f(x, k)
        assert (np.asarray(top_k.kept_count(exact)) == np.clip(k, 0, 200)).all()
    assert len(traces) == 1


@pytest.mark.parametrize("kind", ["gaussian", "student_3", "bimodal"])
def test_statistical_keeps_within_10_percent_of_k_in_99_percent_of_rows(kind):
    x = array(kind, (512, 3072), "float32", 1)
    kept = np.asarray(top_k.kept_count(top_k.keep_top_k(x, 128, "statistical", relu=True)))
    assert np.mean(np.abs(kept - 128) <= 12.8) >= 0.99


def test_statistical_without_steps_is_the_gaussian_quantile():
    x = array("gaussian", (16, 1000), "float32")
    tau = np.mean(x, -1, keepdims=True) + np.std(x, -1, keepdims=True) * 1.6448536
    kept = np.asarray(top_k.top_k_mask(x, 50, "statistical", steps=0))
    assert np.mean(kept != (np.asarray(x) >= tau)) < 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_keeps_the_first_largest_of_each_block(dtype):
    x = array("ties", (16, 96), dtype)
    blocks = np.asarray(x, np.float32).reshape(16, 12, 8)
    want = np.arange(8) == (blocks + 0.0).argmax(-1)[..., None]
    np.testing.assert_array_equal(top_k.top_k_mask(x, 12, "group"), want.reshape(16, 96))


TABLE = {  # d_ff: k -> log2 reduction at recall 0.95 and 0.90, as compiled for a TPU
    2048: {16: (2, 3), 64: (None, 1), 128: (None, None), 256: (None, None)},
    3072: {16: (3, 4), 64: (1, 2), 128: (None, 1), 256: (None, None)},
    4096: {16: (3, 4), 64: (1, 2), 128: (None, 1), 256: (None, None)},
    10240: {16: (5, 6), 64: (3, 4), 128: (2, 3), 256: (1, 2)},
    65536: {16: (7, 8), 64: (5, 6), 128: (4, 5), 256: (3, 4)},
}
CASES = [
    (f, k, r, log2)
    for f, row in TABLE.items()
    for k, two in row.items()
    for r, log2 in zip((0.95, 0.9), two, strict=True)
]


@pytest.mark.parametrize(("d_ff", "k", "recall", "log2"), CASES)
def test_predict_approx(d_ff, k, recall, log2):
    assert top_k.predict_approx(d_ff, k, recall, "tpu") == log2
    assert top_k.predict_approx(d_ff, k, recall, "gpu") is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_approx_warns_once_and_is_exact_here(dtype):
    top_k.warn_exact.cache_clear()
    x = array("gaussian", (8, 200), dtype)
    with pytest.warns(UserWarning, match="d_ff=200, k=20, recall_target=0.95 on cpu is an exact search"):
        mask = top_k.top_k_mask(x, 20, "approx")
    assert (mask.sum(-1) == 20).all()
    lowest = np.where(mask, np.asarray(x, np.float32), np.inf).min(-1, keepdims=True)
    assert (np.asarray(x, np.float32)[~np.asarray(mask)] <= np.broadcast_to(lowest, x.shape)[~np.asarray(mask)]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        top_k.top_k_mask(x[:4], 20, "approx")
    text = compiled(lambda x: top_k.top_k_mask(x, 20, "approx"), x)
    assert " sort(" not in text  # the CPU's partial sort, in bfloat16 and float16 too
    assert SORT.search(text)


def methods():
    return pytest.mark.parametrize("method", ["exact", "statistical", "group"])


@methods()
def test_gradient_is_that_of_a_constant_mask(method):
    x, g = array("gaussian", (8, 96), "float32"), array("gaussian", (8, 96), "float32", 1)
    keep = lambda x: jnp.vdot(top_k.keep_top_k(x, 12, method, relu=True), g)
    kept = np.asarray(top_k.keep_top_k(x, 12, method, relu=True)) != 0
    want = np.where(kept, g, 0)
    np.testing.assert_array_equal(jax.grad(keep)(x), want)
    np.testing.assert_array_equal(jax.jit(jax.grad(jax.checkpoint(keep)))(x), want)


def test_gradient_of_exact_without_relu_and_odd_width():
    x = array("negative", (4, 131), "bfloat16")
    grad = jax.grad(lambda x: top_k.keep_top_k(x, 5).sum().astype(jnp.float32))(x)
    np.testing.assert_array_equal(np.asarray(grad, np.float32), lax_mask(x, 5))


@methods()
def test_vmap_and_scan_agree(method):
    x = array("ties", (24, 96), "float32")
    want = np.asarray(top_k.keep_top_k(x, 12, method))
    f = lambda x: top_k.keep_top_k(x, 12, method)
    np.testing.assert_array_equal(jax.jit(jax.vmap(f))(x.reshape(3, 8, 96)).reshape(24, 96), want)
    np.testing.assert_array_equal(jax.lax.scan(lambda c, x: (c, f(x)), 0, x.reshape(3, 8, 96))[1].reshape(24, 96), want)


def mesh_4x2():
    return jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)


@methods()
@pytest.mark.parametrize("kind", ["ties", "some_special"])
def test_a_4x2_mesh_agrees(method, kind):
    x = array(kind, (64, 96), "float32").reshape(16, 4, 96)
    g = array("gaussian", (64, 96), "float32", 2).reshape(16, 4, 96)

    def both(x, g):
        gradient = jax.vjp(lambda x: top_k.keep_top_k(x, 12, method, relu=True), x)[1](g)[0]
        return gradient, top_k.top_k_mask(x, 12, method)

    alone, mask_alone = jax.jit(both)(x, g)
    mesh = mesh_4x2()
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, P("data", None, "model")))
        meshed, mask_meshed = jax.jit(both)(placed, g)
    if method == "statistical":  # sums in another order: a threshold may move past one entry
        assert np.mean(np.asarray(mask_alone) != np.asarray(mask_meshed)) < 1e-3
    else:
        np.testing.assert_array_equal(np.asarray(meshed), np.asarray(alone))
        np.testing.assert_array_equal(np.asarray(mask_meshed), np.asarray(mask_alone))


def test_inside_somebodys_shard_map_rows_are_whole():
    x, mesh = array("ties", (40, 200), "float32"), mesh_4x2()
    f = jax.shard_map(
        lambda x: top_k.keep_top_k(x, 20), mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    np.testing.assert_array_equal(jax.jit(f)(x), top_k.keep_top_k(x, 20))


def test_a_batch_that_the_mesh_does_not_divide():
    x = array("ties", (3, 96), "float32")
    with jax.set_mesh(mesh_4x2()):
        meshed = jax.jit(lambda x: top_k.top_k_mask(x, 12))(x)
    np.testing.assert_array_equal(meshed, lax_mask(x, 12))


COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def collectives(text):
    """(kind, bytes) of every collective of a compiled program; a combined one returns a tuple of arrays."""
    size = {"s32": 4, "f32": 4, "u8": 1, "pred": 1}
    found = []
    for shapes, kind in re.findall(rf"= (\(?[\w\[\]{{}}, ]+?\)?) ({COLLECTIVES})(?:-start)?\(", text):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        number = lambda dims: int(np.prod([int(d) for d in dims.split(",") if d]))
        found.append((kind, sum(size[dtype] * number(dims) for dtype, dims in arrays)))
    assert len(found) == len(re.findall(rf" (?:{COLLECTIVES})(?:-start)?\(", text))  # none escaped the pattern
    return found


def test_combined_collectives_are_counted_whole():
    text = """%a = (f32[64,1]{1,0}, s32[64,1]{1,0}) all-reduce(f32[64,1]{1,0} %x, s32[64,1]{1,0} %y), channel_id=1
    %b = u8[2,8]{1,0} all-gather-start(u8[1,8]{1,0} %z), channel_id=2"""
    assert collectives(text) == [("all-reduce", 512), ("all-gather", 16)]


def test_collectives_of_a_sharded_exact_are_counts_of_rows():
    x, mesh = jnp.ones((256, 96)), mesh_4x2()
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, P("data", "model")))
        f = jax.jit(jax.grad(lambda x: jnp.sum(top_k.keep_top_k(x, 12, relu=True) * x)))
        text = f.lower(placed).compile().as_text()
    rows = 256 // 4  # of one data shard
    found = sorted(c for c in collectives(text))
    # Moments and positive entries once; one count in each loop, of all rows or of the eighth that
    # was gathered; and one count per model shard and gathered row for ties. The gradient needs none.
    once = [("all-reduce", 2 * 4 * rows), ("all-reduce", 4 * rows)]
    counts = [*once, ("all-reduce", 4 * rows), ("all-reduce", 4 * rows // 8)]
    assert found == sorted([*counts, ("all-gather", 2 * 4 * rows // 8)])


SORT = re.compile(r" sort\(|custom_call_target=\"\w*[tT]op")


def compiled(f, *args):
    return jax.jit(f).lower(*args).compile().as_text()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["exact", "statistical", "group"])
def test_no_sort_is_compiled(method, dtype):
    text = compiled(
        jax.grad(lambda x: top_k.keep_top_k(x, 12, method).sum().astype(jnp.float32)), jnp.ones((64, 96), dtype)
    )
    assert not SORT.search(text)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_no_sort_is_lowered_for_any_platform(platform):
    gradient = jax.grad(lambda x: top_k.keep_top_k(x, 12, relu=True).sum())
    text = jax.jit(gradient).trace(jnp.ones((64, 96))).lower(lowering_platforms=(platform,)).as_text()
    assert not re.search(r"\b(stablehlo|chlo)\.(sort|top_k)", text)


def test_residual_is_one_bit_per_entry():
    x = jnp.ones((64, 96))
    _, pullback = jax.vjp(lambda x: top_k.keep_top_k(x, 12), x)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(pullback)) <= x.size // 8 + 8


def test_blocks_of_rows_change_nothing(monkeypatch):
    x = array("ties", (40, 200), "float32")
    want = np.asarray(top_k.keep_top_k(x, 20))
    monkeypatch.setattr(top_k, "CPU_BLOCK_BYTES", 4096)
    monkeypatch.setattr(top_k, "CPU_WHOLE_BYTES", 4096)
    assert top_k._blocks(x) == 8
    jax.clear_caches()
    np.testing.assert_array_equal(top_k.keep_top_k(x, 20), want)


def test_gelu_is_ranked_after_and_relu_may_be_ranked_before():
    z = array("gaussian", (8, 64), "float32") - 3  # where GELU falls, the order of z is not its order
    want = Gelu()(z)
    np.testing.assert_array_equal(TopK(k=20, act="gelu")(z), np.where(lax_mask(want, 20), want, 0))
    assert (lax_mask(want, 20) != lax_mask(z, 20)).any()
    z = array("gaussian", (8, 64), "float32")
    np.testing.assert_array_equal(TopK(k=20)(z), top_k.keep_top_k(Relu()(z), 20))


def test_count_folds_wide_rows_without_overflow():
    where = jnp.ones((2, 70_001), bool)
    np.testing.assert_array_equal(top_k_threshold.count(where), 70_001)


def unpacked(bits, units):
    """Booleans from the kernel's bytes: bit i of byte j is entry i F/8 + j."""
    return np.concatenate([(np.asarray(bits) >> i) & 1 for i in range(8)], axis=-1)[:, :units].astype(bool)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["ties", "some_special"])
def test_the_tpu_kernel_interpreted(kind, dtype):
    x = array(kind, (32, 1024), dtype)
    kept, bits = top_k_tpu.keep_top_k_tpu(x, 100, interpret=True)
    np.testing.assert_array_equal(np.asarray(kept, np.float32), np.asarray(keep_of(x, 100), np.float32))
    np.testing.assert_array_equal(unpacked(bits, 1024), lax_mask(x, 100) | np.isnan(np.asarray(x, np.float32)))
    kept, _ = top_k_tpu.keep_top_k_tpu(x, 1000, relu=True, interpret=True)
    np.testing.assert_array_equal(np.asarray(kept, np.float32), np.asarray(relu_of(x, 1000), np.float32))


@pytest.mark.parametrize(("shape", "k", "match"), [((31, 1024), 1, "multiple of 32"), ((32, 1024), 0, "k: must be")])
def test_the_tpu_kernel_refuses(shape, k, match):
    with pytest.raises(ValueError, match=match):
        top_k_tpu.keep_top_k_tpu(jnp.ones(shape), k, interpret=True)


@pytest.fixture(scope="module")
def tpu(tpu_devices):
    """Sharding on one described TPU v5e core, for compiling ahead of time."""
    return jax.sharding.SingleDeviceSharding(tpu_devices[0])


def for_tpu(f, tpu, shape, dtype="float32"):
    return jax.jit(f).lower(jax.ShapeDtypeStruct(shape, dtype, sharding=tpu)).compile()


@pytest.mark.aot
@pytest.mark.parametrize(("d_ff", "k", "recall", "log2"), CASES)
def test_partial_reduce_is_compiled_exactly_where_predicted(tpu, d_ff, k, recall, log2):
    f = lambda x: jax.lax.approx_max_k(x, k, recall_target=recall)
    text = for_tpu(f, tpu, (8, d_ff)).as_text()
    assert ("PartialReduce" in text) == (log2 is not None)
    if log2 is not None:
        assert set(re.findall(r"log2_reduction\W+(\d+)", text)) == {str(log2)}


@pytest.mark.aot
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v6e:2x2"])
def test_other_tpus_reduce_alike(tpu_slice, chip):
    cases = [(f, r, log2) for f, k, r, log2 in CASES if k == 128]
    one = jax.sharding.SingleDeviceSharding(tpu_slice(chip)[0])
    rows = [jax.ShapeDtypeStruct((8, f), jnp.float32, sharding=one) for f, _, _ in cases]
    search = lambda *rows: [
        jax.lax.approx_max_k(x, 128, recall_target=r) for x, (_, r, _) in zip(rows, cases, strict=True)
    ]
    text = jax.jit(search).lower(*rows).compile().as_text()
    reduction = r'f32\[8,(\d+)\].*"PartialReduce".*"log2_reduction": (\d+).*"recall_target": ([\d.]+)'
    found = {(int(width), int(log2), float(recall)) for width, log2, recall in re.findall(reduction, text)}
    assert found == {(f >> log2, log2, r) for f, r, log2 in cases if log2 is not None}
    assert len(found) < len(cases)


@pytest.mark.aot
@pytest.mark.filterwarnings("ignore:approx top-k")
def test_our_approx_is_the_partial_reduce(tpu):
    text = for_tpu(lambda x: top_k.keep_top_k(x, 128, "approx"), tpu, (8, 16384), "bfloat16").as_text()
    assert "PartialReduce" in text


@pytest.mark.aot
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exact_compiles_for_tpu_without_a_sort(tpu, dtype):
    gradient = jax.grad(lambda x: jnp.sum(top_k.keep_top_k(x, 128, relu=True), dtype=jnp.float32))
    assert not SORT.search(for_tpu(gradient, tpu, (1024, 3072), dtype).as_text())


@pytest.mark.aot
def test_the_residual_on_tpu_is_one_bit_per_entry(tpu):
    forward = lambda x: jax.vjp(lambda x: top_k.keep_top_k(x, 128, relu=True), x)
    memory = for_tpu(forward, tpu, (1024, 4096)).memory_analysis()
    assert memory.output_size_in_bytes <= 1024 * 4096 * (4 + 1 / 8) + 4096  # the values and the bits


@pytest.mark.aot
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_compiles_for_tpu(tpu, dtype):
    text = for_tpu(lambda x: top_k_tpu.keep_top_k_tpu(x, 128, relu=True), tpu, (1024, 3072), dtype).as_text()
    assert "tpu_custom_call" in text
