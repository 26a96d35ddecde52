import csv
import io

from sparsity.evals.result import Measure
from sparsity.run import Outcome
from sparsity.studies.report import Table, results_csv, rows_csv, text_rows, text_table

OUTCOMES = {
    "one": Outcome("finished", 6, (Measure("accuracy", 0.925, 0.0125, 400, "a share, of n"),)),
    "other": Outcome("diverged", 3),
}
ROWS = [{"arm": "a", "loss": 1 / 3, "n": 3}, {"arm": "long", "loss": None, "n": 12}]


def test_text_has_measures_down_and_runs_across():
    lines = text_table(OUTCOMES).splitlines()
    assert [line.split() for line in lines] == [
        ["measure", "one", "other"],
        ["status", "finished", "diverged(3)"],
        ["accuracy", "92.5", "±", "1.2", "%", "-"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_text_of_rows_is_short_and_their_csv_exact():
    assert text_rows(ROWS).splitlines() == ["arm     loss   n", "a     0.3333   3", "long          12"]
    read = list(csv.DictReader(io.StringIO(rows_csv(ROWS))))
    assert float(read[0]["loss"]) == ROWS[0]["loss"]
    assert read[1]["loss"] == ""


def test_a_diverged_run_has_its_line_too():
    one, other = csv.DictReader(io.StringIO(results_csv(OUTCOMES)))
    assert (one["measure"], float(one["value"]), one["n"], one["definition"]) == (
        "accuracy",
        0.925,
        "400",
        "a share, of n",
    )
    assert (other["status"], other["step"], other["measure"]) == ("diverged", "3", "")


def test_a_table_is_captioned_by_what_makes_it():
    def table(records):
        """Columns: x,
        in nats.
        """

    assert Table.of(table, ROWS).caption == "Columns: x,\nin nats."
