"""The models, by name.

A model is a frozen dataclass of settings with `task` (its loss, by name), `inputs` (the entries
of a batch that its module takes), `build(classes)`, `check_input(shape)`, `reduced(parts)`, a small
one of the same kind for `--smoke`, and its costs per token: `skippable_flops(shape, classes)`, what
zeros can save by the name each layer records under, and `flops(shape, classes, density)`; `shape` is
that of the first input. Those whose first layer is a matrix have `encoder(params)`, its weights and biases, and `phi`.
"""

from sparsity.models.alexnet import AlexNetConfig
from sparsity.models.autoencoder import AutoencoderConfig
from sparsity.models.convmixer import ConvMixerConfig
from sparsity.models.deep_cnn import DeepCNNConfig
from sparsity.models.deep_mlp import DeepMLPConfig
from sparsity.models.gpt2 import GPT2Config
from sparsity.models.mlp import MLPClassifierConfig
from sparsity.models.vit import ViTConfig

MODELS = {
    "vit": ViTConfig,
    "gpt2": GPT2Config,
    "deep_mlp": DeepMLPConfig,
    "deep_cnn": DeepCNNConfig,
    "mlp": MLPClassifierConfig,
    "autoencoder": AutoencoderConfig,
    "alexnet": AlexNetConfig,
    "convmixer": ConvMixerConfig,
}
