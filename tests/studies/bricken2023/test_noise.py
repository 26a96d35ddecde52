import math

import pytest

from sparsity.evals.noise_effects import LEVELS
from sparsity.studies.bricken2023 import noise
from sparsity.studies.bricken2023.runs import arm_sigma_seed
from sparsity.studies.judge import judge

CLAIMS = {c.id: c for c in noise.CLAIMS}
SHARES = {0.0: 0.8, 0.05: 0.7, 0.1: 0.6, 0.3: 0.4, 0.8: 0.2, 1.5: 0.1, 3.0: 0.05, 10.0: 0.3}


def measures(config, **changed):
    """Those of a network that does what the paper says, and what is `changed`: value by name, from sigma."""
    _, sigma, seed = arm_sigma_seed(config.name)
    wobble = 1 + 1e-3 * seed  # so that no effect is without error
    sparse = sigma >= 0.8
    found = {
        "units.density.hidden": SHARES[sigma] * wobble,
        "units.never.hidden": 0.001 * wobble,
        "units.spread.hidden": 0.1 * wobble,
        "units.z_mean.hidden": -sigma * wobble,
        "units.z_std.hidden": 1.0,
        "units.z_skewness.hidden": sigma * wobble,
        "fields.phases.gabor.above_null": (0.5 if sparse else 0.1) * wobble,
        "fields.phases.centre_surround.above_null": 0.1 * sigma * wobble,
        **{f"covariance.{level:g}": math.exp(-sigma) * wobble for level in LEVELS},
    }
    return found | {name: value(sigma) * wobble for name, value in changed.items()}


def weights(config, bias_std=lambda sigma: 0.1, norm_std=lambda sigma: 0.1):
    _, sigma, seed = arm_sigma_seed(config.name)
    bias = -sigma - 0.1
    return {
        "bias_mean": bias * (1 + 1e-3 * seed),
        "bias_std": bias_std(sigma) * (1 + 2e-3 * seed),
        "norm_mean": 1.0 + sigma,
        "norm_std": norm_std(sigma) * (1 + 1e-3 * seed),
    }


def early(config):
    _, sigma, seed = arm_sigma_seed(config.name)
    return {3.0: 0.3, 10.0: 0.5}.get(sigma, 0.5) + 0.001 * seed * sigma


def test_every_claim_is_reproduced_by_networks_that_do_what_the_paper_says(sweep):
    records = sweep("bricken2023/noise", measures, early, weights)
    assert {c: judge(claim, records).verdict for c, claim in CLAIMS.items()} == dict.fromkeys(CLAIMS, "reproduced")
    rows = noise.table(records)
    assert [(r["arm"], r["sigma"]) for r in rows[:2]] == [("ae400_photos", 0.0), ("ae400_photos", 0.05)]
    assert {r["n"] for r in rows} == {3}
    assert len(noise.findings(records)) == 3


@pytest.mark.parametrize(
    ("claim", "changed"),
    [
        ("B1.photos", {"units.density.hidden": lambda s: 0.5 + 0.1 * (s == 0.3)}),
        ("B1.photos.size", {"units.density.hidden": lambda s: 0.8 - 0.1 * (s > 0)}),
        ("B2.dead", {"units.never.hidden": lambda s: 0.3}),
        ("B2.count", {"units.spread.hidden": lambda s: 0.1 + s}),
        ("B3.mean", {"units.z_mean.hidden": lambda s: s}),
        ("B3.tail", {"units.z_skewness.hidden": lambda s: -s}),
        ("B5.gabor", {"fields.phases.gabor.above_null": lambda s: 0.4 if s == 0 else 0.1}),
        ("B5.surround", {"fields.phases.centre_surround.above_null": lambda s: 1 / (1 + s)}),
        # One level at which it rose is enough.
        ("B11", {f"covariance.{LEVELS[2]:g}": math.exp}),
    ],
)
def test_a_claim_is_contradicted_by_networks_that_do_not(sweep, claim, changed):
    records = sweep("bricken2023/noise", lambda config: measures(config, **changed), early, weights)
    assert judge(CLAIMS[claim], records).verdict == "contradicted"


def test_silent_units_share_no_noise_and_have_no_logarithm(sweep):
    # At sigma 3 of a long run, covariances are 0 or below; a logarithm of that stopped the study.
    silent = {f"covariance.{level:g}": lambda s: math.exp(-s) if s < 0.8 else -1e-9 for level in LEVELS}
    silent["units.density.hidden"] = lambda s: SHARES[s] if s < 0.8 else 0.0
    records = sweep("bricken2023/noise", lambda config: measures(config, **silent), early, weights)
    assert judge(CLAIMS["B11"], records).verdict == "reproduced"
    assert judge(CLAIMS["B1.photos.size"], records).verdict == "undecided"  # nothing active is no sparsity


def test_biases_and_norms_that_drift_apart_contradict(sweep):
    apart = lambda config: weights(config, lambda s: 0.1 + 3 * s, lambda s: 0.1 + 3 * s)
    records = sweep("bricken2023/noise", measures, lambda config: 0.5 - 0.001 * len(config.name), apart)
    for claim in ("B2.bias_spread", "B2.norm_spread"):
        assert judge(CLAIMS[claim], records).verdict == "contradicted"


def test_an_arm_that_was_not_run_is_not_testable(sweep):
    records = [r for r in sweep("bricken2023/noise", measures) if "digits" in r.config.name]
    judged = judge(CLAIMS["B5.gabor"], records)
    assert (judged.verdict, judged.measured.failed) == ("not testable", "no run of ae400_photos")


def test_a_name_says_arm_sigma_and_seed():
    assert arm_sigma_seed("ae400_photos_gaussian0.05_seed2") == ("ae400_photos", 0.05, 2)
    assert arm_sigma_seed("ae400_photos_laplace3_seed0_x") == ("ae400_photos_laplace_x", 3.0, 0)
