"""The models, by name.

A model is a frozen dataclass of settings with `task` (its loss, by name), `inputs` (the entries
of a batch that its module takes), `build(classes)`, `check_input(shape)`, `reduced(parts)`, a small
one of the same kind for `--smoke`, and its costs per token: `skippable_flops(shape, classes)`, what
zeros can save by the name each layer records under, and `flops(shape, classes, density)`; `shape` is
that of its inputs, one after the other (`shape_of`). Those whose first layer is a matrix have `encoder(params)`, its
weights and biases, and `phi`. The modules of those that say tokens one by one (T5, GPT-2, Llama) have `start` and
`step`, see `models.decoder`.
"""

from typing import Any

from sparsity.models.alexnet import AlexNetConfig
from sparsity.models.autoencoder import AutoencoderConfig
from sparsity.models.bert import BERTConfig
from sparsity.models.convmixer import ConvMixerConfig
from sparsity.models.deep_cnn import DeepCNNConfig
from sparsity.models.deep_mlp import DeepMLPConfig
from sparsity.models.gpt2 import GPT2Config
from sparsity.models.llama import LlamaConfig
from sparsity.models.mixer import MixerConfig
from sparsity.models.mlp import MLPClassifierConfig
from sparsity.models.resnet import ResNetConfig
from sparsity.models.t5 import T5Config
from sparsity.models.vit import ViTConfig

MODELS = {
    "vit": ViTConfig,
    "mixer": MixerConfig,
    "gpt2": GPT2Config,
    "llama": LlamaConfig,
    "bert": BERTConfig,
    "t5": T5Config,
    "deep_mlp": DeepMLPConfig,
    "deep_cnn": DeepCNNConfig,
    "mlp": MLPClassifierConfig,
    "autoencoder": AutoencoderConfig,
    "resnet": ResNetConfig,
    "alexnet": AlexNetConfig,
    "convmixer": ConvMixerConfig,
}


def shape_of(model: Any, source: Any) -> tuple[int, ...]:
    """Sizes of what `model` reads of an example of `source`: the shapes of its inputs, one after the other."""
    return tuple(size for name in model.inputs for size in source.inputs[name].shape)
