"""The datasets, by name."""

from sparsity.data.digits import Digits
from sparsity.data.latents import Latents
from sparsity.data.mock import Mock, MockText
from sparsity.data.photos import Photos
from sparsity.data.prepared import PreparedText
from sparsity.data.span_corruption import MockSpans, SpanCorruption
from sparsity.data.text import Text, WikiText
from sparsity.data.tfds_sources import CIFAR10, CIFAR100, MNIST, SVHN

SOURCES = {
    "digits": Digits,
    "photos": Photos,
    "latents": Latents,
    "text": Text,
    "mnist": MNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn_cropped": SVHN,
    "wikitext": WikiText,
    "span_corruption": SpanCorruption,
    "prepared_text": PreparedText,
    "mock": Mock,
    "mock_text": MockText,
    "mock_spans": MockSpans,
}
