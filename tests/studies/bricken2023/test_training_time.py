import pytest

from sparsity.studies.bricken2023 import training_time
from sparsity.studies.judge import judge

STUDY = training_time.TRAINING_TIME
CLAIMS = {c.id: c for c in STUDY.claims}
SHORT, MIDDLE, LONG = "ae_4000steps", "ae", "ae_24000steps"
GAIN = {training_time.PHASES: 0.5, training_time.PIXELS: 0.5}


@pytest.fixture
def ended(made):
    """ended(changes): the study's runs, their measures changed by variant; those changed to None diverged."""

    def measures_of(changes):
        def measures(variant, sigma, seed):
            change = changes.get(variant, {})
            if change is None:
                return None
            values = dict.fromkeys(training_time.COLUMNS.values(), 0.2) | change
            return {name: value + 0.01 * (seed - 1) * len(variant) for name, value in values.items()}

        return measures

    return lambda changes: made("bricken2023/training_time", measures_of(changes))


VERDICTS = [
    ({LONG: GAIN}, "reproduced"),
    ({SHORT: dict.fromkeys(GAIN, 0.9)}, "contradicted"),
    ({MIDDLE: GAIN, LONG: dict.fromkeys(GAIN, 0.2)}, "undecided"),  # the middle does not count
    ({MIDDLE: GAIN, LONG: None}, "undecided"),  # nor does it stand in for a length that diverged
]


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize(("changes", "verdict"), VERDICTS)
def test_the_verdict_on_made_up_runs(ended, claim, changes, verdict):
    assert judge(CLAIMS[claim], ended(changes)).verdict == verdict


def test_the_table_has_a_line_a_length(ended):
    rows = training_time.table(ended({LONG: GAIN}))
    assert [r["steps"] for r in rows] == [4000, 12_000, 24_000]
    assert [r["n"] for r in rows] == [3, 3, 3]
    assert rows[2]["gabor"] == pytest.approx(0.5)
    assert len(training_time.findings(ended({LONG: None}))) == 3


@pytest.mark.parametrize("claim", CLAIMS)
def test_one_length_alone_is_not_testable(ended, claim):
    records = [r for r in ended({}) if r.config.steps == 4000]
    assert judge(CLAIMS[claim], records).verdict == "not testable"


@pytest.mark.parametrize("heading", STUDY.figures)
def test_every_figure_is_drawn_and_has_a_caption(heading, ended, views):
    figure = STUDY.figures[heading]
    drawing = figure(views(ended({})))
    assert figure.__doc__
    assert all(axis.lines or axis.images for axis in drawing.figure.axes)
