"""Bricken et al. 2023, App. J.1, Table 1 and Fig. 32: a GPT-2 of three blocks with noise in front of each MLP.

Claim: B18 (density falls with sigma and stays low when the noise is gone; no dead units; sigma up to 3 costs no
validation loss, 8 does).
Command: python -m launch.reproduce --study=bricken2023/transformer --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/transformer.py:after/3 --workdir=runs/one
(`before/3` adds noise to what the LayerNorm in front of the MLP reads, `after/3` to what comes out of it;
`paper/after/3` at the paper's scale.)
Hardware: 2 CPU cores, 15 runs, 36 minutes beside other work; at the paper's scale 45 runs of 1.7 million steps on a GPU
or TPU, and 10 GB of the host's memory to count dead units.
Expected: paper: active units 17.1, 18.4 and 29.6% by layer without noise, 5.8, 2.2 and 13.7% at sigma 3, 1.3, .1 and
5.5% at 8; validation loss 3.048, 3.011 and 3.134. At the embedded scale no more than the signs of sparsity: its
networks are still learning when they end, so that steps under much noise are steps lost to the loss.
assumed: a token is a byte at both scales, where the paper's is one of 50,257, so that losses compare relative to that
without noise alone; activations are ReLU (17% active without noise is no GELU).
assumed: noise stands after the LayerNorm in front of the MLP, and before it, on the MLP's branch alone, in other runs:
"in front of each MLP" may mean either. It is removed at once, not annealed: the paper says both.
assumed: (embedded) width 64, 4 heads, windows of 64 bytes, batch 4, Adam at 2e-3, 8,000 steps; noise for half of them,
where the paper has it for 2 of 17 parts: without noise the active share falls within 500 steps, under noise of 3 it
takes 2,500 to fall below that. (A first try, noise for 400 of 1,200 steps of batch 16, left every share above it.)
assumed: (paper) width 768, 12 heads, contexts of 1,024, dropout .1, all of them Hugging Face's default; batch 32, Adam
at 1e-4, gradients clipped at norm 1; three seeds. The raw files of WikiText-103 are read from wikitext-103/.
"""

from ml_collections import ConfigDict

from sparsity import recipes

BASES = {"embedded": recipes.gpt2_text, "paper": recipes.gpt2_wikitext}
REMOVED = {"embedded": 4000, "paper": 200_000}  # the step from which on there is no noise
SIGMAS = {"embedded": (0.0, 0.3, 3.0, 8.0), "paper": (0.0, 0.05, 0.1, 0.3, 0.8, 1.5, 3.0, 8.0)}
BEFORE = {"embedded": (3.0,), "paper": (0.05, 0.1, 0.3, 0.8, 1.5, 3.0, 8.0)}  # sigmas of noise before the LayerNorm
PLACES = ("after", "before")
SEEDS = 3


def get_config(arg: str = "after/3") -> ConfigDict:
    """The first run of "[paper/]PLACE/SIGMA": noise after or before the LayerNorm in front of the MLP."""
    scale, rest = ("paper", arg.removeprefix("paper/")) if arg.startswith("paper/") else ("embedded", arg)
    place, _, sigma = rest.partition("/")
    if place not in PLACES or not sigma:
        raise ValueError(f'unknown run "{arg}"; valid: after/SIGMA, before/SIGMA, each after paper/ or not')
    return _run(scale, place, float(sigma), 0)


def _run(scale: str, place: str, sigma: float, seed: int) -> ConfigDict:
    config = recipes.with_mlp_noise(BASES[scale](), sigma, REMOVED[scale], seed)
    return recipes.before_norm(config) if place == "before" else config


def sweep(scale: str) -> list[ConfigDict]:
    """Noise after the LayerNorm at every sigma, and before it, by seed."""
    runs = [("after", sigma) for sigma in SIGMAS[scale]] + [("before", sigma) for sigma in BEFORE[scale]]
    return [_run(scale, place, sigma, seed) for seed in range(SEEDS) for place, sigma in runs]
