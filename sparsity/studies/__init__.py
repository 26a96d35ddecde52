"""The studies, by name; configs/<name>.py declares each one's runs."""

from sparsity.studies.bricken2023 import BRICKEN2023
from sparsity.studies.li2022 import LI2022
from sparsity.studies.price2024 import PRICE2024
from sparsity.studies.quickstart import QUICKSTART
from sparsity.studies.runner import Study

STUDIES: dict[str, Study] = {study.name: study for study in (QUICKSTART, *PRICE2024, *BRICKEN2023, *LI2022)}
