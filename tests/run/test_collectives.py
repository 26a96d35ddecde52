"""Exchanges in programs whose answers are known: one written by hand, in the ways a TPU's is, and one compiled here."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from sparsity.run.collectives import IF_TAKEN, PER_ITERATION, Collective, collectives, totals

BY_HAND = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(pred[])->f32[]}, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.3 (p: bf16[16,128]) -> bf16[4,128] {
  %p = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %whole = bf16[16,128]{1,0:T(8,128)(2,1)} all-reduce(%p), channel_id=9, replica_groups=[2,4]<=[8], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = bf16[4,128]{1,0:T(8,128)(2,1)} dynamic-slice(%whole, %zero, %zero), dynamic_slice_sizes={4,128}
}

%body (arg: (s32[], f32[256])) -> (s32[], f32[256]) {
  %arg = (s32[]{:T(128)}, /*index=1*/f32[256]{0:T(256)}) parameter(0)
  %x = f32[256]{0:T(256)S(1)} get-tuple-element(%arg), index=1
  %start = (f32[256]{0}, f32[1024]{0}) all-gather-start(%x), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}
  %done = f32[1024]{0:T(1024)} all-gather-done(%start)
  %inner = (s32[], f32[256]) while(%arg), condition=%goes_on, body=%inner_body
  ROOT %out = (s32[], f32[256]) tuple(%inner)
}

%inner_body (arg.1: (s32[], f32[256])) -> (s32[], f32[256]) {
  %arg.1 = (s32[], f32[256]) parameter(0)
  %n = s32[] get-tuple-element(%arg.1), index=0
  %all = s32[] all-reduce(s32[] %n), channel_id=3, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %out.1 = (s32[], f32[256]) tuple(%all)
}

%goes_on (arg.2: (s32[], f32[256])) -> pred[] {
  %arg.2 = (s32[], f32[256]) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%taken (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  ROOT %moved = f32[8]{0} collective-permute(%q), channel_id=5, source_target_pairs={{0,1},{1,0}}
}

%not_taken (r: f32[8]) -> f32[8] {
  ROOT %r = f32[8]{0} parameter(0)
}

%wrapped (s: f32[64]) -> f32[8] {
  %s = f32[64]{0} parameter(0)
  ROOT %scattered = f32[8]{0} reduce-scatter(%s), channel_id=6, replica_groups={}, dimensions={0}, to_apply=%add
}

ENTRY %main (x.1: bf16[16,128], y: f32[8], z: f32[64], b.1: pred[]) -> f32[] {
  %x.1 = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %y = f32[8]{0} parameter(1)
  %z = f32[64]{0} parameter(2)
  %b.1 = pred[] parameter(3)
  %fused = bf16[4,128]{1,0:T(8,128)(2,1)} fusion(%x.1), kind=kCustom, calls=%all-reduce-scatter.3
  %start.1 = ((f32[64]{0}), f32[8]{0}, u32[]) async-start(%z), calls=%wrapped
  %done.1 = f32[8]{0} async-done(%start.1), calls=%wrapped
  %alone = f32[8]{0} all-reduce(%y), channel_id=7, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %both = (f32[8]{0}, f32[8]{0}) all-to-all(%y, /*index=1*/%alone), channel_id=8, replica_groups=[4,2]<=[2,4]T(1,0)
  %loop = (s32[], f32[256]) while(%t), condition=%goes_on, body=%body, backend_config={"known_trip_count":{"n":"24"}}
  %branch = f32[8]{0} conditional(%b.1, %y, %y), true_computation=%taken, false_computation=%not_taken
  ROOT %r.1 = f32[] constant(0)
}
"""


def test_each_kind_counts_once_and_as_often_as_its_loop_runs():
    assert collectives(BY_HAND) == (
        Collective("reduce-scatter", 4, 16 * 128 * 2, 1),
        Collective("reduce-scatter", 8, 64 * 4, 1),
        Collective("all-to-all", 2, 2 * 8 * 4, 1),
        Collective("all-gather", 4, 4 * 256 * 4, 24),
        Collective("all-reduce", 8, 4, 24, PER_ITERATION),
        Collective("collective-permute", 2, 8 * 4, 1, IF_TAKEN),
    )


COUNTING = """HloModule jit_step, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%arg), index=1
  %all = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%add
  ROOT %out = (s32[], f32[8]) tuple(%n, %all)
}

%goes_on (arg.1: (s32[], f32[8])) -> pred[] {
  %end = s32[]{:T(128)} constant(END)
  %arg.1 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %end), direction=DIRECTION
}

ENTRY %main (y: f32[8], i.1: s32[]) -> f32[] {
  %y = f32[8]{0} parameter(0)
  %i.1 = s32[] parameter(1)
  %begin = s32[]{:T(128)} constant(2)
  %moved = s32[]{:T(128)} copy(%begin), backend_config={"flag_configs":[]}
  %t = (s32[]{:T(128)}, f32[8]{0}) tuple(FIRST, /*index=1*/%y)
  %loop = (s32[]{:T(128)}, f32[8]{0}) while(%t), condition=%goes_on, body=%body
  ROOT %r = f32[] constant(0)
}
"""


@pytest.mark.parametrize(
    ("first", "end", "direction", "expected"),
    [
        ("%moved", "26", "LT", (24, "")),  # as libtpu writes it
        ("%begin", "26", "LT", (24, "")),
        ("%begin", "1", "LT", (0, "")),
        ("%i.1", "26", "LT", (1, PER_ITERATION)),  # nobody knows where it begins
        ("%begin", "26", "NE", (1, PER_ITERATION)),
    ],
)
def test_a_loop_that_counts_to_a_constant_runs_as_often(first, end, direction, expected):
    text = COUNTING.replace("FIRST", first).replace("END", end).replace("DIRECTION", direction)
    times, when = expected
    assert collectives(text) == (Collective("all-reduce", 4, 32, times, when),)


def test_a_loop_that_may_end_earlier_runs_nobody_knows_how_often():
    text = COUNTING.replace("FIRST", "%begin").replace("END", "26").replace("DIRECTION", "LT")
    early = '  %ended = pred[] custom-call(%arg.1), custom_call_target="any"\n  ROOT %both = pred[] and(%lt, %ended)'
    text = re.sub(r"  ROOT (%lt = .*)", rf"  \1\n{early}", text)
    assert collectives(text) == (Collective("all-reduce", 4, 32, 1, PER_ITERATION),)


def test_rings_send_what_they_must():
    """Of n parts each device sends all but one to scatter, as many to gather, and both to reduce."""
    sent = lambda kind: Collective(kind, 4, 1000.0, 1).sent
    assert [sent(k) for k in ("all-gather", "reduce-scatter", "all-to-all")] == [750] * 3
    assert (sent("all-reduce"), sent("collective-permute")) == (1500, 1000)


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("HloModule nothing\n")


@pytest.fixture(scope="module")
def compiled():
    """All kinds on 2 x 4 devices; each holds x [8, 4] of float32, 128 bytes."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def exchange(x, flag):
        ring = [(i, (i + 1) % 4) for i in range(4)]
        return {
            "reduced": lax.psum(x, "b"),
            "gathered": lax.all_gather(x, "a"),
            "scattered": lax.psum_scatter(x * 2, "b", tiled=True),
            "swapped": lax.all_to_all(x, "b", 0, 0, tiled=True),
            "moved": lax.ppermute(x, "b", ring),
            "five times": lax.scan(lambda c, _: (jnp.sin(lax.psum(c, "a")), None), x, length=5)[0],
            "until": lax.while_loop(lambda c: c[0, 0] < 1e3, lambda c: lax.psum(jnp.exp(c), "b"), x),
            "branch": lax.cond(flag[0], lambda: lax.psum(jnp.cos(x), "a"), lambda: x),
        }

    whole = P(("a", "b"))
    mapped = jax.shard_map(exchange, mesh=mesh, in_specs=(whole, P()), out_specs=whole, check_vma=False)
    return jax.jit(mapped).lower(jnp.ones((64, 4)), jnp.ones(1, bool)).compile().as_text()


def test_a_compiled_program_s_exchanges_are_those_it_was_written_with(compiled):
    found = {(t.kind, t.when): t for t in totals(collectives(compiled))}
    size = 8 * 4 * 4
    of = lambda kind, when="": (found[kind, when].times, found[kind, when].bytes)
    assert of("all-gather") == (1, 2 * size)
    assert of("all-to-all") == (1, size)
    assert of("collective-permute") == (1, size)
    assert of("reduce-scatter") == (1, size)
    assert of("all-reduce") == (1 + 5, 6 * size)
    assert found["all-reduce", ""].sent == size * (2 * 3 / 4 + 5 * 2 * 1 / 2)
    assert of("all-reduce", PER_ITERATION) == (1, size)
    assert of("all-reduce", IF_TAKEN) == (1, size)
    assert len(found) == 7


def test_one_device_exchanges_nothing():
    program = jax.jit(functools.partial(jnp.sum, axis=0)).lower(jnp.ones((4, 4))).compile()
    assert collectives(program.as_text()) == ()
