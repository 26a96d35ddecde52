"""Li et al. 2022, Figs. B.3, B.4: ResNets are sparse too, less than Transformers, and more the wider they are.

Claim: L14 (above 10% everywhere, at every width; the narrowest: sparser near the output; sparser inside the blocks than
at their outputs), L3's part on ResNets (wider: sparser, but for the very last layer).
Command: python -m launch.reproduce --study=li2022/resnets --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/resnets.py:basic/16 --workdir=runs/one
(BLOCK/WIDTH of basic/8, basic/16, basic/32, bottleneck/8.)
Hardware: 2 CPU cores, 12 runs, none of them another study's; about 15 minutes for all by the steps timed, not measured
yet.
Expected: paper: ResNet-18 and ResNet-50 on ImageNet-1k, widths 64, 128 and 256: more than 10% in all layers.
assumed: the paper names no recipe: SGD with momentum .9, a cosine from .05, no weight decay.
assumed: (embedded) digits shifted by a pixel, three stages of two blocks (maps of 8x8, 4x4 and 2x2), a stem of 3x3,
widths 8, 16 and 32 (x1, x2, x4), bottlenecks at 8; batch 64, 1,000 steps; shares are of test images. The paper's scale
is not here yet.
"""

from ml_collections import ConfigDict

from sparsity import recipes

NETWORKS = (("basic", 8), ("basic", 16), ("basic", 32), ("bottleneck", 8))
SEEDS = 3


def get_config(arg: str = "basic/16") -> ConfigDict:
    """The first run of "BLOCK/WIDTH"."""
    networks = {f"{block}/{width}": (block, width) for block, width in NETWORKS}
    if arg not in networks:
        raise ValueError(f'unknown run "{arg}"; valid: {", ".join(networks)}')
    return _run(*networks[arg], 0)


def _run(block: str, width: int, seed: int) -> ConfigDict:
    return recipes.optimizer_arm(recipes.resnet_digits(block, width), "momentum", 0.05, seed)


def sweep(scale: str) -> list[ConfigDict]:
    """Every network, by seed."""
    if scale != "embedded":
        raise ValueError(f'configs/li2022/resnets.py has no scale "{scale}"; valid: embedded')
    return [_run(*network, seed) for seed in range(SEEDS) for network in NETWORKS]
