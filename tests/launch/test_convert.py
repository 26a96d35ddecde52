"""The converter as users run it, on a small T5 in Hugging Face's format and in T5X's, a small ViT and ResNet."""

import json
import shutil

import flax
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launch import cli
from sparsity import recipes, run
from sparsity.config import build
from sparsity.convert import hf
from sparsity.layers.sparsify import Context
from sparsity.models.t5 import T5Config
from tests.convert import images, t5x_writer, texts

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def network():
    """(settings, parameters) of a ByT5 of random weights."""
    section = recipes.t5_model("byt5-small")
    section.update({"d_model": 16, "layers": 2, "decoder_layers": 1, "heads": 2, "head_dim": 8})
    section.mlp.d_ff = 32
    config = build(T5Config, {k: v for k, v in section.items() if k != "name"})
    zeros = [np.zeros((1, 4), np.int32)] * 4
    variables = config.build(recipes.BYT5_CLASSES).init(jax.random.key(0), *zeros, Context())
    return config, jax.device_get(flax.core.meta.unbox(variables)["params"])


@pytest.fixture(scope="module")
def theirs(network, tmp_path_factory):
    """Its directory, of Hugging Face."""
    config, params = network
    path = tmp_path_factory.mktemp("convert") / "theirs"
    hf.write_t5(params, config, recipes.BYT5_CLASSES, path)
    return path


@pytest.fixture(scope="module")
def converted(launch_alone, theirs):
    workdir = theirs.parent / "workdir"
    return workdir, launch_alone("convert", "--source=hf", "--model=t5", f"--path={theirs}", f"--workdir={workdir}")


def test_a_converted_checkpoint_is_evaluated_on_the_users_text_and_goes_back_to_the_same_bytes(
    launch, converted, theirs
):
    workdir, (code, out, err) = converted
    assert code == cli.DONE, err
    tensors = load_file(theirs / WEIGHTS)
    assert f"{len(tensors)} tensors" in out
    measures = theirs.parent / "measures.json"
    code, out, err = launch("evaluate", f"--workdir={workdir}", "--evals=language,units", f"--out={measures}")
    assert code == cli.DONE, err
    assert "unfinished(0)" in out
    found = {m["name"]: m["value"] for m in json.loads(measures.read_text())["measures"]}
    assert found["nll"] > 1
    assert 0.2 < found["units.above_0.01.encoder_1"] < 1  # a gated GELU's: no zeros, but small values
    back = theirs.parent / "back"
    code, _, err = launch("convert", "--to=hf", f"--workdir={workdir}", f"--path={back}")
    assert code == cli.DONE, err
    again = load_file(back / WEIGHTS)
    assert {n: x.tobytes() for n, x in again.items()} == {n: x.tobytes() for n, x in tensors.items()}
    assert json.loads((back / "config.json").read_text()) == json.loads((theirs / "config.json").read_text())


def without(name, tensors):
    return {n: x for n, x in tensors.items() if n != name}


WI = "encoder.block.1.layer.1.DenseReluDense.wi_0.weight"
DAMAGE = {
    "missing": (lambda t: without(WI, t), f"has no tensor {WI}, which encoder/layers/mlp/wi/kernel is made of"),
    "extra": (lambda t: t | {"more.weight": t[WI]}, "nothing is made of its tensor more.weight"),
    "shape": (lambda t: t | {WI: t[WI].T.copy()}, f"{WI} has shape (16, 32)"),
    "none": (None, "there are no .safetensors"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_checkpoint_of_another_model_is_refused_by_the_name_of_the_tensor(launch, theirs, tmp_path, kind):
    change, message = DAMAGE[kind]
    shutil.copytree(theirs, tmp_path / "t5")
    if change is None:
        (tmp_path / "t5" / WEIGHTS).unlink()
    else:
        save_file(change(load_file(theirs / WEIGHTS)), tmp_path / "t5" / WEIGHTS)
    code, _, err = launch("convert", "--source=hf", f"--path={tmp_path / 't5'}", f"--workdir={tmp_path / 'w'}")
    assert code == cli.BAD_INPUT
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "w" / "config.json").exists()


def cut_short(path):
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-100])


def not_finite(path):
    tensors = load_file(path / WEIGHTS)
    tensors[WI][0, 0] = np.nan
    save_file(tensors, path / WEIGHTS)


def elsewhere(path):
    (path / hf.INDEX).write_text('{"weight_map": {"a": "../../../etc/passwd"}}')


HOSTILE = {
    "cut short": (cut_short, "is no whole file of safetensors ("),
    "not finite": (not_finite, f"checkpoint: {WI} has numbers that are not finite in float32"),
    "elsewhere": (elsewhere, "has a in '../../../etc/passwd', which is not the name of a file beside it"),
    "no config": (lambda path: (path / "config.json").write_text("[" * 100_000), "config.json: is no JSON ("),
    "no sizes": (lambda path: (path / "config.json").write_text('{"model_type": "t5"}'), "d_ff is not given"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_checkpoint_is_one_line_and_leaves_no_run(launch, theirs, tmp_path, kind):
    change, message = HOSTILE[kind]
    shutil.copytree(theirs, tmp_path / "t5")
    change(tmp_path / "t5")
    workdir = f"--workdir={tmp_path / 'w'}"
    code, _, err = launch("convert", "--source=hf", f"--path={tmp_path / 't5'}", workdir)
    assert (code, err.count("\n")) == (cli.BAD_INPUT, 1), err
    assert err.startswith("error: ")
    assert message in err
    assert not list((tmp_path / "w").rglob("*"))
    code, _, err = launch("evaluate", workdir)
    assert (code, err) == (cli.BAD_INPUT, f"error: workdir {tmp_path / 'w'}: holds no run (no config.json)\n")


def test_what_a_killed_conversion_left_is_not_taken_for_another_checkpoints(launch, converted, theirs, tmp_path):
    shutil.copytree(converted[0], tmp_path / "w")
    (tmp_path / "w" / "config.json").unlink()  # it is written last
    code, _, err = launch("convert", "--source=hf", f"--path={theirs}", f"--workdir={tmp_path / 'w'}")
    message = f"error: workdir {tmp_path / 'w'}: has checkpoints, and no config.json that says of what; use another "
    assert (code, err) == (cli.BAD_INPUT, f"{message}workdir\n")


def test_a_workdir_that_holds_a_run_is_left_alone(launch, converted, theirs):
    workdir, _ = converted
    before = (workdir / "config.json").read_bytes()
    code, _, err = launch("convert", "--source=hf", f"--path={theirs}", f"--workdir={workdir}")
    assert (code, err.strip()) == (cli.BAD_INPUT, f"error: workdir {workdir}: holds a run already; use another")
    assert (workdir / "config.json").read_bytes() == before


def test_a_vocabulary_that_is_not_there_is_named_before_anything_is_written(launch, theirs, tmp_path):
    vocabulary = "--vocabulary=no-such.model"
    code, _, err = launch("convert", "--source=hf", f"--path={theirs}", f"--workdir={tmp_path / 'w'}", vocabulary)
    missing = "error: data.vocabulary.path: there is no file no-such.model; nothing is downloaded"
    assert (code, err.strip()) == (cli.BAD_INPUT, missing)
    assert not (tmp_path / "w").exists()


def test_t5x_goes_to_the_same_bytes_of_hugging_face_and_what_it_lacks_is_named(launch, network, theirs, tmp_path):
    directory, back = tmp_path / "checkpoint_1000", tmp_path / "back"
    t5x_writer.write(directory, t5x_writer.tensors_of(*network))
    args = ("convert", "--source=t5x", "--model=t5", f"--path={directory}")
    code, out, err = launch(*args, f"--workdir={tmp_path / 'w'}")
    assert code == cli.DONE, err
    assert f"{len(load_file(theirs / WEIGHTS))} tensors" in out
    code, _, err = launch("convert", "--to=hf", f"--workdir={tmp_path / 'w'}", f"--path={back}")
    assert code == cli.DONE, err
    assert (back / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()
    assert (back / "config.json").read_text() == (theirs / "config.json").read_text()
    name = "target/decoder/layers_0/encoder_decoder_attention/out/kernel"
    (directory / name.replace("/", ".") / "0.0").unlink()
    code, _, err = launch(*args, f"--workdir={tmp_path / 'other'}")
    assert code == cli.BAD_INPUT
    assert f"error: --path: {name} cannot be read: NOT_FOUND" in err.splitlines()[-1]
    assert not (tmp_path / "other" / "config.json").exists()


def test_a_vit_is_evaluated_on_noise_and_goes_back_to_the_same_bytes(launch, tmp_path):
    theirs = images.write_safetensors(tmp_path / "vit", images.hf_vit(images.vit()), images.HF_CONFIG)
    workdir = f"--workdir={tmp_path / 'w'}"
    code, out, err = launch("convert", "--source=hf", "--model=vit", f"--path={theirs}", workdir)
    assert code == cli.DONE, err
    assert f"{len(images.hf_vit(images.vit()))} tensors" in out
    assert "there are no data but noise" in out
    code, out, err = launch("evaluate", workdir)
    assert code == cli.DONE, err
    assert "checkpoint of step 0 of 1000" in out
    code, _, err = launch("convert", "--to=hf", workdir, f"--path={tmp_path / 'back'}")
    assert code == cli.DONE, err
    there, back = (load_file(path / WEIGHTS) for path in (theirs, tmp_path / "back"))
    assert {n: x.tobytes() for n, x in back.items()} == {n: x.tobytes() for n, x in there.items()}


def test_a_resnet_keeps_its_running_statistics_and_is_evaluated_on_the_users_data(launch, tmp_path):
    """The digits are its data, its head new: every class is as likely, so nll is log 10."""
    tensors = {name: x for name, x in images.resnet("basic").items() if not name.startswith("fc.")}
    tensors["conv1.weight"] = tensors["conv1.weight"].sum(1, keepdims=True)
    path = images.write_safetensors(tmp_path / "resnet", tensors)
    args = ("convert", "--source=timm", "--model=resnet", f"--path={path}", f"--workdir={tmp_path / 'w'}")
    code, out, err = launch(*args, "--data=digits", "--set=shift=0")
    assert code == cli.DONE, err
    assert "noise" not in out
    measures = tmp_path / "measures.json"
    code, _, err = launch("evaluate", f"--workdir={tmp_path / 'w'}", "--evals=accuracy,sparsity", f"--out={measures}")
    assert code == cli.DONE, err
    found = {m["name"]: m["value"] for m in json.loads(measures.read_text())["measures"]}
    assert found["nll"] == pytest.approx(np.log(10), rel=1e-5)
    assert 0 < found["nonzero.stem"] < 1
    engine, state = run.last_state(run.Workdir(tmp_path / "w"))
    assert engine.config.data.shift == 0
    mean = state.model_state["batch_stats"]["block_2"]["norm_1"]["mean"]
    np.testing.assert_array_equal(mean, tensors["layer2.1.bn2.running_mean"])


def test_a_llama_becomes_a_network_of_relus_on_the_users_text(launch, tmp_path):
    import tokenizers

    words = {
        "[UNK]": 0,
        **{
            f"{word}": i
            for i, word in enumerate(["the", "a", "of", "is", "for", "if", "to", "in", "and", "statement"], 1)
        },
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "my.txt").write_text("if the statement is in a statement, and the a is of the b. " * 200)
    path = images.write_safetensors(tmp_path / "llama", texts.tensors_of("llama"), texts.CONFIGS["llama"])
    workdir = tmp_path / "w"
    args = ("convert", "--source=hf", "--model=llama", f"--path={path}", f"--workdir={workdir}", "--activation=relu")
    code, out, err = launch(*args, f"--vocabulary={tmp_path / 'tokenizer.json'}", f"--text={tmp_path / 'my.txt'}")
    assert code == cli.DONE, err
    assert f"{len(texts.tensors_of('llama'))} tensors" in out
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["model"]["mlp"]["sparsifier"] == {"name": "relu"}
    assert (saved["data"]["name"], saved["data"]["vocabulary"]["classes"]) == ("next_tokens", texts.V)
    measures = tmp_path / "measures.json"
    code, _, err = launch("evaluate", f"--workdir={workdir}", "--evals=language,sparsity", f"--out={measures}")
    assert code == cli.DONE, err
    found = {m["name"]: m["value"] for m in json.loads(measures.read_text())["measures"]}
    assert found["nll"] > 1
    assert 0.1 < found["nonzero.block_1"] < 0.9
    (tmp_path / "prompts.txt").write_text("if the statement\na\n")
    of = (f"--set=prompts={tmp_path / 'prompts.txt'}", "--set=length=5", "--set=temperature=1.0", f"--out={measures}")
    code, out, err = launch("evaluate", f"--workdir={workdir}", "--evals=generate", *of)
    assert code == cli.DONE, err
    generated = json.loads(measures.read_text())["generated"]
    assert [json.loads(line) for line in out.splitlines() if line.startswith("{")] == generated
    assert [one["prompt"] for one in generated] == ["if the statement", "a"]
    assert [len(one["tokens"]) for one in generated] == [5, 5]
    assert set(" ".join(one["text"] for one in generated).split()) <= words.keys()
