"""Products with chosen rows of a matrix that stays in HBM: Pallas kernels for TPU.

  weighted_rows_tpu   y_t = sum_k h_tk W[i_tk, :]   the second matrix of an MLP after Top-k
  rows_dot_tpu        z_tk = x_t . W[i_tk, :]       the first one's rows, for candidates alone

Each row is one DMA from HBM, up to `RING` x `GROUP` of them in flight. XLA's own gather often reads
all of W instead: a W that fits into VMEM or CMEM is copied there first, as it is for a kernel that
does not forbid it. And of W [F, D], whose tiles hold eight rows each, no row is in one piece. So W
comes in the layout of `tile_rows`, made once when weights are loaded; made in the program it is a
copy of W in every step. A layer of stacked weights [L, F, S, 128] is not to be sliced out, which
copies it: pass `w.reshape(-1, *w.shape[2:])`, which is free, and `index + layer * F`.

Compiled ahead of time and run in interpret mode, never yet timed on a TPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

TILE, LANES = 8, 128
GROUP = 8  # rows that are started and awaited together
RING = 16  # groups in flight: HBM answers late, and 2 KB a row are soon read

Interpret = bool | pltpu.InterpretParams


def tile_rows(w_FxD: jax.Array) -> jax.Array:
    """W [F, D] as [F, S, 128], where a TPU holds each row in one piece; columns of zeros fill S 128 up to 1024's next.

    Of rows that are no whole tiles XLA would choose a layout without padding, in which they are not in one piece.

    Raises:
      ValueError: W is not a matrix.

    >>> tile_rows(jnp.ones((3, 768))).shape
    (3, 8, 128)
    """
    if w_FxD.ndim != 2:
        raise ValueError(f"w must be [F, D], got shape {w_FxD.shape}")
    return jnp.pad(w_FxD, ((0, 0), (0, -w_FxD.shape[1] % (TILE * LANES)))).reshape(len(w_FxD), -1, LANES)


@functools.partial(jax.jit, static_argnames="interpret")
def weighted_rows_tpu(
    h_TxK: jax.Array,
    index: jax.Array,
    w: jax.Array,
    count: jax.Array | int | None = None,
    *,
    interpret: Interpret = False,
) -> jax.Array:
    """y_t = sum_{k < count} h_tk W[i_tk, :], float32 [T, S 128], summed in float32.

    For each list of indices K rows of W are read, or `count` rounded up to `GROUP`. Columns behind D,
    W's width, are zero. Equal to the dense product for finite W. There is no gradient.

    Args:
      h_TxK: what the rows of W are multiplied by.
      index: the i_tk, one list [K] for all tokens, or [T, K]. A repeated index counts as often as it
        stands there; one outside 0..F-1 is clipped.
      w: W as of `tile_rows`, [F, S, 128] in float32 or bfloat16.
      count: how many of the K places are used, at most K: one number, or one for each list. What
        stands behind them has no effect. None: all.
      interpret: run without a TPU.

    Raises:
      ValueError: other shapes or dtypes.
    """
    index_LxK, count_L = _lists(len(h_TxK), index, count)
    _check(w)
    if h_TxK.ndim != 2 or h_TxK.shape[1] != index.shape[-1]:
        raise ValueError(f"h must be [T, K] with K {index.shape[-1]}, got shape {h_TxK.shape}")
    y = _call(
        _weighted_kernel,
        (count_L, index_LxK.reshape(-1), h_TxK.astype(jnp.float32).reshape(-1)),
        [],
        w,
        (len(index_LxK), len(h_TxK) // len(index_LxK), *w.shape[1:]),
        interpret=interpret,
        name="weighted_rows_tpu",
    )
    return y.reshape(len(h_TxK), -1)


@functools.partial(jax.jit, static_argnames="interpret")
def rows_dot_tpu(
    x_TxD: jax.Array,
    w: jax.Array,
    index: jax.Array,
    count: jax.Array | int | None = None,
    *,
    interpret: Interpret = False,
) -> jax.Array:
    """z_tk = x_t . W[i_tk, :], float32 [T, K], summed in float32; -inf from place `count` on: no Top-k takes it.

    Arguments and errors as in `weighted_rows_tpu`.
    """
    index_LxK, count_L = _lists(len(x_TxD), index, count)
    _check(w)
    width = w.shape[1] * LANES
    if x_TxD.ndim != 2 or not width - TILE * LANES < x_TxD.shape[1] <= width:
        raise ValueError(f"x must be [T, D] with the D that tile_rows makes {width}, got shape {x_TxD.shape}")
    (lists, k), batch = index_LxK.shape, len(x_TxD) // len(index_LxK)
    blocks = pl.cdiv(k, LANES)
    z = _call(
        _dot_kernel,
        (count_L, index_LxK.reshape(-1)),
        [tile_rows(x_TxD.astype(jnp.float32)).reshape(lists, batch, *w.shape[1:])],
        w,
        (lists, batch, blocks, LANES),
        scratch=[pltpu.VMEM((batch, blocks * LANES // GROUP, GROUP, LANES), jnp.float32)],
        interpret=interpret,
        name="rows_dot_tpu",
    )
    z_LxBxK = z.reshape(lists, batch, -1)[..., :k]
    used_LxK = jnp.arange(k) < count_L[:, None]
    return jnp.where(used_LxK[:, None], z_LxBxK, -jnp.inf).reshape(-1, k)


def _lists(tokens: int, index: jax.Array, count: jax.Array | int | None) -> tuple[jax.Array, jax.Array]:
    """The indices as lists [L, K] that T/L tokens share, and how many of each are used [L]."""
    if index.ndim not in (1, 2) or index.shape[:-1] not in ((), (tokens,)) or not index.size:
        raise ValueError(f"index must be [K] or [T, K] with T {tokens} and K at least 1, got shape {index.shape}")
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(f"index must be of integers, got {index.dtype}")
    index_LxK = index.reshape(-1, index.shape[-1]).astype(jnp.int32)
    lists, k = index_LxK.shape
    return index_LxK, jnp.broadcast_to(jnp.minimum(k if count is None else jnp.int32(count), k), (lists,))


def _check(w: jax.Array) -> None:
    if w.ndim != 3 or w.shape[1] % TILE or w.shape[2] != LANES or w.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"w must be float32 or bfloat16 in the shape of tile_rows, got {w.dtype} {w.shape}")


def _call(
    kernel: Callable[..., None],
    scalars: Sequence[jax.Array],
    inputs: Sequence[jax.Array],
    w: jax.Array,
    out: tuple[int, ...],
    *,
    scratch: Sequence[Any] = (),
    interpret: Interpret,
    name: str,
) -> jax.Array:
    """Runs `kernel` once for each list: `scalars` are in SMEM, blocks of `inputs` and `out` in VMEM, W in HBM."""
    (lists, batch), tiles = out[:2], w.shape[1:]
    block = lambda shape: pl.BlockSpec((1, *shape[1:]), lambda i, *_: (i, *(0,) * (len(shape) - 1)))
    read = scalars[1].size * tiles[0] * tiles[1]  # elements of W
    moved = sum(a.nbytes for a in (*scalars, *inputs)) + 4 * math.prod(out)
    run = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(lists,),
            in_specs=[*(block(a.shape) for a in inputs), pl.BlockSpec(memory_space=pltpu.HBM)],
            out_specs=block(out),
            scratch_shapes=[
                pltpu.VMEM((RING, GROUP, *tiles), w.dtype),
                pltpu.SemaphoreType.DMA((RING,)),
                *scratch,
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(out, jnp.float32),
        # What the compiler cannot see: how much of W is read, at most.
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * read, transcendentals=0, bytes_accessed=read * w.dtype.itemsize + moved
        ),
        interpret=interpret,
        name=name,
    )

    # Its rule for vmap is one call after the other; the constraint has none of its own.
    @jax.custom_batching.sequential_vmap
    def constrained(*arrays):
        *others, w = arrays
        # The block's memory space alone does not keep XLA from moving W into VMEM.
        return run(*others, w if interpret else pltpu.with_memory_space_constraint(w, pltpu.HBM))

    return constrained(*scalars, *inputs, w)


def _weighted_kernel(count_ref, index_ref, h_ref, w_ref, y_ref, buffer, semaphores):
    n, batch = pl.program_id(0), y_ref.shape[1]
    count, k = count_ref[n], index_ref.shape[0] // count_ref.shape[0]

    def add(i, slot, ys):
        for r in range(GROUP):
            j = i * GROUP + r
            place, row = jnp.minimum(j, count - 1), buffer[slot, r].astype(jnp.float32)
            factors = (jnp.where(j < count, h_ref[(n * batch + b) * k + place], 0.0) for b in range(batch))
            ys = tuple(y + factor * row for y, factor in zip(ys, factors, strict=True))
        return ys

    zeros = (jnp.zeros(y_ref.shape[2:], jnp.float32),) * batch
    ys = _each_group(count, index_ref, n * k, w_ref, buffer, semaphores, add, zeros)
    for b, y in enumerate(ys):
        y_ref[0, b] = y


def _dot_kernel(count_ref, index_ref, x_ref, w_ref, z_ref, buffer, semaphores, lanes):
    n, (_, batch, blocks, _) = pl.program_id(0), z_ref.shape
    k = index_ref.shape[0] // count_ref.shape[0]

    def dot(i, slot, _):
        for r in range(GROUP):
            row = buffer[slot, r].astype(jnp.float32)
            for b in range(batch):
                lanes[b, i, pl.ds(r, 1)] = jnp.sum(row * x_ref[0, b], axis=0, keepdims=True)

    _each_group(count_ref[n], index_ref, n * k, w_ref, buffer, semaphores, dot, None)
    rows = LANES // GROUP
    for b in range(batch):
        for c in range(blocks):  # transposed, or each sum would end in a tile of its own
            square = lanes[b, pl.ds(c * rows, rows)].reshape(LANES, LANES)
            z_ref[0, b, pl.ds(c, 1)] = jnp.sum(square.T, axis=0, keepdims=True)


def _each_group(count, index_ref, first, w_ref, buffer, semaphores, body: Callable[..., Any], carry):
    """Folds `body(i, slot, carry)` over groups of rows of W: those of group i stand in `buffer[slot]` by then.

    The last group repeats its last row until it is full. A group's slot is filled again, by the
    group RING further on, as soon as `body` has read it.
    """
    groups = pl.cdiv(count, GROUP)

    def start(i):
        slot = lax.rem(i, RING)
        for r in range(GROUP):
            place = jnp.minimum(i * GROUP + r, count - 1)
            unit = jnp.clip(index_ref[first + place], 0, w_ref.shape[0] - 1)
            pltpu.make_async_copy(w_ref.at[unit], buffer.at[slot, r], semaphores.at[slot]).start()

    def step(i, carry):
        slot = lax.rem(i, RING)
        # A wait counts bytes: one of the slot's size is for all its rows.
        pltpu.make_async_copy(buffer.at[slot], buffer.at[slot], semaphores.at[slot]).wait()
        carry = body(i, slot, carry)
        pl.when(i + RING < groups)(lambda: start(i + RING))
        return carry

    lax.fori_loop(0, jnp.minimum(groups, RING), lambda i, _: start(i), None)
    return lax.fori_loop(0, groups, step, carry)
