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
    hump,
    rates,
    share,
    slope,
    table,
    threshold,
)
from sparsity.studies.records import named
from sparsity.studies.runner import expand

STUDY = "li2022/random_data"
WIDTHS = {"real": (8, 32, 128, 512, 2048), "random": (8, 16, 32, 64, 128, 256, 512), "infinite": (32, 128, 512)}
AS_IN_THE_PAPER = {
    "random": (0.1, 0.15, 0.2, 0.3, 0.4, 0.3, 0.2),
    "infinite": (0.01, 0.02, 0.03),
    "real": (0.5, 0.4, 0.3, 0.2, 0.1),
}
RATES = {"sgd": ("SGD", 0.0), "momentum": ("SGD", 0.9), "adam": ("AdamW", None)}  # the rule and its momentum
FITS = {"random": (0.2, 0.3, 0.5, 0.7, 0.95, 1.0, 1.0), "infinite": (0.1,) * 3, "real": (0.95, 1.0, 1.0, 1.0, 1.0)}


def network(shares=AS_IN_THE_PAPER, fits=FITS, larger=0.9):
    """Shares at the end, from one half, and training accuracies by data and width; at larger rates times `larger`."""

    def how(config):
        curve, width, _ = curve_width_seed(config.name)
        place = WIDTHS[curve.data].index(width)
        end, accuracy = shares[curve.data][place], fits[curve.data][place]
        factor = larger[curve.data] if isinstance(larger, dict) else larger
        end *= factor if curve.rate == {"sgd": 0.5, "momentum": 0.1, "adam": 5e-3}[curve.optimizer] else 1
        return {"share": lambda layer, t: end if t > 0.8 else 0.5 + t * (end - 0.5), "train": lambda t: accuracy}

    return how


@pytest.fixture
def paper(ends):
    return ends(STUDY, network())


def test_networks_as_the_paper_says_reproduce_every_claim(paper, verdicts):
    assert len(paper) == 189
    found = verdicts(RANDOM_DATA, paper)
    assert len(found) == 18
    assert set(found.values()) == {"reproduced"}


def test_networks_of_the_opposite_kind_contradict_every_claim(ends, verdicts):
    """A trough where the data are fitted, denser with endless data, with width and with the rate."""
    random = (0.4, 0.35, 0.3, 0.2, 0.3, 0.35, 0.39)
    shares = {"random": random, "infinite": (0.55,) * 3, "real": (0.1, 0.2, 0.3, 0.4, 0.5)}
    found = verdicts(RANDOM_DATA, ends(STUDY, network(shares, larger=1.1)))
    assert set(found.values()) == {"contradicted"}


@pytest.mark.parametrize(
    ("random", "verdict"),
    [
        ((0.2, 0.3, 0.5, 0.7, 0.8, 0.95, 1.0), "reproduced"),  # crossed at 2^(7 + 2/3), the peak is at 2^7
        ((0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.95), "contradicted"),  # at 2^8.8
        ((0.2, 0.5, 0.95, 1.0, 1.0, 1.0, 1.0), "contradicted"),  # at 2^4.9
    ],
)
def test_a_peak_is_near_the_threshold_within_a_factor_of_two(ends, verdicts, random, verdict):
    found = verdicts(RANDOM_DATA, ends(STUDY, network(fits=FITS | {"random": random})))
    assert (found["L18.hump.adam"], found["L18.threshold.adam"]) == ("reproduced", verdict)


def test_a_seed_that_fits_at_no_width_is_no_evidence_of_the_threshold(ends, verdicts):
    """Of three the mean accuracy still crosses .9."""
    how = lambda config: network(fits=FITS | {"random": (0.2,) * 4 + (0.89,) * 3} if config.seed == 2 else FITS)(config)
    found = verdicts(RANDOM_DATA, ends(STUDY, how))
    assert (found["L18.hump.sgd"], found["L18.threshold.sgd"]) == ("reproduced", "undecided")


@pytest.mark.parametrize(
    ("how", "unlike"),
    [
        (network(AS_IN_THE_PAPER | {"infinite": (0.01, 0.08, 0.01)}), {"infinite"}),  # the mean is below 5%
        (network(larger={"real": 0.5, "random": 0.5, "infinite": 1.1}), {"rate"}),
        (network(AS_IN_THE_PAPER | {"real": (0.3, 0.1, 0.2, 0.3, 0.29)}), {"real"}),  # its ends alone fall
    ],
)
def test_one_width_or_data_set_that_differs_contradicts_what_is_said_of_all(ends, verdicts, how, unlike):
    found = verdicts(RANDOM_DATA, ends(STUDY, how))
    assert {id.split(".")[1] for id, verdict in found.items() if verdict == "contradicted"} == unlike


@pytest.mark.parametrize(
    ("random", "why"),
    [((0.2,) * 7, "random data: no network fits them"), ((1.0,) * 7, "random data: the narrowest network fits them")],
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
    assert list(curves(runs)[Curve("random", "sgd", 0.2)]) == list(WIDTHS["random"])
    assert curve_width_seed("mlp131072_mnist_real_adam_rate1e-05_seed1") == (Curve("real", "adam", 1e-5), 131_072, 1)


def test_a_share_is_the_mean_of_the_last_tenth_of_the_records(ends):
    late = lambda config: network()(config) | {"share": lambda layer, t: 1.0 if t > 0.925 else 0.0}
    assert share(ends(STUDY, late)[0]) == pytest.approx(3 / 4)


def test_the_threshold_is_where_the_accuracy_crosses_nine_tenths():
    """Four fifths of the way from 16 to 32, in log2; where it falls back later, the first time."""
    assert threshold((8, 16, 32), (0.1, 0.5, 1.0)) == pytest.approx(4.8)
    assert threshold((8, 32, 128), (0.1, 0.9, 0.8)) == pytest.approx(5)
    assert np.isnan([threshold((8, 16), a) for a in ((0.9, 1.0), (0.5, 0.6))]).all()


def one_curve(ends, shares):
    """Width -> seed -> run of SGD on random data, `shares[seed]` by width."""
    how = lambda config: network(AS_IN_THE_PAPER | {"random": shares[config.seed]})(config)
    return curves(named(ends(STUDY, how)))[Curve("random", "sgd", 0.2)]


def test_the_densest_width_is_that_of_the_other_seeds(ends):
    """Each seed has a bump of its own at another width: no hump, though the best of each seed's widths is one."""
    of_width = one_curve(ends, [[0.2] + [0.5 if i == seed else 0.2 for i in range(5)] + [0.2] for seed in range(3)])
    assert [hump(of_width, seed) for seed in range(3)] == pytest.approx([0, 0, 0])
    alone = {width: {0: of_seed[0]} for width, of_seed in of_width.items()}
    assert np.isnan(hump(alone, 0))


def test_a_slope_is_the_exponent_of_a_power_law(ends):
    of_width = one_curve(ends, [[width**-0.5 for width in WIDTHS["random"]]] * 3)
    assert slope(of_width, 0) == pytest.approx(-0.5)


def test_the_table_has_a_row_for_each_network(paper):
    rows = {(r["data"], r["optimizer"], r["rate"], r["width"]): r for r in table(paper)}
    assert len(rows) == 63
    one = rows["random", "adam", 1e-3, 128]
    assert (one["start"], one["nonzero"], one["train"]) == pytest.approx((0.5001, 0.4001, 0.9501))
    assert rows["real", "sgd", 0.5, 32]["nonzero"] == pytest.approx(0.3601)


def test_figures_show_shares_and_accuracies_of_both_sets_of_rates(paper, views):
    runs = views(paper)
    for figure, factor, widths in zip(RANDOM_DATA.figures.values(), (1, 0.9), (range(7), [2, 6]), strict=True):
        axes = figure(runs).figure.axes
        assert len(axes) == 9
        shares, accuracies = (line.get_ydata() for line in axes[3].lines if line.get_linestyle() in ("-", "--"))
        np.testing.assert_allclose(shares, 100 * (factor * np.array(AS_IN_THE_PAPER["random"])[list(widths)] + 1e-4))
        np.testing.assert_allclose(accuracies, 100 * (np.array(FITS["random"])[list(widths)] + 1e-4))
    assert "(0.03)" in RANDOM_DATA.figures["Nonzeros and accuracy by width"](runs).figure.axes[1].get_title()


def test_findings_are_a_sentence_a_curve_of_the_smaller_rates(paper):
    said = findings(paper)
    assert len(said) == 9
    assert (
        "random data, SGD at 0.2: nonzero 10.0% at width 8, at most 40.0% at width 128, 20.0% at width 512; "
        "the data are fitted from width 128 on." in said
    )


def test_the_papers_scale_has_every_width_of_the_paper_on_mnist():
    """App. E: seven widths, three data sets, three optimizers; two rates each (Figs. E.1, E.2)."""
    runs = {run.name: run for run in expand(load_study_config(STUDY).sweep, "paper")}
    found = [curve_width_seed(name) for name in runs]
    assert {width for _, width, _ in found} == {32, 128, 512, 2048, 8192, 32_768, 131_072}
    assert {(curve.data, curve.optimizer) for curve, _, _ in found} == {(d, o) for d in AS_IN_THE_PAPER for o in RATES}
    assert len(found) == 7 * 3 * 3 * 2 * 3  # and seeds
    for name, run in runs.items():
        curve, width, seed = curve_width_seed(name)
        assert (run.model.widths, run.optimizer.learning_rate, run.seed) == ((width,), curve.rate, seed)
        assert (type(run.optimizer.rule).__name__, getattr(run.optimizer.rule, "momentum", None)) == RATES[
            curve.optimizer
        ]
