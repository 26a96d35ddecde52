from sparsity.bench import decode
from sparsity.bench.decode import GATHER, KS, LOW_RANK, SHAPES, K, top_k_ways
from sparsity.layers.inference import INFERENCE, Dense


def test_what_is_promised_is_of_arms_and_shapes_that_there_are():
    widths = {d_ff for _, d_ff in SHAPES.values()}
    assert GATHER.keys() == LOW_RANK.keys() == {16_384, 65_536} <= widths
    for d_ff in widths:
        ways = top_k_ways(d_ff, smoke=False)
        assert {f"gather_out, k {K}", f"low_rank, k {K}"} <= ways.keys()
        assert {type(way.mode) for way in ways.values()} | {Dense} == set(INFERENCE.values())
        for way in ways.values():
            way.mode.check(way.of(d_ff))
    assert K in KS


def test_of_t5_what_is_timed_is_the_decoder():
    base, classes = decode.t5_of("base", smoke=False)
    assert (base.layers, base.decoder_layers, base.dtype, classes) == (12, 12, "float32", 32_128)
    large, _ = decode.t5_of("3b", smoke=False)
    assert (large.layers, large.decoder_layers, large.mlp.d_ff) == (1, 24, 16_384)
