"""The studies, by name; configs/<name>.py declares each one's runs."""

from sparsity.studies.price2024 import MAPS
from sparsity.studies.price2024_runs import DEPTH100, FIG5, INITIAL, TABLE2, TABLE2_CNN
from sparsity.studies.price2024_variants import LARGE_Q, RESIDUAL, SMOOTH
from sparsity.studies.quickstart import QUICKSTART
from sparsity.studies.runner import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (QUICKSTART, MAPS, TABLE2, TABLE2_CNN, INITIAL, FIG5, DEPTH100, SMOOTH, LARGE_Q, RESIDUAL)
}
