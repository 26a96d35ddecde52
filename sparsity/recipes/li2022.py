"""A small ViT, T5s by name and on bytes, and Top-k in MLPs: Li et al. 2022."""

from __future__ import annotations

from ml_collections import ConfigDict


def vit_digits() -> ConfigDict:
    """A small ReLU ViT on scikit-learn's handwritten digits; minutes on two CPU cores."""
    return ConfigDict(
        {
            "name": "vit_digits",
            "seed": 0,
            "steps": 2000,
            "batch": 128,
            "accumulate": 1,
            "keep": 2,
            "model": {
                "name": "vit",
                "d_model": 64,
                "layers": 4,
                "heads": 4,
                "patch": 4,
                "pool": "gap",
                "dropout": 0.0,
                "dtype": "float32",
                "mlp": {
                    "d_ff": 512,
                    "sparsifier": {"name": "relu"},
                    "gated": False,
                    "use_bias": True,
                    "dropout": 0.0,
                    "init": "xavier",
                },
            },
            "data": {"name": "digits", "shift": 1},
            "optimizer": {
                "learning_rate": 3e-3,
                "rule": {"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1},
                "schedule": {"name": "cosine", "warmup": 50},
                "grad_clip": 1.0,
            },
            "mesh": {"data": -1, "model": 1},
            "every": {"record": 50, "eval": 250, "checkpoint": 250, "speed": 50},
            "evals": {
                "names": ("accuracy", "calibration", "robustness", "sparsity", "neurons", "cost"),
                "split": "test",
                "batch": 128,
                "ece_bins": 15,
                # CIFAR-C's constants hardly touch these high-contrast images.
                "corruptions": "imagenet_c",
            },
        }
    )


# d_model, layers, heads and d_ff, by name (Dosovitskiy et al. 2021; Zhai et al. 2022); "B/16" has patches of 16 pixels.
VIT_SIZES = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
}


def vit_model(name: str, sparsifier: str = "relu") -> ConfigDict:
    """The model of a ViT: "B/16" is the size B of `VIT_SIZES` with patches of 16 pixels; ReLU as in Li et al. 2022.

    Raises:
      ValueError: there is no such size, or no patch.
    """
    size, _, patch = name.partition("/")
    if size not in VIT_SIZES or not patch.isdigit():
        raise ValueError(f'unknown ViT "{name}"; valid: SIZE/PATCH of the sizes {", ".join(VIT_SIZES)}')
    d_model, layers, heads, d_ff = VIT_SIZES[size]
    sizes = {"d_model": d_model, "layers": layers, "heads": heads, "patch": int(patch)}
    return ConfigDict({"name": "vit", **sizes, "mlp": {"d_ff": d_ff, "sparsifier": {"name": sparsifier}}})


# d_model, layers, heads and d_ff, by name (Devlin et al. 2019).
BERT_SIZES = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}


def bert_model(size: str, dropout: float = 0.1) -> ConfigDict:
    """The model of a BERT of `BERT_SIZES`, with ReLU in place of GELU as Li et al. 2022 have it.

    Raises:
      ValueError: there is no such size.
    """
    if size not in BERT_SIZES:
        raise ValueError(f'unknown size of BERT "{size}"; valid: {", ".join(BERT_SIZES)}')
    d_model, layers, heads, d_ff = BERT_SIZES[size]
    mlp = {"d_ff": d_ff, "sparsifier": {"name": "relu"}, "init": "gpt2"}
    sizes = {"d_model": d_model, "layers": layers, "heads": heads}
    return ConfigDict({"name": "bert", **sizes, "dropout": dropout, "mlp": mlp})


def with_next_sentence(config: ConfigDict) -> ConfigDict:
    """`config`, a BERT's run on masked text, with BERT's second task beside it (Devlin et al. 2019, Sec. 3.1)."""
    config = config.copy_and_resolve_references()
    config.model.next_sentence = config.data.next_sentence = True
    config.name = f"{config.name}_next_sentence"
    return config


RESNETS = {18: ("basic", (2, 2, 2, 2)), 50: ("bottleneck", (3, 4, 6, 3))}  # kind and number of blocks, by depth


def resnet_model(depth: int, width: int = 64) -> ConfigDict:
    """The model of ResNet-18 or ResNet-50, `width` channels in the first stage (Li et al. 2022, Figs. B.3, B.4).

    Raises:
      ValueError: another depth.
    """
    if depth not in RESNETS:
        raise ValueError(f"unknown ResNet {depth}; valid: {', '.join(map(str, RESNETS))}")
    block, blocks = RESNETS[depth]
    return ConfigDict(
        {"name": "resnet", "block": block, "blocks": blocks, "width": width, "sparsifier": {"name": "relu"}}
    )


# patch, d_model, layers, d_ff of the token MLPs and of the channel MLPs, by name (Tolstikhin et al. 2021, Table 1).
MIXER_SIZES = {
    "S/32": (32, 512, 8, 256, 2048),
    "S/16": (16, 512, 8, 256, 2048),
    "B/32": (32, 768, 12, 384, 3072),
    "B/16": (16, 768, 12, 384, 3072),
    "L/32": (32, 1024, 24, 512, 4096),
    "L/16": (16, 1024, 24, 512, 4096),
    "H/14": (14, 1280, 32, 640, 5120),
}


def mixer_model(size: str) -> ConfigDict:
    """The model of an MLP-Mixer of `MIXER_SIZES`, with ReLU in place of GELU as Li et al. 2022 have it.

    Matrices start at a truncated normal distribution of variance 1 / fan_in, biases at 0, as in the authors' code.

    Raises:
      ValueError: there is no such size.
    """
    if size not in MIXER_SIZES:
        raise ValueError(f'unknown size of Mixer "{size}"; valid: {", ".join(MIXER_SIZES)}')
    patch, d_model, layers, token, channel = MIXER_SIZES[size]
    mlp = lambda d_ff: {"d_ff": d_ff, "sparsifier": {"name": "relu"}, "init": "t5"}
    sizes = {"patch": patch, "d_model": d_model, "layers": layers}
    return ConfigDict({"name": "mixer", **sizes, "mlp": mlp(channel), "token_mlp": mlp(token)})


def vit_arm(config: ConfigDict, k: int | None = None, noise: float = 0.0, seed: int = 0) -> ConfigDict:
    """A classifier of one seed, named by what it has: "vit_digits_k21_noise0.4_seed0".

    Args:
      k: of Top-k in every MLP (Li et al. 2022, Eq. 9); None: dense.
      noise: share of the training labels that is drawn anew (Sec. 4.3), by a seed of its own, the run's.
    """
    config = config.copy_and_resolve_references()
    name = config.name
    if k is not None:
        config = with_top_k(config, k)
        name += f"_k{k}"
    if noise:
        config.data = ConfigDict({"name": "noisy_labels", "of": config.data, "share": noise, "seed": seed})
    config.name, config.seed = f"{name}_noise{noise:g}_seed{seed}", seed
    return config


# d_model, d_ff, layers of the encoder and of the decoder, heads and their size, by name; v1.0, v1.1 and ByT5.
T5_SIZES = {
    "small": (512, 2048, 6, 6, 8, 64),
    "base": (768, 3072, 12, 12, 12, 64),
    "large": (1024, 4096, 24, 24, 16, 64),
    "3b": (1024, 16_384, 24, 24, 32, 128),
    "11b": (1024, 65_536, 24, 24, 128, 128),
    "v1.1-small": (512, 1024, 8, 8, 6, 64),
    "v1.1-base": (768, 2048, 12, 12, 12, 64),
    "v1.1-large": (1024, 2816, 24, 24, 16, 64),
    "v1.1-xl": (2048, 5120, 24, 24, 32, 64),
    "v1.1-xxl": (4096, 10_240, 24, 24, 64, 64),
    "byt5-small": (1472, 3584, 12, 4, 6, 64),
    "byt5-base": (1536, 3968, 18, 6, 12, 64),
    "byt5-large": (1536, 3840, 36, 12, 16, 64),
    "byt5-xl": (2560, 6720, 36, 12, 32, 64),
    "byt5-xxl": (4672, 12_352, 36, 12, 64, 64),
}


def t5_model(size: str, dropout: float = 0.1) -> ConfigDict:
    """The model of a T5 of `T5_SIZES`: v1.0 with ReLU, the others with a gated GELU and logits of their own.

    Raises:
      ValueError: there is no such size.
    """
    if size not in T5_SIZES:
        raise ValueError(f'unknown size of T5 "{size}"; valid: {", ".join(T5_SIZES)}')
    d_model, d_ff, layers, decoder_layers, heads, head_dim = T5_SIZES[size]
    first = "-" not in size
    mlp = {
        "d_ff": d_ff,
        "sparsifier": {"name": "relu" if first else "gelu_tanh"},
        "gated": not first,
        "use_bias": False,
        "dropout": dropout,
        "shared_dropout": True,
        "init": "t5",
    }
    sizes = {"d_model": d_model, "layers": layers, "decoder_layers": decoder_layers, "heads": heads}
    return ConfigDict({"name": "t5", **sizes, "head_dim": head_dim, "tied": first, "dropout": dropout, "mlp": mlp})


def t5_text(steps: int = 2000) -> ConfigDict:
    """A tiny T5 v1.0 that fills in spans of Python's documentation, byte by byte: T5's recipe, minutes on two cores."""
    model = t5_model("small", dropout=0.0)
    model.update({"d_model": 64, "layers": 2, "decoder_layers": 2, "heads": 4, "head_dim": 16})
    model.mlp.d_ff = 512
    return ConfigDict(
        {
            "name": "t5_text",
            "seed": 0,
            "steps": steps,
            "batch": 32,
            "z_loss": 1e-4,
            "keep": 1,
            "model": model,
            "data": {"name": "span_corruption", "length": 64, "stride": 16},
            "optimizer": {
                "learning_rate": 0.01,
                "rule": {"name": "adafactor"},
                "schedule": {"name": "inverse_square_root", "warmup": 1000},
                "grad_clip": None,
            },
            "mesh": {"data": 1, "model": 1},
            "every": {"record": 100, "eval": 1000, "checkpoint": 1000, "speed": 100},
            "evals": {"names": ("language", "sparsity", "neurons", "units", "cost"), "split": "test", "batch": 128},
        }
    )


def t5_text_of(size: str) -> ConfigDict:
    """One of three T5s on Python's documentation: "small", "base" and "large", wider and deeper in proportion.

    Batches are small: steps make networks sparse, and these are cheap. All units of all layers are measured on
    training batches every 50 steps, and on the test split at the end.
    """
    d_model, layers, d_ff = {"small": (32, 2, 256), "base": (64, 4, 512), "large": (96, 6, 768)}[size]
    config = t5_text()
    config.batch = 8
    config.model.update({"d_model": d_model, "layers": layers, "decoder_layers": layers, "heads": d_model // 16})
    config.model.mlp.d_ff = d_ff
    config.every.update({"record": 50, "eval": 500, "checkpoint": 500, "speed": 50})
    config.evals.names = ("language", "sparsity", "neurons")
    return config


def t5_c4(size: str = "base", path: str = "c4-prepared", vocabulary: str = "spiece.model") -> ConfigDict:
    """T5 v1.0 trained on C4 as Li et al. 2022 train it: T5X's `base_c4_pretrain` with dropout 0.1, as T5 had it.

    Args:
      size: of `T5_SIZES`.
      path: C4, as `launch.prepare` prepares it with that vocabulary.
      vocabulary: the file of T5's SentencePiece model.
    """
    model = t5_model(size)
    model.dtype = "bfloat16"
    return ConfigDict(
        {
            "name": f"t5_{size}_c4",
            "seed": 0,
            "steps": 100_000,
            "batch": 256,
            "z_loss": 1e-4,
            "model": model,
            "data": {
                "name": "prepared_text",
                "path": path,
                "vocabulary": {"name": "sentencepiece", "path": vocabulary},
                "length": 512,
            },
            "optimizer": {
                "learning_rate": 0.01,
                "rule": {"name": "adafactor"},
                "schedule": {"name": "inverse_square_root", "warmup": 10_000},
                "grad_clip": None,
            },
            "mesh": {"data": -1, "model": 1},
            "every": {"record": 500, "eval": 2000, "checkpoint": 1000, "speed": 100},
            # C4 has no test split.
            "evals": {
                "names": ("language", "sparsity", "neurons", "units", "cost"),
                "split": "validation",
                "batch": 256,
            },
        }
    )


def t5_arm(
    config: ConfigDict,
    layers: int | None = None,
    d_ff: int | None = None,
    k: int | None = None,
    without_skip: str | None = None,
    seed: int = 0,
) -> ConfigDict:
    """A T5 of other sizes, of one seed, named by them: "t5_text_d64_l4_f512_seed0".

    Args:
      layers: of the encoder, and as many of the decoder (Li et al. 2022, Fig. 4a).
      d_ff: hidden units of every MLP (Figs. 4b, 4c).
      k: of Top-k in every MLP (Eq. 9, Fig. 6); "..._k16_seed0".
      without_skip: the layer, "encoder_2", that has no connection around its MLP (Fig. B.5); "..._no_encoder_2_seed0".
    """
    config = config.copy_and_resolve_references()
    model = config.model
    if layers is not None:
        model.layers = model.decoder_layers = layers
    if d_ff is not None:
        model.mlp.d_ff = d_ff
    name = f"{config.name}_d{model.d_model}_l{model.layers}_f{model.mlp.d_ff}"
    if k is not None:
        config = with_top_k(config, k)
        name += f"_k{k}"
    if without_skip is not None:
        config.model.without_skip = (without_skip,)
        name += f"_no_{without_skip}"
    config.name, config.seed = f"{name}_seed{seed}", seed
    return config


def with_top_k(config: ConfigDict, k: int) -> ConfigDict:
    """`config` with Top-k MLPs (Li et al. 2022, Eq. 9), nothing else changed but the name."""
    config = config.copy_and_resolve_references()
    config.model.mlp.sparsifier = ConfigDict({"name": "top_k", "k": k, "act": "relu", "method": "exact"})
    config.name = f"{config.name}_top_{k}"
    return config


def with_predictor(config: ConfigDict, rank: int, candidates: int) -> ConfigDict:
    """`config`, of a Top-k language model, with a predictor of this rank trained beside every MLP, and measured.

    Args:
      candidates: that the search is measured with.
    """
    config = config.copy_and_resolve_references()
    config.model.mlp.predictor = rank
    config.evals.names = (*config.evals.names, "inference")
    config.evals.candidates = candidates
    config.name = f"{config.name}_r{rank}"
    return config
