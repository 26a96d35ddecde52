"""Decoding that skips zeros, against the fastest dense layout: MLPs and whole greedy steps of T5's shapes.

Weights are random: a recall of the low rank says nothing here. The evaluator `inference` measures it, and what it
costs, on trained networks; study li2022/fig7 puts both together.
"""

from __future__ import annotations

from collections.abc import Iterator

from sparsity.bench import torch_t5
from sparsity.bench.latency import INPUTS, GreedySteps, MLPs, Way, slopes, t5_of
from sparsity.bench.protocol import Bar, Case
from sparsity.layers.inference import Dense, DenseMask, GatherOut, LowRank, QuantizedSearch, Threshold
from sparsity.ops.sparsifiers import Relu, ShiftedRelu, TopK

SHAPES = {"base": (768, 3072), "large": (1024, 4096), "3B": (1024, 16_384), "11B": (1024, 65_536)}  # d_model, d_ff
KS = (32, 64, 128, 256, 512)
K, RANK, CANDIDATES = 128, 64, 256
BASE_TOKENS = (16, 80)
TOKENS_3B = (4, 16)
STEP_ROUNDS = 15  # a round of whole steps takes half a minute

# What modes are to reach of the fastest dense layout's time, by d_ff.
GATHER = {16_384: 1 / 1.85, 65_536: 1 / 1.85}
LOW_RANK = {16_384: 1 / 6, 65_536: 1 / 12}
FASTEST = 1.05  # dense, of any other layout's time
STEP_GATHER, STEP_LOW_RANK = 1 / 1.28, 1 / 1.7
DENSE_OF_TORCH, TOP_K_OF_TORCH = 1 / 1.5, 1 / 2


def decode_cases(smoke: bool) -> Iterator[Case]:
    """MLPs of T5's sizes in every mode; steps of a decoder of T5-3B's width; T5-base, against torch's."""
    for name, shape in {"toy": (32, 256)}.items() if smoke else SHAPES.items():
        yield _mlp_case(name, *shape, smoke)
    yield _step_case("3b", (2, 4) if smoke else TOKENS_3B, smoke)
    yield _step_case("base", (2, 4) if smoke else BASE_TOKENS, smoke)


def top_k_ways(d_ff: int, smoke: bool) -> dict[str, Way]:
    """The ways of a Top-k MLP that read the rows of k units."""
    k, rank, candidates = (8, 4, 32) if smoke else (K, RANK, CANDIDATES)
    gathers = {f"gather_out, k {n}": Way(TopK(n), GatherOut()) for n in ((k, 2 * k) if smoke else KS)}
    approx = Way(TopK(k, method="approx"), GatherOut())
    search = lambda bits: Way(TopK(k), QuantizedSearch(candidates=candidates, bits=bits))
    return {
        **gathers,
        f"gather_out, approx_max_k, k {k}": approx,
        f"low_rank, k {k}": Way(TopK(k), LowRank(rank=rank, candidates=candidates)),
        f"quantized_search, 8 bits, k {k}": search(8),
        f"quantized_search, 4 bits, k {k}": search(4),
        f"dense_mask, k {k}": Way(TopK(k), DenseMask()),
        f"threshold, {k} active": Way(ShiftedRelu(sparsity=1 - k / d_ff, q=1.0), Threshold(capacity=min(d_ff, 4 * k))),
    }


def _mlp_case(name: str, d_model: int, d_ff: int, smoke: bool) -> Case:
    mlps = MLPs(d_model, d_ff, smoke)
    arms, moved, facts = {}, {}, {"layers": mlps.layers}
    for way_name, way in {"dense": Way(Relu(), Dense()), **top_k_ways(d_ff, smoke)}.items():
        arms[way_name], moved[way_name], facts[way_name] = mlps.run(way)
    others = {"dense, wi [D, F], wo [F, D]": ("df", "fd"), "dense, wi [D, F], wo [D, F]": ("df", "df")}
    others["dense, wi [F, D], wo [F, D]"] = ("fd", "fd")
    for layout, axes in others.items():
        arms[layout], moved[layout] = mlps.dense(*axes)
    promised = {f"gather_out, k {K}": GATHER.get(d_ff), f"low_rank, k {K}": LOW_RANK.get(d_ff)}
    facts["note"] = "XLA's CPU has no product of int8: quantized_search is slow there, and to be judged elsewhere"
    bars = [Bar(arm, "dense", promised.get(arm)) for arm in arms if arm not in ("dense", *others)]
    return Case(
        name=f"MLP of T5 {name}, d_model {d_model}, d_ff {d_ff}, one token",
        rows="gaussian",
        arms=arms,
        # What all are compared with is to be the fastest of the dense ones.
        bars=(*bars, *(Bar("dense", layout, FASTEST) for layout in others)),
        facts=facts,
        moved=moved,
    )


def _step_case(size: str, tokens: tuple[int, int], smoke: bool) -> Case:
    config, classes = t5_of(size, smoke)
    k, rank, candidates = (8, 4, 32) if smoke else (K, RANK, CANDIDATES)
    ways = {
        "dense": Way(Relu(), Dense()),
        "gather_out": Way(TopK(k), GatherOut()),
        "low_rank": Way(TopK(k), LowRank(rank=rank, candidates=candidates)),
    }
    steps = GreedySteps(config, classes, 8 if smoke else INPUTS, tokens, ways)
    arms, compared = steps.arms(), steps.slopes
    if size == "base":
        bars = [Bar("gather_out", "dense"), Bar("low_rank", "dense")]
        if torch_t5.available():
            arms |= torch_t5.greedy(steps.config, classes, steps.inputs, tokens)
            compared |= slopes(["torch"], tokens)
            bars += [Bar("dense", "torch", DENSE_OF_TORCH), Bar("gather_out", "torch")]
            bars += [Bar("low_rank", "torch", TOP_K_OF_TORCH)]
    else:
        bars = [Bar("gather_out", "dense", STEP_GATHER), Bar("low_rank", "dense", STEP_LOW_RANK)]
    layers = steps.config.decoder_layers
    return Case(
        name=f"{tokens[1] - tokens[0]} greedy tokens of T5 {size}, {layers} decoder layers, k {k}",
        rows="random weights",
        arms=arms,
        bars=tuple(bars),
        facts={
            "tokens": tokens[1] - tokens[0],
            "inputs": steps.inputs.shape[1],
            "rank": rank,
            "candidates": candidates,
        },
        slopes=compared,
        moved=steps.moved(),
        rounds=STEP_ROUNDS,
    )
