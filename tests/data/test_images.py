import dataclasses
import io
import resource
import struct
import subprocess
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from sparsity.config import ConfigError
from sparsity.data import images, pipeline
from sparsity.data.images import Encoded, Files, central, decode, list_files, share_of
from sparsity.data.pipeline import Stream, read_whole
from tests.hostile import changed, refusal

RNG = np.random.default_rng(0)


def encoded(array, kind="PNG", **settings):
    file = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(file, kind, **settings)
    return file.getvalue()


def write(path, value, size=(12, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes, of grey images whose brightness is their number."""
    for i in range(7):
        write(tmp_path / ("cat" if i < 3 else "dog") / f"{i}.png", 10 * i)
    return tmp_path


@pytest.fixture
def split(folder):
    return Encoded(list_files(folder, ("cat", "dog")), 10, 8)


def test_files_are_those_of_the_class_folders_in_order(folder):
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    write(folder / "cat" / "Z.JPEG", 200)
    images.list_files.cache_clear()
    files = list_files(folder, ("bird", "cat", "dog"))
    assert files.names == ["0.png", "1.png", "2.png", "Z.JPEG", "3.png", "4.png", "5.png", "6.png"]
    assert files.labels.tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert (files.labels.dtype, files.path(3)) == (np.int32, "cat/Z.JPEG")


def test_parts_are_disjoint_and_the_same_whatever_else_there_is(folder):
    files = list_files(folder, ("cat", "dog"))
    parts = [files.part(low, high) for low, high in ((0, 0.5), (0.5, 1))]
    paths = [{p.path(i) for i in range(len(p.names))} for p in parts]
    assert paths[0] | paths[1] == {files.path(i) for i in range(7)}
    assert not paths[0] & paths[1]
    assert all((share_of(path) < 0.5) == (path in paths[0]) for path in paths[0] | paths[1])
    for part in parts:
        assert [("cat", "dog")[label] for label in part.labels] == [part.path(i)[:3] for i in range(len(part.names))]


def test_shares_of_paths_are_uniform():
    shares = [share_of(f"n01440764/n01440764_{i}.JPEG") for i in range(4000)]
    # Four standard errors of each tenth's count.
    np.testing.assert_allclose(np.histogram(shares, 10, (0, 1))[0], 400, atol=4 * 360**0.5)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *((mode, "PNG") for mode in ("L", "RGB", "RGBA", "P", "1", "I;16")),
        *((mode, "JPEG") for mode in ("L", "RGB", "CMYK", "1")),
    ],
)
def test_every_kind_of_image_becomes_rgb(mode, kind):
    grey = np.full((8, 8), 200, np.uint8)
    made = Image.fromarray(grey.astype(np.uint16) << 8) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    got = np.asarray(decode(encoded(made, kind), "x"))
    assert (got.shape, got.dtype) == ((8, 8, 3), np.uint8)
    if mode != "1":
        np.testing.assert_allclose(got, 200, atol=2)


def test_a_palette_with_transparency_is_decoded():
    palette = Image.fromarray(np.full((4, 4), 90, np.uint8)).convert("P")
    got = np.asarray(decode(encoded(palette, transparency=bytes([0, 255, 3])), "x"))
    np.testing.assert_array_equal(got, 90)


@pytest.mark.parametrize("data", [b"", b"no image", None])
def test_an_image_that_cannot_be_decoded_is_one_line_with_its_name(data):
    data = encoded(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")[:900] if data is None else data
    with pytest.raises(ConfigError) as error:
        decode(data, "cat/1.jpg")
    assert str(error.value).startswith("data: cat/1.jpg cannot be decoded as an image (")
    assert "\n" not in str(error.value)


def png(width, height, data=b""):
    """A PNG that says it is so large, and has `data` for pixels."""
    chunk = lambda kind, x: struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(30_000, 30_000), (12_000, 10_000), (2**31 - 1, 2**31 - 1), (0, 5), (5, 0)])
@pytest.mark.parametrize("warned", [True, False])
def test_an_image_of_too_many_pixels_or_of_none_is_refused_before_it_is_decoded(size, warned):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        if not warned:  # as users have it
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        line = refusal(lambda: decode(png(*size), "cat/1.png"))
    assert line.startswith("data: cat/1.png cannot be decoded as an image (")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_an_image_too_long_to_be_scaled_is_refused_by_name(folder):
    (folder / "cat" / "1.png").write_bytes(png(60_000, 1, bytes(60_001)))
    split = Encoded(list_files(folder, ("cat", "dog")), 256, 224)
    message = f"data: {folder}/cat/1.png of 60000 x 1 pixels is too long to be scaled to a shorter side of 256"
    assert refusal(lambda: split.take(np.array([1]))) == message


def test_no_program_is_started_for_a_file_of_another_format(monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever its file is called."""
    monkeypatch.setattr(subprocess, "check_call", pytest.fail)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run\n%%EOF\n"
    line = refusal(lambda: decode(script, "cat/1.jpg"))
    assert line == "data: cat/1.jpg cannot be decoded as an image (its format is unknown)"


@pytest.mark.parametrize("kind", images.FORMATS)
def test_bytes_changed_anywhere_in_an_image_are_refused_by_its_name_or_make_another(kind):
    data = encoded(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8), kind)
    shapes = []
    for one in changed(data, 120):
        line = refusal(lambda one=one: shapes.append(decode(one, "cat/1.jpg").mode))
        assert line is None or line.startswith("data: cat/1.jpg cannot be decoded as an image (")
    assert set(shapes) <= {"RGB"}
    assert len(shapes) < 120


def test_a_file_that_is_broken_or_gone_is_named_when_it_is_asked_for(folder, split):
    (folder / "cat" / "1.png").write_bytes(b"\x89PNG broken")
    (folder / "dog" / "4.png").unlink()
    assert split[0]["image"].shape == (8, 8, 3)
    for asked, what in (([0, 1], "cat/1.png cannot be decoded as an image"), ([4], "dog/4.png cannot be read")):
        with pytest.raises(ConfigError, match=f"^data: {folder}/{what}"):
            split.take(np.array(asked))


def test_the_centre_is_cut_out_of_the_scaled_image():
    pixels = RNG.integers(0, 256, (10, 17, 3), dtype=np.uint8)
    # The shorter side has the wanted 10 pixels already: rows 1..8, columns 4..11.
    np.testing.assert_array_equal(central(Image.fromarray(pixels), 10, 8), pixels[1:9, 4:12])
    # A plane, at half the size: bilinear weights of it give the plane back, but for the border.
    y, x = np.mgrid[:40, :60]
    plane = np.stack([2 * y + x, 3 * x, 4 * y], -1).astype(np.uint8)
    got = np.asarray(central(Image.fromarray(plane), 20, 16), float)
    y, x = 2 * (np.mgrid[:16, :16] + np.array([2, 7])[:, None, None]) + 0.5
    # Rounded once for each axis.
    np.testing.assert_allclose(got, np.stack([2 * y + x, 3 * x, 4 * y], -1), atol=1.01)


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (9, 9), (300, 7)])
def test_images_of_any_shape_have_a_centre(size):
    assert central(Image.new("RGB", size), 10, 8).size == (8, 8)


def test_a_split_has_the_protocol_of_one_in_memory(split):
    assert len(split) == 7
    assert (split[3]["label"], split[3]["image"].dtype) == (1, np.float32)
    np.testing.assert_allclose(split[3]["image"], np.full((8, 8, 3), 30 / 255), rtol=1e-6)
    taken, whole = split.take(np.array([6, 0])), split.arrays()
    np.testing.assert_array_equal(taken["image"], whole["image"][[6, 0]])
    assert whole["label"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert (whole["image"].shape, whole["label"].dtype) == ((7, 8, 8, 3), np.int32)
    assert repr(split) == "Encoded(Files, 7, 8)"
    np.testing.assert_array_equal(split.labels, whole["label"])


def test_evaluators_see_so_many_from_all_parts_alike(split):
    few = dataclasses.replace(split, most=3)
    assert few.seen().tolist() == [0, 2, 4]
    np.testing.assert_array_equal(few.arrays()["image"], split.arrays()["image"][[0, 2, 4]])
    assert len(few) == 7


def test_whole_images_are_handed_out_one_by_one_alone(split):
    whole = dataclasses.replace(split, whole=True)
    assert (whole[2]["image"].shape, whole[2]["image"].dtype) == ((12, 12, 3), np.uint8)
    np.testing.assert_array_equal(whole.arrays()["image"], split.arrays()["image"])


class Plain:
    def model_input(self, arrays):
        return arrays | {"image": 2 * arrays["image"]}


def test_a_stream_gives_the_batches_of_what_would_be_read_whole(split, monkeypatch):
    expected = read_whole(Plain(), split)
    np.testing.assert_array_equal(expected["image"], 2 * split.arrays()["image"])
    monkeypatch.setattr(pipeline, "_HELD", 7 * 8 * 8 * 3 * 4 - 1)
    stream = read_whole(Plain(), split)
    assert isinstance(stream, Stream)
    for size in (3, 7, 100):
        parts = list(stream.batches(size))
        assert max(len(p["label"]) for p in parts) == min(size, 7)
        for name in ("image", "label"):
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), expected[name])
    assert isinstance(read_whole(Plain(), dataclasses.replace(split, most=6)), dict)


def test_a_stream_holds_two_batches(split, monkeypatch):
    made = []
    take = Encoded.take
    monkeypatch.setattr(Encoded, "take", lambda self, indices: made.append(len(indices)) or take(self, indices))
    batches = Stream(Plain(), split).batches(2)
    next(batches)
    batches.close()  # waits for what was begun
    assert len(made) <= 2


def test_evaluation_batches_of_a_stream_are_padded(split):
    batches = list(pipeline.eval_batches(Stream(Plain(), split), 4))
    assert [b["weight"].tolist() for b in batches] == [[1] * 4, [1, 1, 1, 0]]
    expected = list(pipeline.eval_batches(Plain().model_input(split.arrays()), 4))
    for a, b in zip(batches, expected, strict=True):
        for name in ("image", "label", "weight"):
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: list_files(f / "none", ("a",)), "data: .*none cannot be read"),
        (lambda f: list_files(f / "cat", ("a",)), "data: .*cat has no class folders"),
        (lambda f: list_files(f, ("cat",)), "data: .*dog is of none of the 1 classes that training has"),
    ],
)
def test_folders_that_do_not_fit_are_refused(folder, make, message):
    with pytest.raises(ConfigError, match=message):
        make(folder)


def test_class_folders_without_images_are_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(ConfigError, match=r"has no images \(.jpg, .jpeg, .png\)"):
        list_files(tmp_path, ("cat",))


def test_conditions_have_the_same_names():
    files = Files(None, ("a", "b"), ["1", "2"], np.int32([0, 1]))
    assert files.same_names(dataclasses.replace(files, folder="elsewhere"))
    assert not files.same_names(dataclasses.replace(files, names=["1", "3"]))
    assert not files.same_names(dataclasses.replace(files, labels=np.int32([1, 1])))
