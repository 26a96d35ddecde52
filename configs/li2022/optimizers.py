"""Li et al. 2022, Figs. B.7, B.8: Adam makes ResNets sparser inside their blocks than SGD, which trains no Transformer.

Claim: L16 (Adam sparser at inner ReLUs, equal at the blocks' outputs; SGD cannot train T5 or ViT).
Command: python -m launch.reproduce --study=li2022/optimizers --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/optimizers.py:basic/adam/0.003 --workdir=runs/one
(NETWORK/OPTIMIZER/RATE of the networks basic, bottleneck, vit and t5; `vit/usual`, `t5/usual`.)
Hardware: 2 CPU cores, 42 runs, 6 of them `resnets`', 3 `table1`'s and 3 `t5_prevalence`'s; not measured yet, by the
steps timed about 35 minutes, 22 if those are done.
Expected: paper: ResNet-18 69.3% of the training images right with SGD, 67.8% with Adam; ResNet-50 78.5 and 75.0%.
assumed: Adam's rate is the best of a grid in training accuracy, as in the paper; in training loss, if two are equal.
assumed: (embedded) the ResNets of `resnets` at width 8, Adam at 1e-3, 3e-3 and 1e-2; with bottlenecks at 3e-3 alone,
which the paper chose. By SGD with momentum .9, no weight decay and all else unchanged the quickstart's ViT for 500
steps at .01, .1 and 1 and the small T5 of `t5_prevalence` for 800 at .1, 1 and 10, compared there with AdamW and
Adafactor, which go on to 2,000; the paper says nothing of its attempts. Its scale is not here yet.
"""

from ml_collections import ConfigDict

from sparsity import recipes

BLOCKS = ("basic", "bottleneck")
ADAM = {"basic": (1e-3, 3e-3, 1e-2), "bottleneck": (3e-3,)}
SGD = {"vit": (0.01, 0.1, 1.0), "t5": (0.1, 1.0, 10.0)}
STEPS = {"vit": 500, "t5": 800}  # with SGD
ARMS = (
    *((block, "momentum", 0.05) for block in BLOCKS),
    *((block, "adam", rate) for block in BLOCKS for rate in ADAM[block]),
    *((network, "momentum", rate) for network in SGD for rate in SGD[network]),
    ("vit", "usual", None),
    ("t5", "usual", None),
)
SEEDS = 3


def get_config(arg: str = "basic/adam/0.003") -> ConfigDict:
    """The first run of "NETWORK/OPTIMIZER/RATE" or "NETWORK/usual"."""
    names = {f"{a}/{b}" if rate is None else f"{a}/{b}/{rate:g}": (a, b, rate) for a, b, rate in ARMS}
    if arg not in names:
        raise ValueError(f'unknown run "{arg}"; valid: {", ".join(names)}')
    return _run(*names[arg], 0)


def _run(network: str, optimizer: str, rate: float | None, seed: int) -> ConfigDict:
    if network in BLOCKS:
        return recipes.optimizer_arm(recipes.resnet_digits(network, 8), optimizer, rate, seed)
    config = recipes.vit_digits() if network == "vit" else recipes.t5_text_of("small")
    if optimizer != "usual":
        config.steps = STEPS[network]
        return recipes.optimizer_arm(config, optimizer, rate, seed)
    # Those of `t5_prevalence` and of `table1`.
    return (recipes.t5_arm if network == "t5" else recipes.vit_calibrated_arm)(config, seed=seed)


def sweep(scale: str) -> list[ConfigDict]:
    """Every arm, by seed."""
    if scale != "embedded":
        raise ValueError(f'configs/li2022/optimizers.py has no scale "{scale}"; valid: embedded')
    return [_run(*arm, seed) for seed in range(SEEDS) for arm in ARMS]
