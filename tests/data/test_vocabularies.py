"""Vocabularies that libraries read from files: made here, of Python's documentation, in the layout of the published."""

import json

import numpy as np
import pytest

from sparsity.config import ConfigError, build
from sparsity.data import SOURCES
from sparsity.data.corpora import PythonDocs
from sparsity.data.next_tokens import NextTokens
from sparsity.data.span_corruption import Corruption, corrupt, fill
from sparsity.data.text import Text
from sparsity.data.vocabularies import ENDS, EOS, PAD, Bytes, SentencePiece, TokenizerFile

TEXT = "The for statement is used to iterate over the elements of a sequence."
UNKNOWN = 2


@pytest.fixture(scope="module")
def text():
    return PythonDocs().documents("validation")[0]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory, text):
    """A unigram model with T5's special pieces: padding 0, end 1, unknown 2, and no beginning."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text.txt").write_text(text)
    special = {"pad_id": PAD, "eos_id": EOS, "unk_id": UNKNOWN, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "spiece"), vocab_size=300, minloglevel=2, **special
    )
    return SentencePiece(str(folder / "spiece.model"), extra=100, classes=416)


@pytest.fixture(scope="module")
def words(tmp_path_factory, text):
    """A WordPiece vocabulary with BERT's special tokens."""
    import tokenizers

    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.decoder = tokenizers.decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    model.train_from_iterator([text], trainer)
    # As published files do: it would cut texts, pad them and put tokens around them.
    model.enable_truncation(4)
    model.enable_padding(length=64)
    model.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    model.save(str(path))
    return TokenizerFile(str(path), classes=304)


def test_pieces_have_the_layout_of_t5_and_make_the_text_again(pieces):
    tokens = pieces.encode(TEXT)
    assert tokens.dtype == np.int32
    assert 10 < len(tokens) < len(TEXT)
    assert tokens.min() > UNKNOWN
    assert tokens.max() < 300
    assert (pieces.sentinel, pieces.sentinels, pieces.words, pieces.marks) == (399, 100, (3, 300), (398, 397))
    with pytest.raises(ConfigError, match=r"^data\.vocabulary\.extra: 2 are too few to mask a token and to mark two"):
        SentencePiece(pieces.path, extra=2).marks  # noqa: B018
    assert pieces.decode(np.concatenate([[399], tokens, [EOS, PAD]])) == TEXT


def test_spans_of_pieces_are_taken_out_and_filled_in(pieces):
    tokens = pieces.encode(TEXT)
    mask = Corruption().mask(len(tokens), np.random.default_rng(0))
    inputs, targets = corrupt(tokens, mask, pieces)
    assert inputs.max() == 399
    assert pieces.decode(fill(inputs, targets, pieces)) == TEXT


def test_pieces_and_sentinels_must_fit_into_the_embedding(pieces):
    with pytest.raises(ValueError, match=r"^classes: 399 are too few for 400 pieces and sentinels$"):
        SentencePiece(pieces.path, extra=100, classes=399)


def test_the_end_is_the_vocabularys_own(pieces, words, tmp_path):
    import tokenizers

    assert (Bytes().end, pieces.end, words.end, Text(length=8).vocabulary.end) == (EOS, EOS, None, None)
    for i, end in enumerate(ENDS):
        model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2, end: 3}, unk_token="a"))
        model.save(str(tmp_path / f"{i}.json"))
        assert TokenizerFile(str(tmp_path / f"{i}.json"), classes=4).end == 3


def test_plain_bytes_are_those_of_the_text_and_nothing_else():
    plain = Text(length=8).vocabulary
    np.testing.assert_array_equal(plain.encode("aü"), list("aü".encode()))
    assert plain.decode(plain.encode("aü")) == "aü"
    assert (plain.classes, plain.sentinels) == (Text(length=8).classes, 0)


def test_a_tokenizer_adds_cuts_and_pads_nothing(words):
    tokens = words.encode(TEXT)
    assert 10 < len(tokens) < len(TEXT)
    assert tokens.min() > 4
    assert words.decode(tokens).replace(" ", "") == TEXT.replace(" ", "")
    assert (words.sentinel, words.sentinels, words.words[0], words.marks) == (4, 1, 0, (2, 3))
    assert 100 < words.words[1] <= 300


def test_masked_text_masks_with_the_tokenizers_own_token(words):
    section = {"name": "tokenizer", "path": words.path, "classes": words.classes}
    source = build(SOURCES["masked_text"], {"vocabulary": section, "length": 32})
    split, rng, masked = source.load("train"), np.random.default_rng(0), []
    for _ in range(40):
        example = source.augment(split[0], rng)
        masked += (example["tokens"] == 4)[example["target_segments"] == 1].tolist()
        assert not (example["tokens"] == 4)[example["target_segments"] == 0].any()
    assert len(masked) == 200  # 15% of 32 tokens, forty times
    # Four fifths, and five binomial standard errors.
    assert abs(np.mean(masked) - 0.8) < 5 * (0.8 * 0.2 / 200) ** 0.5
    assert source.classes == 304


def test_next_tokens_are_the_text_one_token_later(words):
    source = NextTokens(vocabulary=words, length=16, stride=5)
    train, test = source.load("train"), source.load("test")
    tokens = np.concatenate([words.encode(part) for part in PythonDocs().documents("test")])
    first, last = test[0], test[len(test) - 1]
    np.testing.assert_array_equal(first["tokens"], tokens[:16])
    np.testing.assert_array_equal(first["targets"], tokens[1:17])
    np.testing.assert_array_equal(last["tokens"], tokens[16 * (len(test) - 1) :][:16])
    assert len(test) == (len(tokens) - 1) // 16
    np.testing.assert_array_equal(train[1]["tokens"][:11], train[0]["tokens"][5:])


def test_a_short_text_is_refused_with_its_number_of_tokens(words, tmp_path):
    (tmp_path / "text.txt").write_text("word " * 100)
    section = {"corpus": {"name": "files", "path": str(tmp_path / "text.txt")}, "length": 200}
    source = build(NextTokens, section)
    with pytest.raises(ConfigError, match=r"^data: the test split has \d+ tokens, and a window takes 201$"):
        source.load("test")
    with pytest.raises(ConfigError, match=r"stride: must be at least 1, got 0"):
        build(NextTokens, {"stride": 0})


def test_files_that_are_missing_broken_or_too_large_are_named(words, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^data\.vocabulary\.path: there is no file none\.json; nothing is downloaded"
    ):
        TokenizerFile("none.json", 10).encode("a")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(ConfigError, match=r"^data\.vocabulary\.path: .*tokenizer\.json is no tokenizer\.json \("):
        TokenizerFile(str(tmp_path / "tokenizer.json"), 10)
    with pytest.raises(ValueError, match=r"^classes: 10 are too few for \d+ tokens$"):
        TokenizerFile(words.path, 10)
