"""Makes a workdir of somebody else's checkpoint, for launch.evaluate and launch.train; or writes its network back.

python -m launch.convert --source=hf|t5x --model=t5 --path=DIRECTORY --workdir=W [--vocabulary=FILE] [--text=PATH]
python -m launch.convert --to=hf --workdir=W --path=DIRECTORY
"""

from pathlib import Path

import flax
import jax
from absl import flags

from launch import cli
from sparsity import config as config_lib
from sparsity import recipes
from sparsity import run as run_lib
from sparsity.checkpoint import Checkpoints
from sparsity.config import ConfigError, lookup
from sparsity.convert import hf, t5x
from sparsity.convert.tensors import check, load
from sparsity.models.t5 import T5Config
from sparsity.train.state import TrainState
from sparsity.writer import write_json

SOURCES = {
    "hf": ("a directory of Hugging Face, config.json and safetensors", hf.open_t5),
    "t5x": ("a directory of T5X, checkpoint_1000000 with its index and zarr arrays", t5x.open_t5),
}
MODELS = {"t5": "T5 v1.0, v1.1, ByT5, FLAN"}
_list = lambda table: "; ".join(f"{name}: {what}" for name, what in table.items())

_SOURCE = flags.DEFINE_string("source", None, f"what --path is; {_list({k: what for k, (what, _) in SOURCES.items()})}")
_MODEL = flags.DEFINE_string("model", "t5", f"what is in it; {_list(MODELS)}")
_TO = flags.DEFINE_string("to", None, "write the workdir's network to --path as this instead: hf")
_PATH = flags.DEFINE_string("path", None, "the checkpoint", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run", required=True)
_VOCABULARY = flags.DEFINE_string("vocabulary", None, "a SentencePiece model; needed unless tokens are bytes")
_TEXT = flags.DEFINE_string("text", None, "file or directory of .txt files to evaluate on; else Python's documentation")


def convert() -> int:
    """There, or back."""
    if (_SOURCE.value is None) == (_TO.value is None):
        raise ConfigError("--source: either it or --to is needed, e.g. --source=hf")
    lookup(MODELS, _MODEL.value, "--model")
    return _back() if _SOURCE.value is None else _there()


def _there() -> int:
    _, open_t5 = lookup(SOURCES, _SOURCE.value, "--source")
    files = run_lib.Workdir(_WORKDIR.value)
    if files.config.exists():
        raise ConfigError(f"workdir {files.path}: holds a run already; use another")
    found = open_t5(_PATH.value)
    config = run_lib.run_config(
        recipes.t5_checkpoint(config_lib.to_dict(found.model), found.classes, _VOCABULARY.value, _TEXT.value)
    )
    config.data.vocabulary.encode("")  # a file that is missing is named now, not when the run is evaluated
    engine = run_lib.Engine(config)
    shapes = {p: s.shape for p, s in flax.traverse_util.flatten_dict(engine.abstract.params, sep="/").items()}
    check(found.tensors, shapes, found.reader.shapes(), found.ignored)
    files.create()
    params = load(found.tensors, engine.abstract.params, found.reader)
    slots = jax.jit(engine.tx.init, out_shardings=engine.placed.opt_state)(params)
    state = TrainState(jax.device_put(jax.numpy.int32(0), engine.placed.step), params, slots, {})
    with Checkpoints(files.checkpoints, config.keep) as checkpoints:
        checkpoints.save(0, state, {"config": config_lib.to_dict(config)})
    write_json(files.config, config_lib.to_dict(config))  # last: a workdir with a config is whole
    print(f"{sum(map(len, (t.names for t in found.tensors.values())))} tensors of {_PATH.value} are in {files.path}")
    return cli.DONE


def _back() -> int:
    if _TO.value != "hf":
        raise ConfigError(f'--to: unknown format "{_TO.value}"; valid: hf')
    files = run_lib.Workdir(_WORKDIR.value)
    config = files.saved_config()
    if not isinstance(config.model, T5Config):
        raise ConfigError(f"workdir {files.path}: its model is no T5")
    _, state = run_lib.last_state(files)
    hf.write_t5(state.params, config.model, config.data.classes, _PATH.value)
    print(f"the network of step {int(state.step)} is in {Path(_PATH.value)}")
    return cli.DONE


if __name__ == "__main__":
    cli.main(convert)
