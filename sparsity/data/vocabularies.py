"""Vocabularies: text to tokens and back. In those of T5 token 0 is padding, and 1 ends a sequence."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import ClassVar, Protocol

import numpy as np

from sparsity.config import ConfigError, path_of

PAD, EOS = 0, 1
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>")  # of a text, in GPT-2, in Llama 3, and in Llama 1 and 2


class Vocabulary(Protocol):
    """Text to tokens and back.

    Attributes:
      classes: rows of the embedding; tokens are in 0..classes - 1.
      sentinel: the first token that stands for a span; the i-th is `sentinel - i`.
      sentinels: how many there are.
      words: (from, up to) of the tokens that a masked token may be changed to.
      end: the token that ends a text; None: there is none.
      marks: the token that stands before two texts, and the one after each of them. Raises ConfigError without such.
      identity: what decides the tokens of a text, on one line.
    """

    classes: int
    sentinel: int
    sentinels: int
    words: tuple[int, int]
    end: int | None
    marks: tuple[int, int]
    identity: str

    def encode(self, text: str) -> np.ndarray:
        """The tokens of `text` [n], int32, without an end."""

    def decode(self, tokens: np.ndarray) -> str:
        """The text of `tokens`; padding, ends and sentinels are left out."""


@dataclasses.dataclass(frozen=True)
class Bytes:
    """A token a byte of UTF-8: b is 3 + b, 2 is unused (ByT5, Xue et al. 2022).

    Attributes:
      byt5: sentinels are ByT5's, 258 and below, which are also bytes from 255 down: those of letters beyond ASCII
        among them. Without it they are the rows that ByT5 has and leaves unused, 383 down to 259.
    """

    byt5: bool = False

    classes: ClassVar[int] = 384
    offset: ClassVar[int] = 3
    end: ClassVar[int | None] = EOS
    identity: ClassVar[str] = "bytes"

    @property
    def sentinel(self) -> int:
        """The first one."""
        return self.offset + 255 if self.byt5 else self.classes - 1

    @property
    def sentinels(self) -> int:
        """100, T5's number, if they are ByT5's."""
        return 100 if self.byt5 else self.classes - 256 - self.offset

    @property
    def words(self) -> tuple[int, int]:
        """The bytes; those that are sentinels too are left out."""
        return self.offset, self.sentinel - self.sentinels + 1

    @property
    def marks(self) -> tuple[int, int]:
        """The second sentinel and the third."""
        return self.sentinel - 1, self.sentinel - 2

    def encode(self, text: str) -> np.ndarray:
        """The tokens of `text` [n], int32, without an end."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self.offset

    def decode(self, tokens: np.ndarray) -> str:
        """The text of `tokens`; what is no byte is left out, and bytes that are no UTF-8 become U+FFFD."""
        tokens = np.asarray(tokens)
        kept = tokens[(tokens >= self.offset) & (tokens < self.offset + 256)]
        return (kept - self.offset).astype(np.uint8).tobytes().decode(errors="replace")


@dataclasses.dataclass(frozen=True)
class PlainBytes(Bytes):
    """A token a byte of UTF-8, and no other token."""

    classes: ClassVar[int] = 256
    offset: ClassVar[int] = 0
    end: ClassVar[int | None] = None
    identity: ClassVar[str] = "plain bytes"


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """Pieces of a SentencePiece model, the user's file (T5: `spiece.model`), sentinels after them.

    Attributes:
      path: the model's file.
      extra: sentinels, numbered down from the last one (T5: 100).
      classes: rows of the embedding, pieces and sentinels rounded up (T5: 32,128).
    """

    path: str
    extra: int = 100
    classes: int = 32_128

    def __post_init__(self):
        if self.extra < 0:
            raise ValueError(f"extra: must be at least 0, got {self.extra}")
        if self.classes < 1:
            raise ValueError(f"classes: must be at least 1, got {self.classes}")
        # Without its file a run can still be described, and smoked.
        if path_of(self.path, "data.vocabulary.path").is_file() and self.sentinel >= self.classes:
            raise ValueError(f"classes: {self.classes} are too few for {self.sentinel + 1} pieces and sentinels")

    @property
    def identity(self) -> str:
        """The SHA-256 of its file. Raises ConfigError if there is none."""
        return f"sentencepiece {hashlib.sha256(_contents(self.path)).hexdigest()}"

    @property
    def sentinels(self) -> int:
        """How many there are."""
        return self.extra

    @property
    def sentinel(self) -> int:
        """The first one."""
        return self._model.get_piece_size() + self.extra - 1

    @property
    def words(self) -> tuple[int, int]:
        """The pieces, without padding, end and unknown."""
        return EOS + 2, self._model.get_piece_size()

    @property
    def end(self) -> int | None:
        """The model's own: 1 in T5's, 2 in Llama's."""
        end = self._model.eos_id()
        return None if end < 0 else end

    @property
    def marks(self) -> tuple[int, int]:
        """The second sentinel and the third. Raises ConfigError if there are fewer."""
        if self.sentinels < 3:
            raise ConfigError(f"data.vocabulary.extra: {self.extra} are too few to mask a token and to mark two texts")
        return self.sentinel - 1, self.sentinel - 2

    def encode(self, text: str) -> np.ndarray:
        """The tokens of `text` [n], int32, without an end."""
        return np.asarray(self._model.encode(text), np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of `tokens`; padding, ends and sentinels are left out."""
        pieces = self._model.get_piece_size()
        return self._model.decode([int(t) for t in tokens if EOS < t < pieces])

    @functools.cached_property
    def _model(self):
        model = _contents(self.path)
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise ConfigError("data.vocabulary: SentencePiece models need pip install -e '.[tokenizers]'") from error
        try:
            return SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ConfigError(f"data.vocabulary.path: {self.path} is no SentencePiece model") from error


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """The vocabulary of a `tokenizer.json`, the user's file, as checkpoints of Hugging Face have it beside them.

    Nothing is added to a text, neither a first nor a last token. There is no token for spans but, if it has one, that
    which masks ([MASK]).

    Attributes:
      path: the file.
      classes: rows of the embedding, which may be more than there are tokens.
    """

    path: str
    classes: int

    def __post_init__(self):
        if self.classes < 1:
            raise ValueError(f"classes: must be at least 1, got {self.classes}")
        # Without its file a run can still be described, and smoked.
        if path_of(self.path, "data.vocabulary.path").is_file() and self._tokenizer.get_vocab_size() > self.classes:
            raise ValueError(f"classes: {self.classes} are too few for {self._tokenizer.get_vocab_size()} tokens")

    @property
    def identity(self) -> str:
        """The SHA-256 of its file. Raises ConfigError if there is none."""
        return f"tokenizer {hashlib.sha256(_contents(self.path)).hexdigest()}"

    @property
    def sentinels(self) -> int:
        """One if it has a token that masks."""
        return int(self._tokenizer.token_to_id("[MASK]") is not None)

    @property
    def sentinel(self) -> int:
        """The token that masks. Raises ConfigError if there is none."""
        token = self._tokenizer.token_to_id("[MASK]")
        if token is None:
            raise ConfigError(f"data.vocabulary.path: {self.path} has no token [MASK] to mask others with")
        return token

    @property
    def marks(self) -> tuple[int, int]:
        """[CLS] and [SEP]. Raises ConfigError if there is none of them."""
        found = [self._tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]")]
        if None in found:
            raise ConfigError(f"data.vocabulary.path: {self.path} has no tokens [CLS] and [SEP] to mark two texts")
        return found[0], found[1]

    @property
    def words(self) -> tuple[int, int]:
        """All tokens, as Devlin et al. 2019 draw them."""
        return 0, self._tokenizer.get_vocab_size()

    @property
    def end(self) -> int | None:
        """The first of `ENDS` that it has; the file itself does not say which token it is.

        It is the end of a text: of a chat's turn, as Llama 3's <|eot_id|> is, nothing here knows.
        """
        found = (self._tokenizer.token_to_id(name) for name in ENDS)
        return next((token for token in found if token is not None), None)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of `text` [n], int32."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of `tokens`; special ones are left out."""
        return self._tokenizer.decode(np.asarray(tokens).tolist())

    @functools.cached_property
    def _tokenizer(self):
        contents = _contents(self.path)
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ConfigError("data.vocabulary: a tokenizer.json needs pip install -e '.[tokenizers]'") from error
        try:
            tokenizer = Tokenizer.from_str(contents.decode())
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError(f"data.vocabulary.path: {self.path} is no tokenizer.json ({error})") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def _contents(path: str) -> bytes:
    """Of the user's file. Raises ConfigError if there is none."""
    file = path_of(path, "data.vocabulary.path")
    if not file.is_file():
        raise ConfigError(f"data.vocabulary.path: there is no file {path}; nothing is downloaded")
    return file.read_bytes()


VOCABULARIES = {"bytes": Bytes, "sentencepiece": SentencePiece, "tokenizer": TokenizerFile}
