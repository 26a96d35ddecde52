"""Li et al. 2022 at the paper's scale, but for T5: ViT, MLP-Mixer and ResNet on ImageNet, BERT on text.

Images are those of TFDS unless `data.path` names class folders; `data.rand_augment`, `data.crop`, `data.flip` and
`evals.imagenet_c` can be set. Batches of 4096 images of 224 pixels are 2.3 GiB each; two are read ahead, made at once,
and one is in use. Nobody has run these at their full size here.
"""

from __future__ import annotations

from typing import Literal

from ml_collections import ConfigDict

from sparsity.recipes.li2022 import bert_model, mixer_model, resnet_model, vit_model

# Training images that are left when one hundredth is held out to validate; of ImageNet-21k another to test.
_IMAGENET = 1_281_167 * 99 // 100
_IMAGENET_21K = 14_197_122 * 98 // 100
_ADAM = {"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8}


def vit_imagenet(size: str = "B/16") -> ConfigDict:
    """A ReLU ViT trained on ImageNet-1k from scratch (Li et al. 2022, App. A.2; Dosovitskiy et al. 2021, App. B.1).

    180 epochs of batches of 4096; AdamW at 3e-3, 10,000 steps of warm-up, then a half cosine; weight decay .3 times the
    rate, gradients clipped to norm 1, dropout .1.

    assumed: Inception's crop and mirroring and nothing else, as in ImageNet-21k's recipe; images scaled to 256 by their
    shorter side and cropped to 224 to test. assumed: matrices alone decay. assumed: dropout falls on the attention's
    weights too. assumed: no tanh layer in front of the head. assumed: bfloat16 within the network.

    Args:
      size: "SIZE/PATCH" of `VIT_SIZES`.

    Raises:
      ValueError: there is no such size.
    """
    model = _vit(size)
    optimizer = _optimizer(3e-3, {**_ADAM, "weight_decay": 0.3}, {"name": "cosine", "warmup": 10_000})
    data = {"name": "imagenet2012", "crop": "inception", "flip": True, "pixels": "signed"}
    return _run(f"{_named(size)}_imagenet", 180 * _IMAGENET // 4096, 4096, model, data, optimizer)


def vit_imagenet21k(size: str = "B/16") -> ConfigDict:
    """A ReLU ViT trained on ImageNet-21k (Li et al. 2022, App. A.2; Dosovitskiy et al. 2021, App. B.1).

    90 epochs of batches of 4096; AdamW from 1e-3 in a line, after 10,000 steps of warm-up; weight decay .03 times the
    rate, dropout .1; a tanh layer in front of the head.

    assumed: as `vit_imagenet`, but for the tanh layer. assumed: the line ends at 1e-5 and the head's biases start at
    -10, as in the authors' code; gradients clipped to norm 1, which they report for ImageNet-1k. assumed: softmax
    cross-entropy, to which biases that are all -10 are as good as 0; they matter to a loss of each class alone.
    assumed: evaluators see 10,000 images of a split.

    Args:
      size: "SIZE/PATCH" of `VIT_SIZES`.

    Raises:
      ValueError: there is no such size.
    """
    model = _vit(size)
    model.update({"representation": model.d_model, "head_bias": -10.0})
    schedule = {"name": "linear", "warmup": 10_000, "end": 1e-5}
    optimizer = _optimizer(1e-3, {**_ADAM, "weight_decay": 0.03}, schedule)
    data = {"name": "imagenet21k", "crop": "inception", "flip": True, "pixels": "signed", "evaluated": 10_000}
    return _run(f"{_named(size)}_imagenet21k", 90 * _IMAGENET_21K // 4096, 4096, model, data, optimizer)


def mixer_imagenet21k(size: str = "B/16") -> ConfigDict:
    """A ReLU MLP-Mixer trained on ImageNet-21k (Li et al. 2022, App. B.1).

    300 epochs; AdamW at 3e-3, weight decay .03 times the rate, gradients clipped to norm 1, RandAugment of magnitude
    10, no dropout.

    assumed: batches of 4096, 10,000 steps of warm-up and a line to 0, as Tolstikhin et al. 2021 train; two operations
    of RandAugment an image, on Inception's crop, mirrored with odds 1/2. assumed: matrices alone decay; bfloat16
    within the network; evaluators see 10,000 images of a split.

    Args:
      size: of `MIXER_SIZES`.

    Raises:
      ValueError: there is no such size.
    """
    model = mixer_model(size)
    model.dtype = "bfloat16"
    optimizer = _optimizer(3e-3, {**_ADAM, "weight_decay": 0.03}, {"name": "linear", "warmup": 10_000, "end": 0.0})
    data = {"name": "imagenet21k", "crop": "inception", "flip": True, "pixels": "signed", "evaluated": 10_000}
    data["rand_augment"] = {"layers": 2, "magnitude": 10.0}
    name = f"mixer_{size.replace('/', '').lower()}_imagenet21k"
    return _run(name, 300 * _IMAGENET_21K // 4096, 4096, model, data, optimizer)


def resnet_imagenet(depth: int = 18, width: int = 64, optimizer: Literal["sgd", "adam"] = "sgd") -> ConfigDict:
    """A ResNet trained on ImageNet-1k by SGD or by Adam at 3e-3 (Li et al. 2022, App. B.1 and B.2).

    assumed: all of SGD's recipe, which the paper does not print: 90 epochs of batches of 1024, a rate of .4 (.1 a 256
    images), five epochs of warm-up (Goyal et al. 2017), a half cosine, momentum .9, weight decay 1e-4 of matrices and
    kernels, no clipping; Inception's crop, mirroring, pixels less their mean over their deviation. assumed: Adam has
    all of it but rate and momentum; its decay is 1e-4 times the rate, outside its moments.

    Args:
      depth: of `RESNETS`.
      width: channels of the first stage; the paper has 64, 128 and 256 (Fig. B.4).
      optimizer: "sgd" or "adam".

    Raises:
      ValueError: another depth or optimizer.
    """
    rules = {
        "sgd": (0.4, {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}),
        "adam": (3e-3, {**_ADAM, "weight_decay": 1e-4}),
    }
    if optimizer not in rules:
        raise ValueError(f'unknown optimizer of ResNets "{optimizer}"; valid: {", ".join(rules)}')
    rate, rule = rules[optimizer]
    trained = _optimizer(rate, rule, {"name": "cosine", "warmup": 5 * _IMAGENET // 1024})
    trained["grad_clip"] = None
    data = {"name": "imagenet2012", "crop": "inception", "flip": True, "pixels": "standardised"}
    name = f"resnet{depth}_w{width}_{optimizer}_imagenet"
    return _run(name, 90 * _IMAGENET // 1024, 1024, resnet_model(depth, width), data, trained)


def bert_pretraining(
    size: str = "base", path: str = "books-and-wikipedia", vocabulary: str = "bert.model"
) -> ConfigDict:
    """A ReLU BERT that fills in masked tokens (Li et al. 2022, App. B.1; Devlin et al. 2019, App. A.2).

    450,000 steps of batches of 1024; AdamW at 1e-4, betas .9 and .999, eps 1e-6, weight decay .01 times the rate,
    gradients clipped to norm 1, 10,000 steps of warm-up, then a line to 0; dropout .1.

    assumed: sequences of 128 tokens throughout, where Devlin et al. have 512 in the last tenth; documents are strung
    together; no prediction of the next sentence. assumed: a SentencePiece model in the place of WordPiece. assumed:
    matrices alone decay, embeddings do not. assumed: bfloat16 within the network.

    Args:
      size: of `BERT_SIZES`.
      path: text of books and of Wikipedia, as the corpus `files` reads it; all of it is held in memory, as tokens.
      vocabulary: the file of a SentencePiece model.

    Raises:
      ValueError: there is no such size.
    """
    model = bert_model(size)
    model.dtype, model.mlp.dropout = "bfloat16", 0.0
    rule = {**_ADAM, "eps": 1e-6, "weight_decay": 0.01}
    optimizer = _optimizer(1e-4, rule, {"name": "linear", "warmup": 10_000, "end": 0.0})
    data = {
        "name": "masked_text",
        "corpus": {"name": "files", "path": path},
        "vocabulary": {"name": "sentencepiece", "path": vocabulary},
        "length": 128,
    }
    config = _run(f"bert_{size}_text", 450_000, 1024, model, data, optimizer)
    config.evals.names = ("language", "sparsity", "neurons", "cost")
    return config


def _named(size: str) -> str:
    return f"vit_{size.replace('/', '').lower()}"


def _vit(size: str) -> ConfigDict:
    model = vit_model(size)
    model.dtype, model.dropout, model.mlp.dropout = "bfloat16", 0.1, 0.1
    return model


def _optimizer(rate: float, rule: dict, schedule: dict) -> dict:
    return {"learning_rate": rate, "rule": rule, "schedule": schedule, "grad_clip": 1.0}


def _run(name: str, steps: int, batch: int, model: ConfigDict, data: dict, optimizer: dict) -> ConfigDict:
    return ConfigDict(
        {
            "name": name,
            "seed": 0,
            "steps": steps,
            "batch": batch,
            "accumulate": 1,
            "keep": 2,
            "model": model,
            "data": data,
            "optimizer": optimizer,
            "mesh": {"data": -1, "model": 1},
            "every": {"record": 500, "eval": 2500, "checkpoint": 1000, "speed": 100},
            "evals": {
                "names": ("accuracy", "calibration", "robustness", "sparsity", "neurons", "cost"),
                "split": "test",
                "batch": 512,
            },
        }
    )
