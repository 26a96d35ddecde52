"""Li et al. 2022, Fig. 7: a greedy token of a Top-k T5 takes less time, W_o being read in k rows alone.

Claim: L7 (larger models gain more; about 10% a token at 11B for k up to 128, less at 256), and beyond the paper that a
predictor of low rank, trained beside Top-k, finds its units, so that W_i need not be read whole either.
Command: python -m launch.reproduce --study=li2022/fig7 --workdir=runs/li2022
(on a TPU VM with --scale=paper; latencies are those of the machine that it runs on.)
One run: python -m launch.train --config=configs/li2022/fig7.py:16 --workdir=runs/one
(`paper/128` at the paper's scale.)
Hardware: 2 CPU cores, 24 GB: 3 runs of 7 minutes beside tests, 4 measurements of 7 (base) to 22 minutes (11B) on an
otherwise idle, shared machine. At the paper's scale a TPU chip for the latencies and a slice for the T5.
Expected: paper: about 10% less time a token for T5-11B with k up to 128, less with 256; less for smaller T5s, on a
TPUv4 with `jax.lax.approx_max_k` at a recall of .95.
assumed: the paper times decoders of T5X; ours reads W_o row by row. The dense baseline has the layout of mode `dense`,
which suite `decode` compares with the other three on this machine.
assumed: whether `approx_max_k` is a PartialReduce is told from its arguments, as XLA's source has it; of trained
networks its recall is measured where it is one, which it is not for 512 units, nor for T5-Base's 3,072.
assumed: inputs are 512 tokens; the encoder, whose time is not counted, has one layer. Weights are random,
which times do not depend on.
assumed: (embedded) `approx_max_k` is an exact search on CPUs; float32; of decoders that memory does not hold as many
layers as it does, the vocabulary's share being larger then; recall and losses are those of a T5 of 4 + 4 layers of 512
units, k 16, with a predictor of rank 16 and 64 candidates.
assumed: (paper) bfloat16; recall and losses of T5-Base on C4, k 128, rank 64, 256 candidates. With one seed no verdict.
"""

from ml_collections import ConfigDict

from sparsity import recipes

SEEDS = {"embedded": 3, "paper": 1}
K = {"embedded": 16, "paper": 128}
SEARCH = {"embedded": (16, 64), "paper": (64, 256)}  # rank and candidates
LATENCY = {
    "embedded": {"ks": (32, 64, 128, 256, 512), "recalls": (0.95,), "exact_ks": (128,)},
    "paper": {"ks": (32, 64, 128, 256, 512, 1024), "recalls": (0.95, 0.85, 0.99), "exact_ks": (128,)},
}
TOKENS = {
    "embedded": {"base": (8, 40), "large": (8, 40), "3b": (2, 10), "11b": (2, 10)},
    "paper": dict.fromkeys(("base", "large", "3b", "11b"), (32, 160)),
}


def get_config(arg: str = "16") -> ConfigDict:
    """The first run of "[paper/]K", a T5 with Top-k and a predictor."""
    scale, k = ("paper", arg.removeprefix("paper/")) if arg.startswith("paper/") else ("embedded", arg)
    if not k.isdigit():
        raise ValueError(f'unknown run "{arg}"; valid: K, paper/K')
    return _trained(scale, int(k), 0)


def _trained(scale: str, k: int, seed: int) -> ConfigDict:
    config = recipes.t5_c4() if scale == "paper" else recipes.t5_text_of("base")
    return recipes.with_predictor(recipes.t5_arm(config, k=k, seed=seed), *SEARCH[scale])


def _latency(scale: str, size: str) -> ConfigDict:
    settings = {"kind": "latency", "name": f"latency_{size}", "size": size, "tokens": TOKENS[scale][size]}
    return ConfigDict(settings | LATENCY[scale])


def sweep(scale: str) -> list[ConfigDict]:
    """The measurements, by size, and the networks, by seed."""
    trained = [_trained(scale, K[scale], seed) for seed in range(SEEDS[scale])]
    return [*(_latency(scale, size) for size in TOKENS[scale]), *trained]
