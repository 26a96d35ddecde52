"""Makes a workdir of somebody else's checkpoint, for launch.evaluate and launch.train; or writes its network back.

python -m launch.convert --source=hf|t5x --model=t5 --path=DIRECTORY --workdir=W [--vocabulary=FILE] [--text=PATH]
python -m launch.convert --source=hf --model=gpt2|bert|llama --path=DIRECTORY --workdir=W --vocabulary=FILE [--text=P]
python -m launch.convert --source=hf|timm|npz --model=vit|resnet --path=PATH --workdir=W [--data=NAME [--set=key=value]]
python -m launch.convert --to=hf --workdir=W --path=DIRECTORY
"""

from pathlib import Path
from typing import Any

from absl import flags

from launch import cli
from sparsity import config as config_lib
from sparsity import recipes
from sparsity import run as run_lib
from sparsity.checkpoint import Checkpoints
from sparsity.config import ConfigError
from sparsity.convert import hf
from sparsity.convert.checkpoints import MODELS, SOURCES, TEXT, check_images, images_of, open_checkpoint
from sparsity.convert.tensors import Opened, check_state, load
from sparsity.data.randomised import LABELLED
from sparsity.writer import Progress, write_json

_list = lambda table: "; ".join(f"{name}: {what}" for name, what in table.items())

_SOURCE = flags.DEFINE_string("source", None, f"what --path is; {_list({k: what for k, (what, _) in SOURCES.items()})}")
_MODEL = flags.DEFINE_string("model", "t5", f"what is in it; {_list(MODELS)}")
_TO = flags.DEFINE_string("to", None, "write the workdir's network, a T5 or a ViT, to --path as this instead: hf")
_PATH = flags.DEFINE_string("path", None, "the checkpoint", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run", required=True)
_VOCABULARY = flags.DEFINE_string("vocabulary", None, "a SentencePiece model or a tokenizer.json; ByT5 needs none")
_TEXT = flags.DEFINE_string("text", None, "file or directory of .txt files to evaluate on; else Python's documentation")
_DATA = flags.DEFINE_string("data", None, f"images to evaluate on, else noise; one of {', '.join(LABELLED)}")
_ACTIVATION = flags.DEFINE_string("activation", None, "in the MLPs, in the place of their own: relu, to fine-tune it")
_NEXT_SENTENCE = flags.DEFINE_bool("next_sentence", False, "take a BERT's head for the next sentence too")
_SET = flags.DEFINE_multi_string("set", [], "key=value of --data's settings; may be repeated")


def convert() -> int:
    """There, or back."""
    if (_SOURCE.value is None) == (_TO.value is None):
        raise ConfigError("--source: either it or --to is needed, e.g. --source=hf")
    return _back() if _SOURCE.value is None else _there()


def _there() -> int:
    files = run_lib.Workdir(_WORKDIR.value)
    if files.config.exists():
        raise ConfigError(f"workdir {files.path}: holds a run already; use another")
    files.refuse_remains()
    found = open_checkpoint(_SOURCE.value, _MODEL.value, _PATH.value, _NEXT_SENTENCE.value)
    model = {"name": _MODEL.value, **config_lib.to_dict(found.model)}
    if _ACTIVATION.value is not None:
        if "mlp" not in model:
            raise ConfigError(f"--activation: a {_MODEL.value} has no MLPs")
        model["mlp"]["sparsifier"] = {"name": _ACTIVATION.value}
    config = _text(found, model) if _MODEL.value in TEXT else _images(found, model)
    engine = run_lib.Engine(config)
    check_state(found, engine.abstract.params, engine.abstract.model_state)
    files.create()
    params = load(found.tensors, engine.abstract.params, found.reader, Progress())
    statistics = load(found.statistics, engine.abstract.model_state, found.reader)
    state = engine.state_of(params, statistics)
    with Checkpoints(files.checkpoints, config.keep) as checkpoints:
        checkpoints.save(0, state, {"config": config_lib.to_dict(config)})
    write_json(files.config, config_lib.to_dict(config))  # last: a workdir with a config is whole
    print(f"{len(found.names)} tensors of {_PATH.value} are in {files.path}")
    if _MODEL.value == "bert" and not _NEXT_SENTENCE.value:
        print("its head for the next sentence, if it has one, is left; --next_sentence takes it")
    if _MODEL.value not in TEXT and _DATA.value is None:
        print("there are no data but noise, on which accuracy says nothing; --data names others")
    return cli.DONE


def _text(found: Opened, model: dict[str, Any]) -> run_lib.RunConfig:
    """The run of a model of text."""
    if _DATA.value or _SET.value:
        raise ConfigError(f"--data: a {_MODEL.value} reads text, see --text")
    recipe = recipes.t5_checkpoint if _MODEL.value == "t5" else recipes.text_checkpoint
    try:
        section = recipe(model, found.classes, _VOCABULARY.value, _TEXT.value)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    config = run_lib.run_config(section)
    config.data.vocabulary.encode("")  # a file that is missing is named now, not when the run is evaluated
    return config


def _images(found: Opened, model: dict[str, Any]) -> run_lib.RunConfig:
    """The run of a model of images."""
    if _VOCABULARY.value or _TEXT.value:
        raise ConfigError(f"--text: a {_MODEL.value} reads images, see --data")
    data = images_of(found, _DATA.value, cli.settings(_SET.value))
    config = run_lib.run_config(recipes.image_checkpoint(model, data))
    check_images(found, config.input_shape, config.data.classes)
    theirs = found.pixels or "of a scale that it does not say"
    print(f"pixels: {getattr(config.data, 'pixels', 'unit')}; those of the checkpoint were {theirs}")
    return config


def _back() -> int:
    if _TO.value != "hf":
        raise ConfigError(f'--to: unknown format "{_TO.value}"; valid: hf')
    files = run_lib.Workdir(_WORKDIR.value)
    config = files.saved_config()
    _, state = run_lib.last_state(files)
    hf.write(state.params, config.model, config.data.classes, config.input_shape, _PATH.value)
    print(f"the network of step {int(state.step)} is in {Path(_PATH.value)}")
    return cli.DONE


if __name__ == "__main__":
    cli.main(convert)
