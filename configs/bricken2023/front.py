"""Beyond Bricken et al. 2023: noise combined with Top-k, L1 or clipped activations, against noise alone.

Claim: the paper hopes so (Sec. 4: "combining noisy training with other approaches to induce sparsity ... may result in
even higher degrees of sparsity"). Here: at the same share of active units, is the held-out loss lower than the front
of noise alone?
Command: python -m launch.reproduce --study=bricken2023/front --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/front.py:top_k/0.03 --workdir=runs/one
(`noise/SIGMA`, `top_k/SHARE`, `l1/WEIGHT`, `clipped/CLIP`; `paper/top_k/0.03` is at the paper's scale.)
Hardware: 2 CPU cores, 8 minutes (28 runs) beside the study `pareto`, with which it shares the 3
runs without noise and 5 with noise alone; at the paper's scale 36 runs of 98,000 steps on a GPU or TPU.
Expected: no number: the paper did not try it. Noise alone is the line to beat.
assumed: between its settings the front is straight in the logarithms; were it bent, a gain would be off by the sagitta.
assumed: noise falls to 0 from a half to three quarters of training, alone and combined, as in `pareto`.
assumed: combined with noise of sigma .3, at which the paper's fields begin: Top-k of 10% and 3% of the units, reached
over the first quarter of training; L1 of the paper's weight 1e-5 and 3e-5, scaled as in `pareto`, no unit norms;
clipped ReLU with a threshold of one std(data) and a clip of two and of four.
assumed: (embedded) network and data of `noise`, 12,000 steps; three seeds.
assumed: (paper) CIFAR10's pixels, 10,000 units, 2,000 epochs.
"""

from ml_collections import ConfigDict

from sparsity import recipes

BASES = {
    "embedded": recipes.autoencoder_photos,
    "paper": lambda: recipes.autoencoder_cifar10(epochs=2000),
}
ALONE = (0.0, 0.1, 0.3, 0.8, 1.5, 3.0)
COMBINED = 0.3  # sigma
THRESHOLD = 1.0  # of the clipped ReLU, in std(data)
ARMS = {scale: {"noise": ALONE, "top_k": (0.1, 0.03), "l1": (1e-5, 3e-5), "clipped": (2.0, 4.0)} for scale in BASES}
SEEDS = 3


def get_config(arg: str = "top_k/0.03") -> ConfigDict:
    """The first run of noise alone, or of noise with a method, at a setting: "[paper/]METHOD/SETTING"."""
    return _run(*recipes.bricken_arm(arg, ARMS), 0)


def _run(scale: str, method: str, value: float, seed: int) -> ConfigDict:
    base = BASES[scale]()
    if method == "noise":
        return recipes.on_the_front(base, value, seed)
    noisy = recipes.noise_then_none(base, COMBINED, seed)
    if method == "top_k":
        return recipes.with_kept_share(noisy, value)
    return recipes.with_l1(noisy, value) if method == "l1" else recipes.with_clip(noisy, THRESHOLD, value)


def sweep(scale: str) -> list[ConfigDict]:
    """Noise alone and every combination, by seed."""
    return [
        _run(scale, method, value, seed)
        for seed in range(SEEDS)
        for method, values in ARMS[scale].items()
        for value in values
    ]
