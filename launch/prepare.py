"""Makes rows of tokens of a corpus, once, for runs whose data is "prepared_text". Rerunning a stopped command goes on.

python -m launch.prepare --corpus=json --path=DIRECTORY --out=c4-prepared [--vocabulary=spiece.model] [--workers=8]

--corpus=json is lines of JSON, plain or compressed, as C4 has them (allenai/c4) or WikiExtractor's --json writes them;
parquet is files such as wikimedia/wikipedia's; tfds a dataset that TFDS has prepared in the array_record format; files
is text, .txt. The splits are those of the files; of what has none, or train alone, one hundredth each is held out to
validate and to test. Tokens are bytes, or those of a SentencePiece model.
"""

import signal

from absl import flags

from launch import cli
from sparsity import config as config_lib
from sparsity.convert import prepare as prepare_lib
from sparsity.data.corpora import CORPORA
from sparsity.writer import Progress

_CORPUS = flags.DEFINE_string("corpus", None, f"what --path is; one of {', '.join(CORPORA)}", required=True)
_PATH = flags.DEFINE_string("path", None, "its file or directory; nothing is downloaded")
_FIELD = flags.DEFINE_string("field", None, 'name of the field that has the text, by default "text"')
_OUT = flags.DEFINE_string("out", None, "the directory to make", required=True)
_VOCABULARY = flags.DEFINE_string("vocabulary", None, "a SentencePiece model; without it tokens are bytes")
_CLASSES = flags.DEFINE_integer("classes", 32_128, "rows of the embedding of a SentencePiece model's tokens")
_ROW = flags.DEFINE_integer("row", 568, "tokens of a row; 568 make T5's 512 inputs and 114 targets")
_WORKERS = flags.DEFINE_integer("workers", 1, "processes; each reads a file, or small files together", lower_bound=1)


def prepare() -> int:
    """Prepares, and says what there is."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a scheduler sends is an interrupt too
    corpus = {"name": _CORPUS.value, "path": _PATH.value, "field": _FIELD.value}
    section = {"corpus": {key: value for key, value in corpus.items() if value is not None}, "row": _ROW.value}
    if _VOCABULARY.value:
        section["vocabulary"] = {"name": "sentencepiece", "path": _VOCABULARY.value, "classes": _CLASSES.value}
    preparation = config_lib.build(prepare_lib.Preparation, section, "prepare")
    contents = prepare_lib.prepare(preparation, _OUT.value, _WORKERS.value, Progress())
    for split, counts in contents.splits.items():
        rows = sum(counts.rows)
        left = f"{counts.tokens - rows * contents.row:,} tokens left over"
        print(f"{split}: {counts.documents:,} documents, {rows:,} rows of {contents.row} tokens, {left}")
    print(f"prepared: {_OUT.value}")
    return cli.DONE


if __name__ == "__main__":
    cli.main(prepare)
