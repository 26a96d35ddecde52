"""Top-k selection along the last axis: the k largest entries of each row stay, the rest is zero.

Four methods behind two functions, `keep_top_k` and `top_k_mask`:

  exact        the set of `jax.lax.top_k`, ties to the lower index, by counting (`top_k_threshold`):
               no sort in the compiled program on any backend. k may be traced.
  statistical  mean + std ppf(1 - k/F), corrected by a few counts (Spark Transformer, You et al.
               2025; Gemma 3n): about k entries. k may be traced.
  approx       `jax.lax.approx_max_k`, the TPU's PartialReduce; `predict_approx` says where that
               is what really runs, and elsewhere a warning says that it is an exact search.
  group        the largest of each of k blocks of F/k neighbours (Terraformer, Jaszczur et al. 2021).

The mask is a constant to the gradient: kept entries pass theirs, others get none. What the
backward pass keeps is one bit per entry, not the activation. A NaN entry is never masked away
and never sparse: it stays NaN, whatever the rest of its row does.

Under `jax.set_mesh` rows stay on their shard of examples and tokens, hidden units on their model shard: exact
and statistical exchange counts of [rows], group nothing; see `_local`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from sparsity import axes
from sparsity.config import lookup
from sparsity.ops import top_k_threshold as threshold

Method = Literal["exact", "statistical", "approx", "group"]
STEPS = threshold.STEPS
METHODS: tuple[str, ...] = get_args(Method)
CPU_BLOCK_BYTES = 4 << 20  # rows that are passed over while they stay in a CPU's cache
CPU_WHOLE_BYTES = 16 << 20  # up to here blocks gain nothing


@dataclasses.dataclass(frozen=True)
class _Choice:
    """The static half of a call: what to do with every row."""

    method: str
    steps: int
    recall_target: float
    relu: bool
    k: int | None  # None: k is traced


def keep_top_k(
    h: jax.Array,
    k: jax.Array | int,
    method: Method = "exact",
    *,
    relu: bool = False,
    steps: int = STEPS,
    recall_target: float = 0.95,
) -> jax.Array:
    """`h` [..., F] with all but the k largest entries of each row set to zero.

    Args:
      h: floats.
      k: entries kept per row, 0 <= k <= F; exact and statistical also take a traced integer.
      method: see the module.
      relu: return Top_k(max(h, 0)) and rank `h` itself, which saves a pass: ReLU is monotone, so
        both rankings give the same values. (Not so for GELU, which falls below -0.75: rank its
        output.) The gradient at h <= 0 is 0.
      steps: counts that correct the threshold of statistical; 0 for none.
      recall_target: expected share of the true top k found by approx on TPU, in (0, 1].

    Raises:
      ValueError: k outside [0, F], a traced k with approx or group, k not a divisor of F with
        group, an unknown method, or a setting out of range.

    >>> keep_top_k(jnp.array([3.0, -1.0, 2.0, 2.0]), 2)
    Array([3., 0., 2., 0.], dtype=float32)
    """
    choice, k = _check(h, k, method, relu, steps, recall_target)
    return _compiled_keep(choice, h, k)


def top_k_mask(
    x: jax.Array, k: jax.Array | int, method: Method = "exact", *, steps: int = STEPS, recall_target: float = 0.95
) -> jax.Array:
    """True at the entries of `x` [..., F] that `keep_top_k` ranks among the k largest.

    With method exact the set is that of `jax.lax.top_k(x, k)[1]`, exactly k a row: +0 comes
    before -0, +NaN first, -NaN last. Arguments and errors as in `keep_top_k`.
    """
    choice, k = _check(x, k, method, False, steps, recall_target)
    return _compiled_mask(choice, jax.lax.stop_gradient(x), k)


def kept_count(h: jax.Array) -> jax.Array:
    """Nonzero entries of each row of `h` [..., F], as int32 [...]; a NaN counts, it is not sparse."""
    return jnp.sum(h != 0, axis=-1, dtype=jnp.int32)


def _check(x, k, method, relu, steps, recall_target) -> tuple[_Choice, jax.Array]:
    lookup({m: m for m in METHODS}, method, "method", ValueError)
    units = x.shape[-1]
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"top-k ranks floats, got {x.dtype}")
    if steps < 0:
        raise ValueError(f"steps: must be at least 0, got {steps}")
    if not 0 < recall_target <= 1:
        raise ValueError(f"recall_target: must be in (0, 1], got {recall_target}")
    static = not isinstance(k, jax.Array)
    if static:
        if k != int(k) or not 0 <= k <= units:
            raise ValueError(f"k: must be a whole number in 0..{units}, the row's length, got {k}")
        if method == "group" and (k < 1 or units % k):
            raise ValueError(f"k: group keeps one of each of k equal blocks; {k} does not divide {units}")
    elif method in ("approx", "group"):
        raise ValueError(f"k: method {method} needs it when compiling, not as a traced value")
    choice = _Choice(method, steps, recall_target, relu, int(k) if static else None)
    return choice, jnp.asarray(k, jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _keep(choice: _Choice, h: jax.Array, k: jax.Array) -> jax.Array:
    return _keep_forward(choice, h, k)[0]


def _keep_forward(choice, h, k):
    def keep(h, k, *axis):
        mask = _mask(choice, h, k, *axis)
        mask = ((mask & (h > 0)) if choice.relu else mask) | jnp.isnan(h)
        return jnp.where(mask, h, jnp.zeros_like(h)), jnp.packbits(mask, axis=-1)

    def by_platform(h, k, *axis):
        blocks = _blocks(h) if not axis and choice.k != 0 else 1
        if blocks == 1:
            return keep(h, k, *axis)
        return jax.lax.platform_dependent(h, k, cpu=functools.partial(_blockwise, keep, blocks), default=keep)

    return _local(choice, h.shape, by_platform, outputs=2)(h, k)


def _keep_backward(choice, bits, g):
    def pass_kept(g, bits, *_):
        return jnp.where(jnp.unpackbits(bits, axis=-1, count=g.shape[-1]) != 0, g, jnp.zeros_like(g))

    return _local(choice, g.shape, pass_kept)(g, bits), None


_keep.defvjp(_keep_forward, _keep_backward)
_compiled_keep = jax.jit(_keep, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _compiled_mask(choice: _Choice, x: jax.Array, k: jax.Array) -> jax.Array:
    return _local(choice, x.shape, functools.partial(_mask, choice))(x, k)


def _blocks(h: jax.Array) -> int:
    """Into how many blocks of rows `h` is cut so that one stays in a CPU's cache for all its passes."""
    if h.nbytes <= CPU_WHOLE_BYTES:
        return 1
    rows, blocks = math.prod(h.shape[:-1]), -(-h.nbytes // CPU_BLOCK_BYTES)
    return next((n for n in range(blocks, 2 * blocks) if n <= rows and rows % n == 0), 1)


def _blockwise(keep, blocks: int, h: jax.Array, k: jax.Array):
    """`keep(h, k)`, one block of rows after the other."""
    out = jax.lax.map(lambda block: keep(block, k), h.reshape(blocks, -1, h.shape[-1]))
    return jax.tree.map(lambda a: a.reshape(*h.shape[:-1], a.shape[-1]), out)


def _mask(choice: _Choice, x: jax.Array, k: jax.Array, axis: str | None = None) -> jax.Array:
    """The mask of one shard `x` [..., F]; `axis`: the mesh axis that its columns are split over."""
    rows = x.reshape(-1, x.shape[-1])
    if choice.method == "group":
        mask = _group(rows, choice.k // (1 if axis is None else jax.lax.axis_size(axis)))
    elif choice.method == "approx":
        mask = _approx(rows, choice.k, choice.recall_target)
    elif choice.method == "statistical":
        cut = threshold.statistical_cut(rows, k, steps=choice.steps, relu=choice.relu, axis=axis)
        mask = threshold.inside(rows, cut)
    else:
        mask = threshold.inside(rows, threshold.exact_cut(rows, k, relu=choice.relu, axis=axis))
    return mask.reshape(x.shape)


def _local(choice: _Choice, shape: tuple[int, ...], body, outputs: int = 1):
    """`body(x, small, axis)` of an array `x` of `shape`, run on each shard where a mesh is set.

    The mesh is that of `jax.set_mesh`; `x` is split like examples, tokens and hidden units (`axes.RULES`), each only
    where the mesh divides them. Left to themselves, compilers would move rows between shards to gather the unsettled
    ones. Inside somebody's `shard_map` the rows are taken to be whole; approx is left to the compiler, which
    knows how to split a PartialReduce.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or choice.method == "approx" or AxisType.Manual in mesh.axis_types or mesh.size == 1:
        return body
    rows, units = shape[:-1] or (1,), choice.k if choice.method == "group" else shape[-1]
    fitted = axes.fitted(mesh, ("batch", *("length",) * (len(rows) - 1), "mlp"), (*rows, units))
    spec = PartitionSpec(*(None if axes.parts(mesh, entry) == 1 else entry for entry in fitted[-len(shape) :]))
    if not any(spec):
        return body
    hidden = spec[-1]

    def run(x, small):
        small_spec = spec if small.ndim else PartitionSpec()  # packed bits, or k
        inner = lambda x, small: body(x, small, *(() if hidden is None else (hidden,)))
        out = spec if outputs == 1 else (spec,) * outputs
        return jax.shard_map(inner, in_specs=(spec, small_spec), out_specs=out, check_vma=False)(x, small)

    return run


def _group(rows: jax.Array, blocks: int) -> jax.Array:
    """True at the largest of each of `blocks` equal blocks of each row [R, F], ties to the lower index."""
    bits = threshold.ordered_bits(rows).reshape(rows.shape[0], blocks, -1)
    column = jax.lax.broadcasted_iota(jnp.int32, bits.shape, 2)
    top = bits == jnp.max(bits, axis=-1, keepdims=True)
    first = jnp.min(jnp.where(top, column, bits.shape[-1]), axis=-1, keepdims=True)
    return (column == first).reshape(rows.shape)


def _approx(rows: jax.Array, k: int, recall_target: float) -> jax.Array:
    """True at the entries of rows [R, F] that `lax.approx_max_k` returns."""
    if k == 0:
        return jnp.zeros(rows.shape, bool)
    warn_exact(rows.shape[-1], k, recall_target, jax.default_backend())
    # In bfloat16 the search becomes a full sort; without the barrier XLA undoes the cast.
    wide = jax.lax.optimization_barrier(rows.astype(jnp.float32))
    _, index = jax.lax.approx_max_k(wide, k, recall_target=recall_target)
    row = jnp.arange(rows.shape[0])[:, None]
    return jnp.zeros(rows.shape, bool).at[row, index].set(True, unique_indices=True)


def predict_approx(d_ff: int, k: int, recall_target: float = 0.95, backend: str = "tpu") -> int | None:
    """Log2 of the reduction that `approx_max_k` does before its sort, or None: no reduction, an exact search.

    XLA keeps L = max((k - 1) / -log(recall), 128) candidates or more, so that bins lose at most
    1 - recall of the top k (Chern et al. 2022, Eq. 14), and reduces by the power of two below
    d_ff / L. Backends other than the TPU have no PartialReduce: `approx_max_k` is exact there.

    >>> predict_approx(65536, 128), predict_approx(3072, 128), predict_approx(65536, 128, backend="cpu")
    (4, None, None)
    """
    if backend != "tpu" or d_ff <= threshold.LANES or recall_target >= 1:
        return None
    candidates = min(max(int((1 - k) / math.log(recall_target)), threshold.LANES), d_ff)
    return int(math.log2(d_ff // candidates)) or None


@functools.cache
def warn_exact(d_ff: int, k: int, recall_target: float, backend: str) -> None:
    """Warns, once, if `approx_max_k` of these settings is an exact search."""
    if predict_approx(d_ff, k, recall_target, backend) is None:
        why = "this many candidates leave nothing to reduce" if backend == "tpu" else "only TPUs have PartialReduce"
        warnings.warn(
            f"approx top-k of d_ff={d_ff}, k={k}, recall_target={recall_target} on {backend} is an exact search by "
            f"sorting ({why}); method exact gives the same and is faster",
            stacklevel=2,
        )
