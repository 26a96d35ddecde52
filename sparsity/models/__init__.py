"""The models, by name.

A model is a frozen dataclass of settings with `task` (its loss, by name), `inputs` (the entries
of a batch that its module takes), `build(classes)`, `check_input(shape)`, `mlps()` and
`flops(shape, classes, density)`.
"""

from sparsity.models.vit import ViTConfig

MODELS = {"vit": ViTConfig}
