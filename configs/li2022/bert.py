"""Li et al. 2022, Fig. B.1: a BERT with ReLU is sparse in every layer, its pre-activations shift below 0.

Claim: L12 (below 10% nonzero in every layer; mean pre-activation 0 at the start, soon negative).
Command: python -m launch.reproduce --study=li2022/bert --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/bert.py:text --workdir=runs/one
Hardware: 2 CPU cores, 3 runs; not measured yet, about 20 minutes by the steps timed.
Expected: paper: every layer of BERT-Base and BERT-Large ends below 10%, from about half.
assumed: (embedded) bytes of Python's documentation, 64 tokens, 15% of them selected, batch 32, 2,500 steps; 4 layers of
d_model 64 and d_ff 512, dropout 0; BERT's AdamW at 2e-3 in place of 1e-4. The paper's networks read 5,800
times as many texts. Its scale is not here yet.
"""

from ml_collections import ConfigDict

from sparsity import recipes

SEEDS = 3


def get_config(arg: str = "text") -> ConfigDict:
    """The first run of "text"."""
    if arg != "text":
        raise ValueError(f'unknown run "{arg}"; valid: text')
    return sweep("embedded")[0]


def sweep(scale: str) -> list[ConfigDict]:
    """One network, by seed."""
    if scale != "embedded":
        raise ValueError(f'configs/li2022/bert.py has no scale "{scale}"; valid: embedded')
    return [recipes.with_seed(recipes.bert_text(), seed) for seed in range(SEEDS)]
