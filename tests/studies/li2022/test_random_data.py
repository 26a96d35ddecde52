import numpy as np
import pytest

from launch.cli import load_study_config
from sparsity.studies.judge import judge
from sparsity.studies.li2022.random_data import (
    RANDOM_DATA,
    Curve,
    curve_width_seed,
    curves,
    findings,
    rates,
    share,
    table,
    threshold,
)
from sparsity.studies.records import named
from sparsity.studies.runner import expand

STUDY = "li2022/random_data"
WIDTHS = (8, 32, 128, 512, 2048)
AS_IN_THE_PAPER = {
    "random": (0.1, 0.2, 0.4, 0.3, 0.2),
    "infinite": (0.01, 0.02, 0.02, 0.03, 0.03),
    "real": (0.5, 0.4, 0.3, 0.2, 0.1),
}
RATES = {"sgd": ("SGD", 0.0), "momentum": ("SGD", 0.9), "adam": ("AdamW", None)}  # the rule and its momentum
FITS = {"random": (0.2, 0.5, 0.95, 1.0, 1.0), "infinite": (0.1,) * 5, "real": (0.95, 1.0, 1.0, 1.0, 1.0)}


def network(shares=AS_IN_THE_PAPER, fits=FITS, larger=0.9):
    """Shares at the end, from one half, and training accuracies by data and width; times `larger` at larger rates."""

    def how(config):
        curve, width, _ = curve_width_seed(config.name)
        end = shares[curve.data][WIDTHS.index(width)]
        end *= larger if curve.rate == {"sgd": 0.5, "momentum": 0.1, "adam": 5e-3}[curve.optimizer] else 1
        accuracy = fits[curve.data][WIDTHS.index(width)]
        return {"share": lambda layer, t: end if t > 0.8 else 0.5 + t * (end - 0.5), "train": lambda t: accuracy}

    return how


@pytest.fixture
def paper(ends):
    return ends(STUDY, network())


def test_networks_as_the_paper_says_reproduce_every_claim(paper, verdicts):
    assert len(paper) == 171
    found = verdicts(RANDOM_DATA, paper)
    assert len(found) == 18
    assert set(found.values()) == {"reproduced"}


def test_networks_of_the_opposite_kind_contradict_every_claim(ends, verdicts):
    """A trough where the data are fitted, denser with endless data, with width and with the rate."""
    shares = {"random": (0.4, 0.3, 0.2, 0.3, 0.39), "infinite": (0.55,) * 5, "real": (0.1, 0.2, 0.3, 0.4, 0.5)}
    found = verdicts(RANDOM_DATA, ends(STUDY, network(shares, larger=1.1)))
    assert set(found.values()) == {"contradicted"}


def test_a_peak_far_from_the_threshold_is_a_peak(ends, verdicts):
    fits = FITS | {"random": (0.2, 0.3, 0.4, 0.5, 0.95)}
    found = verdicts(RANDOM_DATA, ends(STUDY, network(fits=fits)))
    assert (found["L18.hump.adam"], found["L18.threshold.adam"]) == ("reproduced", "contradicted")


@pytest.mark.parametrize(
    ("random", "why"),
    [((0.2,) * 5, "random data: no network fits them"), ((1.0,) * 5, "random data: the narrowest network fits them")],
)
def test_without_a_threshold_within_the_widths_a_peak_there_is_not_judged(ends, random, why):
    records = ends(STUDY, network(fits=FITS | {"random": random}))
    found = {c.id: judge(c, records) for c in RANDOM_DATA.claims}
    for id in ("hump", "threshold"):
        assert found[f"L18.{id}.sgd"].verdict == "not testable"
        assert found[f"L18.{id}.sgd"].measured.failed == why
    assert found["L18.real.sgd"].verdict == "reproduced"


def test_real_data_that_the_narrowest_network_does_not_fit_are_not_judged(ends):
    records = ends(STUDY, network(fits=FITS | {"real": (0.5, 1.0, 1.0, 1.0, 1.0)}))
    (real,) = [judge(c, records) for c in RANDOM_DATA.claims if c.id == "L18.real.momentum"]
    assert "the narrowest network has only 0.50 of them right" in real.measured.failed


def test_without_runs_nothing_can_be_judged_and_a_diverged_one_is_no_evidence(ends, verdicts):
    assert set(verdicts(RANDOM_DATA, []).values()) == {"not testable"}
    broken = ("mlp32_digits_infinite_sgd_rate0.2_seed0",)
    records = ends(STUDY, network(), broken=broken)
    found = verdicts(RANDOM_DATA, records)
    unclear = {id for id, verdict in found.items() if verdict == "undecided"}
    assert unclear == {"L18.infinite.sgd", "L18.infinite_falls.sgd", "L18.rate.sgd"}
    rows = {(r["data"], r["optimizer"], r["rate"], r["width"]): r for r in table(records)}
    assert rows["infinite", "sgd", 0.2, 32]["n"] == 2


def test_curves_are_by_rate_and_width(paper):
    runs = named(paper)
    assert rates(runs, "adam") == [1e-3, 5e-3]
    assert len(curves(runs)) == 18
    assert list(curves(runs)[Curve("random", "sgd", 0.2)]) == list(WIDTHS)
    assert curve_width_seed("mlp131072_mnist_real_adam_rate1e-05_seed1") == (Curve("real", "adam", 1e-5), 131_072, 1)


def test_a_share_is_the_mean_of_the_last_tenth_of_the_records(ends):
    late = lambda config: network()(config) | {"share": lambda layer, t: 1.0 if t > 0.925 else 0.0}
    assert share(ends(STUDY, late)[0]) == pytest.approx(3 / 4)


def test_the_threshold_is_the_narrowest_width_that_fits():
    assert [threshold(a) for a in ((0.1, 0.9, 0.8, 1.0), (1.0,), (0.5, 0.6))] == [1, 0, 2]


def test_the_table_has_a_row_for_each_network(paper):
    rows = {(r["data"], r["optimizer"], r["rate"], r["width"]): r for r in table(paper)}
    assert len(rows) == 57
    one = rows["random", "adam", 1e-3, 128]
    assert (one["start"], one["nonzero"], one["train"]) == pytest.approx((0.5001, 0.4001, 0.9501))
    assert rows["real", "sgd", 0.5, 32]["nonzero"] == pytest.approx(0.3601)


def test_figures_show_shares_and_accuracies_of_both_sets_of_rates(paper, views):
    runs = views(paper)
    for figure, factor, widths in zip(RANDOM_DATA.figures.values(), (1, 0.9), ([0, 1, 2, 3, 4], [1, 3]), strict=True):
        axes = figure(runs).figure.axes
        assert len(axes) == 9
        shares, accuracies = (line.get_ydata() for line in axes[3].lines if line.get_linestyle() in ("-", "--"))
        np.testing.assert_allclose(shares, 100 * (factor * np.array(AS_IN_THE_PAPER["random"])[widths] + 1e-4))
        np.testing.assert_allclose(accuracies, 100 * (np.array(FITS["random"])[widths] + 1e-4))
    assert "(0.03)" in RANDOM_DATA.figures["Nonzeros and accuracy by width"](runs).figure.axes[1].get_title()


def test_findings_are_a_sentence_a_curve_of_the_smaller_rates(paper):
    said = findings(paper)
    assert len(said) == 9
    assert (
        "random data, SGD at 0.2: nonzero 10.0% at width 8, at most 40.0% at width 128, 20.0% at width 2048; "
        "the data are fitted from width 128 on." in said
    )


def test_the_papers_scale_has_every_width_of_the_paper_on_mnist():
    """App. E: seven widths, three data sets, three optimizers; two rates each (Figs. E.1, E.2)."""
    runs = {run.name: run for run in expand(load_study_config(STUDY).sweep, "paper")}
    found = [curve_width_seed(name) for name in runs]
    assert {width for _, width, _ in found} == {32, 128, 512, 2048, 8192, 32_768, 131_072}
    assert {(curve.data, curve.optimizer) for curve, _, _ in found} == {(d, o) for d in AS_IN_THE_PAPER for o in RATES}
    assert len(found) == 7 * 3 * 3 * 2
    for name, run in runs.items():
        curve, width, seed = curve_width_seed(name)
        assert (run.model.widths, run.optimizer.learning_rate, run.seed) == ((width,), curve.rate, seed)
        assert (type(run.optimizer.rule).__name__, getattr(run.optimizer.rule, "momentum", None)) == RATES[
            curve.optimizer
        ]
