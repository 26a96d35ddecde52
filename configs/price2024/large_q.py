"""Beyond Price et al. 2024: a larger fixed point q* (Dent & Tanner 2026 report 90% sparsity with it).

Claim: none of the paper's; asked: up to which s do the networks train, and what of a larger q* is more than a rescale?
At initialisation q* is a pure rescale when tau, m, biases and input scale with sqrt(q*): hidden layers are sqrt(q*)
times those at q* = 1, logits too. `q_logits` divides these by sqrt(q*) again, so that only the rate of the biases
differs; `q_input` leaves the input at variance 1; `q_clip` leaves the clip at its value for q* = 1.
Command: python -m launch.reproduce --study=price2024/large_q --workdir=runs/price2024
Hardware: 2 CPU cores, 20 minutes beside table2.
Expected: nothing is printed for these networks.
assumed: embedded scale only; CReLU with V' = .7; q* = 4; everything else as in table2 and table2_cnn.
"""

from ml_collections import ConfigDict

from sparsity import recipes

BASES = {"embedded": recipes.deep_mlp_digits}
Q = 4.0
ARMS = ("q", "q_logits", "q_input", "q_clip")
SEEDS = 3
CLIP = (
    1.281551566,
    1.063207517,
)  # tau and m of CReLU at s = .9, V' = .7, q* = 1: `theory.edge_of_chaos.solve(0.9, 0.7)`


def get_config(arg: str = "crelu_0.9_0.7") -> ConfigDict:
    """The first run of a row of Table 2's kind, followed by "/ARM" for one at the larger q*."""
    row, _, arm = arg.partition("/")
    return _arm(recipes.price_run(BASES, row), arm)


def _arm(config: ConfigDict, arm: str) -> ConfigDict:
    if arm not in ("", *ARMS):
        raise ValueError(f'unknown arm "{arm}"; valid: {", ".join(ARMS)}')
    if arm != "q_clip":
        return recipes.with_large_q(config, Q, arm) if arm else config
    made_for = {"name": "clipped_relu", "sparsity": 0.9, "slope": 0.7}
    if config.model.sparsifier.to_dict() != made_for:
        raise ValueError(f"q_clip: its clip is that of crelu_0.9_0.7, not of {config.name}")
    tau, m = CLIP
    config = recipes.with_large_q(config, Q, "q")
    config.model.sparsifier = ConfigDict({"name": "clipped_relu", "tau": tau * Q**0.5, "m": m})
    config.name = config.name.removesuffix(f"q{Q:g}") + f"q_clip{Q:g}"
    return config


def sweep(scale: str) -> list[ConfigDict]:
    """The deep MLP at s = .85, .9, .95 with q* = 1 and 4, every control at .9; the CNN at .9 with both."""
    if scale not in BASES:
        raise ValueError(f'configs/price2024/large_q.py has no scale "{scale}"; valid: embedded')
    runs = recipes.price_sweep(BASES[scale](), ("relu",), SEEDS)
    for s in (0.85, 0.9, 0.95):
        for config in recipes.price_sweep(BASES[scale](), (f"crelu_{s}_0.7",), SEEDS):
            arms = ARMS if s == 0.9 else ARMS[:1]
            runs += [config, *(_arm(config, arm) for arm in arms)]
    runs += recipes.price_sweep(recipes.deep_cnn_digits(), ("relu",), SEEDS)
    for config in recipes.price_sweep(recipes.deep_cnn_digits(), ("crelu_0.9_0.7",), SEEDS):
        runs += [config, _arm(config, "q")]
    return runs
