"""The datasets, by name."""

from sparsity.data.digits import Digits
from sparsity.data.mock import Mock
from sparsity.data.photos import Photos
from sparsity.data.tfds_sources import CIFAR10, MNIST

SOURCES = {"digits": Digits, "photos": Photos, "mnist": MNIST, "cifar10": CIFAR10, "mock": Mock}
