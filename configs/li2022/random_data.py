"""Li et al. 2022, Figs. E.1, E.2: two-layer MLPs by width on real, on random and on endless random data.

Claim: L18 (random data: most nonzeros at the interpolation threshold; infinite data: hardly any; MNIST: fewer with
width; larger learning rates: fewer; with SGD, SGD with momentum and Adam).
Command: python -m launch.reproduce --study=li2022/random_data --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/random_data.py:random/adam/0.001/128 --workdir=runs/one
(DATA/OPTIMIZER/RATE/WIDTH; DATA is real, random or infinite; `paper/random/adam/0.001/128` at the paper's scale.)
Hardware: 2 CPU cores, 189 runs; not measured yet, about 27 minutes by the steps timed. At the paper's scale 378 runs of
92,187 steps on a GPU or TPU, the widest 104 million parameters.
Expected: paper: the curve over widths has one peak on random data, is near 0 on infinite data and falls on MNIST.
assumed: the paper prints neither rates nor batch: .2 and .5 for SGD, .03 and .1 with momentum of .9, 1e-3 and 5e-3 for
Adam, constant, batch 128; 200 epochs as in the paper.
assumed: random pixels are uniform, with mean 0 and deviation 1; weights and biases as torch starts them.
assumed: (embedded) the 1,260 digits and widths 8 to 2,048, a factor of 4 apart: as many parameters an example (.5 to
122) as the paper's widths 32 to 8,192 have on MNIST (.4 to 108); as many random images and widths 8 to 512, a factor of
2 apart, so that the peak has a place; 32, 128 and 512 on infinite data; 32 and 512 at the larger rates.
assumed: (paper) MNIST of 59,000 images, 1,000 held out; random data as many; 3 seeds, of which the paper says nothing.
"""

from ml_collections import ConfigDict

from sparsity import recipes

DATA = ("real", "random", "infinite")
FEW, ALL = (32, 512), (32, 128, 512, 2048, 8192, 32_768, 131_072)
WIDTHS = {  # at the smaller and at the larger rate
    "embedded": {
        "real": ((8, 32, 128, 512, 2048), FEW),
        "random": ((8, 16, 32, 64, 128, 256, 512), FEW),
        "infinite": ((32, 128, 512), FEW),
    },
    "paper": dict.fromkeys(DATA, (ALL, ALL)),
}
RATES = {"sgd": (0.2, 0.5), "momentum": (0.03, 0.1), "adam": (1e-3, 5e-3)}
SEEDS = 3


def get_config(arg: str = "random/adam/0.001/128") -> ConfigDict:
    """The first run of "[paper/]DATA/OPTIMIZER/RATE/WIDTH"."""
    scale, rest = ("paper", arg.removeprefix("paper/")) if arg.startswith("paper/") else ("embedded", arg)
    found = {"/".join(map(_text, arm)): arm for arm in _arms(scale)}
    if rest not in found:
        raise ValueError(
            f'unknown run "{arg}"; valid: DATA/OPTIMIZER/RATE/WIDTH of {", ".join(found)}, or after paper/'
        )
    return _run(scale, *found[rest], 0)


def _text(part: str | float) -> str:
    return part if isinstance(part, str) else f"{part:g}" if isinstance(part, float) else str(part)


def _arms(scale: str) -> list[tuple[str, str, float, int]]:
    return [
        (data, optimizer, rate, width)
        for data in DATA
        for optimizer, rates in RATES.items()
        for rate, widths in zip(rates, WIDTHS[scale][data], strict=True)
        for width in widths
    ]


def _run(scale: str, data: str, optimizer: str, rate: float, width: int, seed: int) -> ConfigDict:
    base = recipes.mlp_mnist(width) if scale == "paper" else recipes.mlp_digits(width)
    return recipes.mlp_arm(base, data, optimizer, rate, seed)


def sweep(scale: str) -> list[ConfigDict]:
    """Every width on every data by every optimizer at the smaller rate, and some at the larger, by seed."""
    return [_run(scale, *arm, seed) for seed in range(SEEDS) for arm in _arms(scale)]
