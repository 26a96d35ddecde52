"""A Llama of SiLU goes on with ReLU: what it costs, how soon it is made up for, and how sparse the MLPs are then.

Claim: beyond Li et al. 2022, whose networks have ReLU from the start: Mirzadeh et al. 2023 ("ReLU strikes back": a
trained network with ReLU in the place of SiLU recovers with little fine-tuning; shifted, ReLU is sparser at no more
cost) and Song et al. 2024 ("Turbo Sparse": ReLU on both branches, dReLU, is sparser still). Beside them Lee et al. 2024
("CATS": half of the activations of SiLU itself, the smallest, can be cut off at hardly a cost).
Command: python -m launch.reproduce --study=li2022/relufied --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/relufied.py:relu --workdir=runs/one
(`pretrained`, `silu`, `relu`, `shifted_relu`, `drelu`, `scratch`.) The middle four start from `pretrained`: they look
for it beside their workdir, in runs/llama_text_seed0-HASH, and run it first if it is not there. So of parts that run at
the same time (--shard) some stop with a line that says who is running it: run them again.
Hardware: 2 CPU cores, 18 runs; not measured yet, about 20 minutes by the 11 to 16 steps/s timed beside other work.
Expected: Song et al.: ReLU in the place of SiLU has about 67% zeros, dReLU nearly 90%, as good as before after 150
billion tokens. Of Mirzadeh et al. the direction: no noticeable loss. Lee et al.: one or two points of what tasks
measure, without fine-tuning.
assumed: (embedded) bytes of Python's documentation, 64 tokens, batch 16; 3 layers of d_model 64 and d_ff 192. The
checkpoint is that of 1,000 steps, a cosine from 2e-3 to 0. It goes on for 300, a third of them where the papers have
a few percent, from 1e-3 to 0 again, the optimizer new. SiLU goes on alike: more training is no merit of ReLU.
assumed: the shifted ReLU has tau .5, a guess; the paper takes its own from the pre-activations of Llama.
assumed: (control) ReLU from the start has all 1,300 steps, one cosine from 2e-3 to 0.
"""

from ml_collections import ConfigDict

from sparsity import recipes

SEEDS = 3
STEPS, MORE = 1000, 300  # of training, and of fine-tuning
RATE = 1e-3  # its peak in fine-tuning, half of that before
ARMS = ("pretrained", *recipes.RELUFIED, "scratch")


def get_config(arg: str = "relu") -> ConfigDict:
    """The first run of an arm."""
    if arg not in ARMS:
        raise ValueError(f'unknown run "{arg}"; valid: {", ".join(ARMS)}')
    return _run(arg, 0)


def _run(arm: str, seed: int) -> ConfigDict:
    if arm == "scratch":
        return recipes.with_seed(recipes.with_mlps(recipes.llama_text(STEPS + MORE), "relu"), seed)
    pretrained = recipes.with_seed(recipes.llama_text(STEPS), seed)
    if arm == "pretrained":
        return pretrained
    config = recipes.fine_tuned(pretrained, arm, MORE, RATE)
    if arm == "silu":
        config.evals.names = (*config.evals.names, "quantiles")
    return config


def sweep(scale: str) -> list[ConfigDict]:
    """Every arm, the one that others start from first, by seed."""
    if scale != "embedded":
        raise ValueError(f'configs/li2022/relufied.py has no scale "{scale}"; valid: embedded')
    return [_run(arm, seed) for seed in range(SEEDS) for arm in ARMS]
