"""Li et al. 2022, Fig. 4: deeper and wider T5s are sparser.

Claim: L3 (deeper: a lower percentage; wider: a lower percentage and a higher count).
Command: python -m launch.reproduce --study=li2022/t5_scale --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/t5_scale.py:layers/8 --workdir=runs/one
(`d_ff/2048` for another width, `paper/layers/8` at the paper's scale.)
Hardware: 2 CPU cores, 15 runs, 3 of them `t5_prevalence`'s and 3 `t5_no_skip`'s: 34 minutes for the other 9, two at a
time, beside other work. At the paper's scale 10 runs of 100,000 steps on a TPU slice.
Expected: paper: at 32 layers many middle layers are below 1%, no layer of a shallower network is.
assumed: the paper prints neither the depths nor the widths but the 32 layers; powers of 2 around T5-Base's.
assumed: (embedded) the network of `t5_prevalence`, d_model 64, at 2, 4 and 8 layers and d_ff 128, 512 and 2,048.
assumed: (paper) T5-Base on C4, as in `t5_prevalence`. With one seed this scale draws figures and gives no verdicts.
"""

from ml_collections import ConfigDict

from sparsity import recipes

LAYERS = {"embedded": (2, 4, 8), "paper": (4, 8, 12, 16, 24, 32)}
D_FF = {"embedded": (128, 512, 2048), "paper": (768, 1536, 3072, 6144, 12_288)}
SEEDS = {"embedded": 3, "paper": 1}


def get_config(arg: str = "layers/8") -> ConfigDict:
    """The first run of "[paper/]layers/N" or "[paper/]d_ff/N"."""
    scale, rest = ("paper", arg.removeprefix("paper/")) if arg.startswith("paper/") else ("embedded", arg)
    key, _, size = rest.partition("/")
    if key not in ("layers", "d_ff") or not size.isdigit():
        raise ValueError(f'unknown run "{arg}"; valid: layers/N, d_ff/N, each after paper/ or not')
    return _run(scale, 0, **{key: int(size)})


def _run(scale: str, seed: int, **sizes: int) -> ConfigDict:
    base = recipes.t5_c4("base") if scale == "paper" else recipes.t5_text_of("base")
    return recipes.t5_arm(base, seed=seed, **sizes)


def sweep(scale: str) -> list[ConfigDict]:
    """Every depth at the base's width and every width at its depth, the base once, by seed."""
    runs = {}
    for seed in range(SEEDS[scale]):
        for sizes in [{"layers": n} for n in LAYERS[scale]] + [{"d_ff": n} for n in D_FF[scale]]:
            config = _run(scale, seed, **sizes)
            runs.setdefault(config.name, config)
    return list(runs.values())
