"""The datasets, by name."""

from sparsity.data.digits import Digits
from sparsity.data.mock import Mock, MockText
from sparsity.data.photos import Photos
from sparsity.data.text import Text, WikiText
from sparsity.data.tfds_sources import CIFAR10, MNIST

SOURCES = {
    "digits": Digits,
    "photos": Photos,
    "text": Text,
    "mnist": MNIST,
    "cifar10": CIFAR10,
    "wikitext": WikiText,
    "mock": Mock,
    "mock_text": MockText,
}
