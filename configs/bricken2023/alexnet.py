"""Bricken et al. 2023, App. J.3, Table 3, Figs. 34 and 35: noise at the pixels of an AlexNet, then none.

Claim: B19 (every network fits its training data; after noise it loses some 20 points on test data at every sigma, with
SGD, SparseAdam and average pooling too; noise after the convolutions loses 6 to 12 points).
Command: python -m launch.reproduce --study=bricken2023/alexnet --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/alexnet.py:adam/1.5 --workdir=runs/one
(ARM/SIGMA: `adam`, `sgd` and `sparse_adam` train with noise at the pixels; `average` is Adam with average pooling,
`convolutions` Adam with noise after the convolutions; `paper/...` at the paper's scale.)
Hardware: 2 CPU cores, 21 runs, 25 minutes beside other work; at the paper's scale 87 runs of 171,500 steps on a GPU or
TPU.
Expected: paper: validation accuracy 81.5% (Adam), 71.0% (SGD) and 82.0% (SparseAdam) without noise; with it 54.0 to
64.8%, 55.9 to 62.5% and 55.1 to 64.7%; 76 to 70% with noise after the convolutions; 100% on training data. Digits may
well lose less: they are easier, and after the noise is gone every one is read a hundred times.
assumed: noise of full size for two sevenths of training, annealed in the third, as in the paper; noise at its size of
the step is on in validation. Noise after the convolutions has the same course, and sigma in the units of what is there.
assumed: SGD at rate .1 (the paper prints none), without momentum; gradients clipped at norm 1; no dropout, since every
network fits its training data.
assumed: (embedded) digits of 8x8 pixels, 16 to 48 channels, 128 units, stride 1, batch 64, Adam and SparseAdam at 1e-3,
3,500 steps, one for each epoch of the paper; weights by He, because torch's default divides the signal's variance by
six in every layer, and SGD would spend these steps leaving the start. Sigma 1.5 alone, where the paper loses most.
assumed: (paper) the variant of AlexNet for 32x32 pixels that is common, see the model; batch 1024, Adam and SparseAdam
at 1e-4, as in the authors' other runs; average pooling with Adam at every sigma; three seeds.
"""

from ml_collections import ConfigDict

from sparsity import recipes

BASES = {"embedded": recipes.alexnet_digits, "paper": recipes.alexnet_cifar10}
RULES = {"adam": "adamw", "sgd": "sgd", "sparse_adam": "sparse_adam", "average": "adamw", "convolutions": "adamw"}
SGD_RATE = 0.1
ALL = (0.0, 0.5, 1.5, 3.0, 5.0, 10.0)
SIGMAS = {
    "embedded": {
        "adam": (0.0, 1.5),
        "sgd": (0.0, 1.5),
        "sparse_adam": (1.5,),
        "average": (1.5,),
        "convolutions": (1.5,),
    },
    "paper": {"adam": ALL, "sgd": ALL, "sparse_adam": ALL, "average": ALL, "convolutions": ALL[1:]},
}
SEEDS = 3


def get_config(arg: str = "adam/1.5") -> ConfigDict:
    """The first run of "[paper/]ARM/SIGMA"."""
    scale, rest = ("paper", arg.removeprefix("paper/")) if arg.startswith("paper/") else ("embedded", arg)
    arm, _, sigma = rest.partition("/")
    if arm not in RULES or not sigma:
        valid = ", ".join(f"{name}/SIGMA" for name in RULES)
        raise ValueError(f'unknown run "{arg}"; valid: {valid}, each after paper/ or not')
    return _run(scale, arm, float(sigma), 0)


def _run(scale: str, arm: str, sigma: float, seed: int) -> ConfigDict:
    config = recipes.with_noise(BASES[scale](), sigma, seed)
    config.name += f"_{arm}"
    # Of 3,500 epochs, 1,000 with noise of full size, which falls in 500 more.
    schedule = {"name": "linear_to_zero", "start": 2 * config.steps // 7, "length": config.steps // 7}
    config.noise.schedule, config.evals.noise = ConfigDict(schedule), True
    if arm == "average":
        config.model.pooling = "average"
    if arm == "convolutions":
        config = recipes.after_convolutions(config, sigma)
    return recipes.with_rule(config, RULES[arm], SGD_RATE if arm == "sgd" else config.optimizer.learning_rate)


def sweep(scale: str) -> list[ConfigDict]:
    """Every arm at its sigmas, by seed."""
    runs = [(arm, sigma) for arm, sigmas in SIGMAS[scale].items() for sigma in sigmas]
    return [_run(scale, arm, sigma, seed) for seed in range(SEEDS) for arm, sigma in runs]
