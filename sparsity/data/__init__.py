"""The datasets, by name."""

from sparsity.data.digits import Digits

SOURCES = {"digits": Digits}
