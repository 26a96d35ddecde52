"""Li et al. 2022, "Large Models are Parsimonious Learners" ("The Lazy Neuron Phenomenon"): a file for each study."""

from sparsity.studies.li2022.bert import BERT
from sparsity.studies.li2022.fig7 import FIG7
from sparsity.studies.li2022.front import FRONT
from sparsity.studies.li2022.mixer import MIXER_STUDY
from sparsity.studies.li2022.optimizers import OPTIMIZERS
from sparsity.studies.li2022.penalties import PENALTIES
from sparsity.studies.li2022.random_data import RANDOM_DATA
from sparsity.studies.li2022.relufied import RELUFIED
from sparsity.studies.li2022.resnets import RESNETS
from sparsity.studies.li2022.robustness_source import ROBUSTNESS_SOURCE
from sparsity.studies.li2022.t5_no_skip import T5_NO_SKIP
from sparsity.studies.li2022.t5_prevalence import T5_PREVALENCE
from sparsity.studies.li2022.t5_scale import T5_SCALE
from sparsity.studies.li2022.t5_top_k import T5_TOP_K
from sparsity.studies.li2022.table1 import TABLE_1
from sparsity.studies.li2022.theorem import THEOREM
from sparsity.studies.li2022.vit_causes import VIT_CAUSES
from sparsity.studies.li2022.vit_prevalence import VIT_PREVALENCE
from sparsity.studies.li2022.vit_top_k import VIT_TOP_K

LI2022 = (
    T5_PREVALENCE,
    VIT_PREVALENCE,
    T5_SCALE,
    VIT_CAUSES,
    T5_TOP_K,
    VIT_TOP_K,
    FIG7,
    TABLE_1,
    THEOREM,
    BERT,
    MIXER_STUDY,
    RESNETS,
    T5_NO_SKIP,
    OPTIMIZERS,
    PENALTIES,
    RANDOM_DATA,
    FRONT,
    ROBUSTNESS_SOURCE,
    RELUFIED,
)
