"""Labelled images: values read are values written, unreadable ones are named; processing and augmentation."""

import io
import json
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from mano_op import InputError
from mano_op.train.options import Augmentation
from mano_op.vision.decode import decode
from mano_op.vision.images import image_loader, open_images, stratified
from mano_op.vision.processor import IMAGENET, ImageProcessor, moments
from mano_op.vision.transforms import augmentation, resize, resize_and_crop

COLOURS = {"blue": (10, 20, 200), "red": (200, 30, 40)}


def paint(path: Path, colour: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", (6, 6), colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes in two splits. Each image has one colour, that of its class plus its number."""
    for split, n in (("train", 4), ("test", 2)):
        for name, (r, g, b) in COLOURS.items():
            for i in range(n):
                paint(tmp_path / "pets" / split / name / f"{i}.png", (r + i, g + i, b + i))
    return tmp_path / "pets"


def batch_of(split: Any) -> tuple[torch.Tensor, torch.Tensor]:
    samples = [split[i] for i in range(len(split))]
    return torch.stack([sample["x"] for sample in samples]), torch.stack([sample["y"] for sample in samples])


def images_of(images: Any) -> torch.Tensor:
    return torch.cat([batch_of(split)[0] for split in images.splits.values()])


def test_digits_are_scikit_learns() -> None:
    images, digits = open_images("digits"), load_digits()
    held_out = stratified(digits.target, 0.2, 0, images.classes)
    for split, rows in (("train", ~held_out), ("test", held_out)):
        x, y = batch_of(images[split])
        np.testing.assert_array_equal(x[:, 0].numpy(), digits.images[rows].astype(np.float32) / 16)
        np.testing.assert_array_equal(y.numpy(), digits.target[rows])
    assert len(images["train"]) == 1438 and images.classes == tuple("0123456789")
    colour = open_images("digits", in_channels=3)["test"][0]["x"]
    assert torch.equal(colour, x[0].expand(3, 8, 8))


def test_splits_are_disjoint_stratified_and_seeded() -> None:
    labels = load_digits().target

    def rows(seed: int) -> dict[str, set[int]]:
        images = open_images("digits", test=0.25, validation=0.2, seed=seed)
        return {name: set(split.rows.tolist()) for name, split in images.splits.items()}

    first, again, other = rows(0), rows(0), rows(1)
    assert first == again and first["test"] != other["test"]
    assert sorted(first["train"] | first["validation"] | first["test"]) == list(range(1797))
    assert sum(map(len, first.values())) == 1797
    for label in range(10):
        n = (labels == label).sum()
        counts = {name: sum(labels[row] == label for row in some) for name, some in first.items()}
        assert counts["test"] == round(0.25 * n)
        assert counts["validation"] == round(0.2 * (n - counts["test"]))


def test_rarest_class_is_in_both_parts() -> None:
    labels = np.array([0] * 100 + [1] * 2)
    for part, count in ((0.01, 1), (0.999, 99)):
        mask = stratified(labels, part, 0, ["a", "b"])
        assert (mask[:100].sum(), mask[100:].sum()) == (count, 1)
    with pytest.raises(InputError, match="class 'b' has one image, which cannot be in two splits"):
        stratified(labels[:-1], 0.5, 0, ["a", "b"])


def test_folder_holds_the_painted_colours(folder: Path) -> None:
    images = open_images(folder, image_size=6)
    assert images.classes == ("blue", "red")
    assert (images.channels, images.image_size, list(images.splits)) == (3, (6, 6), ["train", "test"])
    for split, n in (("train", 4), ("test", 2)):
        x, y = batch_of(images[split])
        assert y.tolist() == [0] * n + [1] * n
        for row in range(2 * n):
            colour = torch.tensor(COLOURS["blue" if row < n else "red"]) + row % n
            assert torch.equal(x[row], (colour.float() / 255).view(3, 1, 1).expand(3, 6, 6))
    batches = list(image_loader(images["train"], 3))
    assert torch.equal(torch.cat([batch["x"] for batch in batches]), batch_of(images["train"])[0])


def test_folder_without_splits_is_split(folder: Path) -> None:
    images = open_images(folder / "train", image_size=4, test=0.25, seed=3)
    assert {name: len(split) for name, split in images.splits.items()} == {"train": 6, "test": 2}
    assert images["test"].labels.tolist() == [0, 1] and images["test"].image_size == (4, 4)
    # Each painted colour is in one of the two, once, and with its class.
    x, y = (torch.cat(both) for both in zip(*map(batch_of, images.splits.values()), strict=True))
    colours = (255 * x[:, :, 0, 0]).round().int()
    painted = [
        [n, *(c + i for c in COLOURS[name])] for n, name in enumerate(images.classes) for i in range(4)
    ]
    assert sorted(torch.cat([y[:, None], colours], 1).tolist()) == painted


def test_hidden_files_are_skipped_and_nested_ones_are_read(folder: Path) -> None:
    before = open_images(folder, image_size=6)
    for hidden in (".thumbs/0.png", ".thumbs/more/0.png", "more/.thumbs/0.png", ".0.png"):
        paint(folder / "train" / "red" / hidden, (0, 0, 0))
    assert open_images(folder, image_size=6).origin == before.origin
    paint(folder / "train" / "red" / "more" / "test_0.png", (0, 0, 0))
    assert len(open_images(folder, image_size=6)["train"]) == len(before["train"]) + 1
    parent = folder.parent / ".cache"  # the folder itself may be in a hidden one
    parent.mkdir()
    assert len(open_images(folder.rename(parent / "pets"), image_size=6)["test"]) == len(before["test"])


def test_channels_are_those_asked_for_or_of_the_first_image(tmp_path: Path, folder: Path) -> None:
    grey = open_images(folder, image_size=6, in_channels=1)["train"][0]["x"]
    luminance = round(0.299 * 10 + 0.587 * 20 + 0.114 * 200)
    assert torch.equal(grey, torch.full((1, 6, 6), luminance / 255))
    for name in ("a", "b"):
        for i in range(3):
            paint(tmp_path / "grey" / name / f"{i}.png", 50 + i)
    x = images_of(open_images(tmp_path / "grey", image_size=6))
    assert (x.unique() * 255).round().tolist() == [50, 51, 52]
    colour = open_images(tmp_path / "grey", image_size=6, in_channels=3)
    assert torch.equal(images_of(colour), x.expand(-1, 3, -1, -1))
    paint(tmp_path / "grey" / "b" / "1.png", (1, 2, 3))
    with pytest.raises(InputError, match=r"1\.png is in colour, the first training image is grey: give in_"):
        images_of(open_images(tmp_path / "grey", image_size=6))


def test_images_are_rotated_by_their_exif_orientation(tmp_path: Path) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated a quarter, clockwise
    Image.fromarray(pixels).save(tmp_path / "rotated.png", exif=exif)
    x = decode(tmp_path / "rotated.png", "rotated", 1)
    np.testing.assert_array_equal(x[0].numpy(), np.rot90(pixels, -1).astype(np.float32) / 255)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    assert decode(tmp_path / "clear.png", "clear", 3).flatten().tolist() == [1.0, 1.0, 1.0]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 0, 255, 0])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 255]))
    x = decode(tmp_path / "palette.png", "palette", 3)
    assert x[:, 0].T.tolist() == [[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]


def test_resize_and_crop_keeps_slope_and_middle() -> None:
    """A linear slope stays linear away from its ends, and the middle of the image stays the middle."""
    slope = (torch.arange(32) + 0.5).expand(3, 12, 32)
    expected = 16 + 2 * (torch.arange(6) - 2.5)
    torch.testing.assert_close(resize_and_crop(slope, (6, 6)), expected.expand(3, 6, 6))
    assert torch.equal(resize_and_crop(slope, (12, 32)), slope)
    assert resize_and_crop(slope, (7, 5)).shape == (3, 7, 5)
    strip = torch.zeros(1, 2, 20_000)  # cropped before it is enlarged
    strip[..., 9_990:10_010] = 1.0
    assert torch.equal(resize_and_crop(strip, (16, 16)), torch.ones(1, 16, 16))


def test_resize_is_a_triangle_filter() -> None:
    """Against weights of a kernel as wide as the new pixels; refined pixels keep the old centres."""
    x = torch.rand(1, 1, 8, generator=torch.Generator().manual_seed(0)).double()
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8
    coarse, fine = resize(x, (1, 4)), resize(x, (1, 24))
    for i in (1, 2):
        torch.testing.assert_close(coarse[0, 0, i], (weights * x[0, 0, 2 * i - 1 : 2 * i + 3]).sum())
    torch.testing.assert_close(fine[..., 1::3], x)
    assert fine.min() >= x.min() and fine.max() <= x.max()


def test_at_reads_the_source_anew_before_resizing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    split = open_images(tmp_path, image_size=4, test=0.5)["train"]
    exact = torch.from_numpy(pixels).float()[None] / 255
    assert torch.equal(split.at(16)[0]["x"], exact)
    assert torch.equal(split[0]["x"], resize(exact, (4, 4)))
    resized = split.at(8, resized_to=(16, 12))
    assert torch.equal(resized[0]["x"], resize(resize(exact, (8, 8)), (16, 12)))
    assert torch.equal(resized.at(16)[0]["x"], exact)


def test_origin_is_of_the_files_not_of_their_folder(folder: Path, tmp_path: Path) -> None:
    before = open_images(folder, image_size=6).origin
    moved = folder.rename(tmp_path / "moved")
    assert open_images(moved, image_size=6).origin == before
    paint(moved / "train" / "red" / "9.png", (1, 2, 3))
    assert open_images(moved, image_size=6).origin["digest"] != before["digest"]


# Saved data sets.


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_set(pixels: np.ndarray, labels: Any) -> datasets.Dataset:
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    rows = [{"bytes": png(Image.fromarray(image)), "path": None} for image in pixels]
    return datasets.Dataset.from_dict({"picture": rows, "kind": labels}, datasets.Features(features))


PIXELS = np.random.default_rng(1).integers(0, 255, (6, 5, 5, 3), dtype=np.uint8)
PETS = data_set(PIXELS, [0, 1] * 3)


def test_saved_data_set_is_read_back(tmp_path: Path) -> None:
    parts = {"train": data_set(PIXELS[:4], [0, 1, 1, 0]), "test": data_set(PIXELS[4:], [1, 0])}
    datasets.DatasetDict(parts).with_format("torch").save_to_disk(str(tmp_path / "pets"))
    images = open_images(tmp_path / "pets", image_size=5)
    assert (images.classes, images.channels, list(images.splits)) == (("cat", "dog"), 3, ["train", "test"])
    for split, rows, labels in (("train", slice(0, 4), [0, 1, 1, 0]), ("test", slice(4, 6), [1, 0])):
        x, y = batch_of(images[split])
        np.testing.assert_array_equal(x.numpy(), PIXELS[rows].transpose(0, 3, 1, 2).astype(np.float32) / 255)
        assert y.tolist() == labels
    copy = pickle.loads(pickle.dumps(images["test"]))  # as for a worker
    assert torch.equal(copy[1]["x"], images["test"][1]["x"])
    assert open_images(tmp_path / "pets", image_size=5).origin == images.origin
    data_set(PIXELS[::-1][:4], [0, 1, 1, 0]).save_to_disk(str(tmp_path / "other"))
    assert open_images(tmp_path / "other", image_size=5).origin["digest"] != images.origin["digest"]


def test_saved_data_set_without_splits_is_split(tmp_path: Path) -> None:
    PETS.save_to_disk(str(tmp_path / "pets"))
    images = open_images(tmp_path / "pets", image_size=5, test=0.3, image_column="picture")
    counts = {name: sorted(split.labels.tolist()) for name, split in images.splits.items()}
    assert counts == {"train": [0, 0, 1, 1], "test": [0, 1]}
    x, y = (torch.cat(both) for both in zip(*map(batch_of, images.splits.values()), strict=True))
    for image, label in zip(x, y, strict=True):
        rows = ((image * 255).round().numpy().transpose(1, 2, 0) == PIXELS).all((1, 2, 3))
        assert [row % 2 for row in np.flatnonzero(rows)] == [label]


def test_ambiguous_columns_have_to_be_named(tmp_path: Path) -> None:
    both = PETS.add_column("other", PETS["kind"], feature=datasets.ClassLabel(names=["x", "y"]))
    both.save_to_disk(str(tmp_path / "two"))
    both.remove_columns(["picture"]).save_to_disk(str(tmp_path / "none"))
    assert open_images(tmp_path / "two", image_size=5, label_column="other").classes == ("x", "y")
    for name, column, message in (
        ("two", None, "2 columns of ClassLabel among picture, kind, other, .*: give label_column='kind'"),
        ("two", "picture", "label_column='picture' for .*two, which has 2 columns of ClassLabel"),
        ("none", None, "0 columns of Image .* cast a column to it"),
    ):
        with pytest.raises(InputError, match=message):
            open_images(tmp_path / name, image_size=5, label_column=column)


SWAPPED = PETS.cast_column("kind", datasets.ClassLabel(names=["dog", "cat"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (data_set(PIXELS, [0, -1, 1, 0, 1, 0]), "image 1 of .* has the label -1, expected 0 to 1"),
        (data_set(PIXELS, [0, 1, None, 0, 1, 0]), "image 2 of .* has the label -1"),
        (data_set(PIXELS, [0] * 6), r"without images \['dog'\]"),
        ({"fit": PETS}, "has the splits fit, expected 'train'"),
        ({"train": PETS, "valid": PETS, "validation": PETS}, "the splits train, valid, validation, expected"),
        (
            {"train": PETS, "test": SWAPPED},
            r"the split 'test' of .* has the classes \('dog', 'cat'\), the tr",
        ),
    ],
    ids=["unlabelled", "missing", "empty class", "no train", "twice", "other classes"],
)
def test_unusable_data_sets_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    content = datasets.DatasetDict(content) if isinstance(content, dict) else content
    content.save_to_disk(str(tmp_path / "pets"))
    with pytest.raises(InputError, match=message):
        open_images(tmp_path / "pets", image_size=5)


def test_nothing_is_fetched_and_damaged_data_sets_are_refused(tmp_path: Path) -> None:
    rows = PETS.to_dict()
    rows["picture"][3] = {"bytes": None, "path": "https://example.com/cat.png"}
    stored = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"picture": stored, "kind": PETS.features["kind"]})
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(tmp_path / "pets"))
    described = json.loads((tmp_path / "pets" / "dataset_info.json").read_text())
    described["features"]["picture"] = {"_type": "Image"}  # saved as an image it would be fetched
    (tmp_path / "pets" / "dataset_info.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"image 3 of .*pets .*Error: https://example.com/cat.png, and no"):
        images_of(open_images(tmp_path / "pets", image_size=5))
    for file in (tmp_path / "pets").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="pets cannot be read as a data set"):
        open_images(tmp_path / "pets", image_size=5)


# Hostile files.


def bomb() -> bytes:
    """PNG of a few bytes that announces 60000 x 60000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        code = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", code)

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


NOISE = np.random.default_rng(2).integers(0, 255, (40, 40, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as an image"),
        (b"no image at all", "cannot be read as an image"),
        (png(Image.fromarray(NOISE))[:2000], "cannot be read as an image .* if it was cut short"),
        (bomb(), r"cannot be read as an image \(DecompressionBomb.* make it smaller"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "cannot be read as an image"),
        (png(Image.new("I;16", (3, 3), 40_000)), "has the mode I;16, more than 8 bits per channel"),
    ],
    ids=["empty", "text", "cut", "bomb", "postscript", "deep"],
)
def test_unreadable_files_are_named(content: bytes, message: str, folder: Path) -> None:
    (folder / "train" / "red" / "2.png").write_bytes(content)
    split = open_images(folder, image_size=6)["train"]
    with pytest.raises(InputError, match=rf"red/2\.png {message}"):
        batch_of(split)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF"])
def test_damaged_file_gives_an_image_or_an_input_error(kind: str) -> None:
    random, buffer = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(NOISE[:16, :16]).save(buffer, kind)
    intact = buffer.getvalue()
    assert decode({"bytes": intact}, "intact", 3).shape == (3, 16, 16)
    for _ in range(60):
        damaged = bytearray(intact[: random.integers(1, len(intact) + 1)])
        for position in random.integers(0, len(damaged), 3):
            damaged[position] = random.integers(256)
        try:
            x = decode({"bytes": bytes(damaged)}, "damaged", 3)
            assert x.shape[0] == 3 and 0 <= x.min() <= x.max() <= 1
        except InputError as error:
            assert str(error).startswith("damaged ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "image_size=None, expected a side or .*: give 32"),
        ({"image_size": 10**9}, "image_size=1000000000, expected a side or .* to 16384"),
        ({"image_size": 6, "test": 0.2}, "test=0.2, but .* has a split 'test': leave it out"),
        ({"image_size": 6, "validation": 1.0}, "validation=1.0, expected a part, between 0 and 1"),
        ({"image_size": 6, "label_column": "kind"}, "label_column for .*, which has no columns"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_images(folder, **options)


TRAIN = ["train/red/0.png", "train/blue/0.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["red/0.png"], r"has the classes \['red'\], without images \[\], expected at least two"),
        ([], r"pets has the classes \[\], .* with images of each: add some"),
        (["test/red/0.png", "test/blue/0.png"], "has the splits test, expected 'train'"),
        (["blue/0.png", "red/0.txt"], r"without images \['red'\], .*: add some \(in folders, CLASS/\*.png"),
        ([*TRAIN, "test/green/0.png"], r"test has the classes \('blue', 'red', 'green'\), the training im"),
        ([*TRAIN, "extra/red/0.png"], "has the splits extra, train, expected 'train' and"),
    ],
)
def test_unusable_folders_are_refused(files: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    for file in files:
        (tmp_path / "pets" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6)).save(tmp_path / "pets" / file, "PNG")
    with pytest.raises(InputError, match=message):
        open_images(tmp_path / "pets", image_size=6)


def test_near_names_are_proposed(folder: Path) -> None:
    with pytest.raises(InputError, match=r"digit is no folder: .*, or 'digits'; did you mean 'digits'\?"):
        open_images("digit")
    with pytest.raises(InputError, match="has no split 'tset'; it has train, test; did you mean 'test'"):
        open_images(folder, image_size=6)["tset"]


# Normalisation and targets.


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_moments_are_numpys(source: str, folder: Path) -> None:
    split = open_images(folder if source == "folder" else source, image_size=6)["train"]
    x, statistics = batch_of(split)[0].double().numpy(), moments(split)
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    np.testing.assert_allclose(statistics["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(statistics["std"], std, rtol=1e-9)
    normal = ImageProcessor(**statistics, n_classes=10).preprocess({"x": torch.from_numpy(x).float()})["x"]
    np.testing.assert_allclose(normal, (x - mean[:, None, None]) / std[:, None, None], rtol=0, atol=1e-4)
    processor = ImageProcessor(IMAGENET["mean"], IMAGENET["std"], 2)
    grey = processor.preprocess({"x": torch.full((1, 3, 1, 1), 0.5)})["x"].flatten()
    np.testing.assert_allclose(grey, (0.5 - np.array(IMAGENET["mean"])) / IMAGENET["std"], rtol=1e-5)


def test_targets_are_smoothed_in_training_only() -> None:
    processor = ImageProcessor([0.0], [1.0], n_classes=4, smoothing=0.2)
    batch = {"x": torch.zeros(2, 1, 1, 1), "y": torch.tensor([3, 0])}
    smoothed = torch.tensor([[[0.05, 0.05, 0.05, 0.85]], [[0.85, 0.05, 0.05, 0.05]]])
    torch.testing.assert_close(processor.train().preprocess(batch)["y"], smoothed)
    assert torch.equal(processor.eval().preprocess(batch)["y"].argmax(-1).flatten(), batch["y"])
    assert batch["y"].tolist() == [3, 0]
    mixed = {"x": batch["x"], "y": torch.tensor([[[0.5, 0.5, 0.0, 0.0]], [[0.0, 0.0, 0.0, 1.0]]])}
    expected = torch.tensor([0.45, 0.45, 0.05, 0.05])
    torch.testing.assert_close(processor.train().preprocess(mixed)["y"][0, 0], expected)
    single = processor.preprocess({"x": torch.zeros(1, 2, 2), "y": torch.tensor(1)}, batched=False)
    torch.testing.assert_close(single["y"], torch.tensor([[0.05, 0.85, 0.05, 0.05]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.tensor([0, 4])}, r"targets of shape \(2,\) from 0 to 4, expected labels .* from 0 to 3"),
        ({"y": torch.ones(2, 1, 3)}, r"targets of shape \(2, 1, 3\) .* probabilities \(batch, 1, 4\)"),
        ({"x": torch.zeros(2, 3, 4, 4)}, r"images of shape \(2, 3, 4, 4\) .* expected 1 channels"),
        ({"x": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}, "torch.uint8.* divide bytes by 255"),
        ({"x": torch.zeros(1, 4, 4)}, r"images of shape \(1, 4, 4\)"),
    ],
)
def test_unsuitable_batches_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    batch = {"x": torch.zeros(2, 1, 4, 4), "y": torch.tensor([0, 1]), **change}
    with pytest.raises(InputError, match=message):
        ImageProcessor([0.0], [1.0], n_classes=4).preprocess(batch)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"mean": [float("nan")]}, "mean=.*expected a finite number"),
        ({"std": [-1.0]}, "std=-1.0, expected a finite number, 0 or more"),
        ({"std": [1.0, 1.0]}, "expected one mean and std of each channel"),
        ({"n_classes": 1}, "n_classes=1, expected .* at least 2 classes"),
    ],
)
def test_damaged_descriptions_of_processors_are_refused(state: dict[str, Any], message: str) -> None:
    intact = {"mean": [0.0], "std": [1.0], "n_classes": 4, "smoothing": 0.0}
    with pytest.raises(InputError, match=message):
        ImageProcessor.from_dict(intact | state)


# Augmentation.


def augmented(x: torch.Tensor, y: torch.Tensor, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    augment = augmentation(Augmentation(**options), 4, torch.Generator().manual_seed(seed))
    assert augment is not None
    return augment(x, y)


def test_shifts_are_uniform_and_repeat_the_edge() -> None:
    n = 4000
    x = (torch.arange(5.0) * 10 + torch.arange(5.0)[:, None]).expand(n, 1, 5, 5)
    shifted, y = augmented(x, torch.zeros(n, dtype=torch.int64), shift=1)
    assert y.sum() == 0
    middle = shifted[:, 0, 2, 2]  # 22 in the image
    values, counts = middle.unique(return_counts=True)
    assert values.tolist() == [11, 12, 13, 21, 22, 23, 31, 32, 33]
    assert (counts - n / 9).abs().max() < 5 * (n / 9) ** 0.5
    expected = x[0, 0][[0, 0, 1, 2, 3]][:, [0, 0, 1, 2, 3]]
    assert torch.equal(shifted[middle == 11][0, 0], expected)


def test_flip_mirrors_half_of_the_images() -> None:
    x = torch.arange(3.0).expand(1000, 1, 2, 3)
    flipped, _ = augmented(x, torch.zeros(1000, dtype=torch.int64), flip=True)
    mirrored = flipped[:, 0, 0, 0] == 2
    assert torch.equal(flipped, torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x))
    assert abs(int(mirrored.sum()) - 500) < 80


def test_crops_scale_slopes_by_their_width() -> None:
    x = ((torch.arange(32) + 0.5) / 32).expand(200, 1, 32, 32)
    crops, _ = augmented(x, torch.zeros(200, dtype=torch.int64), crop=0.25)
    assert crops.shape == x.shape
    assert crops.min() >= x.min() and crops.max() <= x.max()
    widths = (crops[:, 0, 16, 20] - crops[:, 0, 16, 12]) * 4
    assert 0.4 < widths.min() < 0.6 and 0.9 < widths.max() < 1.001


def test_mixup_mixes_images_and_labels_alike() -> None:
    y = torch.tensor([0, 1, 2, 3])
    x = torch.eye(4).view(4, 4, 1, 1)  # an image that shows its class
    for seed in range(5):
        images, targets = augmented(x, y, seed=seed, mixup=0.4)
        assert targets.shape == (4, 1, 4)
        torch.testing.assert_close(images.view(4, 4), targets[:, 0])
        torch.testing.assert_close(targets.sum(-1), torch.ones(4, 1))


def test_augmentation_follows_its_generator() -> None:
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6) % 4
    options = {"crop": 0.5, "shift": 2, "flip": True, "mixup": 1.0}
    first, again, other = (augmented(x, y, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert augmentation(Augmentation(), 4, torch.Generator()) is None
