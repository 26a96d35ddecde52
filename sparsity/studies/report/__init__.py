"""Reports: a run's, a study's or a comparison's results for someone who did not run it, as text and as one page."""

from sparsity.studies.report.page import Page, render, runs_page, write_run_report
from sparsity.studies.report.tables import Row, Table, aligned, results_csv, rows_csv, text_rows, text_table
