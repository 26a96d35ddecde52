"""Li et al. 2022, Fig. B.2: the channel MLPs of a Mixer are sparse, its token MLPs are not.

Claim: L13 (channel MLPs as sparse as a ViT's in the first four layers, denser in the later ones; token MLPs above 50%).
Command: python -m launch.reproduce --study=li2022/mixer --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/mixer.py:mixer --workdir=runs/one
(`vit` for the ViT beside it.)
Hardware: 2 CPU cores, 6 runs, 3 of them `table1`'s; about 10 minutes for the other 3, two at a time, by the steps
timed, not measured yet.
Expected: paper: Mixer-B/16 on ImageNet-21k; token MLPs of 384 units above 50%, "probably because" they are so narrow.
assumed: (embedded) digits, 16 patches of 2x2 pixels, 4 layers of d_model 64, channel MLPs of 512 units and token MLPs
of 64, an eighth as in Mixer-B; AdamW at 3e-3, weight decay .03 and clip 1 as in the paper, but shifts by a pixel in
place of RandAugment. The ViT is the quickstart's, of as many layers. The paper's scale is not here yet.
assumed: the two differ in more than how they mix: the ViT has patches of 4x4 pixels, so 4 tokens to the Mixer's 16, and
weight decay .1 to its .03. The paper's two have patches of one size, 16x16.
"""

from ml_collections import ConfigDict

from sparsity import recipes

NETWORKS = ("mixer", "vit")
SEEDS = 3


def get_config(arg: str = "mixer") -> ConfigDict:
    """The first run of a network."""
    if arg not in NETWORKS:
        raise ValueError(f'unknown run "{arg}"; valid: {", ".join(NETWORKS)}')
    return _run(arg, 0)


def _run(network: str, seed: int) -> ConfigDict:
    if network == "mixer":
        return recipes.with_seed(recipes.mixer_digits(), seed)
    return recipes.vit_calibrated_arm(recipes.vit_digits(), seed=seed)


def sweep(scale: str) -> list[ConfigDict]:
    """The Mixer and the ViT, by seed."""
    if scale != "embedded":
        raise ValueError(f'configs/li2022/mixer.py has no scale "{scale}"; valid: embedded')
    return [_run(network, seed) for seed in range(SEEDS) for network in NETWORKS]
