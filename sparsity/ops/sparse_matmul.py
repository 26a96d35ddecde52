"""Matrix products that skip zeros: the rows of W that meet only zeros are never read.

`gathered_matmul` is for inference on one token or a few. There a dense product is bound by
reading W, and with a share d of nonzeros only a share d of it is needed. A batch needs the
units that are active in any of its rows: for B independent rows a share 1 - (1 - d)^B, so the
saving shrinks as B grows. Training gains nothing here: there is no gradient.

`rows_dot` and `weighted_rows` are for tokens that each know the K rows they need. Both W_i and
W_o lie in memory as [F, D], one row a unit; for TPUs as `Tiled`, whose rows their kernels read.
"""

from __future__ import annotations

from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
from jax import lax

from sparsity.ops.kernels.gather_tpu import rows_dot_tpu, tile_rows, weighted_rows_tpu

ROWS = 4  # of W, per step of the CPU's loop: with more, eight rows of h take longer
TOKENS = 8  # up to here each token reads its own rows; more, as of a prompt, share one product with all of W


@flax.struct.dataclass
class Tiled:
    """A matrix [F, D] as TPUs can read row by row, see `kernels.gather_tpu`.

    Attributes:
      tiles: [F, S, 128], float32 or bfloat16.
      width: D (static).
    """

    tiles: jax.Array
    width: int = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, w_FxD: jax.Array) -> Tiled:
        """The matrix in that layout: a copy, to be made once."""
        return cls(tile_rows(w_FxD), w_FxD.shape[1])


Rows = jax.Array | Tiled  # a matrix [F, D], one row a unit


def matrix(rows: Rows) -> jax.Array:
    """The matrix [F, D] itself; of `Tiled` ones a copy, for whole products."""
    return rows.tiles.reshape(len(rows.tiles), -1)[:, : rows.width] if isinstance(rows, Tiled) else rows


def gathered_matmul(h: jax.Array, w: jax.Array, capacity: int) -> jax.Array:
    """Y = h W for `h` [..., F] and `w` [F, D], reading only the rows of W whose unit is active: [..., D].

    A unit is active if it is nonzero in any row of h; NaN is nonzero and reaches the output. Equal
    to the dense product, for finite W, but for the order of summation. With more than `capacity`
    active units it is the dense product itself: choose the number from which on that is faster.

    On CPUs one thread loops over the active units: time follows their number, not `capacity`.
    Elsewhere `capacity` rows are gathered and multiplied. Sums are float32 or wider. W must be whole
    on each device, and in place: one layer sliced out of stacked weights is copied first. Pass rows
    as leading axes of `h` instead of using `jax.vmap`, under which both products run.

    Raises:
      ValueError: `w` is not a matrix, `h` does not end in its rows, or `capacity` is not in 1..F.

    >>> gathered_matmul(jnp.array([0.0, 2.0, 0.0]), jnp.arange(6.0).reshape(3, 2), capacity=1)
    Array([4., 6.], dtype=float32)
    """
    if w.ndim != 2 or h.ndim < 1 or h.shape[-1] != w.shape[0]:
        raise ValueError(f"h [..., F] and w [F, D] are needed, got shapes {h.shape} and {w.shape}")
    units = w.shape[0]
    if capacity != int(capacity) or not 1 <= capacity <= units:
        raise ValueError(f"capacity: must be a whole number in 1..{units}, the units of h, got {capacity}")
    h_BxF, capacity = h.reshape(-1, units), int(capacity)
    active_F = jnp.any(h_BxF != 0, axis=0)

    def gathered(*arrays):
        cpu, default = (lambda *a, f=f: f(*a, capacity) for f in (_by_loop, _by_take))
        return lax.platform_dependent(*arrays, cpu=cpu, default=default)

    fits = jnp.sum(active_F) <= capacity
    y_BxD = lax.cond(fits, gathered, lambda h_BxF, w, _: h_BxF @ w, h_BxF, w, active_F)
    return y_BxD.reshape(*h.shape[:-1], w.shape[1])


def whole(x_TxD: jax.Array, w_FxD: jax.Array) -> jax.Array:
    """The product x W^T [T, F], float32 at least: of the two layouts, a CPU reads W faster for one token in this.

    Accelerators would round float32 to fewer bits by default; what `ops.quantised` proves is of float32 sums.
    """
    wide = jnp.promote_types(jnp.result_type(x_TxD, w_FxD), jnp.float32)
    contracted = (((1,), (1,)), ((), ()))
    highest = lax.Precision.HIGHEST
    return lax.dot_general(x_TxD.astype(w_FxD.dtype), w_FxD, contracted, highest, preferred_element_type=wide)


def narrow(x_TxR: jax.Array, w_RxF: jax.Array) -> jax.Array:
    """The product x W [T, F] with few rows R, float32 at least: laid out as in `whole`, a CPU takes twice as long."""
    wide = jnp.promote_types(jnp.result_type(x_TxR, w_RxF), jnp.float32)
    return jnp.matmul(x_TxR.astype(w_RxF.dtype), w_RxF, precision=lax.Precision.HIGHEST, preferred_element_type=wide)


def rows_dot(x_TxD: jax.Array, rows: Rows, index_TxK: jax.Array) -> jax.Array:
    """Each token's products with rows of its own: [T, K] of x_t . w_i, i = index_tk in 0..F-1; float32 at least."""
    if len(x_TxD) > TOKENS:
        return jnp.take_along_axis(whole(x_TxD, matrix(rows)), index_TxK, axis=1)
    if isinstance(rows, Tiled):
        kernel = lambda x_TxD, index_TxK, rows: rows_dot_tpu(x_TxD.astype(rows.tiles.dtype), rows.tiles, index_TxK)
        other = lambda x_TxD, index_TxK, rows: rows_dot(x_TxD, matrix(rows), index_TxK)
        return lax.platform_dependent(x_TxD, index_TxK, rows, tpu=kernel, default=other)
    w_FxD = rows
    return _each(lambda x_D, index_K: whole(x_D[None], _take(w_FxD, index_K))[0], x_TxD, index_TxK)


def weighted_rows(value_TxK: jax.Array, index_TxK: jax.Array, rows: Rows) -> jax.Array:
    """Each token's sum of K rows: [T, D] of sum_k value_tk w_i, i = index_tk in 0..F-1, no i twice; float32 at least.

    Of a matrix that is not `Tiled` a TPU may read all for it.
    """
    if isinstance(rows, Tiled) and len(value_TxK) <= TOKENS:

        def kernel(value_TxK, index_TxK, rows):
            rounded = value_TxK.astype(rows.tiles.dtype)  # as W_o's product in training rounds it
            return weighted_rows_tpu(rounded, index_TxK, rows.tiles)[:, : rows.width]

        other = lambda value_TxK, index_TxK, rows: weighted_rows(value_TxK, index_TxK, matrix(rows))
        return lax.platform_dependent(value_TxK, index_TxK, rows, tpu=kernel, default=other)
    w_FxD = matrix(rows)
    if len(value_TxK) > TOKENS:
        h_TxF = jnp.zeros((len(value_TxK), len(w_FxD)), value_TxK.dtype)
        token_Tx1 = jnp.arange(len(value_TxK))[:, None]
        return _multiply(h_TxF.at[token_Tx1, index_TxK].set(value_TxK, unique_indices=True), w_FxD)

    def one(value_K, index_K):
        by_take = lambda value_K, index_K, w_FxD: _multiply(value_K, _take(w_FxD, index_K))
        return lax.platform_dependent(value_K, index_K, w_FxD, cpu=_summed, default=by_take)

    return _each(one, value_TxK, index_TxK)


def _multiply(h: jax.Array, w_FxD: jax.Array) -> jax.Array:
    wide = jnp.promote_types(jnp.result_type(h, w_FxD), jnp.float32)
    return jnp.matmul(h.astype(w_FxD.dtype), w_FxD, preferred_element_type=wide)


def _summed(value_K: jax.Array, index_K: jax.Array, w_FxD: jax.Array) -> jax.Array:
    """The sum of weighted rows [D], one multiply-add a row: in half the time of a gathered copy's product."""
    wide, short = jnp.promote_types(jnp.result_type(value_K, w_FxD), jnp.float32), -len(value_K) % ROWS
    value_K, index_K = jnp.pad(value_K.astype(wide), (0, short)), jnp.pad(index_K, (0, short))

    def step(i, y_D):
        for j in range(ROWS):
            row_D = lax.dynamic_index_in_dim(w_FxD, index_K[i * ROWS + j], keepdims=False)
            y_D += value_K[i * ROWS + j] * row_D.astype(wide)
        return y_D

    return lax.fori_loop(0, len(value_K) // ROWS, step, jnp.zeros(w_FxD.shape[1], wide))


def active_units(h_BxF: jax.Array, capacity: int) -> jax.Array:
    """The first `capacity` units that are nonzero, or NaN, in any row of h, ascending, int32 [capacity].

    If there are fewer, harmless ones follow: units that are zero in all rows, or F.
    """
    active_F = jnp.any(h_BxF != 0, axis=0)
    units = active_F.shape[0]
    by_loop = lambda active_F: _indices(active_F, capacity + 1)[0][:capacity]
    by_sum = lambda active_F: jnp.nonzero(active_F, size=capacity, fill_value=units)[0].astype(jnp.int32)
    return lax.platform_dependent(active_F, cpu=by_loop, default=by_sum)


def _take(w_FxD: jax.Array, index_K: jax.Array) -> jax.Array:
    return jnp.take(w_FxD, index_K, axis=0, mode="clip")


def _each(one: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`one` of each token's entries. Not `jax.vmap`: under it the rows of all tokens are gathered into one array."""
    if len(arrays[0]) == 1:
        return one(*(a[0] for a in arrays))[None]
    return lax.map(lambda token: one(*token), arrays)


def _by_loop(h_BxF: jax.Array, w: jax.Array, active_F: jax.Array, capacity: int) -> jax.Array:
    """The product by one multiply-add of B rows per active unit; no gathered copy of W is written."""
    out = jnp.result_type(h_BxF, w)
    index, count = _indices(active_F, capacity + ROWS)
    h_BxF = jnp.pad(h_BxF, ((0, 0), (0, 1)))  # what the indices behind the last active unit meet: zero

    def step(i, y_BxD):
        for j in range(ROWS):
            unit = index[i * ROWS + j]
            column_Bx1 = lax.dynamic_slice_in_dim(h_BxF, unit, 1, axis=1)
            row_1xD = lax.dynamic_slice_in_dim(w, unit, 1, axis=0)
            y_BxD += column_Bx1.astype(y_BxD.dtype) * row_1xD.astype(y_BxD.dtype)
        return y_BxD

    y_BxD = jnp.zeros((h_BxF.shape[0], w.shape[1]), jnp.promote_types(out, jnp.float32))
    return lax.fori_loop(0, -(-count // ROWS), step, y_BxD).astype(out)


def _indices(active_F: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The active units in order, then harmless ones, inactive or F, up to `size`; and how many are active.

    Every unit is written to the next free place, which an inactive one leaves to its successor. This scalar
    loop takes a CPU a few nanoseconds a unit, less than a prefix sum and a scatter.
    """
    units = active_F.shape[0]

    def write(unit, state):
        index, count = state
        return lax.dynamic_update_index_in_dim(index, unit.astype(jnp.int32), count, 0), count + active_F[unit]

    return lax.fori_loop(0, units, write, (jnp.full(size, units, jnp.int32), jnp.int32(0)))


def _by_take(h_BxF: jax.Array, w: jax.Array, active_F: jax.Array, capacity: int) -> jax.Array:
    """The product of gathered columns of h and rows of W."""
    units = active_F.shape[0]
    index = jnp.nonzero(active_F, size=capacity, fill_value=units)[0]
    h_BxK = jnp.take(jnp.pad(h_BxF, ((0, 0), (0, 1))), index, axis=1, mode="clip")
    return h_BxK @ _take(w, index)
