"""Beyond Li et al. 2022: all ways to sparse activations of this repository on one front, a ViT's and a T5's.

Claim: none of the paper's, which has ReLU, Top-k and L1 penalties, each in a table of its own. Here the same network
trains with each of them, with GELU, statistical Top-k, noise (Bricken et al. 2023) and clipped ReLU from the edge of
chaos (Price et al. 2024), on the same data for the same steps, in the same batches at the same rate. Asked: at the same
share of nonzeros, which is the more accurate, the more robust and the better calibrated?
Command: python -m launch.reproduce --study=li2022/front --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/front.py:vit/top_k/43 --workdir=runs/one
(MODEL/METHOD/SETTING, MODEL vit or t5; `vit/relu` and `vit/gelu` have no setting.)
Hardware: 2 CPU cores, 86 runs, 20 of them `table1`'s, 15 `penalties`' and 3 `t5_prevalence`'s; about 35 minutes for
the other 30 ViTs and 18 T5s, two at a time (--shard), by the steps timed, not measured yet.
Expected: no number: nobody has printed these side by side.
assumed: embedded scale alone: `table1`'s ViT of 4 layers of 512 units on digits, 2,000 steps, five seeds; the smallest
T5 of `t5_prevalence`, 2 + 2 layers of 256 units, 2,000 steps on Python's documentation, three seeds. Which method is
best at a billion parameters nobody can tell from these.
assumed: settings are declared, not searched for. Top-k of 11, 21 and 43 of 512, `table1`'s; 21 of 256 is as large a
share as 43 of 512. Statistical Top-k of 21 of either. L1 of `penalties`' weights, of which T5 has the largest, a
guess. Noise of deviation 1 and 3 (T5: 1) on what each MLP reads, whose deviation is about 1, gone after three quarters
of training. Clipped ReLU of 70 and 85% zeros (T5: 85%) with V' = .7, the row of Price et al. that trains.
assumed: T5's MLPs have no biases; those of its clipped arm have, which their edge of chaos needs.
assumed: a T5 has no corruption of its text and no calibration here: nothing is made up for it.
"""

from ml_collections import ConfigDict

from sparsity import recipes

SETTINGS = {
    "vit": {
        "relu": (None,),
        "gelu": (None,),
        "top_k": (11, 21, 43),
        "statistical": (21,),
        "noise": (1.0, 3.0),
        "l1": (3e-6, 3e-5, 3e-4),
        "clipped": (0.7, 0.85),
    },
    "t5": {
        "relu": (None,),
        "gelu": (None,),
        "top_k": (21,),
        "statistical": (21,),
        "noise": (1.0,),
        "l1": (3e-4,),
        "clipped": (0.85,),
    },
}
SEEDS = {"vit": 5, "t5": 3}
ARMS = {
    f"{model}/{method}" + ("" if setting is None else f"/{setting:g}"): (model, method, setting)
    for model, methods in SETTINGS.items()
    for method, settings in methods.items()
    for setting in settings
}
CHANGES = {
    "gelu": lambda config, _: recipes.with_gelu(config),
    "statistical": recipes.with_statistical_top_k,
    "noise": recipes.with_annealed_mlp_noise,
    "l1": lambda config, weight: recipes.with_penalty(config, "l1", weight),
    "clipped": recipes.with_clipped_mlp,
}


def get_config(arg: str = "vit/top_k/43") -> ConfigDict:
    """The first run of "MODEL/METHOD[/SETTING]"."""
    if arg not in ARMS:
        raise ValueError(f'unknown run "{arg}"; valid: {", ".join(ARMS)}')
    return _run(*ARMS[arg], 0)


def _run(model: str, method: str, setting: float | None, seed: int) -> ConfigDict:
    config = recipes.vit_digits() if model == "vit" else recipes.t5_text_of("small")
    if method in CHANGES:
        config = CHANGES[method](config, setting)
    k = setting if method == "top_k" else None
    if model == "vit":
        return recipes.vit_calibrated_arm(config, k, seed=seed)
    return recipes.t5_arm(config, k=k, seed=seed)


def sweep(scale: str) -> list[ConfigDict]:
    """Every method at its settings, by model and seed."""
    if scale != "embedded":
        raise ValueError(f'configs/li2022/front.py has no scale "{scale}"; valid: embedded')
    return [
        _run(*arm, seed)
        for model, seeds in SEEDS.items()
        for seed in range(seeds)
        for arm in ARMS.values()
        if arm[0] == model
    ]
