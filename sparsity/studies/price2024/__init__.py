"""Price et al. 2024, "Deep Neural Network Initialization with Sparsity Inducing Activations": a file for each study."""

from sparsity.studies.price2024.depth100 import DEPTH100
from sparsity.studies.price2024.fig5 import FIG5
from sparsity.studies.price2024.initial import INITIAL
from sparsity.studies.price2024.large_q import LARGE_Q
from sparsity.studies.price2024.maps import MAPS
from sparsity.studies.price2024.residual import RESIDUAL
from sparsity.studies.price2024.smooth import SMOOTH
from sparsity.studies.price2024.stable_clip import STABLE_CLIP
from sparsity.studies.price2024.table1 import TABLE1
from sparsity.studies.price2024.table2 import TABLE2
from sparsity.studies.price2024.table2_cnn import TABLE2_CNN

PRICE2024 = (MAPS, TABLE1, TABLE2, TABLE2_CNN, INITIAL, FIG5, DEPTH100, SMOOTH, LARGE_Q, RESIDUAL, STABLE_CLIP)
