"""Bricken et al. 2023, Secs. 1 and 3, App. B: what of noise makes a network sparse, and what does not.

Claim: B7 (the penalty sigma^2 ||J||^2, all that a first-order expansion leaves of noise, gives neither the sparsity nor
the fields), B4 (one bias for all units does as well as one each), B8 (smaller weights at the start sparsify sooner).
Command: python -m launch.reproduce --study=bricken2023/controls --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/controls.py:jacobian0.8 --workdir=runs/one
(`shared_bias`, `scale0.1`; `paper/jacobian0.8` is the run at the paper's scale.)
Hardware: 2 CPU cores, 36 runs, 12 of them (noise alone) also of the study `ablations`, 22 minutes beside other work;
at the paper's scale 36 runs of 147,000 steps on a GPU or TPU.
Expected: paper, in words: the penalty fails to produce sparsity or fields (Sec. 1), a shared bias gives near identical
performance and sparsity (Sec. 3), smaller initial weights sparsify faster at sigma 3 (Fig. 9).
assumed: the penalty's sigmas are .1, .3 and .8; its outputs' mean, as the loss takes it; the shared bias is tried at
sigma .8; biases keep their start while encoder weights are multiplied by s.
assumed: s in {.1, .3, 1, 3}; the values in Fig. 9 are illegible.
assumed: (embedded) networks and data of `noise`, 12,000 steps; the runs of B8, of which only the start matters, have
1,500 steps and are recorded every 20.
assumed: (paper) networks, data and training of `noise`, 3,000 epochs of CIFAR10's pixels, for each.
"""

from ml_collections import ConfigDict

from sparsity import recipes

NOISE = (0.0, 0.1, 0.3, 0.8)  # sigmas of the study `noise` that controls are compared with
JACOBIAN = NOISE[1:]
SHARED_BIAS_AT, SCALED_AT = 0.8, 3.0  # sigmas
SCALES = (0.1, 0.3, 1.0, 3.0)
SEEDS = 3
BASES = {"embedded": recipes.autoencoder_photos, "paper": recipes.autoencoder_cifar10}


def _scaled(scale: str, s: float, seed: int) -> ConfigDict:
    base = BASES[scale]()
    if scale == "embedded":
        base = recipes.autoencoder_photos(steps=1500)
        base.every.record = 20
    return recipes.with_encoder_scale(recipes.with_noise(base, SCALED_AT, seed), s)


def _controls(scale: str, seed: int) -> dict[str, ConfigDict]:
    base = BASES[scale]
    return {
        **{f"jacobian{sigma:g}": recipes.with_jacobian_penalty(base(), sigma, seed) for sigma in JACOBIAN},
        "shared_bias": recipes.with_shared_bias(recipes.with_noise(base(), SHARED_BIAS_AT, seed)),
        **{f"scale{s:g}": _scaled(scale, s, seed) for s in SCALES},
    }


def get_config(arg: str = "jacobian0.8") -> ConfigDict:
    """The first run of a control: "jacobian0.8", "shared_bias", "scale0.1"; after "paper/" at the paper's scale."""
    scale, _, control = arg.rpartition("/")
    scale = scale or "embedded"
    runs = _controls(scale, 0) if scale in BASES else {}
    if control not in runs:
        valid = ", ".join(_controls("embedded", 0))
        raise ValueError(f'unknown control "{arg}"; valid: {valid}, alone or after "paper/"')
    return runs[control]


def sweep(scale: str) -> list[ConfigDict]:
    """The runs of noise alone, then the controls, by seed."""
    runs = []
    for seed in range(SEEDS):
        runs += [recipes.bricken_noise(BASES[scale](), sigma, seed) for sigma in NOISE]
        runs += _controls(scale, seed).values()
    return runs
