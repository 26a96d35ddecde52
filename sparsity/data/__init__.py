"""The datasets, by name."""

from sparsity.data.latents import Latents
from sparsity.data.masked_text import MaskedText, MockPairs
from sparsity.data.mock import MockText
from sparsity.data.next_tokens import NextTokens
from sparsity.data.photos import Photos
from sparsity.data.prepared import PreparedText
from sparsity.data.randomised import LABELLED, NoisyLabels, RandomData, RandomImages, Subset
from sparsity.data.span_corruption import MockSpans, SpanCorruption
from sparsity.data.text import Text, WikiText

SOURCES = {
    **LABELLED,
    "noisy_labels": NoisyLabels,
    "random_images": RandomImages,
    "random_data": RandomData,
    "subset": Subset,
    "photos": Photos,
    "latents": Latents,
    "text": Text,
    "wikitext": WikiText,
    "next_tokens": NextTokens,
    "masked_text": MaskedText,
    "span_corruption": SpanCorruption,
    "prepared_text": PreparedText,
    "mock_text": MockText,
    "mock_pairs": MockPairs,
    "mock_spans": MockSpans,
}
