"""ViTs on digits for the figures and tables of Li et al. 2022: of other sizes, on other data, with penalties."""

from __future__ import annotations

from ml_collections import ConfigDict

from sparsity.recipes.li2022 import vit_arm, vit_digits

# d_model (16 a head), layers and d_ff, by name; "base" is `vit_digits`.
VIT_DIGITS_SIZES = {"small": (32, 2, 256), "base": (64, 4, 512), "large": (96, 6, 768)}


def vit_digits_of(size: str) -> ConfigDict:
    """One of three ViTs on digits: "small", "base", which is `vit_digits`, and "large".

    Raises:
      ValueError: there is no such size.
    """
    if size not in VIT_DIGITS_SIZES:
        raise ValueError(f'unknown size of ViT on digits "{size}"; valid: {", ".join(VIT_DIGITS_SIZES)}')
    config = vit_digits()
    d_model, layers, d_ff = VIT_DIGITS_SIZES[size]
    config.model.update({"d_model": d_model, "layers": layers, "heads": d_model // 16})
    config.model.mlp.d_ff = d_ff
    if size != "base":
        config.name = f"{config.name}_{size}"
    return config


def vit_calibrated_arm(config: ConfigDict, k: int | None = None, noise: float = 0.0, seed: int = 0) -> ConfigDict:
    """`vit_arm`, its calibration measured while it trains: a run of Li et al.'s Table 1, and what is compared to it."""
    config = vit_arm(config, k, noise, seed)
    config.evals.during = ("calibration",)
    return config


def with_few_examples(config: ConfigDict, examples: int, seed: int = 0) -> ConfigDict:
    """`config`, a classifier's run, on so many of the training examples (Li et al. 2022, Fig. 2c)."""
    config = config.copy_and_resolve_references()
    config.data = ConfigDict({"name": "subset", "of": config.data, "examples": examples, "seed": seed})
    config.name = f"{config.name}_{examples}_examples"
    return config


def with_random_images(config: ConfigDict, seed: int = 0) -> ConfigDict:
    """`config`, a classifier's run, on random pixels with the labels of its data (Li et al. 2022, Fig. 5b)."""
    config = config.copy_and_resolve_references()
    config.data = ConfigDict({"name": "random_images", "of": config.data, "seed": seed})
    config.name = f"{config.name}_random_images"
    return config


def with_infinite_data(config: ConfigDict, seed: int = 0) -> ConfigDict:
    """`config`, a classifier's run, on random pixels and labels, none of them twice (Li et al. 2022, Fig. 5c)."""
    config = config.copy_and_resolve_references()
    config.data = ConfigDict({"name": "random_data", "of": config.data, "seed": seed})
    config.name = f"{config.name}_infinite_data"
    return config


def with_penalty(config: ConfigDict, penalty: str, weight: float) -> ConfigDict:
    """`config` with an L1 or L2 penalty on every activation (Li et al. 2022, App. C); its `weight` is of the sum.

    Raises:
      ValueError: another penalty.
    """
    if penalty not in ("l1", "l2"):
        raise ValueError(f'unknown penalty "{penalty}" on activations; valid: l1, l2')
    config = config.copy_and_resolve_references()
    config.penalty = ConfigDict({"name": penalty, "weight": weight})
    config.name = f"{config.name}_{penalty}_{weight:g}"
    return config
