"""Price et al. 2024, Table 2, the deep CNN."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim
from sparsity.studies.price2024.runs import (
    EXTRA_FIXED_POINTS,
    accuracy,
    gain,
    largest_gap,
    least_gap,
    loss_by_row,
    over_seeds,
)
from sparsity.studies.price2024.table2 import FAILS, against_paper, dots, drift, findings
from sparsity.studies.runner import Record, Row, Study


def table(records: Sequence[Record]) -> list[Row]:
    """Every row of Table 2: the paper's test accuracy and sparsity of its CNN (one run) beside ours.

    Accuracy: mean, standard deviation and standard error over n seeds, a diverged run counting as chance; "not run"
    where none was trained. Best validation: the largest accuracy of a run's nine validations, mean over runs (a run
    may end on a loss spike). Zeros: share of zeros on the test split, mean over the runs that did not diverge.
    """
    return against_paper(records, "cnn_acc", "cnn_sparsity")


def accuracy_by_row(runs: Runs) -> Drawing:
    """Test accuracy of every run by row: dots, a cross at chance if it diverged; the paper's run as a bar."""
    return dots(runs, "cnn_acc")


CRELU = ("crelu_0.7_0.7", "crelu_0.85_0.5", "crelu_0.85_0.7", "crelu_0.85_0.9")

CLAIMS = (
    Claim(
        id="P7",
        where="Table 2, CNN",
        statement="CReLU trains in every cell (here: within 10 points of ReLU in the cells that were run)",
        effect=f"test accuracy of the worst of {', '.join(CRELU)} less that of ReLU",
        unit="seed",
        side="above",
        threshold=-FAILS,
        measure=functools.partial(over_seeds, rows=CRELU, value=least_gap),
    ),
    Claim(
        id="P7.keeps",
        where="Table 2, CNN",
        statement="ReLU's accuracy is kept to s = .7 (within 2 points)",
        effect="test accuracy of crelu_0.7_0.7 less that of ReLU",
        unit="seed",
        side="above",
        threshold=-0.02,
        measure=gain("crelu_0.7_0.7", over="relu"),
    ),
    Claim(
        id="P7.loses",
        where="Table 2, CNN",
        statement="accuracy is lost at s = .85 (the paper: 4 to 6 points)",
        effect="test accuracy of the best of crelu_0.85 at V' = .5, .7, .9, less that of ReLU",
        unit="seed",
        side="below",
        threshold=0.0,
        measure=functools.partial(over_seeds, rows=CRELU[1:], value=largest_gap),
    ),
    Claim(
        id="P7.drift",
        where="Table 2, CNN",
        statement="sparsity drifts by no more than .03",
        effect=f"largest |share of zeros - s| of {', '.join(CRELU)}",
        unit="seed",
        side="below",
        threshold=0.03,
        measure=functools.partial(over_seeds, rows=CRELU, value=drift),
    ),
    Claim(
        id="P7.unclipped",
        where="Table 2, CNN",
        statement="ReLU_tau at s = .6 trains in the CNN (here: within 10 points of ReLU)",
        effect="test accuracy of relu_tau_0.6 less that of ReLU",
        unit="seed",
        side="above",
        threshold=-FAILS,
        measure=gain("relu_tau_0.6", over="relu"),
    ),
    Claim(
        id="P1.cnn",
        where="Table 2, CNN",
        statement="ReLU_tau at s = .7 does not train in the CNN either (.10)",
        effect="test accuracy of relu_tau_0.7",
        unit="seed",
        side="below",
        threshold=0.2,
        measure=functools.partial(over_seeds, rows=("relu_tau_0.7",), value=lambda runs, _: accuracy(runs[0])),
    ),
    Claim(
        id="P3.cnn",
        where="Table 2, CNN",
        statement="CST .8/.9 and .85/.9 fail in the CNN too (.31, .29)",
        effect="test accuracy of the better of cst_0.8_0.9 and cst_0.85_0.9 less that of ReLU",
        unit="seed",
        side="below",
        threshold=-FAILS,
        measure=functools.partial(over_seeds, rows=EXTRA_FIXED_POINTS, value=largest_gap),
    ),
)

TABLE2_CNN = Study(
    name="price2024/table2_cnn",
    title="Price et al. 2024, Table 2: deep CNNs with sparse activations",
    introduction=(
        "Deep convolutional networks, circular padding, stride 1, initialised on the edge of chaos at q* = 1 and "
        "trained by SGD without momentum; rows as in price2024/table2. The paper trains 50 layers of 300 channels on "
        "CIFAR10; what changed here stands in the config's docstring."
    ),
    findings=findings,
    figures={"Accuracy and sparsity": accuracy_by_row, "Training loss": loss_by_row},
    claims=CLAIMS,
    table=table,
    draws_diverged=True,
)
