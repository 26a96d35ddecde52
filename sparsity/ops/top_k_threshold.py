"""The k-th largest number of each row, by counting: no sort, no heap.

Floats read as integers in the right way keep their order (`ordered_bits`), so "how many entries
reach t?" is one comparison and one sum. `probe` asks it of a bracket [lo, hi] that always holds
the k-th number: first at the quantile of a Gaussian with the row's mean and standard deviation
(as Spark Transformer, You et al. 2025, and Gemma 3n do), then by regula falsi with Illinois
weights on the logarithm of the counts. A row is settled as soon as some t is reached by exactly
k entries, which needs no tie-breaking, or when the bracket is one number. Waiting for the worst
row would double the passes over the array, so once few rows are left they are gathered
(`exact_cut`) and finished alone.

Everything works on a shard of the columns too: give `axis`, the name of the mesh axis inside
`shard_map`. Then counts are summed over it, [rows] numbers at a time, and no row ever moves.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

LANES = 128  # width of the partial counts: a multiple of every vector unit, one TPU register
GUESSES = 3  # Gaussian guesses at most; a row far from Gaussian is better interpolated
WHOLE_PASSES = 14  # probes of the whole array before the rest is gathered, however much it is
BISECT_AFTER = 24  # probes after which interpolation has failed and the bracket is halved
STEPS = 5  # counts of the statistical method: 3 do for one mode, heavy tails included, 5 for two
OVERSHOOT = 1.5  # of a corrected guess, see `guess`
GATHERED = 8  # 1 / GATHERED of the rows are gathered at a time


class Cut(NamedTuple):
    """Which entries of a row are kept: those above `value`, and those at it up to column `last`.

    Attributes:
      value: a number as ordered bits [R, 1].
      last: the last column (of this shard) kept among entries equal to `value` [R, 1], int32.
    """

    value: jax.Array
    last: jax.Array


class Bracket(NamedTuple):
    """What is known of each row's k-th largest number; all [R, 1].

    Attributes:
      lo, hi: it lies in [lo, hi], as ordered bits.
      n_lo: entries >= lo, at least k.
      n_hi: entries > hi, fewer than k.
      w_lo, w_hi: Illinois weights: an end that stays put twice loses half of its weight.
    """

    lo: jax.Array
    hi: jax.Array
    n_lo: jax.Array
    n_hi: jax.Array
    w_lo: jax.Array
    w_hi: jax.Array

    def settled(self, k: jax.Array) -> jax.Array:
        """Rows whose kept set, up to ties, is known."""
        return (self.n_lo == k) | (self.lo == self.hi)


def ordered_bits(x: jax.Array) -> jax.Array:
    """The signed integers whose order is `lax.top_k`'s order of the floats `x`.

    That order is total on bits: -NaN < -inf < ... < -0 < +0 < ... < inf < +NaN; +0 is 0.
    """
    integer = jnp.dtype(f"int{x.dtype.itemsize * 8}")
    bits = jax.lax.bitcast_convert_type(x, integer)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(integer).max, bits)


def count(where: jax.Array, axis: str | None = None) -> jax.Array:
    """Number of True in each row of `where` [R, F], as int32 [R, 1], summed over mesh axis `axis`.

    Partial counts in bytes, `LANES` or more at a time: XLA on CPU vectorises this, several
    times faster than a sum of int32. A byte holds the up to 255 rows of the folded array.
    """
    rows, columns = where.shape
    lanes = LANES
    while columns // lanes > 255:
        lanes *= 2
    whole = columns // lanes * lanes
    total = jnp.sum(where[:, whole:], axis=1, keepdims=True, dtype=jnp.int32)
    if whole:
        folded = jnp.sum(where[:, :whole].reshape(rows, -1, lanes), axis=1, dtype=jnp.uint8)
        total += jnp.sum(folded, axis=1, keepdims=True, dtype=jnp.int32)
    return total if axis is None else jax.lax.psum(total, axis)


class Rows(NamedTuple):
    """The numbers to rank, and what the probes need to know of each row.

    Attributes:
      x: floats [R, F], or this shard's columns of them.
      mean, std: of each row, over all shards [R, 1]; 0 and 1 where they are not finite.
      width: F over all shards.
    """

    x: jax.Array
    mean: jax.Array
    std: jax.Array
    width: jax.Array | int


def describe(x: jax.Array, axis: str | None = None) -> Rows:
    """`Rows` of the floats `x` [R, F]; `axis` as in `count`."""
    columns = x.shape[1]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    sums = jnp.stack([jnp.sum(wide, axis=1), jnp.sum(wide * wide, axis=1)])
    shards = 1
    if axis is not None:
        sums, shards = jax.lax.psum(sums, axis), jax.lax.axis_size(axis)
    mean, square = sums[..., None] / (columns * shards)
    std = jnp.sqrt(jnp.maximum(square - mean * mean, 0))
    usable = jnp.isfinite(mean) & jnp.isfinite(std)  # not so with NaN or infinities, or if a square overflows
    return Rows(x, jnp.where(usable, mean, 0), jnp.where(usable, std, 1), columns * shards)


def _floats(bits: jax.Array, dtype) -> jax.Array:
    """The inverse of `ordered_bits`."""
    return jax.lax.bitcast_convert_type(jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits), dtype)


def start(rows: Rows, relu: bool) -> Bracket:
    """The bracket that holds everything; with `relu`, the positive numbers and zero."""
    integer = jnp.iinfo(f"int{rows.x.dtype.itemsize * 8}")
    # Derived from the rows, so that it is as varying over the mesh as they are.
    like = jnp.zeros_like(rows.mean, dtype=integer.dtype)
    one, n = jnp.ones_like(rows.mean, dtype=jnp.float32), jnp.zeros_like(rows.mean, dtype=jnp.int32)
    return Bracket(like + (0 if relu else integer.min), like + integer.max, n + rows.width, n, one, one)


def probe(rows: Rows, k: jax.Array, b: Bracket, t: jax.Array, axis: str | None) -> Bracket:
    """Counts the entries >= t, t moved into (lo, hi], and moves one end of each unsettled row there."""
    t = jnp.clip(t, b.lo + 1, b.hi)
    n = count(ordered_bits(rows.x) >= t, axis)
    open_ = ~b.settled(k)
    up, down = open_ & (n >= k), open_ & (n < k)
    # An end that moves weighs 1; if it moved last time too, the other one loses half of its weight.
    return Bracket(
        lo=jnp.where(up, t, b.lo),
        hi=jnp.where(down, t - 1, b.hi),
        n_lo=jnp.where(up, n, b.n_lo),
        n_hi=jnp.where(down, n, b.n_hi),
        w_lo=jnp.where(up, 1, jnp.where(down & (b.w_hi >= 1), b.w_lo / 2, b.w_lo)),
        w_hi=jnp.where(down, 1, jnp.where(up & (b.w_lo >= 1), b.w_hi / 2, b.w_hi)),
    )


def guess(rows: Rows, k: jax.Array, b: Bracket) -> jax.Array:
    """The Gaussian quantile of k, corrected by the count at the end of the bracket that was probed.

    If n entries reach t, and a Gaussian with the row's mean and std has a share p beyond t, the
    quantile of p (k / n)^1.5 is asked for: a tail scaled by n would need the power 1, and
    `OVERSHOOT` makes it likely that the k-th number is enclosed.
    """
    width, dtype = jnp.asarray(rows.width, rows.mean.dtype), rows.x.dtype
    n = jnp.where(b.n_hi > 0, b.n_hi, b.n_lo)
    t = _floats(jnp.where(b.n_hi > 0, b.hi, b.lo), dtype).astype(width.dtype)
    probed = (b.n_hi > 0) | (b.n_lo < rows.width)
    share = jnp.where(probed, ndtr((rows.mean - t) / rows.std) * (k / n) ** OVERSHOOT, k / width)
    return ordered_bits((rows.mean - rows.std * ndtri(jnp.clip(share, 1e-7, 1 - 1e-7))).astype(dtype))


def interpolate(rows: Rows, k: jax.Array, b: Bracket) -> jax.Array:
    """Where log(count) would pass log(k) on a straight line through the bracket's ends.

    An end that nobody has probed is replaced by mean +- std sqrt(F), beyond which no number of
    the row can lie (Samuelson's inequality); wrong by rounding, it costs probes, not exactness.
    """
    reach = rows.std * jnp.sqrt(jnp.asarray(rows.width, rows.std.dtype))
    far = [ordered_bits((rows.mean + sign * reach).astype(rows.x.dtype)) for sign in (-1, 1)]
    lo = jnp.clip(b.lo, jnp.minimum(far[0], b.hi), b.hi)
    hi = jnp.clip(b.hi, b.lo, jnp.maximum(far[1], b.lo))
    above = jnp.log(b.n_lo.astype(jnp.float32) / k) * b.w_lo
    below = jnp.log(jnp.maximum(b.n_hi.astype(jnp.float32), 0.5) / k) * b.w_hi
    share = above / (above - below)
    share = jnp.where(jnp.isfinite(share), jnp.clip(share, 0.02, 0.98), 0.5)
    return _between(lo, hi, share)


def propose(rows: Rows, k: jax.Array, b: Bracket, i: jax.Array) -> jax.Array:
    """Where to look after probe `i`: by interpolation, or by a new guess while one end was never probed."""
    enclosed = (b.n_hi > 0) & (b.n_lo < rows.width)
    t = interpolate(rows, k, b)
    return jax.lax.cond(i < GUESSES, lambda: jnp.where(enclosed, t, guess(rows, k, b)), lambda: t)


def _between(lo: jax.Array, hi: jax.Array, share: jax.Array | float) -> jax.Array:
    """Lo + share (hi - lo) for signed integers whose difference may need the sign bit, 0 < share < 1."""
    unsigned = jnp.dtype(f"uint{lo.dtype.itemsize * 8}")
    span = (hi.astype(unsigned) - lo.astype(unsigned)).astype(jnp.float32)
    return (lo.astype(unsigned) + (span * share).astype(unsigned)).astype(lo.dtype)


def exact_cut(x: jax.Array, k: jax.Array | int, *, relu: bool = False, axis: str | None = None) -> Cut:
    """The cut that keeps the set of `lax.top_k(x, k)[1]` in each row of `x` [R, F].

    With `relu` it keeps the top k of max(x, 0), in value: the same, but in rows with fewer than
    k positive entries all of those and none of the zeros. A traced k below 1 keeps nothing, one
    above F everything.
    """
    rows, k = describe(x, axis), jnp.asarray(k, jnp.int32)
    size = max(1, -(-x.shape[0] // GATHERED))
    b = start(rows, relu)
    if relu:  # a row with at most k positive entries keeps them all: nothing to search
        b = b._replace(hi=jnp.where(count(ordered_bits(x) > 0, axis) <= k, 0, b.hi))

    def many(state):
        i, b, _ = state
        return (i < WHOLE_PASSES) & (jnp.sum(~b.settled(k)) > size)

    def narrow(state):
        i, b, t = state
        b = probe(rows, k, b, t, axis)
        return i + 1, b, propose(rows, k, b, i)

    # The threshold travels with the loop: computed where it is used, XLA would compute it many times.
    _, b, _ = jax.lax.while_loop(many, narrow, (0, b, guess(rows, k, b)))
    whole = jnp.full_like(b.lo, x.shape[1], dtype=jnp.int32)
    # Zeros need no tie-breaking after ReLU: kept or not, they are zeros.
    done = (b.n_lo == k) | ((b.lo == b.hi) & (b.lo == 0)) if relu else b.n_lo == k
    last, done = jnp.where((b.lo == 0) & (b.n_lo != k) & relu, -1, whole), done | (k < 1)

    def body(state):
        b, last, done = state
        index = jnp.nonzero(~done[:, 0], size=size, fill_value=x.shape[0])[0]
        take = lambda a: a.at[index].get(mode="clip")
        put = lambda a, new: a.at[index].set(new, mode="drop")
        few = Rows(take(rows.x), take(rows.mean), take(rows.std), rows.width)
        few_b, few_last = _finish(few, k, jax.tree.map(take, b), axis)
        return jax.tree.map(put, b, few_b), put(last, few_last), put(done, True)

    b, last, _ = jax.lax.while_loop(lambda s: ~jnp.all(s[2]), body, (b, last, done))
    return Cut(jnp.where(k < 1, jnp.iinfo(b.lo.dtype).max, b.lo), jnp.where(k < 1, -1, last))


def _finish(rows: Rows, k: jax.Array, b: Bracket, axis: str | None) -> tuple[Bracket, jax.Array]:
    """Settles all of a few rows, ties included: their brackets and the last tied column kept."""

    def step(state):
        i, b = state
        t = jnp.where(i < BISECT_AFTER, interpolate(rows, k, b), _between(b.lo, b.hi, 0.5))
        return i + 1, probe(rows, k, b, t, axis)

    _, b = jax.lax.while_loop(lambda s: ~jnp.all(s[1].settled(k)), step, (2, b))
    tied = ordered_bits(rows.x) == b.lo
    wanted = jnp.where(b.n_lo == k, jnp.iinfo(jnp.int32).max, k - b.n_hi)
    return b, _nth(tied, wanted, axis)


def _nth(tied: jax.Array, wanted: jax.Array, axis: str | None) -> jax.Array:
    """The column, in this shard, of the `wanted`-th True of each row [R, 1]; F if there are fewer.

    Columns are ordered by shard: one count per shard and row is exchanged, nothing else.
    """
    columns, here = tied.shape[1], count(tied)
    if axis is not None:
        counts = jax.lax.all_gather(here, axis)
        before = jnp.arange(counts.shape[0])[:, None, None] < jax.lax.axis_index(axis)
        wanted = wanted - jnp.sum(jnp.where(before, counts, 0), axis=0)
    column = jax.lax.broadcasted_iota(jnp.int32, tied.shape, 1)
    lo = jnp.where(wanted < 1, -1, 0)
    hi = jnp.where(wanted < 1, -1, jnp.where(here <= wanted, columns, columns - 1))
    lo = jnp.where(here <= wanted, hi, lo)

    def step(ends):
        lo, hi = ends
        middle = (lo + hi) // 2
        enough = count(tied & (column <= middle)) >= wanted
        return jnp.where(enough & (lo < hi), lo, jnp.minimum(middle + 1, hi)), jnp.where(enough, middle, hi)

    # No row with ties left to break, no pass over the columns.
    return jax.lax.while_loop(lambda e: jnp.any(e[0] < e[1]), step, (lo, hi))[1]


def statistical_cut(
    x: jax.Array, k: jax.Array | int, *, steps: int = STEPS, relu: bool = False, axis: str | None = None
) -> Cut:
    """A cut that keeps about k entries of each row of `x` [R, F]: `steps` counts, never more.

    Step 0 is the Gaussian quantile mean + std ppf(1 - k/F) alone (You et al. 2025, Sec. 3; no
    count); each step counts what the last threshold keeps and corrects it.
    """
    rows, k = describe(x, axis), jnp.asarray(k, jnp.int32)
    b = start(rows, relu)

    def correct(i, state):
        b, t = state
        b = probe(rows, k, b, t, axis)
        return b, jnp.clip(propose(rows, k, b, jnp.minimum(i, GUESSES - 1)), b.lo + (b.lo < b.hi), b.hi)

    b, t = jax.lax.fori_loop(0, steps, correct, (b, guess(rows, k, b)))
    t = jnp.where(b.n_lo == k, b.lo, t)
    t = jnp.maximum(t, 1) if relu else t
    return Cut(t, jnp.full_like(t, x.shape[1], dtype=jnp.int32))


def inside(x: jax.Array, cut: Cut) -> jax.Array:
    """True where entries of `x` [R, F] are kept by `cut`."""
    bits = ordered_bits(x)
    column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return (bits > cut.value) | ((bits == cut.value) & (column <= cut.last))
